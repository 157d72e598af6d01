//! A history of measured values, replayed from a CSV file.
//!
//! The first line names the columns: `time`, perhaps `meter`, and the metrics by their names in the
//! register maps. Each other line is one moment of one meter, or of every meter where there is no `meter`
//! column:
//!
//! ```csv
//! time,meter,voltage_l1_n,energy_active_import
//! 2026-11-01T00:00:00Z,feeder-12,230.1,81234000
//! 2026-11-01T00:15:00Z,feeder-12,229.8,81236150
//! ```
//!
//! - Times are RFC 3339 and rise for each meter. Values are in the unit of the register map.
//! - A value holds until the next line. An empty cell keeps the value before it.
//! - The history repeats end to end, before and after its own time: 96 lines of 15 minutes play every day
//!   at the same time of day. Which line plays follows from the clock alone, so a restart changes nothing.
//! - Each repetition lifts a counter by what it gained in one, so that counters only rise.
//! - What a meter measures and the history does not name follows its load curve.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
};

use corrente_crds::profile::Kind;
use corrente_record::{Timestamp, Value};

/// What is wrong with a history.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The file is not CSV, or cannot be read.
    #[error("failed to read the history: {0}")]
    Csv(String),
    /// The first line lacks the column of times.
    #[error("the history has no column `time`; its first line names the columns: time,meter,<metric>,...")]
    NoTime,
    /// A column appears twice.
    #[error("the history names the column \"{0}\" twice")]
    TwiceTheColumn(String),
    /// There is nothing to play.
    #[error("the history has no lines after its first")]
    Empty,
    /// Something is wrong on one line.
    #[error("line {line} of the history: {message}")]
    Line {
        /// The line, counted from 1.
        line: u64,
        /// What is wrong.
        message: String,
    },
}

fn not_csv(error: csv::Error) -> HistoryError {
    HistoryError::Csv(error.to_string())
}

/// A history, in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct History {
    metrics: Vec<String>,
    /// By meter; under the empty name where the lines hold for every meter.
    tracks: BTreeMap<String, Track>,
}

#[derive(Clone, Debug, PartialEq, Default)]
struct Track {
    times: Vec<i64>,
    /// For each line, the metrics' values in the order of the columns, empty cells filled in.
    rows: Vec<Vec<Option<Value>>>,
}

impl History {
    /// Reads a history.
    ///
    /// # Errors
    /// At the first thing that is wrong, with its line.
    pub fn read(input: impl Read) -> Result<Self, HistoryError> {
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(input);
        let columns: Vec<String> = reader
            .headers()
            .map_err(not_csv)?
            .iter()
            .map(ToOwned::to_owned)
            .collect();
        let mut seen = BTreeSet::new();
        if let Some(column) = columns.iter().find(|column| !seen.insert(column.as_str())) {
            return Err(HistoryError::TwiceTheColumn(column.clone()));
        }
        if !seen.contains("time") {
            return Err(HistoryError::NoTime);
        }
        let is_metric = |column: &str| column != "time" && column != "meter";
        let metrics = columns.iter().filter(|c| is_metric(c)).cloned().collect();
        let mut tracks: BTreeMap<String, Track> = BTreeMap::new();
        for record in reader.records() {
            let record = record.map_err(not_csv)?;
            let line = record.position().map_or(0, csv::Position::line);
            let wrong = |message: String| HistoryError::Line { line, message };
            let (mut time, mut meter, mut row) = (None, "", Vec::new());
            for (column, cell) in columns.iter().zip(record.iter()) {
                match column.as_str() {
                    "time" => {
                        let parsed: Timestamp = cell.parse().map_err(|error| wrong(format!("{error}")))?;
                        time = Some(parsed.0);
                    }
                    "meter" => meter = cell,
                    _ => row.push(value(cell)),
                }
            }
            let time = time.ok_or_else(|| wrong("it has no time".to_owned()))?;
            let track = tracks.entry(meter.to_owned()).or_default();
            if track.times.last().is_some_and(|last| *last >= time) {
                return Err(wrong(
                    "times must rise; this one is not after the one before it".to_owned(),
                ));
            }
            if let Some(before) = track.rows.last() {
                for (cell, before) in row.iter_mut().zip(before) {
                    if cell.is_none() {
                        cell.clone_from(before);
                    }
                }
            }
            track.times.push(time);
            track.rows.push(row);
        }
        if tracks.is_empty() {
            return Err(HistoryError::Empty);
        }
        Ok(Self { metrics, tracks })
    }

    /// The metrics that the history has columns for.
    #[must_use]
    pub fn metrics(&self) -> &[String] {
        &self.metrics
    }

    /// The meters that the history names; none where its lines hold for every meter.
    pub fn meters(&self) -> impl Iterator<Item = &str> {
        self.tracks
            .keys()
            .map(String::as_str)
            .filter(|meter| !meter.is_empty())
    }

    /// The value of a metric of a meter at a time; `None` where the history says nothing about it.
    #[must_use]
    pub fn value(&self, meter: &str, metric: &str, kind: Kind, time: Timestamp) -> Option<Value> {
        let column = self.metrics.iter().position(|name| name == metric)?;
        let track = self.tracks.get(meter).or_else(|| self.tracks.get(""))?;
        let (row, repetition) = track.row(time.0)?;
        let value = row.get(column)?.clone()?;
        if kind != Kind::Counter || repetition == 0 {
            return Some(value);
        }
        let first = track.rows.iter().find_map(|row| row.get(column)?.as_ref())?;
        let last = track.rows.last()?.get(column)?.as_ref()?;
        lifted(&value, first, last, repetition)
    }
}

