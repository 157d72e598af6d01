//! What librdkafka calls back, and what the thread that polls knows of its partitions.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
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
    pub remade: Remade,
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

/// Topics that were deleted and made anew while they were read. librdkafka goes on in such a topic at the offset that
/// it had come to in the old one, and would skip what is before it. It tells so by nothing but a line of its log,
/// which comes before it reads any message of the new topic.
#[derive(Default)]
pub(super) struct Remade {
    any: AtomicBool,
    topics: Mutex<Vec<String>>,
}

impl Remade {
    /// Whether there are any.
    pub fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// Those there are; there are none then.
    pub fn take(&self) -> Vec<String> {
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        self.any.store(false, Ordering::Release);
        std::mem::take(&mut topics)
    }

    /// Hears a line of the log. It comes on a thread of librdkafka's, which others may wait for.
    pub fn hear(&self, line: &str) {
        if let Some(topic) = remade(line) {
            let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
            topics.push(topic.to_owned());
            self.any.store(true, Ordering::Release);
        }
    }
}

/// The topic that a line of the log says to be another one: `[thrd:main]: Topic t changed id from A to B`.
fn remade(line: &str) -> Option<&str> {
    /// What a topic is called whose id was not known yet.
    const UNKNOWN: &str = "AAAAAAAAAAAAAAAAAAAAAA";
    let (before, after) = line.split_once(" changed id from ")?;
    let (_, topic) = before.rsplit_once("Topic ")?;
    (!after.starts_with(UNKNOWN)).then_some(topic)
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
        self.remade.hear(message);
        // What matters of the rest comes as an error too, and is reported once.
        tracing::trace!(?level, facility, "{message}");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hears_that_a_topic_was_made_anew() {
        let heard = Remade::default();
        heard.hear(
            "[thrd:main]: Topic meters changed id from AAAAAAAAAAAAAAAAAAAAAA to EXYuaO0tRAK4M3HmGN-7Yg",
        );
        heard.hear("[thrd:main]: Topic meters [0] Leader 1 Epoch 0");
        assert!(!heard.any());
        heard.hear(
            "[thrd:main]: Topic meters changed id from EXYuaO0tRAK4M3HmGN-7Yg to lc0ghMpnTRSu1yrpzGTyOw",
        );
        assert!(heard.any());
        assert_eq!(heard.take(), ["meters"]);
        assert!(!heard.any());
    }
}
