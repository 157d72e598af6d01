//! How messages become batches: as soon as there are enough rows or bytes, or the oldest has waited long
//! enough. Pure: the clock is passed in.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use corrente_runtime::broker::{Incoming, Messages};

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

/// Some messages of a group that was read at once; the group's memory is shared by its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The group.
    pub messages: Arc<Messages>,
    /// The numbers of the messages in it.
    pub range: Range<usize>,
}

impl Run {
    /// The messages, in their order.
    pub fn iter(&self) -> impl Iterator<Item = Incoming<'_>> {
        self.range.clone().filter_map(|number| self.messages.get(number))
    }

    /// What the messages weigh, in bytes.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.iter().map(|message| weight(&message)).sum()
    }
}

/// The messages of one partition that are not in a batch yet.
#[derive(Debug, Default)]
pub struct Batcher {
    /// Never an empty one among them.
    runs: VecDeque<(Instant, Run)>,
    count: usize,
    bytes: usize,
}

fn weight(message: &Incoming<'_>) -> usize {
    message.key.map_or(0, <[u8]>::len) + message.payload.map_or(0, <[u8]>::len) + OVERHEAD
}

impl Batcher {
    /// Takes messages in, from the one with the number `from` on.
    pub fn push(&mut self, messages: Messages, from: usize, now: Instant) {
        let run = Run {
            range: from..messages.len(),
            messages: Arc::new(messages),
        };
        if !run.range.is_empty() {
            self.count += run.range.len();
            self.bytes += run.weight();
            self.runs.push_back((now, run));
        }
    }

    /// Messages that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// What waits, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Whether enough waits for a batch, whatever its age.
    #[must_use]
    pub fn is_full(&self, bounds: &Bounds) -> bool {
        self.count >= bounds.rows || self.bytes >= bounds.bytes
    }

    /// When a batch is due at the latest; `None` where nothing waits.
    #[must_use]
    pub fn due_at(&self, bounds: &Bounds) -> Option<Instant> {
        self.runs.front().map(|(since, _)| *since + bounds.age)
    }

    /// Whether a batch is due.
    #[must_use]
    pub fn is_due(&self, bounds: &Bounds, now: Instant) -> bool {
        self.is_full(bounds) || self.due_at(bounds).is_some_and(|at| at <= now)
    }

    /// The oldest messages, within the bounds; at least one where any waits.
    pub fn take(&mut self, bounds: &Bounds) -> Vec<Run> {
        let (mut rows, mut bytes) = (bounds.rows.max(1), 0);
        let mut taken = vec![];
        while let Some((_, run)) = self.runs.front_mut() {
            let mut end = run.range.start;
            for message in run.iter().take(rows) {
                let heavier = bytes + weight(&message);
                if heavier > bounds.bytes && bytes > 0 {
                    break;
                }
                bytes = heavier;
                end += 1;
            }
            let whole = end == run.range.end;
            rows -= end - run.range.start;
            if end > run.range.start {
                taken.push(Run {
                    messages: run.messages.clone(),
                    range: run.range.start..end,
                });
            }
            run.range.start = end;
            if !whole {
                break;
            }
            self.runs.pop_front();
        }
        self.bytes -= bytes;
        self.count -= taken.iter().map(|run| run.range.len()).sum::<usize>();
        taken
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(offset: i64, size: usize) -> Messages {
        let payload = vec![b'x'; size];
        Messages::from_iter([Incoming {
            offset,
            timestamp: None,
            key: None,
            payload: Some(&payload),
        }])
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
                batcher.push(message(offset as i64, *size), 0, now);
            }
            let at = now + Duration::from_millis(after);
            assert_eq!(batcher.is_due(&BOUNDS, at), due, "{sizes:?} after {after} ms");
        }
    }

    proptest! {
        #[test]
        fn every_message_leaves_once_in_order_and_within_the_bounds(
            groups in prop::collection::vec(prop::collection::vec(0usize..2000, 0..12), 0..12), from in 0usize..3,
        ) {
            let now = Instant::now();
            let mut batcher = Batcher::default();
            let (mut next, mut pushed) = (0, vec![]);
            for sizes in &groups {
                let mut group = Messages::default();
                for size in sizes {
                    let payload = vec![b'x'; *size];
                    group.push(Incoming { offset: next, timestamp: None, key: None, payload: Some(&payload) });
                    next += 1;
                }
                pushed.extend(group.iter().skip(from).map(|message| message.offset));
                batcher.push(group, from, now);
            }
            let mut seen = vec![];
            while !batcher.is_empty() {
                prop_assert_eq!(batcher.len(), pushed.len() - seen.len());
                let batch: Vec<_> = batcher.take(&BOUNDS);
                let messages: Vec<_> = batch.iter().flat_map(Run::iter).collect();
                prop_assert!(!messages.is_empty() && messages.len() <= BOUNDS.rows);
                prop_assert!(messages.len() == 1 || messages.iter().map(weight).sum::<usize>() <= BOUNDS.bytes);
                seen.extend(messages.iter().map(|m| m.offset));
            }
            prop_assert_eq!(seen, pushed);
            prop_assert!(!batcher.is_full(&BOUNDS) && batcher.take(&BOUNDS).is_empty());
        }
    }
}
