//! The table: made where it is missing, and widened, never narrowed.
//!
//! All of it happens in transactions of their own, before any batch: an advisory lock first, then the table's
//! own, always in this order, so that nobody waits for somebody who waits for him. A change of the table waits
//! for everybody who uses it, and everybody after it waits too: so it is made only where another worker has not
//! made it meanwhile, and gives up soon, to be tried again.

use std::collections::BTreeMap;

use corrente_config::{pipeline::Hypertable, tables::TablesConfig};
use corrente_crds::{
    pipeline::ColumnType,
    tables::{Layout as Shape, PartitionBy},
};
use tokio_postgres::{Client, Error, Transaction};

use super::{
    care::{partitions, timescale},
    fault::failed,
    layout::{Layout, own, sql_type},
};
use crate::{
    batch::Rows,
    sink::SinkError,
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
    /// How it is laid out and looked after.
    pub tables: TablesConfig,
}

impl Table {
    /// The name in SQL.
    #[must_use]
    pub fn quoted(&self) -> String {
        self.beside(&self.name)
    }

    /// A table of its schema, in SQL.
    #[must_use]
    pub fn beside(&self, name: &str) -> String {
        format!("{}.{}", quote(&self.schema), quote(name))
    }

    /// Makes what is missing of the table, and reads its layout.
    ///
    /// # Errors
    /// What sort of fault it is, with a sentence; trying again may help, or a person must change something.
    pub async fn ensure(&self, client: &mut Client) -> Result<Layout, SinkError> {
        let what = format!("make the table {}", self.quoted());
        let failed = failed(&what);
        let mut layout = Layout::read(client, &self.schema, &self.name)
            .await
            .map_err(&failed)?;
        if layout.columns.is_empty() {
            self.create(client).await.map_err(&failed)?;
            layout = Layout::read(client, &self.schema, &self.name)
                .await
                .map_err(&failed)?;
        }
        let shape = layout.check_shape(self.tables.layout, &self.quoted());
        shape.map_err(SinkError::Retry)?;
        let mut missing = self.columns();
        missing.retain(|(name, _)| layout.position(name).is_none());
        let layout = if missing.is_empty() {
            layout
        } else {
            self.widen(client, &missing).await?
        };
        let own = layout.check_own(self.tables.layout, &self.quoted());
        own.map_err(SinkError::Retry)?;
        if self.hypertable.is_some() {
            timescale::make(client, self).await?;
        }
        Ok(layout)
    }

    /// The columns that the table is made with: the record's own, then what is declared.
    fn columns(&self) -> Vec<(String, &'static str)> {
        let declared = self.declared.iter().map(|(name, kind)| (name, sql_type(*kind)));
        let labels = self.tables.labels.iter().map(|name| (name, "text"));
        let more: BTreeMap<&String, &str> = match self.tables.layout {
            Shape::Wide => declared.collect(),
            Shape::Narrow => labels.collect(),
        };
        let shape = self.tables.layout;
        let more = more
            .into_iter()
            .filter(|(name, _)| !is_own(name) && own(shape).iter().all(|(own, _)| own != name))
            .filter(|(name, _)| check_name(name).is_ok())
            .map(|(name, kind)| (name.clone(), kind));
        let own = own(shape).iter().map(|(name, kind)| ((*name).to_owned(), *kind));
        own.chain(more).collect()
    }

