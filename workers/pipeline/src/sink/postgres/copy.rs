//! The COPY of a batch.
//!
//! 1. [`stream`]: rows are encoded while those before them are on their way, in one pass. Where the database refuses
//!    none, which is nearly always, that is all.
//! 2. [`search`]: the rows are encoded first, `super::search` says which to try, and this tries them. Each try is under
//!    a savepoint, which is released whatever came of it: savepoints that are only rolled back to would nest, and each
//!    would make the next one dearer.

use std::{collections::HashSet, ops::Range, pin::Pin};

use bytes::Bytes;
use corrente_record::View;
use futures::SinkExt as _;
use tokio::sync::Notify;
use tokio_postgres::{
    CopyInSink, Error, Statement, Transaction,
    error::{DbError, SqlState},
};

use super::{
    beside::Beside,
    care::partitions::Places,
    encode::{HEADER, TRAILER},
    keyed::Keyed,
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
    /// The key by which a repeat is known, where it is known by one.
    pub keyed: Option<&'a Keyed>,
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
    /// Rows whose key the table had already.
    pub repeats: u64,
    /// The offsets of these, where they were asked for.
    pub left_out: Vec<i64>,
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
    /// The same, and it was a key that the table had already.
    Repeat,
    /// The table lacks columns or partitions.
    Missing,
}

/// What became of a row that fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    /// It is appended.
    Done,
    /// It has columns that the plan lacks.
    NoColumn,
    /// It belongs into a partition that the table lacks.
    NoPlace,
}

