//! The rows that windows are made from, read back within the transaction.
//!
//! One statement for all stretches of a batch: each is a row of `unnest`, and what belongs to it comes by `LATERAL` from the
//! index over (meter, ts). A reading next to a stretch is looked for no further than the longest gap that counts.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio_postgres::{Error, Row, Transaction};

use crate::{
    derived::{SLOT_SLACK, Sample, instant, job::Job, plan::Plan, touched::Stretch},
    sink::{
        columns::quote,
        postgres::{encode::PgType, layout::Layout},
    },
};

/// The table of the readings, as its columns are by now.
pub struct Source {
    table: String,
    /// The metrics' values as doubles, and the serial numbers as texts.
    values: Vec<String>,
    serials: Vec<String>,
    /// What a reading of each counter must have, its value, and how far to look for one, in milliseconds.
    counters: Vec<(String, String, i64)>,
    /// What else rows must be, where each has one metric.
    among: String,
}

/// How a field is written in SQL, of a row `t` of the table.
enum Names<'a> {
    /// Each field is a column.
    Columns(&'a Layout),
    /// Each metric is a row, of this table.
    Rows(&'a str, &'a Layout),
}

impl Names<'_> {
    fn kind<'l>(layout: &'l Layout, name: &str) -> Option<&'l PgType> {
        let at = layout.position(name)?;
        layout.columns.get(at).map(|(_, kind)| kind)
    }

    /// A metric's value as a double.
    fn value(&self, name: &str) -> String {
        let layout = match self {
            Self::Columns(layout) => layout,
            Self::Rows(..) => {
                return format!(
                    "CASE WHEN t.metric = {} THEN coalesce(t.value, t.exact::float8, t.bool_value::int::float8) END",
                    literal(name)
                );
            }
        };
        match Self::kind(layout, name) {
            Some(PgType::Float8) => format!("t.{}", quote(name)),
            Some(PgType::Float4 | PgType::Int8 | PgType::Int4 | PgType::Int2 | PgType::Numeric(_)) => {
                format!("t.{}::float8", quote(name))
            }
            Some(PgType::Boolean) => format!("t.{}::int::float8", quote(name)),
            // It has no such column yet, or one that holds no numbers.
            _ => "NULL::float8".to_owned(),
        }
    }

    /// A serial number as a text.
    fn serial(&self, name: &str) -> String {
        match self {
            Self::Columns(layout) | Self::Rows(_, layout) if Self::kind(layout, name).is_some() => {
                format!("t.{}::text", quote(name))
            }
            Self::Columns(_) => "NULL::text".to_owned(),
            // It is another row of the same record.
            Self::Rows(table, _) => format!(
                "(SELECT coalesce(s.text_value, s.exact::text, s.value::text) FROM {table} s \
                 WHERE s.meter = t.meter AND s.metric = {} AND s.ts = t.ts ORDER BY 1 LIMIT 1)",
                literal(name)
            ),
        }
    }
}

/// A text in SQL.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// When the reading before a stretch was and the one after it, where there are any.
pub type Neighbours = (Option<i64>, Option<i64>);

pub fn time(millis: i64) -> SystemTime {
    let span = Duration::from_millis(millis.unsigned_abs());
    let time = if millis < 0 {
        UNIX_EPOCH.checked_sub(span)
    } else {
        UNIX_EPOCH.checked_add(span)
    };
    time.unwrap_or(UNIX_EPOCH)
}

/// Milliseconds since the epoch, rounded down.
pub fn millis(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(span) => i64::try_from(span.as_millis()).unwrap_or(i64::MAX),
        Err(before) => -i64::try_from(before.duration().as_micros().div_ceil(1000)).unwrap_or(i64::MAX),
    }
}

