//! Thresholds, looked at in the transaction that stores the values.
//!
//! Where each meter stands is read, the batch's values are looked at in the order of time, and what has begun or ended is
//! written, all behind the meters' locks: the values of one meter are looked at by one transaction at a time.

use corrente_config::{PipelineConfig, alerts::ThresholdConfig};
use corrente_record::{Timestamp, View};
use metrics::counter;
use tokio_postgres::{Client, Error, Transaction};

use super::{derived::time, session::make_missing_tables};
use crate::alerts::{
    message::id,
    threshold::{Change, Standing},
    watch::{Seen, Standings, Watch},
};

/// The tables. `published` is what the topic was told (`begun`, `ended`), and `posted_at` when Alertmanager was last told.
const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS corrente.alert_standings (
        pipeline text NOT NULL,
        name text NOT NULL,
        meter text NOT NULL,
        seen bigint,
        since bigint,
        firing bigint,
        PRIMARY KEY (pipeline, meter, name)
    );
    CREATE TABLE IF NOT EXISTS corrente.alerts (
        id text PRIMARY KEY,
        pipeline text NOT NULL,
        name text NOT NULL,
        meter text NOT NULL,
        metric text NOT NULL,
        labels jsonb NOT NULL,
        summary text,
        started_at timestamptz NOT NULL,
        value double precision NOT NULL,
        ended_at timestamptz,
        end_value double precision,
        published text,
        posted_at timestamptz,
        posted_end boolean NOT NULL DEFAULT false
    );
    CREATE INDEX IF NOT EXISTS alerts_to_tell ON corrente.alerts (pipeline, started_at)
        WHERE ended_at IS NULL OR published IS DISTINCT FROM 'ended' OR NOT posted_end;
";

/// The thresholds of a pipeline.
pub struct Thresholds {
    pipeline: String,
    renamed_from: Option<String>,
    watch: Watch,
}

impl Thresholds {
    /// What a pipeline watches; `None` where it watches nothing.
    #[must_use]
    pub fn new(config: &PipelineConfig) -> Option<Self> {
        let alerts = config.alerts.as_ref()?;
        Some(Self {
            pipeline: format!("{}/{}", config.namespace, config.name),
            renamed_from: config.once.renamed_from.clone(),
            watch: Watch::new(alerts.thresholds.clone()),
        })
    }

    /// Makes the tables that are missing, and ends the alerts of thresholds that are no more.
    pub async fn create(&self, client: &mut Client) -> Result<(), Error> {
        create(client).await?;
        let names: Vec<&str> = self
            .watch
            .thresholds
            .iter()
            .map(|threshold| threshold.name.as_str())
            .collect();
        let transaction = client.transaction().await?;
        if let Some(old) = &self.renamed_from {
            rename(&transaction, old, &self.pipeline).await?;
        }
        transaction
            .execute(
                "DELETE FROM corrente.alert_standings WHERE pipeline = $1 AND name <> ALL($2)",
                &[&self.pipeline, &names],
            )
            .await?;
        transaction
            .execute(
                "UPDATE corrente.alerts SET ended_at = now() WHERE pipeline = $1 AND name <> ALL($2) AND ended_at IS NULL",
                &[&self.pipeline, &names],
            )
            .await?;
        transaction.commit().await
    }

    /// A batch begins.
    pub fn begin(&mut self) {
        self.watch.clear();
    }

    /// A row is stored.
    pub fn observe(&mut self, view: &View<'_>) {
        self.watch.observe(view);
    }

    /// The meters that [`Thresholds::write`] is going to look at, which are to be locked before it.
    pub fn meters(&self) -> impl Iterator<Item = &String> {
        self.watch.meters()
    }

