//! The Kafka consumer: a thread of its own polls librdkafka and hands messages over in groups.
//!
//! - **A partition is read only after [`Source::start`].** On assignment librdkafka is told *nothing yet*
//!   (an incremental assignment of no partitions), and `start` adds the partition at its offset. So there
//!   is no message from a wrong place to throw away, and no seek that races with the first fetch. This
//!   needs the cooperative protocol, where an assignment may grow in steps: `cooperative-sticky`, which
//!   also leaves partitions alone that stay where they are.
//! - **Each start has a number**, and what was read under an earlier one is dropped.
//! - `auto.offset.reset=error`: an offset outside the log is never mended silently. librdkafka's error
//!   does not name the partition, so the watermarks of all are looked at.
//! - A topic that is deleted and made anew while it is read is noticed by its id, and its partitions are handed back as
//!   out of range, whatever its offsets.
//! - Group offsets are written for lag tools alone, once a second and when a partition is started, and never read, unless
//!   the sink has no place of its own for them ([`GroupOffsets`]).
//! - A session lasts 10 s: a worker that died gives its partitions up soon.
//! - What was read and not taken yet is bounded: beyond that the thread does not poll, and after a while all partitions
//!   pause. (librdkafka drops what it has read ahead of a partition that pauses, and reads it again later.)

use std::{
    collections::BTreeMap,
    fmt::Display,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc as sync_mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use corrente_config::PipelineConfig;
use corrente_fetch::Queue;
use corrente_runtime::{
    broker::{BrokerError, Source, SourceEvent, Start, TopicPartition},
    kafka::{Access, Settings},
};
use rdkafka::{
    ClientConfig,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer},
};
use tokio::sync::mpsc;

use self::{
    context::{Context, Event, Remade},
    reader::{Command, Reader},
};

mod context;
mod offsets;
mod reader;
mod set_aside;
#[cfg(test)]
mod tests;

pub use offsets::GroupOffsets;
pub use set_aside::{DeadLetterTopic, topic_of};

/// How long the broker may take for an answer.
const ASK: Duration = Duration::from_secs(3);
/// How long leaving the group may take.
const LEAVE: Duration = Duration::from_millis(1500);

/// A consumer in a group.
pub struct KafkaSource {
    /// `None` only while dropping.
    consumer: Option<Arc<BaseConsumer<Context>>>,
    /// `None` only while dropping.
    commands: Option<sync_mpsc::Sender<Command>>,
    events: mpsc::UnboundedReceiver<Event>,
    /// In a mutex only because a receiver alone cannot be shared, and `&self` is.
    ended: Mutex<sync_mpsc::Receiver<()>>,
    queued: Arc<AtomicUsize>,
    topics: Vec<String>,
    starts: u64,
    current: BTreeMap<TopicPartition, u64>,
    /// Whether the group's offsets are the sink's own record.
    kept: bool,
}

impl KafkaSource {
    /// Joins the pipeline's group, let in by `settings`, which `access` has read. The broker need not be there
    /// yet. A consumer keeps its settings: when those change, the worker makes another one.
    ///
    /// # Errors
    /// Where librdkafka refuses the configuration, or the thread cannot be started.
    pub fn new(config: &PipelineConfig, access: &Access, settings: &Settings) -> anyhow::Result<Self> {
        let (sender, events) = mpsc::unbounded_channel();
        let context = Context {
            access: access.clone(),
            events: sender.clone(),
            shared: Mutex::default(),
            remade: Remade::default(),
            topics: config.topics.iter().map(|topic| topic.as_str().into()).collect(),
        };
        let consumer: BaseConsumer<Context> = client_config(config, settings)
            .create_with_context(context)
            .map_err(|error| anyhow::anyhow!(access.explain_unusable(&error.to_string())))?;
        let topics: Vec<&str> = config.topics.iter().map(String::as_str).collect();
        consumer.subscribe(&topics)?;
        let consumer = Arc::new(consumer);
        let queued = Arc::new(AtomicUsize::new(0));
        let (commands, receiver) = sync_mpsc::channel();
        let (ending, ended) = sync_mpsc::channel();
        let queue = Queue::new(consumer.clone())
            .ok_or_else(|| anyhow::anyhow!("librdkafka makes no queue for messages"))?;
        let reader = Reader {
            consumer: consumer.clone(),
            queue,
            redirected: Instant::now(),
            commands: receiver,
            untold: BTreeMap::new(),
            told: Instant::now(),
            events: sender,
            queued: queued.clone(),
            full: None,
            held: false,
        };
        thread::Builder::new().name("kafka".to_owned()).spawn(move || {
            reader.run();
            // Nobody waits any more where leaving took too long.
            let _ = ending.send(());
        })?;
        Ok(Self {
            consumer: Some(consumer),
            commands: Some(commands),
            events,
            ended: Mutex::new(ended),
            queued,
            topics: config.topics.clone(),
            starts: 0,
            current: BTreeMap::new(),
            kept: false,
        })
    }