impl Source {
    /// What there is of the plan's columns; in a narrow table, of its metrics.
    pub fn new(plan: &Plan, table: &str, narrow: bool, layout: &Layout) -> Self {
        let names = if narrow {
            Names::Rows(table, layout)
        } else {
            Names::Columns(layout)
        };
        let counters = plan.counters().map(|(at, counter)| {
            let name = plan.metrics.get(at).map_or("", |metric| metric.name.as_str());
            let mut wanted = format!("{} IS NOT NULL", names.value(name));
            if narrow {
                // What the planner sees at once: the index begins with it.
                wanted = format!("t.metric = {} AND {wanted}", literal(name));
            }
            if let Some(serial) = counter.serial.and_then(|serial| plan.serials.get(serial)) {
                wanted.push_str(&format!(" AND {} IS NOT NULL", names.serial(serial)));
            }
            let gap = i64::try_from(counter.config.longest_gap_millis).unwrap_or(i64::MAX / 4);
            (wanted, names.value(name), gap.saturating_add(SLOT_SLACK))
        });
        let metrics: Vec<String> = plan.metrics.iter().map(|metric| literal(&metric.name)).collect();
        Self {
            table: format!("{table} t"),
            counters: counters.collect(),
            values: plan
                .metrics
                .iter()
                .map(|metric| names.value(&metric.name))
                .collect(),
            serials: plan.serials.iter().map(|serial| names.serial(serial)).collect(),
            among: if narrow {
                format!(" AND t.metric IN ({})", metrics.join(", "))
            } else {
                String::new()
            },
        }
    }

    /// The readings next to each stretch, of any counter: the earliest before it, and the latest after it.
    pub async fn neighbours(
        &self,
        transaction: &Transaction<'_>,
        stretches: &[(&str, Stretch)],
    ) -> Result<Vec<Neighbours>, Error> {
        let mut found = vec![(None, None); stretches.len()];
        if self.counters.is_empty() {
            return Ok(found);
        }
        let table = &self.table;
        let (mut columns, mut joins) = (String::new(), String::new());
        for (at, (wanted, _, gap)) in self.counters.iter().enumerate() {
            columns.push_str(&format!(", b{at}.ts, b{at}.slot, a{at}.ts, a{at}.slot"));
            joins.push_str(&format!(
                " LEFT JOIN LATERAL (SELECT t.ts, t.slot FROM {table} WHERE t.meter = k.meter AND t.ts < k.lo \
                 AND t.ts >= k.lo - interval '{gap} milliseconds' AND {wanted} ORDER BY t.ts DESC LIMIT 1) b{at} ON true \
                 LEFT JOIN LATERAL (SELECT t.ts, t.slot FROM {table} WHERE t.meter = k.meter AND t.ts > k.hi \
                 AND t.ts <= k.hi + interval '{gap} milliseconds' AND {wanted} ORDER BY t.ts LIMIT 1) a{at} ON true"
            ));
        }
        let sql = format!("SELECT k.nr{columns} FROM {KEYS}{joins}");
        let meters: Vec<&str> = stretches.iter().map(|(meter, _)| *meter).collect();
        let from: Vec<SystemTime> = stretches.iter().map(|(_, stretch)| time(stretch.ts.0)).collect();
        let to: Vec<SystemTime> = stretches.iter().map(|(_, stretch)| time(stretch.ts.1)).collect();
        for row in transaction.query(&sql, &[&meters, &from, &to]).await? {
            let Some((before, after)) = place(&row)?.and_then(|nr| found.get_mut(nr)) else {
                continue;
            };
            for at in 0..self.counters.len() {
                if let Some(was) = when(&row, 1 + at * 4)? {
                    *before = Some(before.map_or(was, |known: i64| known.min(was)));
                }
                if let Some(was) = when(&row, 3 + at * 4)? {
                    *after = Some(after.map_or(was, |known: i64| known.max(was)));
                }
            }
        }
        Ok(found)
    }