    /// Takes the lock of everybody who changes the table, and gives up waiting for any lock soon.
    pub(super) async fn lock(&self, transaction: &Transaction<'_>) -> Result<(), Error> {
        transaction.batch_execute("SET LOCAL lock_timeout = '1s'").await?;
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
        make_schema(&transaction, &self.schema).await?;
        let columns: Vec<String> = self
            .columns()
            .iter()
            .map(|(name, kind)| format!("{} {kind}", quote(name)))
            .collect();
        let table = self.quoted();
        let (partitioned, keys) = match (self.tables.partition_by, self.tables.layout) {
            (Some(_), Shape::Wide) => ("PARTITION BY RANGE (ts)", "meter, ts DESC"),
            (Some(_), Shape::Narrow) => ("PARTITION BY RANGE (ts)", "meter, metric, ts DESC"),
            (None, Shape::Wide) => ("", "meter, ts DESC"),
            (None, Shape::Narrow) => ("", "meter, metric, ts DESC"),
        };
        let mut sql = format!(
            "CREATE TABLE IF NOT EXISTS {table} ({}) {partitioned}; \
             CREATE INDEX IF NOT EXISTS {} ON {table} ({keys});",
            columns.join(", "),
            quote(&format!("{}_meter_ts", self.name)),
        );
        // A hypertable has an index over time of its own.
        if self.hypertable.is_none() && !self.tables.rollups.is_empty() {
            let index = quote(&format!("{}_ts", self.name));
            sql += &format!("CREATE INDEX IF NOT EXISTS {index} ON {table} USING brin (ts)");
        }
        transaction.batch_execute(&sql).await?;
        transaction.commit().await
    }

    /// Adds columns, and reads the layout. Another worker may have added them first, with a type of its
    /// own; that one counts.
    ///
    /// # Errors
    /// As for [`Table::ensure`].
    pub async fn widen(&self, client: &mut Client, columns: &[(String, &str)]) -> Result<Layout, SinkError> {
        let what = format!("add columns to the table {}", self.quoted());
        let failed = failed(&what);
        let transaction = client.transaction().await.map_err(&failed)?;
        self.lock(&transaction).await.map_err(&failed)?;
        let now = Layout::read(&transaction, &self.schema, &self.name)
            .await
            .map_err(&failed)?;
        let missing: Vec<&(String, &str)> = columns
            .iter()
            .filter(|(name, _)| now.position(name).is_none())
            .collect();
        if missing.is_empty() && !now.columns.is_empty() {
            return Ok(now);
        }
        let added: Vec<String> = missing
            .iter()
            .map(|(name, kind)| format!("ADD COLUMN IF NOT EXISTS {} {kind}", quote(name)))
            .collect();
        transaction
            .batch_execute(&format!("ALTER TABLE {} {}", self.quoted(), added.join(", ")))
            .await
            .map_err(&failed)?;
        transaction.commit().await.map_err(&failed)?;
        let names: Vec<&str> = missing.iter().map(|(name, _)| name.as_str()).collect();
        tracing::info!(table = self.quoted(), columns = names.join(", "), "added columns");
        Layout::read(client, &self.schema, &self.name)
            .await
            .map_err(&failed)
    }

    /// The columns that rows need and the table does not have, with their types, as far as there is room.
    #[must_use]
    pub fn missing(&self, layout: &Layout, mut rows: Rows<'_>) -> Vec<(String, &'static str)> {
        let mut missing = BTreeMap::new();
        while let Some(row) = rows.next() {
            for (name, value) in &row.record.fields {
                let column = match self.tables.layout {
                    Shape::Wide => true,
                    Shape::Narrow => self.tables.labels.contains(&**name),
                };
                if column
                    && layout.position(name).is_none()
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

    /// Makes the partitions that rows at these instants (milliseconds since the epoch) need and the table does
    /// not have, and gives what there is then.
    ///
    /// # Errors
    /// As for [`Table::ensure`].
    pub async fn make_partitions(
        &self,
        client: &mut Client,
        instants: &[i64],
    ) -> Result<Option<partitions::Partitions>, SinkError> {
        let by = self.tables.partition_by.unwrap_or(PartitionBy::Month);
        let what = format!("make partitions of the table {}", self.quoted());
        partitions::make(client, self, by, instants)
            .await
            .map_err(failed(&what))
    }
}

/// Makes a schema where it is missing; a worker that finds it needs no right to make one.
pub(super) async fn make_schema(transaction: &Transaction<'_>, schema: &str) -> Result<(), Error> {
    let missing = transaction
        .query_one("SELECT to_regnamespace($1) IS NULL", &[&quote(schema)])
        .await?;
    if missing.try_get(0)? {
        transaction
            .batch_execute(&format!("CREATE SCHEMA IF NOT EXISTS {}", quote(schema)))
            .await?;
    }
    Ok(())
}
