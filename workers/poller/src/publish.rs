//! The publisher: drains the spool to the broker, in order, and moves the cursor behind what is stored.
//!
//! 1. It asks the broker how many partitions the topic has; the stream keeps the first answer (see
//!    [`crate::spool::stream`]), so that a meter's records stay in one partition, sent again or not.
//! 2. It takes deliveries: stored moves the cursor; refused for good sets the record aside; again waits a
//!    little longer each time and sends from the lowest unsettled record on.
//! 3. It fills its [`Window`] from the spool and sends what is unsent, until the producer takes no more. Then
//!    it hears deliveries first, since one of them may say that an earlier record is to be sent again.
//!
//! A backlog is read and sent in turns of [`TURN`] records, between which other tasks of the thread run: the polls
//! must not wait for it.
//!
//! Where the producer says that the topic has no such partition any more, the publisher hears what is on its way
//! and begins again with 1: a topic that was made anew with fewer partitions must not stop it.
//!
//! It never gives up, and nothing is lost by waiting: the spool holds what the broker does not take.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use corrente_record::partition::partition;
use corrente_runtime::broker::{Delivery, Outcome, Outgoing, Producer, SendError};
use tokio::{
    sync::mpsc::UnboundedReceiver,
    task::yield_now,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    backoff::{self, Backoff},
    encode::Encoder,
    formatter::{Formatter, NotFormatted},
    spool::shared::SharedSpool,
    window::{Window, WindowLimits},
};

/// How many records are read, and how many are sent, before others have their turn.
const TURN: usize = 256;
/// How many bytes are read from the spool in a turn; a single longer record is let through.
const TURN_BYTES: usize = 256 * 1024;
/// How long a full producer queue is given before it is tried again.
const QUEUE_PAUSE: Duration = Duration::from_millis(50);
/// How long a topic that is not what it was is given before its partitions are asked for again.
const SETTLE_PAUSE: Duration = Duration::from_secs(1);
/// How long the broker may take to acknowledge anything before the status speaks of it.
const STALL: Duration = Duration::from_secs(10);

/// Why the broker takes no records at the moment, for the status.
#[derive(Debug, Default)]
pub struct Trouble(Mutex<Option<String>>);

impl Trouble {
    /// Says what the matter is.
    pub fn say(&self, reason: impl Into<String>) {
        *self.lock() = Some(reason.into());
    }

    /// Says what the matter is, unless something is said already, which may be more to the point.
    pub fn say_if_quiet(&self, reason: impl Into<String>) {
        self.lock().get_or_insert_with(|| reason.into());
    }

    /// The matter is settled.
    pub fn clear(&self) {
        *self.lock() = None;
    }

    /// What the matter is.
    #[must_use]
    pub fn get(&self) -> Option<String> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How sending ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sending {
    /// There is nothing to send at the moment.
    Done,
    /// The producer takes no more.
    QueueFull,
    /// The turn was over.
    TurnOver,
}

/// The publisher of one spool to one topic.
pub struct Publisher<'a, P> {
    spool: SharedSpool,
    producer: P,
    deliveries: UnboundedReceiver<Delivery>,
    topic: String,
    trouble: &'a Trouble,
    window: Window,
    formatter: Formatter,
    backoff: Backoff,
    partitions: i32,
    /// Whether the partitions have to be asked for again before anything is sent.
    unsettled: bool,
    /// The seq of the newest record that was read from the spool.
    read_to: u64,
    published: metrics::Counter,
}

impl<'a, P: Producer> Publisher<'a, P> {
    /// A publisher. `deliveries` is the other end of the channel that the producer was made with.
    pub fn new(
        spool: SharedSpool,
        producer: P,
        deliveries: UnboundedReceiver<Delivery>,
        topic: &str,
        trouble: &'a Trouble,
        limits: WindowLimits,
    ) -> Self {
        let read_to = spool.lock().acknowledged();
        Self {
            spool,
            producer,
            deliveries,
            topic: topic.to_owned(),
            trouble,
            window: Window::new(limits),
            formatter: Formatter::new(Encoder::json(), None),
            backoff: Backoff::new(backoff::BROKER),
            partitions: 1,
            unsettled: false,
            read_to,
            published: metrics::counter!("corrente_poller_published_records_total"),
        }
    }

