//! What the worker says of itself: `/livez`, `/readyz`, `/status` and its metrics.
//!
//! *Live*: the main loop turns. *Ready*: the sink has answered and the broker has told us our partitions,
//! be they none, for a spare replica does its work by being there; and nothing has stood in the way for
//! longer than [`PATIENCE`].

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use corrente_config::report::{PipelineReport, Trouble};
use corrente_record::Timestamp;
use corrente_runtime::{broker::TopicPartition, http::Probe};
use metrics::{counter, gauge, histogram};
use serde::Serialize;

use crate::{partition::Partition, sink::Stored};

/// How long trouble may last before the worker is not ready.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// How long the main loop may stand still before a restart is thought to help.
const STUCK: Duration = Duration::from_secs(90);

/// The worker's figures, shared between its tasks and its endpoints.
pub struct PipelineState {
    inner: Mutex<Inner>,
}

struct Inner {
    beat: Instant,
    joined: bool,
    sink_answered: bool,
    /// By the partition that a job was about.
    sink: BTreeMap<Option<TopicPartition>, Standing>,
    broker: Option<Standing>,
    partition: Option<Standing>,
    /// Of what is done about dead letters: no reason to take the worker for unready.
    letters: Option<Standing>,
    report: PipelineReport,
    partitions: BTreeMap<TopicPartition, PartitionReport>,
}

impl Inner {
    /// The trouble that stands first: the sink's that has lasted longest, the broker's, that of a partition.
    fn trouble(&self) -> Option<&Standing> {
        let sink = self.sink.values().min_by_key(|standing| standing.since);
        [sink, self.broker.as_ref(), self.partition.as_ref()]
            .into_iter()
            .flatten()
            .next()
    }
}

/// Trouble that stands.
struct Standing {
    trouble: Trouble,
    since: Instant,
}

/// What is said of one partition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PartitionReport {
    topic: String,
    partition: i32,
    phase: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_offset: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lag: Option<u64>,
    waiting: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl PartitionReport {
    /// The report of a partition.
    #[must_use]
    pub fn of(partition: &Partition, lag: Option<u64>) -> Self {
        let place = &partition.place.partition;
        Self {
            topic: place.topic.to_string(),
            partition: place.partition,
            phase: partition.phase.word(),
            next_offset: partition.next_offset(),
            lag,
            waiting: partition.waiting(),
            reason: partition.reason().map(str::to_owned),
        }
    }
}

impl Default for PipelineState {
    fn default() -> Self {
        Self {
            inner: Mutex::new(Inner {
                beat: Instant::now(),
                joined: false,
                sink_answered: false,
                sink: BTreeMap::new(),
                broker: None,
                partition: None,
                letters: None,
                report: PipelineReport::default(),
                partitions: BTreeMap::new(),
            }),
        }
    }
}

/// Sets or keeps trouble; the beginning stays while it lasts. True where the reason is a new one.
fn stand(place: &mut Option<Standing>, reason: &str) -> bool {
    match place {
        Some(standing) if standing.trouble.reason == reason => false,
        Some(standing) => {
            standing.trouble.reason = reason.to_owned();
            true
        }
        None => {
            *place = Some(Standing {
                trouble: Trouble {
                    since: Timestamp::now(),
                    reason: reason.to_owned(),
                },
                since: Instant::now(),
            });
            true
        }
    }
}

impl PipelineState {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every statement leaves the figures whole, so a panic elsewhere spoils nothing.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The main loop turned.
    pub fn beat(&self) {
        self.lock().beat = Instant::now();
    }

    /// The broker told us our partitions.
    pub fn joined(&self) {
        self.lock().joined = true;
    }

    /// The sink did a job, which was about this partition.
    pub fn sink_answered(&self, place: Option<&TopicPartition>) {
        let mut inner = self.lock();
        inner.sink_answered = true;
        if let Some(standing) = inner.sink.remove(&place.cloned())
            && inner.sink.is_empty()
        {
            tracing::info!(
                after_seconds = standing.since.elapsed().as_secs(),
                "the database takes rows again"
            );
        }
    }

