//! From messages to what a sink stores in one transaction.
//!
//! A [`Batch`] holds the messages as they came. The sink goes through them in one pass ([`Batch::rows`]), which it may
//! begin anew as often as it must, and which always gives the same:
//! 1. A message without payload is a tombstone: there is nothing to store.
//! 2. Bytes that are no record go to the dead letters, with the reason.
//! 3. A record that the table has already is dropped and counted.
//! 4. The transformations may change it, leave it out, or set it aside.
//! 5. The rest are rows. They are not gathered: the sink encodes each as it comes.
//!
//! Whatever becomes of its messages, the batch moves the partition's offset past all of them.

use std::sync::Arc;

use corrente_record::{Reader, View};
use corrente_runtime::broker::{Incoming, TopicPartition};

use crate::{
    assignment::Fingerprint,
    batcher::Run,
    dedupe::{Marks, Rising},
    transform::{Chain, Verdict},
};

/// The longest stream id that is taken, in bytes: it is part of a key in the database.
const STREAM_BYTES: usize = 128;

/// A partition of a named cluster: what offsets are kept for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The cluster's own name.
    pub cluster: Arc<str>,
    /// The partition.
    pub partition: TopicPartition,
}

/// Where a row came from, and its bytes as they came: what a dead letter keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin<'b> {
    /// The offset.
    pub offset: i64,
    /// The key.
    pub key: Option<&'b [u8]>,
    /// The payload.
    pub payload: &'b [u8],
}

/// A record to store.
#[derive(Debug)]
pub struct Row<'r, 'b> {
    /// Where it came from.
    pub origin: Origin<'b>,
    /// What it says. The view is filled anew for the next row.
    pub record: &'r View<'b>,
}

/// Why a record is set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The database's code, where the database refused it.
    pub sqlstate: Option<String>,
    /// The column that it concerns, where it is one.
    pub column: Option<String>,
    /// What is wrong, as a sentence.
    pub reason: String,
}

/// A record that is set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter<'b> {
    /// Where it came from.
    pub origin: Origin<'b>,
    /// Why.
    pub refusal: Refusal,
}

/// What is stored in one transaction.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// The partition.
    pub place: Place,
    /// The epoch of the claim under which it is stored.
    pub epoch: i64,
    /// The next offset that the sink must have; `None` where it has none.
    pub previous: Option<i64>,
    /// The next offset after it.
    pub next_offset: i64,
    /// The last message.
    pub last: Fingerprint,
    /// How many messages it has.
    pub count: usize,
    runs: Vec<Run>,
    /// The streams' high-water marks before it.
    marks: Arc<Marks>,
}

impl Batch {
    /// Makes a batch of messages in the order of their offsets. `None` where there are none.
    #[must_use]
    pub fn build(
        place: Place,
        epoch: i64,
        previous: Option<i64>,
        runs: Vec<Run>,
        marks: Arc<Marks>,
    ) -> Option<Self> {
        let last = runs.last()?;
        let last = last.messages.get(last.range.end.checked_sub(1)?)?;
        Some(Self {
            place,
            epoch,
            previous,
            next_offset: last.offset + 1,
            last: Fingerprint::of(&last),
            count: runs.iter().map(|run| run.range.len()).sum(),
            runs,
            marks,
        })
    }

    /// What its messages weigh, as [`crate::batcher::Bounds`] count it.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.runs.iter().map(Run::weight).sum()
    }

    /// Begins a pass over the messages.
    #[must_use]
    pub fn rows<'b>(&'b self, chain: &'b Chain) -> Rows<'b> {
        Rows {
            batch: self,
            chain,
            run: 0,
            number: 0,
            rising: Some(self.marks.rising()),
            reader: Reader::default(),
            record: View::default(),
            sorted: Sorted::default(),
        }
    }

    /// Begins a pass in which stream and seq say nothing: repeats are known by a key, or the records are known to be
    /// new.
    #[must_use]
    pub fn unnumbered_rows<'b>(&'b self, chain: &'b Chain) -> Rows<'b> {
        Rows {
            rising: None,
            ..self.rows(chain)
        }
    }
}

/// What a pass found beside the rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sorted<'b> {
    /// What is no record, or was set aside by a transformation.
    pub dead: Vec<DeadLetter<'b>>,
    /// The streams' new high-water marks.
    pub marks: Vec<(String, u64)>,
    /// Records that the table has already.
    pub duplicates: u64,
    /// Messages without payload.
    pub tombstones: u64,
    /// Records that a transformation left out.
    pub dropped: u64,
}

