//! The poller from end to end within one process: meters, endpoints, spool, and a broker in memory.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use common::{Device, Records, config, four, meter};
use corrente_config::PollerConfig;
use corrente_poller::{
    PollerState,
    spool::{Limits, Spool},
    state::OnReading,
};
use corrente_record::{Quality, Timestamp, Value};
use corrente_runtime::{
    broker::{BrokerError, DeliverySender, Outgoing, Producer, SendError},
    http::Probe,
    memory::MemoryBroker,
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

struct Running {
    state: Arc<PollerState>,
    shutdown: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

fn start(config: PollerConfig, dir: &Path, broker: &MemoryBroker, on_reading: Option<OnReading>) -> Running {
    let state = Arc::new(PollerState::new(on_reading));
    let shutdown = CancellationToken::new();
    let (dir, broker) = (dir.to_owned(), broker.clone());
    let task = tokio::spawn({
        let (state, shutdown) = (state.clone(), shutdown.clone());
        async move {
            let producer = |deliveries| Ok(broker.producer("meters", deliveries));
            corrente_poller::run(config, &dir, producer, state, shutdown).await
        }
    });
    Running {
        state,
        shutdown,
        task,
    }
}

impl Running {
    async fn end(self) {
        self.shutdown.cancel();
        // The promise is five seconds; hanging is what this catches.
        let ended = tokio::time::timeout(Duration::from_secs(5), self.task).await;
        ended.expect("it did not end in time").unwrap().unwrap();
    }
}

fn one_endpoint(device: &Device, meters: &[serde_json::Value]) -> serde_json::Value {
    serde_json::json!([{"name": "e", "address": device.address.to_string(), "meters": meters}])
}

#[tokio::test]
async fn every_slot_becomes_a_record() {
    let (dir, broker, device) = (
        tempfile::tempdir().unwrap(),
        MemoryBroker::new(3),
        Device::tcp().await,
    );
    device.set(1, 10, &[1, 2, 3, 4]);
    let mut records = Records::new(broker.source(&["meters".to_owned()]));
    let seen = Arc::new(Mutex::new(0));
    let counted = seen.clone();
    let on_reading: OnReading = Arc::new(move |_| *counted.lock().unwrap() += 1);
    let before = Timestamp::now();
    let endpoints = one_endpoint(&device, &[meter("m1", 1)]);
    let running = start(config(four(), endpoints), dir.path(), &broker, Some(on_reading));
    let mut slot = None;
    for seq in 1..=5 {
        let record = records.next().await;
        assert_eq!((record.seq, record.quality), (Some(seq), Some(Quality::Good)));
        assert_eq!(record.fields[1], ("b".to_owned(), Value::Int(2)));
        let this = record.slot.unwrap().0;
        assert!(this % 250 == 0 && this > before.0 && record.ts.0 >= this);
        assert!(slot.is_none_or(|slot| this > slot));
        slot = Some(this);
    }
    assert_eq!(running.state.ready(), Ok(()));
    let status = running.state.status();
    assert_eq!(
        status["meters"],
        serde_json::json!({"total": 1, "healthy": 1, "failing": 0})
    );
    assert_eq!(status["endpoints"][0]["connected"], true);
    assert_eq!(status["endpoints"][0]["meters"][0]["quality"], "good");
    let state = running.state.clone();
    running.end().await;
    assert!(state.ready().is_err());
    let report = state.report();
    assert_eq!((report.spool.pending, report.spool.records), (0, report.polls));
    assert_eq!(*seen.lock().unwrap(), report.polls);
    assert_eq!(
        device.asked().len() as u64,
        report.polls,
        "one request for each poll"
    );
    assert_eq!(device.connections(), 1);
}

#[tokio::test]
async fn a_silent_unit_costs_the_others_of_its_line_nothing_but_spare_time() {
    let (dir, broker, device) = (
        tempfile::tempdir().unwrap(),
        MemoryBroker::new(1),
        Device::tcp().await,
    );
    device.set(1, 10, &[1, 2, 3, 4]);
    device.unit(2, |unit| unit.silent = true);
    let mut records = Records::new(broker.source(&["meters".to_owned()]));
    let meters = [meter("dead", 2), meter("live", 1)];
    let config = PollerConfig {
        interval: corrente_crds::Duration::from_millis(600),
        // Long enough for a machine with much to do.
        timeout: corrente_crds::Duration::from_millis(300),
        ..config(four(), one_endpoint(&device, &meters))
    };
    let running = start(config, dir.path(), &broker, None);
    let (mut live, mut dead) = (Vec::new(), Vec::new());
    while live.len() < 12 {
        let record = records.next().await;
        if record.meter == "live" {
            assert_eq!(record.quality, Some(Quality::Good));
            live.push(record.slot.unwrap().0);
        } else {
            assert_eq!(record.quality, Some(Quality::Failed));
            assert!(record.bad.unwrap().contains("no answer within 300 ms"));
            dead.push(record.slot.unwrap().0);
        }
    }
    assert!(live.windows(2).all(|pair| pair[1] > pair[0]));
    assert!(
        dead.len() >= 6,
        "a record for each slot, asked or not: {}",
        dead.len()
    );
    let asked = device.asked().iter().filter(|asked| asked.0 == 2).count();
    assert!(asked < dead.len(), "{asked} probes in {} slots", dead.len());
    let status = running.state.status();
    assert_eq!(
        status["meters"],
        serde_json::json!({"total": 2, "healthy": 1, "failing": 1})
    );
    assert_eq!(status["failingMeters"][0]["name"], "dead");
    assert_eq!(status["failingMeters"][0]["reason"], "no answer within 300 ms");
    // It is asked again, and noticed when it answers.
    device.set(2, 10, &[5, 6, 7, 8]);
    device.unit(2, |unit| unit.silent = false);
    records
        .find(|record| record.meter == "dead" && record.quality == Some(Quality::Good))
        .await;
    running.end().await;
}

#[tokio::test]
async fn an_endpoint_that_is_away_makes_failed_records_and_comes_back() {
    let (dir, broker) = (tempfile::tempdir().unwrap(), MemoryBroker::new(1));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let other = Device::tcp().await;
    other.set(1, 10, &[1, 2, 3, 4]);
    let endpoints = serde_json::json!([
        {"name": "away", "address": address.to_string(), "meters": [meter("m1", 1), meter("m2", 2)]},
        {"name": "there", "address": other.address.to_string(), "meters": [meter("m3", 1)]},
    ]);
    let mut records = Records::new(broker.source(&["meters".to_owned()]));
    let running = start(config(four(), endpoints), dir.path(), &broker, None);
    for _ in 0..2 {
        for name in ["m1", "m2"] {
            let record = records.find(|record| record.meter == name).await;
            assert_eq!(record.quality, Some(Quality::Failed));
            assert!(record.bad.unwrap().contains("connection refused"));
        }
        let record = records.find(|record| record.meter == "m3").await;
        assert_eq!(record.quality, Some(Quality::Good));
    }
    assert_eq!(
        running.state.ready(),
        Ok(()),
        "a dead gateway makes no pod unready"
    );
    let back = Device::serve(TcpListener::bind(address).await.unwrap(), false);
    back.set(1, 10, &[1, 2, 3, 4]);
    back.set(2, 10, &[1, 2, 3, 4]);
    for name in ["m1", "m2"] {
        records
            .find(|record| record.meter == name && record.quality == Some(Quality::Good))
            .await;
    }
    running.end().await;
}

#[tokio::test]
async fn a_meter_that_cannot_be_polled_is_named_and_the_others_are_polled() {
    let (dir, broker, device) = (
        tempfile::tempdir().unwrap(),
        MemoryBroker::new(1),
        Device::tcp().await,
    );
    device.set(1, 10, &[1, 2, 3, 4]);
    let meters = [
        meter("m1", 1),
        serde_json::json!({"name": "m2", "unitId": 2, "registerMap": "none"}),
        serde_json::json!({"name": "m3", "unitId": 3, "registerMap": "m", "metrics": ["z"]}),
    ];
    let mut config = config(four(), one_endpoint(&device, &meters));
    config.endpoints.push(config.endpoints[0].clone());
    config.endpoints[1].address = "no address:x".to_owned();
    let mut records = Records::new(broker.source(&["meters".to_owned()]));
    let running = start(config, dir.path(), &broker, None);
    records.find(|record| record.meter == "m1").await;
    let report = running.state.report();
    let reasons: Vec<_> = report
        .failing_meters
        .iter()
        .map(|meter| meter.reason.as_str())
        .collect();
    assert_eq!((report.meters.total, report.meters.failing), (6, 5));
    assert!(
        reasons
            .iter()
            .any(|reason| reason.contains("no register map \"map/none\"")),
        "{reasons:?}"
    );
    assert!(
        reasons
            .iter()
            .any(|reason| reason.contains("z: the register map has no such metric"))
    );
    assert!(
        reasons
            .iter()
            .any(|reason| reason.contains("\"no address:x\" is not an address"))
    );
    running.end().await;
}

/// A producer that takes everything and never says what became of it.
struct Mute {
    _deliveries: DeliverySender,
}

fn mute(deliveries: DeliverySender) -> anyhow::Result<Mute> {
    Ok(Mute {
        _deliveries: deliveries,
    })
}

impl Producer for Mute {
    async fn partitions(&self) -> Result<i32, BrokerError> {
        Ok(1)
    }

    fn send(&self, _: Outgoing) -> Result<(), SendError> {
        Ok(())
    }

    async fn flush(&self, _: Duration) {}
}

#[tokio::test]
async fn a_killed_poller_loses_nothing_that_was_acknowledged() {
    let (dir, device) = (tempfile::tempdir().unwrap(), Device::tcp().await);
    device.set(1, 10, &[1, 2, 3, 4]);
    let config = config(four(), one_endpoint(&device, &[meter("m1", 1)]));
    let (sender, mut readings) = tokio::sync::mpsc::unbounded_channel();
    let on_reading: OnReading = Arc::new(move |reading| {
        let _ = sender.send(reading.slot);
    });
    let mut slots = Vec::new();
    {
        // A runtime of its own, so that its end is the end of every task, at once and without a word.
        let doomed = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .unwrap();
        let (config, path) = (config.clone(), dir.path().to_owned());
        doomed.spawn(async move {
            let state = Arc::new(PollerState::new(Some(on_reading)));
            corrente_poller::run(config, &path, mute, state, CancellationToken::new()).await
        });
        while slots.len() < 4 {
            slots.push(readings.recv().await.unwrap());
        }
        doomed.shutdown_background();
    }
    while let Some(slot) = readings.recv().await {
        slots.push(slot);
    }
    // A sync that was under way ends on a thread of its own, and has the spool until then.
    while Spool::open(dir.path(), Limits::new(1 << 24)).is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let broker = MemoryBroker::new(1);
    let mut records = Records::new(broker.source(&["meters".to_owned()]));
    let running = start(config, dir.path(), &broker, None);
    let mut stored = BTreeMap::new();
    for seq in 1..=slots.len() as u64 + 2 {
        let record = records.next().await;
        assert_eq!(record.seq, Some(seq));
        assert!(stored.insert(record.slot.unwrap(), seq).is_none(), "a slot twice");
    }
    assert!(
        slots.iter().all(|slot| stored.contains_key(slot)),
        "{slots:?} {stored:?}"
    );
    running.end().await;
}

#[tokio::test]
async fn the_end_does_not_wait_for_a_device_that_does_not_answer() {
    let (dir, broker, device) = (
        tempfile::tempdir().unwrap(),
        MemoryBroker::new(1),
        Device::tcp().await,
    );
    device.unit(1, |unit| unit.silent = true);
    let mut config = config(four(), one_endpoint(&device, &[meter("m1", 1)]));
    config.timeout = corrente_crds::Duration::from_secs(60);
    let running = start(config, dir.path(), &broker, None);
    while device.plant.lock().unwrap().asked.is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    running.end().await;
    assert_eq!(device.asked().len(), 1);
}

#[tokio::test]
async fn a_broker_that_never_answers_does_not_hold_up_the_end() {
    let (dir, device) = (tempfile::tempdir().unwrap(), Device::tcp().await);
    device.set(1, 10, &[1, 2, 3, 4]);
    let config = config(four(), one_endpoint(&device, &[meter("m1", 1)]));
    let (state, shutdown) = (Arc::new(PollerState::new(None)), CancellationToken::new());
    let task = tokio::spawn({
        let (state, shutdown, path) = (state.clone(), shutdown.clone(), dir.path().to_owned());
        async move { corrente_poller::run(config, &path, mute, state, shutdown).await }
    });
    while state.report().spool.records == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Running {
        state: state.clone(),
        shutdown,
        task,
    }
    .end()
    .await;
    let report = state.report().spool;
    assert_eq!(report.pending, report.records, "it is all still in the spool");
}
