//! What is done about dead letters once they are in the database: they are replayed where somebody asks for it,
//! published to the dead-letter topic, and removed when their time is over.
//!
//! 1. One worker of a pipeline does it at a time: who holds a lock of the database. The others look now and then
//!    whether it is free, without keeping a connection.
//! 2. Letters are published in the order of their numbers, and how far that has come is kept in the database, per
//!    partition that they are from: there one batch follows another, so numbers rise with the commits. A worker that
//!    dies in between publishes some once more, with the same headers: at least once, and told apart by
//!    `x-dead-letter-id`.
//! 3. A letter that the broker refuses for good, such as one that is too large for it, stays in the table alone.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use corrente_config::{
    PipelineConfig,
    pipeline::{PostgresConnection, SinkConfig},
};
use corrente_runtime::kafka::{Access, Settings};
use futures::future::join_all;
use rdkafka::{
    ClientConfig, ClientContext,
    config::RDKafkaLogLevel,
    error::KafkaError,
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord},
    types::RDKafkaErrorCode,
    util::Timeout,
};
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;

use crate::{
    sink::{
        SinkError,
        postgres::{
            PostgresSink,
            letters::{COLUMNS, Letter, expire},
            session::{connect, describe},
        },
    },
    state::PipelineState,
};

/// How often the table is looked at.
const LOOK: Duration = Duration::from_secs(2);
/// How often the others look whether the lock is free, and how long trouble is given.
const AGAIN: Duration = Duration::from_secs(10);
/// How often what is old is removed.
const EXPIRE: Duration = Duration::from_secs(3600);
/// Most letters that are published in one go.
const PUBLISHED: i64 = 500;
/// How long a letter may wait for room in the producer's queue.
const QUEUE: Timeout = Timeout::After(Duration::from_secs(10));

/// What librdkafka says of its own accord. What matters of it comes back with the letter, and is told once.
struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
    }
}

/// The worker's desk for dead letters.
pub struct Desk {
    connection: PostgresConnection,
    pipeline: String,
    topic: Option<String>,
    retention_millis: Option<i64>,
    producer: Option<FutureProducer<Quiet>>,
    access: Access,
    sink: PostgresSink,
    state: Arc<PipelineState>,
}

impl Desk {
    /// The desk of a pipeline that stores through `sink`; `None` where it stores elsewhere than in PostgreSQL.
    ///
    /// # Errors
    /// Where the Kafka client cannot be made.
    pub fn new(
        config: &PipelineConfig,
        access: &Access,
        settings: &Settings,
        sink: PostgresSink,
        state: Arc<PipelineState>,
    ) -> anyhow::Result<Option<Self>> {
        let SinkConfig::Postgres { connection, .. } = &config.sink else {
            return Ok(None);
        };
        let topic = config.once.dead_letter_topic.clone();
        let made = topic
            .as_ref()
            .map(|_| client_config(settings).create_with_context(Quiet));
        let producer = made
            .transpose()
            .map_err(|error| anyhow::anyhow!(access.explain_unusable(&error.to_string())))?;
        let retention = config.once.dead_letter_retention;
        Ok(Some(Self {
            connection: connection.clone(),
            pipeline: format!("{}/{}", config.namespace, config.name),
            topic,
            retention_millis: retention.map(|time| i64::try_from(time.as_millis()).unwrap_or(i64::MAX)),
            producer,
            access: access.clone(),
            sink,
            state,
        }))
    }

    /// Works until it is dropped.
    pub async fn run(mut self) {
        loop {
            if let Err(reason) = self.serve().await {
                self.state.letters_failed(&reason);
            }
            sleep(AGAIN).await;
        }
    }

    /// Works for as long as the lock is held; returns at once where another worker holds it.
    async fn serve(&mut self) -> Result<(), String> {
        let application = format!("corrente-letters {}", self.pipeline);
        let client = connect(&self.connection, &application)
            .await
            .map_err(|error| error.to_string())?;
        let lock = "SELECT to_regclass('corrente.dead_letters_published') IS NOT NULL \
                    AND pg_try_advisory_lock(hashtextextended($1, 0))";
        let name = format!("corrente dead letters {}", self.pipeline);
        let held = client.query_one(lock, &[&name]).await.map_err(said)?;
        if !held.try_get(0).map_err(said)? {
            return Ok(());
        }
        let mut expired: Option<Instant> = None;
        loop {
            let replayed = self.replay().await?;
            let published = self.publish(&client).await?;
            self.state.letters_answered();
            if expired.is_none_or(|at| at.elapsed() > EXPIRE) {
                self.expire(&client).await?;
                expired = Some(Instant::now());
            }
            if !replayed && !published {
                sleep(LOOK).await;
            }
        }
    }

    /// Replays letters; whether there were any.
    async fn replay(&mut self) -> Result<bool, String> {
        match self.sink.replay().await {
            Ok((0, _)) => Ok(false),
            Ok((seen, stored)) => {
                tracing::info!(seen, stored, "dead letters were replayed");
                metrics::counter!("corrente_pipeline_dead_letters_replayed_total").increment(stored);
                Ok(true)
            }
            // They are looked for anew.
            Err(SinkError::Fenced(_)) => Ok(true),
            Err(error) => Err(format!("failed to replay dead letters: {error}")),
        }
    }

    async fn expire(&mut self, client: &Client) -> Result<(), String> {
        let Some(millis) = self.retention_millis else {
            return Ok(());
        };
        let removed = expire(client, &self.pipeline, millis, self.topic.is_some()).await;
        let removed = removed.map_err(said)?;
        if removed > 0 {
            tracing::info!(removed, "dead letters were removed after their time");
        }
        Ok(())
    }

