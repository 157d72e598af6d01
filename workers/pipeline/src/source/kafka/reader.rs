//! The thread that polls: it obeys commands, gathers messages, and pauses partitions while too much waits.
//!
//! The consumer itself is polled for what the group and the broker say; messages are taken many at a time from a queue
//! of their own (docs/decisions/0026), into which each partition is led before it is started. What there is to hear
//! when messages were taken is heard before they are used: it may be that they are of another topic of the same name.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc as sync_mpsc,
    },
    time::{Duration, Instant},
};

use corrente_fetch::{Message, Queue};
use corrente_runtime::broker::{Incoming, Messages, SourceEvent, Start, TopicPartition};
use rdkafka::{
    ClientContext as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer},
    error::{KafkaError, KafkaResult},
    types::RDKafkaErrorCode,
};
use tokio::sync::mpsc;

use super::{
    ASK,
    context::{Context, Event, Started},
};

/// Most bytes of messages that were read and not taken yet.
const QUEUED: usize = 8 * 1024 * 1024;
/// So long the thread does not poll while too much waits, before it pauses and polls for what else there is to hear.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it looks meanwhile whether there is room again.
const LOOK: Duration = Duration::from_millis(2);
/// Most messages, and bytes, in one group.
const GROUP: (usize, usize) = (4000, 1024 * 1024);
/// What a message costs beyond its key and payload.
const OVERHEAD: usize = 48;
/// How long the thread waits for a message before it looks at its commands, and at what else there is to hear.
const POLL: Duration = Duration::from_millis(50);
/// How often the group is told how far the sink is. It is for those who look at the lag; what is told costs the broker
/// as much as many records.
const TOLD_EVERY: Duration = Duration::from_secs(1);
/// Most messages that are taken at a time. They come out of the caches again if they are many.
const TAKEN: usize = 64;

/// What the thread is told.
pub(super) enum Command {
    Start(TopicPartition, Start, u64),
    Pause(TopicPartition, bool),
    Commit(Vec<(TopicPartition, i64)>),
}

/// The thread that polls.
pub(super) struct Reader {
    pub consumer: Arc<BaseConsumer<Context>>,
    /// Where messages are taken from.
    pub queue: Queue<Context>,
    /// When partitions were led into it last.
    pub redirected: Instant,
    pub commands: sync_mpsc::Receiver<Command>,
    /// The next offsets that the group was not told yet, and when it was told something.
    pub untold: BTreeMap<TopicPartition, i64>,
    pub told: Instant,
    pub events: mpsc::UnboundedSender<Event>,
    pub queued: Arc<AtomicUsize>,
    /// Since when too much waits.
    pub full: Option<Instant>,
    /// Whether all partitions pause because too much waits.
    pub held: bool,
}

/// Messages of one partition that are handed over together.
struct Group {
    /// librdkafka's own name for the topic, which is quicker to compare.
    topic: *const (),
    place: TopicPartition,
    /// The number of the start under which they were read.
    number: u64,
    messages: Messages,
}

/// The group that a message begins; `None` where its partition was not started.
fn group(context: &Context, message: &Message<'_>) -> Option<Group> {
    let place = context.place(message.topic(), message.partition());
    let number = context.lock().started.get(&place)?.number;
    Some(Group {
        topic: message.topic_id(),
        place,
        number,
        messages: Messages::default(),
    })
}

/// What the group and the broker said.
#[derive(Clone, Copy, Default)]
struct Heard {
    /// Some offset is not in its log.
    out_of_range: bool,
    /// Messages were taken and not used.
    astray: bool,
}

impl Heard {
    fn error(&mut self, error: Option<RDKafkaErrorCode>) {
        self.out_of_range |= error == Some(RDKafkaErrorCode::AutoOffsetReset);
    }
}

/// What messages that were handed over count for, in bytes.
pub(super) fn weight(messages: &Messages) -> usize {
    messages.bytes() + messages.len() * OVERHEAD
}

