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
