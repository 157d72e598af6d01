//! The topic: made where that was asked for, and how many partitions it has.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use corrente_crds::output::CreateTopic;
use corrente_runtime::kafka::Settings;
use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication},
    error::{KafkaError, RDKafkaErrorCode},
    producer::Producer as _,
    types::RDKafkaRespErr,
};

use super::{
    Inner,
    context::{Context, sentence},
};

/// How long the broker may take for an answer.
const ASK: Duration = Duration::from_secs(5);
/// How long it may take to make a topic.
const MAKE: Duration = Duration::from_secs(15);
/// What says whose clock a record's timestamp in the topic is.
const TIMESTAMPS: &str = "message.timestamp.type";

/// The topic.
pub(super) struct Topic {
    name: String,
    create: Option<CreateTopic>,
    /// Whether it was said how the topic differs from what would be made.
    compared: AtomicBool,
}

impl Topic {
    pub fn new(name: &str, create: Option<CreateTopic>) -> Self {
        Self {
            name: name.to_owned(),
            create,
            compared: AtomicBool::new(false),
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes the topic where that was asked for and it is not there. One that is there is left as it is, but how
    /// it differs is said once. Before anything else is asked about the topic: a broker that makes topics by
    /// itself would make it in its own way.
    pub async fn make(&self, settings: &Settings, client: &str, context: &Context) -> Result<(), String> {
        let Some(create) = self.create else {
            return Ok(());
        };
        let mut config = settings.client_config();
        config.set("client.id", client);
        let admin: AdminClient<Context> = config
            .create_with_context(context.of_a_new_producer())
            .map_err(|error| format!("failed to ask for topic \"{}\": {error}", self.name))?;
        let admin = EndedElsewhere(Some(admin));
        let Some(admin) = &admin.0 else { return Ok(()) };
        let retention = create
            .retention
            .map(|retention| retention.as_millis().to_string());
        let new = NewTopic::new(
            &self.name,
            create.partitions,
            TopicReplication::Fixed(create.replication_factor),
        )
        // The broker's clock: retention and readers then go by one clock, whatever a poller's says.
        .set(TIMESTAMPS, "LogAppendTime");
        let new = match &retention {
            Some(millis) => new.set("retention.ms", millis),
            None => new,
        };
        let options = AdminOptions::new()
            .request_timeout(Some(MAKE))
            .operation_timeout(Some(MAKE));
        let answers = admin
            .create_topics(&[new], &options)
            .await
            .map_err(|error| format!("the broker does not answer: {}", cause(&error)))?;
        match answers.into_iter().next() {
            Some(Ok(_)) => {
                tracing::info!(
                    topic = self.name,
                    partitions = create.partitions,
                    replication_factor = create.replication_factor,
                    "made the topic"
                );
                Ok(())
            }
            Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => {
                self.compare_timestamps(admin).await;
                Ok(())
            }
            // It may be there all the same; if not, whoever asks for its partitions says so.
            Some(Err((
                _,
                RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::ClusterAuthorizationFailed,
            ))) => Ok(()),
            Some(Err((_, RDKafkaErrorCode::InvalidReplicationFactor))) => Err(format!(
                "topic \"{}\" cannot be made with replicationFactor {}: the cluster has fewer brokers at the moment; lower createTopic.replicationFactor, or add brokers",
                self.name, create.replication_factor
            )),
            Some(Err((_, code))) => Err(format!(
                "the broker does not make topic \"{}\": {}; correct createTopic, or make the topic yourself",
                self.name,
                sentence(code)
            )),
            None => Err("the broker does not answer whether the topic was made".to_owned()),
        }
    }

    /// How many partitions the topic has.
    pub async fn partitions(&self, inner: Inner) -> Result<i32, String> {
        let topic = self.name.clone();
        let may_create = self.create.is_some();
        let asked = tokio::task::spawn_blocking(move || {
            // Asking also has the broker make the topic, where it makes topics by itself.
            let metadata = inner
                .client()
                .fetch_metadata(Some(&topic), ASK)
                .map_err(|error| format!("the broker does not answer: {}", cause(&error)))?;
            let found = metadata.topics().iter().find(|found| found.name() == topic);
            match found {
                Some(found) if found.error().is_none() && !found.partitions().is_empty() => {
                    Ok(i32::try_from(found.partitions().len()).unwrap_or(i32::MAX))
                }
                Some(found) if found.error().is_some_and(is_forbidden) => Err(if may_create {
                    format!(
                        "the broker forbids this client to create or use topic \"{topic}\": give it the right to create, describe and write it, or make the topic yourself and give it the rights to describe and write"
                    )
                } else {
                    format!(
                        "the broker forbids the use of topic \"{topic}\": give this client the right to write and describe it"
                    )
                }),
                _ if may_create => Err(format!(
                    "topic \"{topic}\" is not there, and this client may not create it: give it the right to create the topic, or make it yourself"
                )),
                _ => Err(format!(
                    "there is no topic \"{topic}\" yet: create it, or let the broker create topics"
                )),
            }
        });
        let count = asked
            .await
            .map_err(|error| format!("asking the broker was broken off: {error}"))??;
        if let Some(create) = self.create
            && create.partitions != count
            && !self.compared.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(
                topic = self.name,
                partitions = count,
                asked_for = create.partitions,
                "the topic has another number of partitions than createTopic says; it is used as it is"
            );
        }
        Ok(count)
    }

    /// Says it where the topic's timestamps are not the broker's. Not knowing it, for want of a right, is no harm.
    async fn compare_timestamps(&self, admin: &AdminClient<Context>) {
        if self.compared.load(Ordering::Relaxed) {
            return;
        }
        let options = AdminOptions::new().request_timeout(Some(ASK));
        let described = admin
            .describe_configs([&ResourceSpecifier::Topic(&self.name)], &options)
            .await;
        let found = match described.map(|all| all.into_iter().next()) {
            Ok(Some(Ok(resource))) => resource.get(TIMESTAMPS).and_then(|entry| entry.value.clone()),
            other => {
                tracing::debug!(topic = self.name, ?other, "the topic's settings are not known");
                None
            }
        };
        if let Some(found) = found.filter(|found| found != "LogAppendTime") {
            self.compared.store(true, Ordering::Relaxed);
            tracing::warn!(
                topic = self.name,
                found,
                "the topic's {TIMESTAMPS} is not LogAppendTime, as createTopic makes it: its retention goes by the poller's clock; it is used as it is"
            );
        }
    }
}

/// A client that is ended on a thread that may block: its end waits for threads of its own, a tenth of a second and more,
/// and the thread of whoever asks polls meters.
struct EndedElsewhere(Option<AdminClient<Context>>);

impl Drop for EndedElsewhere {
    fn drop(&mut self) {
        let admin = self.0.take();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || drop(admin));
        }
    }
}

/// What a failed question says, without the question.
fn cause(error: &KafkaError) -> String {
    match error.rdkafka_error_code() {
        Some(code) => sentence(code),
        None => error.to_string(),
    }
}

fn is_forbidden(code: RDKafkaRespErr) -> bool {
    RDKafkaErrorCode::from(code) == RDKafkaErrorCode::TopicAuthorizationFailed
}
