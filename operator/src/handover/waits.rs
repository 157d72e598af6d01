//! For whom a pod waits, as sentences for people.

use std::time::{Duration, Instant};

use crate::context::SharedMap;

use super::holder::Holder;

/// The pods that wait at the gate.
#[derive(Default)]
pub struct Waits(SharedMap<String, Wait>);

/// A pod's wait.
#[derive(Clone, Debug)]
struct Wait {
    since: Instant,
    /// Set once the wait is long enough to be told.
    sentence: Option<String>,
}

impl Waits {
    /// Notes that a pod waits, and says since how long it does.
    pub fn waiting(&self, uid: &str) -> Duration {
        let mut waits = self.0.lock();
        let wait = waits.entry(uid.to_owned()).or_insert_with(|| Wait {
            since: Instant::now(),
            sentence: None,
        });
        wait.since.elapsed()
    }

    /// Notes what is told about a pod's wait. `true` where that is news.
    pub fn tell(&self, uid: &str, sentence: String) -> bool {
        let mut waits = self.0.lock();
        let Some(wait) = waits.get_mut(uid) else {
            return false;
        };
        let sentence = Some(sentence);
        if wait.sentence == sentence {
            return false;
        }
        wait.sentence = sentence;
        true
    }

    /// Forgets all pods but these; says which of the forgotten ones had been told of.
    pub fn retain(&self, waiting: impl Fn(&str) -> bool) -> Vec<String> {
        let mut waits = self.0.lock();
        let gone: Vec<String> = waits.keys().filter(|uid| !waiting(uid)).cloned().collect();
        gone.into_iter()
            .filter(|uid| waits.remove(uid).is_some_and(|wait| wait.sentence.is_some()))
            .collect()
    }

    /// What is told about a pod's wait.
    #[must_use]
    pub fn sentence(&self, uid: &str) -> Option<String> {
        self.0.lock().get(uid).and_then(|wait| wait.sentence.clone())
    }
}

/// Says for whom a pod waits, and what to do where that one cannot end by itself. `unreachable` is
/// whether the node of the first blocker has stopped answering.
#[must_use]
pub fn sentence(pod: &Holder, blockers: &[&Holder], unreachable: bool) -> String {
    let Some(first) = blockers.first() else {
        return format!("pod {} waits at the handover gate", pod.name);
    };
    let shared: Vec<&str> = pod
        .endpoints
        .intersection(&first.endpoints)
        .map(String::as_str)
        .take(3)
        .collect();
    let shared = shared.join(", ");
    let (namespace, name) = (&first.namespace, &first.name);
    let others = match blockers.len() - 1 {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let why = match (&first.node, first.gate) {
        (_, Some(_)) => format!("which waits longer for {shared}"),
        (Some(node), None) if unreachable => format!(
            "which holds {shared} on node {node}, and that node does not answer. If the machine is off for \
             good, say so: kubectl delete node {node}, or kubectl delete pod -n {namespace} {name} --force"
        ),
        (Some(node), None) => format!("which holds {shared} on node {node} and has not ended yet"),
        (None, None) => format!("which holds {shared} and has not ended yet"),
    };
    format!("pod {} waits for pod {namespace}/{name}{others}, {why}", pod.name)
}

/// Says that a pod may go, and that its gate could not be removed.
#[must_use]
pub fn stuck(pod: &Holder, why: &str) -> String {
    format!(
        "pod {} may go, but the handover gate cannot be taken off it: {why}; it is tried again every few seconds",
        pod.name
    )
}

/// Says that a pod was made in the API server's future, and what to do.
#[must_use]
pub fn ahead(pod: &Holder) -> String {
    let Holder {
        namespace,
        name,
        created,
        ..
    } = pod;
    format!(
        "pod {name} waits at the handover gate: it was made at {created} by a clock that is ahead of the API \
         server's, and may go after that moment. To have another one made now: kubectl delete pod -n {namespace} \
         {name}"
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use k8s_openapi::jiff::Timestamp;

    use super::*;

    fn holder(name: &str, node: Option<&str>, gate: Option<usize>) -> Holder {
        Holder {
            namespace: "plant".into(),
            name: name.into(),
            uid: name.into(),
            resource_version: String::new(),
            created: Timestamp::UNIX_EPOCH,
            gate,
            deleting: false,
            finished: false,
            node: node.map(str::to_owned),
            resource: None,
            endpoints: BTreeSet::from(["gw1:502".into(), "gw2:502".into()]),
        }
    }

    #[test]
    fn names_the_pod_the_node_and_what_to_do() {
        let pod = holder("new", None, Some(0));
        let old = holder("old", Some("node-1"), None);
        let text = sentence(&pod, &[&old], false);
        assert!(
            text.contains("waits for pod plant/old, which holds gw1:502, gw2:502 on node node-1"),
            "{text}"
        );
        let text = sentence(&pod, &[&old, &old], true);
        assert!(
            text.contains("plant/old and 1 more") && text.contains("kubectl delete node node-1"),
            "{text}"
        );
        let text = sentence(&pod, &[&holder("older", None, Some(0))], false);
        assert!(text.contains("plant/older, which waits longer"), "{text}");
    }

    #[test]
    fn a_clock_that_is_ahead_is_told_with_what_to_do() {
        let text = ahead(&holder("new", None, Some(0)));
        assert!(
            text.contains("made at 1970-01-01T00:00:00Z by a clock that is ahead")
                && text.contains("kubectl delete pod -n plant new"),
            "{text}"
        );
    }

    #[test]
    fn a_wait_is_told_once_and_again_when_it_changes() {
        let waits = Waits::default();
        assert!(!waits.tell("u", "unknown pods are not told of".into()));
        waits.waiting("u");
        assert!(waits.tell("u", "for a".into()));
        assert!(!waits.tell("u", "for a".into()));
        assert!(waits.tell("u", "for b".into()));
        assert_eq!(waits.sentence("u").as_deref(), Some("for b"));
        assert_eq!(waits.retain(|_| false), ["u"]);
        assert_eq!(waits.sentence("u"), None);
    }
}
