//! The search for the rows of a batch that the database refuses. No IO: `copy` tries what it says.
//!
//! 1. The first try is as long as what is known of earlier batches makes worth while.
//! 2. A try of many rows that is refused holds a bad one. Where the database names its line, the rows before
//!    it are tried, then the row itself; else the first half, and so on, down to one row.
//! 3. A row that is refused alone is set aside, so that a line that was named wrongly harms nobody.
//! 4. How long the next try is follows from the good rows between the last two bad ones, and doubles with each
//!    success. A try that is refused costs the rows before the bad one, half of it on average; a try that is not costs
//!    about as much as storing a hundred rows, whatever its length. Between the two the best length is as the square
//!    root of the distance. Rows that are all bad are tried one by one.

use std::ops::Range;

/// What a try costs beside its rows, in rows.
const TRY: usize = 128;

/// How far the search has come.
pub struct Search {
    /// The first row that is neither stored nor set aside.
    at: usize,
    /// How many rows there are.
    count: usize,
    /// The most rows to try while no bad one is known.
    most: usize,
    /// The rows stored since the last one that was set aside.
    good: usize,
    /// The end of a range from `at` that was refused.
    refused: Option<usize>,
    /// The row in it that the database named.
    named: Option<usize>,
}

impl Search {
    /// The search in `count` rows, of which about one in `distance` is bad.
    pub fn new(count: usize, distance: usize) -> Self {
        Self {
            at: 0,
            count,
            most: length(distance),
            good: 0,
            refused: None,
            named: None,
        }
    }

    /// The rows to try next, at least one; `None` when each row is stored or set aside.
    pub fn range(&self) -> Option<Range<usize>> {
        if self.at == self.count {
            return None;
        }
        let rows = match (self.refused, self.named) {
            (Some(_), Some(row)) => row - self.at,
            (Some(end), None) => (end - self.at) / 2,
            (None, _) => self.most.min(self.count - self.at),
        };
        Some(self.at..self.at + rows.max(1))
    }

    /// The rows of [`Search::range`] are stored.
    pub fn stored(&mut self) {
        let Some(range) = self.range() else { return };
        self.at = range.end;
        self.good += range.len();
        if self.refused.is_none() {
            self.most = self.most.saturating_mul(2);
        }
        // What was refused may be stored after all, as where another transaction has ended meanwhile.
        self.refused = self.refused.filter(|end| self.at < *end);
        self.named = self.named.filter(|row| self.refused.is_some() && self.at <= *row);
    }

    /// The rows of [`Search::range`] were refused, for the sake of the one in line `line`, from 1, where
    /// that is known. Gives the row to set aside, where it was tried alone.
    pub fn refused(&mut self, line: Option<usize>) -> Option<usize> {
        let range = self.range()?;
        if range.len() == 1 {
            self.at += 1;
            self.most = length(self.good);
            self.good = 0;
            (self.refused, self.named) = (None, None);
            return Some(range.start);
        }
        // The rows before a named one are good: where they are refused, names are not to be relied on here.
        let line = line.filter(|line| self.named.is_none() && (1..=range.len()).contains(line));
        self.refused = Some(range.end);
        self.named = line.map(|line| range.start + line - 1);
        None
    }
}

