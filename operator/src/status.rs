//! When a status is written: where it differs from what the cluster has, at once where the verdict
//! differs, and at most every half minute where only figures do.
//!
//! It is applied with a field manager of its own, so that what others put into the status stays theirs.

use std::time::{Duration, Instant};

use corrente_crds::{MeterPoller, MeterPollerStatus, TelemetryPipeline, TelemetryPipelineStatus};
use k8s_openapi::{api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams},
    core::NamespaceResourceScope,
    runtime::events::Recorder,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

use crate::{
    conditions,
    context::{Context, SharedMap},
    events,
    memory::{Memory, Written},
    poller,
    vocabulary::{STATUS_MANAGER, conditions as types, reasons},
};

/// A status could not be written.
#[derive(Debug, thiserror::Error)]
#[error("failed to write the status")]
pub struct Error(#[from] kube::Error);

/// A kind whose status is written here.
pub trait Reported:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + std::fmt::Debug + DeserializeOwned
{
    /// Its status.
    type Status: Clone + Default + PartialEq + Serialize + Send;

    /// The status in the cluster.
    fn status(&self) -> Option<&Self::Status>;
    /// What was written last, by uid.
    fn written(memory: &Memory) -> &SharedMap<String, Written<Self::Status>>;
    /// The conditions of a status.
    fn conditions(status: &Self::Status) -> &[Condition];
    /// A status without what changes from minute to minute.
    fn without_figures(status: &Self::Status) -> Self::Status;
}

impl Reported for MeterPoller {
    type Status = MeterPollerStatus;

    fn status(&self) -> Option<&Self::Status> {
        self.status.as_ref()
    }
    fn written(memory: &Memory) -> &SharedMap<String, Written<Self::Status>> {
        &memory.pollers
    }
    fn conditions(status: &Self::Status) -> &[Condition] {
        &status.conditions
    }
    fn without_figures(status: &Self::Status) -> Self::Status {
        poller::status::without_figures(status)
    }
}

impl Reported for TelemetryPipeline {
    type Status = TelemetryPipelineStatus;

    fn status(&self) -> Option<&Self::Status> {
        self.status.as_ref()
    }
    fn written(memory: &Memory) -> &SharedMap<String, Written<Self::Status>> {
        &memory.pipelines
    }
    fn conditions(status: &Self::Status) -> &[Condition] {
        &status.conditions
    }
    fn without_figures(status: &Self::Status) -> Self::Status {
        status.clone() // It has no figures, only states.
    }
}

/// The status of an object as it is in the cluster, be it that the cache is behind our own last write.
pub fn current<K: Reported>(object: &K, memory: &Memory) -> K::Status {
    let uid = object.uid().unwrap_or_default();
    if let Some(written) = K::written(memory).lock().get(&uid)
        && !written.is_seen_at(object.resource_version().as_deref())
    {
        return written.status.clone();
    }
    object.status().cloned().unwrap_or_default()
}

/// Writes `desired` where it is due, and tells what changed for the worse or the better. Returns when to
/// come back for a write that is not due yet.
///
/// # Errors
/// Where the API server refuses.
pub async fn write<K: Reported>(
    context: &Context,
    object: &K,
    about: &ObjectReference,
    current: &K::Status,
    desired: K::Status,
) -> Result<Option<Duration>, Error> {
    if desired == *current {
        return Ok(None);
    }
    let uid = object.uid().unwrap_or_default();
    if K::without_figures(&desired) == K::without_figures(current) {
        let period = context.settings.timing.figures;
        let last = K::written(&context.memory)
            .lock()
            .get(&uid)
            .map(|written| written.at.elapsed());
        if let Some(wait) = last.and_then(|last| period.checked_sub(last)) {
            return Ok(Some(wait));
        }
    }
    let name = object.name_any();
    let api: Api<K> = Api::namespaced(context.client.clone(), &object.namespace().unwrap_or_default());
    let body = json!({
        "apiVersion": conditions::api_version(),
        "kind": K::kind(&()),
        "metadata": {"name": name},
        "status": desired,
    });
    crate::telemetry::write("Status", "apply");
    let params = PatchParams::apply(STATUS_MANAGER).force();
    let written = api.patch_status(&name, &params, &Patch::Apply(body)).await?;
    tell(
        &context.recorder,
        about,
        K::conditions(current),
        K::conditions(&desired),
    )
    .await;
    let written = Written {
        status: desired,
        resource_version: written.resource_version().unwrap_or_default(),
        at: Instant::now(),
    };
    K::written(&context.memory).lock().insert(uid, written);
    Ok(None)
}

/// Forgets an object that is gone.
pub fn forget<K: Reported>(uid: &str, memory: &Memory) {
    K::written(memory).lock().remove(uid);
}

/// Events for what a person should know: a verdict that changed, and not each of its words.
async fn tell(recorder: &Recorder, about: &ObjectReference, before: &[Condition], after: &[Condition]) {
    let (Some(ready), degraded) = (
        conditions::find(after, types::READY),
        conditions::find(after, types::DEGRADED),
    ) else {
        return;
    };
    let is_news = |now: &Condition| {
        let before = conditions::find(before, &now.type_);
        before.is_none_or(|before| before.status != now.status || before.reason != now.reason)
    };
    let refusals = [reasons::INVALID, reasons::NAME_TAKEN, reasons::REFUSED];
    let invalid = |reason: &str| refusals.contains(&reason);
    let other_words =
        |kind: &str, now: &str| conditions::find(before, kind).is_none_or(|before| before.message != now);
    if invalid(&ready.reason) {
        if is_news(ready) || other_words(types::READY, &ready.message) {
            events::warning(recorder, about, &ready.reason, &ready.message).await;
        }
        return;
    }
    if is_news(ready) && ready.status == "True" {
        events::normal(recorder, about, &ready.reason, &ready.message).await;
    }
    if let Some(degraded) = degraded.filter(|degraded| degraded.status == "True" && is_news(degraded)) {
        events::warning(recorder, about, &degraded.reason, &degraded.message).await;
    }
}

/// What a status says of an object that cannot even be read: it is looked at as it is in the cluster, since
/// no cache has it, and only its conditions are changed.
///
/// # Errors
/// Where the API server does not answer.
pub async fn write_unreadable<K: Reported>(
    client: &Client,
    recorder: &Recorder,
    metadata: &kube::core::ObjectMeta,
    about: &ObjectReference,
    error: &str,
) -> Result<(), Error> {
    use kube::core::{ApiResource, DynamicObject};
    let (name, namespace) = (
        metadata.name.clone().unwrap_or_default(),
        metadata.namespace.clone().unwrap_or_default(),
    );
    let api: Api<DynamicObject> =
        Api::namespaced_with(client.clone(), &namespace, &ApiResource::erase::<K>(&()));
    let Some(found) = api.get_opt(&name).await? else {
        return Ok(());
    };
    let status = found.data.get("status");
    let current = status.and_then(|status| status.get("conditions")).cloned();
    let current = current
        .and_then(|list| serde_json::from_value::<Vec<_>>(list).ok())
        .unwrap_or_default();
    let refusal = poller::status::Refusal {
        reason: reasons::INVALID,
        sentences: vec![format!("it cannot be read: {error}")],
        // Its pods are selected by what was written when they were made.
        workers: poller::status::Workers::of(
            false,
            status.is_some_and(|status| status.get("selector").is_some()),
        ),
    };
    let now = k8s_openapi::jiff::Timestamp::now();
    let desired = poller::status::refused_conditions(&refusal, &current, metadata.generation, now);
    if desired == current {
        return Ok(());
    }
    crate::telemetry::write("Status", "merge");
    let patch = json!({"status": {"conditions": desired, "observedGeneration": metadata.generation}});
    let params = PatchParams {
        field_manager: Some(STATUS_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    api.patch_status(&name, &params, &Patch::Merge(patch)).await?;
    tell(recorder, about, &current, &desired).await;
    Ok(())
}
