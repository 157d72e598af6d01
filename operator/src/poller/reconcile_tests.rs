use std::time::Instant;

use kube::core::DeserializeGuard;

use super::*;
use crate::{fake, fixtures::poller, memory::Applied};

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/plant/deployments";

fn guarded(poller: MeterPoller) -> GuardedPoller {
    DeserializeGuard(Ok(poller))
}

#[tokio::test]
async fn what_is_suspended_stops_although_it_is_invalid() {
    let (client, asked) = fake::client(|_| None);
    let live = vec![
        fake::deployment("site-0", "uid-site", 1),
        fake::deployment("site-1", "uid-site", 0),
        fake::deployment("other-0", "uid-other", 1),
    ];
    let context = fake::context(client, live);
    let key = ("Deployment", "plant".to_owned(), "site-0".to_owned());
    let applied = Applied {
        hash: "h".into(),
        uid: "uid-site-0".into(),
        generation: 1,
        at: Instant::now(),
    };
    context.memory.applied.lock().insert(key.clone(), applied);
    let mut poller = poller("site", 1, &[("a", "gw1", &["m1"])]);
    poller.spec.endpoints[0].meters[0].profile = Some("no-such-profile".into());

    reconcile(&guarded(poller.clone()), &context).await.unwrap();
    assert!(
        fake::asked(&asked, &format!("PATCH {DEPLOYMENTS}")).is_empty(),
        "not suspended: it goes on"
    );
    assert!(fake::ready(&asked).1.contains("last good configuration"));

    poller.spec.suspend = true;
    poller.metadata.generation = Some(2);
    reconcile(&guarded(poller), &context).await.unwrap();
    assert_eq!(
        fake::asked(&asked, &format!("PATCH {DEPLOYMENTS}")),
        [format!("PATCH {DEPLOYMENTS}/site-0")]
    );
    let patched = asked
        .lock()
        .unwrap()
        .iter()
        .find(|(line, _)| line.contains("site-0"))
        .unwrap()
        .1
        .clone();
    assert_eq!(patched, serde_json::json!({"spec": {"replicas": 0}}));
    let (reason, message) = fake::ready(&asked);
    assert!(
        reason == "Invalid" && message.contains("no-such-profile") && message.contains("suspended"),
        "{reason}: {message}"
    );
    assert!(!context.memory.applied.lock().contains_key(&key));
}

/// A MeterPoller of two shards.
fn sharded() -> MeterPoller {
    let mut poller = poller("site", 1, &[("a", "gw1", &["m1"]), ("b", "gw2", &["m2"])]);
    poller.spec.shards = 2;
    poller
}

#[tokio::test]
async fn what_the_api_server_refuses_is_told_and_tried_again() {
    for code in [400, 403, 422] {
        let (client, asked) = fake::client(move |line| {
            line.contains("deployments/site-0")
                .then(|| fake::refusal(code, "exceeded quota: small"))
        });
        let context = fake::context(client, vec![]);
        let error = reconcile(&guarded(sharded()), &context).await.unwrap_err();
        assert_eq!(error.category(), "apply");
        let (reason, message) = fake::ready(&asked);
        assert_eq!(reason, "Refused");
        assert!(
            message.contains("exceeded quota: small") && message.contains("Deployment site-0"),
            "{message}"
        );
        let told = |(line, body): &(String, serde_json::Value)| {
            line.contains("/events") && body["reason"] == "Refused"
        };
        assert!(asked.lock().unwrap().iter().any(told), "an event says so");
    }
}

#[tokio::test]
async fn what_fails_in_an_ending_namespace_or_on_the_way_is_not_told() {
    for (code, cause) in [(403, "NamespaceTerminating"), (500, "other")] {
        let (client, asked) = fake::client(move |line| {
            line.starts_with("POST /api/v1/namespaces/plant/configmaps")
                .then(|| {
                    let (_, mut said) = fake::refusal(code, "no");
                    said["details"] =
                        serde_json::json!({"causes": [{"reason": cause, "message": "", "field": ""}]});
                    (code, said)
                })
        });
        let context = fake::context(client, vec![]);
        reconcile(&guarded(sharded()), &context).await.unwrap_err();
        assert!(
            !asked
                .lock()
                .unwrap()
                .iter()
                .any(|(line, _)| line.contains("/status")),
            "{code}"
        );
    }
}

#[tokio::test]
async fn a_shard_that_fails_keeps_no_removed_one_and_no_other_one() {
    let (client, asked) = fake::client(|line| {
        line.contains("deployments/site-0")
            .then(|| fake::refusal(500, "etcd is away"))
    });
    let context = fake::context(client, vec![fake::deployment("site-2", "uid-site", 1)]);
    reconcile(&guarded(sharded()), &context).await.unwrap_err();
    let written: Vec<String> = ["DELETE", "PATCH"]
        .iter()
        .flat_map(|verb| fake::asked(&asked, &format!("{verb} {DEPLOYMENTS}")))
        .collect();
    assert_eq!(
        written,
        [
            format!("DELETE {DEPLOYMENTS}/site-2"),
            format!("PATCH {DEPLOYMENTS}/site-1")
        ]
    );
    let all = fake::asked(&asked, "");
    let at = |beginning: &str| all.iter().position(|line| line.starts_with(beginning)).unwrap();
    assert!(
        at("DELETE") < at("POST /api/v1/namespaces/plant/configmaps"),
        "the losers first"
    );
}

