//! Which records the table has already.
//!
//! A record's spool numbers it: a stream id, and `seq` rising by one. A producer that restarts sends again
//! what it does not know to be stored, so the same (stream, seq) can stand at two offsets. Within a
//! partition the broker keeps a stream's order, and an idempotent producer leaves no hole before an
//! accepted record; so one number per stream, the highest that was stored, tells old from new. Records
//! without stream and seq are known by their offset alone.

use std::collections::HashMap;

/// The highest stored `seq` of each stream of a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    high: HashMap<String, u64>,
}

impl Marks {
    /// The marks that the database holds.
    #[must_use]
    pub fn new(high: HashMap<String, u64>) -> Self {
        Self { high }
    }

    /// A batch that raised these marks is stored.
    pub fn rise(&mut self, risen: Vec<(String, u64)>) {
        self.high.extend(risen);
    }

    /// The marks during a batch: they change here only when it is stored, for it may have to be stored again.
    #[must_use]
    pub fn rising(&self) -> Rising<'_> {
        Rising {
            before: self,
            risen: Vec::new(),
            places: HashMap::new(),
            last: 0,
        }
    }
}

/// The marks during a batch.
#[derive(Debug)]
pub struct Rising<'b> {
    before: &'b Marks,
    risen: Vec<(String, u64)>,
    /// Where each stream is in `risen`.
    places: HashMap<String, usize>,
    /// Where the last record's is. A poller has one stream for all its meters, so that it is mostly the next one's too,
    /// and there is nothing to hash.
    last: usize,
}

impl Rising<'_> {
    /// Whether the record is new; if so, it is known from now on.
    pub fn admit(&mut self, stream: &str, seq: u64) -> bool {
        if self.risen.get(self.last).is_none_or(|(last, _)| last != stream)
            && let Some(place) = self.places.get(stream)
        {
            self.last = *place;
        }
        if let Some((last, high)) = self.risen.get_mut(self.last)
            && last == stream
        {
            let new = seq > *high;
            *high = seq.max(*high);
            return new;
        }
        let new = self.before.high.get(stream).is_none_or(|high| seq > *high);
        if new {
            self.last = self.risen.len();
            self.places.insert(stream.to_owned(), self.last);
            self.risen.push((stream.to_owned(), seq));
        }
        new
    }

    /// The marks that rose, to be stored with the batch.
    #[must_use]
    pub fn finish(self) -> Vec<(String, u64)> {
        self.risen
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
        let mut rising = marks.rising();
        for (stream, seq, new) in [
            ("a", 4, false),
            ("a", 5, false),
            ("a", 6, true),
            ("a", 6, false),
            ("b", 0, true),
            ("b", 0, false),
            ("a", 9, true),
        ] {
            assert_eq!(rising.admit(stream, seq), new, "{stream}/{seq}");
        }
        let mut changed = rising.finish();
        changed.sort();
        assert_eq!(changed, [("a".to_owned(), 9), ("b".to_owned(), 0)]);
        // What was not stored is new once more; what was is not.
        assert!(marks.rising().admit("b", 0));
        marks.rise(changed);
        let mut rising = marks.rising();
        assert!(!rising.admit("b", 0) && !rising.admit("a", 9));
        assert_eq!(rising.finish(), []);
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
            let mut stored: Vec<u64> = vec![];
            for batch in sent.chunks(7) {
                let mut rising = marks.rising();
                stored.extend(batch.iter().copied().filter(|seq| rising.admit("s", *seq)));
                let risen = rising.finish();
                marks.rise(risen);
            }
            let all: BTreeSet<u64> = sent.into_iter().collect();
            prop_assert_eq!(stored, all.into_iter().collect::<Vec<_>>());
        }
    }
}
