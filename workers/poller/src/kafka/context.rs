//! What librdkafka calls back into, from threads of its own: logs, errors and deliveries.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use corrente_runtime::{
    broker::{Delivery, DeliverySender, Outcome},
    kafka::Access,
};
use rdkafka::{
    ClientContext, Message,
    config::RDKafkaLogLevel,
    error::{KafkaError, RDKafkaErrorCode},
    producer::{DeliveryResult, ProducerContext},
};
use tokio::sync::Notify;

use super::opening::Openings;
use crate::publish::Trouble;

/// The context of one producer. What concerns all that follow each other is shared.
#[derive(Clone)]
pub(super) struct Context {
    access: Arc<Access>,
    deliveries: DeliverySender,
    trouble: Arc<Trouble>,
    fatal: Arc<Notify>,
    /// What keeps this client out of the cluster, from the time it was last let in.
    refused: Arc<Mutex<Option<String>>>,
    /// Deliveries, of all producers.
    heard: Arc<AtomicU64>,
    /// The partitions of this producer.
    pub openings: Arc<Openings>,
}

impl Context {
    pub fn new(access: Access, deliveries: DeliverySender, trouble: Arc<Trouble>) -> Self {
        Self {
            access: Arc::new(access),
            deliveries,
            trouble,
            fatal: Arc::default(),
            refused: Arc::default(),
            heard: Arc::default(),
            openings: Arc::default(),
        }
    }

    /// The context of a producer that follows.
    pub fn of_a_new_producer(&self) -> Self {
        Self {
            openings: Arc::default(),
            ..self.clone()
        }
    }

    /// Waits for a fatal error.
    pub async fn fatal(&self) {
        self.fatal.notified().await;
    }

    /// The producer met a fatal error.
    pub fn met_fatal(&self) {
        self.fatal.notify_one();
    }

    /// What keeps this client out of the cluster.
    pub fn refused(&self) -> Option<String> {
        self.lock().clone()
    }

    /// Says what keeps this client out of the cluster; in the log once, until it changes.
    pub fn refuse(&self, reason: String) {
        let mut refused = self.lock();
        if refused.as_ref() != Some(&reason) {
            tracing::error!(reason, "Kafka cannot be used");
            self.trouble.say(reason.as_str());
            *refused = Some(reason);
        }
    }

    /// What the broker has said of messages so far: changes while it takes any.
    pub fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }

    /// Says what the matter is.
    pub fn trouble(&self, reason: String) {
        self.trouble.say(self.refused().unwrap_or(reason));
    }

    /// The cluster has let this client in.
    pub fn let_in(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether an error says that this very message can never be stored. Everything else may pass: a missing
/// topic, a right that is not given, a clock that is wrong, a disk that is full.
pub(super) fn is_final(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidRecord
    )
}

/// What a code means, without its name.
pub(super) fn sentence(code: RDKafkaErrorCode) -> String {
    let text = code.to_string();
    match text.rsplit_once(" (") {
        Some((_, inner)) => inner.trim_end_matches(')').to_owned(),
        None => text,
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        // A connection that is closed before it was let in is said here alone.
        if facility == "FAIL"
            && let Some(refused) = self.access.explain(message)
        {
            self.refuse(refused);
        }
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
        if let Some(refused) = self.access.explain(reason) {
            tracing::debug!(%error, reason, "librdkafka");
            self.refuse(refused);
            return;
        }
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::Fatal) => self.met_fatal(),
            Some(RDKafkaErrorCode::AllBrokersDown) => self
                .trouble
                .say(self.refused().unwrap_or_else(|| self.access.unreachable())),
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
        self.heard.fetch_add(1, Ordering::Relaxed);
        let outcome = match result {
            Ok(message) => {
                tracing::trace!(
                    partition = message.partition(),
                    offset = message.offset(),
                    token,
                    "stored"
                );
                self.openings.stored(message.partition());
                self.let_in();
                Outcome::Stored
            }
            Err((error, message)) => {
                self.openings.failed(message.partition());
                match error.rdkafka_error_code() {
                    Some(code) if is_final(code) => Outcome::Refused(sentence(code)),
                    Some(code) => Outcome::Again(sentence(code)),
                    None => Outcome::Again(error.to_string()),
                }
            }
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