    /// The sink did not do a job, which was about this partition; it is tried again.
    pub fn sink_failed(&self, place: Option<&TopicPartition>, reason: &str) {
        counter!("corrente_pipeline_sink_failures_total").increment(1);
        let mut inner = self.lock();
        let known = inner
            .sink
            .values()
            .any(|standing| standing.trouble.reason == reason);
        let mut standing = inner.sink.remove(&place.cloned());
        stand(&mut standing, reason);
        inner
            .sink
            .extend(standing.map(|standing| (place.cloned(), standing)));
        if !known {
            tracing::warn!(reason, "the database does not take rows; trying again");
        }
    }

    /// A job that failed is not tried again: the partition is not ours any more, or is claimed anew.
    pub fn sink_released(&self, place: Option<&TopicPartition>) {
        self.lock().sink.remove(&place.cloned());
    }

    /// The broker does not answer.
    pub fn broker_failed(&self, reason: &str) {
        counter!("corrente_pipeline_broker_failures_total").increment(1);
        if stand(&mut self.lock().broker, reason) {
            tracing::warn!(reason, "trouble with the broker; trying again");
        }
    }

    /// The broker answers.
    pub fn broker_answered(&self) {
        if let Some(standing) = self.lock().broker.take() {
            tracing::info!(
                after_seconds = standing.since.elapsed().as_secs(),
                "the broker answers again"
            );
        }
    }

    /// A batch is stored.
    pub fn stored(&self, stored: &Stored, took: Duration) {
        let mut inner = self.lock();
        inner.report.rows += stored.rows;
        inner.report.duplicates += stored.duplicates;
        inner.report.dead_lettered += stored.dead_letters;
        counter!("corrente_pipeline_rows_total").increment(stored.rows);
        for (outcome, count) in [
            ("stored", stored.rows),
            ("duplicate", stored.duplicates),
            ("dropped", stored.dropped),
            ("dead_letter", stored.dead_letters),
            ("tombstone", stored.tombstones),
        ] {
            counter!("corrente_pipeline_records_total", "outcome" => outcome).increment(count);
        }
        counter!("corrente_pipeline_batches_total").increment(1);
        histogram!("corrente_pipeline_batch_seconds").record(took.as_secs_f64());
    }

    /// In what the tables are not as they were asked for; `None` where another worker looks after them.
    pub fn tables(&self, notices: Option<Vec<String>>) {
        let mut inner = self.lock();
        if inner.report.tables != notices {
            for notice in notices.iter().flatten() {
                tracing::warn!("{notice}");
            }
            inner.report.tables = notices;
        }
    }

    /// Messages were no longer in the topic when they were to be read.
    pub fn gap(&self, messages: u64) {
        self.lock().report.gaps += messages;
        counter!("corrente_pipeline_gap_records_total").increment(messages);
    }

    /// How the partitions are.
    pub fn partitions(&self, partitions: BTreeMap<TopicPartition, PartitionReport>) {
        let lag = partitions.values().filter_map(|p| p.lag).sum();
        let count = u32::try_from(partitions.len()).unwrap_or(u32::MAX);
        gauge!("corrente_pipeline_lag_records").set(lag as f64);
        gauge!("corrente_pipeline_partitions").set(f64::from(count));
        let stopped = partitions
            .iter()
            .find_map(|(place, p)| Some((place, p.reason.as_ref()?)));
        let stopped = stopped.map(|(place, reason)| format!("partition {place} is stopped: {reason}"));
        let mut inner = self.lock();
        match stopped {
            Some(reason) => {
                if stand(&mut inner.partition, &reason) {
                    tracing::error!("{reason}");
                }
            }
            None => inner.partition = None,
        }
        inner.report.lag = lag;
        inner.report.partitions = count;
        inner.partitions = partitions;
    }

