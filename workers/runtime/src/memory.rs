//! A broker within the process, for the whole chain in one program and for tests.
//!
//! It keeps what some consumer has not stored yet, in memory, and nothing else: it is no store. Each
//! consumer gets every partition of its topics. A bound on waiting messages refuses more, as a full
//! producer queue does.

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
    BrokerError, Delivery, DeliverySender, Incoming, Outcome, Outgoing, Producer, SendError, Source,
    SourceEvent, Start, TopicPartition,
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
    changed: Notify,
}

#[derive(Default)]
struct Log {
    first: i64,
    messages: VecDeque<Incoming>,
    /// How far each consumer is: its number and the next offset it has not stored.
    stored: BTreeMap<usize, i64>,
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
            log.messages.push_back(Incoming {
                offset: log.first + log.messages.len() as i64,
                timestamp: None,
                key: Some(message.key.to_vec()),
                payload: Some(message.payload.to_vec()),
            });
        }
        self.broker.shared.changed.notify_waiters();
        // Nobody listens any more only while the process ends.
        let _ = self.deliveries.send(Delivery {
            token: message.token,
            outcome: Outcome::Stored,
        });
        Ok(())
    }

    async fn flush(&self, _: Duration) {}
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
            let messages: Vec<_> = log.messages.iter().skip(skip).take(1000).cloned().collect();
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
            let first = self.broker.lock().get(&place).map_or(0, |log| log.first);
            let next = match start {
                Start::Beginning => first,
                Start::Offset(offset) => offset.max(first),
            };
            self.reading.insert(place, Reading { next, paused: false });
        }
        self.broker.shared.changed.notify_waiters();
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
            .map_or((0, 0), |log| (log.first, log.first + log.messages.len() as i64)))
    }

    fn commit(&mut self, next_offsets: Vec<(TopicPartition, i64)>) {
        let mut topics = self.broker.lock();
        for (place, next) in next_offsets {
            if let Some(log) = topics.get_mut(&place) {
                log.stored.insert(self.number, next);
                let slowest = log.stored.values().copied().min().unwrap_or(next);
                // The last stored message stays: whoever starts again may want to compare it.
                while log.first + 1 < slowest && log.messages.len() > 1 {
                    log.messages.pop_front();
                    log.first += 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    fn message(partition: i32, token: u64) -> Outgoing {
        Outgoing {
            key: (*b"m").into(),
            payload: token.to_string().into_bytes().into(),
            partition,
            token,
        }
    }

    #[tokio::test]
    async fn what_is_sent_is_read_in_order_and_from_where_asked() {
        let broker = MemoryBroker::new(2);
        let (sender, mut deliveries) = mpsc::unbounded_channel();
        let producer = broker.producer("t", sender);
        for token in 0..5 {
            producer.send(message(1, token)).unwrap();
        }
        assert!(matches!(producer.send(message(2, 9)), Err(SendError::Refused(_))));
        for token in 0..5 {
            assert_eq!(
                deliveries.recv().await,
                Some(Delivery {
                    token,
                    outcome: Outcome::Stored
                })
            );
        }
        let mut source = broker.source(&["t".to_owned()]);
        let SourceEvent::Assigned(all) = source.next().await else {
            panic!("not assigned")
        };
        assert_eq!(all.len(), 2);
        source.start(vec![
            (all[0].clone(), Start::Beginning),
            (all[1].clone(), Start::Offset(3)),
        ]);
        let SourceEvent::Messages(place, messages) = source.next().await else {
            panic!("no messages")
        };
        assert_eq!(place, all[1]);
        assert_eq!(messages.iter().map(|m| m.offset).collect::<Vec<_>>(), [3, 4]);
        source.commit(vec![(all[1].clone(), 5)]);
        assert_eq!(source.watermarks(&all[1]).await, Ok((4, 5)));
    }

    #[tokio::test]
    async fn what_one_consumer_stored_stays_for_the_other() {
        let broker = MemoryBroker::new(1);
        let topics = ["t".to_owned()];
        let (mut fast, mut slow) = (broker.source(&topics), broker.source(&topics));
        let (sender, _deliveries) = mpsc::unbounded_channel();
        let producer = broker.producer("t", sender);
        for token in 0..3 {
            producer.send(message(0, token)).unwrap();
        }
        let SourceEvent::Assigned(all) = fast.next().await else {
            panic!("not assigned")
        };
        fast.commit(vec![(all[0].clone(), 3)]);
        let SourceEvent::Assigned(all) = slow.next().await else {
            panic!("not assigned")
        };
        slow.start(vec![(all[0].clone(), Start::Beginning)]);
        let SourceEvent::Messages(_, messages) = slow.next().await else {
            panic!("no messages")
        };
        assert_eq!(messages.len(), 3);
    }

    #[tokio::test]
    async fn a_waiting_reader_is_woken() {
        let broker = MemoryBroker::new(1);
        let mut source = broker.source(&["t".to_owned()]);
        let SourceEvent::Assigned(all) = source.next().await else {
            panic!("not assigned")
        };
        source.start(vec![(all[0].clone(), Start::Beginning)]);
        let reader = tokio::spawn(async move { source.next().await });
        let (sender, _deliveries) = mpsc::unbounded_channel();
        broker.producer("t", sender).send(message(0, 1)).unwrap();
        assert!(matches!(reader.await.unwrap(), SourceEvent::Messages(_, messages) if messages.len() == 1));
    }
}