    /// Publishes in another format than flat JSON without headers.
    #[must_use]
    pub fn in_format(mut self, formatter: Formatter) -> Self {
        self.formatter = formatter;
        self
    }

    /// Publishes until `drain` is cancelled and everything synced by then is dealt with. Dropping it loses
    /// nothing: what is not acknowledged stays in the spool.
    pub async fn run(mut self, drain: CancellationToken) {
        if !self.meet_the_broker(&drain).await {
            return;
        }
        let mut heard = Instant::now();
        loop {
            while let Ok(delivery) = self.deliveries.try_recv() {
                heard = Instant::now();
                self.settle(delivery);
            }
            let more = self.fill();
            let sending = self.send();
            if let Some(seq) = self.window.advance() {
                self.spool.acknowledge(seq);
            }
            if drain.is_cancelled() && self.window.is_empty() && !more {
                return;
            }
            if self.unsettled && self.window.in_flight() == 0 {
                tokio::select! {
                    () = sleep(SETTLE_PAUSE) => {}
                    () = drain.cancelled() => return,
                }
                if !self.meet_the_broker(&drain).await {
                    return;
                }
                self.unsettled = false;
                continue;
            }
            let now = Instant::now();
            if self.window.in_flight() == 0 {
                heard = now;
            }
            let pause = self
                .backoff
                .left(now)
                .or((sending == Sending::QueueFull).then_some(QUEUE_PAUSE));
            let goes_on = sending == Sending::TurnOver || (more && self.window.room().is_some());
            if pause.is_none() && goes_on {
                yield_now().await;
                continue;
            }
            tokio::select! {
                delivery = self.deliveries.recv() => {
                    let Some(delivery) = delivery else { return };
                    heard = Instant::now();
                    self.settle(delivery);
                }
                answer = self.formatter.answered() => self.hear_registry(answer),
                () = self.spool.readable() => {}
                () = sleep(pause.unwrap_or_default()), if pause.is_some() => {}
                () = drain.cancelled(), if !drain.is_cancelled() => {}
                () = sleep_until(heard + STALL), if self.window.in_flight() > 0 => {
                    heard = Instant::now();
                    self.trouble.say_if_quiet("the broker has acknowledged nothing for 10 s or more");
                }
            }
        }
    }

    /// Asks for the number of partitions until there is an answer; `false` where it is time to leave.
    async fn meet_the_broker(&mut self, drain: &CancellationToken) -> bool {
        loop {
            let answer = tokio::select! {
                answer = self.producer.partitions() => answer,
                () = drain.cancelled() => return false,
            };
            let settled = answer.map_err(|error| error.to_string()).and_then(|there_are| {
                let mut spool = self.spool.lock();
                spool
                    .settle_partitions(&self.topic, there_are)
                    .map_err(|error| error.to_string())
            });
            match settled {
                Ok(count) => {
                    self.partitions = count;
                    self.backoff.succeeded();
                    self.trouble.clear();
                    return true;
                }
                Err(reason) => {
                    tracing::warn!(topic = self.topic, reason, "the topic cannot be used yet");
                    self.trouble.say(reason);
                    let pause = self.backoff.failed(Instant::now()).unwrap_or_default();
                    tokio::select! {
                        () = sleep(pause) => {}
                        () = drain.cancelled() => return false,
                    }
                }
            }
        }
    }

