//! The operator's metrics, named in the fashion of other operators so that their dashboards fit.
//!
//! Labels are bounded: controllers, kinds, verbs and error categories; never the names of objects.

use std::time::Instant;

/// A count as a gauge's value. Counts here are far below 2^53.
#[allow(clippy::cast_precision_loss, reason = "counts of objects are far below 2^53")]
#[must_use]
pub fn as_f64(count: usize) -> f64 {
    count as f64
}

/// Describes every metric, once, after the recorder is installed.
pub fn describe() {
    use metrics::{describe_counter, describe_gauge, describe_histogram};
    describe_counter!(
        "corrente_operator_reconcile_operations_total",
        "Looks at a resource."
    );
    describe_counter!(
        "corrente_operator_reconcile_errors_total",
        "Looks at a resource that failed, by category."
    );
    describe_histogram!(
        "corrente_operator_reconcile_duration_seconds",
        "How long a look at a resource took."
    );
    describe_counter!(
        "corrente_operator_writes_total",
        "Requests that change the cluster, by kind and verb."
    );
    describe_counter!(
        "corrente_operator_watch_errors_total",
        "Watches that had to be started again."
    );
    describe_counter!(
        "corrente_operator_handover_releases_total",
        "Poller pods released from the handover gate."
    );
    describe_counter!(
        "corrente_operator_handover_errors_total",
        "Failures of the handover gate, by category."
    );
    describe_gauge!(
        "corrente_operator_handover_waiting",
        "Poller pods that wait at the handover gate."
    );
    describe_gauge!(
        "corrente_operator_objects_in_backoff",
        "Resources that failed and wait to be tried again."
    );
    describe_gauge!(
        "corrente_operator_managed_resources",
        "Resources that are carried out, by kind."
    );
    describe_gauge!(
        "corrente_operator_ready",
        "Whether the caches are filled and the controllers run."
    );
    describe_counter!(
        "corrente_operator_report_errors_total",
        "Workers that did not answer at /status."
    );
}

/// Counts a request that changes the cluster.
pub fn write(kind: &'static str, verb: &'static str) {
    metrics::counter!("corrente_operator_writes_total", "kind" => kind, "verb" => verb).increment(1);
}

/// Counts a look at a resource: how long it took, and in which category it failed.
pub fn reconciled(controller: &'static str, began: Instant, failure: Option<&'static str>) {
    metrics::counter!("corrente_operator_reconcile_operations_total", "controller" => controller)
        .increment(1);
    metrics::histogram!("corrente_operator_reconcile_duration_seconds", "controller" => controller)
        .record(began.elapsed());
    if let Some(category) = failure {
        metrics::counter!(
            "corrente_operator_reconcile_errors_total",
            "controller" => controller,
            "category" => category
        )
        .increment(1);
    }
}
