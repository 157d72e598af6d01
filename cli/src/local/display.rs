//! What `corrente local` shows: pure text from what is known, so that it can be tested.
//!
//! In a terminal the picture is drawn over itself, so no line may be wider and no picture higher than the
//! terminal; elsewhere a line is printed every few seconds.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use corrente_record::{Quality, Reading, Value};

use super::figures::Figures;
use crate::site::count;

/// What people look for first: the heading of a column, and the metrics that go into it, the best first.
const COLUMNS: [(&str, &[&str]); 5] = [
    (
        "voltage",
        &[
            "voltage_l1_n",
            "voltage_ln_avg",
            "voltage_l1_l2",
            "voltage_ll_avg",
        ],
    ),
    ("current", &["current_l1", "current_avg", "current_total"]),
    ("power", &["active_power_total", "active_power_l1"]),
    ("frequency", &["frequency"]),
    (
        "energy",
        &[
            "energy_active_import",
            "energy_active_import_t1",
            "energy_active_total",
        ],
    ),
];

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

/// The room there is, in characters and lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Characters in a line.
    pub width: usize,
    /// Lines.
    pub height: usize,
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
        // Some record is always on its way; it is worth a word at the end.
        waiting: _,
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

/// What became of every record, at the end.
#[must_use]
pub fn summary(figures: &Figures) -> String {
    let Figures {
        polls, records, rows, ..
    } = *figures;
    let mut summary = format!(
        "ended: {}, {}, {}, lost: {}",
        count(polls as usize, "poll"),
        count(records as usize, "record"),
        count(rows as usize, "row"),
        figures.lost,
    );
    for (number, word) in [(figures.waiting, "waiting"), (figures.dead_lettered, "set aside")] {
        if number > 0 {
            let _ = write!(summary, ", {word}: {number}");
        }
    }
    summary
}

/// The latest reading of every meter, as a table that fits into the room.
#[must_use]
pub fn table(picture: &Picture, room: Room) -> String {
    let mut rows = vec![vec![
        "meter".to_owned(),
        "read at".to_owned(),
        "quality".to_owned(),
    ]];
    rows[0].extend(COLUMNS.map(|(heading, _)| heading.to_owned()));
    // Two lines are kept for what does not fit and for who is waited for.
    let shown = room.height.saturating_sub(3).max(1);
    for (meter, reading) in picture.latest.iter().take(shown) {
        let at = reading.ts.to_string();
        // The time of day is enough while one watches.
        let at = at.get(11..23).unwrap_or(&at).to_owned();
        let mut row = vec![meter.clone(), at, reading.quality.as_str().to_owned()];
        row.extend(cells(meter, reading, picture));
        rows.push(row);
    }
    // The last cell of a row may run on, so that a reason is not cut to the width of a number.
    let width = |column: usize| {
        let cells = rows.iter().filter(|row| row.len() > column + 1 || column < 3);
        cells
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..3 + COLUMNS.len()).map(width).collect();
    let mut lines: Vec<String> = rows
        .iter()
        .map(|row| {
            let cells: Vec<String> = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:width$}"))
                .collect();
            cells.join("  ")
        })
        .collect();
    if picture.latest.len() > shown {
        lines.push(format!("... and {} meters more", picture.latest.len() - shown));
    }
    if picture.latest.len() < picture.meters {
        lines.push(format!(
            "waiting for {} of {} meters",
            picture.meters - picture.latest.len(),
            picture.meters
        ));
    }
    lines.iter().map(|line| cut(line, room.width) + "\n").collect()
}

