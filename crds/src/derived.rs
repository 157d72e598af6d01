//! What is derived from the stored readings: the energy of counters and the demand, in windows of time.

use kube::KubeSchema;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::{
    Duration, Retention,
    common::{FIELD_NAME, FIELD_NAME_LENGTH},
    duration::{DIVIDES_A_DAY, DIVIDES_A_DAY_MESSAGE},
};

/// Tables of windows, kept in step with the readings: however late a reading comes, the windows that it touches are made
/// anew in the transaction that stores it.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Derived {
    /// The tables.
    #[schemars(length(min = 1, max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub windows: Vec<Windows>,
    /// What is to be known of counters beyond what the profiles say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["metric".into()]))]
    pub counters: Vec<Counter>,
    /// Meters that were replaced by others, where no serial number tells it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub swaps: Vec<Swap>,
}

/// A table of windows: one row per meter, metric and window.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Windows {
    /// What they are called, such as `15min`.
    #[schemars(
        length(min = 1, max = 20),
        regex(pattern = r"^[a-z0-9]([a-z0-9_]*[a-z0-9])?$")
    )]
    pub name: String,
    /// How long a window is. Windows begin at multiples of it since midnight UTC; a reading at the very end of one
    /// belongs to it, and it is named by its end.
    #[x_kube(validation = Rule::new(DIVIDES_A_DAY).message(DIVIDES_A_DAY_MESSAGE))]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s')").message("a window is at least 1s long: write a longer one"))]
    pub interval: Duration,
    /// The metrics. What a profile or `counters` calls a counter gives energy (the difference over the window) and demand
    /// (the energy per hour); any other gives mean, minimum, maximum and last value, and its mean is the demand.
    #[schemars(
        length(min = 1, max = 64),
        inner(length(min = 1, max = FIELD_NAME_LENGTH), regex(pattern = FIELD_NAME))
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub metrics: Vec<String>,
    /// The table, in the schema of the readings; the readings' table, an underscore and the name where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 55), regex(pattern = r"^[a-z_][a-z0-9_]*$"))]
    pub table: Option<String>,
    /// How often a meter is expected to be read. Where it is not given, as often as its MeterPoller says; where none
    /// does, the completeness is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_every: Option<Duration>,
    /// How long windows are kept, after their end; for ever where it is not given. They may outlive the readings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
}

/// A counter: a metric that rises, rolls over, and may be reset.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Counter {
    /// The metric.
    #[schemars(length(min = 1, max = FIELD_NAME_LENGTH), regex(pattern = FIELD_NAME))]
    pub metric: String,
    /// The value at which it begins again at 0, in its unit after all transforms. Where it is not given, the one that the
    /// profiles declare, or that follows from the width of their registers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1e-6, max = 1e18))]
    pub rollover: Option<f64>,
    /// The most it can rise in an hour, in its unit: what the connection can carry. A decrease that would be more than
    /// that as a rollover is a reset, and an increase beyond it is not counted. Where it is not given, a rollover may be
    /// at most a tenth of the whole range, and every increase counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1e-9, max = 1e18))]
    pub most_per_hour: Option<f64>,
    /// The metric or label that holds the meter's serial number. Where it changes, the meter was replaced: no energy is
    /// counted between the two. Readings without it do not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = FIELD_NAME_LENGTH), regex(pattern = FIELD_NAME))]
    pub serial: Option<String>,
    /// The longest time between two readings for which the difference counts, 24h where it is not given. The difference
    /// is spread evenly over the windows in between, which are marked as estimated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub longest_gap: Option<Duration>,
}

fn instant(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "format": "date-time", "maxLength": 40})
}

/// A meter that was replaced by another.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Swap {
    /// The meter's name, which both had.
    #[schemars(length(min = 1, max = 249))]
    pub meter: String,
    /// When, such as `2026-11-20T14:00:00Z`. Readings up to then are the old meter's.
    #[schemars(schema_with = "instant")]
    pub at: String,
    /// The counter that the two values below are of. Where it is not given, all counters of the meter are swapped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = FIELD_NAME_LENGTH), regex(pattern = FIELD_NAME))]
    pub metric: Option<String>,
    /// What the old meter showed at last, in the unit after all transforms. With it, the energy up to the swap is counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1e18))]
    pub last: Option<f64>,
    /// What the new meter showed at first. With it, the energy since the swap is counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1e18))]
    pub first: Option<f64>,
}
