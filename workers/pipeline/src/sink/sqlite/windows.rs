//! Windows in SQLite, made anew in the transaction that stores what touched them.
//!
//! What is derived is what PostgreSQL derives, by the same functions: see [`crate::derived`]. Only reading the rows back
//! and writing the windows is done here, stretch by stretch. Nobody else writes to the file, so nothing is locked.

use std::collections::HashMap;

use corrente_config::PipelineConfig;
use corrente_record::{Timestamp, View};
use rusqlite::{Error, Row, Transaction, params};

use crate::{
    derived::{
        SLOT_SLACK, Sample, instant,
        job::{self, Job, Made, SAYS, said_by, set},
        plan::{Plan, WindowTable},
        touched::{Stretch, Touched},
    },
    sink::columns::quote,
};

/// The windows of a pipeline.
pub struct Windows {
    plan: Plan,
    readings: String,
    touched: Touched,
    /// Whether what was written down since the last start has been looked at.
    seeded: bool,
}

/// What a counter's reading must have, its value, and how far to look for one, in milliseconds.
struct CounterSql {
    wanted: String,
    value: String,
    gap: i64,
}

impl Windows {
    /// What a pipeline derives from the table `readings`; `None` where it derives nothing.
    #[must_use]
    pub fn new(config: &PipelineConfig, readings: &str) -> Option<Self> {
        Some(Self {
            plan: Plan::new(config.derived.as_ref()?),
            readings: readings.to_owned(),
            touched: Touched::default(),
            seeded: false,
        })
    }

    /// Makes the tables that are missing. Called once per connection.
    pub fn create(&mut self, transaction: &Transaction<'_>) -> Result<(), Error> {
        // What failed with the last connection is looked at again.
        self.seeded = false;
        for table in &self.plan.tables {
            let name = quote(&table.name);
            transaction.execute_batch(&format!(
                "CREATE TABLE IF NOT EXISTS {name} (
                    meter TEXT NOT NULL, metric TEXT NOT NULL, window_start TEXT NOT NULL, window_end TEXT NOT NULL,
                    demand REAL, energy REAL, mean REAL, min REAL, max REAL, last REAL,
                    readings INTEGER NOT NULL, expected INTEGER, completeness REAL, quality TEXT NOT NULL,
                    rollovers INTEGER NOT NULL, resets INTEGER NOT NULL, jumps INTEGER NOT NULL, swaps INTEGER NOT NULL,
                    revision INTEGER NOT NULL DEFAULT 1, updated_at TEXT NOT NULL,
                    PRIMARY KEY (meter, metric, window_end)
                )"
            ))?;
        }
        Ok(())
    }

    /// A batch begins.
    pub fn begin(&mut self) {
        self.touched.clear();
    }

    /// A row is stored.
    pub fn observe(&mut self, view: &View<'_>) {
        self.touched.observe(&self.plan, view);
    }

    /// Makes anew what the batch has touched. `columns` are the table's, in lower case, with their types.
    pub fn write(
        &mut self,
        transaction: &Transaction<'_>,
        columns: &HashMap<String, String>,
    ) -> Result<(), Error> {
        if !self.seeded {
            for swap in &self.plan.swaps {
                self.touched.add(&self.plan, &swap.meter, swap.at.0, swap.at.0);
            }
        }
        let source = Source::new(&self.plan, &self.readings, columns);
        let (mut jobs, mut samples) = (vec![], vec![]);
        for (meter, stretches) in self.touched.stretches(&self.plan) {
            for stretch in stretches {
                let (before, after) = source.neighbours(transaction, meter, &stretch)?;
                let job = Job::new(&self.plan, meter, &stretch, before, after);
                samples.push(source.samples(transaction, &job)?);
                jobs.push(job);
            }
        }
        for table in &self.plan.tables {
            let windows = job::make(&self.plan, table, &jobs, &samples);
            upsert(transaction, &self.plan, table, &windows)?;
        }
        self.seeded = true;
        Ok(())
    }
}

