//! When a meter is due: slot arithmetic, without a clock.
//!
//! A slot is a multiple of the interval since the UTC epoch, so that the readings of every meter, pod and
//! site fall on the same times. Its poll is due at slot + phase. The phases spread the endpoints over the
//! interval, so that a thousand of them do not start in one millisecond, but no further than that needs:
//! a few endpoints share each moment, because to be woken out of idle costs a process as much as several
//! polls do (docs/decisions/0025). The slots of a meter only rise: when the clock steps back, they wait.

use std::time::Duration;

use corrente_record::Timestamp;
use xxhash_rust::xxh3::xxh3_64;

/// The widest spread of phases in milliseconds. A reading labelled 12:00 should not be read at 12:14
/// because its interval is 15 minutes long; ten seconds are wide enough for thousands of endpoints.
pub const MAX_SPREAD_MILLIS: u64 = 10_000;

/// How many endpoints share a moment, at most on average. Their first requests leave within a fraction of
/// a millisecond.
pub const TOGETHER: u64 = 4;

/// How the polls of one process are spread over an interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spread {
    /// Its moments in an interval, a power of two: most endpoints stay where they are when some are added.
    moments: u64,
    /// Sets the moments of one process apart from those of others.
    shift: u64,
}

impl Spread {
    /// The spread of a process that polls so many endpoints. `process` tells it from others, which have
    /// moments of their own.
    #[must_use]
    pub fn new(process: &str, endpoints: usize) -> Self {
        let endpoints = u64::try_from(endpoints).unwrap_or(u64::MAX / 2);
        Self {
            moments: endpoints.div_ceil(TOGETHER).next_power_of_two(),
            shift: xxh3_64(process.as_bytes()),
        }
    }

    /// The phase of an endpoint, by its address, in milliseconds: from 0 to below the interval, and below
    /// [`MAX_SPREAD_MILLIS`]. It is the same each time the process starts.
    #[must_use]
    pub fn phase(&self, address: &str, interval_millis: u64) -> u64 {
        let spread = interval_millis.clamp(1, MAX_SPREAD_MILLIS);
        let moment = xxh3_64(address.as_bytes()) % self.moments;
        // A process has less than 2^40 endpoints, so this does not overflow.
        (self.shift % spread + moment.saturating_mul(spread) / self.moments) % spread
    }
}

/// The slots of one interval and phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    interval: i64,
    phase: i64,
}

/// The slot to poll next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextSlot {
    /// The slot.
    pub slot: Timestamp,
    /// How many slots before it were passed over because their time was up.
    pub skipped: u64,
}

impl Slots {
    /// Slots every `interval_millis`, due `phase_millis` later. An interval of 0 counts as 1 ms.
    #[must_use]
    pub fn new(interval_millis: u64, phase_millis: u64) -> Self {
        let interval = i64::try_from(interval_millis).unwrap_or(i64::MAX).max(1);
        let phase = i64::try_from(phase_millis).unwrap_or(i64::MAX);
        Self { interval, phase }
    }

    /// The time from slot to slot.
    #[must_use]
    pub fn interval(&self) -> Duration {
        Duration::from_millis(self.interval.unsigned_abs())
    }

    /// The slot right after another.
    #[must_use]
    pub fn following(&self, slot: Timestamp) -> Timestamp {
        Timestamp(slot.0.saturating_add(self.interval))
    }

    /// When the poll of a slot is due.
    #[must_use]
    pub fn due(&self, slot: Timestamp) -> Timestamp {
        Timestamp(slot.0.saturating_add(self.phase))
    }

    /// The first slot strictly after `now`. A poller that starts takes this one: it never polls a slot
    /// that began before it did, so that together with a handover between pods a meter is polled once per
    /// slot.
    #[must_use]
    pub fn first_after(&self, now: Timestamp) -> Timestamp {
        Timestamp(self.floor(now.0).saturating_add(self.interval))
    }

    /// The slot after `last`: the newest whose poll is due at `now`, or the one right after `last` where
    /// none is due yet. A poll that took too long thus costs the slots whose time was up, counted in
    /// `skipped`, and not the one that is due now. Where the clock stepped back, the slot right after
    /// `last` is still the answer, and its due time lies ahead.
    #[must_use]
    pub fn next_after(&self, last: Timestamp, now: Timestamp) -> NextSlot {
        let following = last.0.saturating_add(self.interval);
        let newest = self.floor(now.0.saturating_sub(self.phase));
        let slot = newest.max(following);
        NextSlot {
            slot: Timestamp(slot),
            skipped: slot.saturating_sub(following).unsigned_abs() / self.interval.unsigned_abs(),
        }
    }

