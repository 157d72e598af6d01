//! A lock per meter, held until the transaction ends.
//!
//! Rows of a table, not advisory locks: a batch may touch more meters than the server has room for in its table of locks.

use tokio_postgres::{Client, Error, Transaction};

use crate::sink::postgres::session::make_missing_tables;

/// Makes the table where it is missing, and that of what is to be made of earlier readings. A worker that finds them
/// needs no right to make any.
pub async fn create_locks(client: &mut Client) -> Result<(), Error> {
    let tables = "CREATE TABLE IF NOT EXISTS corrente.meter_locks ( \
                      scope text NOT NULL, meter text NOT NULL, PRIMARY KEY (scope, meter)); \
                  CREATE TABLE IF NOT EXISTS corrente.backfills ( \
                      table_schema text NOT NULL, table_name text NOT NULL, meter text, reached timestamptz, \
                      PRIMARY KEY (table_schema, table_name))";
    make_missing_tables(client, &["corrente.meter_locks", "corrente.backfills"], tables).await
}

/// Locks the meters, within a scope: the table that is derived from. They must be in their order, so that two transactions
/// never wait for each other. One that is waited for is at its end, and what was done up to here is dear to do again: so it
/// is waited for longer than for other locks.
pub async fn lock(transaction: &Transaction<'_>, scope: &str, meters: &[String]) -> Result<(), Error> {
    transaction
        .batch_execute("SET LOCAL lock_timeout = '60s'")
        .await?;
    // A row that is there is locked by the conflict, and left as it is.
    transaction
        .execute(
            "INSERT INTO corrente.meter_locks (scope, meter) SELECT $1, meter FROM unnest($2::text[]) AS meter \
             ON CONFLICT (scope, meter) DO UPDATE SET meter = excluded.meter WHERE false",
            &[&scope, &meters],
        )
        .await?;
    Ok(())
}
