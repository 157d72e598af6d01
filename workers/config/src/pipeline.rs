//! The pipeline worker's configuration file: what to read, where to store it, and the columns that the
//! profiles behind the topics declare.
//!
//! It is JSON, under the key [`FILE`] of an immutable ConfigMap. The database's address is not in it: it
//! comes from a mounted Secret.

use std::{collections::BTreeMap, path::PathBuf};

use corrente_crds::{
    common::KafkaCluster,
    pipeline::{Batch, ColumnType},
    sinks::{AmqpSink, CassandraSink, InfluxdbSink, MongodbSink, MqttSink},
    tables::SslMode,
};
use serde::{Deserialize, Serialize};

use crate::{
    alerts::AlertsConfig, derived::DerivedConfig, once::OnceConfig, tables::TablesConfig, transform::Step,
};

/// The file's name in the ConfigMap, and under the pod's configuration folder.
pub const FILE: &str = "pipeline.json";

/// The configuration of every pod of a TelemetryPipeline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PipelineConfig {
    /// The TelemetryPipeline's namespace.
    pub namespace: String,
    /// The TelemetryPipeline's name.
    pub name: String,
    /// The Kafka cluster.
    pub kafka: KafkaCluster,
    /// The topics.
    pub topics: Vec<String>,
    /// The consumer group.
    pub group: String,
    /// Where the rows go.
    pub sink: SinkConfig,
    /// The types of the metrics' columns, by metric.
    pub columns: BTreeMap<String, ColumnType>,
    /// What is done to each record before it is stored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub transforms: Vec<Step>,
    /// What is derived from the stored readings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub derived: Option<DerivedConfig>,
    /// The thresholds to watch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alerts: Option<AlertsConfig>,
    /// How much is stored in one transaction.
    pub batch: Batch,
    /// What makes a record be stored once.
    #[serde(default, skip_serializing_if = "OnceConfig::is_default")]
    pub once: OnceConfig,
}

/// Where the rows go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SinkConfig {
    /// PostgreSQL, with TimescaleDB or without.
    #[serde(rename_all = "camelCase")]
    Postgres {
        /// The way to the database.
        #[serde(flatten)]
        connection: PostgresConnection,
        /// The schema.
        schema: String,
        /// The table.
        table: String,
        /// Set where the table is to be a hypertable.
        hypertable: Option<Hypertable>,
        /// How it is laid out and looked after.
        #[serde(default, skip_serializing_if = "TablesConfig::is_default")]
        tables: Box<TablesConfig>,
    },
    /// InfluxDB.
    Influxdb(InfluxdbSink),
    /// MongoDB.
    Mongodb(MongodbSink),
    /// Cassandra.
    Cassandra(CassandraSink),
    /// MQTT.
    Mqtt(MqttSink),
    /// AMQP.
    Amqp(AmqpSink),
    /// A SQLite file, for `corrente local`.
    Sqlite {
        /// The file.
        path: PathBuf,
        /// The table.
        table: String,
    },
}

/// The way to a PostgreSQL: files that Secrets are mounted as, read at each connect.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PostgresConnection {
    /// The file that holds the connection URL.
    pub url_file: PathBuf,
    /// Whether the connection is in TLS, and what is looked at then, where the resource says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssl_mode: Option<SslMode>,
    /// The file with the authorities that the server's certificate must come from, in PEM form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// The folder with `tls.crt` and `tls.key`, which are shown to the server, in PEM form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<PathBuf>,
}

/// How a hypertable is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hypertable {
    /// The length of a chunk in milliseconds; TimescaleDB's own default where it is not given.
    pub chunk_interval_millis: Option<u64>,
}
