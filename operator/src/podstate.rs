//! What a pod's object says of its state.

use k8s_openapi::api::core::v1::Pod;

/// Whether a pod runs, is ready and was not told to end.
#[must_use]
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default();
    has_started(pod)
        && conditions
            .iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True")
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

/// What keeps a pod from running, as a sentence; `None` where nothing does, or nothing is known.
///
/// The words stay the same while the cause does: Kubernetes' own count up the seconds of each back-off, and
/// two reasons take turns for an image that cannot be pulled.
#[must_use]
pub fn trouble(pod: &Pod) -> Option<String> {
    if is_ready(pod) || is_finished(pod) || pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let status = pod.status.as_ref()?;
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let unschedulable = conditions.iter().find(|condition| {
        condition.type_ == "PodScheduled" && condition.reason.as_deref() == Some("Unschedulable")
    });
    if let Some(condition) = unschedulable {
        let why = condition.message.as_deref().unwrap_or("no node takes it");
        return Some(format!("pod {name} cannot be scheduled: {why}"));
    }
    let container = status.container_statuses.as_deref()?.first()?;
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    Some(match waiting.reason.as_deref()? {
        "ContainerCreating" | "PodInitializing" => return None,
        "ErrImagePull" | "ImagePullBackOff" | "ErrImageNeverPull" | "InvalidImageName" => {
            format!("pod {name} cannot pull its image {}", container.image)
        }
        "CrashLoopBackOff" => {
            let ended = container
                .last_state
                .as_ref()
                .and_then(|state| state.terminated.as_ref());
            let code = ended.map_or_else(String::new, |ended| {
                format!(" with exit code {}", ended.exit_code)
            });
            format!("pod {name} keeps ending{code}: see kubectl logs -n {namespace} {name} --previous")
        }
        reason => {
            format!("pod {name} does not start: {reason}; see kubectl describe pod -n {namespace} {name}")
        }
    })
}

/// Whether a pod has a node, and waits there for its image and its volumes.
#[must_use]
pub fn is_being_created(pod: &Pod) -> bool {
    let containers = pod
        .status
        .as_ref()
        .and_then(|status| status.container_statuses.as_deref())
        .unwrap_or_default();
    pod.metadata.deletion_timestamp.is_none()
        && containers.iter().any(|container| {
            let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
            waiting.and_then(|waiting| waiting.reason.as_deref()) == Some("ContainerCreating")
        })
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
            conditions.retain(|condition| ["Ready", "PodScheduled"].contains(&condition.type_.as_str()));
        }
        *status = k8s_openapi::api::core::v1::PodStatus {
            phase: status.phase.take(),
            pod_ip: status.pod_ip.take(),
            container_statuses: status.container_statuses.take(),
            conditions,
            ..Default::default()
        };
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(status: &Value) -> Pod {
        let metadata = json!({"name": "site-0-x", "namespace": "plant"});
        serde_json::from_value(json!({"metadata": metadata, "status": status})).unwrap()
    }

    fn waiting(reason: &str, more: Value) -> Pod {
        let mut container = json!({
            "name": "poller", "image": "corrente/poller:1", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": reason, "message": "back-off 40s"}},
        });
        container
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        pod(&json!({"phase": "Pending", "containerStatuses": [container]}))
    }

    #[test]
    fn says_what_keeps_a_pod_from_running_in_words_that_stay() {
        let ended = json!({"lastState": {"terminated": {"exitCode": 2}}});
        let unschedulable = json!({"conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes are available"},
        ]});
        let table = [
            (
                waiting("ErrImagePull", json!({})),
                Some("cannot pull its image corrente/poller:1"),
            ),
            (
                waiting("ImagePullBackOff", json!({})),
                Some("cannot pull its image corrente/poller:1"),
            ),
            (
                waiting("CrashLoopBackOff", ended),
                Some("keeps ending with exit code 2: see kubectl logs -n plant"),
            ),
            (
                waiting("CreateContainerConfigError", json!({})),
                Some("does not start: CreateContainerConfigError"),
            ),
            (waiting("ContainerCreating", json!({})), None),
            (
                pod(&unschedulable),
                Some("cannot be scheduled: 0/2 nodes are available"),
            ),
            (pod(&json!({"phase": "Running"})), None),
        ];
        for (pod, expected) in table {
            let found = trouble(&pod);
            match expected {
                None => assert_eq!(found, None),
                Some(text) => assert!(
                    found.as_deref().is_some_and(|found| found.contains(text)),
                    "{found:?}"
                ),
            }
        }
        assert!(is_being_created(&waiting("ContainerCreating", json!({}))));
        assert!(!is_being_created(&waiting("ErrImagePull", json!({}))));
    }

    #[test]
    fn trimming_leaves_what_is_looked_at() {
        let mut pod = waiting("ErrImagePull", json!({}));
        pod.metadata.annotations = Some(
            [
                ("corrente.dev/revision".into(), "r".into()),
                ("other".into(), "o".into()),
            ]
            .into(),
        );
        let before = trouble(&pod);
        trim(&mut pod);
        assert_eq!(trouble(&pod), before);
        assert_eq!(pod.metadata.annotations.unwrap().len(), 1);
    }
}
