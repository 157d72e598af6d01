//! Every name that the operator shares with the cluster: labels, annotations, conditions, reasons, managers.
//!
//! They are an interface: people select by them, other tools read them, and a running cluster carries
//! them from one version of the operator to the next. So they are all here, and nowhere else.

/// The operator's name in events and as field manager of what it makes.
pub const OPERATOR: &str = "corrente-operator";
/// The field manager of status, apart from the one of the objects, so that neither takes the other's fields.
pub const STATUS_MANAGER: &str = "corrente-operator-status";

/// Labels.
pub mod labels {
    /// Who looks after the object; always [`CORRENTE`].
    pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
    /// The value of [`MANAGED_BY`].
    pub const CORRENTE: &str = "corrente";
    /// The program that runs in the pod.
    pub const NAME: &str = "app.kubernetes.io/name";
    /// The resource that the object belongs to.
    pub const INSTANCE: &str = "app.kubernetes.io/instance";
    /// The product; always [`CORRENTE`].
    pub const PART_OF: &str = "app.kubernetes.io/part-of";
    /// What the object is part of: [`POLLER`] or [`PIPELINE`]. The handover gate finds poller pods by it.
    pub const COMPONENT: &str = "corrente.dev/component";
    /// A value of [`COMPONENT`].
    pub const POLLER: &str = "poller";
    /// A value of [`COMPONENT`].
    pub const PIPELINE: &str = "pipeline";
    /// The MeterPoller, as a label value.
    pub const METER_POLLER: &str = "corrente.dev/meterpoller";
    /// The shard's number.
    pub const SHARD: &str = "corrente.dev/shard";
    /// The TelemetryPipeline, as a label value.
    pub const TELEMETRY_PIPELINE: &str = "corrente.dev/telemetrypipeline";
    /// What labels of a pod template may not begin with.
    pub const RESERVED: [&str; 2] = ["corrente.dev/", "app.kubernetes.io/"];
}

/// Annotations.
pub mod annotations {
    /// On a poller pod: the endpoints that its configuration names, as `host:port`, separated by commas.
    pub const ENDPOINTS: &str = "corrente.dev/endpoints";
    /// On pods: the full name of the resource that they belong to, which a label may be too short for.
    pub const RESOURCE: &str = "corrente.dev/resource";
    /// On pods: the ConfigMap that they run.
    pub const REVISION: &str = "corrente.dev/revision";
    /// On Deployments: the hash of what was applied last, to see without a request that nothing is to do.
    pub const APPLIED: &str = "corrente.dev/applied";
    /// On MeterPollers and TelemetryPipelines: the class of the operator that is to carry them out, where
    /// several operators run in one cluster.
    pub const OPERATOR_CLASS: &str = "corrente.dev/operator-class";
    /// On MeterPollers: the generation that is to be carried out although records are lost by it that were not
    /// sent yet.
    pub const DISCARD_UNSENT: &str = "corrente.dev/discard-unsent";
    /// What annotations of a pod template may not begin with.
    pub const RESERVED: &str = "corrente.dev/";
}

/// The scheduling gate that every poller pod is born with.
pub const HANDOVER_GATE: &str = "corrente.dev/handover";

/// Condition types.
pub mod conditions {
    /// Every pod runs the current revision and is ready.
    pub const READY: &str = "Ready";
    /// The pods are on their way to the current revision.
    pub const PROGRESSING: &str = "Progressing";
    /// Something is wrong that a person should look at, although the rest goes on.
    pub const DEGRADED: &str = "Degraded";
    /// The tables of a TelemetryPipeline are as it asks for.
    pub const TABLES_AS_ASKED: &str = "TablesAsAsked";
}

/// Reasons of conditions and events.
pub mod reasons {
    /// The resource cannot be carried out as it is written.
    pub const INVALID: &str = "Invalid";
    /// `suspend` is true.
    pub const SUSPENDED: &str = "Suspended";
    /// All pods run and are ready.
    pub const RUNNING: &str = "Running";
    /// A pod is not ready.
    pub const PODS_NOT_READY: &str = "PodsNotReady";
    /// A pod waits until another one, which holds an endpoint of its, is gone.
    pub const WAITING_FOR_HANDOVER: &str = "WaitingForHandover";
    /// A pod is not replaced before its spool is sent.
    pub const WAITING_FOR_SPOOL: &str = "WaitingForSpool";
    /// Pods are replaced.
    pub const ROLLING_OUT: &str = "RollingOut";
    /// There is nothing to do.
    pub const SETTLED: &str = "Settled";
    /// Nothing is wrong.
    pub const AS_EXPECTED: &str = "AsExpected";
    /// An endpoint belongs to an older MeterPoller.
    pub const ENDPOINT_CONFLICT: &str = "EndpointConflict";
    /// A meter's name belongs to an older MeterPoller in the same topic.
    pub const METER_CONFLICT: &str = "MeterConflict";
    /// Meters do not answer as they should.
    pub const METERS_FAILING: &str = "MetersFailing";
    /// The database cannot, or may not, have the tables as they are asked for.
    pub const TABLES_DIFFER: &str = "TablesDiffer";
    /// A worker says that something stands in its way.
    pub const WORKER_TROUBLE: &str = "WorkerTrouble";
    /// Something was made or changed in the cluster.
    pub const APPLIED: &str = "Applied";
    /// Something was deleted from the cluster.
    pub const PRUNED: &str = "Pruned";
    /// A name is taken by an object that is not ours.
    pub const NAME_TAKEN: &str = "NameTaken";
    /// The API server does not take what the resource comes to.
    pub const REFUSED: &str = "Refused";
    /// `replicas` is 0.
    pub const SCALED_TO_ZERO: &str = "ScaledToZero";
}
