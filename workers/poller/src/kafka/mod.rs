//! The producer of a Kafka topic.
//!
//! It is idempotent, waits for all in-sync replicas, and never lets a message expire: a message that expired
//! in the client may have been stored all the same, and would then be there twice. So a message ends in one
//! of three ways: stored, refused for good, or back, because the producer itself had to be given up.
//!
//! That happens on a *fatal* error, after which librdkafka can no longer promise order and uniqueness, and
//! when the files that let it into the cluster have changed. A task then ends the old producer, which gives
//! every message it still had back as "again", and only then makes a new one, which takes nothing before the
//! publisher has had a chance to hear of those: no record may overtake one that comes back, since the sink
//! takes a seq below the highest it has seen for a repeat. What the old one had stored without knowing is
//! stored twice in the topic; the sink recognises it by stream and seq.
//!
//! librdkafka can wait for ever where a topic was deleted and made anew under it. So where nothing was heard of
//! messages for long, while the broker does answer and has the topic, the producer is replaced as well. To a broker
//! that is merely slow this does no harm: the old producer's requests and the new one's each begin with the lowest
//! record that is not known to be stored and leave none out, so that whatever comes of them, in whatever order, no
//! record comes after a later one for the first time. What is stored twice is bounded: a new producer has one message
//! on its way to a partition until it has heard of it, and each replacement in vain waits twice as long as the last.
//!
//! A new producer [`opens`](opening) each partition with one message alone. [`topic`] is made where it was
//! asked for, and counted; [`context`] is what librdkafka calls back.
//!
//! What librdkafka has to say is [heard](hear) by a task, not by a thread of rdkafka's: that one waits in turns of
//! 100 ms and spins through the last of each, which alone costs more than polling dozens of meters.
//!
//! A broken broker is no error here: librdkafka tries again by itself for as long as it takes. Nor are files
//! that cannot be read: the producer is made as soon as they can, and until then the spool holds the records.

mod context;
mod opening;
mod topic;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use corrente_config::secrets::Secrets;
use corrente_crds::poller::KafkaOutput;
use corrente_runtime::{
    broker::{BrokerError, DeliverySender, Headers, Outgoing, Producer, SendError},
    kafka::{Access, Settings},
};
use rdkafka::{
    ClientConfig,
    config::RDKafkaLogLevel,
    error::RDKafkaErrorCode,
    message::{Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer as _, PurgeConfig},
};
use tokio::sync::Notify;

use self::{
    context::{Context, is_final, sentence},
    topic::Topic,
};
use crate::publish::Trouble;

/// How long the messages of a producer that is being ended are waited for, before they are asked for again.
const FLUSH: Duration = Duration::from_millis(500);
/// How long a producer whose files have changed may still store what it has. It may well be let in no more.
const FINISH: Duration = Duration::from_secs(3);
/// How long nothing may be heard of messages, before the broker is asked for the topic, and the producer replaced
/// where it is there. Longer each time that it does not help. By then librdkafka, which waits 30 s for an answer, has
/// sent again by itself what a connection had lost.
const SILENCE: Duration = Duration::from_secs(45);
/// The longest it gets.
const LONG_SILENCE: Duration = Duration::from_secs(600);
/// How long a message waits for others to share a request with.
const LINGER: &str = "20";
/// The size of a request's batch in bytes; a larger message goes alone. The broker refuses a batch that is too
/// large as a whole, and the good records in it would be set aside along with what made it so.
const BATCH: &str = "65536";

/// How soon after a message was sent it is heard what became of it; twice as long each time in vain. Not sooner than it is
/// sent itself: each look in vain wakes a process up that has nothing else to do.
const HEAR: Duration = Duration::from_millis(20);
/// The longest pause while something is on its way.
const HEAR_AT_LAST: Duration = Duration::from_millis(100);
/// How often librdkafka is heard while nothing is on its way: it may still have errors to tell.
const HEAR_IDLE: Duration = Duration::from_secs(1);

type Inner = Arc<BaseProducer<Context>>;

/// A producer of one topic.
pub struct KafkaProducer {
    shared: Arc<Shared>,
    /// Replaces the producer; ends with this value.
    keeper: tokio::task::JoinHandle<()>,
    /// Hears the producer; ends with this value.
    hearer: tokio::task::JoinHandle<()>,
}

