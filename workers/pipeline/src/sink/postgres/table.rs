//! The table: made where it is missing, and widened, never narrowed.
//!
//! All of it happens in transactions of their own, before any batch, under an advisory lock, with a short
//! `lock_timeout`: a change of the table waits for everybody who uses it, and everybody after it waits
//! too, so it had rather give up and be tried again.

use std::collections::BTreeMap;

use corrente_config::pipeline::Hypertable;
use corrente_crds::pipeline::ColumnType;
use tokio_postgres::{Client, Error, Transaction};

use super::{
    layout::{Layout, OWN, sql_type},
    session::describe,
};
use crate::{
    batch::Rows,
    sink::columns::{MOST_COLUMNS, check_name, is_own, quote, undeclared},
};

/// The table that a pipeline stores in.
#[derive(Clone, Debug)]
pub struct Table {
    /// The schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Set where it is to be a hypertable.
    pub hypertable: Option<Hypertable>,
    /// Declared types, by metric.
    pub declared: BTreeMap<String, ColumnType>,
}

impl Table {
    /// The name in SQL.
    #[must_use]
    pub fn quoted(&self) -> String {
        format!("{}.{}", quote(&self.schema), quote(&self.name))
    }

    /// Makes what is missing of the table, and reads its layout.
    ///
    /// # Errors
    /// A sentence; trying again may help, or a person must change something.
    pub async fn ensure(&self, client: &mut Client) -> Result<Layout, String> {
        let failed =
            |error: Error| format!("failed to make the table {}: {}", self.quoted(), describe(&error));
        let layout = Layout::read(client, &self.schema, &self.name)
            .await
            .map_err(failed)?;
        if layout.columns.is_empty() {
            self.create(client).await.map_err(failed)?;
        }
        let mut missing: Vec<(String, &str)> = OWN
            .iter()
            .map(|(name, kind)| ((*name).to_owned(), *kind))
            .chain(
                self.declared
                    .iter()
                    .map(|(name, kind)| (name.clone(), sql_type(*kind))),
            )
            .collect();
        let layout = Layout::read(client, &self.schema, &self.name)
            .await
            .map_err(failed)?;
        missing.retain(|(name, _)| layout.position(name).is_none() && check_name(name).is_ok());
        let layout = if missing.is_empty() {
            layout
        } else {
            self.widen(client, &missing).await?
        };
        layout.check_own(&self.quoted())?;
        if let Some(hypertable) = &self.hypertable {
            self.make_hypertable(client, hypertable).await?;
        }
        Ok(layout)
    }

    async fn lock(&self, transaction: &Transaction<'_>) -> Result<(), Error> {
        transaction.batch_execute("SET LOCAL lock_timeout = '3s'").await?;
        transaction
            .execute(
                "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))",
                &[&format!("corrente {}", self.quoted())],
            )
            .await?;
        Ok(())
    }

    async fn create(&self, client: &mut Client) -> Result<(), Error> {
        let transaction = client.transaction().await?;
        self.lock(&transaction).await?;
        let schema = transaction
            .query_one("SELECT to_regnamespace($1) IS NULL", &[&quote(&self.schema)])
            .await?;
        if schema.try_get(0)? {
            transaction
                .batch_execute(&format!("CREATE SCHEMA IF NOT EXISTS {}", quote(&self.schema)))
                .await?;
        }
        let columns: Vec<String> = OWN
            .iter()
            .map(|(name, kind)| format!("{} {kind}", quote(name)))
            .chain(
                self.declared
                    .iter()
                    .filter(|(name, _)| !is_own(name) && check_name(name).is_ok())
                    .map(|(name, kind)| format!("{} {}", quote(name), sql_type(*kind))),
            )
            .collect();
        let index = quote(&format!("{}_meter_ts", self.name));
        transaction
            .batch_execute(&format!(
                "CREATE TABLE IF NOT EXISTS {table} ({columns}); \
                 CREATE INDEX IF NOT EXISTS {index} ON {table} (meter, ts DESC);",
                table = self.quoted(),
                columns = columns.join(", ")
            ))
            .await?;
        transaction.commit().await
    }

    /// Adds columns, and reads the layout. Another worker may have added them first, with a type of its
    /// own; that one counts.
    ///
    /// # Errors
    /// A sentence, as for [`Table::ensure`].
    pub async fn widen(&self, client: &mut Client, columns: &[(String, &str)]) -> Result<Layout, String> {
        let failed = |error: Error| {
            format!(
                "failed to add columns to the table {}: {}",
                self.quoted(),
                describe(&error)
            )
        };
        let added: Vec<String> = columns
            .iter()
            .map(|(name, kind)| format!("ADD COLUMN IF NOT EXISTS {} {kind}", quote(name)))
            .collect();
        let transaction = client.transaction().await.map_err(failed)?;
        self.lock(&transaction).await.map_err(failed)?;
        transaction
            .batch_execute(&format!("ALTER TABLE {} {}", self.quoted(), added.join(", ")))
            .await
            .map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
        tracing::info!(
            table = self.quoted(),
            columns = columns
                .iter()
                .map(|(name, _)| name.as_str())
                .collect::<Vec<_>>()
                .join(", "),
            "added columns"
        );
        Layout::read(client, &self.schema, &self.name)
            .await
            .map_err(failed)
    }

    /// The columns that rows need and the table does not have, with their types, as far as there is room.
    #[must_use]
    pub fn missing(&self, layout: &Layout, mut rows: Rows<'_>) -> Vec<(String, &'static str)> {
        let mut missing = BTreeMap::new();
        while let Some(row) = rows.next() {
            for (name, value) in &row.record.fields {
                if layout.position(name).is_none()
                    && !missing.contains_key(&**name)
                    && check_name(name).is_ok()
                {
                    let kind = self
                        .declared
                        .get(&**name)
                        .copied()
                        .unwrap_or_else(|| undeclared(value));
                    missing.insert(name.clone().into_owned(), sql_type(kind));
                }
            }
        }
        let room = MOST_COLUMNS.saturating_sub(layout.columns.len());
        missing.into_iter().take(room).collect()
    }

    async fn make_hypertable(&self, client: &mut Client, hypertable: &Hypertable) -> Result<(), String> {
        let failed = |error: Error| {
            format!(
                "failed to make {} a hypertable: {}",
                self.quoted(),
                describe(&error)
            )
        };
        let installed = client
            .query_opt("SELECT 1 FROM pg_extension WHERE extname = 'timescaledb'", &[])
            .await
            .map_err(failed)?;
        if installed.is_none() {
            return Err(format!(
                "{} cannot be a hypertable: the database has no TimescaleDB. Run CREATE EXTENSION timescaledb in it, \
                 or name a postgresql sink",
                self.quoted()
            ));
        }
        let done = client
            .query_opt(
                "SELECT 1 FROM timescaledb_information.hypertables WHERE hypertable_schema = $1 AND hypertable_name = $2",
                &[&self.schema, &self.name],
            )
            .await
            .map_err(failed)?;
        if done.is_some() {
            return Ok(());
        }
        let interval = hypertable
            .chunk_interval_millis
            .map(|millis| format!(", INTERVAL '{millis} milliseconds'"))
            .unwrap_or_default();
        let transaction = client.transaction().await.map_err(failed)?;
        self.lock(&transaction).await.map_err(failed)?;
        transaction
            .query(
                &format!("SELECT create_hypertable($1::text::regclass, by_range('ts'{interval}), if_not_exists => true)"),
                &[&self.quoted()],
            )
            .await
            .map_err(failed)?;
        transaction.commit().await.map_err(failed)
    }
}
