//! The readings of a stretch to its windows.
//!
//! A window holds what was after its start and up to its end, `(start, end]`, and is named by its end. What a counter counted
//! between two readings belongs to the time between them: where that crosses an edge it is divided evenly over it.
//!
//! The quality of a counter's window speaks of its energy: *good* where readings cover all of it, though some may be missing
//! in between, since the counter went on counting; *estimated* where part of it was measured over a gap that crosses its
//! edge; *partial* where not all of it is covered, or a reset, a jump or a swap took some away. That of another metric's
//! window speaks of its readings: *good* where all that were expected are there.

use std::collections::BTreeMap;

use corrente_config::derived::SwapConfig;

use super::{
    Sample,
    counter::{self, Reading},
    plan::{Counter, Plan, WindowTable},
    touched::Stretch,
};

/// How good what a window says is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quality {
    /// It is all there.
    Good,
    /// Part of its energy is spread evenly over a gap that crosses its edge.
    Estimated,
    /// Some of it is missing.
    Partial,
}

impl Quality {
    /// The word in the table.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Estimated => "estimated",
            Self::Partial => "partial",
        }
    }
}

/// A window of a metric.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    /// Its end, in milliseconds since the epoch.
    pub end: i64,
    /// The demand: a counter's energy per hour, any other metric's mean.
    pub demand: Option<f64>,
    /// What the counter counted.
    pub energy: Option<f64>,
    /// Mean, least and greatest value, of what is no counter.
    pub mean: Option<f64>,
    /// The least.
    pub min: Option<f64>,
    /// The greatest.
    pub max: Option<f64>,
    /// The last value.
    pub last: Option<f64>,
    /// How many readings of it have the metric.
    pub readings: i32,
    /// How many should have, where that is known.
    pub expected: Option<i32>,
    /// How good it is.
    pub quality: Quality,
    /// How often the counter began again at 0 by itself.
    pub rollovers: i32,
    /// How often it fell, and nothing explains it.
    pub resets: i32,
    /// How often it rose by more than it can.
    pub jumps: i32,
    /// How often the meter was replaced.
    pub swaps: i32,
}

impl Window {
    /// The part of the expected readings that is there, where it is known; at most 1.
    #[must_use]
    pub fn completeness(&self) -> Option<f64> {
        Some((f64::from(self.readings) / f64::from(self.expected?)).min(1.0))
    }
}

/// The end of the window that an instant is in.
#[must_use]
pub fn end_of(at: i64, interval: i64) -> i64 {
    -(-at).div_euclid(interval) * interval
}

/// What windows of a table a stretch from `first` to `last` reaches into: the start of the first and the end of the last.
#[must_use]
pub fn reach(interval: i64, first: i64, last: i64) -> (i64, i64) {
    (end_of(first, interval) - interval, end_of(last, interval))
}

/// How far a stretch reaches: from the first to the last instant whose windows it changes. `before` and `after` are when the
/// readings next to it were, where there are any that a counter goes by.
#[must_use]
pub fn span(stretch: &Stretch, before: Option<i64>, after: Option<i64>) -> (i64, i64) {
    (
        before.map_or(stretch.at.0, |before| stretch.at.0.min(before.saturating_add(1))),
        after.map_or(stretch.at.1, |after| stretch.at.1.max(after)),
    )
}

/// What of a meter's rows must be read to make anew the windows of every table that a span reaches into: those after the
/// first instant and up to the second.
#[must_use]
pub fn hull(plan: &Plan, span: (i64, i64)) -> (i64, i64) {
    let reaches = plan
        .tables
        .iter()
        .map(|table| reach(table.interval, span.0, span.1));
    reaches.fold((span.0.saturating_sub(1), span.1), |hull, reach| {
        (hull.0.min(reach.0), hull.1.max(reach.1))
    })
}