impl Target<'_> {
    /// Whether the table has, or can have, a place for the row; true where it has one.
    fn place(&self, record: &View<'_>) -> Result<bool, Refusal> {
        self.places.map_or(Ok(true), |places| places.hold(record.ts.0))
    }

    /// Appends a row; what it lacks of a plan or of a place is said instead.
    fn encode(&mut self, record: &View<'_>, out: &mut Vec<u8>) -> Result<Encoding, Refusal> {
        if let Some(keyed) = self.keyed {
            keyed.check(record)?;
        }
        if !self.place(record)? {
            return Ok(Encoding::NoPlace);
        }
        Ok(match self.plan.encode(record, out)? {
            true => Encoding::Done,
            false => Encoding::NoColumn,
        })
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
        Err(error) if error.as_db_error().is_some_and(is_refusal) => {
            let repeat = into.keyed.is_some() && error.code() == Some(&SqlState::UNIQUE_VIOLATION);
            Ok(match repeat {
                true => Streamed::Repeat,
                false => Streamed::Refused,
            })
        }
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
        let mut encoded = into.encode(row.record, &mut copying.chunk);
        if encoded == Ok(Encoding::NoColumn) {
            copying.finish(transaction, into).await?;
            encoded = match into.plan.widen(into.layout, row.record) {
                Widened::Known => into.encode(row.record, &mut copying.chunk),
                Widened::Missing => return Ok(Streamed::Missing),
                Widened::Refused(refusal) => Err(refusal),
            };
        }
        match encoded {
            Ok(Encoding::NoPlace) => return Ok(Streamed::Missing),
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
        repeats: 0,
        left_out: vec![],
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

/// Copies the rows that the database takes, and finds those that it refuses, of which there is about one in `distance`.
/// Where the table has a key, repeats are left out, and told where `told` asks for it. `rows` begins a pass, as often as
/// it is called; `None` where the table lacks columns.
pub async fn search<'b>(
    transaction: &Transaction<'_>,
    mut into: Target<'_>,
    rows: impl Fn() -> Rows<'b>,
    distance: usize,
    told: bool,
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
        let done = match into.encode(row.record, &mut encoded.bytes) {
            Ok(Encoding::Done) => Ok(()),
            Ok(Encoding::NoPlace) => return Ok(None),
            Ok(Encoding::NoColumn) => match into.plan.widen(into.layout, row.record) {
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
    let sorted = pass.finish();
    let mut tried = Tries::begin(transaction, &mut into, told)
        .await?
        .all(&encoded, distance, answered)
        .await?;
    let (found, mut left_out) = (tried.refused.len(), vec![]);
    if let Some(taken) = tried.taken.take() {
        let refused = tried.refused.iter().map(|(row, _)| *row);
        let not: HashSet<usize> = taken.into_iter().chain(refused).collect();
        let rows = encoded.rows.iter().enumerate();
        left_out.extend(
            rows.filter(|(row, _)| !not.contains(row))
                .map(|(_, place)| place.origin.offset),
        );
    }
    let letters = tried.refused.into_iter().filter_map(|(row, refusal)| {
        let Place { origin, .. } = encoded.rows.get(row)?;
        Some(DeadLetter {
            origin: *origin,
            refusal,
        })
    });
    refused.extend(letters);
    Ok(Some(Copied {
        rows: tried.rows,
        repeats: (encoded.rows.len() - found) as u64 - tried.rows,
        left_out,
        refused,
        sorted,
    }))
}

/// What came of the tries.
#[derive(Default)]
struct Tried {
    /// Rows that are in the table.
    rows: u64,
    /// Rows that were refused, by their place in [`Encoded::rows`].
    refused: Vec<(usize, Refusal)>,
    /// Where it was asked for which rows the table took, these, by their places.
    taken: Option<Vec<usize>>,
}

/// How a range of rows is tried.
struct Tries<'a> {
    transaction: &'a Transaction<'a>,
    copy: Statement,
    /// Where there is a key, the statement that brings all rows from the temporary table into the table, and the one
    /// for a part of them.
    merge: Option<(Statement, Statement)>,
    /// Whether they tell which rows the table took.
    told: bool,
}

impl<'a> Tries<'a> {
    async fn begin(
        transaction: &'a Transaction<'a>,
        into: &mut Target<'_>,
        told: bool,
    ) -> Result<Self, Error> {
        let Some(keyed) = into.keyed else {
            return Ok(Self {
                transaction,
                copy: into.statement(transaction).await?,
                merge: None,
                told: false,
            });
        };
        let stage = keyed.stage(transaction, into.table, into.layout).await?;
        let columns = into.plan.columns();
        let copy = format!("COPY {} ({columns}) FROM STDIN (FORMAT binary)", stage.name);
        let copy = into.statements.get(transaction, &copy).await?;
        let all = keyed.merge(&stage, into.table, &columns, true, told);
        let some = keyed.merge(&stage, into.table, &columns, false, told);
        let all = into.statements.get(transaction, &all).await?;
        let some = into.statements.get(transaction, &some).await?;
        Ok(Self {
            transaction,
            copy,
            merge: Some((all, some)),
            told,
        })
    }

    /// Tries all rows. Tells `answered` whenever the database did something.
    async fn all(self, encoded: &Encoded<'_>, distance: usize, answered: &Notify) -> Result<Tried, Error> {
        let mut tried = Tried {
            taken: self.told.then(Vec::new),
            ..Tried::default()
        };
        let mut search = Search::new(encoded.rows.len(), distance);
        let mut before = "SAVEPOINT rows";
        while let Some(range) = search.range() {
            // In one round trip, for there may be thousands: what is asked first is sent first.
            let first = range.start;
            let (savepoint, stored) =
                futures::join!(self.transaction.batch_execute(before), self.range(encoded, range));
            savepoint?;
            before = match stored {
                Ok((rows, places)) => {
                    tried.rows += rows;
                    if let Some(taken) = &mut tried.taken {
                        // They are numbered from 1 within the range.
                        taken.extend(places.into_iter().map(|place| first + place - 1));
                    }
                    search.stored();
                    "RELEASE SAVEPOINT rows; SAVEPOINT rows"
                }
                Err(error) => {
                    let Some(refusal) = error.as_db_error().filter(|error| is_refusal(error)) else {
                        return Err(error);
                    };
                    let line = refusal.where_().and_then(line);
                    if let Some(row) = search.refused(line.map(|line| encoded.row(first, line))) {
                        tried.refused.push((row, describe(refusal)));
                    }
                    "ROLLBACK TO SAVEPOINT rows; RELEASE SAVEPOINT rows; SAVEPOINT rows"
                }
            };
            answered.notify_one();
        }
        // The last savepoint goes with the transaction.
        if !encoded.rows.is_empty() {
            self.transaction.batch_execute(before).await?;
        }
        Ok(tried)
    }

    /// Tries some rows; gives how many of them are in the table, and where it is asked for, which, from 1 on.
    async fn range(&self, encoded: &Encoded<'_>, range: Range<usize>) -> Result<(u64, Vec<usize>), Error> {
        let all = range.len() == encoded.rows.len();
        let count = range.len() as u64;
        copy_range(self.transaction, &self.copy, encoded.of(range)).await?;
        let merge = match &self.merge {
            None => return Ok((count, vec![])),
            Some((merge, _)) if all => merge,
            Some((_, merge)) => merge,
        };
        if !self.told {
            return Ok((self.transaction.execute(merge, &[]).await?, vec![]));
        }
        let rows = self.transaction.query(merge, &[]).await?;
        let places = rows.iter().map(|row| row.try_get::<_, i64>(0));
        let places: Vec<usize> = places
            .map(|place| place.map(|place| usize::try_from(place).unwrap_or(0).max(1)))
            .collect::<Result<_, _>>()?;
        Ok((places.len() as u64, places))
    }
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
