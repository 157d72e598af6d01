//! What requests cost, measured: a straight line through the round trips seen, cost = overhead + registers.
//!
//! 1. Every answered request is a point: how many registers it carried, and how long it took.
//! 2. The line through them is fitted by least squares. Old points are forgotten, so that a line that changes is
//!    followed; a point far off the line, such as a lost packet sent again, counts for little (Huber's weights).
//! 3. Where all requests are about as long, their slope says nothing. The slope then leans on the assumed model,
//!    scaled to what the requests took.
//! 4. A read plan depends on one number: how many registers may be read along rather than asking twice. Only
//!    where that number has changed materially is a new plan worth making; see [`Estimator::revised`]. It is never
//!    less than what a request takes on the wire.

use crate::plan::CostModel;

/// How many points the past counts for, at most.
const MEMORY: f64 = 400.0;
/// Points before the line is believed.
const ENOUGH: u64 = 50;
/// How strongly the slope leans on the assumed one, as the squared spread of register counts that would count
/// as much.
const LEAN: f64 = 400.0;
/// Beyond so many mean deviations a point counts for less.
const OUTLYING: f64 = 3.0;
/// Of the first points, those so many times as slow as usual are accidents.
const ACCIDENT: f64 = 5.0;
/// A plan is made anew where the registers worth reading along have changed by this factor.
const MATERIAL: f64 = 1.5;
/// A request and its answer carry as much without registers as with so many: 20 characters on a serial line, of which
/// a register takes 2 (see [`CostModel::serial`]), and more over TCP.
const OVERHEAD: u64 = 10;
/// No request is longer, so that no gap beyond it is worth a thought.
const LONGEST: f64 = 125.0;

/// Measures one endpoint.
#[derive(Clone, Debug)]
pub struct Estimator {
    assumed: CostModel,
    in_use: CostModel,
    seen: u64,
    since_revision: u64,
    weight: f64,
    registers: f64,
    micros: f64,
    squares: f64,
    products: f64,
    /// How far off the line points usually are.
    deviation: f64,
    /// The first points, until there are enough.
    first: Vec<(f64, f64)>,
}

impl Estimator {
    /// Nothing measured yet: the assumption holds.
    #[must_use]
    pub fn new(assumed: CostModel) -> Self {
        Self {
            assumed,
            in_use: assumed,
            seen: 0,
            since_revision: 0,
            weight: 0.0,
            registers: 0.0,
            micros: 0.0,
            squares: 0.0,
            products: 0.0,
            deviation: 0.0,
            first: Vec::new(),
        }
    }

    /// A request that carried so many registers (see [`crate::plan::carried`]) was answered after so many
    /// microseconds.
    pub fn observe(&mut self, registers: u32, micros: u64) {
        self.seen += 1;
        self.since_revision += 1;
        let point = (f64::from(registers), micros as f64);
        if self.seen > ENOUGH {
            self.weigh(point);
            return;
        }
        self.first.push(point);
        if self.seen == ENOUGH {
            self.begin();
        }
    }

    /// The first points have no line to be far off from yet. They are compared with what was assumed: all off by
    /// the same factor is the endpoint, one off by several times that factor is an accident.
    fn begin(&mut self) {
        let first = std::mem::take(&mut self.first);
        let factor = |&(x, y): &(f64, f64)| y / self.assumed_micros(x);
        let mut factors: Vec<f64> = first.iter().map(factor).collect();
        factors.sort_by(f64::total_cmp);
        let usual = factors.get(factors.len() / 2).copied().unwrap_or(1.0);
        let usable: Vec<(f64, f64)> = first
            .iter()
            .filter(|point| factor(point) <= ACCIDENT * usual)
            .copied()
            .collect();
        for point in &usable {
            self.add(*point, 1.0);
        }
        let off: f64 = usable.iter().map(|point| self.off(*point)).sum();
        self.deviation = off / (usable.len().max(1) as f64);
    }

