//! SQLite, for the whole chain in one process.
//!
//! The same table as in PostgreSQL, in one file, with the worker's own tables beside it
//! (`corrente_offsets`, `corrente_streams`, `corrente_dead_letters`), and one transaction for rows, marks
//! and offset. Windows and alerts are made in it too: [`windows`], [`alerts`]. Times are text as in the record, so that they sort and read well; unsigned numbers beyond
//! 63 bits are digits in a column without affinity.
//!
//! A file outlives the in-process broker whose offsets it holds. Each broker has a cluster name of its own,
//! so the next run starts at its beginning; what a spool sends again is known by stream and seq, which do
//! not depend on the broker.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use corrente_config::{PipelineConfig, pipeline::SinkConfig};
use corrente_crds::pipeline::ColumnType;
use corrente_record::View;
use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior, params};

use crate::{
    assignment::{Fingerprint, Position},
    batch::{Batch, Place},
    sink::{Claimed, Sink, SinkError, Stored},
    transform::Chain,
};

mod alerts;
mod table;
mod windows;

use self::{alerts::Thresholds, windows::Windows};

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS corrente_offsets (
        pipeline TEXT NOT NULL, cluster TEXT NOT NULL, topic TEXT NOT NULL, partition INTEGER NOT NULL,
        epoch INTEGER NOT NULL, next_offset INTEGER,
        last_timestamp INTEGER, last_key_crc INTEGER, last_payload_crc INTEGER,
        PRIMARY KEY (pipeline, cluster, topic, partition)
    );
    CREATE TABLE IF NOT EXISTS corrente_streams (
        pipeline TEXT NOT NULL, topic TEXT NOT NULL, partition INTEGER NOT NULL, stream TEXT NOT NULL,
        seq INTEGER NOT NULL,
        PRIMARY KEY (pipeline, topic, partition, stream)
    );
    CREATE TABLE IF NOT EXISTS corrente_dead_letters (
        id INTEGER PRIMARY KEY, at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
        pipeline TEXT NOT NULL, cluster TEXT NOT NULL, topic TEXT NOT NULL, partition INTEGER NOT NULL,
        message_offset INTEGER NOT NULL, key BLOB, payload BLOB,
        sqlstate TEXT, column_name TEXT, reason TEXT NOT NULL
    );
";

/// The SQLite sink.
pub struct SqliteSink {
    file: Arc<Mutex<File>>,
}

struct File {
    path: PathBuf,
    pipeline: String,
    table: String,
    declared: BTreeMap<String, ColumnType>,
    chain: Chain,
    windows: Option<Windows>,
    thresholds: Option<Thresholds>,
    connection: Option<Connection>,
}

impl SqliteSink {
    /// The sink of a pipeline; `None` where the configuration names another kind.
    #[must_use]
    pub fn new(config: &PipelineConfig) -> Option<Self> {
        let SinkConfig::Sqlite { path, table } = &config.sink else {
            return None;
        };
        Some(Self {
            file: Arc::new(Mutex::new(File {
                path: path.clone(),
                pipeline: format!("{}/{}", config.namespace, config.name),
                table: table.clone(),
                declared: config.columns.clone(),
                chain: Chain::of(config),
                windows: Windows::new(config, table),
                thresholds: Thresholds::new(config),
                connection: None,
            })),
        })
    }

    /// Runs a job on a thread that may block. After a failure the file is opened anew.
    async fn run<T: Send + 'static>(
        &self,
        what: &'static str,
        job: impl FnOnce(&mut File, &mut Connection) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, SinkError> {
        let file = self.file.clone();
        let done = tokio::task::spawn_blocking(move || {
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            let mut connection = file.open()?;
            let result = job(&mut file, &mut connection);
            file.connection = Some(connection).filter(|_| result.is_ok());
            result
        })
        .await;
        match done {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(Failure::Fenced(reason))) => Err(SinkError::Fenced(reason)),
            Ok(Err(Failure::Sqlite(error))) => Err(SinkError::Retry(format!("failed to {what}: {error}"))),
            Ok(Err(Failure::Folder(error))) => Err(SinkError::Retry(format!(
                "failed to make the folder of the database: {error}"
            ))),
            Err(error) => Err(SinkError::Retry(format!("failed to {what}: {error}"))),
        }
    }
}

