//! What a pod object says about the endpoints it holds.

use std::collections::BTreeSet;

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::ResourceExt;

use crate::vocabulary::{HANDOVER_GATE, annotations, labels};

/// A poller pod, reduced to what the gate judges by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The object's identity: a pod of the same name made later is another one.
    pub uid: String,
    /// The state of the object that was read; a release holds for no other.
    pub resource_version: String,
    /// When it was made, in whole seconds.
    pub created: Timestamp,
    /// Where our gate is in its list of scheduling gates.
    pub gate: Option<usize>,
    /// Whether it was told to end.
    pub deleting: bool,
    /// Whether all its containers have ended for good.
    pub finished: bool,
    /// The node it runs on, or ran on.
    pub node: Option<String>,
    /// The MeterPoller it belongs to.
    pub resource: Option<String>,
    /// The endpoints of its configuration, as `host:port`.
    pub endpoints: BTreeSet<String>,
}

impl Holder {
    /// Reads a pod; `None` where it is no poller pod.
    #[must_use]
    pub fn of(pod: &Pod) -> Option<Self> {
        if pod
            .labels()
            .get(labels::COMPONENT)
            .is_none_or(|component| component != labels::POLLER)
        {
            return None;
        }
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let spec = pod.spec.as_ref();
        let gates = spec
            .and_then(|spec| spec.scheduling_gates.as_deref())
            .unwrap_or_default();
        let endpoints = pod
            .annotations()
            .get(annotations::ENDPOINTS)
            .map(String::as_str)
            .unwrap_or_default();
        Some(Self {
            namespace: pod.namespace().unwrap_or_default(),
            name: pod.name_any(),
            uid: pod.uid().unwrap_or_default(),
            resource_version: pod.resource_version().unwrap_or_default(),
            created: pod.creation_timestamp().map_or(Timestamp::MAX, |time| time.0),
            gate: gates.iter().position(|gate| gate.name == HANDOVER_GATE),
            deleting: pod.metadata.deletion_timestamp.is_some(),
            finished: matches!(phase, Some("Succeeded" | "Failed")),
            node: spec.and_then(|spec| spec.node_name.clone()),
            resource: pod.annotations().get(annotations::RESOURCE).cloned(),
            endpoints: endpoints
                .split(',')
                .filter(|text| !text.is_empty())
                .map(str::to_owned)
                .collect(),
        })
    }

    /// Whether it waits behind the gate and is still wanted.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.gate.is_some() && !self.deleting && !self.finished
    }

    /// The order in which waiting pods come: the oldest first. No two pods are equal in it.
    #[must_use]
    pub fn age(&self) -> (Timestamp, &str) {
        (self.created, &self.uid)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(patch: serde_json::Value) -> Pod {
        let mut pod = json!({
            "metadata": {
                "namespace": "plant", "name": "site-0-x", "uid": "u1", "resourceVersion": "7",
                "creationTimestamp": "2026-01-01T00:00:05Z",
                "labels": {"corrente.dev/component": "poller"},
                "annotations": {"corrente.dev/endpoints": "gw1:502,gw2:503", "corrente.dev/resource": "site"},
            },
            "spec": {"containers": [], "schedulingGates": [{"name": "other"}, {"name": "corrente.dev/handover"}]},
            "status": {"phase": "Pending"},
        });
        merge(&mut pod, patch);
        serde_json::from_value(pod).unwrap()
    }

    fn merge(into: &mut serde_json::Value, patch: serde_json::Value) {
        match (into, patch) {
            (serde_json::Value::Object(into), serde_json::Value::Object(patch)) => {
                for (key, value) in patch {
                    merge(into.entry(key).or_insert(serde_json::Value::Null), value);
                }
            }
            (into, patch) => *into = patch,
        }
    }

    #[test]
    fn reads_what_the_gate_judges_by() {
        let holder = Holder::of(&pod(json!({}))).unwrap();
        assert_eq!(
            holder.endpoints,
            BTreeSet::from(["gw1:502".to_owned(), "gw2:503".to_owned()])
        );
        assert_eq!((holder.gate, holder.waits()), (Some(1), true));
        assert_eq!(holder.created.to_string(), "2026-01-01T00:00:05Z");
        assert_eq!(
            (holder.resource.as_deref(), holder.resource_version.as_str()),
            (Some("site"), "7")
        );
    }

    #[test]
    fn tells_who_waits_from_who_does_not() {
        for (what, patch, waits) in [
            (
                "a foreign gate alone",
                json!({"spec": {"schedulingGates": [{"name": "other"}]}}),
                false,
            ),
            (
                "no gate",
                json!({"spec": {"schedulingGates": null, "nodeName": "n1"}}),
                false,
            ),
            (
                "told to end",
                json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:09Z"}}),
                false,
            ),
            ("failed", json!({"status": {"phase": "Failed"}}), false),
            (
                "running state unknown to us",
                json!({"status": {"phase": "Pending"}}),
                true,
            ),
        ] {
            assert_eq!(Holder::of(&pod(patch)).unwrap().waits(), waits, "{what}");
        }
    }

    #[test]
    fn other_pods_are_none_of_its_business() {
        assert_eq!(
            Holder::of(&pod(
                json!({"metadata": {"labels": {"corrente.dev/component": "pipeline"}}})
            )),
            None
        );
        assert_eq!(Holder::of(&Pod::default()), None);
    }
}
