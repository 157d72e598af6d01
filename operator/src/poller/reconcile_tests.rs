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
