//! Alerts on their way out: from the database to a Kafka topic and to an Alertmanager.
//!
//! Each round takes what was not told yet, tells it, and writes down that it was told, in one transaction: what another
//! worker is telling is passed over, and what was told but not written down is told again, under the same id. An
//! Alertmanager forgets what it does not hear of, so an alert that goes on is posted again each minute.

use std::time::Duration;

use corrente_config::pipeline::PostgresConnection;
use corrente_record::Timestamp;
use metrics::counter;
use rdkafka::{
    error::KafkaError,
    producer::{FutureProducer, FutureRecord},
};
use tokio_util::sync::CancellationToken;

use super::message::Alert;
use crate::sink::postgres::outbox::Outbox;

/// How often there is a look at what is to be told.
const ROUND: Duration = Duration::from_secs(1);
/// The longest pause after a failure.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long a broker or an Alertmanager may take: less than the database leaves a transaction idle.
const ANSWER: Duration = Duration::from_secs(10);
/// How long an Alertmanager is told that an alert goes on: five times the time between two posts.
const GOES_ON: Duration = Duration::from_secs(5 * 60);

/// An alert with what there is to tell of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Telling {
    /// The alert.
    pub alert: Alert,
    /// Whether it was told already that it began.
    pub begun: bool,
}

/// Somewhere alerts go.
pub trait Channel: Send {
    /// Which of the marks in the database are this channel's.
    fn kind(&self) -> Kind;

    /// Tells alerts; all of them are told, or the whole is tried again.
    ///
    /// # Errors
    /// Why not, as a sentence.
    fn tell(&mut self, alerts: &[Telling]) -> impl Future<Output = Result<(), String>> + Send;
}

/// The sorts of channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A Kafka topic.
    Topic,
    /// An Alertmanager.
    Alertmanager,
}

impl Kind {
    /// The word in logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Topic => "kafka",
            Self::Alertmanager => "alertmanager",
        }
    }
}

/// A topic.
pub struct Topic {
    producer: FutureProducer,
    topic: String,
}

impl Topic {
    /// The topic, in the cluster that `config` leads to.
    ///
    /// # Errors
    /// Where the client cannot be made.
    pub fn new(mut config: rdkafka::ClientConfig, topic: &str) -> Result<Self, KafkaError> {
        config
            .set("enable.idempotence", "true")
            .set("partitioner", "murmur2_random")
            .set("message.timeout.ms", ANSWER.as_millis().to_string());
        Ok(Self {
            producer: config.create()?,
            topic: topic.to_owned(),
        })
    }
}

impl Channel for Topic {
    fn kind(&self) -> Kind {
        Kind::Topic
    }

    async fn tell(&mut self, alerts: &[Telling]) -> Result<(), String> {
        let mut messages = vec![];
        for Telling { alert, begun } in alerts {
            if !begun {
                messages.push((&alert.meter, alert.to_kafka(false)));
            }
            if alert.ended.is_some() {
                messages.push((&alert.meter, alert.to_kafka(true)));
            }
        }
        // All are on their way before the first answer is awaited; the producer keeps their order.
        let mut answers = vec![];
        for (key, payload) in &messages {
            let record = FutureRecord::to(&self.topic).key(key.as_str()).payload(payload);
            answers.push(
                self.producer
                    .send_result(record)
                    .map_err(|(error, _)| format!("failed to publish an alert to {}: {error}", self.topic))?,
            );
        }
        for answer in answers {
            match answer.await {
                Ok(Ok(_)) => {}
                Ok(Err((error, _))) => {
                    return Err(format!("failed to publish an alert to {}: {error}", self.topic));
                }
                Err(_) => return Err("the producer ended".to_owned()),
            }
        }
        Ok(())
    }
}

/// An Alertmanager.
pub struct Alertmanager {
    agent: ureq::Agent,
    url: String,
}

impl Alertmanager {
    /// The Alertmanager at an address.
    #[must_use]
    pub fn new(url: &str) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(ANSWER))
            .http_status_as_error(false)
            .user_agent(concat!("corrente-pipeline/", env!("CARGO_PKG_VERSION")));
        Self {
            agent: config.build().into(),
            url: format!("{}/api/v2/alerts", url.trim_end_matches('/')),
        }
    }
}

impl Channel for Alertmanager {
    fn kind(&self) -> Kind {
        Kind::Alertmanager
    }

    async fn tell(&mut self, alerts: &[Telling]) -> Result<(), String> {
        let until = Timestamp(Timestamp::now().0.saturating_add(GOES_ON.as_millis() as i64));
        let entries: Vec<_> = alerts
            .iter()
            .map(|telling| telling.alert.to_alertmanager(until))
            .collect();
        let body = serde_json::Value::Array(entries).to_string();
        let (agent, url) = (self.agent.clone(), self.url.clone());
        let failed = |why: String| format!("failed to post alerts to {}: {why}", self.url);
        // The client blocks, once a second at most.
        let answer = tokio::task::spawn_blocking(move || {
            let mut response = agent
                .post(&url)
                .header("content-type", "application/json")
                .send(body)
                .map_err(|error| error.to_string())?;
            if response.status().is_success() {
                return Ok(());
            }
            let text = response.body_mut().read_to_string().unwrap_or_default();
            let text: String = text.trim().chars().take(200).collect();
            Err(format!("it answers {}: {text}", response.status()))
        });
        match answer.await {
            Ok(told) => told.map_err(failed),
            Err(_) => Err(failed("the worker is ending".to_owned())),
        }
    }
}

/// Tells a pipeline's alerts until `shutdown`.
pub async fn deliver<C: Channel>(
    mut channel: C,
    connection: PostgresConnection,
    pipeline: String,
    shutdown: CancellationToken,
) {
    let kind = channel.kind().as_str();
    let mut outbox = Outbox::new(connection, pipeline);
    let mut pause = ROUND;
    let work = async {
        loop {
            match outbox.round(&mut channel).await {
                Ok(told) => {
                    counter!("corrente_pipeline_alerts_told_total", "channel" => kind).increment(told as u64);
                    pause = ROUND;
                    if told > 0 {
                        continue;
                    }
                }
                Err(reason) => {
                    tracing::warn!(channel = kind, reason, "alerts wait");
                    counter!("corrente_pipeline_alert_failures_total", "channel" => kind).increment(1);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
            tokio::time::sleep(pause).await;
        }
    };
    tokio::select! {
        () = work => {}
        () = shutdown.cancelled() => {}
    }
}