    /// The rows of each job's hull, and the counters' readings next to it.
    pub async fn samples(
        &self,
        transaction: &Transaction<'_>,
        jobs: &[Job<'_>],
    ) -> Result<Vec<Vec<Sample>>, Error> {
        let (table, among) = (&self.table, &self.among);
        let columns: Vec<String> = ["t.ts".to_owned(), "t.slot".to_owned()]
            .into_iter()
            .chain(
                self.values
                    .iter()
                    .enumerate()
                    .map(|(at, value)| format!("{value} AS v{at}")),
            )
            .chain(
                self.serials
                    .iter()
                    .enumerate()
                    .map(|(at, serial)| format!("{serial} AS s{at}")),
            )
            .collect();
        let columns = columns.join(", ");
        let mut rows = format!(
            "SELECT {columns} FROM {table} WHERE t.meter = k.meter AND t.ts > k.lo AND t.ts <= k.hi{among}"
        );
        for (wanted, value, gap) in &self.counters {
            rows.push_str(&format!(
                " UNION ALL (SELECT {columns} FROM {table} WHERE t.meter = k.meter AND t.ts <= k.lo \
                 AND t.ts > k.lo - interval '{gap} milliseconds' AND {wanted} ORDER BY t.ts DESC, {value} DESC LIMIT 1) \
                 UNION ALL (SELECT {columns} FROM {table} WHERE t.meter = k.meter AND t.ts > k.hi \
                 AND t.ts <= k.hi + interval '{gap} milliseconds' AND {wanted} ORDER BY t.ts, {value} LIMIT 1)"
            ));
        }
        let sql = format!("SELECT k.nr, r.* FROM {KEYS} CROSS JOIN LATERAL ({rows}) r");
        let meters: Vec<&str> = jobs.iter().map(|job| job.meter).collect();
        let from: Vec<SystemTime> = jobs.iter().map(|job| time(job.hull.0)).collect();
        // A reading that was within the hull may have been read this much later.
        let to: Vec<SystemTime> = jobs
            .iter()
            .map(|job| time(job.hull.1.saturating_add(SLOT_SLACK)))
            .collect();
        let mut samples = vec![vec![]; jobs.len()];
        for row in transaction.query(&sql, &[&meters, &from, &to]).await? {
            let Some(place) = place(&row)?.and_then(|nr| samples.get_mut(nr)) else {
                continue;
            };
            let ts = millis(row.try_get(1)?);
            let mut sample = Sample {
                ts,
                at: instant(ts, row.try_get::<_, Option<SystemTime>>(2)?.map(millis)),
                values: Vec::with_capacity(self.values.len()),
                serials: Vec::with_capacity(self.serials.len()),
            };
            for at in 0..self.values.len() {
                let value: Option<f64> = row.try_get(3 + at)?;
                sample.values.push(value.filter(|value| value.is_finite()));
            }
            for at in 0..self.serials.len() {
                sample.serials.push(row.try_get(3 + self.values.len() + at)?);
            }
            place.push(sample);
        }
        for samples in &mut samples {
            samples.sort_by_key(|sample: &Sample| sample.ts);
        }
        Ok(samples)
    }
}

/// The stretches: their numbers from 1, meters, and first and last instants.
const KEYS: &str =
    "unnest($1::text[], $2::timestamptz[], $3::timestamptz[]) WITH ORDINALITY AS k (meter, lo, hi, nr)";

fn place(row: &Row) -> Result<Option<usize>, Error> {
    Ok(usize::try_from(row.try_get::<_, i64>(0)? - 1).ok())
}

/// When a reading was, from its `ts` and `slot` in two columns of a row.
fn when(row: &Row, at: usize) -> Result<Option<i64>, Error> {
    let ts: Option<SystemTime> = row.try_get(at)?;
    let slot: Option<SystemTime> = row.try_get(at + 1)?;
    Ok(ts.map(|ts| instant(millis(ts), slot.map(millis))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_there_and_back() {
        for number in [0, 1, -1, 1_795_213_200_123, -62_135_596_800_000] {
            assert_eq!(millis(time(number)), number);
        }
        assert_eq!(millis(UNIX_EPOCH - Duration::from_micros(1)), -1, "rounded down");
        assert_eq!(millis(UNIX_EPOCH + Duration::from_micros(1999)), 1);
    }
}
