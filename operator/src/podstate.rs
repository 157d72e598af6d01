//! What a pod's object says of its state.

use k8s_openapi::api::core::v1::Pod;

/// Whether a pod runs, is ready and was not told to end.
#[must_use]
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    has_started(pod) && conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Whether a pod's containers were started and it was not told to end.
#[must_use]
pub fn has_started(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
}

/// Whether a pod is done with for good.
#[must_use]
pub fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Leaves of a pod what the operator looks at: a cache of whole pods would be many times as large.
pub fn trim(pod: &mut Pod) {
    pod.metadata.managed_fields = None;
    if let Some(annotations) = pod.metadata.annotations.as_mut() {
        annotations.retain(|key, _| key.starts_with(crate::vocabulary::annotations::RESERVED));
    }
    if let Some(spec) = pod.spec.as_mut() {
        *spec = k8s_openapi::api::core::v1::PodSpec {
            node_name: spec.node_name.take(),
            scheduling_gates: spec.scheduling_gates.take(),
            ..Default::default()
        };
    }
    if let Some(status) = pod.status.as_mut() {
        let mut conditions = status.conditions.take();
        if let Some(conditions) = conditions.as_mut() {
            conditions.retain(|condition| condition.type_ == "Ready");
        }
        *status = k8s_openapi::api::core::v1::PodStatus {
            phase: status.phase.take(),
            pod_ip: status.pod_ip.take(),
            conditions,
            ..Default::default()
        };
    }
}