impl Track {
    /// The line in force at a time, and how many repetitions came before it.
    fn row(&self, time: i64) -> Option<(&[Option<Value>], i64)> {
        let (first, last) = (*self.times.first()?, *self.times.last()?);
        // The last line lasts as long as the one before it did.
        let step = match self.times.as_slice() {
            [.., before, last] => last - before,
            _ => 1,
        };
        let span = last - first + step;
        let since = time.saturating_sub(first);
        let within = first + since.rem_euclid(span);
        let at = self.times.partition_point(|t| *t <= within).checked_sub(1)?;
        Some((self.rows.get(at)?, since.div_euclid(span)))
    }
}

/// A counter after so many repetitions; whole where it is whole. One below zero, before the history's own
/// time, stays at zero.
fn lifted(value: &Value, first: &Value, last: &Value, repetition: i64) -> Option<Value> {
    if let (Value::Int(value), Value::Int(first), Value::Int(last)) = (value, first, last) {
        let gain = last.saturating_sub(*first).saturating_mul(repetition);
        return Some(Value::Int(value.saturating_add(gain).max(0)));
    }
    let gain = (last.as_f64()? - first.as_f64()?) * repetition as f64;
    Some(Value::Float((value.as_f64()? + gain).max(0.0)))
}

fn value(cell: &str) -> Option<Value> {
    if cell.is_empty() {
        return None;
    }
    if let Ok(whole) = cell.parse() {
        return Some(Value::Int(whole));
    }
    if let Some(number) = cell.parse().ok().filter(|number: &f64| number.is_finite()) {
        return Some(Value::Float(number));
    }
    Some(match cell {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        text => Value::Text(text.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: i64 = 60_000;

    fn at(minutes: i64) -> Timestamp {
        let start: Timestamp = "2026-11-01T00:00:00Z".parse().unwrap();
        Timestamp(start.0 + minutes * MINUTE)
    }

    fn history() -> History {
        let text = "time, meter, voltage_l1_n, energy, serial\n\
            2026-11-01T00:00:00Z, a, 230.1, 1000, X-1\n\
            2026-11-01T00:15:00Z, a, , 1010,\n\
            2026-11-01T00:30:00Z, a, 229.8, 1030,\n\
            2026-11-01T00:00:00Z, b, 231, 5.5,\n";
        History::read(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_value_holds_until_the_next_and_repeats_end_to_end() {
        let history = history();
        for (minutes, voltage, energy) in [
            (0, 230.1, 1000),
            (14, 230.1, 1000),
            (15, 230.1, 1010),
            (44, 229.8, 1030),
            (45, 230.1, 1030),
            (61, 230.1, 1040),
            (90, 230.1, 1060),
            (-15, 229.8, 1000),
            (-1_000_000, 229.8, 0),
        ] {
            let value = |metric, kind| history.value("a", metric, kind, at(minutes));
            assert_eq!(
                value("voltage_l1_n", Kind::Gauge),
                Some(Value::Float(voltage)),
                "{minutes}"
            );
            assert_eq!(
                value("energy", Kind::Counter),
                Some(Value::Int(energy)),
                "{minutes}"
            );
            assert_eq!(value("serial", Kind::Text), Some(Value::Text("X-1".to_owned())));
        }
        assert_eq!(
            history.value("b", "voltage_l1_n", Kind::Gauge, at(7)),
            Some(Value::Int(231))
        );
        assert_eq!(history.value("c", "voltage_l1_n", Kind::Gauge, at(7)), None);
        assert_eq!(history.value("a", "current", Kind::Gauge, at(7)), None);
        assert_eq!(history.meters().collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn counters_only_rise_whatever_the_time() {
        let history = history();
        let energies: Vec<_> = (0..400)
            .map(|minutes| {
                history
                    .value("a", "energy", Kind::Counter, at(minutes))
                    .unwrap()
                    .as_f64()
            })
            .collect();
        assert!(energies.is_sorted());
        assert!(energies.last() > energies.first());
    }

    #[test]
    fn without_a_meter_column_it_holds_for_all() {
        let history = History::read(&b"time,power\n2026-11-01T00:00:00Z,5\n"[..]).unwrap();
        assert_eq!(
            history.value("any", "power", Kind::Gauge, at(9)),
            Some(Value::Int(5))
        );
        assert_eq!(history.meters().count(), 0);
    }

    #[test]
    fn says_what_is_wrong_and_where() {
        for (text, says) in [
            ("", "no column `time`"),
            ("when,power\n1,2\n", "no column `time`"),
            ("time,power,power\n", "names the column \"power\" twice"),
            ("time,power\n", "no lines after its first"),
            (
                "time,power\nnoon,2\n",
                "line 2 of the history: \"noon\" is not a time",
            ),
            (
                "time,power\n2026-11-01T00:15:00Z,2\n2026-11-01T00:00:00Z,2\n",
                "line 3 of the history: times must rise",
            ),
            ("time,power\n2026-11-01T00:15:00Z\n", "failed to read the history"),
        ] {
            let error = History::read(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
