//! Which part of a load a metric speaks of: told from its name, as the meter library names metrics, and
//! from its unit where the name says nothing.

use corrente_crds::profile::Kind;
use corrente_record::Timestamp;

use crate::curve::{COMMISSIONED, Load};

/// Phases of a metric: `l1`, `l2`, `l3` in its name, in that order.
type Phase = usize;

/// What a metric measures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Quantity {
    /// Between a phase and neutral.
    Voltage(Phase),
    /// Between two phases.
    LineVoltage(Phase, Phase),
    /// The mean of the phases; `true` for the mean of the voltages between them.
    MeanVoltage(bool),
    /// The current of a phase.
    Current(Phase),
    /// The mean of the phases.
    MeanCurrent,
    /// The sum of the phases.
    TotalCurrent,
    /// The current of the neutral, which is the vector sum of the phases.
    NeutralCurrent,
    /// Power of a phase, or of all.
    Power(Work, Option<Phase>),
    /// The power factor.
    PowerFactor,
    /// The angle between voltage and current, in degrees.
    Angle,
    /// The frequency.
    Frequency,
    /// The largest deviation of a phase from the mean, as a ratio: of voltage, or of current.
    Unbalance(bool),
    /// Total harmonic distortion, as a ratio.
    Distortion,
    /// Energy: a share of what was imported. What was exported is a constant, left from a test.
    Energy(Work, Flow, f64),
    /// Anything else that counts: minutes since commissioning.
    Minutes,
    /// Anything else that is measured: a temperature, say.
    Other,
    /// A state or a bit that is always on.
    On,
    /// Text: a serial number.
    Serial,
}

/// Active, reactive or apparent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// W and Wh.
    Active,
    /// var and varh.
    Reactive,
    /// VA and VAh.
    Apparent,
}

/// Where energy flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// From the grid.
    Import,
    /// To the grid.
    Export,
    /// Both summed.
    Total,
}

/// What was exported since commissioning, in Wh: not 0, which SunSpec counters keep for "not accumulated".
const EXPORTED: f64 = 1_000.0;

impl Quantity {
    /// What a metric of this name, unit and kind measures. `phase` and `tariff` tokens select a part.
    #[must_use]
    pub fn of(name: &str, unit: Option<&str>, kind: Kind) -> Self {
        let tokens: Vec<&str> = name.split('_').collect();
        let has = |token: &str| tokens.contains(&token);
        let phases: Vec<Phase> = (0..3).filter(|phase| has(["l1", "l2", "l3"][*phase])).collect();
        let phase = phases.first().copied();
        let work = if has("reactive") {
            Work::Reactive
        } else if has("apparent") {
            Work::Apparent
        } else {
            Work::Active
        };
        let unit = unit.map_or("", base_unit);
        if has("unbalance") {
            return Self::Unbalance(has("voltage"));
        }
        if has("thd") {
            return Self::Distortion;
        }
        if has("angle") {
            return Self::Angle;
        }
        if name.contains("power_factor") || name.contains("cos_phi") {
            return Self::PowerFactor;
        }
        if has("voltage") || unit == "V" {
            return match phases.as_slice() {
                [from, to] if !has("n") => Self::LineVoltage((*from).min(*to), (*from).max(*to)),
                [phase, ..] => Self::Voltage(*phase),
                [] if has("ll") => Self::MeanVoltage(true),
                [] => Self::MeanVoltage(false),
            };
        }
        if has("current") || unit == "A" {
            return match phase {
                Some(phase) => Self::Current(phase),
                None if has("n") || has("neutral") || has("vector") => Self::NeutralCurrent,
                None if has("total") || has("sum") => Self::TotalCurrent,
                None if has("avg") => Self::MeanCurrent,
                None => Self::Current(0),
            };
        }
        if has("frequency") || unit == "Hz" {
            return Self::Frequency;
        }
        let work = match unit {
            "var" | "varh" => Work::Reactive,
            "VA" | "VAh" => Work::Apparent,
            _ => work,
        };
        if has("energy") || matches!(unit, "Wh" | "varh" | "VAh") {
            let flow = if has("export") {
                Flow::Export
            } else if has("total") {
                Flow::Total
            } else {
                Flow::Import
            };
            return Self::Energy(work, flow, tariff(&tokens));
        }
        if has("power") || matches!(unit, "W" | "var" | "VA") {
            return Self::Power(work, phase);
        }
        match kind {
            Kind::Counter => Self::Minutes,
            Kind::Gauge => Self::Other,
            Kind::State => Self::On,
            Kind::Text => Self::Serial,
        }
    }

