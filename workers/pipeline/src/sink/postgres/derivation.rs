//! Windows and thresholds, beside the rows: both behind the locks of the meters that they look at.

use std::collections::BTreeSet;

use corrente_config::{PipelineConfig, pipeline::SinkConfig};
use corrente_record::View;
use futures::future::BoxFuture;
use tokio_postgres::{Client, Error, Transaction};

use super::{
    alerts::Thresholds,
    beside::Beside,
    derived::{self, Derived},
    failed,
    layout::Layout,
};
use crate::{batch::Place, sink::SinkError};

/// What follows from the rows of a pipeline.
pub struct Derivation {
    schema: String,
    table: String,
    /// What the meters are locked within: everybody who derives from the table.
    scope: String,
    windows: Option<Derived>,
    thresholds: Option<Thresholds>,
}

impl Derivation {
    /// What a pipeline derives; `None` where it derives nothing.
    #[must_use]
    pub fn new(config: &PipelineConfig) -> Option<Self> {
        let SinkConfig::Postgres { schema, table, .. } = &config.sink else {
            return None;
        };
        let (windows, thresholds) = (Derived::new(config), Thresholds::new(config));
        (windows.is_some() || thresholds.is_some()).then(|| Self {
            schema: schema.clone(),
            table: table.clone(),
            scope: format!("{schema}.{table}"),
            windows,
            thresholds,
        })
    }

    async fn create(&mut self, client: &mut Client) -> Result<(), Error> {
        derived::create_locks(client).await?;
        if let Some(windows) = &mut self.windows {
            windows.create(client).await?;
        }
        if let Some(thresholds) = &self.thresholds {
            thresholds.create(client).await?;
        }
        Ok(())
    }

    async fn derive(&mut self, transaction: &Transaction<'_>) -> Result<(), Error> {
        let mut meters: BTreeSet<String> = BTreeSet::new();
        if let Some(windows) = &mut self.windows {
            meters.extend(windows.meters());
        }
        if let Some(thresholds) = &self.thresholds {
            meters.extend(thresholds.meters().cloned());
        }
        if meters.is_empty() {
            return Ok(());
        }
        let meters: Vec<String> = meters.into_iter().collect();
        derived::lock(transaction, &self.scope, &meters).await?;
        if let Some(windows) = &mut self.windows {
            let layout = Layout::read(transaction, &self.schema, &self.table).await?;
            windows.write(transaction, &layout).await?;
        }
        if let Some(thresholds) = &mut self.thresholds {
            thresholds.write(transaction).await?;
        }
        Ok(())
    }
}

impl Beside for Derivation {
    fn prepare<'a>(&'a mut self, client: &'a mut Client) -> BoxFuture<'a, Result<(), SinkError>> {
        Box::pin(async move {
            let made = self.create(client).await;
            made.map_err(failed("make the tables of windows and alerts"))
        })
    }

    fn begin(&mut self, _place: &Place) {
        if let Some(windows) = &mut self.windows {
            windows.begin();
        }
        if let Some(thresholds) = &mut self.thresholds {
            thresholds.begin();
        }
    }

    fn observe(&mut self, row: &View<'_>) {
        if let Some(windows) = &mut self.windows {
            windows.observe(row);
        }
        if let Some(thresholds) = &mut self.thresholds {
            thresholds.observe(row);
        }
    }

    fn write<'a>(&'a mut self, transaction: &'a Transaction<'_>) -> BoxFuture<'a, Result<(), SinkError>> {
        Box::pin(async move {
            let derived = self.derive(transaction).await;
            derived.map_err(failed("derive windows and alerts"))
        })
    }
}
