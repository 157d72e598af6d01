use std::collections::BTreeSet;

use corrente_crds::profile::RegisterMap;
use proptest::prelude::*;

use super::*;

/// What a device refuses. Ranges are of holding registers.
#[derive(Clone, Debug, Default)]
struct Device {
    bad: BTreeSet<u16>,
    most: Option<u16>,
    /// It says nothing rather than that it refuses.
    silent: bool,
    /// It fails with an exception that says nothing about registers.
    fails: bool,
}

impl Device {
    fn answers(&self, request: &ReadRequest) -> bool {
        let mut range = request.address..request.address + request.count;
        self.most.is_none_or(|most| request.count <= most) && !range.any(|at| self.bad.contains(&at))
    }
}

struct Bench {
    learned: Learned,
    device: Device,
    now: Instant,
    /// Address and count of what the last poll asked.
    asked: Vec<(u16, u16)>,
    timeouts: usize,
}

impl Bench {
    fn new(map: serde_json::Value, device: Device) -> Self {
        let map: RegisterMap = serde_json::from_value(map).unwrap();
        let map = Arc::new(CompiledMap::compile(&map, &[]).unwrap());
        Self {
            learned: Learned::new("m1", map, CostModel::default()),
            device,
            now: Instant::now(),
            asked: Vec::new(),
            timeouts: 0,
        }
    }

    /// One poll; returns the values that were read.
    fn poll(&mut self) -> BTreeSet<usize> {
        let (now, why) = (self.now, Cause::from("refused"));
        let mut read = BTreeSet::new();
        self.asked.clear();
        self.timeouts = 0;
        let mut asking = self.learned.begin(Allowance { timeouts: true }, now);
        while let Some(request) = asking.request() {
            self.asked.push((request.address, request.count));
            assert!(self.asked.len() < 200, "it goes on and on: {:?}", self.asked);
            if self.device.answers(request) {
                read.extend(request.values.iter().copied());
                self.learned.answered(&mut asking, now);
            } else if self.device.silent {
                self.timeouts += 1;
                if !self.learned.silent(&mut asking, why.clone(), now) {
                    break;
                }
            } else if self.device.fails {
                self.learned.failed(&mut asking, why.clone(), now);
            } else {
                self.learned.refused(&mut asking, why.clone(), now);
            }
        }
        self.learned.finish(asking, now);
        read
    }

    /// Polls every `step` until nothing more is learned; returns how many polls that took.
    fn settle(&mut self, step: Duration, at_most: usize) -> usize {
        let mut last = None;
        let mut same = 0;
        for poll in 0..at_most {
            self.poll();
            self.now += step;
            let state = (
                self.learned.plan.clone(),
                self.learned.quarantine.len(),
                self.learned.cuts.clone(),
                self.learned.longest.clone(),
            );
            same = if last.as_ref() == Some(&state) {
                same + 1
            } else {
                0
            };
            if same == 4 {
                return poll - 4;
            }
            last = Some(state);
        }
        panic!(
            "after {at_most} polls it still learns: {:?} {:?} {:?}",
            self.learned.plan, self.learned.cuts, self.learned.suspects
        );
    }

    fn left_out(&self) -> BTreeSet<usize> {
        self.learned
            .left_out()
            .iter()
            .map(|left_out| left_out.value)
            .collect()
    }

    /// The values that cannot be read even alone.
    fn hopeless(&self) -> BTreeSet<usize> {
        let parts = 0..self.learned.parts.list.len();
        let alone = |part: &usize| {
            let values = self.learned.parts.values(&[*part]);
            ReadPlan::build_for(&self.learned.map, &values, &CostModel::default()).requests
        };
        let bad = parts.filter(|part| !alone(part).iter().all(|request| self.device.answers(request)));
        bad.flat_map(|part| self.learned.parts.values(&[part])).collect()
    }
}

/// Values as (address, registers).
fn map(values: &[(u16, u16)]) -> serde_json::Value {
    let registers: Vec<_> = values
        .iter()
        .enumerate()
        .map(|(index, (address, count))| {
            let kind = ["", "u16", "u32", "", "u64"][usize::from(*count)];
            serde_json::json!({"name": format!("v{index}"), "address": address, "function": "holding", "type": kind})
        })
        .collect();
    serde_json::json!({"registers": registers})
}

