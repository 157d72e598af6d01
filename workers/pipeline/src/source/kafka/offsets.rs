//! The consumer group's committed offsets as the place where positions are kept.
//!
//! They are committed by the consumer that reads, under its membership of the group, so that the coordinator
//! refuses one that was put out of it; and only for partitions that are ours. The answer is waited for. The
//! metadata is the fingerprint of the last message, by which a topic that was made anew is known.
//!
//! The group forgets its offsets when it has been empty for the broker's `offsets.retention.minutes`, a week by
//! default; then reading begins at the oldest record.

use std::sync::Weak;

use corrente_runtime::broker::TopicPartition;
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer},
    error::KafkaError,
    types::RDKafkaErrorCode as Code,
};

use super::{ASK, context::Context};
use crate::{
    assignment::Position,
    sink::{
        SinkError,
        outside::{Offsets, read_fingerprint, write_fingerprint},
    },
};

/// The committed offsets of the group of a [`KafkaSource`](super::KafkaSource).
pub struct GroupOffsets {
    /// It ends with the source, which leaves the group.
    pub(super) consumer: Weak<BaseConsumer<Context>>,
}

fn failed(what: &str, partition: &TopicPartition, error: &KafkaError) -> SinkError {
    SinkError::Retry(format!(
        "failed to {what} of {partition} in the consumer group: {error}"
    ))
}

impl GroupOffsets {
    fn ask<T>(
        &self,
        ask: impl FnOnce(&BaseConsumer<Context>) -> Result<T, SinkError>,
    ) -> Result<T, SinkError> {
        match self.consumer.upgrade() {
            Some(consumer) => ask(&consumer),
            None => Err(SinkError::Retry("the consumer has left its group".to_owned())),
        }
    }
}

impl Offsets for GroupOffsets {
    fn load(&self, partition: &TopicPartition) -> Result<Option<Position>, SinkError> {
        self.ask(|consumer| {
            let what = "read the committed offset";
            let mut list = TopicPartitionList::new();
            list.add_partition(&partition.topic, partition.partition);
            let committed = consumer
                .committed_offsets(list, ASK)
                .map_err(|error| failed(what, partition, &error))?;
            let Some(found) = committed.find_partition(&partition.topic, partition.partition) else {
                return Ok(None);
            };
            found.error().map_err(|error| failed(what, partition, &error))?;
            Ok(match found.offset() {
                Offset::Offset(next_offset) => Some(Position {
                    next_offset,
                    last: read_fingerprint(found.metadata()),
                }),
                _ => None,
            })
        })
    }

    fn save(&self, partition: &TopicPartition, position: &Position) -> Result<(), SinkError> {
        let what = "commit the offset";
        self.ask(|consumer| {
            if !consumer.context().lock().owned.contains(partition) {
                return Err(SinkError::Fenced(
                    "the group has given it to another worker".to_owned(),
                ));
            }
            let mut list = TopicPartitionList::new();
            let mut entry = list.add_partition(&partition.topic, partition.partition);
            entry
                .set_offset(Offset::Offset(position.next_offset))
                .map_err(|error| failed(what, partition, &error))?;
            if let Some(last) = &position.last {
                entry.set_metadata(write_fingerprint(last));
            }
            consumer
                .commit(&list, CommitMode::Sync)
                .map_err(|error| match error.rdkafka_error_code() {
                    Some(Code::IllegalGeneration | Code::UnknownMemberId | Code::FencedInstanceId) => {
                        SinkError::Fenced(format!("this worker was put out of the consumer group: {error}"))
                    }
                    _ => failed(what, partition, &error),
                })
        })
    }
}
