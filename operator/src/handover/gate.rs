//! The loop of the handover gate.
//!
//! It sleeps until a poller pod changes, and while pods wait it also looks every few seconds, for what no
//! change of a pod tells: a node that stopped answering. It reads nothing while no pod waits.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Resource, ResourceExt,
    runtime::events::{Event, EventType},
};
use tokio_util::sync::CancellationToken;

use super::{
    decide::{Verdict, decide},
    holder::Holder,
    release::{self, release},
    snapshot, waits,
};
use crate::{
    context::{Context, Key},
    events, nodes,
    vocabulary::reasons,
};

/// How soon a pod that was made this second is judged again, or one that changed while it was judged.
const SOON: Duration = Duration::from_millis(250);
/// How soon to try again after a failure.
const AFTER_FAILURE: Duration = Duration::from_secs(2);
/// How long the API server may take to answer.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long it may take to answer to the release of one pod.
const RELEASE: Duration = Duration::from_secs(4);

/// Why a look at the gate failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("failed to see who holds which endpoint")]
    Snapshot(#[from] snapshot::Error),
    #[error(transparent)]
    Release(#[from] release::Error),
    #[error("failed to look at the handover gate: the API server took too long to answer")]
    Timeout,
    #[error("failed to release pod {0}: the API server took too long to answer")]
    Slow(String),
}

impl Error {
    fn category(&self) -> &'static str {
        match self {
            Self::Snapshot(_) => "snapshot",
            Self::Release(_) => "release",
            Self::Timeout | Self::Slow(_) => "timeout",
        }
    }
}

/// Opens the gate for whom it may, until `shutdown`.
pub async fn run(context: Arc<Context>, shutdown: CancellationToken) {
    let mut next: Option<Duration> = Some(Duration::ZERO);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = context.queues.gate_asked() => {}
            () = pause(next) => {}
        }
        next = look(&context).await;
    }
}

async fn pause(pause: Option<Duration>) {
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
        None => std::future::pending().await,
    }
}

/// One look, and when to look again although nothing changes.
async fn look(context: &Context) -> Option<Duration> {
    let waiting =
        |pod: &Pod| Holder::of(pod).is_some_and(|holder| holder.waits() && is_ours(context, &holder));
    if context.stores.pods.find(waiting).is_none() {
        tell_owners(context, &BTreeSet::new());
        return None;
    }
    let looked = tokio::time::timeout(PATIENCE, judge_all(context)).await;
    match looked.unwrap_or(Err(Error::Timeout)) {
        Ok(next) => next,
        Err(error) => {
            tracing::warn!(error = %events::chain(&error), "the handover gate stays shut for now");
            failed(&error);
            Some(AFTER_FAILURE)
        }
    }
}

fn is_ours(context: &Context, pod: &Holder) -> bool {
    context.settings.namespaces.contain(&pod.namespace)
}

async fn judge_all(context: &Context) -> Result<Option<Duration>, Error> {
    let snapshot = snapshot::read(&context.client).await?;
    let mut next: Option<Duration> = None;
    let mut still: BTreeSet<String> = BTreeSet::new();
    let mut sooner = |wait: Duration| next = Some(next.map_or(wait, |next| next.min(wait)));
    for (pod, verdict) in decide(&snapshot.pods, snapshot.now) {
        if !is_ours(context, pod) {
            continue;
        }
        match verdict {
            Verdict::Release => match released(context, pod).await {
                Ok(true) => {
                    crate::telemetry::write("Pod", "patch");
                    metrics::counter!("corrente_operator_handover_releases_total").increment(1);
                    tracing::info!(
                        namespace = pod.namespace,
                        pod = pod.name,
                        "released from the handover gate"
                    );
                }
                Ok(false) => sooner(SOON),
                // The younger ones have nothing to do with it.
                Err(error) => {
                    let why = events::chain(&error);
                    tracing::warn!(namespace = pod.namespace, error = why, "will be tried again");
                    failed(&error);
                    still.insert(pod.uid.clone());
                    sooner(AFTER_FAILURE);
                    if context.waits.waiting(&pod.uid) >= context.settings.timing.patience {
                        tell(context, pod, waits::stuck(pod, &why)).await;
                    }
                }
            },
            Verdict::Newborn => sooner(SOON),
            Verdict::Wait(blockers) => {
                still.insert(pod.uid.clone());
                let waited = context.waits.waiting(&pod.uid);
                if waited < context.settings.timing.patience {
                    sooner(context.settings.timing.patience - waited);
                } else {
                    sooner(context.settings.timing.recheck);
                    let unreachable = is_unreachable(context, &blockers).await;
                    tell(context, pod, waits::sentence(pod, &blockers, unreachable)).await;
                }
            }
            Verdict::Ahead(ahead) => {
                still.insert(pod.uid.clone());
                let waited = context.waits.waiting(&pod.uid);
                sooner(context.settings.timing.recheck.min(ahead));
                if waited >= context.settings.timing.patience {
                    tell(context, pod, waits::ahead(pod)).await;
                }
            }
        }
    }
    tell_owners(context, &still);
    Ok(next)
}

