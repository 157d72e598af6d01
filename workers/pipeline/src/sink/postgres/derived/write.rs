//! The tables of windows: made, and kept.

use std::time::SystemTime;

use tokio_postgres::{Client, Error, GenericClient, Transaction};

use super::read::time;
use crate::derived::{
    job::{Made, SAYS, said_by, set},
    plan::{Plan, WindowTable},
    window::Window,
};

/// A row per meter, metric and window. A window is written again and again while it fills: with room in its page for the
/// next version of a row, no index has to be told.
fn definition(table: &str) -> String {
    format!(
        "CREATE TABLE {table} (
            meter text NOT NULL,
            metric text NOT NULL,
            window_start timestamptz NOT NULL,
            window_end timestamptz NOT NULL,
            demand double precision,
            energy double precision,
            mean double precision,
            min double precision,
            max double precision,
            last double precision,
            readings integer NOT NULL,
            expected integer,
            completeness double precision,
            quality text NOT NULL,
            rollovers integer NOT NULL,
            resets integer NOT NULL,
            jumps integer NOT NULL,
            swaps integer NOT NULL,
            revision integer NOT NULL DEFAULT 1,
            updated_at timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (meter, metric, window_end)
        ) WITH (fillfactor = 70);
        CREATE INDEX ON {table} (window_end)"
    )
}

/// Makes the table `name`, which is `table` in SQL, where it is missing, and notes that it lacks the windows of earlier
/// readings. A worker that finds it needs no right to make any.
pub async fn create(client: &mut Client, schema: &str, name: &str, table: &str) -> Result<(), Error> {
    if is_there(client, table).await? {
        return Ok(());
    }
    let transaction = client.transaction().await?;
    transaction
        .execute(
            "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))",
            &[&format!("corrente {table}")],
        )
        .await?;
    // Another worker may have been faster.
    if !is_there(&transaction, table).await? {
        transaction.batch_execute(&definition(table)).await?;
        transaction
            .execute(
                "INSERT INTO corrente.backfills (table_schema, table_name) VALUES ($1, $2) \
                 ON CONFLICT (table_schema, table_name) DO UPDATE SET meter = NULL, reached = NULL",
                &[&schema, &name],
            )
            .await?;
    }
    transaction.commit().await
}

async fn is_there(client: &impl GenericClient, table: &str) -> Result<bool, Error> {
    client
        .query_one("SELECT to_regclass($1) IS NOT NULL", &[&table])
        .await?
        .try_get(0)
}

/// Writes windows; gives how many were new or another than they were.
///
/// `revision` stays 1 while a window fills. It rises when a window changes of which the table has a later one already:
/// that is what late data do.
///
/// One that has more readings than are in the table by now stays: its readings were dropped by retention, and a late one
/// would leave a window of that one alone.
pub async fn upsert(
    transaction: &Transaction<'_>,
    quoted: &str,
    plan: &Plan,
    table: &WindowTable,
    windows: &Made<'_>,
) -> Result<u64, Error> {
    if windows.is_empty() {
        return Ok(0);
    }
    let (says, set) = (SAYS.join(", "), set());
    let sql = format!(
        "INSERT INTO {quoted} AS w (meter, metric, window_start, window_end, {says}) \
         SELECT * FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::timestamptz[], $5::float8[], $6::float8[], \
         $7::float8[], $8::float8[], $9::float8[], $10::float8[], $11::int[], $12::int[], $13::float8[], $14::text[], \
         $15::int[], $16::int[], $17::int[], $18::int[]) \
         ON CONFLICT (meter, metric, window_end) \
         DO UPDATE SET {set}, updated_at = now(), revision = w.revision + (EXISTS (SELECT 1 FROM {quoted} later \
         WHERE later.meter = w.meter AND later.metric = w.metric AND later.window_end > w.window_end))::int \
         WHERE excluded.readings >= w.readings AND ({}) IS DISTINCT FROM ({})",
        said_by("w"),
        said_by("excluded"),
    );
    let name = |metric: usize| plan.metrics.get(metric).map_or("", |metric| metric.name.as_str());
    let meters: Vec<&str> = windows.keys().map(|(meter, ..)| *meter).collect();
    let metrics: Vec<&str> = windows.keys().map(|(_, metric, _)| name(*metric)).collect();
    let starts: Vec<SystemTime> = windows
        .keys()
        .map(|(.., end)| time(end - table.interval))
        .collect();
    let ends: Vec<SystemTime> = windows.keys().map(|(.., end)| time(*end)).collect();
    let doubles = |of: fn(&Window) -> Option<f64>| -> Vec<Option<f64>> { windows.values().map(of).collect() };
    let counts = |of: fn(&Window) -> i32| -> Vec<i32> { windows.values().map(of).collect() };
    let expected: Vec<Option<i32>> = windows.values().map(|window| window.expected).collect();
    let qualities: Vec<&str> = windows.values().map(|window| window.quality.as_str()).collect();
    transaction
        .execute(
            &sql,
            &[
                &meters,
                &metrics,
                &starts,
                &ends,
                &doubles(|window| window.demand),
                &doubles(|window| window.energy),
                &doubles(|window| window.mean),
                &doubles(|window| window.min),
                &doubles(|window| window.max),
                &doubles(|window| window.last),
                &counts(|window| window.readings),
                &expected,
                &doubles(Window::completeness),
                &qualities,
                &counts(|window| window.rollovers),
                &counts(|window| window.resets),
                &counts(|window| window.jumps),
                &counts(|window| window.swaps),
            ],
        )
        .await
}
