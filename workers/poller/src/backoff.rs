//! Back-off: how long to leave alone what does not answer. Pure; time comes in.
//!
//! Up to a number of failures in a row there is no pause, since a lost packet is no dead meter; whoever has a
//! choice tries others first. From there on the pauses double, up to a longest one; the first success ends
//! it all. Where many may fail together, their pauses are spread, so that they do not come back together.

use std::time::Duration;

use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64_with_seed;

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
    tolerated: 0,
    first: Duration::from_secs(1),
    longest: Duration::from_secs(60),
};

/// The first pause of a unit that is polled so often: what it missed a few times costs it no more slots than those.
#[must_use]
pub fn first_pause(interval: Duration) -> Duration {
    UNIT.first.min(interval / 4)
}

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
    seed: Option<u64>,
}

impl Backoff {
    /// Nothing failed yet.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            failures: 0,
            until: None,
            seed: None,
        }
    }

    /// The same with pauses from three to five quarters of the policy's, by a number of its own.
    #[must_use]
    pub fn spread(policy: Policy, seed: u64) -> Self {
        Self {
            seed: Some(seed),
            ..Self::new(policy)
        }
    }

    /// The first pause is another from now on.
    pub fn begin_with(&mut self, first: Duration) {
        self.policy.first = first;
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
        let pause = match self.seed {
            None => pause,
            Some(seed) => {
                let luck = xxh3_64_with_seed(&self.failures.to_le_bytes(), seed) % 1_000;
                pause.mul_f64(0.75 + 0.5 * luck as f64 / 1_000.0)
            }
        };
        self.until = now.checked_add(pause);
        Some(pause)
    }

    /// How often it failed in a row.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
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
        let policy = Policy { tolerated: 2, ..UNIT };
        let mut unit = Backoff::new(policy);
        assert_eq!(unit.failed(now), None);
        assert_eq!(unit.failed(now), None);
        assert_eq!(unit.left(now), None);
        for (before, seconds) in [1, 2, 4, 8, 16, 32, 60, 60].into_iter().enumerate() {
            let pause = Duration::from_secs(seconds);
            assert_eq!(unit.failed(now), Some(pause));
            assert_eq!(unit.failures(), before as u32 + 3);
            assert_eq!(unit.left(now), Some(pause));
            now += pause;
            assert_eq!(unit.left(now), None);
        }
        unit.succeeded();
        assert_eq!((unit.failures(), unit.failed(now)), (0, None));
    }

    #[test]
    fn spread_pauses_are_near_the_policy_and_not_all_the_same() {
        let now = Instant::now();
        let pauses: std::collections::BTreeSet<Duration> = (0..100)
            .map(|seed| Backoff::spread(UNIT, seed).failed(now).unwrap())
            .collect();
        assert!(pauses.len() > 50);
        assert!(
            pauses
                .iter()
                .all(|pause| (750..1_250).contains(&pause.as_millis())),
            "{pauses:?}"
        );
    }

    #[test]
    fn what_was_missed_in_a_row_costs_no_more_slots_than_that() {
        for interval in [100, 1_000, 2_000, 10_000, 900_000].map(Duration::from_millis) {
            for seed in 0..50 {
                let mut unit = Backoff::spread(UNIT, seed);
                unit.begin_with(first_pause(interval));
                let start = Instant::now();
                let (mut missed, mut lost) = (0u32, 0u32);
                for slot in 0..12 {
                    let now = start + slot * interval;
                    // The first miss is followed by another question whatever the pause.
                    if missed > 1 && unit.left(now).is_some() {
                        lost += 1;
                        continue;
                    }
                    unit.failed(now);
                    missed += 1;
                    assert!(
                        missed > 4 || lost <= missed,
                        "{lost} lost after {missed} of {interval:?}"
                    );
                }
                assert!(missed >= 4, "{missed}");
            }
        }
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
