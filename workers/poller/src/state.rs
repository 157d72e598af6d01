//! What the poller knows of itself: behind `/livez`, `/readyz` and `/status`, and for whoever shows readings.
//!
//! *Ready* is when the spool is open and the endpoints are being polled. A dead meter or a broker that is
//! away does not make a pod unready: nothing gets better by holding back a rollout or restarting a pod, and
//! the status says it where its owner looks.

use std::sync::{
    Arc, Mutex, MutexGuard, OnceLock, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use corrente_config::report::{PollerReport, SpoolReport};
use corrente_crds::poller::{FailingMeter, MeterCounts};
use corrente_modbus::CostModel;
use corrente_record::{Quality, Reading, Timestamp};
use corrente_runtime::http::Probe;
use serde::Serialize;

use crate::{
    publish::Trouble,
    spool::{SpoolError, shared::SharedSpool},
};

/// The longest reason in a report.
const REASON_LENGTH: usize = 256;

/// Called with every reading, once it is in the spool. It must not block.
pub type OnReading = Arc<dyn Fn(&Reading) + Send + Sync>;

/// What the poller knows of itself.
#[derive(Default)]
pub struct PollerState {
    on_reading: Option<OnReading>,
    running: AtomicBool,
    polls: AtomicU64,
    skipped: AtomicU64,
    lost: AtomicU64,
    spool: OnceLock<SharedSpool>,
    trouble: Arc<Trouble>,
    write: Trouble,
    sync: Trouble,
    /// A lock for each, since each has one task that writes.
    endpoints: OnceLock<Vec<Mutex<EndpointState>>>,
}

/// An endpoint, in the status.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointState {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: String,
    /// Whether the last try to connect succeeded; absent before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connected: Option<bool>,
    /// Why it did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What was measured on its line; absent at first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
    /// The meters behind it.
    pub meters: Vec<MeterState>,
}

/// What was measured on a line.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Measured {
    /// What requests cost; absent before enough were seen.
    #[serde(flatten)]
    pub requests: Option<RequestCost>,
    /// The part of the time that the line was busy lately, 0 to 1.
    pub busy: f64,
    /// The shortest interval of its meters, in milliseconds.
    pub interval_ms: u64,
    /// For how long the line was busy in each such interval, in milliseconds.
    pub cycle_ms: f64,
    /// How long the line is expected to be held by a question that nobody answers, in milliseconds.
    pub held_ms: u64,
    /// Units that do not answer.
    pub silent_units: usize,
}

/// What requests cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestCost {
    /// A request and its answer without their registers, in microseconds.
    pub round_trip_us: u64,
    /// Each register of an answer, in microseconds.
    pub register_us: u64,
}

impl From<CostModel> for RequestCost {
    fn from(cost: CostModel) -> Self {
        Self {
            round_trip_us: cost.round_trip_micros,
            register_us: cost.register_micros,
        }
    }
}

/// A value that is left out because its meter does not let it be read.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LeftOutState {
    /// The meter.
    pub meter: String,
    /// The value.
    pub metric: String,
    /// Why.
    pub reason: String,
    /// Since when.
    pub since: Timestamp,
    /// When it is asked for again.
    pub next_retry: Timestamp,
}

/// A meter, in the status.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MeterState {
    /// Its name.
    pub name: String,
    /// The quality of its last poll; absent before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quality: Option<Quality>,
    /// The slot of that poll.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot: Option<Timestamp>,
    /// Why values were missing in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What is left out of its polls; listed for all meters together.
    #[serde(skip)]
    pub quarantined: Vec<LeftOutState>,
}

#[derive(Serialize)]
struct Status {
    #[serde(flatten)]
    report: PollerReport,
    /// Readings that could not be written to the spool since the poller started.
    lost: u64,
    /// Why the spool cannot be written or synced at the moment.
    #[serde(skip_serializing_if = "Option::is_none")]
    disk: Option<String>,
    /// The values that are left out because their meters do not let them be read.
    quarantined: Vec<LeftOutState>,
    endpoints: Vec<EndpointState>,
}