struct Shared {
    access: Access,
    /// This process in the broker's logs and quotas.
    client: String,
    topic: Topic,
    context: Context,
    state: Mutex<State>,
    /// Something was sent.
    sent: Notify,
}

/// Which producer there is.
enum State {
    /// One that takes messages.
    Running(Made),
    /// None: the last one is giving back what it had, or none could be made.
    Replacing,
    /// A new one. Everything the last one had is on its way to the publisher, who does not know it yet.
    Fresh(Made),
}

/// A producer and what it was made with.
struct Made {
    inner: Inner,
    settings: Settings,
}

impl State {
    fn made(&self) -> Option<&Made> {
        match self {
            Self::Running(made) | Self::Fresh(made) => Some(made),
            Self::Replacing => None,
        }
    }
}

/// Why a producer is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    Fatal,
    Changed,
    Silent,
}

impl KafkaProducer {
    /// A producer of `output`'s topic. The files that let it into the cluster are below `secrets`; `client`
    /// names this process in the broker's logs and quotas. What stands in the way, an unreachable broker, a
    /// missing file or a refused password, is said to `trouble`. Needs a tokio runtime.
    #[must_use]
    pub fn new(
        output: &KafkaOutput,
        secrets: &Secrets,
        client: &str,
        deliveries: DeliverySender,
        trouble: Arc<Trouble>,
    ) -> Self {
        Self::with_patience(output, secrets, client, deliveries, trouble, SILENCE)
    }

    /// A producer as [`KafkaProducer::new`] makes it, which is replaced where nothing was heard of messages for
    /// `silence`, though the broker answers.
    #[must_use]
    pub fn with_patience(
        output: &KafkaOutput,
        secrets: &Secrets,
        client: &str,
        deliveries: DeliverySender,
        trouble: Arc<Trouble>,
        silence: Duration,
    ) -> Self {
        let access = Access::new(&output.cluster, secrets);
        let shared = Arc::new(Shared {
            context: Context::new(access.clone(), deliveries, trouble),
            access,
            client: client.to_owned(),
            topic: Topic::new(&output.topic, output.create_topic),
            state: Mutex::new(State::Replacing),
            sent: Notify::new(),
        });
        shared.make(State::Running);
        Self {
            keeper: tokio::spawn(keep(shared.clone(), silence)),
            hearer: tokio::spawn(hear(shared.clone())),
            shared,
        }
    }
}