    /// Dead letters cannot be published or replayed; it is tried again.
    pub fn letters_failed(&self, reason: &str) {
        if stand(&mut self.lock().letters, reason) {
            tracing::warn!(reason, "the dead letters wait; trying again");
        }
    }

    /// What is to be done about dead letters is done.
    pub fn letters_answered(&self) {
        self.lock().letters = None;
    }

    /// What others rely on.
    #[must_use]
    pub fn report(&self) -> PipelineReport {
        let inner = self.lock();
        let trouble = inner.trouble().or(inner.letters.as_ref());
        PipelineReport {
            trouble: trouble.map(|s| s.trouble.clone()),
            ..inner.report.clone()
        }
    }
}

impl Probe for PipelineState {
    fn live(&self) -> Result<(), String> {
        let still = self.lock().beat.elapsed();
        if still > STUCK {
            return Err(format!("the main loop has stood still for {} s", still.as_secs()));
        }
        Ok(())
    }

    fn ready(&self) -> Result<(), String> {
        let inner = self.lock();
        let trouble = inner.trouble();
        if !inner.sink_answered {
            let reason = trouble.map_or("", |s| s.trouble.reason.as_str());
            return Err(format!("the database has not answered yet. {reason}"));
        }
        if !inner.joined {
            let reason = inner.broker.as_ref().map_or("", |s| s.trouble.reason.as_str());
            return Err(format!("the broker has not named our partitions yet. {reason}"));
        }
        match trouble.filter(|standing| standing.since.elapsed() > PATIENCE) {
            Some(standing) => Err(standing.trouble.reason.clone()),
            None => Ok(()),
        }
    }

    fn status(&self) -> serde_json::Value {
        let mut status = serde_json::to_value(self.report()).unwrap_or_default();
        let details: Vec<_> = self.lock().partitions.values().cloned().collect();
        if let Some(object) = status.as_object_mut() {
            object.insert(
                "assignment".to_owned(),
                serde_json::to_value(details).unwrap_or_default(),
            );
        }
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_ready_once_both_ends_have_answered() {
        let state = PipelineState::default();
        state.sink_failed(None, "connection refused");
        assert!(state.ready().unwrap_err().contains("connection refused"));
        assert_eq!(state.report().trouble.unwrap().reason, "connection refused");
        state.sink_answered(None);
        assert!(
            state
                .ready()
                .unwrap_err()
                .contains("has not named our partitions")
        );
        state.joined();
        assert_eq!(state.ready(), Ok(()));
        assert_eq!(state.live(), Ok(()));
        // Trouble that is young does not take readiness away, but is told.
        state.broker_failed("broker away");
        assert_eq!(state.ready(), Ok(()));
        assert_eq!(state.status()["trouble"]["reason"], "broker away");
        state.broker_answered();
        assert_eq!(state.report().trouble, None);
    }

    #[test]
    fn keeps_since_when_trouble_lasts() {
        let state = PipelineState::default();
        state.sink_failed(None, "one");
        let first = state.report().trouble.unwrap();
        state.sink_failed(None, "two");
        let second = state.report().trouble.unwrap();
        assert_eq!((second.since, second.reason.as_str()), (first.since, "two"));
    }

    #[test]
    fn one_partitions_trouble_is_not_ended_by_anothers_success() {
        let state = PipelineState::default();
        let place = |partition| TopicPartition {
            topic: "t".into(),
            partition,
        };
        state.sink_failed(Some(&place(0)), "a row is locked");
        state.sink_answered(Some(&place(1)));
        assert_eq!(state.report().trouble.unwrap().reason, "a row is locked");
        state.sink_answered(Some(&place(0)));
        assert_eq!(state.report().trouble, None);
        state.sink_failed(Some(&place(0)), "a row is locked");
        state.sink_released(Some(&place(0)));
        assert_eq!(state.report().trouble, None);
    }
}
