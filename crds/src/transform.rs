//! What is done to each record before it is stored: rename, filter, convert, derive.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::common::{FIELD_NAME, FIELD_NAME_LENGTH, NOT_RESERVED, NOT_RESERVED_MESSAGE};

/// One step. Exactly one field is set; steps are taken in their order, each on what the one before it gave.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.rename), has(self.filter), has(self.convert), has(self.derive)].exists_one(given, given)")
    .message("a transform does one thing: set exactly one of rename, filter, convert and derive"))]
pub struct Transform {
    /// Gives a metric or a label another name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rename: Option<Rename>,
    /// Leaves out records, or metrics and labels of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<Filter>,
    /// Brings a metric into another unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub convert: Option<Convert>,
    /// Makes a metric from others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub derive: Option<Derive>,
}

/// Another name for a metric or a label.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Rename {
    /// The name in the record; a producer of your own may use others than profiles do.
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = Rule::new(NOT_RESERVED).message(NOT_RESERVED_MESSAGE))]
    pub from: String,
    /// The name from here on. A field that has it already is replaced.
    #[schemars(length(min = 1, max = FIELD_NAME_LENGTH), regex(pattern = FIELD_NAME))]
    #[x_kube(validation = Rule::new(NOT_RESERVED).message(NOT_RESERVED_MESSAGE))]
    pub to: String,
}

/// What goes on. Exactly one field is set.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.meters), has(self.keep), has(self.remove), has(self.where)].exists_one(given, given)")
    .message("a filter does one thing: set exactly one of meters, keep, remove and where"))]
pub struct Filter {
    /// Records of these meters go on, others do not. `*` stands for any characters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 512), inner(length(min = 1, max = 249)))]
    pub meters: Vec<String>,
    /// These metrics and labels go on, others do not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 512), inner(length(min = 1, max = 128)))]
    pub keep: Vec<String>,
    /// These metrics and labels do not go on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 512), inner(length(min = 1, max = 128)))]
    pub remove: Vec<String>,
    /// Records for which this is true go on, such as `active_power_total > 0`. So does a record that lacks one of the
    /// metrics: that a poll failed is known from the record it left.
    #[serde(rename = "where", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub condition: Option<String>,
}

/// Another unit for a metric. Its column is `float8` then.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Convert {
    /// The metric.
    #[schemars(length(min = 1, max = 128))]
    pub metric: String,
    /// The unit it has. Where it is not given, the one that the profiles behind the topics declare.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    pub from: Option<String>,
    /// The unit it is to have, such as `kWh`.
    #[schemars(length(min = 1, max = 16))]
    pub to: String,
}

/// A metric made from others. Its column is `float8`. A record that lacks one of them goes on without it, and so does
/// one for which the result is no finite number.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Derive {
    /// The name of the new metric. A field that has it already is replaced.
    #[schemars(length(min = 1, max = FIELD_NAME_LENGTH), regex(pattern = FIELD_NAME))]
    #[x_kube(validation = Rule::new(NOT_RESERVED).message(NOT_RESERVED_MESSAGE))]
    pub metric: String,
    /// Arithmetic over metrics, such as `active_power_total / apparent_power_total`: `+ - * / %`, comparisons (1 or 0),
    /// `&&`, `||`, `min`, `max`, `pow`, `abs`, `sqrt`, `exp`, `ln`, `sin`, `cos`, `tan`, `atan`, `floor`, `ceil`, `round`.
    #[schemars(length(min = 1, max = 512))]
    pub expression: String,
    /// The unit of the result, such as `kW`; `1` for a ratio.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    pub unit: Option<String>,
}
