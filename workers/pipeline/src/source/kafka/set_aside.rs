//! The dead-letter topic, for sinks that have no table for what is refused.
//!
//! A dead letter is the message as it came, key and payload, with headers that say where it came from and why it
//! was refused, the same as those of letters that come out of a table. All letters of a batch are acknowledged by all
//! in-sync replicas before the position moves on; a batch that is tried again publishes them again, with the same
//! `x-dead-letter-id`.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use corrente_config::{PipelineConfig, resolve::dead_letter_topic};
use corrente_runtime::kafka::Settings;
use rdkafka::{
    ClientContext,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    error::KafkaError,
    message::{DeliveryResult, Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext},
    types::RDKafkaErrorCode as Code,
};

use crate::{
    batch::{DeadLetter, Place},
    sink::{SinkError, outside::SetAside},
};

/// How long the brokers may take to take all letters of a batch.
const TIMEOUT: Duration = Duration::from_secs(15);
/// How long one look for deliveries lasts.
const POLL: Duration = Duration::from_millis(50);

/// A topic that takes dead letters.
pub struct DeadLetterTopic {
    topic: String,
    pipeline: String,
    settings: Settings,
    /// Made at the first letter: most pipelines never have one.
    producer: Mutex<Option<BaseProducer<Outcomes>>>,
}

/// What became of the letters since the last look.
#[derive(Default)]
struct Outcomes(Mutex<(usize, Option<String>)>);

impl Outcomes {
    fn lock(&self) -> MutexGuard<'_, (usize, Option<String>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Outcomes {}

impl ProducerContext for Outcomes {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let mut outcomes = self.lock();
        outcomes.0 += 1;
        if let Err((error, message)) = result {
            outcomes.1 = Some(format!("{} bytes: {error}", message.payload_len()));
        }
    }
}

impl DeadLetterTopic {
    /// The topic of a pipeline, let in by `settings`, which `access` has read.
    #[must_use]
    pub fn new(config: &PipelineConfig, settings: &Settings) -> Self {
        Self {
            topic: topic_of(config),
            pipeline: format!("{}/{}", config.namespace, config.name),
            settings: settings.clone(),
            producer: Mutex::new(None),
        }
    }

    /// The topic's name.
    #[must_use]
    pub fn topic(&self) -> &str {
        &self.topic
    }

    fn open(&self) -> Result<BaseProducer<Outcomes>, String> {
        self.make_topic()?;
        let mut client = self.settings.client_config();
        client
            .set("client.id", "corrente-pipeline")
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("linger.ms", "5")
            .set("compression.type", "lz4")
            .set("message.timeout.ms", "10000");
        client
            .create_with_context(Outcomes::default())
            .map_err(|error| format!("failed to make a producer for the topic {}: {error}", self.topic))
    }

    /// Makes the topic where it is missing; who may not do that may still find one that somebody else made.
    fn make_topic(&self) -> Result<(), String> {
        let failed =
            |error: &dyn std::fmt::Display| format!("failed to make the topic {}: {error}", self.topic);
        let admin: AdminClient<_> = self
            .settings
            .client_config()
            .create()
            .map_err(|error: KafkaError| failed(&error))?;
        let known = admin
            .inner()
            .fetch_metadata(None, POLL * 60)
            .map_err(|error| failed(&error))?;
        if known.topics().iter().any(|topic| topic.name() == self.topic) {
            return Ok(());
        }
        let topic = NewTopic::new(&self.topic, 1, TopicReplication::Fixed(-1));
        let options = AdminOptions::new().operation_timeout(Some(TIMEOUT));
        let made = tokio::runtime::Handle::try_current()
            .map_err(|error| failed(&error))?
            .block_on(admin.create_topics(&[topic], &options))
            .map_err(|error| failed(&error))?;
        match made.into_iter().next() {
            Some(Err((_, code))) if code != Code::TopicAlreadyExists => Err(failed(&code)),
            _ => Ok(()),
        }
    }

    fn publish(
        &self,
        producer: &BaseProducer<Outcomes>,
        place: &Place,
        letters: &[DeadLetter<'_>],
    ) -> Result<(), String> {
        let failed =
            |error: &dyn std::fmt::Display| format!("failed to publish to the topic {}: {error}", self.topic);
        *producer.context().lock() = (0, None);
        let until = Instant::now() + TIMEOUT;
        for letter in letters {
            let mut record = BaseRecord::to(&self.topic)
                .payload(letter.origin.payload)
                .headers(self.headers(place, letter));
            if let Some(key) = letter.origin.key {
                record = record.key(key);
            }
            loop {
                match producer.send(record) {
                    Ok(()) => break,
                    Err((KafkaError::MessageProduction(Code::QueueFull), back)) if Instant::now() < until => {
                        record = back;
                        producer.poll(POLL);
                    }
                    Err((error, _)) => return Err(failed(&error)),
                }
            }
        }
        loop {
            let (delivered, error) = producer.context().lock().clone();
            if let Some(error) = error {
                return Err(failed(&error));
            }
            if delivered >= letters.len() {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(failed(&"the brokers do not answer"));
            }
            producer.poll(POLL);
        }
    }

    fn headers(&self, place: &Place, letter: &DeadLetter<'_>) -> OwnedHeaders {
        let refusal = &letter.refusal;
        let (partition, offset) = (
            &place.partition.partition.to_string(),
            &letter.origin.offset.to_string(),
        );
        let id = format!("{}/{}/{offset}", place.cluster, place.partition);
        [
            ("x-dead-letter-id", Some(id.as_str())),
            ("x-pipeline", Some(self.pipeline.as_str())),
            ("x-origin-cluster", Some(&*place.cluster)),
            ("x-origin-topic", Some(&*place.partition.topic)),
            ("x-origin-partition", Some(partition.as_str())),
            ("x-origin-offset", Some(offset.as_str())),
            ("x-sqlstate", refusal.sqlstate.as_deref()),
            ("x-column", refusal.column.as_deref()),
            ("x-reason", Some(refusal.reason.as_str())),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?)))
        .fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header {
                key,
                value: Some(value),
            })
        })
    }
}

/// The name of a pipeline's dead-letter topic.
#[must_use]
pub fn topic_of(config: &PipelineConfig) -> String {
    let named = config.once.dead_letter_topic.clone();
    named.unwrap_or_else(|| dead_letter_topic(&config.namespace, &config.name))
}

impl SetAside for DeadLetterTopic {
    fn set_aside(&self, place: &Place, letters: &[DeadLetter<'_>]) -> Result<(), SinkError> {
        let mut kept = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
        // One that failed is dropped with what it still holds, so that nothing of it comes late.
        let producer = match kept.take() {
            Some(producer) => producer,
            None => self.open().map_err(SinkError::Retry)?,
        };
        self.publish(&producer, place, letters)
            .map_err(SinkError::Retry)?;
        *kept = Some(producer);
        for letter in letters {
            tracing::warn!(
                partition = %place.partition,
                offset = letter.origin.offset,
                column = letter.refusal.column,
                reason = letter.refusal.reason,
                topic = self.topic,
                "set aside in the dead-letter topic"
            );
        }
        Ok(())
    }
}
