//! The COPY of a batch: `search` says which rows to try, and this tries them.
//!
//! Each try is under a savepoint, which is released whatever came of it: savepoints that are only rolled
//! back to would nest, and each would make the next one dearer.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use futures::SinkExt as _;
use tokio::sync::Notify;
use tokio_postgres::{Error, Statement, Transaction, error::DbError};

use super::{
    encode::{HEADER, TRAILER},
    rows::Encoded,
    search::Search,
};
use crate::{batch::Refusal, sink::columns::quote};

/// Bytes in one message of a COPY.
const CHUNK: usize = 256 * 1024;

/// Copies the rows; gives the refused ones, by their place in [`Encoded::rows`]. Tells `answered` whenever
/// the database did something.
pub async fn copy(
    transaction: &Transaction<'_>,
    table: &str,
    encoded: &Encoded,
    answered: &Notify,
) -> Result<Vec<(usize, Refusal)>, Error> {
    let mut refused = vec![];
    let mut search = Search::new(encoded.rows.len());
    if search.range().is_none() {
        return Ok(refused);
    }
    let columns: Vec<String> = encoded.columns.iter().map(|name| quote(name)).collect();
    let statement = format!("COPY {table} ({}) FROM STDIN (FORMAT binary)", columns.join(", "));
    let statement = transaction.prepare(&statement).await?;
    transaction.batch_execute("SAVEPOINT rows").await?;
    while let Some(range) = search.range() {
        let end = match copy_range(transaction, &statement, encoded, range).await {
            Ok(()) => {
                search.stored();
                "RELEASE SAVEPOINT rows"
            }
            Err(error) => {
                let Some(refusal) = error.as_db_error().filter(|error| is_refusal(error)) else {
                    return Err(error);
                };
                if let Some(row) = search.refused(refusal.where_().and_then(line)) {
                    refused.push((row, describe(refusal)));
                }
                "ROLLBACK TO SAVEPOINT rows; RELEASE SAVEPOINT rows"
            }
        };
        // In one round trip with the next savepoint, for there may be thousands.
        if search.range().is_some() {
            transaction
                .batch_execute(&format!("{end}; SAVEPOINT rows"))
                .await?;
        } else {
            transaction.batch_execute(end).await?;
        }
        answered.notify_one();
    }
    Ok(refused)
}

async fn copy_range(
    transaction: &Transaction<'_>,
    statement: &Statement,
    encoded: &Encoded,
    range: Range<usize>,
) -> Result<(), Error> {
    let rows = &encoded.rows[range];
    let (Some((_, first)), Some((_, last))) = (rows.first(), rows.last()) else {
        return Ok(());
    };
    let sink = transaction.copy_in::<_, Bytes>(statement).await?;
    futures::pin_mut!(sink);
    // The rows between are those of the range: what did not fit has left no bytes.
    let body = encoded.bytes.slice(first.start..last.end);
    let mut head = BytesMut::from(HEADER);
    let rest = body.len().min(CHUNK);
    head.extend_from_slice(&body[..rest]);
    sink.send(head.freeze()).await?;
    let mut at = rest;
    while at < body.len() {
        let end = body.len().min(at + CHUNK);
        sink.send(body.slice(at..end)).await?;
        at = end;
    }
    sink.send(Bytes::from_static(TRAILER)).await?;
    sink.finish().await?;
    Ok(())
}

/// Whether an error of a COPY is about its rows, and not about the database or the table. These are data
/// exceptions (22), violated constraints (23), a violated view's check (44), limits such as the size of
/// an index's row (54), and what a trigger raises (P0001). 22P03 says that the bytes are not of the
/// column's type, as when somebody altered it: that is about the table.
fn is_refusal(error: &DbError) -> bool {
    let code = error.code().code();
    code != "22P03"
        && (code == "P0001"
            || ["22", "23", "44", "54"]
                .iter()
                .any(|class| code.starts_with(class)))
}

fn describe(error: &DbError) -> Refusal {
    let detail = error
        .detail()
        .map(|detail| format!(" ({detail})"))
        .unwrap_or_default();
    Refusal {
        sqlstate: Some(error.code().code().to_owned()),
        column: error
            .column()
            .or_else(|| error.where_().and_then(column))
            .map(str::to_owned),
        reason: format!("{}{detail}", error.message()),
    }
}

/// The rest of the context's line of the COPY, after the table's name: `COPY readings, line 3, column v`.
fn copy_context(context: &str) -> Option<&str> {
    context.lines().find_map(|line| {
        line.strip_prefix("COPY ")?
            .split_once(", line ")
            .map(|(_, rest)| rest)
    })
}

fn line(context: &str) -> Option<usize> {
    let rest = copy_context(context)?;
    rest[..rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())]
        .parse()
        .ok()
}

fn column(context: &str) -> Option<&str> {
    let (_, rest) = copy_context(context)?.split_once(", column ")?;
    Some(rest.split(':').next().unwrap_or(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_line_from_the_context() {
        for (context, expected) in [
            ("COPY readings, line 3", (Some(3), None)),
            (
                "COPY readings, line 12, column voltage",
                (Some(12), Some("voltage")),
            ),
            ("COPY readings, line 12, column v: \"x\"", (Some(12), Some("v"))),
            (
                "PL/pgSQL function f() line 4 at RAISE\nCOPY readings, line 2",
                (Some(2), None),
            ),
            ("PL/pgSQL function f() line 4 at RAISE", (None, None)),
        ] {
            assert_eq!((line(context), column(context)), expected, "{context}");
        }
    }
}