/// The table of the readings, as its columns are by now.
struct Source {
    table: String,
    /// `ts`, `slot`, the metrics' values as doubles, and the serial numbers as texts.
    columns: String,
    values: usize,
    serials: usize,
    counters: Vec<CounterSql>,
}

/// An instant as the table has it: its texts sort as the instants do.
fn text(millis: i64) -> String {
    Timestamp(millis).to_string()
}

/// When a reading was read and when it was, from the first two columns of a row.
fn when(row: &Row<'_>) -> Result<(i64, i64), Error> {
    let parse = |text: String| text.parse::<Timestamp>().ok().map(|at| at.0);
    let ts = parse(row.get(0)?).ok_or_else(|| {
        let what = "a row whose ts is no instant".to_owned();
        Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, what.into())
    })?;
    let slot = row.get::<_, Option<String>>(1)?.and_then(parse);
    Ok((ts, instant(ts, slot)))
}

impl Source {
    fn new(plan: &Plan, table: &str, columns: &HashMap<String, String>) -> Self {
        let value = |name: &str| match columns.get(&name.to_ascii_lowercase()).map(String::as_str) {
            // It has no such column yet, or one that holds no numbers.
            None | Some("TEXT") => "NULL".to_owned(),
            Some(_) => format!("CAST({} AS REAL)", quote(name)),
        };
        let serial = |name: &str| match columns.get(&name.to_ascii_lowercase()) {
            None => "NULL".to_owned(),
            Some(_) => format!("CAST({} AS TEXT)", quote(name)),
        };
        let counters = plan.counters().map(|(at, counter)| {
            let value = value(plan.metrics.get(at).map_or("", |metric| metric.name.as_str()));
            let mut wanted = format!("{value} IS NOT NULL");
            if let Some(name) = counter.serial.and_then(|serial| plan.serials.get(serial)) {
                wanted.push_str(&format!(" AND {} IS NOT NULL", serial(name)));
            }
            let gap = i64::try_from(counter.config.longest_gap_millis).unwrap_or(i64::MAX / 4);
            CounterSql {
                wanted,
                value,
                gap: gap.saturating_add(SLOT_SLACK),
            }
        });
        let counters = counters.collect();
        let all = ["ts".to_owned(), "slot".to_owned()]
            .into_iter()
            .chain(plan.metrics.iter().map(|metric| value(&metric.name)))
            .chain(plan.serials.iter().map(|name| serial(name)));
        Self {
            table: quote(table),
            columns: all.collect::<Vec<_>>().join(", "),
            values: plan.metrics.len(),
            serials: plan.serials.len(),
            counters,
        }
    }

    /// When the readings next to a stretch were, of any counter: the earliest before it, and the latest after it.
    fn neighbours(
        &self,
        transaction: &Transaction<'_>,
        meter: &str,
        stretch: &Stretch,
    ) -> Result<(Option<i64>, Option<i64>), Error> {
        let (mut earliest, mut latest): (Option<i64>, Option<i64>) = (None, None);
        let table = &self.table;
        let first = |sql: &str, near: i64, far: i64| -> Result<Option<i64>, Error> {
            let mut statement = transaction.prepare_cached(sql)?;
            let mut rows = statement.query(params![meter, text(near), text(far)])?;
            rows.next()?.map(|row| Ok(when(row)?.1)).transpose()
        };
        for CounterSql { wanted, gap, .. } in &self.counters {
            let before = format!(
                "SELECT ts, slot FROM {table} WHERE meter = ?1 AND ts < ?2 AND ts >= ?3 AND {wanted} \
                 ORDER BY ts DESC LIMIT 1"
            );
            if let Some(was) = first(&before, stretch.ts.0, stretch.ts.0.saturating_sub(*gap))? {
                earliest = Some(earliest.map_or(was, |known| known.min(was)));
            }
            let after = format!(
                "SELECT ts, slot FROM {table} WHERE meter = ?1 AND ts > ?2 AND ts <= ?3 AND {wanted} ORDER BY ts LIMIT 1"
            );
            if let Some(was) = first(&after, stretch.ts.1, stretch.ts.1.saturating_add(*gap))? {
                latest = Some(latest.map_or(was, |known| known.max(was)));
            }
        }
        Ok((earliest, latest))
    }

