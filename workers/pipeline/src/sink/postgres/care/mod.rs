//! The upkeep of the tables: what the TelemetryPipeline says of them and no batch has to wait for.
//!
//! One worker of a pipeline does it, on a connection of its own: whoever holds the advisory lock, which the server
//! lets go when that worker is gone. Every round:
//! 1. [`timescale`]: the length of new chunks; [`partitions`]: made ahead;
//! 2. [`rollups`]: made, altered and removed, and reckoned where rows came;
//! 3. [`completeness`]: what is expected of each meter;
//! 4. old chunks, partitions and rows of the above dropped, after what is reckoned from them; chunks compressed;
//! 5. [`backfill`]: windows of the readings that were there before them;
//! 6. [`views`], and who may read them.
//!
//! A step that fails does not keep the others: what it says is a notice, which the operator shows as a condition of
//! the TelemetryPipeline, and it is tried again in the next round.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use corrente_config::{PipelineConfig, tables::TablesConfig};
use corrente_crds::Retention;
use corrente_record::Timestamp;
use metrics::gauge;
use tokio_postgres::{Client, Error};
use tokio_util::sync::CancellationToken;

use super::{
    PostgresSink, alerts,
    derived::{self, Derived},
    layout::Layout,
    ledger,
    session::{describe, make_tables},
    table::Table,
    watch::Watch,
};

mod backfill;
pub mod completeness;
pub mod partitions;
pub mod rollups;
pub mod step;
pub mod timescale;
pub mod views;

/// The time between two rounds.
const ROUND: Duration = Duration::from_secs(15);
/// The same while something is left over.
const SOON: Duration = Duration::from_secs(1);
/// The same for a worker that has just started, while another does it: in a rollout that one is about to end.
const NEXT: Duration = Duration::from_secs(2);
/// For so long a worker has just started.
const YOUNG: Duration = Duration::from_secs(30);

/// The windows of the view `demand_15min`, in milliseconds.
const DEMAND: u64 = 15 * 60 * 1000;

/// The worker's own tables that the upkeep and its part in a batch need.
fn own_tables(tables: &TablesConfig) -> Option<String> {
    let mut sql = String::new();
    if !tables.rollups.is_empty() {
        sql += rollups::TABLES;
    }
    if tables.completeness.is_some() {
        sql += completeness::TABLES;
    }
    (!sql.is_empty()).then_some(sql)
}

/// Makes the worker's own tables that a batch of this pipeline writes to.
///
/// # Errors
/// The database's.
pub async fn prepare(client: &mut Client, tables: &TablesConfig) -> Result<(), Error> {
    match own_tables(tables) {
        Some(sql) => make_tables(client, &sql).await,
        None => Ok(()),
    }
}

/// The upkeep of a pipeline's tables.
pub struct Upkeep {
    pipeline: String,
    table: Table,
    /// The tables of windows, and those of them whose windows are of 15 minutes.
    windows: Vec<String>,
    /// Those of them that are not kept for ever.
    kept: Vec<(String, Retention)>,
    watches: bool,
    derived: Option<Derived>,
    renamed_from: Option<String>,
    demand: Vec<String>,
    watch: Arc<Watch>,
    session: Option<Client>,
    /// When intervals of roll-ups that are open were reckoned.
    open: HashMap<(String, i64), i64>,
    /// What the views were made for.
    viewed: Option<String>,
    /// Whether the roll-ups are those that are asked for.
    in_line: bool,
}

/// What a round came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// What a person should know, as sentences.
    pub notices: Vec<String>,
    /// Something is left over for the next round.
    pub more: bool,
}

impl Upkeep {
    /// The upkeep of a pipeline that stores in PostgreSQL; `None` for another.
    #[must_use]
    pub fn new(config: &PipelineConfig) -> Option<Self> {
        let (connection, table) = PostgresSink::table_of(config)?;
        let windows = || config.derived.iter().flat_map(|derived| &derived.windows);
        let pipeline = format!("{}/{}", config.namespace, config.name);
        Some(Self {
            watch: Arc::new(Watch::new(connection, format!("corrente-upkeep {pipeline}"))),
            pipeline,
            table,
            windows: windows().map(|windows| windows.table.clone()).collect(),
            kept: windows()
                .filter_map(|windows| Some((windows.table.clone(), windows.retention?)))
                .collect(),
            watches: config.alerts.is_some(),
            derived: Derived::new(config),
            renamed_from: config.once.renamed_from.clone(),
            demand: windows()
                .filter(|windows| windows.interval_millis == DEMAND)
                .map(|windows| windows.table.clone())
                .collect(),
            session: None,
            open: HashMap::new(),
            viewed: None,
            in_line: false,
        })
    }

