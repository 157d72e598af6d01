//! `TelemetryPipeline`: which topics to store, and where.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Duration,
    alerts::Alerts,
    common::{FIELD_NAME, FIELD_NAME_LENGTH, NOT_RESERVED, NOT_RESERVED_MESSAGE, PodTemplate},
    derived::Derived,
    kafka::KafkaCluster,
    once::{DeadLetter, Dedupe},
    sinks::{AmqpSink, CassandraSink, InfluxdbSink, MongodbSink, MqttSink},
    tables::{PlainTable, TimescaleTable},
    transform::Transform,
};

/// Stores the records of Kafka topics in a database, each exactly once.
#[derive(CustomResource, Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[kube(
    group = "corrente.dev",
    version = "v1alpha1",
    kind = "TelemetryPipeline",
    plural = "telemetrypipelines",
    shortname = "tpipe",
    category = "corrente",
    namespaced,
    status = "TelemetryPipelineStatus",
    derive = "PartialEq",
    validation = Rule::new("size(self.metadata.name) <= 40")
        .message("metadata.name has at most 40 characters, since the names of the pods are made from it: shorten it"),
    doc = "Stores the records of Kafka topics in a database, each exactly once.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".status.replicas"),
    printcolumn(name = "Available", type_ = "integer", json_path = ".status.readyReplicas"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].reason",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct TelemetryPipelineSpec {
    /// What is read.
    pub source: Source,
    /// Where it is stored.
    pub sink: Sink,
    /// Types of metrics that no known profile declares. A number that is declared nowhere is `float8`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 512))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub columns: Vec<Column>,
    /// What is done to each record before it is stored, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub transforms: Vec<Transform>,
    /// Energy and demand in windows of time, derived from the stored readings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub derived: Option<Derived>,
    /// Thresholds, and where their alerts go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alerts: Option<Alerts>,
    /// How much is stored in one transaction.
    #[serde(default)]
    pub batch: Batch,
    /// How a record that comes twice is known.
    #[serde(default, skip_serializing_if = "Dedupe::is_default")]
    #[schemars(extend("default" = "stream"))]
    pub dedupe: Dedupe,
    /// The columns by which `dedupe: key` knows a repeat; `meter` and `ts` where none are named. A record without
    /// one of them goes to the dead letters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 1, max = FIELD_NAME_LENGTH), regex(pattern = FIELD_NAME)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub dedupe_key: Vec<String>,
    /// What becomes of records that cannot be stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<DeadLetter>,
    /// The name that this TelemetryPipeline had before: it goes on where that one ended, and takes over what the
    /// database knows of it. Without it a pipeline of a new name begins at the oldest record of its topics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 40),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    pub renamed_from: Option<String>,
    /// How many pods share the partitions; what `kubectl scale` sets.
    #[serde(default = "crate::poller::default_one")]
    #[schemars(range(min = 0, max = 64))]
    pub replicas: i32,
    /// Stop storing: no pod runs until it is false again. Nothing is lost, the broker keeps it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspend: bool,
    /// What the pods get from the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<PodTemplate>,
}

/// What a pipeline reads.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// Kafka topics.
    pub kafka: KafkaSource,
}

/// Kafka topics to read.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct KafkaSource {
    /// The cluster.
    #[serde(flatten)]
    pub cluster: KafkaCluster,
    /// The topics.
    #[schemars(
        length(min = 1, max = 32),
        inner(length(min = 1, max = 249), regex(pattern = r"^[a-zA-Z0-9._-]+$"))
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub topics: Vec<String>,
    /// The consumer group; `corrente.<namespace>.<name>` where it is not given. It may be changed at any
    /// time: where to go on from is kept in the database, under the pipeline's own name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 249), regex(pattern = r"^[a-zA-Z0-9._-]+$"))]
    pub group: Option<String>,
}

/// Where a pipeline stores. Exactly one field is set.
///
/// All of it may be changed. Another database begins at the oldest record that the topics still hold,
/// because where to go on from is kept in the database; another table goes on where the last one ended.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.postgresql), has(self.timescaledb), has(self.influxdb), has(self.mongodb), \
                                 has(self.cassandra), has(self.mqtt), has(self.amqp)].filter(named, named).size() == 1")
    .message("name exactly one sink of postgresql, timescaledb, influxdb, mongodb, cassandra, mqtt and amqp; to store \
              twice, make two TelemetryPipelines"))]
pub struct Sink {
    /// A plain PostgreSQL table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgresql: Option<PlainTable>,
    /// A TimescaleDB hypertable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timescaledb: Option<TimescaleTable>,
    /// A measurement of InfluxDB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub influxdb: Option<InfluxdbSink>,
    /// A collection of MongoDB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mongodb: Option<MongodbSink>,
    /// A table of Cassandra.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cassandra: Option<CassandraSink>,
    /// Topics of an MQTT broker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mqtt: Option<MqttSink>,
    /// An exchange of an AMQP broker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amqp: Option<AmqpSink>,
}

/// The type of a metric's column.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Column {
    /// The metric, which is the column's name too.
    #[schemars(length(min = 1, max = FIELD_NAME_LENGTH), regex(pattern = FIELD_NAME))]
    #[x_kube(validation = Rule::new(NOT_RESERVED).message(NOT_RESERVED_MESSAGE))]
    pub name: String,
    /// The column's type.
    #[serde(rename = "type")]
    pub column_type: ColumnType,
}

/// A column's type.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "lowercase")]
pub enum ColumnType {
    /// Double precision.
    Float8,
    /// Signed 64-bit whole number.
    Bigint,
    /// `numeric(20,0)`: an unsigned 64-bit whole number without loss.
    Numeric,
    /// Text.
    Text,
    /// True or false.
    Boolean,
}

/// How much is stored in one transaction, whichever bound is met first.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Batch {
    /// Most rows.
    #[serde(default = "default_max_rows")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_rows: i32,
    /// Most bytes of records.
    #[serde(default = "default_max_bytes")]
    #[schemars(range(min = 1024, max = 268_435_456))]
    pub max_bytes: i32,
    /// The longest a record waits for others.
    #[serde(default = "default_max_age")]
    pub max_age: Duration,
    /// Most batches that a pod stores at the same time, each of another partition and over a connection of its own.
    #[serde(default = "default_writers")]
    #[schemars(range(min = 1, max = 16))]
    pub writers: i32,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            max_rows: default_max_rows(),
            max_bytes: default_max_bytes(),
            max_age: default_max_age(),
            writers: default_writers(),
        }
    }
}

fn default_max_rows() -> i32 {
    50_000
}

fn default_max_bytes() -> i32 {
    16 * 1024 * 1024
}

fn default_max_age() -> Duration {
    Duration::from_secs(1)
}

fn default_writers() -> i32 {
    3
}

/// What became of a TelemetryPipeline.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct TelemetryPipelineStatus {
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Progressing, Degraded, and for the tables TablesAsAsked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Pods there are.
    #[serde(default)]
    pub replicas: i32,
    /// Pods that are ready.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Selects the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub selector: Option<String>,
    /// The ConfigMap the pods run or are to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub revision: Option<String>,
}
