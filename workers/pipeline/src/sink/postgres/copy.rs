//! The COPY of a batch.
//!
//! 1. [`stream`]: rows are encoded while those before them are on their way, in one pass. Where the database refuses
//!    none, which is nearly always, that is all.
//! 2. [`search`]: the rows are encoded first, `super::search` says which to try, and this tries them. Each try is under
//!    a savepoint, which is released whatever came of it: savepoints that are only rolled back to would nest, and each
//!    would make the next one dearer.

use std::{ops::Range, pin::Pin};

use bytes::Bytes;
use futures::SinkExt as _;
use tokio::sync::Notify;
use tokio_postgres::{CopyInSink, Error, Statement, Transaction, error::DbError};

use corrente_record::View;

use super::{
    beside::Beside,
    care::partitions::Places,
    encode::{HEADER, TRAILER},
    layout::Layout,
    rows::{Plan, Widened},
    search::Search,
    session::Statements,
};
use crate::batch::{DeadLetter, Origin, Refusal, Rows, Sorted};

/// Bytes in one message of a COPY: enough that the messages cost little, and few enough that encoding, sending and
/// storing overlap.
const CHUNK: usize = 128 * 1024;
/// A chunk is full when a row more might not fit.
const NEARLY: usize = CHUNK - 4 * 1024;

/// The table that is copied into.
pub struct Target<'a> {
    /// Its name in SQL.
    pub table: &'a str,
    /// Its columns.
    pub layout: &'a Layout,
    /// The columns of the COPY.
    pub plan: &'a mut Plan,
    /// Where rows have a place, where the table is cut into partitions.
    pub places: Option<&'a Places>,
    /// The connection's statements.
    pub statements: &'a mut Statements,
}

/// What became of a batch's rows.
pub struct Copied<'b> {
    /// How many rows are in the table.
    pub rows: u64,
    /// Rows that do not fit, or that the database refused.
    pub refused: Vec<DeadLetter<'b>>,
    /// What the pass found beside them.
    pub sorted: Sorted<'b>,
}

/// How a pass ended.
pub enum Streamed<'b> {
    /// Every row that fits is in the table.
    Copied(Copied<'b>),
    /// The database refused some row; the transaction is of no use any more.
    Refused,
    /// The table lacks columns or partitions.
    Missing,
}

impl Target<'_> {
    /// Whether the table has, or can have, a place for the row; true where it has one.
    fn place(&self, record: &View<'_>) -> Result<bool, Refusal> {
        self.places.map_or(Ok(true), |places| places.hold(record.ts.0))
    }

    async fn statement(&mut self, transaction: &Transaction<'_>) -> Result<Statement, Error> {
        let columns = self.plan.columns();
        let sql = format!("COPY {} ({columns}) FROM STDIN (FORMAT binary)", self.table);
        self.statements.get(transaction, &sql).await
    }
}

/// A COPY under way, and the rows that are not sent yet.
struct Copying {
    sink: Option<Pin<Box<CopyInSink<Bytes>>>>,
    chunk: Vec<u8>,
}

impl Copying {
    fn new() -> Self {
        Self {
            sink: None,
            chunk: HEADER.to_vec(),
        }
    }

    /// Sends what there is, as part of a COPY by the plan of now.
    async fn send(&mut self, transaction: &Transaction<'_>, into: &mut Target<'_>) -> Result<(), Error> {
        let sink = match &mut self.sink {
            Some(sink) => sink,
            None => {
                let statement = into.statement(transaction).await?;
                self.sink.insert(Box::pin(transaction.copy_in(&statement).await?))
            }
        };
        let chunk = std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK));
        sink.send(Bytes::from(chunk)).await
    }

    /// Ends the COPY, if there are rows for one; another may begin then.
    async fn finish(&mut self, transaction: &Transaction<'_>, into: &mut Target<'_>) -> Result<(), Error> {
        if self.sink.is_some() || self.chunk.len() > HEADER.len() {
            self.chunk.extend_from_slice(TRAILER);
            self.send(transaction, into).await?;
            if let Some(mut sink) = self.sink.take() {
                sink.as_mut().finish().await?;
            }
        }
        self.chunk.clear();
        self.chunk.extend_from_slice(HEADER);
        Ok(())
    }
}

/// Copies the rows of a pass as they come, and tells them to what is kept beside them.
pub async fn stream<'b>(
    transaction: &Transaction<'_>,
    mut into: Target<'_>,
    rows: Rows<'b>,
    beside: &mut [Box<dyn Beside>],
    answered: &Notify,
) -> Result<Streamed<'b>, Error> {
    match try_stream(transaction, &mut into, rows, beside, answered).await {
        Err(error) if error.as_db_error().is_some_and(is_refusal) => Ok(Streamed::Refused),
        other => other,
    }
}

async fn try_stream<'b>(
    transaction: &Transaction<'_>,
    into: &mut Target<'_>,
    mut rows: Rows<'b>,
    beside: &mut [Box<dyn Beside>],
    answered: &Notify,
) -> Result<Streamed<'b>, Error> {
    let (mut copying, mut count, mut refused) = (Copying::new(), 0, vec![]);
    while let Some(row) = rows.next() {
        let mut encoded = match into.place(row.record) {
            Ok(true) => into.plan.encode(row.record, &mut copying.chunk),
            Ok(false) => return Ok(Streamed::Missing),
            Err(refusal) => Err(refusal),
        };
        if encoded == Ok(false) {
            copying.finish(transaction, into).await?;
            encoded = match into.plan.widen(into.layout, row.record) {
                Widened::Known => into.plan.encode(row.record, &mut copying.chunk),
                Widened::Missing => return Ok(Streamed::Missing),
                Widened::Refused(refusal) => Err(refusal),
            };
        }
        match encoded {
            Ok(_) => {
                count += 1;
                for beside in &mut *beside {
                    beside.observe(row.record);
                }
            }
            Err(refusal) => refused.push(DeadLetter {
                origin: row.origin,
                refusal,
            }),
        }
        if copying.chunk.len() >= NEARLY {
            copying.send(transaction, into).await?;
            answered.notify_one();
        }
    }
    copying.finish(transaction, into).await?;
    Ok(Streamed::Copied(Copied {
        rows: count,
        refused,
        sorted: rows.finish(),
    }))
}

