//! Faults that change what a meter measures: its counters, and which meter it is.

use std::{sync::Arc, time::Duration};

use corrente_crds::profile::ValueType;
use corrente_record::Timestamp;

use super::{Effect, Fault, Rim};

/// What happens to the counters and the serial number of one meter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    list: Arc<[Change]>,
}

#[derive(Clone, Debug, PartialEq)]
struct Change {
    metrics: Vec<String>,
    what: What,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum What {
    RollOver { at: Rim, first: Option<Timestamp> },
    Reset(Timestamp),
    Swap(Timestamp),
}

/// How a counter's registers relate to its value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Register {
    /// The type.
    pub value_type: ValueType,
    /// What one raw step is worth.
    pub step: f64,
}

/// What a new meter's counters may have run up before it was put in, in raw steps, at most.
const ALMOST_NEW: u64 = 100;

impl Changes {
    /// What these faults change in the meter `name`, which has this unit at `endpoint`, in a simulation that
    /// began at `start`.
    #[must_use]
    pub fn of(faults: &[Fault], endpoint: &str, name: &str, unit: u8, start: Timestamp) -> Self {
        let at = |after: Duration| {
            let millis = i64::try_from(after.as_millis()).unwrap_or(i64::MAX);
            Timestamp(start.0.saturating_add(millis))
        };
        let change = |fault: &Fault| {
            let place = &fault.place;
            let whole_endpoint = place.meters.is_empty() && place.units.is_empty();
            let here = (place.endpoints.is_empty() || place.endpoints.iter().any(|one| one == endpoint))
                && (whole_endpoint
                    || place.meters.iter().any(|one| one == name)
                    || place.units.contains(&unit));
            let what = match fault.effect {
                Effect::RollOver { at: rim, after } => What::RollOver {
                    at: rim,
                    first: after.map(at),
                },
                Effect::CounterReset { after } => What::Reset(at(after)),
                Effect::MeterSwap { after } => What::Swap(at(after)),
                _ => return None,
            };
            here.then(|| Change {
                metrics: place.metrics.clone(),
                what,
            })
        };
        Self {
            list: faults.iter().filter_map(change).collect(),
        }
    }