/// A meter's place in the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MeterId {
    /// The endpoint's index.
    pub endpoint: usize,
    /// The meter's index in it.
    pub meter: usize,
}

impl PollerState {
    /// Nothing polled yet. `on_reading` is called with every reading.
    #[must_use]
    pub fn new(on_reading: Option<OnReading>) -> Self {
        Self {
            on_reading,
            ..Self::default()
        }
    }

    /// Where to say why the broker takes no records.
    #[must_use]
    pub fn trouble(&self) -> &Arc<Trouble> {
        &self.trouble
    }

    /// Records that were read and could not be written to the spool.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// The contract with the operator and the command line.
    #[must_use]
    pub fn report(&self) -> PollerReport {
        let endpoints = self.endpoints();
        let meters = || endpoints.iter().flat_map(|endpoint| &endpoint.meters);
        let failing: Vec<&MeterState> = meters().filter(|meter| is_failing(meter)).collect();
        let healthy = meters().filter(|meter| meter.quality.is_some()).count() - count_polled(&failing);
        let mut failing_meters: Vec<FailingMeter> = failing
            .iter()
            .map(|meter| FailingMeter {
                name: meter.name.clone(),
                reason: meter.reason.clone().unwrap_or_default(),
            })
            .collect();
        failing_meters.sort_by(|a, b| a.name.cmp(&b.name));
        PollerReport {
            meters: MeterCounts {
                total: as_i32(meters().count()),
                healthy: as_i32(healthy),
                failing: as_i32(failing.len()),
            },
            failing_meters,
            polls: self.polls.load(Ordering::Relaxed),
            skipped: self.skipped.load(Ordering::Relaxed),
            spool: self.spool_report(),
        }
    }

    fn spool_report(&self) -> SpoolReport {
        let Some(spool) = self.spool.get() else {
            return SpoolReport::default();
        };
        let stats = spool.lock().stats();
        SpoolReport {
            stream: stats.stream,
            records: stats.appended,
            pending: stats.pending,
            bytes: stats.bytes,
            evicted: stats.evicted,
            refused: stats.refused,
            damaged: stats.damaged,
            // Nothing is published that is not synced, so a disk that fails says more than the broker.
            trouble: self.sync.get().or_else(|| self.trouble.get()),
        }
    }

    pub(crate) fn start(&self, spool: SharedSpool, endpoints: Vec<EndpointState>) {
        // A second start keeps what the first one brought, and there is none.
        let _ = self
            .endpoints
            .set(endpoints.into_iter().map(Mutex::new).collect());
        let _ = self.spool.set(spool);
        self.running.store(true, Ordering::Relaxed);
    }

    pub(crate) fn stop(&self) {
        self.running.store(false, Ordering::Relaxed);
    }

    pub(crate) fn polled(&self, id: MeterId, reading: &Reading, reason: Option<String>) {
        self.polls.fetch_add(1, Ordering::Relaxed);
        if let Some(on_reading) = &self.on_reading {
            on_reading(reading);
        }
        self.meter(id, |meter| {
            meter.quality = Some(reading.quality);
            meter.slot = Some(reading.slot);
            meter.reason = reason.map(bounded);
        });
    }

    pub(crate) fn left_out(&self, id: MeterId, left_out: Vec<LeftOutState>) {
        self.meter(id, |meter| meter.quarantined = left_out);
    }

    pub(crate) fn measured(&self, endpoint: usize, measured: Measured) {
        if let Some(mut endpoint) = self.endpoint(endpoint) {
            endpoint.measured = Some(measured);
        }
    }

    pub(crate) fn skipped(&self, slots: u64) {
        self.skipped.fetch_add(slots, Ordering::Relaxed);
    }

    pub(crate) fn connected(&self, endpoint: usize, result: Result<(), &str>) {
        if let Some(mut endpoint) = self.endpoint(endpoint) {
            endpoint.connected = Some(result.is_ok());
            endpoint.reason = result.err().map(|reason| bounded(reason.to_owned()));
        }
    }

