//! What lies between two readings of a counter.
//!
//! | | counted |
//! |---|---|
//! | more than two readings may lie apart | nothing: *gap* |
//! | another serial number, or a swap that was written down | what is known of it: *swap* |
//! | it rose | the difference: *rise* |
//! | it rose by more than it can | nothing: *jump* |
//! | it fell, and is where it would be had it begun again at 0 | what is left up to there, and what it shows: *rollover* |
//! | it fell, and nothing explains it | nothing: *reset* |
//!
//! Energy is never made up: what a meter counted before it was reset, and what it had when it began again, nobody knows.
//! The readings themselves stay in the table as they were.

use corrente_config::derived::{CounterConfig, SwapConfig};

/// The part of a counter's range that a rollover may take, where nothing is said of how fast it rises: a tenth.
const PLAUSIBLE: f64 = 0.1;
const HOUR_MILLIS: f64 = 3_600_000.0;
/// The shortest time for which a rise is judged, in milliseconds: a meter may be read twice in an instant.
const SHORTEST: i64 = 1000;

/// A reading of a counter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading<'a> {
    /// When it was, in milliseconds since the epoch.
    pub at: i64,
    /// What it showed; finite.
    pub value: f64,
    /// The meter's serial number, where the counter goes by it.
    pub serial: Option<&'a str>,
}

/// What lies between two readings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    /// It rose by this much.
    Rise(f64),
    /// It began again at 0, and rose by this much in all.
    Rollover(f64),
    /// It fell, and nothing explains it.
    Reset,
    /// It rose by more than it can.
    Jump,
    /// The readings are too far apart.
    Gap,
    /// The meter was replaced.
    Swap {
        /// When, where that was written down.
        at: Option<i64>,
        /// What the old meter still counted, where that is known.
        old: Option<f64>,
        /// What the new meter counted, where that is known.
        new: Option<f64>,
    },
}

/// What lies between `before` and `now`. `rollover` is where this meter's counter begins again at 0, and `swaps` are those
/// of this meter and counter, by time.
#[must_use]
pub fn step<'s>(
    counter: &CounterConfig,
    rollover: Option<f64>,
    swaps: impl IntoIterator<Item = &'s SwapConfig>,
    before: &Reading<'_>,
    now: &Reading<'_>,
) -> Step {
    let apart = now.at.saturating_sub(before.at);
    if u64::try_from(apart).is_ok_and(|apart| apart > counter.longest_gap_millis) {
        return Step::Gap;
    }
    let mut between = swaps
        .into_iter()
        .filter(|swap| before.at <= swap.at.0 && swap.at.0 < now.at);
    if let Some(first) = between.next() {
        let last = between.last().unwrap_or(first);
        let counted =
            |from: Option<f64>, to: Option<f64>| Some(to? - from?).filter(|counted| *counted >= 0.0);
        return Step::Swap {
            at: Some(first.at.0),
            old: counted(Some(before.value), first.last),
            new: counted(last.first, Some(now.value)),
        };
    }
    if before.serial != now.serial {
        return Step::Swap {
            at: None,
            old: None,
            new: None,
        };
    }
    let most = counter
        .most_per_hour
        .map(|most| most * apart.max(SHORTEST) as f64 / HOUR_MILLIS);
    let rise = now.value - before.value;
    if rise >= 0.0 {
        return if most.is_some_and(|most| rise > most) {
            Step::Jump
        } else {
            Step::Rise(rise)
        };
    }
    let Some(rollover) = rollover.filter(|rollover| before.value <= *rollover && now.value >= 0.0) else {
        return Step::Reset;
    };
    let rise = rollover - before.value + now.value;
    if rise <= most.unwrap_or(rollover * PLAUSIBLE) {
        Step::Rollover(rise)
    } else {
        Step::Reset
    }
}

#[cfg(test)]
mod tests {
    use corrente_config::derived::PerMeter;
    use corrente_record::Timestamp;
    use proptest::prelude::*;

    use super::*;

    const MINUTE: i64 = 60_000;

    fn counter(most_per_hour: Option<f64>) -> CounterConfig {
        CounterConfig {
            metric: "energy".to_owned(),
            rollover: PerMeter::default(),
            most_per_hour,
            serial: None,
            longest_gap_millis: 3_600_000,
        }
    }

    fn swap(at: i64, last: Option<f64>, first: Option<f64>) -> SwapConfig {
        SwapConfig {
            meter: "m".to_owned(),
            at: Timestamp(at),
            metric: None,
            last,
            first,
        }
    }

