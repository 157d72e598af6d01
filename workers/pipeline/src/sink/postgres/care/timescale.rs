//! Hypertables: made, and brought in line with what the TelemetryPipeline says whenever it changes.
//!
//! What works without TimescaleDB's background jobs is done without them, by the worker, so that every edition
//! does the same: chunks are dropped by `drop_chunks`. Compression is the community edition's alone; there, too,
//! the worker compresses chunk by chunk, so that nothing is left behind in the database when the TelemetryPipeline
//! stops asking for it.

use corrente_config::pipeline::Hypertable;
use corrente_crds::tables::Layout as Shape;
use corrente_record::Timestamp;
use tokio_postgres::{Client, Error, GenericClient};

use super::super::{fault::failed, table::Table};
use crate::sink::SinkError;

/// What the database's TimescaleDB is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edition {
    /// Its version, as `2.19.3`.
    pub version: String,
    /// The community edition, which has compression; the other is the Apache edition.
    pub community: bool,
}

impl Edition {
    /// Looks; `None` where the database has no TimescaleDB.
    pub async fn read(client: &impl GenericClient) -> Result<Option<Self>, Error> {
        let row = client
            .query_opt(
                "SELECT extversion, coalesce(current_setting('timescaledb.license', true), '') = 'timescale' \
                        AND to_regproc('compress_chunk') IS NOT NULL \
                 FROM pg_extension WHERE extname = 'timescaledb'",
                &[],
            )
            .await?;
        row.map(|row| {
            Ok(Self {
                version: row.try_get(0)?,
                community: row.try_get(1)?,
            })
        })
        .transpose()
    }

    /// What to say where compression is asked for and this edition has none.
    #[must_use]
    pub fn cannot_compress(&self) -> Option<String> {
        (!self.community).then(|| {
            format!(
                "compressAfter needs TimescaleDB's community edition, and the database has the Apache edition \
                 ({}): install the other, or remove compressAfter; rows are stored uncompressed",
                self.version
            )
        })
    }
}

/// The dimension over `ts`: its interval in milliseconds; `None` where the table is no hypertable.
async fn chunk_interval(client: &impl GenericClient, table: &Table) -> Result<Option<i64>, Error> {
    let row = client
        .query_opt(
            "SELECT (extract(epoch FROM time_interval) * 1000)::bigint FROM timescaledb_information.dimensions \
             WHERE hypertable_schema = $1 AND hypertable_name = $2 AND dimension_number = 1",
            &[&table.schema, &table.name],
        )
        .await?;
    row.map(|row| row.try_get::<_, Option<i64>>(0).map(Option::unwrap_or_default))
        .transpose()
}

/// Makes the table a hypertable, where it is none.
///
/// # Errors
/// What sort of fault it is, with a sentence; a person must change something, or trying again helps.
pub async fn make(client: &mut Client, table: &Table) -> Result<(), SinkError> {
    let what = format!("make {} a hypertable", table.quoted());
    let failed = failed(&what);
    if Edition::read(client).await.map_err(&failed)?.is_none() {
        return Err(SinkError::Retry(format!(
            "{} cannot be a hypertable: the database has no TimescaleDB. Run CREATE EXTENSION timescaledb in it, \
             or name a postgresql sink",
            table.quoted()
        )));
    }
    if chunk_interval(client, table).await.map_err(&failed)?.is_some() {
        return Ok(());
    }
    let interval = table
        .hypertable
        .and_then(|hypertable| hypertable.chunk_interval_millis)
        .map(|millis| format!(", INTERVAL '{millis} milliseconds'"))
        .unwrap_or_default();
    let transaction = client.transaction().await.map_err(&failed)?;
    table.lock(&transaction).await.map_err(&failed)?;
    transaction
        .query(
            &format!("SELECT create_hypertable($1::text::regclass, by_range('ts'{interval}), if_not_exists => true)"),
            &[&table.quoted()],
        )
        .await
        .map_err(&failed)?;
    transaction.commit().await.map_err(&failed)
}

