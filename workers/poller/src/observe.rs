//! The metrics, named `corrente_poller_<what>_<unit>`. Labels are bounded: an endpoint is one, a meter is not.

use std::{sync::Arc, time::Duration};

use corrente_record::Quality;
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use crate::{
    agenda::Manner,
    line::{LineObserver, Outcome},
    spool::Stats,
    state::{Measured, PollerState},
};

/// The metrics of one endpoint. All are looked up once, since looking up costs more than counting.
#[derive(Clone)]
pub struct EndpointMetrics {
    endpoint: Arc<str>,
    number: usize,
    state: Arc<PollerState>,
    lateness: Histogram,
    request: Histogram,
    skipped: Counter,
    /// Good, partial, failed.
    polls: [Counter; 3],
    /// Answered, exception, timeout, broken.
    requests: [Counter; 4],
    /// Hopeful, in spare time, forced.
    probes: [Histogram; 3],
    quarantined: Gauge,
    silent: Gauge,
    busy: Gauge,
}

impl EndpointMetrics {
    /// The metrics of endpoint number `number`.
    #[must_use]
    pub fn new(endpoint: &Arc<str>, number: usize, state: Arc<PollerState>) -> Self {
        let name = endpoint.to_string();
        let poll = |quality: Quality| {
            counter!(
                "corrente_poller_polls_total",
                "endpoint" => name.clone(), "quality" => quality.as_str()
            )
        };
        let request = |outcome: Outcome| {
            counter!(
                "corrente_poller_requests_total",
                "endpoint" => name.clone(), "outcome" => outcome.as_str()
            )
        };
        let probe = |manner: &'static str| {
            histogram!(
                "corrente_poller_probe_duration_seconds",
                "endpoint" => name.clone(), "manner" => manner
            )
        };
        Self {
            endpoint: endpoint.clone(),
            number,
            state,
            lateness: histogram!("corrente_poller_lateness_seconds", "endpoint" => name.clone()),
            request: histogram!("corrente_poller_request_duration_seconds", "endpoint" => name.clone()),
            skipped: counter!("corrente_poller_skipped_slots_total", "endpoint" => name.clone()),
            polls: [Quality::Good, Quality::Partial, Quality::Failed].map(poll),
            requests: [
                Outcome::Answered,
                Outcome::Exception,
                Outcome::Timeout,
                Outcome::Broken,
            ]
            .map(request),
            probes: ["hopeful", "spare", "forced"].map(probe),
            quarantined: gauge!("corrente_poller_quarantined_values", "endpoint" => name.clone()),
            silent: gauge!("corrente_poller_silent_units", "endpoint" => name.clone()),
            busy: gauge!("corrente_poller_line_busy_ratio", "endpoint" => name),
        }
    }

    /// A poll begins so many milliseconds after it was due.
    pub fn late(&self, millis: i64) {
        self.lateness
            .record(Duration::from_millis(millis.max(0).unsigned_abs()));
    }

    /// A poll ended, and so many slots were skipped after it.
    pub fn polled(&self, quality: Quality, skipped: u64) {
        let [good, partial, failed] = &self.polls;
        let polls = match quality {
            Quality::Good => good,
            Quality::Partial => partial,
            Quality::Failed => failed,
        };
        polls.increment(1);
        if skipped > 0 {
            self.skipped.increment(skipped);
        }
    }

    /// A poll cost the line so much.
    pub fn asked(&self, manner: Manner, cost: Duration) {
        let [hopeful, spare, forced] = &self.probes;
        match manner {
            Manner::Usual => {}
            Manner::Hopeful => hopeful.record(cost),
            Manner::Probe => spare.record(cost),
            Manner::Forced => forced.record(cost),
        }
    }

    /// So many values are in quarantine.
    pub fn quarantined(&self, values: usize) {
        self.quarantined.set(values as f64);
    }

    /// What was measured on the line.
    pub fn measured(&self, measured: &Measured) {
        self.busy.set(measured.busy);
        self.silent.set(measured.silent_units as f64);
    }
}

impl LineObserver for EndpointMetrics {
    fn request(&self, outcome: Outcome, took: Duration) {
        self.request.record(took);
        let [answered, exception, timeout, broken] = &self.requests;
        let requests = match outcome {
            Outcome::Answered => answered,
            Outcome::Exception => exception,
            Outcome::Timeout => timeout,
            Outcome::Broken => broken,
        };
        requests.increment(1);
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
