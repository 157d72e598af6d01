//! Sinks besides the SQL databases: InfluxDB, MongoDB and Cassandra for the history, MQTT and AMQP for panels.
//!
//! What is secret is in Secrets of the resource's own namespace. They are mounted into the pods, never read by
//! the operator.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::{ADDRESS, BROKERS, FIELD_NAME, FIELD_NAME_LENGTH, HTTP_URL, SecretKey, secret_name};

/// A name that MQTT topics and AMQP routing keys are made from, as a regular expression.
const TEMPLATE: &str = r"^([^{}+#\s]|\{[a-z][a-z0-9_]*\})+$";

/// A measurement of InfluxDB.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(self.version == 'v2') == has(self.organization)")
    .message("organization is for version v2, which needs it: give it there, or remove it"))]
#[x_kube(validation = Rule::new("self.version == 'v1' || !has(self.retentionPolicy)")
    .message("retentionPolicy is for version v1: a bucket and a database of later versions have a period of their own"))]
#[x_kube(validation = Rule::new("self.url.startsWith('https://') || !has(self.caSecret)")
    .message("caSecret is for https: write the url with https://, or remove caSecret"))]
pub struct InfluxdbSink {
    /// The server's address, such as `http://influxdb:8086`.
    #[schemars(length(max = 512))]
    #[x_kube(validation = Rule::new(HTTP_URL).message("write the server's address as http://host:port or https://host:port; a name, a password \
                  or a token belongs into credentialsSecret"))]
    pub url: String,
    /// Which API it has.
    pub version: InfluxdbVersion,
    /// The database; the bucket in version 2. It must be there.
    #[schemars(length(min = 1, max = 128), regex(pattern = r#"^[^"\\/\s][^"\\/]*$"#))]
    pub database: String,
    /// The organization, in version 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub organization: Option<String>,
    /// The retention policy, in version 1; the database's default one where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub retention_policy: Option<String>,
    /// The measurement.
    #[serde(default = "default_table")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-zA-Z0-9._-]+$"))]
    pub measurement: String,
    /// Fields of the records, such as labels, that become tags; `meter` is always one. Each combination of tags is a
    /// series of its own, so a field whose values never end must not be named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = FIELD_NAME_LENGTH), regex(pattern = FIELD_NAME)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub tags: Vec<String>,
    /// The Secret to log in with: `username` and `password` in version 1, `token` in versions 2 and 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "secret_name")]
    pub credentials_secret: Option<String>,
    /// The Secret whose `ca.crt` holds the authorities that the server's certificate must come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "secret_name")]
    pub ca_secret: Option<String>,
}

/// The API of an InfluxDB.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "lowercase")]
pub enum InfluxdbVersion {
    /// `/write`. Whole numbers are signed.
    V1,
    /// `/api/v2/write`.
    V2,
    /// `/api/v3/write_lp`.
    V3,
}

/// A collection of MongoDB.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct MongodbSink {
    /// The Secret's key that holds the connection string, such as `mongodb://user:password@host:27017/?tls=true`.
    pub connection_secret: SecretKey,
    /// The database.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z_][a-z0-9_]*$"))]
    pub database: String,
    /// The collection; the worker's own ones, `corrente_offsets` and the like, are beside it.
    #[serde(default = "default_table")]
    #[schemars(length(min = 1, max = 120), regex(pattern = r"^[a-z_][a-z0-9_]*$"))]
    pub collection: String,
    /// Make it a time-series collection where the server knows these (MongoDB 5 and later); a plain one otherwise.
    /// One that is there is used as it is.
    #[serde(default = "yes")]
    pub time_series: bool,
    /// The Secret whose `ca.crt` holds the authorities that the server's certificate must come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "secret_name")]
    pub ca_secret: Option<String>,
}

