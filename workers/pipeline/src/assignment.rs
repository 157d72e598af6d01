//! What to do when a partition becomes ours: where to start, and whether the topic is still the one that
//! was read before.
//!
//! Kafka's clients do not show a topic's identity, so a topic that was deleted and made again looks like
//! the old one, and offsets of the old one would silently skip records of the new one. The database
//! therefore keeps a fingerprint of the last stored message, and reading starts at that message:
//! 1. no row in the database: from the oldest message;
//! 2. a row: from the recorded message, which is compared and not stored again;
//! 3. the start is below the log: the missing messages are counted, and reading goes on at the oldest;
//! 4. the start is beyond the log, or another message is there: stop, and say so.

use corrente_runtime::broker::{Incoming, Start};

/// What is kept of a message to recognise it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    /// The broker's timestamp, in milliseconds since the epoch.
    pub timestamp: Option<i64>,
    /// CRC-32 of the key.
    pub key_crc: Option<u32>,
    /// CRC-32 of the payload.
    pub payload_crc: Option<u32>,
}

impl Fingerprint {
    /// The fingerprint of a message.
    #[must_use]
    pub fn of(message: &Incoming<'_>) -> Self {
        Self {
            timestamp: message.timestamp,
            key_crc: message.key.map(crc32fast::hash),
            payload_crc: message.payload.map(crc32fast::hash),
        }
    }
}

/// How far a partition is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The next offset to store.
    pub next_offset: i64,
    /// The last message before it. `None` where a person set the offset by hand: nothing is compared then.
    pub last: Option<Fingerprint>,
}

/// A message that must be found again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    /// Its offset.
    pub at: i64,
    /// Its fingerprint.
    pub expected: Fingerprint,
}

/// Where to start, and what to compare first.
#[must_use]
pub fn begin(position: Option<&Position>) -> (Start, Option<Check>) {
    match position {
        None => (Start::Beginning, None),
        Some(Position {
            next_offset,
            last: Some(expected),
        }) if *next_offset > 0 => {
            let at = next_offset - 1;
            (
                Start::Offset(at),
                Some(Check {
                    at,
                    expected: *expected,
                }),
            )
        }
        Some(position) => (Start::Offset(position.next_offset), None),
    }
}

/// What the first message says of the topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// It is the recorded one.
    Same,
    /// The recorded one is no longer there, as in a compacted topic; nothing can be said.
    Gone,
    /// Another message is in its place. The sentence says so.
    Other(String),
}

/// Compares the first message that was read with the recorded one.
#[must_use]
pub fn compare(check: &Check, first: &Incoming<'_>) -> Comparison {
    if first.offset != check.at {
        return Comparison::Gone;
    }
    if Fingerprint::of(first) == check.expected {
        return Comparison::Same;
    }
    Comparison::Other(format!(
        "the message at offset {} is not the one that was stored last: the topic was made anew. \
         Nothing is read from it. To read it from its beginning, delete the row of this partition \
         from corrente.offsets",
        check.at
    ))
}

/// How to go on after a start that is not in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Read from `at`; `gap` messages are lost.
    At {
        /// The offset to read from.
        at: i64,
        /// How many messages are no longer there.
        gap: u64,
    },
    /// The log ends before what was stored. The sentence says so.
    Stop(String),
}

/// What to do where the log, from `low` up to but not including `high`, does not have the start.
/// `next_offset` is the next offset to store.
#[must_use]
pub fn resume(next_offset: i64, low: i64, high: i64) -> Resume {
    if next_offset > high {
        return Resume::Stop(format!(
            "the next offset to store is {next_offset}, but the log ends at {high}: the topic was made anew, \
             or its end was lost. Nothing is read from it. To read it from its beginning, delete the row of \
             this partition from corrente.offsets"
        ));
    }
    let at = next_offset.max(low);
    Resume::At {
        at,
        gap: u64::try_from(at - next_offset).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(offset: i64, payload: &str) -> Incoming<'_> {
        Incoming {
            offset,
            timestamp: Some(1_000 + offset),
            key: Some(b"m"),
            payload: Some(payload.as_bytes()),
        }
    }

    #[test]
    fn starts_where_the_database_says() {
        let last = Fingerprint::of(&message(9, "a"));
        for (position, start, check) in [
            (None, Start::Beginning, None),
            (Some((10, Some(last))), Start::Offset(9), Some(9)),
            (Some((10, None)), Start::Offset(10), None),
            (Some((0, Some(last))), Start::Offset(0), None),
        ] {
            let position = position.map(|(next_offset, last)| Position { next_offset, last });
            let (from, compares) = begin(position.as_ref());
            assert_eq!((from, compares.map(|c| c.at)), (start, check));
        }
    }

    #[test]
    fn knows_the_recorded_message_again() {
        let stored = message(9, "a");
        let check = Check {
            at: 9,
            expected: Fingerprint::of(&stored),
        };
        assert_eq!(compare(&check, &stored), Comparison::Same);
        assert_eq!(compare(&check, &message(10, "b")), Comparison::Gone);
        for other in [
            message(9, "b"),
            Incoming {
                timestamp: Some(7),
                ..stored
            },
            Incoming { key: None, ..stored },
            Incoming {
                key: Some(b"n"),
                ..stored
            },
            Incoming {
                payload: None,
                ..stored
            },
        ] {
            assert!(matches!(compare(&check, &other), Comparison::Other(why) if why.contains("made anew")));
        }
    }

    #[test]
    fn a_start_outside_the_log_is_a_gap_or_a_stop() {
        for (next, low, high, expected) in [
            (10, 10, 20, Resume::At { at: 10, gap: 0 }),
            (10, 15, 20, Resume::At { at: 15, gap: 5 }),
            (10, 10, 10, Resume::At { at: 10, gap: 0 }),
            (10, 20, 20, Resume::At { at: 20, gap: 10 }),
        ] {
            assert_eq!(resume(next, low, high), expected);
        }
        assert!(matches!(resume(10, 0, 3), Resume::Stop(why) if why.contains("ends at 3")));
        assert!(matches!(resume(10, 0, 0), Resume::Stop(_)));
    }

    proptest! {
        #[test]
        fn never_reads_what_is_stored_nor_what_is_not_there(next in 0i64..1000, low in 0i64..1000, len in 0i64..1000) {
            let high = low + len;
            match resume(next, low, high) {
                Resume::At { at, gap } => {
                    prop_assert!(at >= next && (low..=high).contains(&at));
                    prop_assert_eq!(at - next, gap as i64);
                }
                Resume::Stop(_) => prop_assert!(next > high),
            }
        }
    }
}