impl Reader {
    /// Polls until the source is dropped.
    pub fn run(mut self) {
        loop {
            loop {
                match self.commands.try_recv() {
                    Ok(command) => self.obey(command),
                    Err(sync_mpsc::TryRecvError::Empty) => break,
                    Err(sync_mpsc::TryRecvError::Disconnected) => return self.tell(),
                }
            }
            if !self.untold.is_empty() && self.told.elapsed() >= TOLD_EVERY {
                self.tell();
            }
            if self.waits() {
                match self.commands.recv_timeout(LOOK) {
                    Ok(command) => self.obey(command),
                    Err(sync_mpsc::RecvTimeoutError::Timeout) => {}
                    Err(sync_mpsc::RecvTimeoutError::Disconnected) => return self.tell(),
                }
                continue;
            }
            self.hold();
            self.lead();
            let heard = self.gather();
            self.hand_back_remade();
            if heard.astray {
                self.start_again();
            }
            if heard.out_of_range {
                self.find_out_of_range();
            }
        }
    }

    fn obey(&mut self, command: Command) {
        let result = match command {
            Command::Start(place, start, number) => self.start(place, start, number, false),
            Command::Pause(place, paused) => {
                if let Some(started) = self.consumer.context().lock().started.get_mut(&place) {
                    started.wanted_paused = paused;
                }
                self.settle()
            }
            Command::Commit(offsets) => {
                self.untold.extend(offsets);
                Ok(())
            }
        };
        if let Err(error) = result {
            let reason = format!("failed to start or pause a partition: {error}");
            self.consumer.context().send(SourceEvent::Trouble(reason));
        }
    }