    fn weigh(&mut self, point: (f64, f64)) {
        let off = self.off(point);
        // A deviation of nothing would make an outlier of every point that is not exactly on the line.
        let usual = self.deviation.max(1.0);
        self.add(point, (OUTLYING * usual / off.max(1.0)).min(1.0));
        // Bounded, so that one outlier does not excuse the next; it grows where all points are far off.
        self.deviation += (off.min(5.0 * usual) - self.deviation) / 50.0;
    }

    fn add(&mut self, (x, y): (f64, f64), weight: f64) {
        let keep = 1.0 - 1.0 / MEMORY;
        for (sum, term) in [
            (&mut self.weight, 1.0),
            (&mut self.registers, x),
            (&mut self.micros, y),
            (&mut self.squares, x * x),
            (&mut self.products, x * y),
        ] {
            *sum = *sum * keep + weight * term;
        }
    }

    fn off(&self, (x, y): (f64, f64)) -> f64 {
        let (overhead, slope) = self.line();
        (y - overhead - slope * x).abs()
    }

    fn assumed_micros(&self, registers: f64) -> f64 {
        (self.assumed.round_trip_micros as f64 + self.assumed.register_micros as f64 * registers).max(1.0)
    }

    /// What requests cost by what was seen; `None` before enough was. The pause is the assumed model's, since it
    /// is no measurement.
    #[must_use]
    pub fn measured(&self) -> Option<CostModel> {
        if self.seen < ENOUGH {
            return None;
        }
        let (overhead, slope) = self.line();
        Some(CostModel {
            round_trip_micros: overhead.round() as u64,
            // A whole microsecond would round a fast network's registers to nothing.
            register_micros: slope.round().max(1.0) as u64,
            pause_micros: self.assumed.pause_micros,
        })
    }

    /// The model to plan with from now on, where it has changed enough to be worth new plans.
    pub fn revised(&mut self) -> Option<CostModel> {
        if self.since_revision < ENOUGH {
            return None;
        }
        self.since_revision = 0;
        let measured = at_least_overhead(self.measured()?, self.registers / self.weight);
        let (old, new) = (worth_reading_along(&self.in_use), worth_reading_along(&measured));
        if old.max(new) / old.min(new) < MATERIAL {
            return None;
        }
        self.in_use = measured;
        Some(measured)
    }

    /// Overhead and slope, in microseconds.
    fn line(&self) -> (f64, f64) {
        let (x, y) = (self.registers / self.weight, self.micros / self.weight);
        let lean = self.assumed.register_micros as f64 * y / self.assumed_micros(x);
        let spread = (self.squares / self.weight - x * x).max(0.0) * self.weight;
        let together = self.products - self.registers * y;
        let slope = ((together + LEAN * lean) / (spread + LEAN)).max(0.0);
        let overhead = y - slope * x;
        if overhead > 0.0 {
            (overhead, slope)
        } else {
            (0.0, y / x.max(1.0))
        }
    }
}

/// The same time for a request of so many registers, with no less overhead than there is. Where a slow meter with long
/// requests and a quick one with short ones share a line, the fit has none, and plans would ask for each value alone.
fn at_least_overhead(cost: CostModel, registers: f64) -> CostModel {
    if cost.round_trip_micros >= OVERHEAD.saturating_mul(cost.register_micros) {
        return cost;
    }
    let micros = cost.round_trip_micros as f64 + cost.register_micros as f64 * registers;
    let register = (micros / (OVERHEAD as f64 + registers)).round().max(1.0) as u64;
    CostModel {
        round_trip_micros: OVERHEAD.saturating_mul(register),
        register_micros: register,
        ..cost
    }
}

