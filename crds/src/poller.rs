//! `MeterPoller`: which meters to read, where, how often, and where to publish.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Duration,
    common::{
        FIELD_NAME, FIELD_NAME_LENGTH, HOST, HOST_AND_MAYBE_PORT, PodTemplate, record_labels, secret_name,
    },
    duration::{AT_MOST_A_MINUTE, DIVIDES_A_DAY, DIVIDES_A_DAY_MESSAGE},
    profile::RegisterMap,
};

pub use crate::output::KafkaOutput;

/// Reads meters behind Modbus endpoints at a fixed interval and publishes a record of each poll to Kafka.
#[derive(CustomResource, Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[kube(
    group = "corrente.dev",
    version = "v1alpha1",
    kind = "MeterPoller",
    plural = "meterpollers",
    shortname = "mpoll",
    category = "corrente",
    namespaced,
    status = "MeterPollerStatus",
    derive = "PartialEq",
    validation = Rule::new("size(self.metadata.name) <= 40")
        .message("metadata.name has at most 40 characters, since the names of the pods are made from it: shorten it"),
    doc = "Reads meters behind Modbus endpoints at a fixed interval and publishes a record of each poll to Kafka.",
    scale(
        spec_replicas_path = ".spec.shards",
        status_replicas_path = ".status.shardCount",
        label_selector_path = ".status.selector"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(name = "Meters", type_ = "integer", json_path = ".status.meters.total"),
    printcolumn(name = "Failing", type_ = "integer", json_path = ".status.meters.failing"),
    printcolumn(name = "Shards", type_ = "integer", json_path = ".status.shardCount"),
    printcolumn(name = "Interval", type_ = "string", json_path = ".spec.interval"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].reason",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct MeterPollerSpec {
    /// How often each meter is read. It must divide a day, so that readings fall on the same times every day.
    #[x_kube(validation = Rule::new(DIVIDES_A_DAY).message(DIVIDES_A_DAY_MESSAGE))]
    pub interval: Duration,
    /// How long to wait for an answer; at most a minute.
    #[serde(default = "default_timeout")]
    #[x_kube(validation = Rule::new(AT_MOST_A_MINUTE).message("the timeout is at most 1m: write a shorter one"))]
    pub timeout: Duration,
    /// How often a request that timed out is sent again before its poll counts as failed.
    #[serde(default = "default_retries")]
    #[schemars(range(min = 0, max = 5))]
    pub retries: i32,
    /// Register maps of this MeterPoller alone, for meters that have no MeterProfile.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub register_maps: Vec<NamedRegisterMap>,
    /// The Modbus servers: meters themselves, or gateways with meters behind them.
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[x_kube(validation = Rule::new("self.map(e, size(e.meters)).sum() <= 1500")
        .message("a MeterPoller has at most 1500 meters: spread them over several MeterPollers"))]
    pub endpoints: Vec<Endpoint>,
    /// Where the records go.
    pub output: Output,
    /// The spool that every record passes through.
    #[serde(default)]
    pub buffer: Buffer,
    /// How many pods share the endpoints; what `kubectl scale` sets.
    #[serde(default = "default_one")]
    #[schemars(range(min = 1, max = 64))]
    pub shards: i32,
    /// Stop polling: no pod runs until it is false again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspend: bool,
    /// What the pods get from the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<PodTemplate>,
}

pub(crate) fn default_timeout() -> Duration {
    Duration::from_secs(1)
}

pub(crate) fn default_retries() -> i32 {
    1
}

pub(crate) fn default_one() -> i32 {
    1
}

/// Whether it is left out, so that what was written before the field was there stays what it was.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_one(number: &i32) -> bool {
    *number == 1
}

/// A register map with a name.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct NamedRegisterMap {
    /// The name that meters refer to.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,
    /// The map itself.
    #[serde(flatten)]
    pub map: RegisterMap,
}

/// A Modbus server. One endpoint is one line: its requests overlap only where `maxInFlight` allows it.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "self.transport != 'rtu-over-tcp' || self.meters.all(m, m.unitId >= 1 && m.unitId <= 247)"
).message("unit ids on a serial line (transport rtu-over-tcp) are 1 to 247: correct unitId"))]
#[x_kube(validation = Rule::new("self.transport != 'tls' || has(self.tls)")
    .message("transport tls needs tls: name the Secret of its certificates in tls.secretName"))]
#[x_kube(validation = Rule::new("self.transport == 'tls' || !has(self.tls)")
    .message("tls is for transport tls: write transport: tls, or remove tls"))]
#[x_kube(validation = Rule::new("self.transport != 'rtu-over-tcp' || self.maxInFlight == 1")
    .message("a serial line (transport rtu-over-tcp) carries one request at a time: remove maxInFlight"))]
pub struct Endpoint {
    /// The endpoint's name, for status and metrics.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,
    /// `host` or `host:port`; the port is 502 where it is not given, and 802 with transport `tls`.
    #[schemars(length(max = 259))]
    #[x_kube(validation = Rule::new(HOST_AND_MAYBE_PORT).message(
        "write host or host:port, such as 10.20.0.11, gateway-3:1502 or [fd00::11]:502"
    ))]
    pub address: String,
    /// How Modbus is carried.
    #[serde(default)]
    pub transport: Transport,
    /// The certificates of transport `tls`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<EndpointTls>,
    /// Most requests on their way at a time. More than 1 is for devices that take the next request before they
    /// have answered the last one: many allow only one, and a gateway gains nothing from more.
    #[serde(default = "default_one", skip_serializing_if = "is_one")]
    #[schemars(range(min = 1, max = 16), extend("default" = 1))]
    pub max_in_flight: i32,
    /// The pause between an answer and the next request on this endpoint; at most a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new(AT_MOST_A_MINUTE).message("the pause is at most 1m: write a shorter one"))]
    pub inter_request_delay: Option<Duration>,
    /// The meters behind it.
    #[schemars(length(min = 1, max = 247))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub meters: Vec<Meter>,
}