/// A table of Cassandra.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct CassandraSink {
    /// The nodes to ask first, as `host:port`; the rest are learned from them.
    #[schemars(length(min = 1, max = 16), inner(length(max = 259)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[x_kube(validation = Rule::new(BROKERS).message(
        "write each node as host:port, such as cassandra-0.cassandra:9042"
    ))]
    pub contact_points: Vec<String>,
    /// The keyspace; it is made where it is missing.
    #[schemars(length(min = 1, max = 48), regex(pattern = r"^[a-z][a-z0-9_]*$"))]
    pub keyspace: String,
    /// In how many nodes of each datacenter a row is, where the worker makes the keyspace.
    #[serde(default = "three")]
    #[schemars(range(min = 1, max = 15))]
    pub replication_factor: i32,
    /// The table; one row per record, one column per metric.
    #[serde(default = "default_table")]
    #[schemars(length(min = 1, max = 40), regex(pattern = r"^[a-z][a-z0-9_]*$"))]
    pub table: String,
    /// The time that one partition of a meter holds. It counts when the table is made, and must stay as it is.
    #[serde(default)]
    pub bucket: Bucket,
    /// The Secret with `username` and `password` to log in with. There is no TLS yet: they go over the network as they
    /// are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "secret_name")]
    pub credentials_secret: Option<String>,
}

/// The time that one partition of a meter holds, in UTC.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[serde(rename_all = "lowercase")]
pub enum Bucket {
    /// A day: right for polls of seconds.
    #[default]
    Day,
    /// A calendar month: right for polls of minutes.
    Month,
}

/// The certificates of a TLS connection.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct SinkTls {
    /// The Secret whose `ca.crt` holds the authorities that the server's certificate must come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "secret_name")]
    pub ca_secret: Option<String>,
    /// The Secret, of type `kubernetes.io/tls`, whose `tls.crt` and `tls.key` are shown to the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "secret_name")]
    pub client_certificate_secret: Option<String>,
}

/// Topics of an MQTT 5 broker: each record is a message, in JSON.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.credentialsSecret) || has(self.tls) || (has(self.allowPlainPassword) && self.allowPlainPassword)")
    .message("a login without tls sends the password in the clear: add tls, or say allowPlainPassword: true"))]
pub struct MqttSink {
    /// The broker, as `host:port`.
    #[schemars(length(max = 259))]
    #[x_kube(validation = Rule::new(ADDRESS).message("write the broker as host:port, such as mosquitto:1883"))]
    pub address: String,
    /// The topic, with fields of the record in braces, such as `plant/{site}/{meter}`. A record that lacks one of
    /// them goes to the dead letters.
    #[serde(default = "default_topic")]
    #[schemars(length(min = 1, max = 512), regex(pattern = TEMPLATE))]
    pub topic: String,
    /// Have the broker keep the last message of each topic for those who come later.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub retain: bool,
    /// Talk to the broker in TLS; `{}` does, trusting the authorities that the worker's image brings along.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<SinkTls>,
    /// The Secret with `username` and `password` to log in with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "secret_name")]
    pub credentials_secret: Option<String>,
    /// Log in without TLS, for everyone on the network to see.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_plain_password: bool,
}

/// An exchange of an AMQP 0-9-1 broker, such as RabbitMQ: each record is a message, in JSON.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AmqpSink {
    /// The Secret's key that holds the address, such as `amqps://user:password@host:5671/vhost`, or `amqp://` without
    /// TLS.
    pub connection_secret: SecretKey,
    /// The certificates, where they are others than those that the worker's image brings along. An address of
    /// `amqp://` is refused with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<SinkTls>,
    /// The exchange; a durable topic exchange is made where it is missing.
    #[serde(default = "default_exchange")]
    #[schemars(length(min = 1, max = 127), regex(pattern = r"^[a-zA-Z0-9._-]+$"))]
    pub exchange: String,
    /// The routing key, with fields of the record in braces, such as `{site}.{meter}`. A record that lacks one of
    /// them goes to the dead letters.
    #[serde(default = "default_routing_key")]
    #[schemars(length(min = 1, max = 255), regex(pattern = TEMPLATE))]
    pub routing_key: String,
}

fn default_table() -> String {
    "readings".to_owned()
}

fn default_topic() -> String {
    "corrente/{meter}".to_owned()
}

fn default_exchange() -> String {
    "corrente".to_owned()
}

fn default_routing_key() -> String {
    "{meter}".to_owned()
}

fn yes() -> bool {
    true
}

fn three() -> i32 {
    3
}
