//! The thread that polls: it obeys commands, gathers messages, and pauses partitions while too much waits.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc as sync_mpsc,
    },
    time::{Duration, Instant},
};

use corrente_runtime::broker::{Incoming, Messages, SourceEvent, Start, TopicPartition};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer},
    error::KafkaResult,
    message::BorrowedMessage,
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
/// How long the thread waits for a message before it looks at its commands.
const POLL: Duration = Duration::from_millis(50);

/// What the thread is told.
pub(super) enum Command {
    Start(TopicPartition, Start, u64),
    Pause(TopicPartition, bool),
    Commit(Vec<(TopicPartition, i64)>),
}

/// The thread that polls.
pub(super) struct Reader {
    pub consumer: Arc<BaseConsumer<Context>>,
    pub commands: sync_mpsc::Receiver<Command>,
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
                    Err(sync_mpsc::TryRecvError::Disconnected) => return,
                }
            }
            if self.waits() {
                match self.commands.recv_timeout(LOOK) {
                    Ok(command) => self.obey(command),
                    Err(sync_mpsc::RecvTimeoutError::Timeout) => {}
                    Err(sync_mpsc::RecvTimeoutError::Disconnected) => return,
                }
                continue;
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

    /// Polls once, and takes what else is there already.
    fn gather(&self) {
        let mut groups: Vec<Group> = vec![];
        let (mut count, mut bytes, mut wait) = (0, 0, POLL);
        // Messages come in runs of one partition: the group of the last one is nearly always the right one.
        let mut last = 0;
        let mut out_of_range = false;
        while count < GROUP.0 && bytes < GROUP.1 {
            match self.consumer.poll(wait) {
                // It may be of another topic of the same name.
                Some(Ok(_)) if self.consumer.context().remade.any() => break,
                Some(Ok(message)) => {
                    let topic = message.topic_ptr() as *const ();
                    let same =
                        |group: &Group| group.topic == topic && group.place.partition == message.partition();
                    if !groups.get(last).is_some_and(same) {
                        match groups.iter().position(same) {
                            Some(found) => last = found,
                            None => match self.group(&message) {
                                Some(group) => {
                                    last = groups.len();
                                    groups.push(group);
                                }
                                // It is not ours any more.
                                None => continue,
                            },
                        }
                    }
                    count += 1;
                    bytes += message.key_len() + message.payload_len() + OVERHEAD;
                    if let Some(group) = groups.get_mut(last) {
                        group.messages.push(Incoming {
                            offset: message.offset(),
                            timestamp: message.timestamp().to_millis(),
                            key: message.key(),
                            payload: message.payload(),
                        });
                    }
                }
                Some(Err(error)) => {
                    out_of_range = error.rdkafka_error_code() == Some(RDKafkaErrorCode::AutoOffsetReset);
                    break;
                }
                None => break,
            }
            wait = Duration::ZERO;
        }
        self.hand_over(groups);
        self.hand_back_remade();
        if out_of_range {
            self.find_out_of_range();
        }
    }

    /// The group that a message begins; `None` where its partition was not started.
    fn group(&self, message: &BorrowedMessage<'_>) -> Option<Group> {
        let context = self.consumer.context();
        let place = context.place(message.topic(), message.partition());
        let number = context.lock().started.get(&place)?.number;
        Some(Group {
            topic: message.topic_ptr() as *const (),
            place,
            number,
            messages: Messages::default(),
        })
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
