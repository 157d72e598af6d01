//! What `corrente local` shows: pure text from what is known, so that it can be tested.
//!
//! In a terminal the picture is drawn over itself; elsewhere a line is printed every few seconds.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use corrente_record::{Quality, Reading, Value};

/// Most meters in the picture; the others are counted.
const SHOWN: usize = 24;

/// What people look for first, in this order; of each meter the first ones it has are shown.
const FIRST: [&str; 8] = [
    "voltage_l1_n",
    "voltage_ln_avg",
    "current_l1",
    "active_power_total",
    "frequency",
    "energy_active_import",
    "energy_active_import_t1",
    "energy_active_total",
];

/// The figures of the chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Polls done, failed ones included.
    pub polls: u64,
    /// Polls that read nothing.
    pub failed: u64,
    /// Slots that were due and could not be polled in time.
    pub skipped: u64,
    /// Records written to the spools.
    pub records: u64,
    /// Rows stored.
    pub rows: u64,
    /// Records set aside, with the reason, in the dead-letter table.
    pub dead_lettered: u64,
    /// Records that were made and are neither stored nor set aside, nor waiting.
    pub lost: u64,
}

/// The last reading of each meter, and the units of its metrics.
#[derive(Clone, Default)]
pub struct Picture {
    /// By meter.
    pub latest: BTreeMap<String, Reading>,
    /// The unit of each metric of a meter, by meter and metric.
    pub units: BTreeMap<(String, String), String>,
    /// Meters there are.
    pub meters: usize,
}

/// The figures in one line.
#[must_use]
pub fn line(elapsed: Duration, figures: &Figures) -> String {
    let Figures {
        polls,
        failed,
        skipped,
        records,
        rows,
        dead_lettered,
        lost,
    } = figures;
    let mut line = format!(
        "{:>4} s  polls {polls}, records {records}, rows {rows}, lost {lost}",
        elapsed.as_secs()
    );
    for (count, noun) in [
        (failed, "failed polls"),
        (skipped, "slots skipped"),
        (dead_lettered, "set aside"),
    ] {
        if *count > 0 {
            let _ = write!(line, ", {noun} {count}");
        }
    }
    line
}

/// The latest reading of every meter, as a table.
#[must_use]
pub fn table(picture: &Picture) -> String {
    let width = picture.latest.keys().map(String::len).max().unwrap_or(5).max(5);
    let mut out = format!("{:width$}  {:12}  {:7}  latest\n", "meter", "read at", "quality");
    for (meter, reading) in picture.latest.iter().take(SHOWN) {
        let at = reading.ts.to_string();
        // The time of day is enough while one watches.
        let at = at.get(11..23).unwrap_or(&at);
        let _ = writeln!(
            out,
            "{meter:width$}  {at:12}  {:7}  {}",
            reading.quality.as_str(),
            summary(meter, reading, picture)
        );
    }
    if picture.latest.len() > SHOWN {
        let _ = writeln!(out, "... and {} meters more", picture.latest.len() - SHOWN);
    }
    if picture.latest.len() < picture.meters {
        let _ = writeln!(
            out,
            "waiting for {} of {} meters",
            picture.meters - picture.latest.len(),
            picture.meters
        );
    }
    out
}

fn summary(meter: &str, reading: &Reading, picture: &Picture) -> String {
    if reading.quality == Quality::Failed {
        return reading
            .bad
            .first()
            .map_or_else(String::new, |(_, reason)| reason.clone());
    }
    let mut parts: Vec<String> = Vec::new();
    let known = FIRST
        .iter()
        .filter_map(|name| reading.values.iter().find(|(n, _)| &**n == *name));
    for (name, value) in known.chain(&reading.values) {
        let unit = picture
            .units
            .get(&(meter.to_owned(), name.to_string()))
            .map_or("", String::as_str);
        let part = format!(
            "{name} {}{}{unit}",
            number(value),
            if unit.is_empty() { "" } else { " " }
        );
        if !parts.contains(&part) {
            parts.push(part);
        }
        if parts.len() == 4 {
            break;
        }
    }
    parts.join("  ")
}

fn number(value: &Value) -> String {
    match value {
        Value::Float(v) if v.abs() >= 1000.0 => format!("{v:.0}"),
        Value::Float(v) => format!("{}", (v * 1000.0).round() / 1000.0),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use corrente_record::Timestamp;

    use super::*;

    fn reading(meter: &str, quality: Quality) -> Reading {
        Reading {
            ts: Timestamp(1_795_213_200_123),
            meter: meter.into(),
            slot: Timestamp(1_795_213_200_000),
            quality,
            labels: Arc::default(),
            values: match quality {
                Quality::Failed => vec![],
                _ => vec![
                    ("energy_active_import".into(), Value::UInt(7_000)),
                    ("voltage_l1_n".into(), Value::Float(229.800_000_1)),
                ],
            },
            bad: match quality {
                Quality::Failed => vec![("voltage_l1_n".into(), "no answer in 500ms".to_owned())],
                _ => vec![],
            },
        }
    }

    #[test]
    fn shows_what_people_look_for_first() {
        let mut picture = Picture {
            meters: 3,
            ..Picture::default()
        };
        picture
            .latest
            .insert("feeder-01".to_owned(), reading("feeder-01", Quality::Good));
        picture
            .latest
            .insert("pump".to_owned(), reading("pump", Quality::Failed));
        picture.units.insert(
            ("feeder-01".to_owned(), "voltage_l1_n".to_owned()),
            "V".to_owned(),
        );
        let text = table(&picture);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[1],
            "feeder-01  22:20:00.123  good     voltage_l1_n 229.8 V  energy_active_import 7000"
        );
        assert_eq!(lines[2], "pump       22:20:00.123  failed   no answer in 500ms");
        assert_eq!(lines[3], "waiting for 1 of 3 meters");
    }

    #[test]
    fn the_line_names_only_what_happened() {
        let figures = Figures {
            polls: 12,
            records: 12,
            rows: 11,
            ..Figures::default()
        };
        assert_eq!(
            line(Duration::from_secs(7), &figures),
            "   7 s  polls 12, records 12, rows 11, lost 0"
        );
        let figures = Figures { failed: 2, ..figures };
        assert!(line(Duration::ZERO, &figures).ends_with(", failed polls 2"));
    }
}
