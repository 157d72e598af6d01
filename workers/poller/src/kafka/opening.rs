//! How a new producer begins in a partition: with one message alone.
//!
//! A broker checks that an idempotent producer's batches follow each other without a gap, but the first batch of
//! a producer that it does not know yet may begin anywhere. Where the first batch failed and the second was in
//! flight already, the second would be stored, and the first, sent again, would come after it: overtaken, and
//! dropped by the sink as a repeat. So nothing else is sent to a partition until its first message is stored.

use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opening {
    /// Nothing is stored by this producer, and nothing is on its way.
    Closed,
    /// The first message is on its way.
    Waiting,
    /// The broker knows the producer.
    Open,
}

/// The partitions of one producer.
#[derive(Debug, Default)]
pub(super) struct Openings(Mutex<Vec<Opening>>);

impl Openings {
    /// Whether a message may be sent to the partition now. Where it is the first, others wait from here on.
    pub fn begin(&self, partition: i32) -> bool {
        let mut all = self.lock();
        let Some(opening) = place(&mut all, partition) else {
            return true;
        };
        match *opening {
            Opening::Open => true,
            Opening::Waiting => false,
            Opening::Closed => {
                *opening = Opening::Waiting;
                true
            }
        }
    }

    /// A message of the partition is stored.
    pub fn stored(&self, partition: i32) {
        if let Some(opening) = place(&mut self.lock(), partition) {
            *opening = Opening::Open;
        }
    }

    /// A message of the partition was not stored, or not even taken: where it was the first, another is.
    pub fn failed(&self, partition: i32) {
        if let Some(opening) = place(&mut self.lock(), partition)
            && *opening == Opening::Waiting
        {
            *opening = Opening::Closed;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Opening>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn place(all: &mut Vec<Opening>, partition: i32) -> Option<&mut Opening> {
    let at = usize::try_from(partition).ok()?;
    if all.len() <= at {
        all.resize(at + 1, Opening::Closed);
    }
    all.get_mut(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_opens_with_its_first_message_alone() {
        let openings = Openings::default();
        assert!(openings.begin(2) && !openings.begin(2), "one at a time");
        assert!(openings.begin(0), "the others do not wait for it");
        openings.failed(2);
        assert!(openings.begin(2) && !openings.begin(2), "another first one");
        openings.stored(2);
        assert!(openings.begin(2) && openings.begin(2));
        // What fails later is librdkafka's and the broker's business.
        openings.failed(2);
        assert!(openings.begin(2) && !openings.begin(0));
    }
}
