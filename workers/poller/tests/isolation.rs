//! What silent units cost the others of their line, on a clock of our own: a gateway that serves one connection
//! and holds its line for a second at every unit that does not answer.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use corrente_crds::profile::RegisterMap;
use corrente_modbus::{CompiledMap, CostModel, schedule::Slots};
use corrente_poller::{
    PollerState,
    client::{ConnectError, Connector, Exception, ModbusClient, OnRead, ReadBlock, ReadError, Registers},
    clock::Clock,
    endpoint::{self, Surroundings},
    meter::Meter,
    setup::{EndpointSetup, MeterSetup},
    spool::{Limits, Spool, shared::SharedSpool},
};
use corrente_record::{Quality, Reading, Timestamp};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

const EPOCH: i64 = 1_795_213_200_000;
const TIMEOUT: Duration = Duration::from_millis(200);
const ROUND_TRIP: Duration = Duration::from_millis(5);

/// A gateway: one connection, one question at a time.
#[derive(Default)]
struct Plant {
    silent: BTreeSet<u8>,
    /// Answered with exception 0B after this time.
    told: Option<Duration>,
    /// Units that answer every other question or so, and how many they were asked.
    flaky: BTreeMap<u8, u64>,
    /// Units that say they are busy, and how often.
    busy: BTreeMap<u8, u32>,
    hold: Duration,
    /// Until when the line is held by the last question to a silent unit.
    held_until: Option<Instant>,
    away: bool,
    connections: usize,
    asked: Vec<(Instant, ReadBlock)>,
}

#[derive(Clone, Default)]
struct Gateway(Arc<Mutex<Plant>>);

struct Client(Gateway);

impl Connector for Gateway {
    type Client = Client;

    async fn connect(&self, _: bool) -> Result<Client, ConnectError> {
        let mut plant = self.0.lock().unwrap();
        plant.connections += 1;
        if plant.away {
            return Err(ConnectError {
                address: "gateway:502".to_owned(),
                reason: "connection refused".to_owned(),
            });
        }
        Ok(Client(self.clone()))
    }
}

impl ModbusClient for Client {
    async fn read_many(&mut self, blocks: &[ReadBlock], on: &mut OnRead<'_>) {
        for (at, block) in blocks.iter().enumerate() {
            let result = self.one(*block).await;
            let spent = matches!(result, Err(ReadError::Timeout(_) | ReadError::Connection(_)));
            on(at, result);
            if spent {
                return;
            }
        }
    }
}