fn row(count: u16) -> serde_json::Value {
    map(&(0..count).map(|at| (at, 1)).collect::<Vec<_>>())
}

fn bad(addresses: &[u16]) -> Device {
    Device {
        bad: addresses.iter().copied().collect(),
        ..Device::default()
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn one_bad_register_is_found_in_one_poll_and_costs_one_value() {
    let mut bench = Bench::new(row(64), bad(&[37]));
    let read = bench.poll();
    assert_eq!((read.len(), bench.left_out()), (63, [37].into()));
    // The block, and two halves of each of six.
    assert_eq!(bench.asked.len(), 13);
    assert_eq!(bench.poll().len(), 63);
    assert_eq!(bench.asked, [(0, 37), (38, 26)]);
    assert!(bench.learned.cuts.is_empty());
}

#[test]
fn a_poll_that_runs_out_of_its_budget_is_gone_on_with_by_the_next() {
    let mut bench = Bench::new(row(100), bad(&[3, 30, 50, 70, 97]));
    let polls = bench.settle(SECOND, 20);
    assert_eq!(bench.left_out(), [3, 30, 50, 70, 97].into());
    assert!((2..10).contains(&polls), "{polls}");
    assert_eq!(bench.poll().len(), 95);
    assert_eq!(bench.asked.len(), 6);
}

#[test]
fn a_gap_that_cannot_be_read_is_spanned_no_more_for_an_hour() {
    let mut bench = Bench::new(map(&[(10, 1), (11, 1), (20, 1), (21, 1)]), bad(&[15]));
    assert_eq!(bench.poll().len(), 4, "all is read the first time already");
    assert_eq!(bench.asked, [(10, 12), (10, 2), (20, 2), (11, 10)]);
    bench.poll();
    assert_eq!(bench.asked, [(10, 2), (20, 2)]);
    bench.device.bad.clear();
    bench.now += RETRY * 2;
    bench.poll();
    assert_eq!(bench.asked, [(10, 2), (20, 2), (11, 10)]);
    bench.poll();
    assert_eq!(bench.asked, [(10, 12)]);
}

#[test]
fn the_longest_read_is_learned_and_tried_again_later() {
    let device = Device {
        most: Some(40),
        ..Device::default()
    };
    let mut bench = Bench::new(row(100), device);
    bench.settle(SECOND, 10);
    assert_eq!(bench.learned.longest().map(|it| it.1).collect::<Vec<_>>(), [40]);
    assert_eq!((bench.poll().len(), bench.asked.len()), (100, 3));
    bench.device.most = None;
    bench.now += RETRY_LENGTH * 2;
    bench.poll();
    assert_eq!(bench.asked, [(0, 100)]);
}

#[test]
fn a_quarantined_register_is_tried_again_alone_after_about_an_hour() {
    let mut bench = Bench::new(row(8), bad(&[2, 5]));
    bench.settle(SECOND, 10);
    let until: Vec<_> = bench
        .learned
        .left_out()
        .iter()
        .map(|it| it.until - it.since)
        .collect();
    assert!(
        until
            .iter()
            .all(|it| (RETRY.mul_f64(0.9)..RETRY.mul_f64(1.1)).contains(it)),
        "{until:?}"
    );
    assert_ne!(until[0], until[1], "not all at once");
    bench.now += RETRY.mul_f64(1.2);
    bench.device.bad = [5].into();
    for _ in 0..2 {
        let planned = bench.learned.plan.requests.len();
        bench.poll();
        assert_eq!(bench.asked.len(), planned + 1, "{:?}", bench.asked);
    }
    assert_eq!(bench.left_out(), [5].into());
    bench.poll();
    assert_eq!(bench.asked, [(0, 5), (6, 2)]);
}

#[test]
fn a_meter_that_refuses_everything_is_asked_one_thing_a_minute() {
    let mut bench = Bench::new(row(4), bad(&[0, 1, 2, 3]));
    bench.poll();
    assert_eq!((bench.asked.len(), bench.left_out().len()), (7, 4));
    for _ in 0..3 {
        bench.poll();
        assert_eq!(bench.asked, []);
        bench.now += RETRY_ALL.mul_f64(1.2);
        bench.poll();
        assert_eq!(bench.asked.len(), 1);
    }
    bench.device.bad.clear();
    bench.now += RETRY_ALL.mul_f64(1.2);
    bench.poll();
    bench.poll();
    assert_eq!((bench.asked.clone(), bench.left_out().len()), (vec![(0, 4)], 0));
}

#[test]
fn the_padding_of_a_read_is_not_held_against_a_value() {
    let mut map = row(4);
    map["limits"] = serde_json::json!({"evenRegisterCount": true});
    let mut bench = Bench::new(map, bad(&[1]));
    for _ in 0..6 {
        bench.poll();
        bench.now += SECOND;
        assert!(
            bench.asked.iter().all(|(_, count)| count % 2 == 0),
            "{:?}",
            bench.asked
        );
    }
    // 0 could be read with what is before it, and there is nothing before it.
    assert_eq!(bench.left_out(), [0, 1].into());
    assert_eq!(bench.poll(), [2, 3].into());
}

#[test]
fn a_silent_register_is_found_at_one_timeout_a_poll_while_the_others_are_read() {
    let mut device = bad(&[40]);
    device.silent = true;
    // The gap keeps two blocks apart, one of them without fault, after the silent one.
    let mut values: Vec<_> = (30..46).map(|at| (at, 1)).collect();
    values.extend((400..404).map(|at| (at, 1)));
    let mut bench = Bench::new(map(&values), device);
    let mut timeouts = 0;
    for poll in 0..60 {
        let read = bench.poll();
        timeouts += bench.timeouts;
        assert!(bench.timeouts <= 1);
        assert!(
            poll == 0 || read.is_superset(&(16..20).collect()),
            "poll {poll}: {read:?}"
        );
        bench.now += 10 * SECOND;
    }
    assert_eq!(bench.left_out(), [10].into());
    assert!((5..12).contains(&timeouts), "{timeouts}");
    assert_eq!(bench.poll().len(), 19);
}

#[test]
fn a_block_that_fails_again_and_again_is_bisected_too() {
    let mut device = bad(&[5]);
    device.fails = true;
    let mut values: Vec<_> = (0..8).map(|at| (at, 1)).collect();
    values.push((300, 1));
    let mut bench = Bench::new(map(&values), device);
    bench.poll();
    bench.poll();
    assert!(
        bench.left_out().is_empty() && bench.learned.cuts.is_empty(),
        "once is no reason"
    );
    bench.settle(SECOND, 40);
    assert_eq!(bench.left_out(), [5].into());
}

#[test]
fn the_limit_of_a_meter_that_came_in_place_of_another_is_learned() {
    let mut bench = Bench::new(row(100), Device::default());
    assert_eq!(bench.poll().len(), 100);
    bench.learned.away();
    bench.device.most = Some(30);
    bench.settle(SECOND, 20);
    assert_eq!(bench.learned.longest().map(|it| it.1).collect::<Vec<_>>(), [30]);
    assert_eq!((bench.poll().len(), bench.asked.len()), (100, 4));
}

#[test]
fn each_part_is_tried_in_its_turn_where_all_was_refused() {
    let mut bench = Bench::new(row(4), bad(&[0, 1, 2, 3]));
    bench.poll();
    assert_eq!(bench.left_out().len(), 4);
    // It was not ready, and now all is fine but for the first.
    bench.device.bad = [0].into();
    for _ in 0..6 {
        bench.now += RETRY_ALL.mul_f64(1.2);
        bench.poll();
    }
    assert_eq!(bench.left_out(), [0].into());
}

#[test]
fn a_suspicion_does_not_outlive_the_request_it_was_about() {
    let mut values: Vec<_> = (0..4).chain(30..34).map(|at| (at, 1)).collect();
    values.push((300, 1));
    let mut bench = Bench::new(map(&values), bad(&[2]));
    bench.device.silent = true;
    bench.poll();
    bench.poll();
    assert!(!bench.learned.suspects.is_empty() && bench.learned.firm == 1);
    // It was an accident, and the next plan does not read the gap along.
    bench.device = Device::default();
    bench.learned.set_cost(CostModel {
        round_trip_micros: 20,
        register_micros: 20,
        pause_micros: 0,
    });
    bench.now += 10 * SECOND;
    bench.poll();
    assert_eq!(bench.poll().len(), 9);
    assert!(bench.learned.is_plain(), "{:?}", bench.learned.suspects);
    assert_eq!(bench.learned.firm, 3);
}

#[test]
fn a_block_that_was_silent_with_the_unit_is_asked_even_where_there_is_no_time_for_timeouts() {
    let mut bench = Bench::new(map(&[(0, 1), (300, 1)]), Device::default());
    let none = Allowance { timeouts: false };
    let mut asking = bench.learned.begin(none, bench.now);
    assert!(!bench.learned.silent(&mut asking, "no answer".into(), bench.now));
    bench.learned.finish(asking, bench.now);
    let mut asking = bench.learned.begin(none, bench.now);
    let mut order = Vec::new();
    while let Some(request) = asking.request() {
        order.push((request.address, asking.is_firm()));
        bench.learned.answered(&mut asking, bench.now);
    }
    assert_eq!(order, [(300, true), (0, false)]);
}

#[test]
fn a_busy_unit_teaches_nothing() {
    let mut bench = Bench::new(map(&[(0, 1), (1, 1), (300, 1)]), Device::default());
    for _ in 0..10 {
        let mut asking = bench.learned.begin(Allowance { timeouts: true }, bench.now);
        bench.learned.busy(&mut asking, bench.now);
        bench.learned.answered(&mut asking, bench.now);
        assert_eq!(asking.request(), None);
        bench.learned.finish(asking, bench.now);
    }
    assert!(bench.learned.is_plain());
}

/// Values, and far away one that is always good.
fn values() -> impl Strategy<Value = Vec<(u16, u16)>> {
    prop::collection::vec((0u16..6, prop::sample::select(vec![1u16, 1, 2, 4])), 1..30).prop_map(|list| {
        let mut at = 0;
        list.into_iter()
            .map(|(gap, count)| {
                // Mostly none.
                at += gap.saturating_sub(3);
                let value = (at, count);
                at += count;
                value
            })
            .chain([(1_000, 1)])
            .collect()
    })
}

proptest! {
    #[test]
    fn the_exact_limit_is_found_within_six_polls(count in 2u16..125, limit in 1u16..125, even in any::<bool>()) {
        let mut map = row(count);
        map["limits"] = serde_json::json!({"evenRegisterCount": even});
        let limit = if even { limit.max(2) & !1 } else { limit };
        let mut bench = Bench::new(map, Device { most: Some(limit), ..Device::default() });
        for _ in 0..6 {
            bench.poll();
            bench.now += SECOND;
            prop_assert!(bench.asked.len() <= usize::from(count.div_ceil(limit)) * 3 + BUDGET as usize);
        }
        prop_assert_eq!(bench.poll().len(), usize::from(count));
        let learned: Vec<u16> = bench.learned.longest().map(|it| it.1).collect();
        let expected = if limit < count { vec![limit] } else { vec![] };
        prop_assert_eq!(learned, expected);
        prop_assert_eq!(bench.asked.len(), usize::from(count.div_ceil(limit)));
    }

    #[test]
    fn every_good_value_is_read_the_bad_ones_alone_are_left_out_and_all_heals(
        values in values(), bad in prop::collection::btree_set(0u16..120, 0..6),
        most in prop::option::of(4u16..60), how in 0..3,
    ) {
        let device = Device { bad, most, silent: how == 1, fails: how == 2 };
        let mut bench = Bench::new(map(&values), device);
        let ideal = bench.learned.plan.clone();
        let hopeless = bench.hopeless();
        let step = if how == 0 { SECOND } else { 70 * SECOND };
        // What is silent or fails altogether says nothing of one register: a block that answers is needed.
        let answers = ideal.requests.iter().any(|request| bench.device.answers(request));
        prop_assume!(how == 0 || answers);
        bench.settle(step, 400);
        prop_assert_eq!(bench.left_out(), hopeless.clone());
        let read = bench.poll();
        let good: BTreeSet<usize> = (0..values.len()).filter(|value| !hopeless.contains(value)).collect();
        prop_assert_eq!(&read, &good);
        prop_assert_eq!(bench.timeouts, 0);
        bench.device = Device::default();
        for _ in 0..100 {
            bench.now += RETRY_LENGTH;
            bench.poll();
        }
        prop_assert_eq!(bench.left_out(), BTreeSet::new());
        prop_assert_eq!(&bench.learned.plan, &ideal);
    }
}
