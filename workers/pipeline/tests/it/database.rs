//! A place in the real database for one test.

use std::path::PathBuf;

use corrente_config::{
    PipelineConfig,
    pipeline::{Hypertable, PostgresConnection, SinkConfig},
};
use corrente_pipeline::sink::postgres::PostgresSink;
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

use crate::support::{config, unique, wait};

/// A schema and a pipeline of a test's own, and a look at them from outside.
pub struct Database {
    pub client: Client,
    pub schema: String,
    pub pipeline: String,
    pub folder: TempDir,
}

pub fn url() -> String {
    std::env::var("CORRENTE_TEST_POSTGRES").expect("CORRENTE_TEST_POSTGRES names no PostgreSQL")
}

pub async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

impl Database {
    pub async fn new() -> Self {
        Self::at(&url()).await
    }

    pub async fn at(url: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("url"), format!("{url}\n")).unwrap();
        Self {
            client: connect(url).await,
            schema: unique("s"),
            pipeline: unique("p"),
            folder,
        }
    }

    pub fn url_file(&self) -> PathBuf {
        self.folder.path().join("url")
    }

    pub fn config(&self, topic: &str, hypertable: Option<Hypertable>) -> PipelineConfig {
        let sink = SinkConfig::Postgres {
            connection: PostgresConnection {
                url_file: self.url_file(),
                ..PostgresConnection::default()
            },
            schema: self.schema.clone(),
            table: "readings".to_owned(),
            hypertable,
            tables: Box::default(),
        };
        config(&self.pipeline, &[topic], sink)
    }

    pub fn sink(&self, config: &PipelineConfig) -> PostgresSink {
        PostgresSink::new(config).unwrap()
    }

    pub fn table(&self) -> String {
        format!("{}.readings", self.schema)
    }

    pub async fn text(&self, sql: &str) -> String {
        let rows = self.client.simple_query(sql).await.unwrap();
        rows.iter()
            .filter_map(|message| match message {
                tokio_postgres::SimpleQueryMessage::Row(row) => Some(
                    (0..row.len())
                        .map(|i| row.get(i).unwrap_or("-"))
                        .collect::<Vec<_>>()
                        .join("|"),
                ),
                _ => None,
            })
            .collect::<Vec<_>>()
            .join(",")
    }

    /// Rows in the table; 0 before it is made.
    pub async fn count(&self) -> u64 {
        match self
            .client
            .query_one(&format!("SELECT count(*) FROM {}", self.table()), &[])
            .await
        {
            Ok(row) => u64::try_from(row.get::<_, i64>(0)).unwrap(),
            // It is not there yet.
            Err(error)
                if error
                    .code()
                    .is_some_and(|code| ["42P01", "3F000"].contains(&code.code())) =>
            {
                0
            }
            Err(error) => panic!("{error:?}"),
        }
    }

    pub async fn wait_for(&self, rows: u64) {
        wait(&format!("{rows} rows"), async || self.count().await >= rows).await;
    }

    /// Asserts that every (stream, seq) is in the table once: `streams` streams of `each`, from 0.
    pub async fn assert_exactly(&self, streams: u64, each: u64) {
        let table = self.table();
        let doubled = self
            .text(&format!(
                "SELECT stream, seq, count(*) FROM {table} GROUP BY 1, 2 HAVING count(*) > 1 LIMIT 5"
            ))
            .await;
        assert_eq!(doubled, "", "stored twice");
        let found = self
            .text(&format!(
                "SELECT stream FROM {table} GROUP BY 1 \
                 HAVING count(*) = {each} AND min(seq) = 0 AND max(seq) = {each} - 1 AND sum(voltage) = sum(seq + 0.5)"
            ))
            .await;
        assert_eq!(found.split(',').count() as u64, streams, "whole streams: {found}");
        assert_eq!(self.count().await, streams * each);
    }

    pub async fn dead_letters(&self) -> String {
        self.text(&format!(
            "SELECT partition, message_offset, sqlstate, column_name FROM corrente.dead_letters \
             WHERE pipeline = 'test/{}' ORDER BY 1, 2",
            self.pipeline
        ))
        .await
    }

    /// Takes away what the upkeep has noted of the test's tables.
    pub async fn forget_tables(&self) {
        for table in ["rollups", "rollup_log", "ledgers"] {
            let schema = &self.schema;
            self.client
                .batch_execute(&format!(
                    "DO $$ BEGIN IF to_regclass('corrente.{table}') IS NOT NULL THEN \
                     DELETE FROM corrente.{table} WHERE table_schema = '{schema}'; END IF; END $$"
                ))
                .await
                .unwrap();
        }
    }

    /// Takes away what is kept of a pipeline.
    pub async fn forget(&self, pipeline: &str) {
        self.client
            .batch_execute(&format!(
                "DELETE FROM corrente.offsets WHERE pipeline = 'test/{pipeline}'; \
                 DELETE FROM corrente.streams WHERE pipeline = 'test/{pipeline}'; \
                 DELETE FROM corrente.dead_letters WHERE pipeline = 'test/{pipeline}'"
            ))
            .await
            .unwrap();
    }

    /// Leaves the database as it was.
    pub async fn drop(self) {
        let pipeline = &self.pipeline;
        self.client
            .batch_execute(&format!(
                "DROP SCHEMA IF EXISTS {} CASCADE; \
                 DELETE FROM corrente.offsets WHERE pipeline = 'test/{pipeline}'; \
                 DELETE FROM corrente.streams WHERE pipeline = 'test/{pipeline}'; \
                 DELETE FROM corrente.dead_letters WHERE pipeline = 'test/{pipeline}'",
                self.schema
            ))
            .await
            .unwrap();
    }
}
