//! Whether the answers of a window are worth taking in together. Pure.
//!
//! A task that waits for each of several answers is woken by each, and being woken costs more than all there is to
//! do with an answer. Where the last window was answered within a millisecond as a whole, the next one is given that
//! millisecond before anything is read, and everything is there in one piece. Where it is not, answers are taken in
//! one by one again, until another window was as quick. A meter that takes its time, or a gateway with a serial line
//! behind it, is never waited for in this way.

use std::time::Duration;

/// How quick a window must be, and how long it is given.
pub(super) const TOGETHER: Duration = Duration::from_millis(1);
/// Fewer answers are not worth the wait.
const FEWEST: usize = 4;

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Gather {
    is_quick: bool,
}

impl Gather {
    /// Whether the answers to so many questions are to be taken in together.
    pub fn is_worth_it(&self, questions: usize) -> bool {
        self.is_quick && questions >= FEWEST
    }

    /// So many questions were answered one by one, the last after `took`.
    pub fn one_by_one(&mut self, questions: usize, took: Duration) {
        if questions >= FEWEST {
            self.is_quick = took <= TOGETHER;
        }
    }

    /// After the pause it took so many reads to have all answers.
    pub fn together(&mut self, reads: usize) {
        self.is_quick = reads <= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_quick_windows_are_taken_in_together() {
        let mut gather = Gather::default();
        assert!(!gather.is_worth_it(9), "nothing is known yet");
        for (questions, micros, together) in [
            (9, 5_000, false),
            (3, 10, false),
            (9, 1_000, true),
            (3, 5_000, true),
            (9, 1_001, false),
            (9, 200, true),
        ] {
            gather.one_by_one(questions, Duration::from_micros(micros));
            assert_eq!(
                gather.is_worth_it(9),
                together,
                "{questions} questions in {micros} us"
            );
            assert!(!gather.is_worth_it(3), "few are not waited for");
        }
        gather.together(1);
        assert!(gather.is_worth_it(9));
        gather.together(2);
        assert!(!gather.is_worth_it(9), "they were not all there");
    }
}