    /// Whether nothing ever changes.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.list.is_empty()
    }

    /// What a counter shows at a time, given what it would show at any time.
    #[must_use]
    pub fn counter(
        &self,
        metric: &str,
        register: Register,
        seed: u64,
        time: Timestamp,
        plain: impl Fn(Timestamp) -> f64,
    ) -> f64 {
        let mut value = plain(time);
        let mut zero = None;
        let mut start = 0.0;
        let mut rim = None;
        let mine =
            |change: &&Change| change.metrics.is_empty() || change.metrics.iter().any(|one| one == metric);
        for change in self.list.iter().filter(mine) {
            match change.what {
                What::Reset(at) if at <= time && zero.is_none_or(|zero| zero < at) => {
                    zero = Some(at);
                    start = 0.0;
                }
                What::Swap(at) if at <= time && zero.is_none_or(|zero| zero < at) => {
                    zero = Some(at);
                    start = (seed % ALMOST_NEW) as f64 * register.step;
                }
                What::RollOver { at, first } => rim = Some((at, first)),
                What::Reset(_) | What::Swap(_) => {}
            }
        }
        if let Some(zero) = zero {
            value += start - plain(zero);
        }
        let Some((at, first)) = rim else { return value };
        let modulus = match at {
            Rim::Type => 2_f64.powi(i32::from(bits(register.value_type))),
            Rim::Bits(bits) => 2_f64.powi(i32::from(bits)),
            Rim::Value(value) => value as f64,
        };
        // Shifted so that it gets there when it is told to, unless a reset has taken it back since.
        if let (Some(first), None) = (first, zero) {
            value -= plain(first);
        }
        let steps = (value / register.step).floor();
        steps.rem_euclid(modulus) * register.step
    }

    /// Another number than `seed` after each swap, to tell serial numbers by.
    #[must_use]
    pub fn identity(&self, seed: u64, time: Timestamp) -> u64 {
        let swaps = self
            .list
            .iter()
            .filter(|change| matches!(change.what, What::Swap(at) if at <= time));
        // The golden ratio's bits: far from what it was, and never the same again.
        seed.wrapping_add((swaps.count() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
}

/// How many bits of a counter count before it is at the end of its type.
#[must_use]
pub fn bits(value_type: ValueType) -> u8 {
    match value_type {
        ValueType::Bool => 1,
        ValueType::U16 => 16,
        ValueType::I16 => 15,
        ValueType::U32 => 32,
        ValueType::I32 => 31,
        ValueType::U64 => 64,
        ValueType::I64 => 63,
        // What they count exactly.
        ValueType::F32 => 24,
        ValueType::F64 | ValueType::String => 53,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);
    const U16: Register = Register {
        value_type: ValueType::U16,
        step: 10.0,
    };

    /// A counter that rises by 100 each second, from 5000 at the start.
    fn shows(faults: &[Fault], second: i64) -> f64 {
        let changes = Changes::of(faults, "gw", "m", 1, Timestamp(1_000_000));
        let plain = |time: Timestamp| 5000.0 + (time.0 - 1_000_000) as f64 / 10.0;
        changes.counter("energy", U16, 42, Timestamp(1_000_000 + second * 1000), plain)
    }

    #[test]
    fn counters_roll_over_and_begin_again() {
        let roll = |at, after| Fault::new(Effect::RollOver { at, after });
        let reset = |after| Fault::new(Effect::CounterReset { after });
        let swap = |after| Fault::new(Effect::MeterSwap { after });
        let other = |mut fault: Fault| {
            fault.place.metrics.push("other".to_owned());
            vec![fault]
        };
        for (faults, expected) in [
            (vec![], [5000.0, 5100.0, 5200.0, 6000.0]),
            // At 65536 steps of ten.
            (
                vec![roll(Rim::Type, Some(2 * S))],
                [655_160.0, 655_260.0, 0.0, 800.0],
            ),
            (
                vec![roll(Rim::Bits(4), Some(S))],
                [60.0, 0.0, 100.0, 100.0 + 160.0 * 5.0 - 800.0],
            ),
            (vec![roll(Rim::Value(550), None)], [5000.0, 5100.0, 5200.0, 500.0]),
            (vec![reset(2 * S)], [5000.0, 5100.0, 0.0, 800.0]),
            (vec![reset(2 * S), reset(S)], [5000.0, 0.0, 0.0, 800.0]),
            (vec![swap(2 * S)], [5000.0, 5100.0, 420.0, 1220.0]),
            (
                vec![reset(S), roll(Rim::Value(50), Some(99 * S))],
                [100.0, 0.0, 100.0, 400.0],
            ),
            (other(reset(S)), [5000.0, 5100.0, 5200.0, 6000.0]),
            (vec![reset(S).units([2])], [5000.0, 5100.0, 5200.0, 6000.0]),
            (vec![reset(S).units([1])], [5000.0, 0.0, 100.0, 900.0]),
            (
                vec![reset(S).meter("m").endpoint("other")],
                [5000.0, 5100.0, 5200.0, 6000.0],
            ),
        ] {
            let seen = [0, 1, 2, 10].map(|second| shows(&faults, second));
            assert_eq!(seen, expected, "{faults:?}");
        }
    }

    #[test]
    fn a_swapped_meter_has_another_serial_number() {
        let faults = [Fault::new(Effect::MeterSwap { after: S })];
        let changes = Changes::of(&faults, "gw", "m", 1, Timestamp(0));
        assert_eq!(changes.identity(5, Timestamp(999)), 5);
        assert_ne!(changes.identity(5, Timestamp(1000)), 5);
        assert!(!changes.is_none() && Changes::default().is_none());
    }
}
