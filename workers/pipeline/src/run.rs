//! The worker's main loop: between the broker, the partitions and the task that owns the sink's writers.
//!
//! 1. A partition is assigned: it is claimed in the sink, and read from where the sink says.
//! 2. Messages are gathered; a batch that is due goes to the sink, one per partition at a time.
//! 3. A batch is stored: only then is the offset told to the broker, for lag tools.
//! 4. A partition is revoked: what waits of it is dropped, and a batch that is still under way is either
//!    stored before the next owner's claim or refused after it.
//!
//! Memory is bounded: all that wait share `MEMORY`. A source that is not asked for more stops reading by itself, which
//! costs nothing. Pausing a partition costs what the client has read of it ahead, so that is for longer waits. Asked to end, the worker
//! stores what it holds if that is quick; if not, nothing is lost, for it is still in the topic.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use corrente_config::PipelineConfig;
use corrente_runtime::broker::{Source, SourceEvent, TopicPartition};
use tokio::{sync::mpsc, time};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    batch::Place,
    batcher::Bounds,
    partition::{Partition, Phase},
    sink::Sink,
    state::{PartitionReport, PipelineState},
    writer::{Done, Job, write},
};

/// Most bytes of messages that wait or are with the sink, over all partitions.
const MEMORY: usize = 40 * 1024 * 1024;
/// So long nothing is taken from the source while there is no more room. Then the sink is slow, or some partition's row
/// is locked: what waits behind is paused by itself, so that the others go on and the group is heard.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often the partitions are looked after.
const TICK: Duration = Duration::from_secs(1);
/// How often the lag is measured, in ticks.
const LAG_TICKS: u64 = 5;
/// How often what need not be known any more is dropped, in ticks; for the first time after a minute.
const TIDY_TICKS: u64 = 3600;
/// How long a partition that stopped waits before it is claimed again.
const STOPPED: Duration = Duration::from_secs(10);
/// The same after another worker took it: long enough for the broker to tell us that it is not ours.
const FENCED: Duration = Duration::from_secs(3);
/// The longest that storing what is held may take when asked to end.
const LEAVE: Duration = Duration::from_secs(3);

/// Stores what `source` reads in `sink`, until `shutdown`.
///
/// # Errors
/// Where the task that owns the sink ended, which it does only by a panic.
pub async fn run<S: Source, K: Sink>(
    config: PipelineConfig,
    source: S,
    sink: K,
    state: Arc<PipelineState>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let (jobs, queue) = mpsc::unbounded_channel();
    let (results, done) = mpsc::unbounded_channel();
    // Aborted when this function's future is dropped, so that nothing is stored after it.
    let writers = usize::try_from(config.batch.writers).unwrap_or(1);
    let _writers = AbortOnDropHandle::new(tokio::spawn(write(sink, writers, queue, results, state.clone())));
    let mut worker = Worker {
        source,
        bounds: Bounds {
            rows: usize::try_from(config.batch.max_rows).unwrap_or(1).max(1),
            bytes: usize::try_from(config.batch.max_bytes).unwrap_or(1),
            age: config.batch.max_age.as_std(),
        },
        state,
        jobs,
        done,
        partitions: BTreeMap::new(),
        unclaimed: BTreeSet::new(),
        again: BTreeMap::new(),
        watermarks: BTreeMap::new(),
        claims: 0,
        full: None,
        joined: false,
    };
    worker.work(&shutdown).await?;
    worker.leave().await
}

struct Worker<S> {
    source: S,
    bounds: Bounds,
    state: Arc<PipelineState>,
    jobs: mpsc::UnboundedSender<Job>,
    done: mpsc::UnboundedReceiver<Done>,
    partitions: BTreeMap<TopicPartition, Partition>,
    /// Assigned partitions that are not claimed yet, because the broker has not named its cluster.
    unclaimed: BTreeSet<TopicPartition>,
    /// When stopped partitions are claimed again.
    again: BTreeMap<TopicPartition, Instant>,
    /// The oldest offset of each partition and the next one to be written, when they were last asked for.
    watermarks: BTreeMap<TopicPartition, (i64, i64)>,
    claims: u64,
    /// Since when there is no more room.
    full: Option<Instant>,
    /// Whether the broker has told us our partitions, be they none.
    joined: bool,
}