impl Drop for KafkaProducer {
    fn drop(&mut self) {
        self.keeper.abort();
        self.hearer.abort();
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a producer. Where that fails, the reason is said and there is none.
    fn make(&self, state: impl FnOnce(Made) -> State) {
        let made = self
            .access
            .read()
            .map_err(|error| error.to_string())
            .and_then(|settings| {
                let context = self.context.of_a_new_producer();
                match config(&settings, &self.client).create_with_context(context) {
                    Ok(inner) => Ok(Made {
                        inner: Arc::new(inner),
                        settings,
                    }),
                    Err(error) => Err(self.access.explain_unusable(&error.to_string())),
                }
            });
        match made {
            Ok(made) => *self.lock() = state(made),
            Err(reason) => self.context.refuse(reason),
        }
    }

    /// Puts a new producer in the place of one that is of no use any more, or of none. This blocks until the
    /// old one has said of every message what became of it; until then nothing is taken.
    fn replace(&self, why: Why) {
        let old = {
            let mut state = self.lock();
            match state.made().map(|made| made.inner.client().fatal_error()) {
                Some(None) if why == Why::Fatal => return,
                Some(Some((code, reason))) => {
                    tracing::error!(%code, reason, "the producer met a fatal error; a new one sends again what it had");
                }
                Some(None) if why == Why::Silent => {
                    tracing::warn!(
                        "nothing is heard of records, though the broker answers: a new producer sends them again"
                    );
                }
                Some(None) => {
                    tracing::info!(
                        "the files that let this client into Kafka have changed: it connects anew"
                    );
                }
                // No producer could be made so far.
                None => {}
            }
            std::mem::replace(&mut *state, State::Replacing)
        };
        if let State::Running(old) | State::Fresh(old) = old {
            if why == Why::Changed {
                // What is stored now need not be sent again. What is not comes back.
                let _ = old.inner.flush(FINISH);
            }
            give_back(&old.inner);
        }
        self.make(State::Fresh);
    }
}

/// Has a producer say of every message it still has that it is to be sent again, and waits until it has said
/// so. Not left to dropping it: somebody who asks for the partitions may hold it a while longer.
fn give_back(old: &Inner) {
    while old.in_flight_count() > 0 {
        old.purge(PurgeConfig::default().queue().inflight());
        // Running out of time is what the loop is for.
        let _ = old.flush(FLUSH);
        // What is left may be no message but an error to tell, which flushing does not wait for; nobody else hears it.
        old.poll(Duration::ZERO);
    }
}

/// Hears what became of messages, and what else there is to tell: soon after they were sent, and then less and
/// less often while nothing comes. Nothing here waits, so it may run among the tasks that poll meters.
async fn hear(shared: Arc<Shared>) {
    let mut pause = HEAR;
    loop {
        let inner = shared.lock().made().map(|made| made.inner.clone());
        let on_their_way = inner.map_or(0, |inner| {
            let before = inner.in_flight_count();
            let mut left = before;
            loop {
                inner.poll(Duration::ZERO);
                let now = inner.in_flight_count();
                if now >= left {
                    break;
                }
                left = now;
            }
            pause = if left < before {
                HEAR
            } else {
                (pause * 2).min(HEAR_AT_LAST)
            };
            // Where it was replaced meanwhile, this is what ends it, and that blocks.
            if let Some(last) = Arc::into_inner(inner) {
                tokio::task::spawn_blocking(move || drop(last));
            }
            left
        });
        if on_their_way > 0 {
            tokio::time::sleep(pause).await;
        } else {
            pause = HEAR;
            // Running out of time is one of two ways to go on.
            let _ = tokio::time::timeout(HEAR_IDLE, shared.sent.notified()).await;
            tokio::time::sleep(HEAR).await;
        }
    }
}

/// Replaces the producer whenever it has to be.
async fn keep(shared: Arc<Shared>, patience: Duration) {
    let (mut silence, mut heard) = (patience, shared.context.heard());
    loop {
        let used = shared.lock().made().map(|made| made.settings.clone());
        let why = tokio::select! {
            () = shared.context.fatal() => Why::Fatal,
            _ = shared.access.changed(used.as_ref()) => Why::Changed,
            () = silent(&shared, silence) => Why::Silent,
        };
        // What was said while it ended does not count: the old one gave everything back.
        silence = if why == Why::Silent && heard == shared.context.heard() {
            (silence * 2).min(LONG_SILENCE)
        } else {
            patience
        };
        let replacing = shared.clone();
        // A failure to join says only that the runtime is shutting down.
        let _ = tokio::task::spawn_blocking(move || replacing.replace(why)).await;
        heard = shared.context.heard();
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Waits until nothing was heard of messages for so long, though the broker answers and has the topic.
async fn silent(shared: &Shared, silence: Duration) {
    let mut heard = shared.context.heard();
    loop {
        tokio::time::sleep(silence).await;
        let now = shared.context.heard();
        let inner = shared.lock().made().map(|made| made.inner.clone());
        if let Some(inner) = inner
            && now == heard
            && inner.in_flight_count() > 0
        {
            match shared.topic.partitions(inner).await {
                Ok(_) => return,
                Err(reason) => shared.context.trouble(reason),
            }
        }
        heard = now;
    }
}

fn config(settings: &Settings, client: &str) -> ClientConfig {
    let mut config = settings.client_config();
    config
        .set("client.id", client)
        .set("enable.idempotence", "true")
        .set("acks", "all")
        // A batch that fails for good is otherwise left behind, and those in flight after it are stored: what
        // then comes back has been overtaken in its partition. With this it is a fatal error; see the module.
        .set("enable.gapless.guarantee", "true")
        // No expiry; see the module.
        .set("message.timeout.ms", "0")
        .set("linger.ms", LINGER)
        .set("batch.size", BATCH)
        .set("compression.type", "lz4")
        // Larger than the publisher's window, so that the window is the bound.
        .set("queue.buffering.max.messages", "100000")
        .set("queue.buffering.max.kbytes", "65536")
        // A broker that is back should be noticed soon, and one that is gone should not be hammered.
        // With what librdkafka adds by chance, at most 1.5 s: a poller that is told to end has four for all that is left.
        .set("reconnect.backoff.max.ms", "1000")
        .set("socket.keepalive.enable", "true");
    config.set_log_level(RDKafkaLogLevel::Info);
    config
}

fn headers(headers: &Headers) -> OwnedHeaders {
    let made = OwnedHeaders::new_with_capacity(headers.len());
    headers.iter().fold(made, |made, (key, value)| {
        made.insert(Header {
            key,
            value: Some(value),
        })
    })
}

impl Producer for KafkaProducer {
    async fn partitions(&self) -> Result<i32, BrokerError> {
        let made = self
            .shared
            .lock()
            .made()
            .map(|made| (made.inner.clone(), made.settings.clone()));
        let Some((inner, settings)) = made else {
            let refused = self.shared.context.refused();
            return Err(BrokerError(
                refused.unwrap_or_else(|| "the producer is being made anew".to_owned()),
            ));
        };
        let topic = &self.shared.topic;
        let result = match topic
            .make(&settings, &self.shared.client, &self.shared.context)
            .await
        {
            Ok(()) => topic.partitions(inner).await,
            Err(reason) => Err(reason),
        };
        // What the cluster has against this client says more than that it does not answer.
        match result {
            Ok(count) => {
                self.shared.context.let_in();
                Ok(count)
            }
            Err(reason) => Err(BrokerError(self.shared.context.refused().unwrap_or(reason))),
        }
    }

    fn send(&self, message: Outgoing) -> Result<(), SendError> {
        let mut state = self.shared.lock();
        let made = match &*state {
            State::Running(made) => made,
            State::Replacing => return Err(SendError::QueueFull),
            State::Fresh(_) => {
                // Whoever sends hears first what the last producer gave back.
                if let State::Fresh(made) = std::mem::replace(&mut *state, State::Replacing) {
                    *state = State::Running(made);
                }
                return Err(SendError::QueueFull);
            }
        };
        let openings = &made.inner.context().openings;
        if !openings.begin(message.partition) {
            return Err(SendError::QueueFull);
        }
        let record = BaseRecord::with_opaque_to(self.shared.topic.name(), token_to_opaque(message.token))
            .partition(message.partition)
            .key(&message.key[..])
            .payload(&message.payload[..]);
        let record = if message.headers.is_empty() {
            record
        } else {
            record.headers(headers(&message.headers))
        };
        let Err((error, _)) = made.inner.send(record) else {
            self.shared.sent.notify_one();
            return Ok(());
        };
        openings.failed(message.partition);
        Err(match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::QueueFull) => SendError::QueueFull,
            Some(
                code @ (RDKafkaErrorCode::UnknownPartition
                | RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::UnknownTopicOrPartition),
            ) => SendError::Unsettled(format!(
                "topic \"{}\": {}",
                self.shared.topic.name(),
                sentence(code)
            )),
            Some(code) if is_final(code) => SendError::Refused(sentence(code)),
            code => {
                if code == Some(RDKafkaErrorCode::Fatal) {
                    self.shared.context.met_fatal();
                }
                SendError::NotNow(code.map_or_else(|| error.to_string(), sentence))
            }
        })
    }

    async fn flush(&self, timeout: Duration) {
        let inner = self.shared.lock().made().map(|made| made.inner.clone());
        let Some(inner) = inner else { return };
        // What is not flushed in time stays in the spool.
        let _ = tokio::task::spawn_blocking(move || inner.flush(timeout)).await;
    }
}

/// The opaque pointer-sized value of librdkafka carries the token. The poller runs on 64-bit machines alone.
fn token_to_opaque(token: u64) -> usize {
    const { assert!(usize::BITS == 64, "a token must fit a pointer") };
    token as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_producer_with_errors_to_tell_can_be_ended() {
        let output = KafkaOutput {
            cluster: corrente_crds::kafka::KafkaCluster {
                // Reserved, and never listened on.
                bootstrap_servers: vec!["127.0.0.1:1".to_owned()],
                ..Default::default()
            },
            ..Default::default()
        };
        let access = Access::new(&output.cluster, &Secrets::default());
        let settings = access.read().unwrap();
        let (sender, _deliveries) = tokio::sync::mpsc::unbounded_channel();
        let context = Context::new(access, sender, Arc::default());
        let inner: Inner = Arc::new(config(&settings, "test").create_with_context(context).unwrap());
        while inner.in_flight_count() == 0 {
            std::thread::sleep(Duration::from_millis(10));
        }
        give_back(&inner);
        assert_eq!(inner.in_flight_count(), 0);
    }
}
