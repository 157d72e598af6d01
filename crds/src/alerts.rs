//! Thresholds on metrics, and where alerts go.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::{
    Duration,
    common::{FIELD_NAME, FIELD_NAME_LENGTH, HTTP_URL},
};

/// Thresholds, and where their alerts go: at least once each, under an id that is the same each time.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.kafka) || has(self.alertmanager)")
    .message("alerts go somewhere: set kafka, alertmanager, or both"))]
pub struct Alerts {
    /// The thresholds.
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub thresholds: Vec<Threshold>,
    /// A topic of the cluster that the pipeline reads from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kafka: Option<AlertTopic>,
    /// A Prometheus Alertmanager.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alertmanager: Option<Alertmanager>,
}

/// A topic that alerts go to: a JSON object for each that begins or ends, with the meter as the key.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AlertTopic {
    /// The topic.
    #[schemars(length(min = 1, max = 249), regex(pattern = r"^[a-zA-Z0-9._-]+$"))]
    pub topic: String,
}

/// A Prometheus Alertmanager, by its API v2.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Alertmanager {
    /// Its address, such as `http://alertmanager.monitoring:9093`.
    #[schemars(length(min = 8, max = 512))]
    #[x_kube(validation = Rule::new(HTTP_URL)
        .message("write the address of a web server, such as http://alertmanager.monitoring:9093"))]
    pub url: String,
}

/// Labels of alerts, as Prometheus has them.
fn alert_labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 12,
        "additionalProperties": {"type": "string", "maxLength": 128},
        "x-kubernetes-validations": [
            {
                "rule": "self.all(k, k.matches('^[a-zA-Z_][a-zA-Z0-9_]{0,62}$'))",
                "message": "write a label's name in letters, digits and underscores, beginning with a letter",
            },
            {
                "rule": "!['alertname', 'meter', 'metric', 'pipeline'].exists(r, r in self)",
                "message": "alertname, meter, metric and pipeline are labels of every alert: choose another name",
            },
        ],
    })
}

/// A bound for a metric, which each meter keeps or breaks by itself.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.above) != has(self.below)")
    .message("a threshold has one side: set above or below"))]
#[x_kube(validation = Rule::new("!has(self.clear) || (has(self.above) ? self.clear <= self.above : !has(self.below) || self.clear >= self.below)")
    .message("clear is on the quiet side: at most above, at least below"))]
pub struct Threshold {
    /// The alert's name.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-zA-Z]([-a-zA-Z0-9_]*[a-zA-Z0-9])?$")
    )]
    pub name: String,
    /// The metric, after all transforms.
    #[schemars(length(min = 1, max = FIELD_NAME_LENGTH), regex(pattern = FIELD_NAME))]
    pub metric: String,
    /// The alert begins where the value is greater.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1e18, max = 1e18))]
    pub above: Option<f64>,
    /// The alert begins where the value is less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1e18, max = 1e18))]
    pub below: Option<f64>,
    /// The alert ends where the value is back at this one; at the bound itself where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1e18, max = 1e18))]
    pub clear: Option<f64>,
    /// How long the bound must be broken, reading after reading, before the alert begins; at once where it is not given.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<Duration>,
    /// Labels of the alert, such as `severity`, besides `alertname`, `pipeline`, `meter` and `metric`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "alert_labels")]
    pub labels: BTreeMap<String, String>,
    /// A sentence for whoever gets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub summary: Option<String>,
}