enum Failure {
    Fenced(String),
    Sqlite(rusqlite::Error),
    Folder(std::io::Error),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl File {
    fn open(&mut self) -> Result<Connection, Failure> {
        if let Some(connection) = self.connection.take() {
            return Ok(connection);
        }
        if let Some(folder) = self.path.parent() {
            std::fs::create_dir_all(folder).map_err(Failure::Folder)?;
        }
        let mut connection = Connection::open(&self.path)?;
        connection.busy_timeout(std::time::Duration::from_secs(5))?;
        // Readers do not wait for the writer, nor it for them.
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(TABLES)?;
        table::create(&transaction, &self.table, &self.declared)?;
        if let Some(windows) = &mut self.windows {
            windows.create(&transaction)?;
        }
        if let Some(thresholds) = &self.thresholds {
            thresholds.create(&transaction)?;
        }
        transaction.commit()?;
        Ok(connection)
    }

    fn claim(&self, connection: &mut Connection, place: &Place) -> Result<Claimed, Failure> {
        let (topic, partition) = (&*place.partition.topic, place.partition.partition);
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // Offsets of an earlier run's broker will never be asked for again.
        transaction.execute(
            "DELETE FROM corrente_offsets WHERE pipeline = ?1 AND topic = ?2 AND partition = ?3 AND cluster <> ?4",
            params![self.pipeline, topic, partition, &*place.cluster],
        )?;
        let crc = |column: Option<i64>| column.and_then(|crc| u32::try_from(crc).ok());
        let (epoch, position) = transaction.query_row(
            "INSERT INTO corrente_offsets (pipeline, cluster, topic, partition, epoch) VALUES (?1, ?2, ?3, ?4, 1) \
             ON CONFLICT DO UPDATE SET epoch = epoch + 1 \
             RETURNING epoch, next_offset, last_timestamp, last_key_crc, last_payload_crc",
            params![self.pipeline, &*place.cluster, topic, partition],
            |row| {
                let last = Fingerprint {
                    timestamp: row.get(2)?,
                    key_crc: crc(row.get(3)?),
                    payload_crc: crc(row.get(4)?),
                };
                let next: Option<i64> = row.get(1)?;
                Ok((row.get(0)?, next.map(|next_offset| Position { next_offset, last: Some(last) })))
            },
        )?;
        let marks = transaction
            .prepare("SELECT stream, seq FROM corrente_streams WHERE pipeline = ?1 AND topic = ?2 AND partition = ?3")?
            .query_map(params![self.pipeline, topic, partition], |row| {
                Ok((row.get(0)?, u64::try_from(row.get::<_, i64>(1)?).unwrap_or(0)))
            })?
            .collect::<Result<HashMap<String, u64>, _>>()?;
        transaction.commit()?;
        Ok(Claimed {
            epoch,
            position,
            marks,
        })
    }

    fn store(&mut self, connection: &mut Connection, batch: &Batch) -> Result<Stored, Failure> {
        let (cluster, topic) = (&*batch.place.cluster, &*batch.place.partition.topic);
        let partition = batch.place.partition.partition;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let row: Option<(i64, Option<i64>)> = transaction
            .query_row(
                "SELECT epoch, next_offset FROM corrente_offsets \
                 WHERE pipeline = ?1 AND cluster = ?2 AND topic = ?3 AND partition = ?4",
                params![self.pipeline, cluster, topic, partition],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .optional()?;
        match row {
            Some((epoch, next)) if epoch == batch.epoch && next == batch.previous => {}
            _ => return Err(Failure::Fenced("another worker has taken it".to_owned())),
        }
        let pass = || batch.rows(&self.chain);
        let (windows, thresholds) = (&mut self.windows, &mut self.thresholds);
        if let Some(windows) = windows {
            windows.begin();
        }
        if let Some(thresholds) = thresholds {
            thresholds.begin();
        }
        let stored = |row: &View<'_>| {
            if let Some(windows) = windows {
                windows.observe(row);
            }
            if let Some(thresholds) = thresholds {
                thresholds.observe(row);
            }
        };
        let (rows, mut letters, mut sorted) =
            table::insert(&transaction, &self.table, &self.declared, pass, stored)?;
        if let Some(windows) = &mut self.windows {
            windows.write(&transaction, &table::layout(&transaction, &self.table)?)?;
        }
        if let Some(thresholds) = &mut self.thresholds {
            thresholds.write(&transaction)?;
        }
        letters.append(&mut sorted.dead);
        letters.sort_by_key(|letter| letter.origin.offset);
        for letter in &letters {
            let (origin, refusal) = (&letter.origin, &letter.refusal);
            tracing::warn!(
                partition = %batch.place.partition,
                offset = origin.offset,
                column = refusal.column,
                reason = refusal.reason,
                "set aside in corrente_dead_letters"
            );
            transaction.execute(
                "INSERT INTO corrente_dead_letters (pipeline, cluster, topic, partition, message_offset, key, payload, \
                 column_name, reason) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
                params![
                    self.pipeline,
                    cluster,
                    topic,
                    partition,
                    origin.offset,
                    origin.key,
                    origin.payload,
                    refusal.column,
                    refusal.reason
                ],
            )?;
        }
        for (stream, seq) in &sorted.marks {
            transaction.execute(
                "INSERT INTO corrente_streams (pipeline, topic, partition, stream, seq) VALUES (?1, ?2, ?3, ?4, ?5) \
                 ON CONFLICT DO UPDATE SET seq = max(seq, excluded.seq)",
                params![self.pipeline, topic, partition, stream, i64::try_from(*seq).unwrap_or(i64::MAX)],
            )?;
        }
        transaction.execute(
            "UPDATE corrente_offsets SET next_offset = ?5, last_timestamp = ?6, last_key_crc = ?7, \
             last_payload_crc = ?8 WHERE pipeline = ?1 AND cluster = ?2 AND topic = ?3 AND partition = ?4",
            params![
                self.pipeline,
                cluster,
                topic,
                partition,
                batch.next_offset,
                batch.last.timestamp,
                batch.last.key_crc,
                batch.last.payload_crc
            ],
        )?;
        transaction.commit()?;
        Ok(Stored::new(rows, letters.len() as u64, sorted))
    }
}

impl Sink for SqliteSink {
    async fn open(&mut self) -> Result<(), SinkError> {
        self.run("open the database", |_, _| Ok(())).await
    }

    async fn claim(&mut self, place: &Place) -> Result<Claimed, SinkError> {
        let place = place.clone();
        self.run("claim a partition", move |file, connection| {
            file.claim(connection, &place)
        })
        .await
    }

    async fn store(&mut self, batch: &Arc<Batch>) -> Result<Stored, SinkError> {
        let batch = batch.clone();
        self.run("store a batch", move |file, connection| {
            file.store(connection, &batch)
        })
        .await
    }
}