/// A window as it is being filled.
#[derive(Clone, Copy, Debug, Default)]
struct Filling {
    readings: i32,
    sum: f64,
    min: f64,
    max: f64,
    last: Option<f64>,
    energy: Option<f64>,
    covered: i64,
    estimated: bool,
    rollovers: i32,
    resets: i32,
    jumps: i32,
    swaps: i32,
}

impl Filling {
    fn read(&mut self, value: f64) {
        if self.readings == 0 {
            (self.min, self.max) = (value, value);
        }
        self.readings = self.readings.saturating_add(1);
        self.sum += value;
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        self.last = Some(value);
    }
}

/// The windows of one metric (its place in the plan) of a meter, of those that end after `reach.0` and not after `reach.1`.
/// `samples` are in their order: all of that stretch, and for a counter the readings next to it on both sides.
#[must_use]
pub fn windows(
    plan: &Plan,
    table: &WindowTable,
    metric: usize,
    meter: &str,
    samples: &[Sample],
    reach: (i64, i64),
) -> Vec<Window> {
    let mut filling: BTreeMap<i64, Filling> = BTreeMap::new();
    let counter = plan
        .metrics
        .get(metric)
        .and_then(|metric| metric.counter.as_ref());
    let by_serial = counter.is_some_and(|counter| counter.serial.is_some());
    let mut before: Option<Reading<'_>> = None;
    let expected = plan.expected(table, meter);
    let mut readings: Vec<(&Sample, f64, Option<&str>)> = vec![];
    for sample in samples {
        let serial = counter
            .and_then(|counter| sample.serials.get(counter.serial?))
            .and_then(Option::as_deref);
        if let Some(value) = sample.values.get(metric).copied().flatten()
            && (!by_serial || serial.is_some())
        {
            readings.push((sample, value, serial));
        }
    }
    // Of two readings of one instant the greater is the later.
    readings.sort_by(|a, b| {
        a.0.ts
            .cmp(&b.0.ts)
            .then(a.1.total_cmp(&b.1))
            .then(a.0.at.cmp(&b.0.at))
    });
    for (sample, value, serial) in readings {
        filling
            .entry(end_of(sample.at, table.interval))
            .or_default()
            .read(value);
        if let Some(counter) = counter {
            let now = Reading {
                at: sample.at,
                value,
                serial,
            };
            if let Some(before) = &before {
                count(plan, table, counter, meter, before, &now, &mut filling);
            }
            before = Some(now);
        }
    }
    filling
        .range(reach.0 + 1..=reach.1)
        .map(|(end, filled)| finish(*end, filled, counter.is_some(), expected, table.interval))
        .collect()
}

/// Puts what lies between two readings into the windows.
fn count(
    plan: &Plan,
    table: &WindowTable,
    counter: &Counter,
    meter: &str,
    before: &Reading<'_>,
    now: &Reading<'_>,
    filling: &mut BTreeMap<i64, Filling>,
) {
    let config = &counter.config;
    let swaps = plan.swaps.iter().filter(|swap: &&SwapConfig| {
        swap.meter == meter && swap.metric.as_ref().is_none_or(|metric| *metric == config.metric)
    });
    // Longer than this is a gap in the readings, and not only a reading a little beside the edge.
    let usual = table
        .every
        .or_else(|| plan.every.get(meter))
        .and_then(|every| i64::try_from(every).ok())
        .map_or(table.interval, |every| every.saturating_mul(2));
    let mut spread =
        |from: i64, to: i64, energy: f64| self::spread(filling, table.interval, from, to, energy, usual);
    match counter::step(config, config.rollover.get(meter), swaps, before, now) {
        counter::Step::Rise(energy) => spread(before.at, now.at, energy),
        counter::Step::Rollover(energy) => {
            spread(before.at, now.at, energy);
            mark(filling, table, now.at, |filled| &mut filled.rollovers);
        }
        counter::Step::Swap { at, old, new } => {
            let at = at.unwrap_or(now.at);
            if let Some(old) = old {
                spread(before.at, at, old);
            }
            if let Some(new) = new {
                spread(at, now.at, new);
            }
            mark(filling, table, now.at, |filled| &mut filled.swaps);
        }
        counter::Step::Reset => mark(filling, table, now.at, |filled| &mut filled.resets),
        counter::Step::Jump => mark(filling, table, now.at, |filled| &mut filled.jumps),
        counter::Step::Gap => {}
    }
}

