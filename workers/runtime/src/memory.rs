//! A broker within the process, for the whole chain in one program and for tests.
//!
//! It keeps what some consumer has not stored yet, in memory, and nothing else: it is no store, and what is
//! in it is gone with the process. So a producer is told that a message is stored only once every consumer
//! of its topic has stored it; until then the message is still the producer's to keep. Where a topic has no
//! consumer there is nothing to wait for, and the producer is told at once.
//!
//! Each consumer gets every partition of its topics. A bound on waiting messages refuses more, as a full
//! producer queue does, until the consumers have caught up.

use std::{
    collections::{BTreeMap, VecDeque},
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;

use crate::broker::{
    BrokerError, Delivery, DeliverySender, Incoming, Messages, Outcome, Outgoing, Producer, SendError,
    Source, SourceEvent, Start, TopicPartition,
};

/// Most messages of a partition that wait to be stored.
const WAITING: usize = 100_000;

/// A broker within the process.
#[derive(Clone)]
pub struct MemoryBroker {
    partitions: i32,
    shared: Arc<Shared>,
}

struct Shared {
    cluster: Arc<str>,
    topics: Mutex<BTreeMap<TopicPartition, Log>>,
    sources: AtomicUsize,
    /// There is something to read that was not there before.
    changed: Notify,
    /// Producers were told of messages that are stored.
    told: Notify,
}

#[derive(Default)]
struct Log {
    first: i64,
    messages: VecDeque<Kept>,
    /// How far each consumer is: its number and the next offset it has not stored.
    stored: BTreeMap<usize, i64>,
}

struct Kept {
    offset: i64,
    key: Arc<[u8]>,
    payload: Arc<[u8]>,
    /// The token of the message and whom to tell, until it is stored.
    untold: Option<(u64, DeliverySender)>,
}

impl Log {
    fn next(&self) -> i64 {
        self.first + self.messages.len() as i64
    }

    /// Notes that a consumer needs nothing below `next` any more, tells the producers what no consumer
    /// needs, and forgets it.
    fn stored(&mut self, consumer: usize, next: i64) {
        self.stored.insert(consumer, next);
        let slowest = self.stored.values().copied().min().unwrap_or(next);
        for kept in &mut self.messages {
            if kept.offset >= slowest {
                break;
            }
            if let Some((token, deliveries)) = kept.untold.take() {
                tell(token, &deliveries);
            }
        }
        // The last stored message stays: whoever starts again may want to compare it.
        while self.first + 1 < slowest && self.messages.len() > 1 {
            self.messages.pop_front();
            self.first += 1;
        }
    }
}

/// Says that a message is stored.
fn tell(token: u64, deliveries: &DeliverySender) {
    // Nobody listens any more only while the producer's side ends.
    let _ = deliveries.send(Delivery {
        token,
        outcome: Outcome::Stored,
    });
}

impl MemoryBroker {
    /// A broker whose topics have so many partitions (at least 1).
    #[must_use]
    pub fn new(partitions: i32) -> Self {
        Self {
            partitions: partitions.max(1),
            shared: Arc::new(Shared {
                // Offsets of one broker mean nothing in the next, so each has a name of its own.
                cluster: format!("memory-{:016x}", RandomState::new().hash_one(())).into(),
                topics: Mutex::default(),
                sources: AtomicUsize::new(0),
                changed: Notify::new(),
                told: Notify::new(),
            }),
        }
    }

    /// A producer of `topic`.
    #[must_use]
    pub fn producer(&self, topic: &str, deliveries: DeliverySender) -> MemoryProducer {
        MemoryProducer {
            broker: self.clone(),
            topic: topic.into(),
            deliveries,
        }
    }

    /// A consumer of `topics`. What it has not stored stays in the broker, so it is made before the first
    /// message is sent.
    #[must_use]
    pub fn source(&self, topics: &[String]) -> MemorySource {
        let all: Vec<_> = topics
            .iter()
            .flat_map(|topic| {
                let topic: Arc<str> = topic.as_str().into();
                (0..self.partitions).map(move |partition| TopicPartition {
                    topic: topic.clone(),
                    partition,
                })
            })
            .collect();
        let number = self.shared.sources.fetch_add(1, Ordering::Relaxed);
        for place in &all {
            self.lock()
                .entry(place.clone())
                .or_default()
                .stored
                .insert(number, 0);
        }
        MemorySource {
            broker: self.clone(),
            number,
            unassigned: Some(all),
            reading: BTreeMap::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<TopicPartition, Log>> {
        // The map is consistent after every statement, so a panic elsewhere leaves nothing half done.
        self.shared.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A producer of [`MemoryBroker`].
pub struct MemoryProducer {
    broker: MemoryBroker,
    topic: Arc<str>,
    deliveries: DeliverySender,
}

impl Producer for MemoryProducer {
    async fn partitions(&self) -> Result<i32, BrokerError> {
        Ok(self.broker.partitions)
    }

    fn send(&self, message: Outgoing) -> Result<(), SendError> {
        if !(0..self.broker.partitions).contains(&message.partition) {
            return Err(SendError::Refused(format!(
                "there is no partition {}",
                message.partition
            )));
        }
        let place = TopicPartition {
            topic: self.topic.clone(),
            partition: message.partition,
        };
        {
            let mut topics = self.broker.lock();
            let log = topics.entry(place).or_default();
            if log.messages.len() >= WAITING {
                return Err(SendError::QueueFull);
            }
            let untold = if log.stored.is_empty() {
                tell(message.token, &self.deliveries);
                None
            } else {
                Some((message.token, self.deliveries.clone()))
            };
            log.messages.push_back(Kept {
                offset: log.next(),
                key: message.key,
                payload: message.payload,
                untold,
            });
        }
        self.broker.shared.changed.notify_waiters();
        Ok(())
    }

    async fn flush(&self, timeout: Duration) {
        let all_told = async {
            loop {
                // Registered before looking, so that what is stored between the look and the wait is not missed.
                let told = self.broker.shared.told.notified();
                tokio::pin!(told);
                told.as_mut().enable();
                if !self.waits() {
                    return;
                }
                told.await;
            }
        };
        // What is not stored in time stays with the producer's side.
        let _ = tokio::time::timeout(timeout, all_told).await;
    }
}

impl MemoryProducer {
    /// Whether a message of this producer is not stored yet.
    fn waits(&self) -> bool {
        self.broker
            .lock()
            .iter()
            .filter(|(place, _)| place.topic == self.topic)
            .flat_map(|(_, log)| &log.messages)
            .filter_map(|kept| kept.untold.as_ref())
            .any(|(_, deliveries)| deliveries.same_channel(&self.deliveries))
    }
}

/// A consumer of [`MemoryBroker`].
pub struct MemorySource {
    broker: MemoryBroker,
    number: usize,
    unassigned: Option<Vec<TopicPartition>>,
    reading: BTreeMap<TopicPartition, Reading>,
}

struct Reading {
    next: i64,
    paused: bool,
}

impl MemorySource {
    fn ready(&mut self) -> Option<SourceEvent> {
        if let Some(all) = self.unassigned.take() {
            return Some(SourceEvent::Assigned(all));
        }
        let topics = self.broker.lock();
        for (place, reading) in &mut self.reading {
            let Some(log) = topics.get(place).filter(|_| !reading.paused) else {
                continue;
            };
            let skip = usize::try_from(reading.next - log.first).unwrap_or(0);
            let waiting = log.messages.iter().skip(skip).take(1000);
            let messages: Messages = waiting
                .map(|kept| Incoming {
                    offset: kept.offset,
                    timestamp: None,
                    key: Some(&kept.key),
                    payload: Some(&kept.payload),
                })
                .collect();
            if let Some(last) = messages.last() {
                reading.next = last.offset + 1;
                return Some(SourceEvent::Messages(place.clone(), messages));
            }
        }
        None
    }
}

impl Source for MemorySource {
    async fn next(&mut self) -> SourceEvent {
        loop {
            // Registered before looking, so that a message between the look and the wait is not missed.
            let shared = self.broker.shared.clone();
            let changed = shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(event) = self.ready() {
                return event;
            }
            changed.await;
        }
    }

    async fn cluster(&self) -> Result<Arc<str>, BrokerError> {
        Ok(self.broker.shared.cluster.clone())
    }

    fn start(&mut self, starts: Vec<(TopicPartition, Start)>) {
        for (place, start) in starts {
            let mut topics = self.broker.lock();
            let log = topics.entry(place.clone()).or_default();
            let next = match start {
                Start::Beginning => log.first,
                Start::Offset(offset) => {
                    // Where the sink says to start, everything before is stored, whoever stored it.
                    log.stored(self.number, offset);
                    offset.max(log.first)
                }
            };
            drop(topics);
            self.reading.insert(place, Reading { next, paused: false });
        }
        self.broker.shared.changed.notify_waiters();
        self.broker.shared.told.notify_waiters();
    }

    fn pause(&mut self, partition: &TopicPartition, paused: bool) {
        if let Some(reading) = self.reading.get_mut(partition) {
            reading.paused = paused;
        }
    }

    async fn watermarks(&self, partition: &TopicPartition) -> Result<(i64, i64), BrokerError> {
        let topics = self.broker.lock();
        Ok(topics
            .get(partition)
            .map_or((0, 0), |log| (log.first, log.next())))
    }

    fn commit(&mut self, next_offsets: Vec<(TopicPartition, i64)>) {
        let mut topics = self.broker.lock();
        for (place, next) in next_offsets {
            if let Some(log) = topics.get_mut(&place) {
                log.stored(self.number, next);
            }
        }
        drop(topics);
        self.broker.shared.told.notify_waiters();
    }
}

#[cfg(test)]
mod tests;