impl Default for Endpoint {
    fn default() -> Self {
        Self {
            name: String::new(),
            address: String::new(),
            transport: Transport::default(),
            tls: None,
            max_in_flight: default_one(),
            inter_request_delay: None,
            meters: Vec::new(),
        }
    }
}

/// The certificates of a Modbus/TCP Security endpoint: both sides show one.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct EndpointTls {
    /// A Secret of type `kubernetes.io/tls` with `ca.crt`, which the device's certificate must come from, and
    /// `tls.crt` and `tls.key`, which the poller shows. It is mounted into the pod, never read by the operator.
    #[schemars(schema_with = "secret_name")]
    pub secret_name: String,
    /// The name or IP address in the device's certificate, where it is not the host of the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 255))]
    #[x_kube(validation = Rule::new(HOST)
        .message("write the host alone, such as gateway-3.site, 10.20.0.11 or [fd00::11]"))]
    pub server_name: Option<String>,
}

/// How Modbus is carried.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// Modbus TCP: MBAP header, no checksum.
    #[default]
    Tcp,
    /// RTU frames with their CRC over a TCP connection, as serial device servers carry them.
    RtuOverTcp,
    /// Modbus/TCP Security: Modbus TCP within TLS, with certificates on both sides.
    Tls,
}

/// One meter.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.profile) != has(self.registerMap)")
    .message("name either a profile (a MeterProfile) or a registerMap (an entry of spec.registerMaps), and not both"))]
pub struct Meter {
    /// The meter's name: the key of its records. Unique in the topic.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")
    )]
    pub name: String,
    /// The Modbus unit id (slave address). 255 is the usual one for a meter that is the server itself.
    #[schemars(range(min = 0, max = 255))]
    pub unit_id: i32,
    /// The MeterProfile to read it by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    pub profile: Option<String>,
    /// The entry of `registerMaps` to read it by, instead of a profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub register_map: Option<String>,
    /// The metrics to read; all of the map where it is empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 512), inner(length(min = 1, max = FIELD_NAME_LENGTH), regex(pattern = FIELD_NAME)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub metrics: Vec<String>,
    /// Labels written into every record, such as the feeder or the tariff.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "record_labels")]
    pub labels: BTreeMap<String, String>,
    /// The interval of this meter, where it differs. It must divide a day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new(DIVIDES_A_DAY).message(DIVIDES_A_DAY_MESSAGE))]
    pub interval: Option<Duration>,
}

/// Where records go.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// A Kafka topic.
    pub kafka: KafkaOutput,
}

/// The spool: a log on disk that every record passes through on its way to the broker.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Buffer {
    /// Most bytes kept while the broker is away; beyond it the oldest records are evicted, and counted.
    #[serde(default = "default_max_bytes")]
    #[schemars(range(min = 1_048_576, max = 1_099_511_627_776_i64))]
    pub max_bytes: i64,
    /// How often the spool is synced to disk: what a power loss may take. Records are published once they are
    /// synced, so this is also how late they may be.
    #[serde(default = "default_sync_interval")]
    #[x_kube(validation = Rule::new(AT_MOST_A_MINUTE)
        .message("the sync interval is at most 1m, since records are published once they are synced: write a shorter one"))]
    pub sync_interval: Duration,
}

impl Default for Buffer {
    fn default() -> Self {
        Self {
            max_bytes: default_max_bytes(),
            sync_interval: default_sync_interval(),
        }
    }
}

fn default_max_bytes() -> i64 {
    256 * 1024 * 1024
}

fn default_sync_interval() -> Duration {
    Duration::from_secs(1)
}

/// What became of a MeterPoller.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct MeterPollerStatus {
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Progressing and Degraded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// How many shards there are.
    #[serde(default)]
    pub shard_count: i32,
    /// Selects exactly one pod per shard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub selector: Option<String>,
    /// Each shard.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["index".into()]))]
    pub shards: Vec<ShardStatus>,
    /// How the meters are.
    #[serde(default)]
    pub meters: MeterCounts,
    /// The first 20 failing meters by name, with the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub failing_meters: Vec<FailingMeter>,
}

/// A shard: one pod's share of the endpoints.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct ShardStatus {
    /// Its number, from 0.
    pub index: i32,
    /// The ConfigMap it runs or is to run.
    #[schemars(length(max = 253))]
    pub revision: String,
    /// Whether its pod runs that revision and is ready.
    pub ready: bool,
    /// Endpoints it polls.
    pub endpoints: i32,
    /// Meters it polls.
    pub meters: i32,
}

/// How many meters there are, and how they are.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Copy, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct MeterCounts {
    /// Meters defined.
    pub total: i32,
    /// Meters whose last poll was good or partial.
    pub healthy: i32,
    /// Meters whose last poll failed.
    pub failing: i32,
}

/// A meter whose last poll failed.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct FailingMeter {
    /// Its name.
    #[schemars(length(max = 63))]
    pub name: String,
    /// Why, in a sentence.
    #[schemars(length(max = 256))]
    pub reason: String,
}