    /// What came of writing a reading to the spool; where it failed, the reading is lost.
    pub(crate) fn written(&self, result: Result<(), &SpoolError>) {
        match result {
            Ok(()) => self.write.clear(),
            Err(error) => {
                self.lost.fetch_add(1, Ordering::Relaxed);
                self.write.say(error.to_string());
            }
        }
    }

    /// What came of syncing the spool. Kept apart from writing, which may well succeed meanwhile.
    pub(crate) fn synced(&self, result: Result<(), &SpoolError>) {
        match result {
            Ok(()) => self.sync.clear(),
            Err(error) => self.sync.say(error.to_string()),
        }
    }

    fn meter(&self, id: MeterId, change: impl FnOnce(&mut MeterState)) {
        if let Some(mut endpoint) = self.endpoint(id.endpoint)
            && let Some(meter) = endpoint.meters.get_mut(id.meter)
        {
            change(meter);
        }
    }

    fn endpoint(&self, number: usize) -> Option<MutexGuard<'_, EndpointState>> {
        let endpoint = self.endpoints.get()?.get(number)?;
        Some(endpoint.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn endpoints(&self) -> Vec<EndpointState> {
        let count = self.endpoints.get().map_or(0, Vec::len);
        (0..count)
            .filter_map(|number| Some(self.endpoint(number)?.clone()))
            .collect()
    }
}

impl Probe for PollerState {
    fn ready(&self) -> Result<(), String> {
        if self.running.load(Ordering::Relaxed) {
            Ok(())
        } else {
            Err("the endpoints are not being polled".to_owned())
        }
    }

    fn status(&self) -> serde_json::Value {
        let endpoints = self.endpoints();
        let meters = endpoints.iter().flat_map(|endpoint| &endpoint.meters);
        let status = Status {
            quarantined: meters
                .flat_map(|meter| meter.quarantined.iter().cloned())
                .collect(),
            report: self.report(),
            lost: self.lost(),
            disk: self.write.get().or_else(|| self.sync.get()),
            endpoints,
        };
        // Every field is a plain value, so that this cannot fail; null would show it.
        serde_json::to_value(status).unwrap_or_default()
    }
}

/// A meter whose last poll failed, or that cannot be polled at all: it has a reason and no quality.
fn is_failing(meter: &MeterState) -> bool {
    match meter.quality {
        Some(quality) => quality == Quality::Failed,
        None => meter.reason.is_some(),
    }
}

fn count_polled(failing: &[&MeterState]) -> usize {
    failing.iter().filter(|meter| meter.quality.is_some()).count()
}

fn as_i32(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

fn bounded(mut reason: String) -> String {
    if reason.chars().count() > REASON_LENGTH {
        reason = reason
            .chars()
            .take(REASON_LENGTH - 3)
            .chain("...".chars())
            .collect();
    }
    reason
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::{Limits, Spool};

    fn failed(what: &'static str) -> SpoolError {
        SpoolError::Io {
            what,
            path: "/spool".into(),
            source: std::io::Error::other("no space left"),
        }
    }

    #[test]
    fn a_write_that_succeeds_does_not_hide_a_sync_that_fails() {
        let dir = tempfile::tempdir().unwrap();
        let state = PollerState::new(None);
        let spool = Spool::open(dir.path(), Limits::new(1 << 20)).unwrap();
        state.start(SharedSpool::new(spool), Vec::new());
        state.synced(Err(&failed("sync")));
        state.written(Ok(()));
        state.trouble().say("no broker can be reached");
        let sentence = "failed to sync /spool: no space left";
        assert_eq!(state.report().spool.trouble.as_deref(), Some(sentence));
        assert_eq!(state.status()["disk"], sentence);
        state.synced(Ok(()));
        assert_eq!(
            state.report().spool.trouble.as_deref(),
            Some("no broker can be reached")
        );
        assert_eq!(state.status().get("disk"), None);
        // Nor the other way round.
        state.written(Err(&failed("write")));
        state.synced(Ok(()));
        assert_eq!(state.status()["disk"], "failed to write /spool: no space left");
        assert_eq!(state.lost(), 1);
    }
}
