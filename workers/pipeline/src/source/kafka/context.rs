//! What librdkafka calls back, and what the thread that polls knows of its partitions.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use corrente_runtime::{
    broker::{Messages, SourceEvent, TopicPartition},
    kafka::Access,
};
use rdkafka::{
    ClientContext, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::{KafkaError, KafkaResult},
    types::{RDKafkaErrorCode, RDKafkaRespErr},
};
use tokio::sync::mpsc;

/// What the thread hands over.
pub(super) enum Event {
    Source(SourceEvent),
    OutOfRange(TopicPartition, u64),
    Messages(TopicPartition, u64, Messages),
}

/// What librdkafka calls back, always on the thread that polls.
pub(super) struct Context {
    pub access: Access,
    pub events: mpsc::UnboundedSender<Event>,
    pub shared: Mutex<Shared>,
    pub topics: Vec<Arc<str>>,
}

#[derive(Default)]
pub(super) struct Shared {
    /// Partitions that the group gave us.
    pub owned: BTreeSet<TopicPartition>,
    /// Those of them that librdkafka was told to read.
    pub started: BTreeMap<TopicPartition, Started>,
}

pub(super) struct Started {
    pub number: u64,
    /// The next offset that is expected, where it is known.
    pub next: Option<i64>,
    pub wanted_paused: bool,
    pub paused: bool,
}

impl Context {
    pub fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn send(&self, event: SourceEvent) {
        // Nobody listens any more while the source is dropped.
        let _ = self.events.send(Event::Source(event));
    }

    pub fn place(&self, topic: &str, partition: i32) -> TopicPartition {
        let known = self.topics.iter().find(|known| ***known == *topic);
        TopicPartition {
            topic: known.cloned().unwrap_or_else(|| topic.into()),
            partition,
        }
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        // What matters of it comes as an error too, and is reported once.
        tracing::debug!(?level, facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if let Some(refused) = self.access.explain(reason) {
            tracing::debug!(%error, reason, "librdkafka");
            self.send(SourceEvent::Trouble(refused));
            return;
        }
        // The same error comes out of the next poll, without the reason; there it is acted on.
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AutoOffsetReset) => {}
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
                let topics = self.topics.join(", ");
                let reason = format!("not every topic of {topics} is in the cluster; waiting for it");
                self.send(SourceEvent::Trouble(reason));
            }
            _ => self.send(SourceEvent::Trouble(reason.to_owned())),
        }
    }
}

impl ConsumerContext for Context {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        error: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        let places: Vec<_> = partitions
            .elements()
            .iter()
            .map(|element| self.place(element.topic(), element.partition()))
            .collect();
        let mut shared = self.lock();
        let (result, event) = if error == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            shared.owned.extend(places.iter().cloned());
            let result = consumer.incremental_assign(&TopicPartitionList::new());
            (result, SourceEvent::Assigned(places))
        } else {
            let (mut started, mut paused) = (TopicPartitionList::new(), TopicPartitionList::new());
            for place in &places {
                shared.owned.remove(place);
                if let Some(gone) = shared.started.remove(place) {
                    started.add_partition(&place.topic, place.partition);
                    if gone.paused {
                        paused.add_partition(&place.topic, place.partition);
                    }
                }
            }
            // librdkafka keeps a partition paused beyond its assignment: it would never be read again.
            let resumed = if paused.count() > 0 {
                consumer.resume(&paused)
            } else {
                Ok(())
            };
            let unassigned = consumer.incremental_unassign(&started);
            (resumed.and(unassigned), SourceEvent::Revoked(places))
        };
        drop(shared);
        if let Err(error) = result {
            self.send(SourceEvent::Trouble(format!(
                "failed to follow the group's assignment: {error}"
            )));
        }
        self.send(event);
    }

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        if let Err(error) = result {
            // Partitions that moved on are committed by their new owner.
            tracing::debug!(%error, "failed to tell the group how far the sink is");
        }
    }
}
