//! What several kinds share: hosts, names of fields and Secrets, the pod template.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, LocalObjectReference, ResourceRequirements, Toleration};
use kube::KubeSchema;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

pub use crate::kafka::KafkaCluster;

/// The API group of every kind.
pub const GROUP: &str = "corrente.dev";
/// The version of every kind.
pub const VERSION: &str = "v1alpha1";

/// A host name, an IPv4 address, or an IPv6 address in brackets, as a regular expression in CEL.
macro_rules! host {
    () => {
        "(\\\\[[0-9A-Fa-f:.]{2,45}\\\\]|[A-Za-z0-9_]([-A-Za-z0-9_.]{0,251}[A-Za-z0-9_.])?)"
    };
}

/// A colon and a port from 1 to 65535, as a regular expression.
macro_rules! port {
    () => {
        ":([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
    };
}

/// CEL: a list of `host:port`.
pub(crate) const BROKERS: &str = concat!("self.all(a, a.matches('^", host!(), port!(), "$'))");

/// CEL: `host:port`.
pub(crate) const ADDRESS: &str = concat!("self.matches('^", host!(), port!(), "$')");

/// CEL: a host alone.
pub(crate) const HOST: &str = concat!("self.matches('^", host!(), "$')");

/// CEL: `host` or `host:port`.
pub(crate) const HOST_AND_MAYBE_PORT: &str = concat!("self.matches('^", host!(), "(", port!(), ")?$')");

/// CEL: the address of a web server, without name and password.
pub(crate) const HTTP_URL: &str = concat!(
    "self.matches('^https?://",
    host!(),
    "(",
    port!(),
    ")?(/[-A-Za-z0-9_.~%/]*)?$')"
);

/// CEL: no name of the record's own fields.
pub(crate) const NOT_RESERVED: &str =
    "!(self in ['ts', 'meter', 'slot', 'stream', 'seq', 'quality', 'skipped', 'bad'])";

/// What to write instead of a reserved name.
pub(crate) const NOT_RESERVED_MESSAGE: &str = "ts, meter, slot, stream, seq, quality, skipped and bad are fields of the record itself: choose another name";

/// What a metric, a label or a column may be named.
pub(crate) const FIELD_NAME: &str = "^[a-z][a-z0-9_]*$";

/// The longest name of a metric, a label or a column: PostgreSQL cuts names at 63 bytes, and a worker
/// needs a few of them for names of its own.
pub(crate) const FIELD_NAME_LENGTH: u32 = 59;

/// Labels of records. A map's keys can be bounded by CEL alone.
pub(crate) fn record_labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 12,
        "additionalProperties": {"type": "string", "maxLength": 128},
        "x-kubernetes-validations": [
            {
                "rule": "self.all(k, k.matches('^[a-z][a-z0-9_]{0,58}$'))",
                "message": "write a label's name in small letters, digits and underscores, beginning with a letter, at most 59 of them",
            },
            {
                // From the names to the labels: the other way round is beyond the API server's cost limit.
                "rule": "!['ts', 'meter', 'slot', 'stream', 'seq', 'quality', 'skipped', 'bad'].exists(r, r in self)",
                "message": NOT_RESERVED_MESSAGE,
            },
        ],
    })
}

/// Labels or annotations of pods: what Kubernetes allows, less what is the operator's own.
fn pod_metadata(value_length: u32) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 32,
        "additionalProperties": {"type": "string", "maxLength": value_length},
        "x-kubernetes-validations": [
            {
                "rule": "self.all(k, k.matches('^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$'))",
                "message": "write names as Kubernetes has them: at most 63 letters, digits, '-', '_' and '.', after a domain and '/' where there is one",
            },
            {
                "rule": "self.all(k, !k.contains('corrente.dev/') && !k.contains('app.kubernetes.io/'))",
                "message": "names of corrente.dev and app.kubernetes.io are the operator's own: choose another name",
            },
        ],
    })
}

fn pod_labels(_: &mut SchemaGenerator) -> Schema {
    pod_metadata(63)
}

fn pod_annotations(_: &mut SchemaGenerator) -> Schema {
    pod_metadata(16_384)
}

fn node_selector(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 32,
        "additionalProperties": {"type": "string", "maxLength": 63},
        "x-kubernetes-validations": [{
            "rule": "self.all(k, size(k) <= 317)",
            "message": "write the name of a node's label: it has at most 317 characters",
        }],
    })
}

/// The name of a Secret in the resource's own namespace, as Kubernetes has names.
pub(crate) fn secret_name(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "minLength": 1,
        "maxLength": 253,
        "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
    })
}

/// What the operator passes on to the pods it makes.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct PodTemplate {
    /// Labels added to the pods. Labels of `corrente.dev` and `app.kubernetes.io` are the operator's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "pod_labels")]
    pub labels: BTreeMap<String, String>,
    /// Annotations added to the pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "pod_annotations")]
    pub annotations: BTreeMap<String, String>,
    /// Requests and limits of the worker's container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// Nodes the pods may run on, by label.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "node_selector")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints the pods tolerate, besides those the operator adds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,
    /// Affinity of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// Priority class of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub priority_class_name: Option<String>,
    /// Secrets to pull the worker's image with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub image_pull_secrets: Vec<LocalObjectReference>,
}

/// A key of a Secret in the resource's own namespace. It is mounted into the pod, never read by the operator.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct SecretKey {
    /// The Secret's name.
    #[schemars(schema_with = "secret_name")]
    pub name: String,
    /// The key within the Secret.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}
