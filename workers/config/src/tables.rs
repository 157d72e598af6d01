//! What the pipeline worker is told of its tables, besides their names.

use std::collections::{BTreeMap, BTreeSet};

use corrente_crds::{
    Duration, Retention,
    tables::{Layout, PartitionBy, Views},
};
use serde::{Deserialize, Serialize};

/// How a table is laid out and looked after. By default: wide, whole, and kept for ever.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TablesConfig {
    /// What a row is.
    pub layout: Layout,
    /// The fields that are labels: columns of their own in a narrow table.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub labels: BTreeSet<String>,
    /// The length of a plain table's partitions, where it is to have some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition_by: Option<PartitionBy>,
    /// How old a hypertable's chunks become before they are compressed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compress_after: Option<Retention>,
    /// How long rows are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
    /// The longest interval at which a meter is polled: so late may a reading be behind its slot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slowest: Option<Duration>,
    /// The roll-ups.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rollups: Vec<RollupConfig>,
    /// The ledger of completeness.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completeness: Option<CompletenessConfig>,
    /// The views.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub views: Option<Views>,
}

impl TablesConfig {
    /// Whether nothing is out of the ordinary.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A roll-up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RollupConfig {
    /// Its table, in the schema of the readings.
    pub table: String,
    /// The length of its intervals.
    pub interval: Duration,
    /// How long its rows are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
}

/// The ledger of completeness.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CompletenessConfig {
    /// The length of its intervals.
    pub interval: Duration,
    /// How long its rows are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
    /// The meters behind the topics that are polled, by how often: so that those that deliver nothing are
    /// missed too. By the interval's text, such as `10s`.
    pub meters: BTreeMap<String, BTreeSet<String>>,
}

impl CompletenessConfig {
    /// Each meter with its interval in milliseconds. A meter that is polled at two intervals counts at the shorter.
    #[must_use]
    pub fn intervals(&self) -> BTreeMap<&str, u64> {
        let mut all = BTreeMap::new();
        for (interval, meters) in &self.meters {
            let Ok(interval) = interval.parse::<Duration>() else {
                continue;
            };
            for meter in meters {
                let every = all.entry(meter.as_str()).or_insert(interval.as_millis());
                *every = (*every).min(interval.as_millis());
            }
        }
        all
    }
}