impl Client {
    async fn one(&mut self, block: ReadBlock) -> Result<Registers, ReadError> {
        let deadline = Instant::now() + TIMEOUT;
        let (free, silent, told, busy) = {
            let mut plant = self.0.0.lock().unwrap();
            plant.asked.push((Instant::now(), block));
            let free = plant.held_until.unwrap_or(deadline - TIMEOUT).max(Instant::now());
            let lost = plant.flaky.get_mut(&block.unit).is_some_and(|asked| {
                *asked += 1;
                // SplitMix64: as good as chance, and the same each time.
                let mixed = (*asked ^ (*asked >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                mixed >> 63 == 1
            });
            let silent = lost || plant.silent.contains(&block.unit);
            if silent && plant.told.is_none() {
                plant.held_until = Some(free + plant.hold);
            }
            let busy = plant.busy.get_mut(&block.unit).is_some_and(|left| {
                *left = left.saturating_sub(1);
                *left > 0
            });
            (free, silent, plant.told, busy)
        };
        let answer = async {
            tokio::time::sleep_until(free).await;
            match (silent, told) {
                (true, None) => std::future::pending().await,
                (true, Some(after)) => {
                    sleep(after).await;
                    Err(ReadError::Exception(Exception(0x0b)))
                }
                _ => {
                    sleep(ROUND_TRIP).await;
                    if busy {
                        return Err(ReadError::Exception(Exception(6)));
                    }
                    Ok(Registers::Words(vec![u16::from(block.unit); block.count.into()]))
                }
            }
        };
        timeout_at(deadline, answer)
            .await
            .unwrap_or(Err(ReadError::Timeout(TIMEOUT)))
    }
}

struct Bench {
    gateway: Gateway,
    readings: Arc<Mutex<Vec<Reading>>>,
    began: Instant,
    /// How far the wall's clock is ahead of where it was.
    step: Arc<Mutex<i64>>,
    shutdown: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Bench {
    /// Meters named after their units, which are polled every `interval`.
    fn start(units: impl IntoIterator<Item = u8>, interval: Duration, plant: Plant) -> Self {
        Self::with_retries(2, units, interval, plant)
    }

    fn with_retries(
        retries: u32,
        units: impl IntoIterator<Item = u8>,
        interval: Duration,
        plant: Plant,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let gateway = Gateway(Arc::new(Mutex::new(plant)));
        let readings: Arc<Mutex<Vec<Reading>>> = Arc::default();
        let (began, step) = (Instant::now(), Arc::new(Mutex::new(0)));
        let clock = {
            let step = step.clone();
            Clock::showing(move || {
                Timestamp(EPOCH + *step.lock().unwrap() + began.elapsed().as_millis() as i64)
            })
        };
        let map: RegisterMap = serde_json::from_value(serde_json::json!({"registers": [
            {"name": "a", "address": 10, "function": "holding", "type": "u16"},
            {"name": "b", "address": 11, "function": "holding", "type": "u16"},
        ]}))
        .unwrap();
        let map = Arc::new(CompiledMap::compile(&map, &[]).unwrap());
        let slots = Slots::new(interval.as_millis() as u64, 0);
        let meters = units.into_iter().enumerate().map(|(index, unit)| MeterSetup {
            index,
            meter: Meter::new(
                &unit.to_string(),
                unit,
                BTreeMap::new(),
                map.clone(),
                CostModel::default(),
            ),
            slots,
        });
        let setup = EndpointSetup {
            name: "e".into(),
            connector: Some(gateway.clone()),
            pause: Duration::ZERO,
            retries,
            timeout: TIMEOUT,
            max_in_flight: 1,
            cost: CostModel::default(),
            meters: meters.collect(),
        };
        let seen = readings.clone();
        let state = PollerState::new(Some(Arc::new(move |reading: &Reading| {
            seen.lock().unwrap().push(reading.clone());
        })));
        let shutdown = CancellationToken::new();
        let around = Surroundings {
            spool: SharedSpool::new(Spool::open(dir.path(), Limits::new(1 << 24)).unwrap()),
            state: Arc::new(state),
            shutdown: shutdown.clone(),
            clock,
        };
        tokio::spawn(endpoint::run(0, setup, around));
        Self {
            gateway,
            readings,
            began,
            step,
            shutdown,
            _dir: dir,
        }
    }

    fn plant(&self) -> std::sync::MutexGuard<'_, Plant> {
        self.gateway.0.lock().unwrap()
    }

    /// A meter's readings, in the order in which they came.
    fn of(&self, unit: u8) -> Vec<Reading> {
        let readings = self.readings.lock().unwrap();
        let own = readings
            .iter()
            .filter(|reading| *reading.meter == unit.to_string());
        own.cloned().collect()
    }

    fn asked(&self, unit: u8) -> Vec<Instant> {
        let asked = self.plant().asked.clone();
        let own = asked.into_iter().filter(|(_, block)| block.unit == unit);
        own.map(|(at, _)| at).collect()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn silent(units: impl IntoIterator<Item = u8>, hold: Duration) -> Plant {
    Plant {
        silent: units.into_iter().collect(),
        hold,
        ..Plant::default()
    }
}

const SECOND: Duration = Duration::from_secs(1);

/// Every slot has a record of its own, and they rise.
fn assert_accounted_for(readings: &[Reading], interval: Duration) {
    let millis = interval.as_millis() as i64;
    for pair in readings.windows(2) {
        let steps = (pair[1].slot.0 - pair[0].slot.0) / millis;
        assert!(steps >= 1, "{:?} after {:?}", pair[1].slot, pair[0].slot);
        assert_eq!(steps, i64::from(pair[1].skipped) + 1, "{:?}", pair[1]);
    }
}

#[tokio::test(start_paused = true)]
async fn one_live_unit_among_31_silent_ones_delivers_in_every_slot() {
    for (live, interval) in [(1u8, 2 * SECOND), (17, 2 * SECOND), (32, 5 * SECOND)] {
        let bench = Bench::start(
            1..=32,
            interval,
            silent((1..=32).filter(|unit| *unit != live), SECOND),
        );
        sleep(200 * interval).await;
        let readings = bench.of(live);
        assert_accounted_for(&readings, interval);
        let first = readings
            .iter()
            .position(|reading| reading.quality == Quality::Good)
            .unwrap();
        assert!(first < 40, "found after {first} slots");
        let rest = &readings[first..];
        assert!(rest.len() >= 200 - first - 2);
        for (place, reading) in rest.iter().enumerate() {
            assert_eq!(
                (reading.quality, reading.skipped),
                (Quality::Good, 0),
                "{reading:?}"
            );
            if place == 0 {
                // It was not known to answer yet, and waited for its turn.
                continue;
            }
            let late = reading.ts.0 - reading.slot.0;
            assert!(late < 300, "{late} ms late in unit {live}");
        }
        for unit in (1..=32).filter(|unit| *unit != live) {
            assert_accounted_for(&bench.of(unit), interval);
            assert!(bench.of(unit).len() >= 198, "each slot has its record");
            let asked = bench.asked(unit);
            assert!(asked.len() >= 3, "unit {unit} was asked {} times", asked.len());
            let pauses: Vec<Duration> = asked.windows(2).map(|pair| pair[1] - pair[0]).collect();
            assert!(
                pauses.iter().all(|pause| *pause >= Duration::from_millis(750)),
                "{pauses:?}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_unit_that_goes_costs_the_others_no_slot_and_is_found_when_it_comes_back() {
    // Each retry would hold the line for another second.
    let bench = Bench::with_retries(0, [1, 2, 3], 2 * SECOND, silent([], SECOND));
    sleep(21 * SECOND).await;
    for unit in [1, 2, 3] {
        assert_eq!(bench.of(unit).len(), 10);
        assert!(
            bench
                .of(unit)
                .iter()
                .all(|reading| reading.quality == Quality::Good)
        );
    }
    bench.plant().silent.insert(2);
    sleep(200 * SECOND).await;
    for unit in [1, 3] {
        let readings = bench.of(unit);
        assert_accounted_for(&readings, 2 * SECOND);
        let bad = readings
            .iter()
            .filter(|reading| reading.quality != Quality::Good)
            .count();
        assert_eq!(
            (bad, readings.iter().map(|r| r.skipped).sum::<u32>()),
            (0, 0),
            "unit {unit}"
        );
    }
    assert!(
        bench
            .of(2)
            .iter()
            .rev()
            .take(90)
            .all(|reading| reading.quality == Quality::Failed)
    );
    bench.plant().silent.clear();
    sleep(120 * SECOND).await;
    assert_eq!(bench.of(2).last().unwrap().quality, Quality::Good);
}

#[tokio::test(start_paused = true)]
async fn a_line_without_spare_time_asks_silent_units_for_a_hundredth_of_its_time() {
    // Every 100 ms a healthy unit is due, so that a second is never spare.
    let interval = Duration::from_millis(100);
    let bench = Bench::start(1..=8, interval, silent([3, 5], SECOND));
    sleep(60 * SECOND).await;
    let before = (bench.asked(3).len() + bench.asked(5).len(), bench.of(1).len());
    sleep(2_000 * SECOND).await;
    let asked = bench.asked(3).len() + bench.asked(5).len() - before.0;
    assert!(
        (5..=30).contains(&asked),
        "{asked} questions of a second in 2000 s"
    );
    let readings = bench.of(1);
    assert_accounted_for(&readings, interval);
    let good = readings[before.1..]
        .iter()
        .filter(|reading| reading.quality == Quality::Good)
        .count();
    assert!(good >= 19_600, "{good} of 20000");
    bench.plant().silent.clear();
    sleep(600 * SECOND).await;
    for unit in 1..=8 {
        assert_eq!(
            bench.of(unit).last().unwrap().quality,
            Quality::Good,
            "unit {unit}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_says_who_is_silent_keeps_its_connection() {
    let mut plant = silent([2, 3], Duration::ZERO);
    plant.told = Some(Duration::from_millis(150));
    let bench = Bench::start(1..=3, SECOND, plant);
    sleep(100 * SECOND).await;
    assert_eq!(bench.plant().connections, 1);
    let readings = bench.of(1);
    assert!(readings.len() >= 99 && readings.iter().all(|reading| reading.quality == Quality::Good));
    let bad = bench.of(2).last().unwrap().bad.clone();
    assert!(bad[0].1.contains("0B"), "{bad:?}");
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_is_away_costs_no_connect_attempt_for_each_meter() {
    let plant = Plant {
        away: true,
        ..Plant::default()
    };
    let bench = Bench::start(1..=50, SECOND, plant);
    sleep(60 * SECOND).await;
    assert!(bench.plant().connections <= 20, "{}", bench.plant().connections);
    for unit in 1..=50 {
        let readings = bench.of(unit);
        assert_accounted_for(&readings, SECOND);
        assert!(readings.len() >= 58, "{}", readings.len());
        assert!(
            readings
                .iter()
                .all(|reading| reading.bad[0].1.contains("connection refused"))
        );
    }
    bench.plant().away = false;
    sleep(30 * SECOND).await;
    assert!((1..=50).all(|unit| bench.of(unit).last().unwrap().quality == Quality::Good));
}

#[tokio::test(start_paused = true)]
async fn a_busy_unit_does_not_hold_the_line() {
    let mut plant = Plant::default();
    plant.busy.insert(1, 3);
    let bench = Bench::start([1, 2], 10 * SECOND, plant);
    sleep(11 * SECOND).await;
    let (first, second) = (&bench.of(1)[0], &bench.of(2)[0]);
    assert_eq!((first.quality, second.quality), (Quality::Good, Quality::Good));
    assert!(second.ts < first.ts, "it went on with the other meanwhile");
    assert!(second.ts.0 - second.slot.0 < 50 && first.ts.0 - first.slot.0 < 500);
}

#[tokio::test(start_paused = true)]
async fn two_meters_of_one_unit_share_its_standing() {
    let bench = Bench::start([7, 7, 8], 5 * SECOND, silent([7], SECOND));
    sleep(300 * SECOND).await;
    let asked = bench.asked(7);
    assert!(asked.len() <= 16, "{}", asked.len());
    assert!(bench.of(7).len() >= 2 * 58, "each of them has its records");
    bench.plant().silent.clear();
    sleep(130 * SECOND).await;
    let readings = bench.of(7);
    assert!(
        readings
            .iter()
            .rev()
            .take(2)
            .all(|reading| reading.quality == Quality::Good)
    );
}

#[tokio::test(start_paused = true)]
async fn slots_rise_when_the_clock_steps_either_way() {
    let bench = Bench::start([1], SECOND, Plant::default());
    for step in [3_500, -7_200, 60_000, -1, 999, -90_000, 300] {
        sleep(5 * SECOND + Duration::from_millis(300)).await;
        *bench.step.lock().unwrap() += step;
    }
    sleep(120 * SECOND).await;
    let readings = bench.of(1);
    assert_accounted_for(&readings, SECOND);
    assert!(readings.iter().any(|reading| reading.skipped >= 3));
    let ahead = Timestamp(EPOCH + *bench.step.lock().unwrap() + bench.began.elapsed().as_millis() as i64);
    let last = readings.last().unwrap();
    assert!(ahead.0 - last.slot.0 <= 1_100, "it goes on");
}

#[tokio::test(start_paused = true)]
async fn a_line_with_too_much_to_do_forgets_nobody() {
    // There is time for twenty of these in a slot.
    let interval = Duration::from_millis(100);
    let bench = Bench::start(1..=50, interval, Plant::default());
    sleep(60 * SECOND).await;
    for unit in 1..=50 {
        let readings = bench.of(unit);
        assert_accounted_for(&readings, interval);
        let good = readings.iter().filter(|reading| reading.quality == Quality::Good);
        let good = good.count();
        assert!(
            (190..=310).contains(&good),
            "unit {unit} was read {good} times of 600"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_unit_that_answers_every_other_question_is_read_in_almost_as_many_slots() {
    for interval in [SECOND, 2 * SECOND, 5 * SECOND, 60 * SECOND] {
        let mut plant = silent([], Duration::from_millis(300));
        plant.flaky.insert(2, 0);
        let bench = Bench::with_retries(0, 1..=3, interval, plant);
        sleep(200 * interval).await;
        for unit in 1..=3 {
            let readings = bench.of(unit);
            assert_accounted_for(&readings, interval);
            let good = readings
                .iter()
                .filter(|reading| reading.quality == Quality::Good)
                .count();
            let least = if unit == 2 { 60 } else { 198 };
            assert!(good >= least, "unit {unit}: {good} of 200 slots of {interval:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_holds_its_line_longer_than_thought_is_found_out_within_a_few_slots() {
    // It turns to what was given up too, so that one silent unit after the other holds the line.
    for hold in 1..=4 {
        for silent_units in [vec![2], vec![2, 4, 5]] {
            let bench = Bench::start(1..=6, 5 * SECOND, silent(silent_units.clone(), hold * SECOND));
            sleep(1000 * SECOND).await;
            for unit in (1..=6).filter(|unit| !silent_units.contains(unit)) {
                let readings = bench.of(unit);
                assert_accounted_for(&readings, 5 * SECOND);
                let bad = readings
                    .iter()
                    .rposition(|reading| (reading.quality, reading.skipped) != (Quality::Good, 0));
                assert!(
                    bad.is_none_or(|last| last < 4),
                    "held for {hold} s by {silent_units:?}: unit {unit} was not read in slot {bad:?}"
                );
            }
        }
    }
}