    /// Looks at the batch's values.
    pub async fn write(&mut self, transaction: &Transaction<'_>) -> Result<(), Error> {
        let meters: Vec<&String> = self.watch.meters().collect();
        if meters.is_empty() {
            return Ok(());
        }
        let mut standings = Standings::new();
        for row in transaction
            .query(
                "SELECT meter, name, seen, since, firing FROM corrente.alert_standings \
                 WHERE pipeline = $1 AND meter = ANY($2)",
                &[&self.pipeline, &meters],
            )
            .await?
        {
            let standing = Standing {
                seen: row.try_get(2)?,
                since: row.try_get(3)?,
                firing: row.try_get(4)?,
            };
            standings.insert((row.try_get(0)?, row.try_get(1)?), standing);
        }
        let Seen { changes, after, late } = self.watch.look(standings);
        counter!("corrente_pipeline_alert_values_late_total").increment(late);
        for (meter, threshold, change) in changes {
            write_change(transaction, &self.pipeline, &meter, threshold, change).await?;
        }
        let column = |of: fn(&Standing) -> Option<i64>| -> Vec<Option<i64>> {
            after.iter().map(|(.., s)| of(s)).collect()
        };
        transaction
            .execute(
                "INSERT INTO corrente.alert_standings (pipeline, meter, name, seen, since, firing) \
                 SELECT $1, * FROM unnest($2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[]) \
                 ON CONFLICT (pipeline, meter, name) \
                 DO UPDATE SET seen = excluded.seen, since = excluded.since, firing = excluded.firing",
                &[
                    &self.pipeline,
                    &after.iter().map(|(meter, ..)| meter).collect::<Vec<_>>(),
                    &after.iter().map(|(_, name, _)| *name).collect::<Vec<_>>(),
                    &column(|standing| standing.seen),
                    &column(|standing| standing.since),
                    &column(|standing| standing.firing),
                ],
            )
            .await?;
        Ok(())
    }
}

/// Writes down that an alert has begun or ended. They are rare, so each has a statement of its own.
async fn write_change(
    transaction: &Transaction<'_>,
    pipeline: &str,
    meter: &str,
    threshold: &ThresholdConfig,
    change: Change,
) -> Result<(), Error> {
    match change {
        Change::Begins { started, value } => {
            let id = id(pipeline, &threshold.name, meter, Timestamp(started));
            let labels = serde_json::json!(threshold.labels);
            transaction
                    .execute(
                        "INSERT INTO corrente.alerts (id, pipeline, name, meter, metric, labels, summary, started_at, value) \
                         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (id) DO NOTHING",
                        &[
                            &id,
                            &pipeline,
                            &threshold.name,
                            &meter,
                            &threshold.metric,
                            &labels,
                            &threshold.summary,
                            &time(started),
                            &value,
                        ],
                    )
                    .await?;
        }
        Change::Ends {
            started,
            ended,
            value,
        } => {
            // Not by its id, which has the name that the pipeline had when it began.
            transaction
                .execute(
                    "UPDATE corrente.alerts SET ended_at = $5, end_value = $6 \
                     WHERE pipeline = $1 AND name = $2 AND meter = $3 AND started_at = $4",
                    &[
                        &pipeline,
                        &threshold.name,
                        &meter,
                        &time(started),
                        &time(ended),
                        &value,
                    ],
                )
                .await?;
        }
    }
    Ok(())
}

/// Brings where meters stand, and their alerts, under a pipeline's new name, unless there is something already. Alerts keep
/// their ids, by which those who were told know them.
async fn rename(transaction: &Transaction<'_>, old: &str, new: &str) -> Result<(), Error> {
    transaction
        .execute(
            "UPDATE corrente.alert_standings o SET pipeline = $2 WHERE pipeline = $1 AND NOT EXISTS \
             (SELECT FROM corrente.alert_standings n WHERE n.pipeline = $2 AND n.meter = o.meter AND n.name = o.name)",
            &[&old, &new],
        )
        .await?;
    let alerts = "UPDATE corrente.alerts SET pipeline = $2 WHERE pipeline = $1";
    transaction.execute(alerts, &[&old, &new]).await?;
    Ok(())
}

/// Makes the tables where they are missing.
pub async fn create(client: &mut Client) -> Result<(), Error> {
    make_missing_tables(client, &["corrente.alerts", "corrente.alert_standings"], TABLES).await
}