/// A worker that says this of its spool, at a port of its own.
async fn worker(spool: serde_json::Value) -> (u16, tokio::task::JoinHandle<()>) {
    let report = serde_json::json!({
        "meters": {"total": 1, "healthy": 1, "failing": 0}, "polls": 9, "skipped": 0, "spool": spool,
    });
    let app = axum::Router::new().route(
        "/status",
        axum::routing::get(move || std::future::ready(axum::Json(report.clone()))),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = async move { axum::serve(listener, app).await.unwrap() };
    (port, tokio::spawn(serve))
}

/// A context whose cluster runs shards 0 and 1 of the site in an old revision, with workers at this port.
fn running(client: kube::Client, port: u16) -> Context {
    let shards = ["0", "1"].map(|shard| {
        let mut live = fake::deployment(&format!("site-{shard}"), "uid-site", 1);
        live.labels_mut()
            .insert(labels::SHARD.to_owned(), shard.to_owned());
        live
    });
    let pods = ["0", "1"].map(|shard| {
        let pod = serde_json::json!({
            "metadata": {
                "namespace": "plant", "name": format!("site-{shard}-x"), "uid": format!("uid-pod-{shard}"),
                "labels": {"corrente.dev/component": "poller", "corrente.dev/meterpoller": "site", "corrente.dev/shard": shard},
                "annotations": {"corrente.dev/revision": "old"},
            },
            "status": {"phase": "Running", "podIP": "127.0.0.1"},
        });
        serde_json::from_value::<Pod>(pod).unwrap()
    });
    let mut context = fake::context(client, shards.into());
    context.stores.pods = fake::filled(pods.into()).as_reader();
    context.settings.worker_port = port;
    context
}

/// The Deployments that were changed or deleted.
fn changed(asked: &fake::Asked) -> Vec<String> {
    ["DELETE", "PATCH"]
        .iter()
        .flat_map(|verb| fake::asked(asked, &format!("{verb} {DEPLOYMENTS}")))
        .collect()
}

#[tokio::test]
async fn a_pod_whose_spool_is_not_sent_is_neither_replaced_nor_removed() {
    let stuck = serde_json::json!({
        "stream": "s", "records": 70, "pending": 50, "bytes": 1, "evicted": 0, "refused": 0,
        "trouble": "no broker answers",
    });
    let (port, worker) = worker(stuck).await;
    // Both shards change.
    let (client, asked) = fake::client(|_| None);
    let context = running(client, port);
    let next = reconcile(&guarded(sharded()), &context).await.unwrap();
    assert_eq!(changed(&asked), Vec::<String>::new());
    assert_eq!(next, Action::requeue(context.settings.timing.recheck));
    let (reason, message) = fake::ready(&asked);
    assert_eq!(reason, "WaitingForSpool");
    assert!(
        message
            .contains("the spool of shard 0 holds records that the broker has not taken (no broker answers)")
            && message.contains("meterpoller -n plant site corrente.dev/discard-unsent=1"),
        "{message}"
    );
    // One shard is removed, the other one takes its endpoints.
    let mut fewer = sharded();
    fewer.spec.shards = 1;
    let (client, asked) = fake::client(|_| None);
    reconcile(&guarded(fewer), &running(client, port)).await.unwrap();
    assert_eq!(changed(&asked), Vec::<String>::new());
    // What is given up, and what is suspended, waits for nothing.
    let mut given_up = sharded();
    given_up
        .annotations_mut()
        .insert("corrente.dev/discard-unsent".into(), "1".into());
    let mut suspended = sharded();
    suspended.spec.suspend = true;
    for poller in [given_up, suspended] {
        let (client, asked) = fake::client(|_| None);
        reconcile(&guarded(poller), &running(client, port)).await.unwrap();
        assert_eq!(changed(&asked).len(), 2);
    }
    worker.abort();
}

#[tokio::test]
async fn a_pod_whose_spool_is_sent_or_that_does_not_answer_is_replaced() {
    let sent = serde_json::json!({
        "stream": "s", "records": 70, "pending": 0, "bytes": 1, "evicted": 0, "refused": 0,
    });
    let (port, worker) = worker(sent).await;
    let (client, asked) = fake::client(|_| None);
    reconcile(&guarded(sharded()), &running(client, port))
        .await
        .unwrap();
    assert_eq!(changed(&asked).len(), 2);
    worker.abort();
    let closed = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().port()
    };
    let (client, asked) = fake::client(|_| None);
    reconcile(&guarded(sharded()), &running(client, closed))
        .await
        .unwrap();
    assert_eq!(changed(&asked).len(), 2);
}