    /// Reads from the spool while there is room; whether there may be more.
    fn fill(&mut self) -> bool {
        let Some((records, bytes)) = self.window.room() else {
            return true;
        };
        let (records, bytes) = (records.min(TURN), bytes.min(TURN_BYTES));
        let read = self.spool.lock().read(self.read_to, records, bytes);
        match read {
            Ok(some) => {
                if let Some(last) = some.last() {
                    self.read_to = last.seq;
                }
                let more = !some.is_empty();
                some.into_iter().for_each(|record| self.window.enter(record));
                more
            }
            Err(error) => {
                tracing::error!(%error, "failed to read the spool");
                self.trouble.say(error.to_string());
                self.backoff.failed(Instant::now());
                false
            }
        }
    }

    /// Sends what may be sent, for one turn.
    fn send(&mut self) -> Sending {
        if self.unsettled || self.backoff.left(Instant::now()).is_some() {
            return Sending::Done;
        }
        for _ in 0..TURN {
            let Some(record) = self.window.next_unsent() else {
                return Sending::Done;
            };
            let seq = record.seq;
            let encoded = match self.formatter.format(&record.payload) {
                Ok(encoded) => encoded,
                Err(NotFormatted::Asking) => return Sending::Done,
                Err(NotFormatted::NoRegistry(reason)) => {
                    self.backoff.failed(Instant::now());
                    self.trouble.say(reason);
                    return Sending::Done;
                }
                Err(NotFormatted::Never(reason)) => {
                    self.set_aside(seq, &reason);
                    continue;
                }
            };
            let message = Outgoing {
                key: record.key.clone(),
                payload: encoded.payload,
                headers: encoded.headers,
                partition: partition(&record.key, self.partitions),
                token: seq,
            };
            match self.producer.send(message) {
                Ok(()) => self.window.sent(seq),
                Err(SendError::QueueFull) => return Sending::QueueFull,
                Err(SendError::NotNow(reason)) => {
                    tracing::warn!(reason, "the broker takes no records now");
                    self.backoff.failed(Instant::now());
                    self.trouble.say(reason);
                    return Sending::Done;
                }
                Err(SendError::Unsettled(reason)) => {
                    tracing::warn!(
                        reason,
                        "the topic has changed; its partitions are asked for again"
                    );
                    self.unsettled = true;
                    self.trouble.say(reason);
                    return Sending::Done;
                }
                Err(SendError::Refused(reason)) => self.set_aside(seq, &reason),
            }
        }
        Sending::TurnOver
    }

    fn hear_registry(&mut self, answer: Result<(), String>) {
        match answer {
            Ok(()) => {
                self.backoff.succeeded();
                self.trouble.clear();
            }
            Err(reason) => {
                tracing::warn!(reason, "records wait for their schema");
                self.backoff.failed(Instant::now());
                self.trouble.say(reason);
            }
        }
    }

    fn settle(&mut self, delivery: Delivery) {
        match delivery.outcome {
            Outcome::Stored => {
                if self.window.settle(delivery.token).is_some() {
                    self.published.increment(1);
                }
                // What is stored of a wave that came back in part is no sign that the rest will be.
                if !self.window.is_held() {
                    self.backoff.succeeded();
                    self.trouble.clear();
                }
            }
            Outcome::Refused(reason) => self.set_aside(delivery.token, &reason),
            Outcome::Again(reason) => {
                // One pause for all that come back together.
                if self.window.again(delivery.token) && self.backoff.left(Instant::now()).is_none() {
                    tracing::warn!(reason, "the broker did not take records; they are sent again");
                    self.backoff.failed(Instant::now());
                }
                self.trouble.say(reason);
            }
        }
    }

    fn set_aside(&mut self, seq: u64, reason: &str) {
        let Some(record) = self.window.settle(seq).cloned() else {
            return;
        };
        tracing::error!(
            seq,
            meter = %String::from_utf8_lossy(&record.key),
            reason,
            "a record can never be published; it is set aside in refused.jsonl beside the spool"
        );
        self.spool.lock().set_aside(&record, reason);
    }
}
