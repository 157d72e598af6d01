//! The thresholds that a worker watches, as it is told them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Thresholds, and where their alerts go.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AlertsConfig {
    /// The thresholds.
    pub thresholds: Vec<ThresholdConfig>,
    /// A topic of the cluster that the pipeline reads from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// The address of an Alertmanager.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alertmanager: Option<String>,
}

/// A bound for a metric.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ThresholdConfig {
    /// The alert's name.
    pub name: String,
    /// The metric.
    pub metric: String,
    /// Which side is bad.
    pub side: Side,
    /// Beyond it the alert begins.
    pub bound: f64,
    /// Back at it the alert ends.
    pub clear: f64,
    /// How long the bound must be broken, in milliseconds.
    #[serde(default)]
    pub hold_millis: u64,
    /// Labels of the alert.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// A sentence for whoever gets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
}

/// Which side of a bound is bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Side {
    /// Greater values.
    Above,
    /// Lesser values.
    Below,
}