/// How many rows to try at a time where one in so many is bad.
fn length(distance: usize) -> usize {
    let twice = distance.saturating_mul(2);
    twice.min(distance.saturating_mul(2 * TRY).isqrt()).max(1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// How a database answers.
    #[derive(Clone, Copy, Debug)]
    enum Names {
        Right,
        Wrong,
        None,
    }

    struct Found {
        stored: Vec<usize>,
        refused: Vec<usize>,
        tries: usize,
        sent: usize,
    }

    /// Searches rows of which the database refuses `bad`; `names` is how it answers, over and over.
    fn search(count: usize, bad: &BTreeSet<usize>, names: &[Names]) -> Found {
        let mut search = Search::new(count, 1_000);
        let mut names = names.iter().cycle();
        let mut found = Found {
            stored: vec![],
            refused: vec![],
            tries: 0,
            sent: 0,
        };
        while let Some(range) = search.range() {
            assert!(!range.is_empty() && range.end <= count);
            found.tries += 1;
            found.sent += range.len();
            let Some(first) = bad.range(range.clone()).next() else {
                search.stored();
                found.stored.extend(range);
                continue;
            };
            found.refused.extend(search.refused(match names.next() {
                Some(Names::Right) => Some(first - range.start + 1),
                Some(Names::Wrong) => Some(range.len()),
                _ => None,
            }));
        }
        found
    }

    #[test]
    fn few_tries_and_few_rows_are_sent() {
        let every = |n: usize| move |row: &usize| row % n == n / 2;
        for (what, count, bad, names, tries, sent) in [
            (
                "none bad",
                10_000,
                Box::new(|_: &usize| false) as Box<dyn Fn(&usize) -> bool>,
                Names::Right,
                5,
                10_000,
            ),
            (
                "all bad",
                10_000,
                Box::new(|_: &usize| true),
                Names::Right,
                10_001,
                10_600,
            ),
            (
                "all bad, no name",
                10_000,
                Box::new(|_: &usize| true),
                Names::None,
                10_010,
                11_100,
            ),
            (
                "one bad",
                1_000,
                Box::new(|row: &usize| *row == 500),
                Names::Right,
                5,
                1_600,
            ),
            (
                "the first is bad",
                1_000,
                Box::new(|row: &usize| *row == 0),
                Names::Right,
                12,
                1_600,
            ),
            (
                "one in a thousand",
                10_000,
                Box::new(every(1_000)),
                Names::Right,
                40,
                20_000,
            ),
            (
                "one in a hundred",
                10_000,
                Box::new(every(100)),
                Names::Right,
                301,
                27_000,
            ),
            (
                "one in a hundred, no name",
                10_000,
                Box::new(every(100)),
                Names::None,
                810,
                33_000,
            ),
            (
                "every other",
                10_000,
                Box::new(every(2)),
                Names::Right,
                15_000,
                21_000,
            ),
            (
                "good, then bad",
                10_000,
                Box::new(|row: &usize| *row >= 5_000),
                Names::Right,
                5_010,
                15_300,
            ),
        ] {
            let bad: BTreeSet<usize> = (0..count).filter(|row| bad(row)).collect();
            let found = search(count, &bad, &[names]);
            assert!(found.refused.iter().eq(&bad), "{what}");
            assert!(found.tries <= tries, "{what}: {} tries", found.tries);
            assert!(found.sent <= sent, "{what}: {} rows sent", found.sent);
        }
    }

    proptest! {
        /// A database that refuses some rows and names the right line, a wrong one, or none.
        #[test]
        fn exactly_the_refused_rows_are_found_and_rows_are_sent_a_few_times(
            count in 1usize..500,
            bad in prop::collection::btree_set(0usize..500, 0..500),
            names in prop::collection::vec(
                prop_oneof![Just(Names::Right), Just(Names::Wrong), Just(Names::None)], 1..50),
        ) {
            let bad: BTreeSet<usize> = bad.into_iter().filter(|row| *row < count).collect();
            let found = search(count, &bad, &names);
            prop_assert!(found.refused.iter().eq(&bad));
            prop_assert!(found.stored.iter().all(|row| !bad.contains(row)));
            prop_assert!(found.stored.is_sorted());
            prop_assert_eq!(found.stored.len() + found.refused.len(), count);
            prop_assert!(found.sent <= 12 * count, "{} of {} rows sent", found.sent, count);
        }

        /// A range that was refused can be stored in parts: the search ends all the same.
        #[test]
        fn answers_that_contradict_each_other_end_too(
            count in 1usize..200,
            answers in prop::collection::vec((any::<bool>(), prop::option::of(0usize..300)), 1..50),
        ) {
            let mut search = Search::new(count, 1_000);
            let mut answers = answers.into_iter().cycle();
            let (mut seen, mut tries) = (0, 0);
            while let Some(range) = search.range() {
                prop_assert_eq!(range.start, seen);
                match answers.next() {
                    Some((false, line)) => seen += usize::from(search.refused(line).is_some()),
                    _ => {
                        search.stored();
                        seen = range.end;
                    }
                }
                tries += 1;
                prop_assert!(tries <= 20 * count);
            }
            prop_assert_eq!(seen, count);
        }
    }
}
