//! Thresholds in SQLite, looked at in the transaction that stores the values. Their alerts are rows of
//! `corrente_alerts`: the one who watches is the one who is told.

use corrente_config::PipelineConfig;
use corrente_record::{Timestamp, View};
use rusqlite::{Error, Transaction, params};

use crate::alerts::{
    message::id,
    threshold::{Change, Standing},
    watch::{Seen, Standings, Watch},
};

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS corrente_alert_standings (
        pipeline TEXT NOT NULL, name TEXT NOT NULL, meter TEXT NOT NULL, seen INTEGER, since INTEGER, firing INTEGER,
        PRIMARY KEY (pipeline, meter, name)
    );
    CREATE TABLE IF NOT EXISTS corrente_alerts (
        id TEXT PRIMARY KEY, pipeline TEXT NOT NULL, name TEXT NOT NULL, meter TEXT NOT NULL, metric TEXT NOT NULL,
        labels TEXT NOT NULL, summary TEXT, started_at TEXT NOT NULL, value REAL NOT NULL, ended_at TEXT, end_value REAL
    );
";

/// The thresholds of a pipeline.
pub struct Thresholds {
    pipeline: String,
    watch: Watch,
}

impl Thresholds {
    /// What a pipeline watches; `None` where it watches nothing.
    #[must_use]
    pub fn new(config: &PipelineConfig) -> Option<Self> {
        let alerts = config.alerts.as_ref()?;
        Some(Self {
            pipeline: format!("{}/{}", config.namespace, config.name),
            watch: Watch::new(alerts.thresholds.clone()),
        })
    }

    /// Makes the tables that are missing, and ends the alerts of thresholds that are no more.
    pub fn create(&self, transaction: &Transaction<'_>) -> Result<(), Error> {
        transaction.execute_batch(TABLES)?;
        let names: Vec<&str> = self.watch.thresholds.iter().map(|t| t.name.as_str()).collect();
        let names = serde_json::json!(names).to_string();
        let gone = "pipeline = ?1 AND name NOT IN (SELECT value FROM json_each(?2))";
        transaction.execute(
            &format!("DELETE FROM corrente_alert_standings WHERE {gone}"),
            params![self.pipeline, names],
        )?;
        transaction.execute(
            &format!("UPDATE corrente_alerts SET ended_at = ?3 WHERE {gone} AND ended_at IS NULL"),
            params![self.pipeline, names, Timestamp::now().to_string()],
        )?;
        Ok(())
    }

    /// A batch begins.
    pub fn begin(&mut self) {
        self.watch.clear();
    }

    /// A row is stored.
    pub fn observe(&mut self, view: &View<'_>) {
        self.watch.observe(view);
    }

    /// Looks at the batch's values.
    pub fn write(&mut self, transaction: &Transaction<'_>) -> Result<(), Error> {
        let mut before = Standings::new();
        let mut read = transaction.prepare_cached(
            "SELECT name, seen, since, firing FROM corrente_alert_standings WHERE pipeline = ?1 AND meter = ?2",
        )?;
        for meter in self.watch.meters() {
            let mut rows = read.query(params![self.pipeline, meter])?;
            while let Some(row) = rows.next()? {
                let standing = Standing {
                    seen: row.get(1)?,
                    since: row.get(2)?,
                    firing: row.get(3)?,
                };
                before.insert((meter.clone(), row.get(0)?), standing);
            }
        }
        let Seen { changes, after, .. } = self.watch.look(before);
        for (meter, threshold, change) in changes {
            match change {
                Change::Begins { started, value } => {
                    let started = Timestamp(started);
                    transaction.execute(
                        "INSERT INTO corrente_alerts (id, pipeline, name, meter, metric, labels, summary, started_at, value) \
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT DO NOTHING",
                        params![
                            id(&self.pipeline, &threshold.name, &meter, started),
                            self.pipeline,
                            threshold.name,
                            meter,
                            threshold.metric,
                            serde_json::json!(threshold.labels).to_string(),
                            threshold.summary,
                            started.to_string(),
                            value,
                        ],
                    )?;
                }
                Change::Ends {
                    started,
                    ended,
                    value,
                } => {
                    let id = id(&self.pipeline, &threshold.name, &meter, Timestamp(started));
                    transaction.execute(
                        "UPDATE corrente_alerts SET ended_at = ?2, end_value = ?3 WHERE id = ?1",
                        params![id, Timestamp(ended).to_string(), value],
                    )?;
                }
            }
        }
        let mut write = transaction.prepare_cached(
            "INSERT INTO corrente_alert_standings (pipeline, meter, name, seen, since, firing) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (pipeline, meter, name) \
             DO UPDATE SET seen = excluded.seen, since = excluded.since, firing = excluded.firing",
        )?;
        for (meter, name, standing) in after {
            write.execute(params![
                self.pipeline,
                meter,
                name,
                standing.seen,
                standing.since,
                standing.firing
            ])?;
        }
        Ok(())
    }
}
