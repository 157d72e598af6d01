//! What the workers need of a broker: the seam between their logic and Kafka.
//!
//! Two implementations stand behind it: the Kafka clients in the poller and the pipeline worker, and
//! [`crate::memory`] for the chain in one process. The words are Kafka's: topics have partitions,
//! partitions have offsets, and order holds within a partition.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use tokio::sync::mpsc;

/// A partition of a topic.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition's number, from 0.
    pub partition: i32,
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

/// A broker that cannot be reached or does not answer; trying again later is right.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
#[error("{0}")]
pub struct BrokerError(pub String);

/// Headers of a message, in their order. The in-process broker does not carry them: nobody there reads any.
pub type Headers = Vec<(&'static str, Vec<u8>)>;

/// A message to publish.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// The key: the meter's name.
    pub key: Arc<[u8]>,
    /// The record.
    pub payload: Arc<[u8]>,
    /// The headers.
    pub headers: Headers,
    /// The partition.
    pub partition: i32,
    /// Comes back in the [`Delivery`]: the message's place in the spool.
    pub token: u64,
}

/// Why a message was not taken.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum SendError {
    /// The queue is full: hear what deliveries there are, wait, and send it again before anything later.
    #[error("the producer's queue is full")]
    QueueFull,
    /// It cannot be taken for a reason that passes: send nothing now, and this message first when sending
    /// again.
    #[error("the broker does not take it now: {0}")]
    NotNow(String),
    /// The topic has no such partition, or is gone: hear what is on its way, ask for the partitions again, and
    /// send this message first.
    #[error("the topic is not what it was: {0}")]
    Unsettled(String),
    /// This message can never be published, as one that is larger than the broker allows.
    #[error("the broker refuses it: {0}")]
    Refused(String),
}

/// What became of a message that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The token of the message.
    pub token: u64,
    /// The outcome.
    pub outcome: Outcome,
}

/// What became of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is stored in the broker, by all in-sync replicas.
    Stored,
    /// It can never be stored. Others can.
    Refused(String),
    /// It was not stored for a reason that passes; send it, and everything after it, again.
    Again(String),
}

/// A producer of one topic. Messages are stored in the order of `send`, per partition, none twice.
pub trait Producer: Send + Sync + 'static {
    /// How many partitions the topic has.
    ///
    /// # Errors
    /// Where the broker cannot be asked, or the topic is not there.
    fn partitions(&self) -> impl Future<Output = Result<i32, BrokerError>> + Send;

    /// Takes a message. What becomes of it is said through the channel that the producer was made with.
    ///
    /// # Errors
    /// Where it is not taken.
    fn send(&self, message: Outgoing) -> Result<(), SendError>;

    /// Waits until every message that was taken has its [`Delivery`], or `timeout` has passed.
    fn flush(&self, timeout: Duration) -> impl Future<Output = ()> + Send;
}

/// Where a producer says what became of its messages.
pub type DeliverySender = mpsc::UnboundedSender<Delivery>;

/// A message that was read, where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incoming<'a> {
    /// Its place.
    pub offset: i64,
    /// The broker's timestamp in milliseconds since the epoch, where it has one.
    pub timestamp: Option<i64>,
    /// The key.
    pub key: Option<&'a [u8]>,
    /// The record; `None` is a tombstone.
    pub payload: Option<&'a [u8]>,
}

/// Messages of one partition, in the order of their offsets: their bytes are in one piece of memory, because there
/// may be a million of them a second.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Messages {
    bytes: Vec<u8>,
    index: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    offset: i64,
    timestamp: Option<i64>,
    /// Where the key begins; the payload follows it.
    begin: usize,
    key: Length,
    payload: Length,
}

/// The length of a key or a payload. A message of Kafka is shorter than 2^31 bytes; the largest number says that there
/// is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Length(u32);

impl Length {
    fn of(part: Option<&[u8]>) -> Self {
        Self(part.map_or(u32::MAX, |part| u32::try_from(part.len()).unwrap_or(u32::MAX)))
    }

    fn get(self) -> Option<usize> {
        (self.0 != u32::MAX).then_some(self.0 as usize)
    }
}

