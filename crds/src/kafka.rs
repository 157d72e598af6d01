//! A Kafka cluster and how to be let in: what MeterPollers and TelemetryPipelines say alike.
//!
//! What is secret is in Secrets of the resource's own namespace. They are mounted into the pods, never read
//! by the operator, and the workers take up what changes in them.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::{BROKERS, secret_name};

/// A Kafka cluster.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.sasl) || self.sasl.mechanism != 'PLAIN' || has(self.tls)")
    .message("PLAIN without tls sends the password in the clear: add tls, or choose SCRAM-SHA-512"))]
pub struct KafkaCluster {
    /// The brokers to ask first, as `host:port`; the rest are learned from them.
    #[schemars(length(min = 1, max = 16), inner(length(max = 259)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[x_kube(validation = Rule::new(BROKERS).message(
        "write each broker as host:port, such as kafka-0.kafka:9092 or [fd00::11]:9092"
    ))]
    pub bootstrap_servers: Vec<String>,
    /// Talk to the brokers in TLS; `{}` does, trusting the authorities that the worker's image brings along.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<KafkaTls>,
    /// Log in with a name and a password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sasl: Option<KafkaSasl>,
}

/// The certificates of a TLS connection to Kafka.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct KafkaTls {
    /// The Secret whose `ca.crt` holds the authorities that the brokers' certificates must come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "secret_name")]
    pub ca_secret: Option<String>,
    /// The Secret, of type `kubernetes.io/tls`, whose `tls.crt` and `tls.key` are shown to the brokers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "secret_name")]
    pub client_certificate_secret: Option<String>,
}

/// A login with a name and a password.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct KafkaSasl {
    /// How the password is shown.
    pub mechanism: SaslMechanism,
    /// The Secret with `username` and `password`, such as one of type `kubernetes.io/basic-auth`.
    #[schemars(schema_with = "secret_name")]
    pub secret_name: String,
}

/// How a password is shown to a broker.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SaslMechanism {
    /// A proof of the password, by SHA-256 (RFC 7677).
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    /// A proof of the password, by SHA-512.
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
    /// The password itself (RFC 4616), and therefore within TLS only.
    #[serde(rename = "PLAIN")]
    Plain,
}

impl SaslMechanism {
    /// Its name in the SASL registry, which Kafka uses too.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
            Self::Plain => "PLAIN",
        }
    }
}