    /// Publishes letters; whether there were any.
    async fn publish(&mut self, client: &Client) -> Result<bool, String> {
        let (Some(topic), Some(producer)) = (&self.topic, &self.producer) else {
            return Ok(false);
        };
        let letters = unpublished(client, &self.pipeline).await.map_err(said)?;
        let sent = letters.iter().map(|letter| async move {
            let payload: &[u8] = &letter.payload;
            let record = FutureRecord::to(topic).payload(payload).headers(headers(letter));
            let record: FutureRecord<'_, [u8], [u8]> = match &letter.key {
                Some(key) => record.key(key),
                None => record,
            };
            producer
                .send(record, QUEUE)
                .await
                .map(drop)
                .map_err(|(error, _)| error)
        });
        let mut outcomes = BTreeMap::new();
        let mut trouble = None;
        for (letter, outcome) in letters.iter().zip(join_all(sent).await) {
            if let Err(error) = outcome {
                if is_for_good(&error) {
                    tracing::warn!(id = letter.id, %error, "a dead letter stays in the table alone: the broker refuses it");
                    metrics::counter!("corrente_pipeline_dead_letters_unpublished_total").increment(1);
                } else {
                    trouble.get_or_insert(error);
                }
            } else {
                metrics::counter!("corrente_pipeline_dead_letters_published_total").increment(1);
            }
            if trouble.is_none() {
                outcomes.insert((&letter.cluster, &letter.topic, letter.partition), letter.id);
            }
        }
        keep(client, &self.pipeline, &outcomes).await.map_err(said)?;
        match trouble {
            None => Ok(!letters.is_empty()),
            Some(error) => {
                let said = error.to_string();
                let said = self.access.explain(&said).unwrap_or(said);
                Err(format!(
                    "failed to publish dead letters to the topic {topic}: {said}"
                ))
            }
        }
    }
}

fn said(error: tokio_postgres::Error) -> String {
    format!("failed to look after the dead letters: {}", describe(&error))
}

fn client_config(settings: &Settings) -> ClientConfig {
    let mut client = settings.client_config();
    client
        .set("client.id", "corrente-letters")
        .set("enable.idempotence", "true")
        .set("partitioner", "murmur2_random")
        .set("linger.ms", "20")
        .set("message.timeout.ms", "30000")
        .set("reconnect.backoff.max.ms", "5000")
        .set("socket.keepalive.enable", "true")
        // Letters wait in the database, and few at a time are sent.
        .set("queue.buffering.max.kbytes", "65536");
    client
}

fn is_for_good(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidRecord)
    )
}

/// Where the letter came from and what is wrong with it, the same each time.
fn headers(letter: &Letter) -> OwnedHeaders {
    let (id, partition, offset) = (
        format!("{}/{}", letter.pipeline, letter.id),
        letter.partition.to_string(),
        letter.offset.to_string(),
    );
    let all = [
        ("x-dead-letter-id", Some(id.as_str())),
        ("x-pipeline", Some(letter.pipeline.as_str())),
        ("x-origin-cluster", Some(letter.cluster.as_str())),
        ("x-origin-topic", Some(letter.topic.as_str())),
        ("x-origin-partition", Some(partition.as_str())),
        ("x-origin-offset", Some(offset.as_str())),
        ("x-sqlstate", letter.sqlstate.as_deref()),
        ("x-column", letter.column.as_deref()),
        ("x-reason", Some(letter.reason.as_str())),
    ];
    all.into_iter()
        .filter(|(_, value)| value.is_some())
        .fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value })
        })
}

/// The oldest letters that are not published yet.
async fn unpublished(client: &Client, pipeline: &str) -> Result<Vec<Letter>, tokio_postgres::Error> {
    let sql = format!(
        "SELECT {COLUMNS} FROM corrente.offsets o \
         LEFT JOIN corrente.dead_letters_published p USING (pipeline, cluster, topic, partition) \
         CROSS JOIN LATERAL ( \
             SELECT * FROM corrente.dead_letters d \
             WHERE d.pipeline = o.pipeline AND d.cluster = o.cluster AND d.topic = o.topic \
             AND d.partition = o.partition AND d.id > coalesce(p.id, 0) ORDER BY d.id LIMIT {PUBLISHED}) l \
         WHERE o.pipeline = $1 ORDER BY l.id LIMIT {PUBLISHED}"
    );
    let rows = client.query(&sql, &[&pipeline]).await?;
    rows.iter().map(Letter::of).collect()
}

/// Keeps how far each partition's letters are published.
async fn keep(
    client: &Client,
    pipeline: &str,
    ids: &BTreeMap<(&String, &String, i32), i64>,
) -> Result<(), tokio_postgres::Error> {
    if ids.is_empty() {
        return Ok(());
    }
    let clusters: Vec<&str> = ids.keys().map(|(cluster, _, _)| cluster.as_str()).collect();
    let topics: Vec<&str> = ids.keys().map(|(_, topic, _)| topic.as_str()).collect();
    let partitions: Vec<i32> = ids.keys().map(|(_, _, partition)| *partition).collect();
    let ids: Vec<i64> = ids.values().copied().collect();
    client
        .execute(
            "INSERT INTO corrente.dead_letters_published (pipeline, cluster, topic, partition, id) \
             SELECT $1, * FROM unnest($2::text[], $3::text[], $4::int[], $5::bigint[]) \
             ON CONFLICT (pipeline, cluster, topic, partition) \
             DO UPDATE SET id = greatest(corrente.dead_letters_published.id, excluded.id)",
            &[&pipeline, &clusters, &topics, &partitions, &ids],
        )
        .await?;
    Ok(())
}