impl<S: Source> Worker<S> {
    async fn work(&mut self, shutdown: &CancellationToken) -> anyhow::Result<()> {
        let mut tick = time::interval(TICK);
        tick.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        let mut ticks = 0u64;
        loop {
            self.state.beat();
            self.dispatch(false);
            let bounds = self.bounds();
            let due = self.partitions.values().filter_map(|p| p.due_at(&bounds)).min();
            let (takes, again) = self.takes();
            let due = due.into_iter().chain(again).min();
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                event = self.source.next(), if takes => self.event(event).await,
                done = self.done.recv() => self.finish(done.context("failed to store: the sink's task ended")?),
                () = wait_until(due) => {}
                _ = tick.tick() => {
                    ticks += 1;
                    self.look_after(ticks.is_multiple_of(LAG_TICKS)).await;
                    if ticks % TIDY_TICKS == 60 {
                        self.tidy();
                    }
                }
            }
        }
    }

    /// Whether more is to be taken from the source; where not, when it is to be looked at again.
    fn takes(&mut self) -> (bool, Option<Instant>) {
        if self.partitions.values().map(Partition::bytes).sum::<usize>() < MEMORY {
            self.full = None;
            return (true, None);
        }
        let until = *self.full.get_or_insert_with(Instant::now) + PATIENCE;
        (
            self.is_stalled(),
            Some(until).filter(|until| *until > Instant::now()),
        )
    }

    /// Whether there has been no more room for a while.
    fn is_stalled(&self) -> bool {
        self.full.is_some_and(|since| since.elapsed() >= PATIENCE)
    }

    /// The bounds of a batch; the bytes of all partitions together stay within [`MEMORY`].
    fn bounds(&self) -> Bounds {
        let share = MEMORY / self.partitions.len().max(1);
        Bounds {
            bytes: self.bounds.bytes.min(share),
            ..self.bounds
        }
    }

    async fn event(&mut self, event: SourceEvent) {
        match event {
            SourceEvent::Assigned(places) => {
                self.joined = true;
                self.state.joined();
                self.state.broker_answered();
                self.unclaimed.extend(places);
                self.claim_waiting().await;
                self.publish();
            }
            SourceEvent::Revoked(places) => {
                for place in &places {
                    tracing::info!(partition = %place, "no longer ours");
                    self.unclaimed.remove(place);
                    self.again.remove(place);
                    self.watermarks.remove(place);
                    self.partitions.remove(place);
                }
                self.publish();
            }
            SourceEvent::Messages(place, messages) => {
                self.state.broker_answered();
                if let Some(partition) = self.partitions.get_mut(&place) {
                    partition.messages(messages, Instant::now());
                    self.after_reading(&place);
                }
            }
            SourceEvent::OutOfRange(place) => self.out_of_range(place).await,
            SourceEvent::Trouble(reason) => self.state.broker_failed(&reason),
        }
    }

    async fn out_of_range(&mut self, place: TopicPartition) {
        let watermarks = self.source.watermarks(&place).await;
        let Some(partition) = self.partitions.get_mut(&place) else {
            return;
        };
        match watermarks {
            Ok((low, high)) if partition.is_inside(low, high) => {
                let (place, earlier) = (partition.place.clone(), partition.reason().map(str::to_owned));
                self.claim(place, earlier);
            }
            Ok((low, high)) => {
                if let Some((start, gap)) = partition.out_of_range(low, high) {
                    if gap > 0 {
                        tracing::error!(
                            partition = %place,
                            messages = gap,
                            "messages were no longer in the topic when they were to be read; \
                             reading goes on at the oldest"
                        );
                        self.state.gap(gap);
                    }
                    self.source.start(vec![(place, start)]);
                } else {
                    self.after_reading(&place);
                }
            }
            Err(error) => {
                self.state.broker_failed(&error.to_string());
                self.again.insert(place, Instant::now() + TICK);
            }
        }
    }

    /// Stops or pauses reading where the partition wants it.
    fn after_reading(&mut self, place: &TopicPartition) {
        let (bounds, stalled) = (self.bounds(), self.is_stalled());
        let Some(partition) = self.partitions.get_mut(place) else {
            return;
        };
        let stopped = matches!(partition.phase, Phase::Stopped(_));
        if stopped && !self.again.contains_key(place) {
            self.again.insert(place.clone(), Instant::now() + STOPPED);
        }
        let pause = stopped || (stalled || partition.paused) && partition.should_pause(&bounds);
        if pause != partition.paused {
            partition.paused = pause;
            self.source.pause(place, pause);
        }
    }

    fn finish(&mut self, done: Done) {
        match done {
            Done::Claimed(claim, place, claimed) => {
                let place = place.partition;
                if let Some(partition) = self.partitions.get_mut(&place).filter(|p| p.claim == claim) {
                    tracing::info!(
                        partition = %place,
                        epoch = claimed.epoch,
                        next_offset = claimed.position.map(|p| p.next_offset),
                        streams = claimed.marks.len(),
                        "claimed"
                    );
                    let start = partition.claimed(claimed);
                    self.source.start(vec![(place, start)]);
                    self.publish();
                }
            }
            Done::Stored(claim, batch, stored) => {
                let (place, next) = (batch.place.partition.clone(), batch.next_offset);
                // Its messages' memory is free from here on.
                drop(batch);
                if let Some(partition) = self.partitions.get_mut(&place).filter(|p| p.claim == claim) {
                    partition.stored(next, stored.marks);
                    self.source.commit(vec![(place.clone(), next)]);
                    self.dispatch(false);
                    self.after_reading(&place);
                }
            }
            Done::Fenced(claim, place, reason) => {
                let place = place.partition;
                if let Some(partition) = self.partitions.get_mut(&place).filter(|p| p.claim == claim) {
                    tracing::warn!(partition = %place, reason, "refused; the partition is claimed again");
                    partition.fenced(reason);
                    self.again.insert(place.clone(), Instant::now() + FENCED);
                    self.after_reading(&place);
                    self.publish();
                }
            }
        }
    }

    /// Hands batches that are due to the sink; with `flush`, however small.
    fn dispatch(&mut self, flush: bool) {
        let (bounds, now) = (self.bounds(), Instant::now());
        for partition in self.partitions.values_mut() {
            if let Some(batch) = partition.next_batch(&bounds, now, flush) {
                // The receiver is gone only where the task ended, which `work` notices.
                let _ = self.jobs.send(Job::Store {
                    claim: partition.claim,
                    batch: Arc::new(batch),
                    cancel: partition.cancel.clone(),
                });
            }
        }
    }

    async fn claim_waiting(&mut self) {
        if self.unclaimed.is_empty() {
            return;
        }
        match self.source.cluster().await {
            Ok(cluster) => {
                for partition in std::mem::take(&mut self.unclaimed) {
                    self.claim(
                        Place {
                            cluster: cluster.clone(),
                            partition,
                        },
                        None,
                    );
                }
            }
            Err(error) => self.state.broker_failed(&error.to_string()),
        }
    }

    fn claim(&mut self, place: Place, earlier: Option<String>) {
        self.claims += 1;
        let mut partition = Partition::new(place.clone(), self.claims);
        partition.earlier = earlier;
        let _ = self.jobs.send(Job::Claim {
            claim: self.claims,
            place: place.clone(),
            cancel: partition.cancel.clone(),
        });
        self.partitions.insert(place.partition, partition);
    }

    /// Claims what waits for it, measures the lag, and publishes how the partitions are.
    async fn look_after(&mut self, lag: bool) {
        self.claim_waiting().await;
        let now = Instant::now();
        let due: Vec<_> = self
            .again
            .iter()
            .filter(|(_, at)| **at <= now)
            .map(|(p, _)| p.clone())
            .collect();
        for place in due {
            self.again.remove(&place);
            if let Some(partition) = self.partitions.get(&place) {
                let earlier = partition.reason().map(str::to_owned);
                self.claim(partition.place.clone(), earlier);
            }
        }
        if lag {
            self.measure_lag().await;
        }
        self.publish();
    }

    async fn measure_lag(&mut self) {
        if self.joined && self.partitions.is_empty() {
            // There is no partition to ask for; whether the broker answers is worth knowing all the same.
            match self.source.cluster().await {
                Ok(_) => self.state.broker_answered(),
                Err(error) => self.state.broker_failed(&error.to_string()),
            }
        }
        for place in self.partitions.keys() {
            match self.source.watermarks(place).await {
                Ok(watermarks) => {
                    self.watermarks.insert(place.clone(), watermarks);
                    self.state.broker_answered();
                }
                Err(error) => {
                    // The others would wait as long; the next round asks again.
                    self.state.broker_failed(&error.to_string());
                    return;
                }
            }
        }
    }

    /// Lets the sink drop what it need not know any more.
    fn tidy(&self) {
        for (place, partition) in &self.partitions {
            if let (Phase::Reading, Some((low, _))) = (&partition.phase, self.watermarks.get(place)) {
                let _ = self.jobs.send(Job::Tidy {
                    place: partition.place.clone(),
                    low: *low,
                    cancel: partition.cancel.clone(),
                });
            }
        }
    }

    fn publish(&self) {
        let reports = self.partitions.iter().map(|(place, partition)| {
            let lag = self.watermarks.get(place).map(|(low, high)| {
                let next = partition.next_offset().unwrap_or(*low);
                u64::try_from(high - next).unwrap_or(0)
            });
            (place.clone(), PartitionReport::of(partition, lag))
        });
        self.state.partitions(reports.collect());
    }

    /// Stores what is held, if that is quick.
    async fn leave(&mut self) -> anyhow::Result<()> {
        let deadline = time::Instant::now() + LEAVE;
        self.dispatch(true);
        while self.partitions.values().any(|partition| partition.in_flight) {
            let Ok(Some(done)) = time::timeout_at(deadline, self.done.recv()).await else {
                tracing::warn!(
                    "leaving with records that are not stored; they are read again from the topic"
                );
                return Ok(());
            };
            // A partition that is claimed only now is left to the next worker.
            if !matches!(done, Done::Claimed(..)) {
                self.finish(done);
                self.dispatch(true);
            }
        }
        Ok(())
    }
}

async fn wait_until(at: Option<Instant>) {
    match at {
        Some(at) => time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