    /// Goes round until `shutdown`, and tells `report` what each round came to; `None` while another worker does it.
    pub async fn run(mut self, report: impl Fn(Option<Round>), shutdown: CancellationToken) {
        let began = Instant::now();
        loop {
            let round = tokio::select! {
                () = shutdown.cancelled() => return,
                round = self.round(Timestamp::now()) => round,
            };
            let wait = match &round {
                Some(round) if round.more => SOON,
                None if began.elapsed() < YOUNG => NEXT,
                _ => ROUND,
            };
            report(round);
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// One round, as at `now`; `None` where another worker does it.
    pub async fn round(&mut self, now: Timestamp) -> Option<Round> {
        let held = self.session.take().filter(|client| !client.is_closed());
        let mut client = match held {
            Some(client) => client,
            None => match self.connect().await {
                Ok(Some(client)) => client,
                Ok(None) => return None,
                Err(sentence) => {
                    return Some(Round {
                        notices: vec![format!("the tables are not looked after: {sentence}")],
                        more: false,
                    });
                }
            },
        };
        let watch = self.watch.clone();
        tokio::select! {
            round = self.work(&mut client, now) => {
                self.session = Some(client);
                Some(round)
            }
            lost = watch.lost() => Some(Round {
                notices: vec![format!("the tables are not looked after: {lost}")],
                more: false,
            }),
        }
    }

    /// A connection that holds the lock of the pipeline's upkeep; `None` where another has it.
    async fn connect(&mut self) -> Result<Option<Client>, String> {
        (self.viewed, self.in_line) = (None, false);
        let mut client = self.watch.connect().await.map_err(|error| error.to_string())?;
        let failed = |error: Error| describe(&error);
        let lock = client
            .query_one(
                "SELECT pg_try_advisory_lock(hashtextextended($1, 0))",
                &[&format!("corrente upkeep {}", self.pipeline)],
            )
            .await
            .map_err(failed)?;
        if !lock.try_get::<_, bool>(0).map_err(failed)? {
            return Ok(None);
        }
        ledger::create(&mut client).await.map_err(failed)?;
        let all = [rollups::TABLES, completeness::TABLES, views::TABLES].concat();
        make_tables(&mut client, &all).await.map_err(failed)?;
        if self.watches {
            alerts::create(&mut client).await.map_err(failed)?;
        }
        if self.derived.is_some() {
            derived::create_locks(&mut client).await.map_err(failed)?;
        }
        if let Some(old) = &self.renamed_from {
            views::rename(&client, old, &self.pipeline)
                .await
                .map_err(failed)?;
        }
        Ok(Some(client))
    }

    async fn work(&mut self, client: &mut Client, now: Timestamp) -> Round {
        let mut round = Round::default();
        let layout = match self.table.ensure(client).await {
            Ok(layout) => layout,
            Err(error) => {
                round.notices.push(error.to_string());
                return round;
            }
        };
        let rollups = self.rollups(client, now).await;
        // What cannot be rolled up is not dropped. (Of a long backlog, the oldest intervals are reckoned before they are
        // old enough to be dropped.)
        let dropped = if rollups.is_ok() {
            self.drop_old(client, now).await
        } else {
            Ok(Round::default())
        };
        let steps = [
            (
                "set the length of chunks or make partitions",
                self.places(client, now).await,
            ),
            ("make the roll-ups", rollups),
            ("drop what is older than the retention", dropped),
            ("keep the ledger of completeness", self.ledger(client, now).await),
            ("compress chunks", self.compress(client, now).await),
            ("make windows of earlier readings", self.backfill(client).await),
            ("make the views", self.views(client, &layout).await),
        ];
        for (what, step) in steps {
            match step {
                Ok(did) => {
                    round.notices.extend(did.notices);
                    round.more |= did.more;
                }
                Err(error) => round.notices.push(format!(
                    "failed to {what} of {}: {}",
                    self.table.quoted(),
                    describe(&error)
                )),
            }
        }
        round
    }

    async fn places(&self, client: &mut Client, now: Timestamp) -> Result<Round, Error> {
        if let Some(hypertable) = &self.table.hypertable {
            timescale::set_chunk_interval(client, &self.table, hypertable).await?;
            return Ok(Round::default());
        }
        let Some(by) = self.table.tables.partition_by else {
            return Ok(Round::default());
        };
        let made = partitions::make(client, &self.table, by, &partitions::ahead(by, now.0)).await?;
        let notices = if made.is_none() {
            let kept = self
                .table
                .tables
                .retention
                .map_or("", |_| ", so nothing of it is dropped");
            vec![format!(
                "the table {} was there before partitionBy was asked for, and is not partitioned by ts: it is left as \
                 it is{kept}; name another table, and copy the rows there",
                self.table.quoted()
            )]
        } else {
            vec![]
        };
        Ok(Round { notices, more: false })
    }

    async fn rollups(&mut self, client: &mut Client, now: Timestamp) -> Result<Round, Error> {
        let mut round = Round::default();
        if !self.in_line {
            round.notices = rollups::bring_in_line(client, &self.table, &self.pipeline).await?;
            // What needs a person is looked at again each time.
            self.in_line = round.notices.is_empty();
        }
        let made = client
            .query(
                "SELECT rollup, milliseconds FROM corrente.rollups WHERE table_schema = $1 AND source = $2 AND left_at IS NULL",
                &[&self.table.schema, &self.table.name],
            )
            .await?;
        for rollup in &self.table.tables.rollups {
            let is_made = made.iter().any(|row| {
                row.try_get::<_, &str>(0).is_ok_and(|name| name == rollup.table)
                    && row
                        .try_get::<_, i64>(1)
                        .is_ok_and(|at| u64::try_from(at) == Ok(rollup.interval.as_millis()))
            });
            if is_made {
                round.more |= rollups::refresh(client, &self.table, rollup, &mut self.open, now).await?;
            }
        }
        Ok(round)
    }

    async fn ledger(&self, client: &mut Client, now: Timestamp) -> Result<Round, Error> {
        let Some(config) = &self.table.tables.completeness else {
            return Ok(Round::default());
        };
        let interval = completeness::make(client, &self.table, config).await?;
        if let Some(old) = &self.renamed_from {
            completeness::rename(client, &self.table, old, &self.pipeline).await?;
        }
        completeness::fill(client, &self.table, config, &self.pipeline, interval, now).await?;
        for (state, count) in completeness::figures(client, &self.table, interval, now).await? {
            if state == "silent" {
                gauge!("corrente_pipeline_silent_meters").set(count as f64);
            } else {
                gauge!("corrente_pipeline_slots", "state" => state).set(count as f64);
            }
        }
        let asked = config.interval;
        let notices = (u64::try_from(interval) != Ok(asked.as_millis())).then(|| {
            format!(
                "the ledger {} keeps the interval that it was begun with, {} s, and not {asked}: write that, or drop \
                 the ledger's table to begin it anew",
                completeness::ledger(&self.table),
                interval / 1000
            )
        });
        Ok(Round {
            notices: notices.into_iter().collect(),
            more: false,
        })
    }

    async fn drop_old(&self, client: &mut Client, now: Timestamp) -> Result<Round, Error> {
        let tables = &self.table.tables;
        if let Some(before) = older(now, tables.retention) {
            if self.table.hypertable.is_some() {
                timescale::drop_old(client, &self.table, before).await?;
            } else {
                partitions::drop_old(client, &self.table, before.0).await?;
            }
        }
        for rollup in &tables.rollups {
            rollups::drop_old(client, &self.table, rollup, now).await?;
        }
        if let Some(config) = &tables.completeness {
            let interval = completeness::make(client, &self.table, config).await?;
            completeness::drop_old(client, &self.table, config, interval, now).await?;
        }
        for (windows, kept) in &self.kept {
            let there = "SELECT to_regclass($1) IS NOT NULL";
            let windows = self.table.beside(windows);
            if let Some(before) = older(now, Some(*kept))
                && client.query_one(there, &[&windows]).await?.try_get(0)?
            {
                let drop = format!("DELETE FROM {windows} WHERE window_end <= $1::text::timestamptz");
                client.execute(&drop, &[&before.to_string()]).await?;
            }
        }
        // An alert tells of readings, and is kept for as long as they are.
        if let Some(before) = older(now, tables.retention).filter(|_| self.watches) {
            let drop = "DELETE FROM corrente.alerts WHERE pipeline = $1 AND ended_at < $2::text::timestamptz";
            client
                .execute(drop, &[&self.pipeline, &before.to_string()])
                .await?;
        }
        Ok(Round::default())
    }

    async fn backfill(&mut self, client: &mut Client) -> Result<Round, Error> {
        match &mut self.derived {
            Some(derived) => backfill::go_on(client, &self.table, derived, &self.windows).await,
            None => Ok(Round::default()),
        }
    }

    async fn compress(&self, client: &mut Client, now: Timestamp) -> Result<Round, Error> {
        let Some(before) = older(now, self.table.tables.compress_after) else {
            return Ok(Round::default());
        };
        let Some(edition) = timescale::Edition::read(client).await? else {
            return Ok(Round::default());
        };
        if let Some(sentence) = edition.cannot_compress() {
            return Ok(Round {
                notices: vec![sentence],
                more: false,
            });
        }
        Ok(Round {
            notices: vec![],
            more: timescale::compress_one(client, &self.table, before).await?,
        })
    }

    async fn views(&mut self, client: &mut Client, layout: &Layout) -> Result<Round, Error> {
        if self.viewed.as_ref() == Some(&layout.stamp) {
            return Ok(Round::default());
        }
        let ledger = match &self.table.tables.completeness {
            Some(config) => Some(completeness::make(client, &self.table, config).await?),
            None => None,
        };
        let sources = views::Sources {
            ledger,
            windows: self.demand.clone(),
        };
        let made = views::bring_in_line(client, &self.table, &self.pipeline, &sources).await?;
        let mut notices = made.notices;
        notices.extend(views::grant(client, &self.table, &self.pipeline, &self.windows).await?);
        self.viewed = (made.whole && notices.is_empty()).then(|| layout.stamp.clone());
        Ok(Round { notices, more: false })
    }
}

/// The instant before which rows are older than `kept`.
fn older(now: Timestamp, kept: Option<Retention>) -> Option<Timestamp> {
    let kept = i64::try_from(kept?.as_millis()).ok()?;
    Some(Timestamp(now.0.saturating_sub(kept)))
}
