//! Which records the table has already.
//!
//! A record's spool numbers it: a stream id, and `seq` rising by one. A producer that restarts sends again
//! what it does not know to be stored, so the same (stream, seq) can stand at two offsets. Within a
//! partition the broker keeps a stream's order, and an idempotent producer leaves no hole before an
//! accepted record; so one number per stream, the highest that was stored, tells old from new. Records
//! without stream and seq are known by their offset alone.

use std::collections::{HashMap, HashSet};

/// The highest stored `seq` of each stream of a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    high: HashMap<String, u64>,
    changed: HashSet<String>,
}

impl Marks {
    /// The marks that the database holds.
    #[must_use]
    pub fn new(high: HashMap<String, u64>) -> Self {
        Self {
            high,
            changed: HashSet::new(),
        }
    }

    /// Whether the record is new; if so, it is known from now on.
    pub fn admit(&mut self, stream: &str, seq: u64) -> bool {
        match self.high.get_mut(stream) {
            Some(high) if seq <= *high => return false,
            Some(high) => *high = seq,
            None => {
                self.high.insert(stream.to_owned(), seq);
            }
        }
        if !self.changed.contains(stream) {
            self.changed.insert(stream.to_owned());
        }
        true
    }

    /// The marks that rose since the last call, to be stored with the batch.
    pub fn take_changed(&mut self) -> Vec<(String, u64)> {
        self.changed
            .drain()
            .filter_map(|stream| {
                let seq = *self.high.get(&stream)?;
                Some((stream, seq))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn drops_what_is_at_or_below_the_mark() {
        let mut marks = Marks::new(HashMap::from([("a".to_owned(), 5)]));
        for (stream, seq, new) in [
            ("a", 4, false),
            ("a", 5, false),
            ("a", 6, true),
            ("a", 6, false),
            ("b", 0, true),
            ("b", 0, false),
            ("a", 9, true),
        ] {
            assert_eq!(marks.admit(stream, seq), new, "{stream}/{seq}");
        }
        let mut changed = marks.take_changed();
        changed.sort();
        assert_eq!(changed, [("a".to_owned(), 9), ("b".to_owned(), 0)]);
        assert_eq!(marks.take_changed(), []);
    }

    proptest! {
        /// A producer that goes back any number of times, by any distance, and sends again in order.
        #[test]
        fn a_producer_that_repeats_is_stored_once(backs in prop::collection::vec((1u64..20, 0u64..30), 1..20)) {
            let mut sent = vec![];
            let mut next = 0u64;
            for (forward, back) in backs {
                sent.extend(next..next + forward);
                next = (next + forward).saturating_sub(back);
            }
            let mut marks = Marks::default();
            let stored: Vec<u64> = sent.iter().copied().filter(|seq| marks.admit("s", *seq)).collect();
            let all: BTreeSet<u64> = sent.into_iter().collect();
            prop_assert_eq!(stored, all.into_iter().collect::<Vec<_>>());
        }
    }
}
