//! Back-off: how long to leave alone what does not answer. Pure; time comes in.
//!
//! Up to a number of failures in a row there is no pause, since a lost packet is no dead meter; whoever has a
//! choice tries others first. From there on the pauses double, up to a longest one; the first success ends
//! it all.

use std::time::Duration;

use tokio::time::Instant;

/// How to back off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Failures in a row that bring no pause yet.
    pub tolerated: u32,
    /// The first pause.
    pub first: Duration,
    /// The longest.
    pub longest: Duration,
}

/// For a unit that does not answer: each try costs the others of its line a timeout.
pub const UNIT: Policy = Policy {
    tolerated: 2,
    first: Duration::from_secs(1),
    longest: Duration::from_secs(60),
};

/// For an endpoint without a connection: a try costs nobody but itself, and its return should be noticed.
pub const ENDPOINT: Policy = Policy {
    tolerated: 0,
    first: Duration::from_millis(500),
    longest: Duration::from_secs(10),
};

/// For a broker that takes no records.
pub const BROKER: Policy = Policy {
    tolerated: 0,
    first: Duration::from_millis(200),
    longest: Duration::from_secs(5),
};

/// How something that may fail has done lately.
#[derive(Clone, Debug)]
pub struct Backoff {
    policy: Policy,
    failures: u32,
    until: Option<Instant>,
}

impl Backoff {
    /// Nothing failed yet.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            failures: 0,
            until: None,
        }
    }

    /// It worked.
    pub fn succeeded(&mut self) {
        self.failures = 0;
        self.until = None;
    }

    /// It failed. Returns the pause, where there is to be one.
    pub fn failed(&mut self, now: Instant) -> Option<Duration> {
        self.failures = self.failures.saturating_add(1);
        let beyond = self.failures.checked_sub(self.policy.tolerated + 1)?;
        let pause = self
            .policy
            .first
            .saturating_mul(1 << beyond.min(16))
            .min(self.policy.longest);
        self.until = now.checked_add(pause);
        Some(pause)
    }

    /// Whether it failed the last time, and has to show that it works.
    #[must_use]
    pub fn is_suspect(&self) -> bool {
        self.failures > 0
    }

    /// How much of the pause is left; `None` where it may be tried.
    #[must_use]
    pub fn left(&self, now: Instant) -> Option<Duration> {
        self.until
            .and_then(|until| until.checked_duration_since(now))
            .filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_after_what_is_tolerated_and_end_with_a_success() {
        let mut now = Instant::now();
        let mut unit = Backoff::new(UNIT);
        assert!(!unit.is_suspect());
        assert_eq!(unit.failed(now), None);
        assert!(unit.is_suspect(), "others come first from the first failure on");
        assert_eq!(unit.failed(now), None);
        assert_eq!(unit.left(now), None);
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            let pause = Duration::from_secs(seconds);
            assert_eq!(unit.failed(now), Some(pause));
            assert!(unit.is_suspect());
            assert_eq!(unit.left(now), Some(pause));
            now += pause;
            assert_eq!(unit.left(now), None);
            assert!(unit.is_suspect(), "it is on trial until it answers");
        }
        unit.succeeded();
        assert!(!unit.is_suspect());
        assert_eq!(unit.failed(now), None);
    }

    #[test]
    fn never_overflows() {
        let now = Instant::now();
        let mut endpoint = Backoff::new(ENDPOINT);
        for _ in 0..100 {
            assert!(endpoint.failed(now).unwrap() <= ENDPOINT.longest);
        }
    }
}
