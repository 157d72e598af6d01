//! Windows, made anew in the transaction that stores what touched them.
//!
//! After the rows are copied, and before the offset moves:
//! 1. `locks`: the touched meters are locked, in the order of their names, until the commit. Two batches that touch one
//!    meter's windows (a meter may have changed its partition, or have two pipelines) come one after the other here, and the
//!    later one reads what the earlier one has committed: each statement of a transaction sees what was committed before
//!    it. Neither sees the other's rows before that, and what both touch is made anew by the later one, from all rows.
//! 2. `read`: the readings next to each stretch, which say how far it reaches, then the rows of it: one statement each for
//!    the whole batch, by the index over (meter, ts).
//! 3. [`crate::derived`]: rows to windows.
//! 4. `write`: the windows that are new or not what they were.
//!
//! Whatever is wrong takes the transaction with it, and the batch is tried again.

use std::time::Instant;

use corrente_config::{PipelineConfig, pipeline::SinkConfig};
use corrente_crds::tables::Layout as Shape;
use corrente_record::View;
use metrics::{counter, histogram};
use tokio_postgres::{Client, Error, Transaction};

use super::layout::Layout;
use crate::{
    derived::{
        job::{self, Job},
        plan::Plan,
        touched::{Stretch, Touched},
    },
    sink::columns::quote,
};

mod locks;
mod read;
mod write;

#[cfg(feature = "kafka")]
pub(super) use self::read::millis;
pub(super) use self::{
    locks::{create_locks, lock},
    read::{millis as floor_millis, time},
};

/// The windows of a pipeline.
pub struct Derived {
    plan: Plan,
    schema: String,
    readings: String,
    /// Whether each metric of a record is a row of its own.
    narrow: bool,
    touched: Touched,
    /// Whether what was written down since the last start has been looked at.
    seeded: bool,
}

impl Derived {
    /// What a pipeline derives; `None` where it derives nothing.
    #[must_use]
    pub fn new(config: &PipelineConfig) -> Option<Self> {
        let (
            Some(derived),
            SinkConfig::Postgres {
                schema,
                table,
                tables,
                ..
            },
        ) = (&config.derived, &config.sink)
        else {
            return None;
        };
        Some(Self {
            plan: Plan::new(derived),
            schema: schema.clone(),
            readings: table.clone(),
            narrow: tables.layout == Shape::Narrow,
            touched: Touched::default(),
            seeded: false,
        })
    }

    fn quoted(&self, table: &str) -> String {
        format!("{}.{}", quote(&self.schema), quote(table))
    }

    /// Makes the tables that are missing. Called once per connection.
    pub async fn create(&mut self, client: &mut Client) -> Result<(), Error> {
        // What failed with the last connection is looked at again.
        self.seeded = false;
        for table in &self.plan.tables {
            write::create(client, &self.schema, &table.name, &self.quoted(&table.name)).await?;
        }
        Ok(())
    }

    /// A batch begins: nothing is touched.
    pub fn begin(&mut self) {
        self.touched.clear();
    }

    /// A stretch of a meter's readings is to be made windows of, and nothing else; its first and last `ts`, in
    /// milliseconds since the epoch.
    pub fn begin_stretch(&mut self, meter: &str, first: i64, last: i64) {
        self.touched.clear();
        self.touched.stretch(meter, first, last);
        self.seeded = true;
    }

    /// A row is stored.
    pub fn observe(&mut self, view: &View<'_>) {
        self.touched.observe(&self.plan, view);
    }

    /// The meters that [`Derived::write`] is going to look at, which are to be locked before it.
    pub fn meters(&mut self) -> Vec<String> {
        if !self.seeded {
            for swap in &self.plan.swaps {
                self.touched.add(&self.plan, &swap.meter, swap.at.0, swap.at.0);
            }
        }
        self.touched
            .stretches(&self.plan)
            .keys()
            .map(|meter| (*meter).to_owned())
            .collect()
    }

    /// Makes anew what the batch has touched. `layout` is that of the table of the readings.
    pub async fn write(&mut self, transaction: &Transaction<'_>, layout: &Layout) -> Result<(), Error> {
        let began = Instant::now();
        let touched = self.touched.stretches(&self.plan);
        let source = read::Source::new(&self.plan, &self.quoted(&self.readings), self.narrow, layout);
        let stretches: Vec<(&str, Stretch)> = touched
            .into_iter()
            .flat_map(|(meter, stretches)| stretches.into_iter().map(move |stretch| (meter, stretch)))
            .collect();
        if stretches.is_empty() {
            return Ok(());
        }
        let neighbours = source.neighbours(transaction, &stretches).await?;
        let jobs: Vec<Job<'_>> = stretches
            .into_iter()
            .zip(neighbours)
            .map(|((meter, stretch), (before, after))| Job::new(&self.plan, meter, &stretch, before, after))
            .collect();
        let samples = source.samples(transaction, &jobs).await?;
        let mut written = 0;
        for table in &self.plan.tables {
            let windows = job::make(&self.plan, table, &jobs, &samples);
            written += write::upsert(
                transaction,
                &self.quoted(&table.name),
                &self.plan,
                table,
                &windows,
            )
            .await?;
        }
        self.seeded = true;
        counter!("corrente_pipeline_windows_total").increment(written);
        histogram!("corrente_pipeline_derive_seconds").record(began.elapsed().as_secs_f64());
        Ok(())
    }
}