    /// The group's committed offsets, for a sink that keeps its positions there. From now on it alone commits.
    pub fn group_offsets(&mut self) -> GroupOffsets {
        self.kept = true;
        GroupOffsets {
            consumer: self.consumer.as_ref().map(Arc::downgrade).unwrap_or_default(),
        }
    }

    fn command(&self, command: Command) {
        if let Some(commands) = &self.commands {
            // The thread ends before us only by a panic, which `next` reports.
            let _ = commands.send(command);
        }
    }

    /// Asks the broker something; librdkafka's calls block, so not on this task's thread.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&BaseConsumer<Context>) -> Result<T, BrokerError> + Send + 'static,
    ) -> Result<T, BrokerError> {
        let consumer = self.consumer.clone();
        tokio::task::spawn_blocking(move || match consumer {
            Some(consumer) => question(&consumer),
            None => Err(BrokerError("the consumer has left".to_owned())),
        })
        .await
        .map_err(|error| BrokerError(format!("failed to ask the broker: {error}")))?
    }
}

fn client_config(config: &PipelineConfig, settings: &Settings) -> ClientConfig {
    let mut client = settings.client_config();
    client
        .set("group.id", &config.group)
        .set("client.id", "corrente-pipeline")
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("session.timeout.ms", "10000")
        .set("heartbeat.interval.ms", "3000")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("allow.auto.create.topics", "false")
        // For the line that tells of a topic made anew; few others come with it.
        .set("debug", "metadata")
        .set_log_level(RDKafkaLogLevel::Debug)
        // New topics and partitions are noticed within this time.
        .set("topic.metadata.refresh.interval.ms", "10000")
        .set("reconnect.backoff.max.ms", "5000")
        .set("socket.keepalive.enable", "true")
        .set("queued.min.messages", "20000")
        // A partition that has read enough ahead is looked at again after this time; the default, a second, would leave
        // it empty for most of it.
        .set("fetch.queue.backoff.ms", "5")
        // Per partition.
        .set("queued.max.messages.kbytes", "2048");
    client
}

fn failed(what: &str, error: impl Display) -> BrokerError {
    BrokerError(format!("failed to {what}: {error}"))
}

impl Source for KafkaSource {
    async fn next(&mut self) -> SourceEvent {
        loop {
            match self.events.recv().await {
                Some(Event::Source(event)) => return event,
                Some(Event::OutOfRange(place, start)) => {
                    if self.current.get(&place) == Some(&start) {
                        return SourceEvent::OutOfRange(place);
                    }
                }
                Some(Event::Messages(place, start, messages)) => {
                    self.queued
                        .fetch_sub(reader::weight(&messages), Ordering::Relaxed);
                    if self.current.get(&place) == Some(&start) {
                        return SourceEvent::Messages(place, messages);
                    }
                }
                None => std::future::pending().await,
            }
        }
    }

    async fn cluster(&self) -> Result<Arc<str>, BrokerError> {
        let topic = self.topics.first().cloned();
        self.ask(move |consumer| {
            consumer
                .fetch_metadata(topic.as_deref(), ASK)
                .map_err(|error| failed("ask the broker for its topics", error))?;
            consumer
                .client()
                .fetch_cluster_id(ASK)
                .map(Into::into)
                .ok_or_else(|| BrokerError("the broker does not tell its cluster's id".to_owned()))
        })
        .await
    }

    fn start(&mut self, starts: Vec<(TopicPartition, Start)>) {
        let known = starts.iter().filter_map(|(place, start)| match start {
            Start::Offset(offset) => Some((place.clone(), *offset)),
            Start::Beginning => None,
        });
        // Whoever had the partition before may not have told the last of it.
        self.commit(known.collect());
        for (place, start) in starts {
            self.starts += 1;
            self.current.insert(place.clone(), self.starts);
            self.command(Command::Start(place, start, self.starts));
        }
    }

    fn pause(&mut self, partition: &TopicPartition, paused: bool) {
        self.command(Command::Pause(partition.clone(), paused));
    }

    async fn watermarks(&self, partition: &TopicPartition) -> Result<(i64, i64), BrokerError> {
        let place = partition.clone();
        self.ask(move |consumer| {
            consumer
                .fetch_watermarks(&place.topic, place.partition, ASK)
                .map_err(|error| failed(&format!("ask the broker for the offsets of {place}"), error))
        })
        .await
    }

    fn commit(&mut self, next_offsets: Vec<(TopicPartition, i64)>) {
        if !self.kept {
            self.command(Command::Commit(next_offsets));
        }
    }
}

impl Drop for KafkaSource {
    /// Leaves the group, so that others take the partitions at once. Waits a moment for it, because the
    /// process may be about to end.
    fn drop(&mut self) {
        self.consumer = None;
        self.commands = None;
        let ended = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner);
        if ended.recv_timeout(LEAVE).is_err() {
            tracing::debug!("left without the broker's answer");
        }
    }
}