/// A line without the blanks at its end, and no wider than the room.
#[must_use]
pub fn cut(line: &str, width: usize) -> String {
    let line = line.trim_end();
    if line.chars().count() <= width {
        return line.to_owned();
    }
    line.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// What a reading says in the table's columns: the reason where it failed, and the first metrics by name
/// where it has none of those that people look for.
fn cells(meter: &str, reading: &Reading, picture: &Picture) -> Vec<String> {
    if reading.quality == Quality::Failed {
        return vec![
            reading
                .bad
                .first()
                .map_or_else(String::new, |(_, reason)| reason.clone()),
        ];
    }
    let shown = |name: &str| {
        let (_, value) = reading.values.iter().find(|(n, _)| &**n == name)?;
        let unit = picture
            .units
            .get(&(meter.to_owned(), name.to_owned()))
            .map_or("", String::as_str);
        Some(format!("{} {unit}", number(value)).trim_end().to_owned())
    };
    let cells: Vec<String> = COLUMNS
        .iter()
        .map(|(_, metrics)| metrics.iter().find_map(|name| shown(name)).unwrap_or_default())
        .collect();
    if cells.iter().any(|cell| !cell.is_empty()) {
        return cells;
    }
    let first = reading.values.iter().take(3);
    vec![
        first
            .map(|(name, _)| format!("{name} {}", shown(name).unwrap_or_default()))
            .collect::<Vec<_>>()
            .join("  "),
    ]
}

fn number(value: &Value) -> String {
    match value {
        Value::Float(v) if v.abs() >= 1000.0 => format!("{v:.0}"),
        Value::Float(v) => format!("{}", (v * 100.0).round() / 100.0),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use corrente_record::Timestamp;

    use super::*;

    fn reading(meter: &str, values: &[(&str, Value)], bad: Option<&str>) -> Reading {
        Reading {
            ts: Timestamp(1_795_213_200_123),
            meter: meter.into(),
            slot: Timestamp(1_795_213_200_000),
            quality: if bad.is_some() {
                Quality::Failed
            } else {
                Quality::Good
            },
            skipped: 0,
            labels: Arc::default(),
            values: values
                .iter()
                .map(|(name, value)| ((*name).into(), value.clone()))
                .collect(),
            bad: bad
                .iter()
                .map(|reason| ("voltage_l1_n".into(), (*reason).to_owned()))
                .collect(),
        }
    }

    fn picture() -> Picture {
        let mut picture = Picture {
            meters: 4,
            ..Picture::default()
        };
        let values = [
            ("energy_active_import", Value::UInt(7_000)),
            ("voltage_l1_n", Value::Float(229.800_000_1)),
        ];
        for (name, values, bad) in [
            ("feeder-01", &values[..], None),
            ("pump", &[], Some("no answer within 500 ms, asked twice")),
            ("tank", &[("level", Value::Int(3))], None),
        ] {
            picture.latest.insert(name.to_owned(), reading(name, values, bad));
        }
        picture.units.insert(
            ("feeder-01".to_owned(), "voltage_l1_n".to_owned()),
            "V".to_owned(),
        );
        picture
    }

    #[test]
    fn shows_what_people_look_for_first() {
        let text = table(
            &picture(),
            Room {
                width: 100,
                height: 24,
            },
        );
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[0],
            "meter      read at       quality  voltage  current  power  frequency  energy"
        );
        assert_eq!(
            lines[1],
            "feeder-01  22:20:00.123  good     229.8 V                             7000"
        );
        assert_eq!(
            lines[2],
            "pump       22:20:00.123  failed   no answer within 500 ms, asked twice"
        );
        assert_eq!(lines[3], "tank       22:20:00.123  good     level 3");
        assert_eq!(lines[4], "waiting for 1 of 4 meters");
    }

    #[test]
    fn keeps_to_the_room() {
        for (width, height) in [(20, 4), (35, 5), (80, 6), (1, 1)] {
            let text = table(&picture(), Room { width, height });
            assert!(text.lines().all(|line| line.chars().count() <= width), "{text}");
            assert!(text.lines().count() <= height.max(4), "{text}");
        }
        let text = table(&picture(), Room { width: 40, height: 5 });
        assert!(
            text.contains("... and 1 meters more") && text.contains('…'),
            "{text}"
        );
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
        assert_eq!(summary(&figures), "ended: 12 polls, 12 records, 11 rows, lost: 0");
        let figures = Figures {
            failed: 2,
            waiting: 1,
            dead_lettered: 3,
            ..figures
        };
        assert!(line(Duration::ZERO, &figures).ends_with(", failed polls 2, set aside 3"));
        assert!(summary(&figures).ends_with(", lost: 0, waiting: 1, set aside: 3"));
    }
}
