//! The windows that a worker derives, as it is told them.

use std::collections::BTreeMap;

use corrente_crds::Retention;
use corrente_record::Timestamp;
use serde::{Deserialize, Serialize};

/// What is derived from the readings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DerivedConfig {
    /// The tables of windows.
    pub windows: Vec<WindowsConfig>,
    /// The metrics in them that are counters.
    #[serde(default)]
    pub counters: Vec<CounterConfig>,
    /// Meters that were replaced.
    #[serde(default)]
    pub swaps: Vec<SwapConfig>,
    /// How often meters are read.
    #[serde(default)]
    pub every: PerMeter<u64>,
}

/// A table of windows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WindowsConfig {
    /// The table, in the schema of the readings.
    pub table: String,
    /// How long a window is, in milliseconds.
    pub interval_millis: u64,
    /// The metrics.
    pub metrics: Vec<String>,
    /// How often every meter is expected to be read, in milliseconds, where it is said here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_every_millis: Option<u64>,
    /// How long its rows are kept, after the end of their windows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
}

/// A counter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CounterConfig {
    /// The metric.
    pub metric: String,
    /// Where it begins again at 0.
    #[serde(default)]
    pub rollover: PerMeter<f64>,
    /// The most it can rise in an hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub most_per_hour: Option<f64>,
    /// The field that holds the serial number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// The longest time between two readings whose difference counts, in milliseconds.
    pub longest_gap_millis: u64,
}

/// A meter that was replaced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SwapConfig {
    /// The meter's name.
    pub meter: String,
    /// When.
    pub at: Timestamp,
    /// The counter; all of them where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<String>,
    /// What the old meter showed at last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<f64>,
    /// What the new meter showed at first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<f64>,
}

/// Something that most meters have in common, and that is written down for the others alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PerMeter<T> {
    /// What holds for a meter that is not named below.
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub most: Option<T>,
    /// What holds for these.
    #[serde(default = "BTreeMap::new", skip_serializing_if = "BTreeMap::is_empty")]
    pub others: BTreeMap<String, Option<T>>,
}

fn none<T>() -> Option<T> {
    None
}

impl<T> Default for PerMeter<T> {
    fn default() -> Self {
        Self {
            most: None,
            others: BTreeMap::new(),
        }
    }
}

impl<T: Copy + PartialEq> PerMeter<T> {
    /// The same for every meter.
    #[must_use]
    pub fn all(value: T) -> Self {
        Self {
            most: Some(value),
            others: BTreeMap::new(),
        }
    }

    /// Written as short as it can be: what the most meters have is what holds for all that are not named.
    #[must_use]
    pub fn of(meters: &BTreeMap<String, Option<T>>) -> Self {
        let mut counts: Vec<(Option<T>, usize)> = vec![];
        for value in meters.values() {
            match counts.iter_mut().find(|(known, _)| known == value) {
                Some((_, count)) => *count += 1,
                None => counts.push((*value, 1)),
            }
        }
        // The first of equals, so that the same meters give the same file.
        let most = counts
            .iter()
            .rev()
            .max_by_key(|(_, count)| *count)
            .and_then(|(value, _)| *value);
        Self {
            most,
            others: meters
                .iter()
                .filter(|(_, value)| **value != most)
                .map(|(meter, value)| (meter.clone(), *value))
                .collect(),
        }
    }

    /// What holds for a meter.
    #[must_use]
    pub fn get(&self, meter: &str) -> Option<T> {
        self.others.get(meter).copied().unwrap_or(self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_most_meters_have_is_written_once() {
        let meters: BTreeMap<String, Option<u64>> =
            [("a", Some(5)), ("b", None), ("c", Some(5)), ("d", Some(60))]
                .map(|(name, value)| (name.to_owned(), value))
                .into();
        let per = PerMeter::of(&meters);
        assert_eq!((per.most, per.others.len()), (Some(5), 2));
        for (meter, value) in &meters {
            assert_eq!(per.get(meter), *value);
        }
        assert_eq!(per.get("unknown"), Some(5));
        let json = serde_json::to_string(&per).unwrap();
        assert_eq!(serde_json::from_str::<PerMeter<u64>>(&json).unwrap(), per);
        assert_eq!(
            serde_json::from_str::<PerMeter<f64>>("{}").unwrap(),
            PerMeter::default()
        );
    }
}
