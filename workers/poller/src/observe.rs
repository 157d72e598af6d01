//! The metrics, named `corrente_poller_<what>_<unit>`. Labels are bounded: an endpoint is one, a meter is not.

use std::{sync::Arc, time::Duration};

use corrente_record::Quality;
use metrics::{Counter, Histogram, counter, gauge, histogram};

use crate::{
    line::{LineObserver, Outcome},
    spool::Stats,
    state::PollerState,
};

/// The metrics of one endpoint.
#[derive(Clone)]
pub struct EndpointMetrics {
    endpoint: Arc<str>,
    number: usize,
    state: Arc<PollerState>,
    lateness: Histogram,
    request: Histogram,
    skipped: Counter,
}

impl EndpointMetrics {
    /// The metrics of endpoint number `number`.
    #[must_use]
    pub fn new(endpoint: &Arc<str>, number: usize, state: Arc<PollerState>) -> Self {
        let name = endpoint.to_string();
        Self {
            endpoint: endpoint.clone(),
            number,
            state,
            lateness: histogram!("corrente_poller_lateness_seconds", "endpoint" => name.clone()),
            request: histogram!("corrente_poller_request_duration_seconds", "endpoint" => name.clone()),
            skipped: counter!("corrente_poller_skipped_slots_total", "endpoint" => name),
        }
    }

    /// A poll begins so many milliseconds after it was due.
    pub fn late(&self, millis: i64) {
        self.lateness
            .record(Duration::from_millis(millis.max(0).unsigned_abs()));
    }

    /// A poll ended, and so many slots were skipped after it.
    pub fn polled(&self, quality: Quality, skipped: u64) {
        counter!(
            "corrente_poller_polls_total",
            "endpoint" => self.endpoint.to_string(), "quality" => quality.as_str()
        )
        .increment(1);
        self.skipped.increment(skipped);
    }
}

impl LineObserver for EndpointMetrics {
    fn request(&self, outcome: Outcome, took: Duration) {
        self.request.record(took);
        counter!(
            "corrente_poller_requests_total",
            "endpoint" => self.endpoint.to_string(), "outcome" => outcome.as_str()
        )
        .increment(1);
    }

    fn connection(&self, result: Result<(), &str>) {
        let outcome = if result.is_ok() { "connected" } else { "failed" };
        counter!(
            "corrente_poller_connections_total",
            "endpoint" => self.endpoint.to_string(), "outcome" => outcome
        )
        .increment(1);
        match result {
            Ok(()) => tracing::debug!(endpoint = %self.endpoint, "connected"),
            Err(reason) => tracing::info!(endpoint = %self.endpoint, reason, "failed to connect"),
        }
        self.state.connected(self.number, result);
    }
}

/// Shows the spool's figures.
pub fn spool(stats: &Stats, lost: u64) {
    gauge!("corrente_poller_spool_pending_records").set(stats.pending as f64);
    gauge!("corrente_poller_spool_bytes").set(stats.bytes as f64);
    counter!("corrente_poller_spool_records_total").absolute(stats.appended);
    counter!("corrente_poller_spool_evicted_records_total").absolute(stats.evicted);
    counter!("corrente_poller_spool_refused_records_total").absolute(stats.refused);
    counter!("corrente_poller_spool_damaged_records_total").absolute(stats.damaged);
    counter!("corrente_poller_lost_records_total").absolute(lost);
}
