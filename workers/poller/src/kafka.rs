//! The producer of a Kafka topic.
//!
//! It is idempotent, waits for all in-sync replicas, and never lets a message expire: a message that expired
//! in the client may have been stored all the same, and would then be there twice. So a message ends in one
//! of three ways: stored, refused for good, or back, because the producer itself had to be given up.
//!
//! That happens on a *fatal* error, after which librdkafka can no longer promise order and uniqueness. A task
//! then ends the old producer, which gives every message it still had back as "again", and only then makes a
//! new one, which takes nothing before the publisher has had a chance to hear of those: no record may overtake
//! one that comes back, since the sink takes a seq below the highest it has seen for a repeat. What the old
//! one had stored without knowing is stored twice in the topic; the sink recognises it by stream and seq.
//!
//! A broken broker is no error here: librdkafka tries again by itself for as long as it takes.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use corrente_crds::poller::KafkaOutput;
use corrente_runtime::broker::{
    BrokerError, Delivery, DeliverySender, Outcome, Outgoing, Producer, SendError,
};
use rdkafka::{
    ClientConfig, ClientContext, Message,
    config::RDKafkaLogLevel,
    error::{KafkaError, RDKafkaErrorCode},
    producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, PurgeConfig, ThreadedProducer},
};
use tokio::sync::Notify;

use crate::publish::Trouble;

/// How long the broker may take to describe the topic.
const METADATA_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the messages of a producer that is being ended are waited for, before they are asked for again.
const FLUSH: Duration = Duration::from_millis(500);
/// How long a message waits for others to share a request with.
const LINGER: &str = "20";
/// The size of a request's batch in bytes; a larger message goes alone. The broker refuses a batch that is too
/// large as a whole, and the good records in it would be set aside along with what made it so.
const BATCH: &str = "32768";

type Inner = ThreadedProducer<Context>;

/// A producer of one topic.
pub struct KafkaProducer {
    topic: Arc<str>,
    shared: Arc<Shared>,
    /// Replaces the producer after a fatal error; ends with this value.
    keeper: tokio::task::JoinHandle<()>,
}

struct Shared {
    config: ClientConfig,
    context: Context,
    state: Mutex<State>,
}

/// Which producer there is.
enum State {
    /// One that takes messages.
    Running(Inner),
    /// None: the last one is giving back what it had.
    Replacing,
    /// A new one. Everything the last one had is on its way to the publisher, who does not know it yet.
    Fresh(Inner),
}

impl State {
    fn inner(&self) -> Option<&Inner> {
        match self {
            Self::Running(inner) | Self::Fresh(inner) => Some(inner),
            Self::Replacing => None,
        }
    }
}

/// What librdkafka calls back into, from threads of its own.
#[derive(Clone)]
struct Context {
    deliveries: DeliverySender,
    trouble: Arc<Trouble>,
    fatal: Arc<Notify>,
}

impl KafkaProducer {
    /// A producer of `output`'s topic. `client` names this process in the broker's logs and quotas. What
    /// stands in the way is said to `trouble`. Needs a tokio runtime.
    ///
    /// # Errors
    /// Where the settings cannot be used. An unreachable broker is no error.
    pub fn new(
        output: &KafkaOutput,
        client: &str,
        deliveries: DeliverySender,
        trouble: Arc<Trouble>,
    ) -> Result<Self, KafkaError> {
        let config = config(output, client);
        let context = Context {
            deliveries,
            trouble,
            fatal: Arc::new(Notify::new()),
        };
        let state = Mutex::new(State::Running(config.create_with_context(context.clone())?));
        let shared = Arc::new(Shared {
            config,
            context,
            state,
        });
        Ok(Self {
            topic: output.topic.as_str().into(),
            keeper: tokio::spawn(replace_when_fatal(shared.clone())),
            shared,
        })
    }

    fn inner(&self) -> Option<Inner> {
        self.shared.lock().inner().cloned()
    }
}

impl Drop for KafkaProducer {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a new producer in the place of one that met a fatal error. This blocks until the old one has said
    /// of every message what became of it; until then nothing is taken.
    fn replace(&self) {
        let old = {
            let mut state = self.lock();
            match state.inner().map(|inner| inner.client().fatal_error()) {
                Some(None) => return,
                Some(Some((code, reason))) => {
                    tracing::error!(%code, reason, "the producer met a fatal error; a new one sends again what it had");
                }
                // The last try got no further than this.
                None => {}
            }
            std::mem::replace(&mut *state, State::Replacing)
        };
        if let State::Running(old) | State::Fresh(old) = old {
            give_back(&old);
        }
        match self.config.create_with_context(self.context.clone()) {
            Ok(new) => *self.lock() = State::Fresh(new),
            Err(error) => {
                tracing::error!(%error, "failed to make a new producer");
                self.context.fatal.notify_one();
            }
        }
    }
}

/// Has a producer say of every message it still has that it is to be sent again, and waits until it has said
/// so. Not left to dropping it: somebody who asks for the partitions may hold it a while longer.
fn give_back(old: &Inner) {
    while old.in_flight_count() > 0 {
        old.purge(PurgeConfig::default().queue().inflight());
        // Running out of time is what the loop is for.
        let _ = old.flush(FLUSH);
    }
}

