//! From messages to what a sink stores in one transaction.
//!
//! 1. A message without payload is a tombstone: there is nothing to store.
//! 2. Bytes that are no record go to the dead letters, with the reason.
//! 3. A record that the table has already is dropped and counted.
//! 4. The rest are rows.
//!
//! Whatever becomes of its messages, the batch moves the partition's offset past all of them.

use std::sync::Arc;

use corrente_record::Record;
use corrente_runtime::broker::{Incoming, TopicPartition};

use crate::{assignment::Fingerprint, dedupe::Marks};

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The offset.
    pub offset: i64,
    /// The key.
    pub key: Option<Vec<u8>>,
    /// The payload.
    pub payload: Vec<u8>,
}

/// A record to store.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Where it came from.
    pub origin: Origin,
    /// What it says.
    pub record: Record,
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
pub struct DeadLetter {
    /// Where it came from.
    pub origin: Origin,
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
    /// The rows.
    pub rows: Vec<Row>,
    /// What is no record.
    pub dead: Vec<DeadLetter>,
    /// The streams' new high-water marks.
    pub marks: Vec<(String, u64)>,
    /// Records that the table has already.
    pub duplicates: u64,
    /// Messages without payload.
    pub tombstones: u64,
}

impl Batch {
    /// Makes a batch of messages in the order of their offsets. `None` where there are none.
    #[must_use]
    pub fn build(
        place: Place,
        epoch: i64,
        previous: Option<i64>,
        messages: Vec<Incoming>,
        marks: &mut Marks,
    ) -> Option<Self> {
        let last = messages.last()?;
        let mut batch = Self {
            place,
            epoch,
            previous,
            next_offset: last.offset + 1,
            last: Fingerprint::of(last),
            rows: Vec::with_capacity(messages.len()),
            dead: vec![],
            marks: vec![],
            duplicates: 0,
            tombstones: 0,
        };
        for message in messages {
            batch.add(message, marks);
        }
        batch.marks = marks.take_changed();
        Some(batch)
    }

    fn add(&mut self, message: Incoming, marks: &mut Marks) {
        let Some(payload) = message.payload else {
            self.tombstones += 1;
            return;
        };
        let origin = Origin {
            offset: message.offset,
            key: message.key,
            payload,
        };
        let checked = Record::parse(&origin.payload)
            .map_err(|error| Refusal {
                sqlstate: None,
                column: None,
                reason: error.to_string(),
            })
            .and_then(|record| check(&record).map(|()| record));
        match checked {
            Err(refusal) => self.dead.push(DeadLetter { origin, refusal }),
            Ok(record) => match (&record.stream, record.seq) {
                (Some(stream), Some(seq)) if !marks.admit(stream, seq) => self.duplicates += 1,
                _ => self.rows.push(Row { origin, record }),
            },
        }
    }
}

/// What no sink can hold, in the fields that every record has.
fn check(record: &Record) -> Result<(), Refusal> {
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
    use super::*;

    fn place() -> Place {
        Place {
            cluster: "c".into(),
            partition: TopicPartition {
                topic: "t".into(),
                partition: 0,
            },
        }
    }

    #[test]
    fn sorts_messages_into_rows_duplicates_and_dead_letters() {
        let payloads: [Option<&str>; 8] = [
            Some(r#"{"ts":"2026-11-20T22:20:00Z","meter":"m","stream":"s","seq":1,"v":1.5}"#),
            Some("hello"),
            Some(r#"{"ts":"2026-11-20T22:20:00Z","meter":"m","stream":"s","seq":1,"v":1.5}"#),
            None,
            Some(r#"{"ts":"2026-11-20T22:20:00Z","meter":"m","v":1.5}"#),
            Some(r#"{"ts":"2026-11-20T22:20:00Z","meter":"m\u0000"}"#),
            Some(r#"{"ts":"2026-11-20T22:20:00Z","meter":"m","stream":"s","seq":18446744073709551615}"#),
            Some(r#"{"ts":"2026-11-20T22:20:00Z","meter":"m","v":1.5}"#),
        ];
        let messages: Vec<_> = payloads
            .iter()
            .enumerate()
            .map(|(i, payload)| Incoming {
                offset: 10 + 2 * i as i64,
                timestamp: Some(5),
                key: Some(b"m".to_vec()),
                payload: payload.map(|p| p.as_bytes().to_vec()),
            })
            .collect();
        let last = Fingerprint::of(&messages[7]);
        let mut marks = Marks::default();
        let batch = Batch::build(place(), 3, Some(9), messages, &mut marks).unwrap();
        assert_eq!((batch.previous, batch.next_offset, batch.epoch), (Some(9), 25, 3));
        assert_eq!(batch.last, last);
        assert_eq!(
            batch.rows.iter().map(|r| r.origin.offset).collect::<Vec<_>>(),
            [10, 18, 24]
        );
        assert_eq!((batch.duplicates, batch.tombstones), (1, 1));
        assert_eq!(batch.marks, [("s".to_owned(), 1)]);
        let dead: Vec<_> = batch
            .dead
            .iter()
            .map(|d| (d.origin.offset, d.refusal.column.as_deref()))
            .collect();
        assert_eq!(dead, [(12, None), (20, Some("meter")), (22, Some("seq"))]);
        assert!(batch.dead[0].refusal.reason.starts_with("not a record"));
        assert_eq!(Batch::build(place(), 3, None, vec![], &mut marks), None);
    }
}
