//! The loop of the handover gate.
//!
//! It sleeps until a poller pod changes, and while pods wait it also looks every few seconds, for what no
//! change of a pod tells: a node that stopped answering. It reads nothing while no pod waits.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Resource, ResourceExt,
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
    events,
    vocabulary::reasons,
};

/// How soon a pod that was made this second is judged again, or one that changed while it was judged.
const SOON: Duration = Duration::from_millis(250);
/// How soon to try again after a failure.
const AFTER_FAILURE: Duration = Duration::from_secs(2);
/// How long the API server may take to answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// Why a look at the gate failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("failed to see who holds which endpoint")]
    Snapshot(#[from] snapshot::Error),
    #[error(transparent)]
    Release(#[from] release::Error),
    #[error("failed to look at the handover gate: the API server took too long to answer")]
    Timeout,
}

impl Error {
    fn category(&self) -> &'static str {
        match self {
            Self::Snapshot(_) => "snapshot",
            Self::Release(_) => "release",
            Self::Timeout => "timeout",
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
            metrics::counter!("corrente_operator_handover_errors_total", "category" => error.category())
                .increment(1);
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
            Verdict::Release => {
                if release(&context.client, pod).await? {
                    crate::telemetry::write("Pod", "patch");
                    metrics::counter!("corrente_operator_handover_releases_total").increment(1);
                    tracing::info!(
                        namespace = pod.namespace,
                        pod = pod.name,
                        "released from the handover gate"
                    );
                } else {
                    sooner(SOON);
                }
            }
            Verdict::Newborn => sooner(SOON),
            Verdict::Wait(blockers) => {
                still.insert(pod.uid.clone());
                let waited = context.waits.waiting(&pod.uid);
                if waited < context.settings.timing.patience {
                    sooner(context.settings.timing.patience - waited);
                } else {
                    sooner(context.settings.timing.recheck);
                    tell(context, pod, &blockers).await;
                }
            }
        }
    }
    tell_owners(context, &still);
    Ok(next)
}

/// Tells a pod's owner, and the pod's own events, for whom it waits, where that is news.
async fn tell(context: &Context, pod: &Holder, blockers: &[&Holder]) {
    let unreachable = match blockers.first().and_then(|blocker| blocker.node.as_deref()) {
        Some(node) => !answers(context, node).await,
        None => false,
    };
    let sentence = waits::sentence(pod, blockers, unreachable);
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

/// Whether a node is there and answers. Where that cannot be found out, nothing is claimed about it.
async fn answers(context: &Context, node: &str) -> bool {
    match Api::<Node>::all(context.client.clone()).get_opt(node).await {
        Ok(Some(node)) => {
            let conditions = node
                .status
                .and_then(|status| status.conditions)
                .unwrap_or_default();
            conditions
                .iter()
                .find(|condition| condition.type_ == "Ready")
                .is_none_or(|ready| ready.status != "Unknown")
        }
        Ok(None) => true,
        Err(error) => {
            tracing::debug!(node, %error, "failed to ask for a node");
            true
        }
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