/// A pass over a batch.
pub struct Rows<'b> {
    batch: &'b Batch,
    chain: &'b Chain,
    run: usize,
    /// How many messages of the run are behind.
    number: usize,
    /// `None` where stream and seq say nothing.
    rising: Option<Rising<'b>>,
    reader: Reader<'b>,
    record: View<'b>,
    sorted: Sorted<'b>,
}

impl<'b> Rows<'b> {
    /// The next row; `None` at the end. (Not an iterator's: rows share one view.)
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Option<Row<'_, 'b>> {
        loop {
            let message = self.message()?;
            if let Some(origin) = self.sort(message) {
                return Some(Row {
                    origin,
                    record: &self.record,
                });
            }
        }
    }

    /// What the pass found beside the rows; it goes to its end first.
    #[must_use]
    pub fn finish(mut self) -> Sorted<'b> {
        while self.next().is_some() {}
        self.sorted.marks = self.rising.take().map(Rising::finish).unwrap_or_default();
        self.sorted
    }

    fn message(&mut self) -> Option<Incoming<'b>> {
        let batch: &'b Batch = self.batch;
        loop {
            let run = batch.runs.get(self.run)?;
            let number = run.range.start + self.number;
            if number < run.range.end {
                self.number += 1;
                return run.messages.get(number);
            }
            (self.run, self.number) = (self.run + 1, 0);
        }
    }

    /// Where the message came from, where it is a row; it is in `self.record` then.
    fn sort(&mut self, message: Incoming<'b>) -> Option<Origin<'b>> {
        let Some(payload) = message.payload else {
            self.sorted.tombstones += 1;
            return None;
        };
        let origin = Origin {
            offset: message.offset,
            key: message.key,
            payload,
        };
        let read = self
            .reader
            .read(payload, &mut self.record)
            .map_err(|error| Refusal {
                sqlstate: None,
                column: None,
                reason: error.to_string(),
            });
        if let Err(refusal) = read.and_then(|()| check(&self.record)) {
            self.sorted.dead.push(DeadLetter { origin, refusal });
            return None;
        }
        if let (Some(rising), Some(stream), Some(seq)) =
            (&mut self.rising, &self.record.stream, self.record.seq)
            && !rising.admit(stream, seq)
        {
            self.sorted.duplicates += 1;
            return None;
        }
        match self.chain.apply(&mut self.record) {
            Verdict::Keep => return Some(origin),
            Verdict::Drop => self.sorted.dropped += 1,
            Verdict::Refuse(refusal) => self.sorted.dead.push(DeadLetter { origin, refusal }),
        }
        None
    }
}

