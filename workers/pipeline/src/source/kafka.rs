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
//! - Group offsets are written for lag tools alone, and never read.
//! - A session lasts 10 s: a worker that died gives its partitions up soon.
//! - What was read and not taken yet is bounded by [`QUEUED`]: beyond it, all partitions pause.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc as sync_mpsc,
    },
    thread,
    time::Duration,
};

use corrente_config::PipelineConfig;
use corrente_runtime::broker::{BrokerError, Incoming, Source, SourceEvent, Start, TopicPartition};
use rdkafka::{
    ClientConfig, ClientContext, Message, Offset, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext},
    error::{KafkaError, KafkaResult},
    message::BorrowedMessage,
    types::{RDKafkaErrorCode, RDKafkaRespErr},
};
use tokio::sync::mpsc;

/// Most bytes of messages that were read and not taken yet.
const QUEUED: usize = 16 * 1024 * 1024;
/// Most messages, and bytes, in one group.
const GROUP: (usize, usize) = (2000, 1024 * 1024);
/// How long the thread waits for a message before it looks at its commands.
const POLL: Duration = Duration::from_millis(50);
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
}

enum Command {
    Start(TopicPartition, Start, u64),
    Pause(TopicPartition, bool),
    Commit(Vec<(TopicPartition, i64)>),
}

enum Event {
    Source(SourceEvent),
    OutOfRange(TopicPartition, u64),
    Messages(TopicPartition, u64, Vec<Incoming>, usize),
}