    fn reading(minute: i64, value: f64) -> Reading<'static> {
        Reading {
            at: minute * MINUTE,
            value,
            serial: None,
        }
    }

    #[test]
    fn tells_them_apart() {
        let step = |most, rollover, before: (i64, f64), now: (i64, f64)| {
            step(
                &counter(most),
                rollover,
                [],
                &reading(before.0, before.1),
                &reading(now.0, now.1),
            )
        };
        let width = Some(65_536.0);
        for (expected, got) in [
            (Step::Rise(5.0), step(None, width, (0, 10.0), (1, 15.0))),
            (Step::Rise(0.0), step(None, None, (0, 10.0), (1, 10.0))),
            (Step::Rollover(100.0), step(None, width, (0, 65_500.0), (1, 64.0))),
            // A display of eight digits.
            (
                Step::Rollover(3.0),
                step(None, Some(1e8), (0, 99_999_998.0), (1, 1.0)),
            ),
            // More than a tenth of the range: not believed, unless the connection can carry it.
            (Step::Reset, step(None, width, (0, 50_000.0), (1, 64.0))),
            (
                Step::Rollover(15_600.0),
                step(Some(2e6), width, (0, 50_000.0), (1, 64.0)),
            ),
            (Step::Reset, step(Some(60.0), width, (0, 65_500.0), (1, 64.0))),
            (
                Step::Rollover(100.0),
                step(Some(6000.0), width, (0, 65_500.0), (1, 64.0)),
            ),
            // A counter that does not roll over, or is beyond where it would.
            (Step::Reset, step(None, None, (0, 65_500.0), (1, 64.0))),
            (Step::Reset, step(None, width, (0, 70_000.0), (1, 64.0))),
            (Step::Reset, step(None, width, (0, 10.0), (1, 0.0))),
            (Step::Reset, step(None, width, (0, 65_500.0), (1, -1.0))),
            (Step::Jump, step(Some(60.0), width, (0, 10.0), (1, 12.0))),
            (Step::Rise(1.0), step(Some(60.0), width, (0, 10.0), (1, 11.0))),
            (Step::Rise(5.0), step(None, None, (0, 10.0), (60, 15.0))),
            (Step::Gap, step(None, None, (0, 10.0), (61, 15.0))),
        ] {
            assert_eq!(got, expected);
        }
    }

    #[test]
    fn a_swap_is_counted_as_far_as_it_is_known() {
        let (before, now) = (reading(10, 900.0), reading(20, 30.0));
        let swapped = |swaps: &[SwapConfig]| step(&counter(None), Some(1000.0), swaps, &before, &now);
        assert_eq!(swapped(&[]), Step::Reset, "130 of 1000 is no rollover");
        let at = 15 * MINUTE;
        for (last, first, old, new) in [
            (None, None, None, None),
            (Some(905.0), None, Some(5.0), None),
            (Some(905.0), Some(28.0), Some(5.0), Some(2.0)),
            // What cannot be is not counted.
            (Some(800.0), Some(40.0), None, None),
        ] {
            let expected = Step::Swap {
                at: Some(at),
                old,
                new,
            };
            assert_eq!(swapped(&[swap(at, last, first)]), expected);
        }
        // Readings up to the swap are the old meter's.
        assert!(matches!(
            swapped(&[swap(10 * MINUTE, None, None)]),
            Step::Swap { .. }
        ));
        assert_eq!(
            swapped(&[swap(20 * MINUTE, None, None), swap(9 * MINUTE, None, None)]),
            Step::Reset
        );
        // Twice in between: the first meter's end and the last one's beginning.
        let twice = [
            swap(at, Some(901.0), Some(0.0)),
            swap(at + 1, Some(1.0), Some(29.0)),
        ];
        let expected = Step::Swap {
            at: Some(at),
            old: Some(1.0),
            new: Some(1.0),
        };
        assert_eq!(swapped(&twice), expected);
    }

    #[test]
    fn another_serial_number_is_another_meter() {
        let with = |serial, value| Reading {
            serial,
            ..reading(1, value)
        };
        let unknown = Step::Swap {
            at: None,
            old: None,
            new: None,
        };
        let step = |a, b| step(&counter(None), Some(1e6), [], &a, &b);
        assert_eq!(
            step(with(Some("A1"), 10.0), with(Some("A1"), 11.0)),
            Step::Rise(1.0)
        );
        assert_eq!(step(with(Some("A1"), 10.0), with(Some("B2"), 11.0)), unknown);
        assert_eq!(step(with(Some("A1"), 10.0), with(Some("B2"), 3.0)), unknown);
    }

    proptest! {
        #[test]
        fn what_is_counted_was_there(
            before in 0f64..1e6, now in 0f64..1e6, apart in 1i64..200, most in proptest::option::of(1f64..1e6),
            rollover in proptest::option::of(1f64..1e6),
        ) {
            let counter = counter(most);
            match step(&counter, rollover, [], &reading(0, before), &reading(apart, now)) {
                Step::Rise(rise) => prop_assert!(rise >= 0.0 && before + rise == now || (before + rise - now).abs() < 1e-6),
                Step::Rollover(rise) => {
                    let rollover = rollover.unwrap();
                    prop_assert!(rise >= 0.0 && now < before && before <= rollover);
                    prop_assert!((before + rise - rollover - now).abs() < 1e-6);
                    let limit = most.map_or(rollover / 10.0, |most| most * apart as f64 / 60.0);
                    prop_assert!(rise <= limit + 1e-6);
                }
                Step::Reset => prop_assert!(now < before),
                Step::Jump => prop_assert!(now > before && most.is_some()),
                Step::Gap => prop_assert!(apart > 60),
                swap @ Step::Swap { .. } => prop_assert!(false, "{:?}", swap),
            }
        }
    }
}