/// What no sink can hold, in the fields that every record has.
fn check(record: &View<'_>) -> Result<(), Refusal> {
    let refuse = |column: &str, reason: String| {
        Err(Refusal {
            sqlstate: None,
            column: Some(column.to_owned()),
            reason,
        })
    };
    if record.meter.contains('\0') {
        return refuse("meter", "the text has a NUL character".to_owned());
    }
    if let Some(stream) = &record.stream {
        if stream.contains('\0') {
            return refuse("stream", "the text has a NUL character".to_owned());
        }
        if stream.len() > STREAM_BYTES {
            return refuse(
                "stream",
                format!("a stream's id has at most {STREAM_BYTES} bytes"),
            );
        }
    }
    if let Some(skipped) = record.skipped.filter(|skipped| i32::try_from(*skipped).is_err()) {
        return refuse("skipped", format!("{skipped} is beyond a signed 32-bit number"));
    }
    match record.seq {
        Some(seq) if i64::try_from(seq).is_err() => {
            refuse("seq", format!("{seq} is beyond a signed 64-bit number"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use corrente_runtime::broker::Messages;

    use super::*;
    use crate::transform::Step;

    fn place() -> Place {
        Place {
            cluster: "c".into(),
            partition: TopicPartition {
                topic: "t".into(),
                partition: 0,
            },
        }
    }

    /// A batch of messages at every other offset from 10 on, in runs of three.
    fn batch(payloads: &[Option<&str>]) -> Batch {
        let messages: Arc<Messages> = Arc::new(
            payloads
                .iter()
                .enumerate()
                .map(|(i, payload)| Incoming {
                    offset: 10 + 2 * i as i64,
                    timestamp: Some(5),
                    key: Some(b"m"),
                    payload: payload.map(str::as_bytes),
                })
                .collect(),
        );
        let runs = (0..payloads.len())
            .step_by(3)
            .map(|at| Run {
                range: at..(at + 3).min(payloads.len()),
                messages: messages.clone(),
            })
            .collect();
        Batch::build(place(), 3, Some(9), runs, Arc::default()).unwrap()
    }

    fn offsets<'b>(batch: &'b Batch, chain: &'b Chain) -> (Vec<i64>, Sorted<'b>) {
        let (mut rows, mut offsets) = (batch.rows(chain), vec![]);
        while let Some(row) = rows.next() {
            offsets.push(row.origin.offset);
        }
        (offsets, rows.finish())
    }

    #[test]
    fn sorts_messages_into_rows_duplicates_and_dead_letters() {
        let payloads = [
            Some(r#"{"ts":"2026-11-20T22:20:00Z","meter":"m","stream":"s","seq":1,"v":1.5}"#),
            Some("hello"),
            Some(r#"{"ts":"2026-11-20T22:20:00Z","meter":"m","stream":"s","seq":1,"v":1.5}"#),
            None,
            Some(r#"{"ts":"2026-11-20T22:20:00Z","meter":"m","v":1.5}"#),
            Some(r#"{"ts":"2026-11-20T22:20:00Z","meter":"m\u0000"}"#),
            Some(r#"{"ts":"2026-11-20T22:20:00Z","meter":"m","stream":"s","seq":18446744073709551615}"#),
            Some(r#"{"ts":"2026-11-20T22:20:00Z","meter":"m","v":1.5}"#),
        ];
        let batch = batch(&payloads);
        let last = Fingerprint {
            timestamp: Some(5),
            key_crc: Some(crc32fast::hash(b"m")),
            payload_crc: payloads[7].map(|payload| crc32fast::hash(payload.as_bytes())),
        };
        assert_eq!((batch.previous, batch.next_offset, batch.epoch), (Some(9), 25, 3));
        assert_eq!((batch.last, batch.count), (last, 8));
        let chain = Chain::default();
        let (rows, sorted) = offsets(&batch, &chain);
        assert_eq!(rows, [10, 18, 24]);
        assert_eq!((sorted.duplicates, sorted.tombstones, sorted.dropped), (1, 1, 0));
        assert_eq!(sorted.marks, [("s".to_owned(), 1)]);
        let dead: Vec<_> = sorted
            .dead
            .iter()
            .map(|d| (d.origin.offset, d.refusal.column.as_deref()))
            .collect();
        assert_eq!(dead, [(12, None), (20, Some("meter")), (22, Some("seq"))]);
        assert!(sorted.dead[0].refusal.reason.starts_with("not a record"));
        assert_eq!(
            offsets(&batch, &chain),
            (rows, sorted),
            "a pass can be made again"
        );
        assert_eq!(Batch::build(place(), 3, None, vec![], Arc::default()), None);
    }

    /// Leaves out what is negative, sets aside what is large, and doubles the rest.
    struct Doubling;

    impl Step for Doubling {
        fn apply<'a>(&'a self, record: &mut View<'a>) -> Verdict {
            match record.field("v").and_then(corrente_record::ValueRef::as_f64) {
                Some(v) if v < 0.0 => Verdict::Drop,
                Some(v) if v > 9.0 => Verdict::Refuse(Refusal {
                    sqlstate: None,
                    column: Some("v".to_owned()),
                    reason: "too large".to_owned(),
                }),
                Some(v) => {
                    record.fields = vec![("w".into(), corrente_record::ValueRef::Float(2.0 * v))];
                    Verdict::Keep
                }
                None => Verdict::Keep,
            }
        }
    }

    #[test]
    fn transformations_come_after_the_marks() {
        let batch = batch(&[
            Some(r#"{"ts":"2026-11-20T22:20:00Z","meter":"m","stream":"s","seq":1,"v":-1}"#),
            Some(r#"{"ts":"2026-11-20T22:20:00Z","meter":"m","stream":"s","seq":2,"v":10}"#),
            Some(r#"{"ts":"2026-11-20T22:20:00Z","meter":"m","stream":"s","seq":3,"v":4}"#),
            Some(r#"{"ts":"2026-11-20T22:20:00Z","meter":"m","stream":"s","seq":1,"v":4}"#),
        ]);
        let chain = Chain::new(vec![Box::new(Doubling)]);
        let mut rows = batch.rows(&chain);
        let row = rows.next().unwrap();
        assert_eq!(
            (row.origin.offset, row.record.field("w").unwrap().as_f64()),
            (14, Some(8.0))
        );
        assert!(rows.next().is_none());
        let sorted = rows.finish();
        assert_eq!((sorted.dropped, sorted.duplicates), (1, 1));
        assert_eq!(sorted.dead[0].refusal.reason, "too large");
        assert_eq!(sorted.marks, [("s".to_owned(), 3)]);
    }
}
