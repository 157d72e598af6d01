//! What every part of the operator shares: the client, the caches, the queues, and what it remembers.
//!
//! What is remembered only saves requests and words. Everything that matters is in the cluster, and a
//! restarted operator finds it there.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use corrente_crds::{MeterPoller, MeterProfile, TelemetryPipeline};
use futures::channel::mpsc;
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Pod},
};
use kube::{
    Client, Resource, ResourceExt,
    core::{DeserializeGuard, PartialObjectMeta},
    runtime::{
        controller::{ReconcileReason, ReconcileRequest},
        events::Recorder,
        reflector::{ObjectRef, Store},
    },
};
use tokio::sync::Notify;

use crate::{
    backoff::Backoffs, claims::Claims, handover::waits::Waits, memory::Memory, observe::Reports,
    poller::unsent::Unsent, vocabulary::annotations,
};

/// A MeterPoller, or the reason why it cannot be read: one bad object must not stop a watch.
pub type GuardedPoller = DeserializeGuard<MeterPoller>;
/// A MeterProfile, or the reason why it cannot be read.
pub type GuardedProfile = DeserializeGuard<MeterProfile>;
/// A TelemetryPipeline, or the reason why it cannot be read.
pub type GuardedPipeline = DeserializeGuard<TelemetryPipeline>;

/// A namespace and a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl Key {
    /// The key of an object.
    pub fn of(object: &impl Resource) -> Self {
        Self {
            namespace: object.meta().namespace.clone().unwrap_or_default(),
            name: object.meta().name.clone().unwrap_or_default(),
        }
    }

    /// A reference to the object of that name.
    #[must_use]
    pub fn to_ref<K: Resource<DynamicType = ()>>(&self) -> ObjectRef<K> {
        ObjectRef::new(&self.name).within(&self.namespace)
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The namespaces whose resources are carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Namespaces {
    /// All of them.
    All,
    /// These.
    Only(BTreeSet<String>),
}

impl Namespaces {
    /// Whether a namespace is one of them.
    #[must_use]
    pub fn contain(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => names.contains(namespace),
        }
    }
}

/// How the operator is set up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The image of poller pods.
    pub poller_image: String,
    /// The image of pipeline pods.
    pub pipeline_image: String,
    /// When nodes pull the images: `Always`, `IfNotPresent` or `Never`.
    pub image_pull_policy: String,
    /// The namespaces whose resources are carried out.
    pub namespaces: Namespaces,
    /// The class of resources that are carried out: those annotated with it, or with none where it is empty.
    /// Operators that share a namespace need classes of their own, or they undo each other's work.
    pub class: String,
    /// The port at which workers answer.
    pub worker_port: u16,
    /// The periods.
    pub timing: Timing,
}

impl Settings {
    /// Whether a resource is to be carried out by this operator.
    pub fn include(&self, object: &impl Resource) -> bool {
        let meta = object.meta();
        let class = meta
            .annotations
            .as_ref()
            .and_then(|all| all.get(annotations::OPERATOR_CLASS));
        self.namespaces
            .contain(meta.namespace.as_deref().unwrap_or_default())
            && class.map_or("", String::as_str) == self.class
    }
}

/// The periods of the operator; shorter ones are for tests.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How often a resource is looked at again although nothing changed: the safety net under the watches.
    pub resync: Duration,
    /// How long changes of one resource are gathered before it is looked at.
    pub debounce: Duration,
    /// How often a worker is asked for its figures.
    pub report: Duration,
    /// The least time between two writes of a status for the sake of figures alone.
    pub figures: Duration,
    /// How long a pod waits at the gate before its owner is told for whom.
    pub patience: Duration,
    /// How often waiting pods are judged again although no poller pod changed.
    pub recheck: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            resync: Duration::from_secs(600),
            debounce: Duration::from_millis(100),
            report: Duration::from_secs(30),
            figures: Duration::from_secs(30),
            patience: Duration::from_secs(5),
            recheck: Duration::from_secs(10),
        }
    }
}

/// The caches, filled by watches.
pub struct Stores {
    /// All MeterProfiles.
    pub profiles: Store<GuardedProfile>,
    /// The MeterPollers of all namespaces: one that is not carried out here may own a gateway all the same.
    pub pollers: Store<GuardedPoller>,
    /// The TelemetryPipelines of all namespaces.
    pub pipelines: Store<GuardedPipeline>,
    /// Our pods in all namespaces, trimmed.
    pub pods: Store<Pod>,
    /// Our Deployments, by namespace that is watched; an empty name stands for all.
    pub deployments: BTreeMap<String, Store<Deployment>>,
    /// Our ConfigMaps without their content, in the same way.
    pub config_maps: BTreeMap<String, Store<PartialObjectMeta<ConfigMap>>>,
}