/// Rows that are encoded, one after the other, without header and trailer.
#[derive(Default)]
struct Encoded<'b> {
    bytes: Vec<u8>,
    rows: Vec<Place<'b>>,
    /// How many rows of the table they come to.
    lines: usize,
}

/// A row among the encoded ones.
struct Place<'b> {
    /// Where it came from.
    origin: Origin<'b>,
    /// Where it ends in the bytes.
    end: usize,
    /// How many rows of the table there are up to its end: it may come to several.
    lines: usize,
}

impl Encoded<'_> {
    /// The bytes of some rows.
    fn of(&self, rows: Range<usize>) -> &[u8] {
        let end = |row: Option<usize>| {
            row.and_then(|row| self.rows.get(row))
                .map_or(0, |place| place.end)
        };
        let bytes = end(rows.start.checked_sub(1))..end(rows.end.checked_sub(1));
        self.bytes.get(bytes).unwrap_or_default()
    }

    /// Which row, from 1 for `first`, a line of a COPY that begins with `first` belongs to.
    fn row(&self, first: usize, line: usize) -> usize {
        let before = first.checked_sub(1).and_then(|row| self.rows.get(row));
        let line = before.map_or(0, |place| place.lines) + line;
        let row = self.rows.partition_point(|place| place.lines < line);
        row + 1 - first.min(row)
    }
}

/// Copies the rows that the database takes, and finds those that it refuses. `rows` begins a pass, as often as it is
/// called; `None` where the table lacks columns.
pub async fn search<'b>(
    transaction: &Transaction<'_>,
    mut into: Target<'_>,
    rows: impl Fn() -> Rows<'b>,
    answered: &Notify,
) -> Result<Option<Copied<'b>>, Error> {
    // All columns that the batch needs, so that it is one COPY whatever is tried.
    let mut pass = rows();
    while let Some(row) = pass.next() {
        let place = into.place(row.record);
        if place == Ok(false) {
            return Ok(None);
        }
        if place.is_ok()
            && let Widened::Missing = into.plan.widen(into.layout, row.record)
        {
            return Ok(None);
        }
    }
    let (mut pass, mut encoded, mut refused) = (rows(), Encoded::default(), vec![]);
    while let Some(row) = pass.next() {
        let placed = match into.place(row.record) {
            Ok(true) => into.plan.encode(row.record, &mut encoded.bytes),
            Ok(false) => return Ok(None),
            Err(refusal) => Err(refusal),
        };
        let done = match placed {
            Ok(true) => Ok(()),
            Ok(false) => match into.plan.widen(into.layout, row.record) {
                Widened::Refused(refusal) => Err(refusal),
                Widened::Known | Widened::Missing => return Ok(None),
            },
            Err(refusal) => Err(refusal),
        };
        match done {
            Ok(()) => {
                encoded.lines += into.plan.lines();
                encoded.rows.push(Place {
                    origin: row.origin,
                    end: encoded.bytes.len(),
                    lines: encoded.lines,
                });
            }
            Err(refusal) => refused.push(DeadLetter {
                origin: row.origin,
                refusal,
            }),
        }
    }
    let mut copied = Copied {
        rows: encoded.rows.len() as u64,
        refused,
        sorted: pass.finish(),
    };
    let found = try_rows(transaction, &mut into, &encoded, answered).await?;
    copied.rows -= found.len() as u64;
    let letters = found.into_iter().filter_map(|(row, refusal)| {
        let Place { origin, .. } = encoded.rows.get(row)?;
        Some(DeadLetter {
            origin: *origin,
            refusal,
        })
    });
    copied.refused.extend(letters);
    Ok(Some(copied))
}

/// Tries the rows; gives the refused ones, by their place in [`Encoded::rows`]. Tells `answered` whenever the database
/// did something.
async fn try_rows(
    transaction: &Transaction<'_>,
    into: &mut Target<'_>,
    encoded: &Encoded<'_>,
    answered: &Notify,
) -> Result<Vec<(usize, Refusal)>, Error> {
    let mut refused = vec![];
    let mut search = Search::new(encoded.rows.len());
    if search.range().is_none() {
        return Ok(refused);
    }
    let statement = into.statement(transaction).await?;
    transaction.batch_execute("SAVEPOINT rows").await?;
    while let Some(range) = search.range() {
        let first = range.start;
        let end = match copy_range(transaction, &statement, encoded.of(range)).await {
            Ok(()) => {
                search.stored();
                "RELEASE SAVEPOINT rows"
            }
            Err(error) => {
                let Some(refusal) = error.as_db_error().filter(|error| is_refusal(error)) else {
                    return Err(error);
                };
                if let Some(row) = search.refused(
                    refusal
                        .where_()
                        .and_then(line)
                        .map(|line| encoded.row(first, line)),
                ) {
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

async fn copy_range(transaction: &Transaction<'_>, statement: &Statement, body: &[u8]) -> Result<(), Error> {
    let sink = transaction.copy_in::<_, Bytes>(statement).await?;
    futures::pin_mut!(sink);
    let mut chunk = HEADER.to_vec();
    for piece in body.chunks(CHUNK) {
        chunk.extend_from_slice(piece);
        sink.send(Bytes::from(std::mem::take(&mut chunk))).await?;
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