impl Messages {
    /// No messages, with room for so many bytes of keys and payloads.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(bytes),
            index: Vec::new(),
        }
    }

    /// Adds a copy of a message, whose offset is higher than those before it.
    pub fn push(&mut self, message: Incoming<'_>) {
        self.index.push(Entry {
            offset: message.offset,
            timestamp: message.timestamp,
            begin: self.bytes.len(),
            key: Length::of(message.key),
            payload: Length::of(message.payload),
        });
        self.bytes.extend_from_slice(message.key.unwrap_or_default());
        self.bytes.extend_from_slice(message.payload.unwrap_or_default());
    }

    /// Gives back the memory that was kept for more messages.
    pub fn shrink(&mut self) {
        self.bytes.shrink_to_fit();
        self.index.shrink_to_fit();
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// The bytes of their keys and payloads.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The message with this number, from 0.
    #[must_use]
    pub fn get(&self, number: usize) -> Option<Incoming<'_>> {
        let entry = self.index.get(number)?;
        let after_key = entry.begin + entry.key.get().unwrap_or(0);
        let part = |begin: usize, length: Length| self.bytes.get(begin..begin + length.get()?);
        Some(Incoming {
            offset: entry.offset,
            timestamp: entry.timestamp,
            key: part(entry.begin, entry.key),
            payload: part(after_key, entry.payload),
        })
    }

    /// The last message.
    #[must_use]
    pub fn last(&self) -> Option<Incoming<'_>> {
        self.get(self.len().checked_sub(1)?)
    }

    /// The messages, in their order.
    pub fn iter(&self) -> impl Iterator<Item = Incoming<'_>> {
        (0..self.len()).filter_map(|number| self.get(number))
    }

    /// The number of the first message at `offset` or after it; [`Messages::len`] where there is none.
    #[must_use]
    pub fn position(&self, offset: i64) -> usize {
        self.index.partition_point(|entry| entry.offset < offset)
    }
}

impl<'a> FromIterator<Incoming<'a>> for Messages {
    fn from_iter<T: IntoIterator<Item = Incoming<'a>>>(messages: T) -> Self {
        let mut all = Self::default();
        for message in messages {
            all.push(message);
        }
        all
    }
}

/// Where reading a partition starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the oldest message there is.
    Beginning,
    /// At this offset.
    Offset(i64),
}

/// What a source says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceEvent {
    /// Partitions are ours now. Nothing is read from them until [`Source::start`].
    Assigned(Vec<TopicPartition>),
    /// Partitions are no longer ours: what was read from them and not stored must be dropped.
    Revoked(Vec<TopicPartition>),
    /// Messages of one partition, in the order of their offsets.
    Messages(TopicPartition, Messages),
    /// The start asked for is not in the partition's log (any more). Nothing is read until another
    /// [`Source::start`].
    OutOfRange(TopicPartition),
    /// The broker is away; reading goes on by itself when it is back.
    Trouble(String),
}

/// A consumer of topics in a group.
pub trait Source: Send {
    /// The next event; waits for it. Safe to cancel: nothing is lost.
    fn next(&mut self) -> impl Future<Output = SourceEvent> + Send;

    /// The broker's own name for its cluster, which stays the same whatever address it is reached by.
    ///
    /// # Errors
    /// Where the broker cannot be asked.
    fn cluster(&self) -> impl Future<Output = Result<Arc<str>, BrokerError>> + Send;

    /// Starts reading assigned partitions.
    fn start(&mut self, starts: Vec<(TopicPartition, Start)>);

    /// Stops reading a partition for a while, to bound memory, or goes on with it.
    fn pause(&mut self, partition: &TopicPartition, paused: bool);

    /// The oldest offset there is and the next one to be written.
    ///
    /// # Errors
    /// Where the broker cannot be asked.
    fn watermarks(
        &self,
        partition: &TopicPartition,
    ) -> impl Future<Output = Result<(i64, i64), BrokerError>> + Send;

    /// Tells the group how far the sink is: the next offsets to read. For lag tools; the sink's own
    /// record is the truth.
    fn commit(&mut self, next_offsets: Vec<(TopicPartition, i64)>);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_what_was_pushed() {
        let pushed = [
            (3, Some(7), Some(&b"key"[..]), Some(&b"payload"[..])),
            (5, None, None, Some(b"")),
            (6, Some(-1), Some(b""), None),
            (9, None, None, None),
        ]
        .map(|(offset, timestamp, key, payload)| Incoming {
            offset,
            timestamp,
            key,
            payload,
        });
        let messages: Messages = pushed.into_iter().collect();
        assert!(messages.iter().eq(pushed));
        assert_eq!(messages.last(), Some(pushed[3]));
        assert_eq!((messages.len(), messages.bytes()), (4, 10));
        for (offset, number) in [(0, 0), (3, 0), (4, 1), (6, 2), (9, 3), (10, 4)] {
            assert_eq!(messages.position(offset), number, "{offset}");
        }
        assert_eq!(Messages::default().last(), None);
    }
}