/// Gives new chunks the length that is asked for, where it is another by now.
pub async fn set_chunk_interval(
    client: &mut Client,
    table: &Table,
    hypertable: &Hypertable,
) -> Result<(), Error> {
    let Some(wanted) = hypertable.chunk_interval_millis else {
        return Ok(());
    };
    let found = chunk_interval(client, table).await?;
    if found.is_none_or(|found| u64::try_from(found) == Ok(wanted)) {
        return Ok(());
    }
    let transaction = client.transaction().await?;
    table.lock(&transaction).await?;
    transaction
        .query(
            &format!("SELECT set_chunk_time_interval($1::text::regclass, INTERVAL '{wanted} milliseconds')"),
            &[&table.quoted()],
        )
        .await?;
    transaction.commit().await?;
    tracing::info!(
        table = table.quoted(),
        milliseconds = wanted,
        "set the length of new chunks"
    );
    Ok(())
}

/// Drops the chunks whose rows are all older than `before`; gives how many they were.
pub async fn drop_old(client: &mut Client, table: &Table, before: Timestamp) -> Result<usize, Error> {
    let transaction = client.transaction().await?;
    table.lock(&transaction).await?;
    let dropped = transaction
        .query(
            "SELECT drop_chunks($1::text::regclass, older_than => $2::text::timestamptz)",
            &[&table.quoted(), &before.to_string()],
        )
        .await?;
    transaction.commit().await?;
    for row in &dropped {
        let chunk: &str = row.try_get(0)?;
        tracing::info!(chunk, "dropped a chunk, whose rows are older than the retention");
    }
    Ok(dropped.len())
}

/// The statement that lets chunks of a table be compressed: by meter, newest first, as they are asked for.
fn compressible(table: &Table) -> String {
    let (by, order) = match table.tables.layout {
        Shape::Wide => ("meter", "ts DESC"),
        Shape::Narrow => ("meter, metric", "ts DESC"),
    };
    format!(
        "ALTER TABLE {} SET (timescaledb.compress, timescaledb.compress_segmentby = '{by}', \
         timescaledb.compress_orderby = '{order}')",
        table.quoted()
    )
}

/// Compresses the oldest chunk whose rows are all older than `before`; gives whether there was one.
pub async fn compress_one(client: &mut Client, table: &Table, before: Timestamp) -> Result<bool, Error> {
    let enabled = client
        .query_one(
            "SELECT compression_enabled FROM timescaledb_information.hypertables \
             WHERE hypertable_schema = $1 AND hypertable_name = $2",
            &[&table.schema, &table.name],
        )
        .await?;
    if !enabled.try_get::<_, bool>(0)? {
        let transaction = client.transaction().await?;
        table.lock(&transaction).await?;
        transaction.batch_execute(&compressible(table)).await?;
        transaction.commit().await?;
    }
    let chunk = client
        .query_opt(
            "SELECT quote_ident(chunk_schema) || '.' || quote_ident(chunk_name) \
             FROM timescaledb_information.chunks \
             WHERE hypertable_schema = $1 AND hypertable_name = $2 AND NOT is_compressed \
                   AND range_end <= $3::text::timestamptz \
             ORDER BY range_start LIMIT 1",
            &[&table.schema, &table.name, &before.to_string()],
        )
        .await?;
    let Some(chunk) = chunk else { return Ok(false) };
    let chunk: String = chunk.try_get(0)?;
    client
        .query(
            "SELECT compress_chunk($1::text::regclass, if_not_compressed => true)",
            &[&chunk],
        )
        .await?;
    tracing::info!(chunk, "compressed a chunk");
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_apache_edition_is_told_and_the_other_is_not() {
        let mut edition = Edition {
            version: "2.19.3".to_owned(),
            community: false,
        };
        assert!(
            edition
                .cannot_compress()
                .unwrap()
                .contains("Apache edition (2.19.3)")
        );
        edition.community = true;
        assert_eq!(edition.cannot_compress(), None);
    }
}
