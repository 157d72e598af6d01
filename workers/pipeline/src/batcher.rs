//! How messages become batches: as soon as there are enough rows or bytes, or the oldest has waited long
//! enough. Pure: the clock is passed in.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use corrente_runtime::broker::Incoming;

/// What each message costs beyond its key and payload, so that empty ones count too.
const OVERHEAD: usize = 64;

/// When a batch is due, whichever bound is met first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Most messages; at least 1.
    pub rows: usize,
    /// Most bytes. A single larger message still makes a batch.
    pub bytes: usize,
    /// The longest a message waits.
    pub age: Duration,
}

/// The messages of one partition that are not in a batch yet.
#[derive(Debug, Default)]
pub struct Batcher {
    messages: VecDeque<(Instant, Incoming)>,
    bytes: usize,
}

fn weight(message: &Incoming) -> usize {
    message.key.as_ref().map_or(0, Vec::len) + message.payload.as_ref().map_or(0, Vec::len) + OVERHEAD
}

impl Batcher {
    /// Takes a message in.
    pub fn push(&mut self, message: Incoming, now: Instant) {
        self.bytes += weight(&message);
        self.messages.push_back((now, message));
    }

    /// Messages that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Whether enough waits for a batch, whatever its age.
    #[must_use]
    pub fn is_full(&self, bounds: &Bounds) -> bool {
        self.messages.len() >= bounds.rows || self.bytes >= bounds.bytes
    }

    /// When a batch is due at the latest; `None` where nothing waits.
    #[must_use]
    pub fn due_at(&self, bounds: &Bounds) -> Option<Instant> {
        self.messages.front().map(|(since, _)| *since + bounds.age)
    }

    /// Whether a batch is due.
    #[must_use]
    pub fn is_due(&self, bounds: &Bounds, now: Instant) -> bool {
        self.is_full(bounds) || self.due_at(bounds).is_some_and(|at| at <= now)
    }

    /// The oldest messages, within the bounds; at least one where any waits.
    pub fn take(&mut self, bounds: &Bounds) -> Vec<Incoming> {
        let mut bytes = 0;
        let mut count = 0;
        for (_, message) in self.messages.iter().take(bounds.rows.max(1)) {
            bytes += weight(message);
            if count > 0 && bytes > bounds.bytes {
                bytes -= weight(message);
                break;
            }
            count += 1;
        }
        self.bytes -= bytes;
        self.messages.drain(..count).map(|(_, message)| message).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(offset: i64, size: usize) -> Incoming {
        Incoming {
            offset,
            timestamp: None,
            key: None,
            payload: Some(vec![b'x'; size]),
        }
    }

    const BOUNDS: Bounds = Bounds {
        rows: 3,
        bytes: 1000,
        age: Duration::from_secs(1),
    };

    #[test]
    fn is_due_by_rows_bytes_or_age() {
        let now = Instant::now();
        for (sizes, after, due) in [
            (&[][..], 5000, false),
            (&[1], 0, false),
            (&[1], 999, false),
            (&[1], 1000, true),
            (&[1, 1, 1], 0, true),
            (&[500, 500], 0, true),
            (&[5000], 0, true),
        ] {
            let mut batcher = Batcher::default();
            for (offset, size) in sizes.iter().enumerate() {
                batcher.push(message(offset as i64, *size), now);
            }
            let at = now + Duration::from_millis(after);
            assert_eq!(batcher.is_due(&BOUNDS, at), due, "{sizes:?} after {after} ms");
        }
    }

    proptest! {
        #[test]
        fn every_message_leaves_once_in_order_and_within_the_bounds(
            sizes in prop::collection::vec(0usize..2000, 0..50),
        ) {
            let now = Instant::now();
            let mut batcher = Batcher::default();
            for (offset, size) in sizes.iter().enumerate() {
                batcher.push(message(offset as i64, *size), now);
            }
            let mut seen = vec![];
            while !batcher.is_empty() {
                let batch = batcher.take(&BOUNDS);
                prop_assert!(!batch.is_empty() && batch.len() <= BOUNDS.rows);
                prop_assert!(batch.len() == 1 || batch.iter().map(weight).sum::<usize>() <= BOUNDS.bytes);
                seen.extend(batch.iter().map(|m| m.offset));
            }
            prop_assert_eq!(seen, (0..sizes.len() as i64).collect::<Vec<_>>());
            prop_assert_eq!(batcher.bytes, 0);
        }
    }
}
