//! Where a MeterPoller's records go: the topic, and how a record is written.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Retention,
    common::{HTTP_URL, secret_name},
    kafka::KafkaCluster,
    poller::default_one,
};

/// A Kafka topic to publish to.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!(self.format in ['avro', 'protobuf']) || has(self.schemaRegistry)")
    .message("the formats avro and protobuf need a schema registry: give schemaRegistry.url, or write format json"))]
#[x_kube(validation = Rule::new("self.format in ['avro', 'protobuf'] || !has(self.schemaRegistry)")
    .message("schemaRegistry is for the formats avro and protobuf: write one of these, or remove schemaRegistry"))]
pub struct KafkaOutput {
    /// The cluster.
    #[serde(flatten)]
    pub cluster: KafkaCluster,
    /// The topic.
    #[schemars(length(min = 1, max = 249), regex(pattern = r"^[a-zA-Z0-9._-]+$"))]
    pub topic: String,
    /// Make the topic where it is missing. One that is there is used as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub create_topic: Option<CreateTopic>,
    /// How a record is written.
    #[serde(default, skip_serializing_if = "Format::is_default")]
    #[schemars(extend("default" = "json"))]
    pub format: Format,
    /// The schema registry of the formats `avro` and `protobuf`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema_registry: Option<SchemaRegistry>,
    /// Headers of the messages. They add about two thirds to the size of a record.
    #[serde(default, skip_serializing_if = "Headers::is_none")]
    pub headers: Headers,
}

/// How a topic is made.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct CreateTopic {
    /// Partitions: as many pods at most share the storing. A topic's number should not be changed later.
    #[schemars(range(min = 1, max = 1000))]
    pub partitions: i32,
    /// Brokers that hold each record.
    #[serde(default = "default_one")]
    #[schemars(range(min = 1, max = 15))]
    pub replication_factor: i32,
    /// How long the topic keeps records; the cluster's own setting where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
}

/// How a record is written.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// A flat JSON object.
    #[default]
    Json,
    /// Avro, framed with its schema's id in the registry.
    Avro,
    /// Protocol Buffers, framed with its schema's id in the registry.
    Protobuf,
    /// JSON with its schema in every message, as Kafka Connect's `JsonConverter` reads it.
    ConnectJson,
}

impl Format {
    /// Whether it is the one that is used where none is named.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A schema registry with the API of Confluent's.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.url.startsWith('https://') || !has(self.caSecret)")
    .message("caSecret is for https: write the url with https://, or remove caSecret"))]
#[x_kube(validation = Rule::new("self.url.startsWith('https://') || !has(self.basicAuthSecret)")
    .message("basicAuthSecret over http sends the password in the clear: write the url with https://"))]
pub struct SchemaRegistry {
    /// Its address, such as `http://registry:8081`.
    #[schemars(length(max = 512))]
    #[x_kube(validation = Rule::new(HTTP_URL).message("write the registry's address as http://host:port or https://host:port, with a path where it has \
                  one; a name and a password belong into basicAuthSecret"))]
    pub url: String,
    /// The Secret with `username` and `password` to log in with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "secret_name")]
    pub basic_auth_secret: Option<String>,
    /// The Secret whose `ca.crt` holds the authorities that the registry's certificate must come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "secret_name")]
    pub ca_secret: Option<String>,
}

/// Headers of the messages.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Copy, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Headers {
    /// CloudEvents in binary mode: `ce_id` is stream and seq of the record.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cloud_events: bool,
    /// `traceparent` of W3C Trace Context: a trace of its own for each record.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub traceparent: bool,
}

impl Headers {
    /// Whether none is asked for.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
    fn is_none(&self) -> bool {
        *self == Self::default()
    }
}