impl KafkaSource {
    /// Joins the pipeline's group. The broker need not be there yet.
    ///
    /// # Errors
    /// Where librdkafka refuses the configuration, or the thread cannot be started.
    pub fn new(config: &PipelineConfig) -> anyhow::Result<Self> {
        let (sender, events) = mpsc::unbounded_channel();
        let context = Context {
            events: sender.clone(),
            shared: Mutex::default(),
            topics: config.topics.iter().map(|topic| topic.as_str().into()).collect(),
        };
        let consumer: BaseConsumer<Context> = client_config(config).create_with_context(context)?;
        let topics: Vec<&str> = config.topics.iter().map(String::as_str).collect();
        consumer.subscribe(&topics)?;
        let consumer = Arc::new(consumer);
        let queued = Arc::new(AtomicUsize::new(0));
        let (commands, receiver) = sync_mpsc::channel();
        let (ending, ended) = sync_mpsc::channel();
        let reader = Reader {
            consumer: consumer.clone(),
            commands: receiver,
            events: sender,
            queued: queued.clone(),
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
        })
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

fn client_config(config: &PipelineConfig) -> ClientConfig {
    let mut client = ClientConfig::new();
    client
        .set("bootstrap.servers", config.kafka.bootstrap_servers.join(","))
        .set("group.id", &config.group)
        .set("client.id", "corrente-pipeline")
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("session.timeout.ms", "10000")
        .set("heartbeat.interval.ms", "3000")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("allow.auto.create.topics", "false")
        // New topics and partitions are noticed within this time.
        .set("topic.metadata.refresh.interval.ms", "10000")
        .set("reconnect.backoff.max.ms", "5000")
        .set("socket.keepalive.enable", "true")
        .set("queued.min.messages", "10000")
        // Per partition.
        .set("queued.max.messages.kbytes", "4096");
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
                Some(Event::Messages(place, start, messages, bytes)) => {
                    self.queued.fetch_sub(bytes, Ordering::Relaxed);
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
        self.command(Command::Commit(next_offsets));
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

/// What librdkafka calls back, always on the thread that polls.
struct Context {
    events: mpsc::UnboundedSender<Event>,
    shared: Mutex<Shared>,
    topics: Vec<Arc<str>>,
}

#[derive(Default)]
struct Shared {
    /// Partitions that the group gave us.
    owned: BTreeSet<TopicPartition>,
    /// Those of them that librdkafka was told to read.
    started: BTreeMap<TopicPartition, Started>,
}

struct Started {
    number: u64,
    /// The next offset that is expected, where it is known.
    next: Option<i64>,
    wanted_paused: bool,
    paused: bool,
}

impl Context {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, event: SourceEvent) {
        // Nobody listens any more while the source is dropped.
        let _ = self.events.send(Event::Source(event));
    }

    fn place(&self, topic: &str, partition: i32) -> TopicPartition {
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

/// The thread that polls.
struct Reader {
    consumer: Arc<BaseConsumer<Context>>,
    commands: sync_mpsc::Receiver<Command>,
    events: mpsc::UnboundedSender<Event>,
    queued: Arc<AtomicUsize>,
    /// Whether all partitions pause because too much waits.
    held: bool,
}

type Groups = BTreeMap<TopicPartition, (u64, Vec<Incoming>, usize)>;

impl Reader {
    fn run(mut self) {
        loop {
            loop {
                match self.commands.try_recv() {
                    Ok(command) => self.obey(command),
                    Err(sync_mpsc::TryRecvError::Empty) => break,
                    Err(sync_mpsc::TryRecvError::Disconnected) => return,
                }
            }
            self.hold();
            self.gather();
        }
    }

    fn obey(&self, command: Command) {
        let result = match command {
            Command::Start(place, start, number) => self.start(place, start, number, false),
            Command::Pause(place, paused) => {
                if let Some(started) = self.consumer.context().lock().started.get_mut(&place) {
                    started.wanted_paused = paused;
                }
                self.settle()
            }
            Command::Commit(offsets) => {
                let mut list = TopicPartitionList::new();
                offsets
                    .iter()
                    .try_for_each(|(place, offset)| {
                        list.add_partition_offset(&place.topic, place.partition, Offset::Offset(*offset))
                    })
                    .and_then(|()| self.consumer.commit(&list, CommitMode::Async))
                    .or_else(|error| {
                        tracing::debug!(%error, "failed to tell the group how far the sink is");
                        Ok(())
                    })
            }
        };
        if let Err(error) = result {
            let reason = format!("failed to start or pause a partition: {error}");
            self.consumer.context().send(SourceEvent::Trouble(reason));
        }
    }

    fn start(
        &self,
        place: TopicPartition,
        start: Start,
        number: u64,
        wanted_paused: bool,
    ) -> KafkaResult<()> {
        let mut shared = self.consumer.context().lock();
        if !shared.owned.contains(&place) {
            return Ok(());
        }
        let (offset, next) = match start {
            Start::Beginning => (Offset::Beginning, None),
            Start::Offset(offset) => (Offset::Offset(offset), Some(offset)),
        };
        let mut list = TopicPartitionList::new();
        list.add_partition(&place.topic, place.partition);
        if let Some(started) = shared.started.remove(&place) {
            // librdkafka keeps a partition paused beyond its assignment.
            if started.paused {
                self.consumer.resume(&list)?;
            }
            self.consumer.incremental_unassign(&list)?;
        }
        list.set_all_offsets(offset)?;
        self.consumer.incremental_assign(&list)?;
        shared.started.insert(
            place,
            Started {
                number,
                next,
                wanted_paused,
                paused: false,
            },
        );
        drop(shared);
        self.settle()
    }

    /// Pauses everything while too much waits.
    fn hold(&mut self) {
        let queued = self.queued.load(Ordering::Relaxed);
        let held = if self.held {
            queued > QUEUED / 2
        } else {
            queued > QUEUED
        };
        if held != self.held {
            self.held = held;
            if let Err(error) = self.settle() {
                self.consumer
                    .context()
                    .send(SourceEvent::Trouble(format!("failed to pause: {error}")));
            }
        }
    }

    /// Makes every partition paused or not, as it should be.
    fn settle(&self) -> KafkaResult<()> {
        let mut shared = self.consumer.context().lock();
        for (place, started) in &mut shared.started {
            let paused = started.wanted_paused || self.held;
            if paused != started.paused {
                let mut list = TopicPartitionList::new();
                list.add_partition(&place.topic, place.partition);
                if paused {
                    self.consumer.pause(&list)?;
                } else {
                    self.consumer.resume(&list)?;
                }
                started.paused = paused;
            }
        }
        Ok(())
    }

    /// Polls once, and takes what else is there already.
    fn gather(&self) {
        let mut groups = Groups::new();
        let (mut count, mut bytes, mut wait) = (0, 0, POLL);
        while count < GROUP.0 && bytes < GROUP.1 {
            match self.consumer.poll(wait) {
                Some(Ok(message)) => {
                    count += 1;
                    bytes += self.take(&message, &mut groups);
                }
                Some(Err(error)) => {
                    if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AutoOffsetReset) {
                        self.find_out_of_range();
                    }
                    break;
                }
                None => break,
            }
            wait = Duration::ZERO;
        }
        for (place, (number, messages, bytes)) in groups {
            self.queued.fetch_add(bytes, Ordering::Relaxed);
            let _ = self.events.send(Event::Messages(place, number, messages, bytes));
        }
    }

    fn take(&self, message: &BorrowedMessage<'_>, groups: &mut Groups) -> usize {
        let context = self.consumer.context();
        let place = context.place(message.topic(), message.partition());
        let mut shared = context.lock();
        let Some(started) = shared.started.get_mut(&place) else {
            return 0;
        };
        started.next = Some(message.offset() + 1);
        let incoming = Incoming {
            offset: message.offset(),
            timestamp: message.timestamp().to_millis(),
            key: message.key().map(<[u8]>::to_vec),
            payload: message.payload().map(<[u8]>::to_vec),
        };
        let bytes = message.key_len() + message.payload_len() + size_of::<Incoming>();
        let group = groups.entry(place).or_insert_with(|| (started.number, vec![], 0));
        group.1.push(incoming);
        group.2 += bytes;
        bytes
    }

    /// Some partition's offset is not in its log. Whose is found by the watermarks; the others are started
    /// again where they were, for one of them may have been hit by an answer that is outdated by now.
    fn find_out_of_range(&self) {
        let context = self.consumer.context();
        let started: Vec<_> = context
            .lock()
            .started
            .iter()
            .map(|(place, s)| (place.clone(), s.number, s.next, s.wanted_paused))
            .collect();
        for (place, number, next, paused) in started {
            let inside = next.is_some_and(|next| {
                self.consumer
                    .fetch_watermarks(&place.topic, place.partition, ASK)
                    .is_ok_and(|(low, high)| (low..=high).contains(&next))
            });
            let restarted = match next.filter(|_| inside) {
                Some(next) => self
                    .start(place.clone(), Start::Offset(next), number, paused)
                    .is_ok(),
                None => false,
            };
            if !restarted {
                let _ = self.events.send(Event::OutOfRange(place, number));
            }
        }
    }
}