    /// Its value in V, A, W, var, VA, Hz, Wh, degrees, or as a ratio; 0 for text. `phase` is the phase in
    /// the metric's name, for energies.
    #[must_use]
    pub fn measure(self, load: &Load, time: Timestamp, phase: Option<usize>) -> f64 {
        let sine = (1.0 - load.power_factor * load.power_factor).sqrt();
        let of = |work: Work, active: f64| match work {
            Work::Active => active,
            Work::Reactive => active * sine / load.power_factor,
            Work::Apparent => active / load.power_factor,
        };
        let at = |values: &[f64; 3], phase: usize| values.get(phase).copied().unwrap_or(0.0);
        let mean = |values: &[f64; 3]| values.iter().sum::<f64>() / 3.0;
        let between = |a: f64, b: f64| (a * a + b * b + a * b).sqrt();
        let [u1, u2, u3] = load.voltage;
        let [i1, i2, i3] = load.current;
        match self {
            Self::Voltage(phase) => at(&load.voltage, phase),
            Self::LineVoltage(from, to) => between(at(&load.voltage, from), at(&load.voltage, to)),
            Self::MeanVoltage(false) => mean(&load.voltage),
            Self::MeanVoltage(true) => mean(&[between(u1, u2), between(u2, u3), between(u3, u1)]),
            Self::Current(phase) => at(&load.current, phase),
            Self::MeanCurrent => mean(&load.current),
            Self::TotalCurrent => load.current.iter().sum(),
            Self::NeutralCurrent => {
                let sum = i1 * i1 + i2 * i2 + i3 * i3 - i1 * i2 - i2 * i3 - i3 * i1;
                sum.max(0.0).sqrt()
            }
            Self::Power(work, Some(phase)) => of(work, at(&load.active, phase)),
            Self::Power(work, None) => of(work, load.active.iter().sum()),
            Self::PowerFactor => load.power_factor,
            Self::Angle => load.power_factor.acos().to_degrees(),
            Self::Frequency => load.frequency,
            Self::Unbalance(voltage) => {
                let values = if voltage { &load.voltage } else { &load.current };
                let mean = mean(values);
                values
                    .iter()
                    .map(|value| (value - mean).abs() / mean)
                    .fold(0.0, f64::max)
            }
            Self::Distortion => 0.02 + 0.005 * (u1 / mean(&load.voltage)),
            Self::Energy(work, flow, tariff) => {
                let share = phase.map_or(1.0, |phase| at(&load.shares, phase)) * tariff;
                let imported = of(work, load.energy * share);
                match flow {
                    Flow::Import => imported,
                    Flow::Export => EXPORTED,
                    Flow::Total => imported + EXPORTED,
                }
            }
            Self::Minutes => (time.0.saturating_sub(COMMISSIONED.0).max(0) / 60_000) as f64,
            Self::Other => 20.0 + 5.0 * (load.voltage[0] - mean(&load.voltage)) / mean(&load.voltage),
            Self::On => 1.0,
            Self::Serial => 0.0,
        }
    }
}

/// The phase in a metric's name.
#[must_use]
pub fn phase_of(name: &str) -> Option<usize> {
    let phases = ["l1", "l2", "l3"];
    name.split('_')
        .find_map(|token| phases.iter().position(|phase| *phase == token))
}

/// The share of the energy that a tariff in the name has.
fn tariff(tokens: &[&str]) -> f64 {
    let shares = [("t1", 0.6), ("t2", 0.3), ("t3", 0.08), ("t4", 0.02)];
    shares
        .into_iter()
        .find(|(tariff, _)| tokens.contains(tariff))
        .map_or(1.0, |(_, share)| share)
}

/// A unit without its prefix: `kWh` is `Wh`.
fn base_unit(unit: &str) -> &str {
    split(unit).1
}

/// What a value in the base unit is multiplied by to be in `unit`.
#[must_use]
pub fn per_unit(unit: Option<&str>) -> f64 {
    split(unit.unwrap_or("")).0
}