/// How many registers may be read along rather than asking twice.
fn worth_reading_along(cost: &CostModel) -> f64 {
    let overhead = cost.round_trip_micros.saturating_add(cost.pause_micros) as f64;
    (overhead / (cost.register_micros.max(1) as f64)).clamp(1.0, LONGEST)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fed(points: impl IntoIterator<Item = (u32, u64)>) -> Estimator {
        let mut meter = Estimator::new(CostModel::default());
        for (registers, micros) in points {
            meter.observe(registers, micros);
        }
        meter
    }

    #[test]
    fn says_nothing_before_it_has_seen_enough() {
        let mut meter = fed((0..ENOUGH - 1).map(|_| (10, 5_000)));
        assert_eq!((meter.measured(), meter.revised()), (None, None));
        meter.observe(10, 5_000);
        assert!(meter.measured().is_some());
    }

    #[test]
    fn requests_of_one_length_share_their_time_as_assumed() {
        // 80 registers in 360 us: a tenth of 2000 + 80 * 20.
        let cost = fed((0..200).map(|_| (80, 360))).measured().unwrap();
        assert_eq!((cost.round_trip_micros, cost.register_micros), (200, 2));
    }

    #[test]
    fn a_serial_line_is_found_out_and_planned_for_once() {
        let line = |n: u32| (n, 40_000 + 2_300 * u64::from(n));
        let mut meter = fed((0..300).map(|i| line(1 + i % 60)));
        let cost = meter.measured().unwrap();
        assert!((39_000..41_000).contains(&cost.round_trip_micros), "{cost:?}");
        assert!((2_250..2_350).contains(&cost.register_micros), "{cost:?}");
        assert!(meter.revised().is_some());
        for i in 0..2_000 {
            let (registers, micros) = line(1 + i % 60);
            meter.observe(registers, micros + u64::from(i % 7) * 500);
            assert_eq!(meter.revised(), None, "nothing changed that matters");
        }
        // The gateway is replaced by a faster one.
        let mut revisions = 0;
        for i in 0..4_000u32 {
            meter.observe(1 + i % 60, 1_000 + 10 * u64::from(1 + i % 60));
            revisions += usize::from(meter.revised().is_some());
        }
        let cost = meter.measured().unwrap();
        assert!((900..1_200).contains(&cost.round_trip_micros), "{cost:?}");
        assert!((1..=4).contains(&revisions), "{revisions}");
    }

    #[test]
    fn a_slow_meter_beside_a_quick_one_does_not_make_a_request_of_each_value() {
        let mut line = Estimator::new(CostModel::default());
        for i in 0..600 {
            // 700 ms for a request whatever it asks for, beside 5 ms.
            if i % 2 == 0 {
                line.observe(4, 5_000);
            } else {
                line.observe(100, 800_000);
            }
            if let Some(cost) = line.revised() {
                assert!(cost.round_trip_micros >= 10 * cost.register_micros, "{cost:?}");
            }
        }
        assert!(line.in_use != CostModel::default());
    }

    proptest! {
        #[test]
        fn finds_the_line_through_noise_and_outliers(
            overhead in 300u64..100_000, slope in 1u64..3_000,
            points in prop::collection::vec((1u32..=125, 0u64..100, 0u32..100), 400..600),
        ) {
            let meter = fed(points.iter().map(|&(registers, noise, luck)| {
                let micros = overhead + slope * u64::from(registers) + noise * overhead / 1_000;
                // Two in a hundred were lost and sent again.
                (registers, if luck < 2 { micros + 1_000_000 } else { micros })
            }));
            let cost = meter.measured().unwrap();
            let at = |n: u64| (cost.round_trip_micros + n * cost.register_micros) as f64;
            for n in [20, 60, 110] {
                let truth = (overhead * 105 / 100 + n * slope) as f64;
                prop_assert!((at(n) / truth - 1.0).abs() < 0.35, "{cost:?} at {n}: {} of {truth}", at(n));
            }
        }

        #[test]
        fn is_never_absurd(points in prop::collection::vec((0u32..=125, 0u64..10_000_000), 50..200)) {
            let longest = points.iter().map(|point| point.1).max().unwrap();
            let cost = fed(points).measured().unwrap();
            prop_assert!(cost.round_trip_micros <= longest && cost.register_micros <= longest + 1, "{cost:?}");
        }
    }
}
