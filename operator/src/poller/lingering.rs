//! Pods that were told to end, should have, and are still there: what holds up a rollout without a word.
//!
//! A shard's Deployment replaces its pod only when the old one is gone. On a node that is lost it never goes by
//! itself, and no successor is there yet that could say at the gate for whom it waits. So the owner is told
//! here, with the pod, the node, and what to do.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::ResourceExt;

use crate::{context::Context, handover::holder::Holder, nodes, podstate};

/// How long after its grace period a pod may still be there without a word, in seconds.
const SLOW: i64 = 10;

/// The pods that linger.
#[derive(Debug, Default)]
pub struct Lingering {
    /// What a person should know of each.
    pub sentences: Vec<String>,
    /// When to look again.
    pub again: Option<Duration>,
}

/// For how many seconds a pod should have been gone; less than nothing where it has that many left. `None`
/// where it was not told to end, or holds nothing any more.
fn overdue(pod: &Pod, now: Timestamp) -> Option<i64> {
    if podstate::is_finished(pod) {
        return None;
    }
    // It is the moment at which the grace period ends, not that at which it began.
    let end = &pod.metadata.deletion_timestamp.as_ref()?.0;
    Some(now.as_second() - end.as_second() - SLOW)
}

/// Looks for pods that linger, and at their nodes. One that is named in `told` already is not told again.
pub async fn sentences(pods: &[Arc<Pod>], told: &[String], context: &Context) -> Lingering {
    let now = Timestamp::now();
    let mut found = Lingering::default();
    for pod in pods {
        let name = pod.name_any();
        if told.iter().any(|sentence| sentence.contains(&name)) {
            continue;
        }
        let Some(seconds) = overdue(pod, now) else {
            continue;
        };
        let wait = match u64::try_from(-seconds) {
            Ok(left) if left > 0 => Duration::from_secs(left),
            _ => {
                let holder = Holder::of(pod);
                let node = holder.as_ref().and_then(|holder| holder.node.clone());
                let answers = match &node {
                    Some(node) => nodes::answers(&context.client, node).await,
                    None => true,
                };
                let endpoints = holder.map(|holder| holder.endpoints).unwrap_or_default();
                found
                    .sentences
                    .push(sentence(pod, node.as_deref(), answers, &endpoints));
                context.settings.timing.recheck
            }
        };
        found.again = Some(found.again.map_or(wait, |again| again.min(wait)));
    }
    found
}

fn sentence(pod: &Pod, node: Option<&str>, answers: bool, endpoints: &BTreeSet<String>) -> String {
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    let held = match endpoints.iter().take(3).cloned().collect::<Vec<_>>() {
        none if none.is_empty() => String::new(),
        some => format!(" and may still poll {}", some.join(", ")),
    };
    let on = node.map_or_else(String::new, |node| format!(" on node {node}"));
    match node {
        Some(node) if !answers => format!(
            "pod {namespace}/{name}{on} was told to end{held}, and that node does not answer; its successor starts \
             when it is gone. If the machine is off for good, say so: kubectl delete node {node}, or kubectl delete \
             pod -n {namespace} {name} --force"
        ),
        _ => format!(
            "pod {namespace}/{name}{on} was told to end{held}, and has not ended yet; its successor starts when it \
             is gone"
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fake;

    fn pod(deleted: Option<&str>, phase: &str) -> Pod {
        let mut pod = json!({
            "metadata": {
                "namespace": "plant", "name": "site-0-x", "uid": "u",
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {"corrente.dev/component": "poller"},
                "annotations": {"corrente.dev/endpoints": "gw1:502,gw2:502"},
            },
            "spec": {"containers": [], "nodeName": "node-2"},
            "status": {"phase": phase},
        });
        pod["metadata"]["deletionTimestamp"] = json!(deleted);
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn a_pod_is_overdue_a_while_after_its_grace_period() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        for (deleted, phase, expected) in [
            (None, "Running", None),
            (Some("2026-01-01T00:01:20Z"), "Running", Some(-30)),
            (Some("2026-01-01T00:00:50Z"), "Running", Some(0)),
            (Some("2026-01-01T00:00:00Z"), "Running", Some(50)),
            (Some("2026-01-01T00:00:00Z"), "Failed", None),
        ] {
            assert_eq!(overdue(&pod(deleted, phase), now), expected, "{deleted:?}");
        }
    }

    #[tokio::test]
    async fn a_pod_on_a_lost_node_is_named_with_its_node_and_what_to_do() {
        let (client, _) = fake::client(|line| {
            line.starts_with("GET /api/v1/nodes/node-2").then(|| {
                let ready = json!({"type": "Ready", "status": "Unknown"});
                (
                    200,
                    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-2"}, "status": {"conditions": [ready]}}),
                )
            })
        });
        let context = fake::context(client, vec![]);
        let lingers = Arc::new(pod(Some("2026-01-01T00:00:00Z"), "Running"));
        let found = sentences(std::slice::from_ref(&lingers), &[], &context).await;
        assert_eq!(found.again, Some(context.settings.timing.recheck));
        assert_eq!(
            found.sentences,
            [
                "pod plant/site-0-x on node node-2 was told to end and may still poll gw1:502, gw2:502, and that node \
                 does not answer; its successor starts when it is gone. If the machine is off for good, say so: \
                 kubectl delete node node-2, or kubectl delete pod -n plant site-0-x --force"
            ]
        );
        let fine = Arc::new(pod(None, "Running"));
        assert!(sentences(&[fine], &[], &context).await.sentences.is_empty());
        let told = ["pod site-0-y waits for pod plant/site-0-x".to_owned()];
        let found = sentences(&[lingers], &told, &context).await;
        assert!(found.sentences.is_empty(), "the gate has told already");
    }
}