fn split(unit: &str) -> (f64, &str) {
    if unit == "%" {
        return (100.0, "");
    }
    for (prefix, factor) in [("m", 1e3), ("k", 1e-3), ("M", 1e-6), ("G", 1e-9)] {
        if let Some(base) = unit.strip_prefix(prefix)
            && matches!(
                base,
                "V" | "A" | "W" | "var" | "VA" | "Hz" | "Wh" | "varh" | "VAh"
            )
        {
            return (factor, base);
        }
    }
    (1.0, unit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curve::{Curve, Grid, Phases};

    #[test]
    fn names_of_the_library_are_understood() {
        use Quantity as Q;
        for (name, unit, quantity) in [
            ("voltage_l2_n", "V", Q::Voltage(1)),
            ("voltage_l3_l1", "V", Q::LineVoltage(0, 2)),
            ("voltage_ln_avg", "V", Q::MeanVoltage(false)),
            ("voltage_ll_avg", "V", Q::MeanVoltage(true)),
            ("voltage_thd_l1_n", "%", Q::Distortion),
            ("voltage_unbalance", "1", Q::Unbalance(true)),
            ("current_unbalance", "1", Q::Unbalance(false)),
            ("current_l3", "A", Q::Current(2)),
            ("current_avg", "A", Q::MeanCurrent),
            ("current_total", "A", Q::TotalCurrent),
            ("current_n", "A", Q::NeutralCurrent),
            ("current_vector_sum", "A", Q::NeutralCurrent),
            ("active_power_total", "W", Q::Power(Work::Active, None)),
            ("reactive_power_l1", "var", Q::Power(Work::Reactive, Some(0))),
            ("apparent_power_total", "VA", Q::Power(Work::Apparent, None)),
            ("power_factor_total", "1", Q::PowerFactor),
            ("phase_angle_total", "deg", Q::Angle),
            ("frequency", "Hz", Q::Frequency),
            (
                "energy_active_import",
                "Wh",
                Q::Energy(Work::Active, Flow::Import, 1.0),
            ),
            (
                "energy_reactive_export_t1",
                "varh",
                Q::Energy(Work::Reactive, Flow::Export, 0.6),
            ),
            (
                "energy_apparent",
                "VAh",
                Q::Energy(Work::Apparent, Flow::Import, 1.0),
            ),
            (
                "energy_active_total",
                "Wh",
                Q::Energy(Work::Active, Flow::Total, 1.0),
            ),
            ("oil_temperature", "degC", Q::Other),
            // By unit alone.
            ("p_sum", "kW", Q::Power(Work::Active, None)),
            ("meter_reading", "MWh", Q::Energy(Work::Active, Flow::Import, 1.0)),
        ] {
            assert_eq!(Quantity::of(name, Some(unit), Kind::Gauge), quantity, "{name}");
        }
        assert_eq!(Quantity::of("starts", None, Kind::Counter), Q::Minutes);
        assert_eq!(Quantity::of("serial_number", None, Kind::Text), Q::Serial);
        assert_eq!(Quantity::of("breaker_closed", None, Kind::State), Q::On);
        assert_eq!(phase_of("energy_active_import_l3"), Some(2));
        assert_eq!(phase_of("energy_active_import"), None);
    }

    #[test]
    fn units_have_prefixes() {
        for (unit, factor) in [
            ("W", 1.0),
            ("kWh", 1e-3),
            ("MVA", 1e-6),
            ("mA", 1e3),
            ("%", 100.0),
            ("min", 1.0),
        ] {
            assert_eq!(per_unit(Some(unit)), factor, "{unit}");
        }
        assert_eq!(per_unit(None), 1.0);
    }

    #[test]
    fn quantities_agree_with_each_other() {
        let time = Timestamp(COMMISSIONED.0 + 86_400_000);
        let load = Curve::new("m", Phases::Three, Grid::default()).at(time);
        let measure = |q: Quantity| q.measure(&load, time, None);
        let power = |work| measure(Quantity::Power(work, None));
        let (p, q, s) = (power(Work::Active), power(Work::Reactive), power(Work::Apparent));
        assert!((p.hypot(q) - s).abs() < 1e-6 * s, "{p} {q} {s}");
        assert!((p / s - measure(Quantity::PowerFactor)).abs() < 1e-9);
        let line = measure(Quantity::LineVoltage(0, 1));
        assert!((390.0..410.0).contains(&line), "{line}");
        let energy = |phase| Quantity::Energy(Work::Active, Flow::Import, 1.0).measure(&load, time, phase);
        let phases: f64 = (0..3).map(|phase| energy(Some(phase))).sum();
        assert!((phases - energy(None)).abs() < 1e-6 * phases);
        assert!(measure(Quantity::NeutralCurrent) < load.current[0]);
    }
}