impl Stores {
    /// The objects of a namespace that the owner of this uid controls.
    pub fn owned<K>(stores: &BTreeMap<String, Store<K>>, namespace: &str, owner: &str) -> Vec<Arc<K>>
    where
        K: Resource<DynamicType = ()> + Clone + 'static,
    {
        let store = stores.get(namespace).or_else(|| stores.get(""));
        let owned = |object: &K| {
            object.meta().namespace.as_deref() == Some(namespace)
                && object
                    .owner_references()
                    .iter()
                    .any(|reference| reference.uid == owner)
        };
        store.map(|store| store.state_filter(owned)).unwrap_or_default()
    }

    /// Our pods in a namespace with this label.
    #[must_use]
    pub fn pods_with(&self, namespace: &str, label: &str, value: &str) -> Vec<Arc<Pod>> {
        self.pods.state_filter(|pod| {
            pod.metadata.namespace.as_deref() == Some(namespace)
                && pod.labels().get(label).is_some_and(|found| found == value)
        })
    }
}

/// The ways to ask for work.
pub struct Queues {
    pollers: mpsc::UnboundedSender<ReconcileRequest<GuardedPoller>>,
    pipelines: mpsc::UnboundedSender<ReconcileRequest<GuardedPipeline>>,
    gate: Notify,
}

/// The other ends of [`Queues`].
pub struct Requests {
    /// MeterPollers to look at.
    pub pollers: mpsc::UnboundedReceiver<ReconcileRequest<GuardedPoller>>,
    /// TelemetryPipelines to look at.
    pub pipelines: mpsc::UnboundedReceiver<ReconcileRequest<GuardedPipeline>>,
}

impl Queues {
    /// Empty queues. They are not bounded: a controller keeps one entry per object, whoever asks how often.
    #[must_use]
    pub fn new() -> (Self, Requests) {
        let (poller_sender, pollers) = mpsc::unbounded();
        let (pipeline_sender, pipelines) = mpsc::unbounded();
        let queues = Self {
            pollers: poller_sender,
            pipelines: pipeline_sender,
            gate: Notify::new(),
        };
        (queues, Requests { pollers, pipelines })
    }

    /// Asks for a look at a MeterPoller.
    pub fn poller(&self, key: &Key, why: &str) {
        // An error says that the controller has ended, and the operator with it.
        let _ = self.pollers.unbounded_send(request(key, why));
    }

    /// Asks for a look at a TelemetryPipeline.
    pub fn pipeline(&self, key: &Key, why: &str) {
        let _ = self.pipelines.unbounded_send(request(key, why));
    }

    /// Asks for a look at the handover gate.
    pub fn gate(&self) {
        self.gate.notify_one();
    }

    /// Waits until somebody asks for a look at the gate; several at once count as one.
    pub async fn gate_asked(&self) {
        self.gate.notified().await;
    }
}

fn request<K: Resource<DynamicType = ()>>(key: &Key, why: &str) -> ReconcileRequest<K> {
    ReconcileRequest {
        obj_ref: key.to_ref(),
        reason: ReconcileReason::Custom {
            reason: why.to_owned(),
        },
    }
}

/// What every part of the operator shares.
pub struct Context {
    /// The client.
    pub client: Client,
    /// How the operator is set up.
    pub settings: Settings,
    /// The one recorder of events, which knows which it has told already.
    pub recorder: Recorder,
    /// The caches.
    pub stores: Stores,
    /// The ways to ask for work.
    pub queues: Queues,
    /// Who owns which endpoint and meter.
    pub claims: Shared<Arc<Claims>>,
    /// What was applied and written last.
    pub memory: Memory,
    /// What the workers say of themselves.
    pub reports: Reports,
    /// Who waits at the gate for whom.
    pub waits: Waits,
    /// Whose spool a change waits for.
    pub unsent: Unsent,
    /// How often an object has failed in a row.
    pub backoffs: Backoffs,
}

/// A value behind a lock that is held only to look or to change it, never across an await.
#[derive(Default)]
pub struct Shared<T>(Mutex<T>);

impl<T> Shared<T> {
    /// The value. A thread that panicked with the lock held leaves a value that is still whole.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A map behind a lock.
pub type SharedMap<K, V> = Shared<HashMap<K, V>>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fixtures::poller, golden::settings};

    #[test]
    fn a_resource_is_carried_out_by_the_operator_of_its_class_and_namespace() {
        let plain = poller("plain", 1, &[]);
        let mut classed = plain.clone();
        classed
            .annotations_mut()
            .insert(annotations::OPERATOR_CLASS.into(), "canary".into());
        let mut settings = settings();
        assert!(settings.include(&plain) && !settings.include(&classed));
        settings.class = "canary".into();
        assert!(!settings.include(&plain) && settings.include(&classed));
        settings.namespaces = Namespaces::Only(["elsewhere".to_owned()].into());
        assert!(!settings.include(&classed));
    }
}