fn mark(
    filling: &mut BTreeMap<i64, Filling>,
    table: &WindowTable,
    at: i64,
    count: fn(&mut Filling) -> &mut i32,
) {
    *count(filling.entry(end_of(at, table.interval)).or_default()) += 1;
}

/// Divides energy evenly over the time that it was counted in.
fn spread(filling: &mut BTreeMap<i64, Filling>, interval: i64, from: i64, to: i64, energy: f64, usual: i64) {
    let long = to.saturating_sub(from);
    let last = end_of(to, interval);
    let mut end = end_of(from.saturating_add(1), interval).min(last);
    let whole = end == last;
    while end <= last {
        let filled = filling.entry(end).or_default();
        let covered = (to.min(end) - from.max(end - interval)).max(0);
        let part = if whole {
            energy
        } else {
            energy * covered as f64 / long as f64
        };
        filled.energy = Some(filled.energy.unwrap_or(0.0) + part);
        filled.covered = filled.covered.saturating_add(covered);
        filled.estimated |= !whole && long > usual;
        end += interval;
    }
}

fn finish(end: i64, filled: &Filling, is_counter: bool, expected: Option<i32>, interval: i64) -> Window {
    let mean = (filled.readings > 0).then(|| filled.sum / f64::from(filled.readings));
    let gauge = |value: f64| Some(value).filter(|_| !is_counter && filled.readings > 0);
    let partial = if is_counter {
        filled.covered < interval || filled.resets + filled.jumps > 0
    } else {
        expected.is_some_and(|expected| filled.readings < expected)
    };
    Window {
        end,
        demand: if is_counter {
            filled.energy.map(|energy| energy * 3_600_000.0 / interval as f64)
        } else {
            mean
        },
        energy: filled.energy,
        mean: mean.filter(|_| !is_counter),
        min: gauge(filled.min),
        max: gauge(filled.max),
        last: filled.last,
        readings: filled.readings,
        expected,
        quality: match (filled.estimated, partial) {
            (_, true) => Quality::Partial,
            (true, false) => Quality::Estimated,
            (false, false) => Quality::Good,
        },
        rollovers: filled.rollovers,
        resets: filled.resets,
        jumps: filled.jumps,
        swaps: filled.swaps,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use corrente_config::derived::{CounterConfig, DerivedConfig, PerMeter, WindowsConfig};
    use corrente_record::Timestamp;
    use proptest::prelude::*;

    use super::*;
    use crate::derived::{instant, touched::Touched};

    const MINUTE: i64 = 60_000;
    const QUARTER: i64 = 15 * MINUTE;

    /// A counter and a gauge, in quarters of an hour and hours, read every minute.
    fn plan(serial: bool, longest_gap: i64) -> Plan {
        let table = |name: &str, interval: i64| WindowsConfig {
            table: name.to_owned(),
            interval_millis: interval as u64,
            metrics: vec!["energy".to_owned(), "power".to_owned()],
            expected_every_millis: None,
            retention: None,
        };
        Plan::new(&DerivedConfig {
            windows: vec![table("quarters", QUARTER), table("hours", 4 * QUARTER)],
            counters: vec![CounterConfig {
                metric: "energy".to_owned(),
                rollover: PerMeter::all(1e6),
                most_per_hour: None,
                serial: serial.then(|| "serial".to_owned()),
                longest_gap_millis: longest_gap as u64,
            }],
            swaps: vec![],
            every: PerMeter::all(MINUTE as u64),
        })
    }

    fn sample(at: i64, energy: Option<f64>, power: Option<f64>) -> Sample {
        Sample {
            ts: at,
            at,
            values: vec![energy, power],
            serials: vec![],
        }
    }

    /// A minute's readings from `from` to `to`, of a load of `kw`.
    fn minutes(from: i64, to: i64, kw: f64) -> Vec<Sample> {
        (from..=to)
            .map(|minute| {
                sample(
                    minute * MINUTE,
                    Some(1000.0 + minute as f64 * kw / 60.0),
                    Some(kw),
                )
            })
            .collect()
    }

    fn energy(samples: &[Sample], from: i64, to: i64) -> Vec<Window> {
        let plan = plan(false, 24 * 4 * QUARTER);
        windows(
            &plan,
            &plan.tables[0],
            0,
            "m",
            samples,
            (from * QUARTER, to * QUARTER),
        )
    }

    #[test]
    fn an_instant_is_in_the_window_that_it_ends() {
        for (at, end) in [
            (0, 0),
            (1, QUARTER),
            (QUARTER, QUARTER),
            (QUARTER + 1, 2 * QUARTER),
            (-1, 0),
            (-QUARTER, -QUARTER),
        ] {
            assert_eq!(end_of(at, QUARTER), end);
        }
        assert_eq!(reach(QUARTER, QUARTER, QUARTER + 1), (0, 2 * QUARTER));
        let plan = plan(false, 1);
        assert_eq!(hull(&plan, (QUARTER + 1, 4 * QUARTER)), (0, 4 * QUARTER));
    }

    #[test]
    fn a_steady_load_is_its_demand() {
        let windows = energy(&minutes(0, 45, 60.0), 0, 3);
        assert_eq!(
            windows
                .iter()
                .map(|window| window.end / QUARTER)
                .collect::<Vec<_>>(),
            [1, 2, 3]
        );
        for window in &windows {
            assert_eq!((window.energy, window.demand), (Some(15.0), Some(60.0)));
            assert_eq!(
                (window.readings, window.expected, window.quality),
                (15, Some(15), Quality::Good)
            );
            assert_eq!(window.completeness(), Some(1.0));
        }
        // Readings beside the minute make no estimate of it.
        let beside: Vec<Sample> = minutes(-1, 46, 60.0)
            .into_iter()
            .map(|sample| Sample {
                at: sample.at + 20_000,
                ..sample
            })
            .collect();
        for window in energy(&beside, 0, 3) {
            assert!((window.energy.unwrap() - 15.0).abs() < 1e-9);
            assert_eq!(window.quality, Quality::Good);
        }
    }

    #[test]
    fn a_gap_is_spread_and_said_to_be() {
        let mut samples = minutes(0, 10, 60.0);
        samples.extend(minutes(40, 60, 60.0));
        let windows = energy(&samples, 0, 4);
        assert!(
            windows.iter().all(|window| window.energy == Some(15.0)),
            "{windows:?}"
        );
        let said: Vec<_> = windows
            .iter()
            .map(|window| (window.quality, window.readings))
            .collect();
        // The one that begins it has readings of its own, and what is missing of them is counted by the next one.
        let estimated = Quality::Estimated;
        assert_eq!(
            said,
            [
                (estimated, 10),
                (estimated, 0),
                (estimated, 6),
                (Quality::Good, 15)
            ]
        );
        // Within a window the counter went on counting: nothing is estimated.
        let mut samples = minutes(0, 3, 60.0);
        samples.extend(minutes(12, 15, 60.0));
        let window = &energy(&samples, 0, 1)[0];
        assert_eq!(
            (window.energy, window.quality, window.readings),
            (Some(15.0), Quality::Good, 7)
        );
        assert!(window.completeness().unwrap() < 0.5);
    }

    #[test]
    fn a_reset_invents_nothing_and_says_so() {
        let mut samples = minutes(0, 30, 60.0);
        for sample in &mut samples[20..] {
            *sample.values[0].as_mut().unwrap() -= 1010.0;
        }
        let windows = energy(&samples, 0, 2);
        assert_eq!(
            (windows[0].energy, windows[0].resets, windows[0].quality),
            (Some(15.0), 0, Quality::Good)
        );
        assert_eq!(
            (windows[1].energy, windows[1].resets, windows[1].quality),
            (Some(14.0), 1, Quality::Partial)
        );
    }

    #[test]
    fn a_swap_that_is_known_costs_nothing() {
        let mut plan = plan(true, 24 * 4 * QUARTER);
        let samples: Vec<Sample> = minutes(0, 15, 60.0)
            .into_iter()
            .enumerate()
            .map(|(minute, mut sample)| {
                let new = minute > 7;
                sample.serials = vec![Some(if new { "B" } else { "A" }.to_owned())];
                if new {
                    *sample.values[0].as_mut().unwrap() -= 1007.0;
                }
                sample
            })
            .collect();
        let of = |plan: &Plan| windows(plan, &plan.tables[0], 0, "m", &samples, (0, QUARTER))[0].clone();
        let unknown = of(&plan);
        assert_eq!(
            (unknown.energy, unknown.swaps, unknown.resets),
            (Some(14.0), 1, 0)
        );
        assert_eq!(unknown.quality, Quality::Partial);
        plan.swaps = vec![SwapConfig {
            meter: "m".to_owned(),
            at: Timestamp(7 * MINUTE + 30_000),
            metric: None,
            last: Some(1007.5),
            first: Some(0.5),
        }];
        let known = of(&plan);
        assert_eq!(
            (known.energy, known.swaps, known.quality),
            (Some(15.0), 1, Quality::Good)
        );
    }

    #[test]
    fn what_is_no_counter_has_a_mean() {
        let plan = plan(false, 4 * QUARTER);
        let samples: Vec<Sample> = [(1, 10.0), (5, -4.0), (15, 6.0), (16, 7.0)]
            .map(|(minute, kw)| sample(minute * MINUTE, None, Some(kw)))
            .into();
        let windows = windows(&plan, &plan.tables[0], 1, "m", &samples, (0, 2 * QUARTER));
        let first = &windows[0];
        assert_eq!(
            (first.mean, first.demand, first.energy),
            (Some(4.0), Some(4.0), None)
        );
        assert_eq!(
            (first.min, first.max, first.last),
            (Some(-4.0), Some(10.0), Some(6.0))
        );
        assert_eq!((first.readings, first.quality), (3, Quality::Partial));
        assert_eq!((windows.len(), windows[1].mean), (2, Some(7.0)));
    }

    /// A table as the database has it, and the windows as they stand.
    #[derive(Default)]
    struct Model {
        rows: Vec<Sample>,
        windows: HashMap<(usize, usize, i64), Window>,
    }

    impl Model {
        /// Stores a batch and makes anew what it touched: what the sink does in SQL.
        fn store(&mut self, plan: &Plan, batch: &[Sample]) {
            let mut touched = Touched::default();
            for row in batch {
                touched.add(plan, "m", row.ts, row.at);
                self.rows.push(row.clone());
            }
            self.rows.sort_by(|a, b| {
                (a.ts, a.values[0].map(f64::to_bits)).cmp(&(b.ts, b.values[0].map(f64::to_bits)))
            });
            let Some(stretches) = touched.stretches(plan).remove("m") else {
                return;
            };
            let gap = 3600 * 1000 + super::super::SLOT_SLACK;
            let counts = |row: &&Sample| row.values[0].is_some();
            for stretch in stretches {
                let near = |limit: (i64, i64)| {
                    self.rows
                        .iter()
                        .filter(move |row| limit.0 <= row.ts && row.ts <= limit.1)
                        .filter(counts)
                };
                let before = near((stretch.ts.0 - gap, stretch.ts.0 - 1))
                    .next_back()
                    .map(|row| row.at);
                let after = near((stretch.ts.1 + 1, stretch.ts.1 + gap))
                    .next()
                    .map(|row| row.at);
                let span = span(&stretch, before, after);
                let hull = hull(plan, span);
                let (from, to) = (hull.0, hull.1 + super::super::SLOT_SLACK);
                let mut samples: Vec<Sample> = near((from - gap, from))
                    .next_back()
                    .cloned()
                    .into_iter()
                    .collect();
                samples.extend(
                    self.rows
                        .iter()
                        .filter(|row| from < row.ts && row.ts <= to)
                        .cloned(),
                );
                samples.extend(near((to + 1, to + gap)).next().cloned());
                for (t, table) in plan.tables.iter().enumerate() {
                    for metric in 0..2 {
                        for window in windows(
                            plan,
                            table,
                            metric,
                            "m",
                            &samples,
                            reach(table.interval, span.0, span.1),
                        ) {
                            self.windows.insert((t, metric, window.end), window);
                        }
                    }
                }
            }
        }
    }

    /// Readings of some hours, with gaps, resets, rollovers and slots that were kept or not.
    fn history() -> impl Strategy<Value = Vec<Sample>> {
        let reading = (1i64..40, 0u8..12, 0i64..90_000, any::<bool>());
        proptest::collection::vec(reading, 1..60).prop_map(|readings| {
            let (mut minute, mut counter) = (0, 999_900.0);
            let of = |(apart, what, late, power): (i64, u8, i64, bool)| {
                minute += if what == 0 { apart + 50 } else { apart / 8 + 1 };
                counter += apart as f64 / 7.0;
                if what == 1 {
                    counter = 3.0;
                } else if counter >= 1e6 {
                    counter -= 1e6;
                }
                let slot = minute * MINUTE;
                // Later ones are never read earlier.
                let ts = slot
                    + if what == 2 {
                        late.min(MINUTE - 1)
                    } else {
                        late % 1000
                    };
                let mut sample = sample(ts, (what != 3).then_some(counter), power.then_some(counter / 3.0));
                sample.at = instant(ts, Some(slot));
                sample
            };
            readings.into_iter().map(of).collect()
        })
    }

    proptest! {
        #[test]
        fn windows_do_not_depend_on_the_order_of_the_readings(
            history in history(), keys in proptest::collection::vec(any::<u32>(), 60), size in 1usize..20,
        ) {
            let plan = plan(false, 3_600_000);
            let mut at_once = Model::default();
            at_once.store(&plan, &history);
            let mut in_order = Model::default();
            for batch in history.chunks(size) {
                in_order.store(&plan, batch);
            }
            let mut shuffled: Vec<(u32, Sample)> = keys.into_iter().zip(history).collect();
            shuffled.sort_by_key(|(key, _)| *key);
            let shuffled: Vec<Sample> = shuffled.into_iter().map(|(_, sample)| sample).collect();
            let mut late = Model::default();
            for batch in shuffled.chunks(size) {
                late.store(&plan, batch);
            }
            prop_assert_eq!(&in_order.windows, &at_once.windows);
            prop_assert_eq!(&late.windows, &at_once.windows);
        }

        #[test]
        fn energy_is_neither_lost_nor_made(history in history()) {
            let plan = plan(false, 3_600_000);
            let mut model = Model::default();
            model.store(&plan, &history);
            // What lies between the readings, one after the other, is what the windows hold.
            let readings: Vec<(i64, f64)> = history.iter().filter_map(|row| Some((row.at, row.values[0]?))).collect();
            let mut counted = 0.0;
            for pair in readings.windows(2) {
                let rise = pair[1].1 - pair[0].1;
                let rolled = rise + 1e6;
                counted += match pair[1].0 - pair[0].0 <= 3_600_000 {
                    true if rise >= 0.0 => rise,
                    true if rolled <= 1e5 => rolled,
                    _ => 0.0,
                };
            }
            for table in 0..2 {
                let of = |((t, metric, _), window): (&(usize, usize, i64), &Window)| {
                    window.energy.filter(|_| *t == table && *metric == 0)
                };
                let sum: f64 = model.windows.iter().filter_map(of).sum();
                prop_assert!((sum - counted).abs() < 1e-6, "{} {}", sum, counted);
            }
        }
    }
}