    /// Tells the group how far the sink is, with the partitions that are ours still: whoever has the others knows better.
    fn tell(&mut self) {
        self.told = Instant::now();
        let mut untold = std::mem::take(&mut self.untold);
        let shared = self.consumer.context().lock();
        untold.retain(|place, _| shared.owned.contains(place));
        drop(shared);
        if untold.is_empty() {
            return;
        }
        let mut list = TopicPartitionList::new();
        let told = untold
            .iter()
            .try_for_each(|(place, offset)| {
                list.add_partition_offset(&place.topic, place.partition, Offset::Offset(*offset))
            })
            .and_then(|()| self.consumer.commit(&list, CommitMode::Async));
        if let Err(error) = told {
            tracing::debug!(%error, "failed to tell the group how far the sink is");
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
        self.redirect(&place)?;
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

    /// Whether too much waits, and has not waited for long.
    fn waits(&mut self) -> bool {
        if self.queued.load(Ordering::Relaxed) <= QUEUED {
            self.full = None;
            return false;
        }
        self.full.get_or_insert_with(Instant::now).elapsed() < PATIENCE
    }

    /// Pauses everything while too much has waited for long.
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

    /// Leads what is read of a partition into the queue.
    fn redirect(&self, place: &TopicPartition) -> KafkaResult<()> {
        let led = self.queue.redirect(&place.topic, place.partition);
        led.map_err(KafkaError::Nul)
    }

    /// Leads partitions into the queue anew from time to time: where one was started anew, librdkafka forgets where it
    /// leads once the earlier start has ended.
    fn lead(&mut self) {
        if self.redirected.elapsed() >= POLL {
            self.redirected = Instant::now();
            for place in self.consumer.context().lock().started.keys() {
                // It was led there before it was started.
                let _ = self.redirect(place);
            }
        }
    }

    /// Hears what the group and the broker say, and waits so long for it.
    fn hear(&self, mut wait: Duration, heard: &mut Heard) {
        while !wait.is_zero() || self.queue.beside() > 0 {
            match self.consumer.poll(std::mem::take(&mut wait)) {
                // As of a partition that librdkafka has made anew by itself. Whether what is in the queue was read before
                // it or after it cannot be told.
                Some(Ok(_)) => heard.astray = true,
                Some(Err(error)) => heard.error(error.rdkafka_error_code()),
                // What there was has been dealt with.
                None => {}
            }
        }
    }

    /// Starts all partitions again where they were: messages that were taken were not used.
    fn start_again(&self) {
        let context = self.consumer.context();
        for (place, number, next, paused) in self.started() {
            let start = next.map_or(Start::Beginning, Start::Offset);
            if let Err(error) = self.start(place, start, number, paused) {
                let reason = format!("failed to start a partition again: {error}");
                context.send(SourceEvent::Trouble(reason));
            }
        }
    }

    /// The partitions that are read: the number of their start, the next offset, and whether they are to pause.
    fn started(&self) -> Vec<(TopicPartition, u64, Option<i64>, bool)> {
        let shared = self.consumer.context().lock();
        let started = shared.started.iter();
        started
            .map(|(place, s)| (place.clone(), s.number, s.next, s.wanted_paused))
            .collect()
    }

    /// Waits for a message, takes what else is there already, and hands it over.
    fn gather(&self) -> Heard {
        let context = self.consumer.context();
        let mut heard = Heard::default();
        if context.lock().started.is_empty() {
            self.hear(POLL, &mut heard);
            return heard;
        }
        let mut groups: Vec<Group> = vec![];
        let (mut count, mut bytes) = (0, 0);
        // Messages come in runs of one partition: the group of the last one is nearly always the right one.
        let mut last = 0;
        let (mut most, mut wait) = (1, POLL);
        while count < GROUP.0 && bytes < GROUP.1 {
            let batch = self.queue.take(most, wait);
            self.hear(Duration::ZERO, &mut heard);
            if batch.is_empty() {
                break;
            }
            if heard.astray || context.remade.any() {
                heard.astray = true;
                break;
            }
            for message in batch.iter() {
                if let Some(error) = message.error() {
                    // As the consumer does with what comes out of its own queue.
                    context.error(KafkaError::Global(error), message.reason().trim());
                    heard.error(Some(error));
                    continue;
                }
                let (topic, partition) = (message.topic_id(), message.partition());
                let same = |group: &Group| group.topic == topic && group.place.partition == partition;
                if !groups.get(last).is_some_and(same) {
                    match groups.iter().position(same) {
                        Some(found) => last = found,
                        None => match group(context, &message) {
                            Some(group) => {
                                last = groups.len();
                                groups.push(group);
                            }
                            // It is not ours any more.
                            None => continue,
                        },
                    }
                }
                let (key, payload) = (message.key(), message.payload());
                count += 1;
                bytes += key.map_or(0, <[u8]>::len) + payload.map_or(0, <[u8]>::len) + OVERHEAD;
                if let Some(group) = groups.get_mut(last) {
                    group.messages.push(Incoming {
                        offset: message.offset(),
                        timestamp: message.timestamp(),
                        key,
                        payload,
                    });
                }
            }
            // No more of them than what is left to take, if they go on to be as large.
            most = (GROUP.1.saturating_sub(bytes) * count / bytes.max(1)).clamp(1, TAKEN);
            wait = Duration::ZERO;
        }
        self.hand_over(groups);
        heard
    }

    fn hand_over(&self, groups: Vec<Group>) {
        let mut shared = self.consumer.context().lock();
        for group in &groups {
            // A start that was made anew meanwhile has an offset of its own.
            if let (Some(started), Some(last)) = (shared.started.get_mut(&group.place), group.messages.last())
                && started.number == group.number
            {
                started.next = Some(last.offset + 1);
            }
        }
        drop(shared);
        for mut group in groups {
            // They may wait for long, and a buffer that grew has room for as much again.
            group.messages.shrink();
            self.queued.fetch_add(weight(&group.messages), Ordering::Relaxed);
            let event = Event::Messages(group.place, group.number, group.messages);
            // Nobody listens any more while the source is dropped.
            let _ = self.events.send(event);
        }
    }

    /// Reads no more of topics that were made anew: their partitions are to be started again.
    fn hand_back_remade(&self) {
        let context = self.consumer.context();
        if !context.remade.any() {
            return;
        }
        let topics = context.remade.take();
        let mut list = TopicPartitionList::new();
        let mut events = vec![];
        context.lock().started.retain(|place, started| {
            let kept = !topics.iter().any(|topic| **topic == *place.topic);
            if !kept {
                list.add_partition(&place.topic, place.partition);
                events.push(Event::OutOfRange(place.clone(), started.number));
            }
            kept
        });
        // librdkafka keeps a partition paused beyond its assignment.
        let handed_back = self
            .consumer
            .resume(&list)
            .and_then(|()| self.consumer.incremental_unassign(&list));
        if let Err(error) = handed_back {
            context.send(SourceEvent::Trouble(format!(
                "failed to stop reading a topic: {error}"
            )));
        }
        tracing::warn!(topics = topics.join(", "), "the topic was deleted and made anew");
        for event in events {
            let _ = self.events.send(event);
        }
    }

    /// Some partition's offset is not in its log. Whose is found by the watermarks; the others are started
    /// again where they were, for one of them may have been hit by an answer that is outdated by now.
    fn find_out_of_range(&self) {
        for (place, number, next, paused) in self.started() {
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
