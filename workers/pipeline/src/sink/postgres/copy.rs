//! The COPY of a batch, and the search for the rows that the database refuses.
//!
//! The first COPY takes all rows, under a savepoint. Where the database refuses one, its error usually
//! names the line. Then the rows before it, the row itself, and the rows after it are copied, each under
//! a savepoint again: what is refused alone is the row that is set aside, and a line that was named
//! wrongly harms nobody. Where no line is named, the rows are halved.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use futures::SinkExt as _;
use tokio_postgres::{Error, Transaction, error::DbError};

use super::{
    encode::{HEADER, TRAILER},
    rows::Encoded,
};
use crate::{batch::Refusal, sink::columns::quote};

/// Bytes in one message of a COPY.
const CHUNK: usize = 256 * 1024;

/// Copies the rows; gives the refused ones, by their place in [`Encoded::rows`].
pub async fn copy(
    transaction: &mut Transaction<'_>,
    table: &str,
    encoded: &Encoded,
) -> Result<Vec<(usize, Refusal)>, Error> {
    let columns: Vec<String> = encoded.columns.iter().map(|name| quote(name)).collect();
    let statement = format!("COPY {table} ({}) FROM STDIN (FORMAT binary)", columns.join(", "));
    let mut refused = vec![];
    // The end of the vector is next.
    let mut ranges: Vec<_> = std::iter::once(0..encoded.rows.len()).collect();
    while let Some(range) = ranges.pop() {
        if range.is_empty() {
            continue;
        }
        let savepoint = transaction.savepoint("rows").await?;
        let Err(error) = copy_range(&savepoint, &statement, encoded, range.clone()).await else {
            savepoint.commit().await?;
            continue;
        };
        let Some(refusal) = error.as_db_error().filter(|error| is_refusal(error)) else {
            return Err(error);
        };
        savepoint.rollback().await?;
        if range.len() == 1 {
            refused.push((range.start, describe(refusal)));
        } else {
            ranges.extend(split(range, refusal.where_().and_then(line)).into_iter().rev());
        }
    }
    Ok(refused)
}

async fn copy_range(
    transaction: &Transaction<'_>,
    statement: &str,
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

/// The parts to copy next, in their order, where line `line` (from 1) of `range` was refused. Each is
/// smaller than `range`, which has at least two rows, and together they are `range`.
fn split(range: Range<usize>, line: Option<usize>) -> Vec<Range<usize>> {
    match line.filter(|line| (1..=range.len()).contains(line)) {
        Some(line) => {
            let row = range.start + line - 1;
            vec![range.start..row, row..row + 1, row + 1..range.end]
        }
        None => {
            let middle = range.start + range.len() / 2;
            vec![range.start..middle, middle..range.end]
        }
    }
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
    use std::collections::BTreeSet;

    use proptest::prelude::*;

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

    proptest! {
        /// A database that refuses some rows and names the right line, a wrong one, or none.
        #[test]
        fn exactly_the_refused_rows_are_found(
            count in 1usize..200,
            bad in prop::collection::btree_set(0usize..200, 0..20),
            named in prop::collection::vec(0u8..3, 1..50),
        ) {
            let bad: BTreeSet<usize> = bad.into_iter().filter(|row| *row < count).collect();
            let (mut stored, mut refused) = (vec![], BTreeSet::new());
            let mut ranges: Vec<_> = std::iter::once(0..count).collect();
            let mut answers = named.into_iter().cycle();
            while let Some(range) = ranges.pop() {
                let Some(first) = bad.range(range.clone()).next() else {
                    stored.extend(range);
                    continue;
                };
                if range.len() == 1 {
                    prop_assert!(refused.insert(range.start));
                    continue;
                }
                let line = match answers.next() {
                    Some(0) => Some(first - range.start + 1),
                    Some(1) => Some(range.len()),
                    _ => None,
                };
                let parts = split(range.clone(), line);
                prop_assert!(parts.iter().all(|part| part.len() < range.len()));
                ranges.extend(parts.into_iter().rev());
            }
            prop_assert_eq!(&refused, &bad);
            prop_assert!(stored.iter().all(|row| !bad.contains(row)));
            prop_assert!(stored.is_sorted());
            prop_assert_eq!(stored.len() + refused.len(), count);
        }
    }
}
