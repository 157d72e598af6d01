//! Faults of the sink that pass, or that a person must put right: what they are, and how long to wait before the next
//! try. Nothing is ever given up: what is not stored stays in the topic, and order is kept.
//!
//! Each wait is longer than the one before, up to a bound, and never the same for two workers that lost the same
//! database. How long depends on the fault: who was the victim of a deadlock may try again at once, and a disk that is
//! full is not emptied within seconds.

use std::time::Duration;

/// What sort of fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The database cannot be reached, is starting or stopping, or the connection was lost.
    Unreachable,
    /// It has no connection to spare.
    TooManyConnections,
    /// It has no disk space left.
    DiskFull,
    /// It takes no writes: a standby, or set so.
    ReadOnly,
    /// Another transaction was in the way, and one of the two had to begin anew.
    Conflict,
    /// Anything else: a lock that was waited for in vain, a right that is missing, a table that does not fit.
    Other,
}

impl FaultKind {
    /// Whether every other job would meet the same.
    #[must_use]
    pub fn is_of_all(self) -> bool {
        match self {
            Self::Unreachable | Self::TooManyConnections | Self::DiskFull | Self::ReadOnly => true,
            Self::Conflict | Self::Other => false,
        }
    }

    /// The first wait and the longest one.
    fn waits(self) -> (Duration, Duration) {
        let (first, longest) = match self {
            Self::Conflict => (20, 2_000),
            Self::Unreachable | Self::Other => (200, 10_000),
            Self::ReadOnly => (500, 10_000),
            Self::TooManyConnections => (500, 15_000),
            Self::DiskFull => (2_000, 30_000),
        };
        (Duration::from_millis(first), Duration::from_millis(longest))
    }
}

/// A fault, with a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What sort of fault it is.
    pub kind: FaultKind,
    /// What is wrong, and where it helps, what to do.
    pub reason: String,
}

/// The waits between tries.
#[derive(Debug, Default)]
pub struct Backoff {
    tries: u32,
    kind: Option<FaultKind>,
}

impl Backoff {
    /// The next wait after a fault; another sort of fault begins with its first one. `jitter` is from 0 to 1 and takes
    /// up to half of the wait away.
    pub fn next(&mut self, kind: FaultKind, jitter: f64) -> Duration {
        if self.kind != Some(kind) {
            (self.kind, self.tries) = (Some(kind), 0);
        }
        let (first, longest) = kind.waits();
        let full = first.saturating_mul(1 << self.tries.min(10)).min(longest);
        self.tries = self.tries.saturating_add(1);
        full.mul_f64(1.0 - 0.5 * jitter.clamp(0.0, 1.0))
    }

    /// Starts over, after a success.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_bound_and_starts_over() {
        let mut backoff = Backoff::default();
        let mut next = |kind| backoff.next(kind, 0.0).as_millis();
        let waits: Vec<_> = (0..8).map(|_| next(FaultKind::Other)).collect();
        assert_eq!(waits, [200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(
            next(FaultKind::Conflict),
            20,
            "another fault begins with its first wait"
        );
        assert_eq!(next(FaultKind::Conflict), 40);
        assert_eq!(next(FaultKind::DiskFull), 2000);
        assert_eq!(backoff.next(FaultKind::DiskFull, 1.0).as_millis(), 2000);
        backoff.reset();
        assert_eq!(backoff.next(FaultKind::DiskFull, 1.0).as_millis(), 1000);
    }
}