async fn replace_when_fatal(shared: Arc<Shared>) {
    loop {
        shared.context.fatal.notified().await;
        let replacing = shared.clone();
        // A failure to join says only that the runtime is shutting down.
        let _ = tokio::task::spawn_blocking(move || replacing.replace()).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn config(output: &KafkaOutput, client: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", output.cluster.bootstrap_servers.join(","))
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
        .set("reconnect.backoff.max.ms", "2000")
        .set("socket.keepalive.enable", "true")
        // An idle connection that the broker closes is no event.
        .set("log.connection.close", "false");
    config.set_log_level(RDKafkaLogLevel::Info);
    config
}

impl Producer for KafkaProducer {
    async fn partitions(&self) -> Result<i32, BrokerError> {
        let topic = self.topic.clone();
        let inner = self
            .inner()
            .ok_or_else(|| BrokerError("the producer is being made anew".to_owned()))?;
        let asked = tokio::task::spawn_blocking(move || {
            // Asking also has the broker make the topic, where it makes topics by itself.
            let metadata = inner
                .client()
                .fetch_metadata(Some(&topic), METADATA_TIMEOUT)
                .map_err(|error| BrokerError(format!("the broker does not answer: {error}")))?;
            let found = metadata.topics().iter().find(|found| found.name() == &*topic);
            match found {
                Some(found) if found.error().is_none() && !found.partitions().is_empty() => {
                    Ok(i32::try_from(found.partitions().len()).unwrap_or(i32::MAX))
                }
                Some(found) if found.error().is_some_and(is_forbidden) => Err(BrokerError(format!(
                    "the broker forbids the use of topic \"{topic}\": give this client the right to write and describe it"
                ))),
                _ => Err(BrokerError(format!(
                    "there is no topic \"{topic}\" yet: create it, or let the broker create topics"
                ))),
            }
        });
        asked
            .await
            .map_err(|error| BrokerError(format!("asking the broker was broken off: {error}")))?
    }

    fn send(&self, message: Outgoing) -> Result<(), SendError> {
        let record = BaseRecord::with_opaque_to(&self.topic, token_to_opaque(message.token))
            .partition(message.partition)
            .key(&message.key[..])
            .payload(&message.payload[..]);
        let error = {
            let mut state = self.shared.lock();
            match std::mem::replace(&mut *state, State::Replacing) {
                // Whoever sends hears first what the last producer gave back.
                State::Fresh(inner) => {
                    *state = State::Running(inner);
                    return Err(SendError::QueueFull);
                }
                State::Replacing => return Err(SendError::QueueFull),
                State::Running(inner) => {
                    let sent = inner.send(record);
                    *state = State::Running(inner);
                    match sent {
                        Ok(()) => return Ok(()),
                        Err((error, _)) => error,
                    }
                }
            }
        };
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::QueueFull) => Err(SendError::QueueFull),
            Some(code) if is_final(code) => Err(SendError::Refused(sentence(code))),
            code => {
                if code == Some(RDKafkaErrorCode::Fatal) {
                    self.shared.context.fatal.notify_one();
                }
                Err(SendError::NotNow(
                    code.map_or_else(|| error.to_string(), sentence),
                ))
            }
        }
    }

    async fn flush(&self, timeout: Duration) {
        let Some(inner) = self.inner() else { return };
        // What is not flushed in time stays in the spool.
        let _ = tokio::task::spawn_blocking(move || inner.flush(timeout)).await;
    }
}

/// The opaque pointer-sized value of librdkafka carries the token. The poller runs on 64-bit machines alone.
fn token_to_opaque(token: u64) -> usize {
    const { assert!(usize::BITS == 64, "a token must fit a pointer") };
    token as usize
}

fn is_forbidden(code: rdkafka::types::RDKafkaRespErr) -> bool {
    RDKafkaErrorCode::from(code) == RDKafkaErrorCode::TopicAuthorizationFailed
}

/// Whether an error says that this very message can never be stored. Everything else may pass: a missing
/// topic, a right that is not given, a clock that is wrong, a disk that is full.
fn is_final(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidRecord
    )
}

fn sentence(code: RDKafkaErrorCode) -> String {
    let text = code.to_string();
    match text.rsplit_once(" (") {
        Some((_, inner)) => inner.trim_end_matches(')').to_owned(),
        None => text,
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::error!(facility, message, "librdkafka");
            }
            // One line for each failed connection: the trouble in the status says it, once.
            RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning | RDKafkaLogLevel::Notice => {
                tracing::info!(facility, message, "librdkafka");
            }
            RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => {
                tracing::debug!(facility, message, "librdkafka");
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::Fatal) => self.fatal.notify_one(),
            Some(RDKafkaErrorCode::AllBrokersDown) => self.trouble.say("no broker can be reached"),
            _ => {
                tracing::debug!(%error, reason, "librdkafka");
                self.trouble.say_if_quiet(reason);
            }
        }
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, token: usize) {
        let outcome = match result {
            Ok(message) => {
                tracing::trace!(
                    partition = message.partition(),
                    offset = message.offset(),
                    token,
                    "stored"
                );
                Outcome::Stored
            }
            Err((error, _)) => match error.rdkafka_error_code() {
                Some(code) if is_final(code) => Outcome::Refused(sentence(code)),
                Some(code) => Outcome::Again(sentence(code)),
                None => Outcome::Again(error.to_string()),
            },
        };
        // Nobody listens any more only while the process ends.
        let _ = self.deliveries.send(Delivery {
            token: token as u64,
            outcome,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_concerns_the_message_alone_is_final() {
        for (code, is) in [
            (RDKafkaErrorCode::MessageSizeTooLarge, true),
            (RDKafkaErrorCode::InvalidRecord, true),
            (RDKafkaErrorCode::UnknownTopicOrPartition, false),
            (RDKafkaErrorCode::TopicAuthorizationFailed, false),
            (RDKafkaErrorCode::InvalidTimestamp, false),
            (RDKafkaErrorCode::PurgeInflight, false),
            (RDKafkaErrorCode::Fatal, false),
        ] {
            assert_eq!(is_final(code), is, "{code}");
        }
        assert!(sentence(RDKafkaErrorCode::MessageSizeTooLarge).contains("too large"));
    }
}