    /// The rows of a job's hull, and the counters' readings next to it.
    fn samples(&self, transaction: &Transaction<'_>, job: &Job<'_>) -> Result<Vec<Sample>, Error> {
        let (table, columns) = (&self.table, &self.columns);
        // A reading that was within the hull may have been read this much later.
        let (from, to) = (job.hull.0, job.hull.1.saturating_add(SLOT_SLACK));
        let mut samples = vec![];
        let mut read = |sql: &str, from: i64, to: i64| -> Result<(), Error> {
            let mut statement = transaction.prepare_cached(sql)?;
            let mut rows = statement.query(params![job.meter, text(from), text(to)])?;
            while let Some(row) = rows.next()? {
                samples.push(self.sample(row)?);
            }
            Ok(())
        };
        read(
            &format!("SELECT {columns} FROM {table} WHERE meter = ?1 AND ts > ?2 AND ts <= ?3"),
            from,
            to,
        )?;
        for CounterSql { wanted, value, gap } in &self.counters {
            read(
                &format!(
                    "SELECT {columns} FROM {table} WHERE meter = ?1 AND ts <= ?2 AND ts > ?3 AND {wanted} \
                     ORDER BY ts DESC, {value} DESC LIMIT 1"
                ),
                from,
                from.saturating_sub(*gap),
            )?;
            read(
                &format!(
                    "SELECT {columns} FROM {table} WHERE meter = ?1 AND ts > ?2 AND ts <= ?3 AND {wanted} \
                     ORDER BY ts, {value} LIMIT 1"
                ),
                to,
                to.saturating_add(*gap),
            )?;
        }
        samples.sort_by_key(|sample: &Sample| sample.ts);
        Ok(samples)
    }

    fn sample(&self, row: &Row<'_>) -> Result<Sample, Error> {
        let (ts, at) = when(row)?;
        let mut sample = Sample {
            ts,
            at,
            values: Vec::with_capacity(self.values),
            serials: Vec::with_capacity(self.serials),
        };
        for at in 0..self.values {
            let value: Option<f64> = row.get(2 + at)?;
            sample.values.push(value.filter(|value| value.is_finite()));
        }
        for at in 0..self.serials {
            sample.serials.push(row.get(2 + self.values + at)?);
        }
        Ok(sample)
    }
}

/// Writes windows. When `revision` rises, and which window stays as it is, is as in PostgreSQL.
fn upsert(
    transaction: &Transaction<'_>,
    plan: &Plan,
    table: &WindowTable,
    windows: &Made<'_>,
) -> Result<(), Error> {
    let name = quote(&table.name);
    let (says, set) = (SAYS.join(", "), set());
    let sql = format!(
        "INSERT INTO {name} AS w (meter, metric, window_start, window_end, {says}, updated_at) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19) \
         ON CONFLICT (meter, metric, window_end) DO UPDATE SET {set}, updated_at = excluded.updated_at, \
         revision = w.revision + EXISTS (SELECT 1 FROM {name} later WHERE later.meter = w.meter \
         AND later.metric = w.metric AND later.window_end > w.window_end) \
         WHERE excluded.readings >= w.readings AND ({}) IS NOT ({})",
        said_by("w"),
        said_by("excluded"),
    );
    let mut statement = transaction.prepare_cached(&sql)?;
    let now = Timestamp::now().to_string();
    for ((meter, metric, end), window) in windows {
        let metric = plan
            .metrics
            .get(*metric)
            .map_or("", |metric| metric.name.as_str());
        statement.execute(params![
            meter,
            metric,
            text(end - table.interval),
            text(*end),
            window.demand,
            window.energy,
            window.mean,
            window.min,
            window.max,
            window.last,
            window.readings,
            window.expected,
            window.completeness(),
            window.quality.as_str(),
            window.rollovers,
            window.resets,
            window.jumps,
            window.swaps,
            now,
        ])?;
    }
    Ok(())
}