    fn floor(&self, millis: i64) -> i64 {
        millis.saturating_sub(millis.rem_euclid(self.interval))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn starts_with_the_slot_that_has_not_begun() {
        let slots = Slots::new(10_000, 3_000);
        for (now, slot) in [
            (0, 10_000),
            (1, 10_000),
            (9_999, 10_000),
            (10_000, 20_000),
            (-1, 0),
        ] {
            assert_eq!(slots.first_after(Timestamp(now)), Timestamp(slot), "{now}");
        }
        assert_eq!(slots.due(Timestamp(10_000)), Timestamp(13_000));
    }

    #[test]
    fn passes_over_what_is_past() {
        let slots = Slots::new(1_000, 200);
        for (last, now, slot, skipped, why) in [
            (10_000, 10_300, 11_000, 0, "in time"),
            (10_000, 11_199, 11_000, 0, "almost due"),
            (10_000, 11_500, 11_000, 0, "late, but it is the newest"),
            (10_000, 12_199, 11_000, 0, "the next is not due yet"),
            (10_000, 12_200, 12_000, 1, "two are due: the newest is polled"),
            (10_000, 20_250, 20_000, 9, "after a long stop"),
            (10_000, 3_000, 11_000, 0, "the clock stepped back"),
        ] {
            assert_eq!(
                slots.next_after(Timestamp(last), Timestamp(now)),
                NextSlot {
                    slot: Timestamp(slot),
                    skipped
                },
                "{why}"
            );
        }
    }

    #[test]
    fn a_few_endpoints_share_a_moment_and_a_thousand_do_not() {
        for (endpoints, interval, moments, most) in [
            (1, 1_000, 1, 1),
            (3, 100, 1, 3),
            (4, 1_000, 1, 4),
            (5, 1_000, 2, 4),
            (100, 1_000, 32, 12),
            (1_000, 10_000, 256, 15),
            // No more moments than milliseconds.
            (1_000, 20, 20, 80),
        ] {
            let spread = Spread::new("plant/hall/0", endpoints);
            let mut shared = std::collections::BTreeMap::new();
            for host in 0..endpoints {
                let phase = spread.phase(&format!("10.0.{}.{}:502", host / 250, host % 250), interval);
                assert!(phase < interval, "{phase}");
                *shared.entry(phase).or_insert(0) += 1;
            }
            assert!(shared.len() <= moments, "{endpoints}: {shared:?}");
            assert!(shared.len() * 10 >= moments * 9, "{endpoints}: {shared:?}");
            assert!(shared.values().all(|n| *n <= most), "{endpoints}: {shared:?}");
        }
    }

    #[test]
    fn moments_are_the_same_at_each_start_and_apart_from_those_of_other_processes() {
        let spread = |process| Spread::new(process, 3).phase("10.0.0.7:502", 1_000);
        assert_eq!(spread("plant/hall/0"), spread("plant/hall/0"));
        assert_ne!(spread("plant/hall/0"), spread("plant/hall/1"));
        // An endpoint more leaves most of the others where they were, as long as it takes no more moments.
        let (before, after) = (Spread::new("plant/hall/0", 20), Spread::new("plant/hall/0", 32));
        assert_eq!(
            before.phase("10.0.0.7:502", 1_000),
            after.phase("10.0.0.7:502", 1_000)
        );
        assert!(Spread::new("x", 9).phase("10.0.0.7:502", 900_000) < MAX_SPREAD_MILLIS);
        assert_eq!(Spread::new("x", 0).phase("y", 0), 0);
    }

    proptest! {
        #[test]
        fn slots_only_rise_whatever_the_clock_does(
            interval in 1u64..100_000, key in "[a-z]{1,8}", start in 0i64..4_000_000_000_000,
            steps in prop::collection::vec(-300_000i64..300_000, 1..60),
        ) {
            let slots = Slots::new(interval, Spread::new(&key, 1).phase(&key, interval));
            let mut now = start;
            let mut last = slots.first_after(Timestamp(now));
            prop_assert!(last.0 > now);
            for step in steps {
                now += step;
                let next = slots.next_after(last, Timestamp(now));
                prop_assert!(next.slot > last);
                prop_assert_eq!(next.slot.0 % interval as i64, 0);
                let distance = (next.slot.0 - last.0) as u64 / interval;
                prop_assert_eq!(distance, next.skipped + 1);
                // What was passed over was due, and so was what came after it.
                prop_assert!(next.skipped == 0 || slots.due(next.slot).0 <= now);
                last = next.slot;
            }
        }
    }
}