/// Removes the gate of a pod, within a time that leaves some for the others: a webhook may let it hang.
async fn released(context: &Context, pod: &Holder) -> Result<bool, Error> {
    match tokio::time::timeout(RELEASE, release(&context.client, pod)).await {
        Ok(done) => Ok(done?),
        Err(_) => Err(Error::Slow(format!("{}/{}", pod.namespace, pod.name))),
    }
}

fn failed(error: &Error) {
    metrics::counter!("corrente_operator_handover_errors_total", "category" => error.category()).increment(1);
}

/// Whether the node of the first blocker has stopped answering.
async fn is_unreachable(context: &Context, blockers: &[&Holder]) -> bool {
    match blockers.first().and_then(|blocker| blocker.node.as_deref()) {
        Some(node) => !nodes::answers(&context.client, node).await,
        None => false,
    }
}

/// Tells a pod's owner, and the pod's own events, why it waits, where that is news.
async fn tell(context: &Context, pod: &Holder, sentence: String) {
    if !context.waits.tell(&pod.uid, sentence.clone()) {
        return;
    }
    tracing::info!(namespace = pod.namespace, "{sentence}");
    let mut reference = Pod::default().object_ref(&());
    reference.namespace = Some(pod.namespace.clone());
    reference.name = Some(pod.name.clone());
    reference.uid = Some(pod.uid.clone());
    let event = Event {
        type_: EventType::Warning,
        reason: reasons::WAITING_FOR_HANDOVER.to_owned(),
        note: Some(crate::conditions::shortened(&sentence, events::NOTE)),
        action: "Handover".to_owned(),
        secondary: None,
    };
    events::publish(&context.recorder, event, &reference).await;
    if let Some(name) = &pod.resource {
        let key = Key {
            namespace: pod.namespace.clone(),
            name: name.clone(),
        };
        context.queues.poller(&key, "its pod waits at the handover gate");
    }
}

/// Forgets the pods that no longer wait, and has their owners take back what they were told.
fn tell_owners(context: &Context, still: &BTreeSet<String>) {
    metrics::gauge!("corrente_operator_handover_waiting").set(crate::telemetry::as_f64(still.len()));
    for uid in context.waits.retain(|uid| still.contains(uid)) {
        let Some(pod) = context
            .stores
            .pods
            .find(|pod| pod.uid().as_deref() == Some(uid.as_str()))
        else {
            continue;
        };
        if let Some(key) = Holder::of(&pod).and_then(|holder| {
            Some(Key {
                namespace: holder.namespace,
                name: holder.resource?,
            })
        }) {
            context
                .queues
                .poller(&key, "its pod no longer waits at the handover gate");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::fake;

    fn pod(name: &str, created: &str) -> Value {
        json!({
            "metadata": {
                "namespace": "plant", "name": name, "uid": name, "resourceVersion": "1",
                "creationTimestamp": created,
                "labels": {"corrente.dev/component": "poller"},
                "annotations": {"corrente.dev/endpoints": format!("{name}:502"), "corrente.dev/resource": "site"},
            },
            "spec": {"containers": [], "schedulingGates": [{"name": "corrente.dev/handover"}]},
            "status": {"phase": "Pending"},
        })
    }

    /// A context whose cluster has these pods, and refuses to change the one called `stuck`. It is one
    /// minute past midnight there.
    fn context(pods: Vec<Value>) -> (Context, fake::Asked) {
        let list = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods.clone()});
        let (client, asked) = fake::client(move |line| match line {
            _ if line.starts_with("GET /api/v1/pods?") => Some((200, list.clone())),
            _ if line.contains("/pods/stuck") => Some(fake::refusal(403, "a policy says no")),
            _ => None,
        });
        let mut context = fake::context(client, vec![]);
        let cached = pods.into_iter().map(|pod| serde_json::from_value(pod).unwrap());
        context.stores.pods = fake::filled::<Pod>(cached.collect()).as_reader();
        context.settings.timing.patience = Duration::ZERO;
        (context, asked)
    }

    #[tokio::test]
    async fn a_pod_that_cannot_be_released_keeps_no_younger_one() {
        let pods = vec![
            pod("stuck", "2026-01-01T00:00:00Z"),
            pod("young", "2026-01-01T00:00:10Z"),
        ];
        let (context, asked) = context(pods);
        assert_eq!(look(&context).await, Some(AFTER_FAILURE));
        let released = fake::asked(&asked, "PATCH /api/v1/namespaces/plant/pods/");
        assert_eq!(released.len(), 2, "{released:?}");
        let sentence = context.waits.sentence("stuck").unwrap();
        assert!(sentence.contains("a policy says no"), "{sentence}");
        assert_eq!(context.waits.sentence("young"), None);
    }

    #[tokio::test]
    async fn a_pod_of_a_clock_that_is_ahead_waits_and_says_so() {
        let (context, asked) = context(vec![pod("early", "2026-01-01T01:00:00Z")]);
        assert_eq!(look(&context).await, Some(context.settings.timing.recheck));
        let sentence = context.waits.sentence("early").unwrap();
        assert!(sentence.contains("ahead of the API server's"), "{sentence}");
        assert!(fake::asked(&asked, "PATCH").is_empty());
    }
}
