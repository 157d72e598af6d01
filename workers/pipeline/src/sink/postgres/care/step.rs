//! What the tables beside the readings need of a batch, in its transaction: the ledger's counts, and notes for the
//! roll-ups.

use corrente_config::PipelineConfig;
use corrente_record::View;
use futures::future::{BoxFuture, FutureExt as _};
use tokio_postgres::{Client, Transaction};

use super::{
    completeness::{self, Slot, Tally},
    prepare,
    rollups::Touched,
};
use crate::{
    batch::Place,
    sink::{
        SinkError,
        postgres::{PostgresSink, beside::Beside, failed, table::Table},
    },
};

/// Keeps the ledger and the notes for the roll-ups in step with the rows.
pub struct InStep {
    table: Table,
    tally: Option<Tally>,
    touched: Touched,
}

impl InStep {
    /// What the pipeline's tables need; `None` where they need nothing.
    #[must_use]
    pub fn new(config: &PipelineConfig) -> Option<Self> {
        let (_, table) = PostgresSink::table_of(config)?;
        let needed = table.tables.completeness.is_some() || !table.tables.rollups.is_empty();
        needed.then(|| Self {
            tally: None,
            touched: Touched::of(&table.tables.rollups),
            table,
        })
    }
}

/// The record whose slot counts as refused; `None` where the bytes tell of no slot.
fn counted(payload: &[u8]) -> Option<View<'_>> {
    View::parse(payload)
        .ok()
        .filter(|record| !record.meter.contains('\0'))
}

impl Beside for InStep {
    fn prepare<'a>(&'a mut self, client: &'a mut Client) -> BoxFuture<'a, Result<(), SinkError>> {
        async {
            let failed = failed("make the tables of the schema corrente");
            prepare(client, &self.table.tables).await.map_err(&failed)?;
            if let Some(config) = &self.table.tables.completeness {
                let interval = completeness::make(client, &self.table, config).await;
                self.tally = Some(Tally::new(config, interval.map_err(&failed)?));
            }
            Ok(())
        }
        .boxed()
    }

    fn begin(&mut self, _place: &Place) {
        if let Some(tally) = &mut self.tally {
            tally.clear();
        }
        self.touched.clear();
    }

    fn observe(&mut self, row: &View<'_>) {
        if let Some(tally) = &mut self.tally {
            tally.stored(Slot::of(row));
        }
        self.touched.observe(row.slot.unwrap_or(row.ts).0);
    }

    fn set_aside(&mut self, payload: &[u8]) -> bool {
        let (Some(tally), Some(record)) = (&mut self.tally, counted(payload)) else {
            return false;
        };
        tally.refused(Slot::of(&record));
        true
    }

    fn taken_back(&mut self, payload: &[u8]) {
        if let (Some(tally), Some(record)) = (&mut self.tally, counted(payload)) {
            tally.taken_back(Slot::of(&record));
        }
    }

    fn write<'a>(&'a mut self, transaction: &'a Transaction<'_>) -> BoxFuture<'a, Result<(), SinkError>> {
        async {
            if let Some(tally) = &self.tally {
                let written = tally.write(transaction, &self.table).await;
                written.map_err(failed("add to the ledger of completeness"))?;
            }
            let noted = self.touched.write(transaction, &self.table.schema).await;
            noted.map_err(failed("note what is to be rolled up"))
        }
        .boxed()
    }
}
