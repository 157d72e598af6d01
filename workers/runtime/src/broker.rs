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

/// A message that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// Its place.
    pub offset: i64,
    /// The broker's timestamp in milliseconds since the epoch, where it has one.
    pub timestamp: Option<i64>,
    /// The key.
    pub key: Option<Vec<u8>>,
    /// The record; `None` is a tombstone.
    pub payload: Option<Vec<u8>>,
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
    Messages(TopicPartition, Vec<Incoming>),
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
