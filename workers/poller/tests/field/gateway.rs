//! One live meter among silent ones, behind a gateway that does everything to keep it from answering.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use corrente_config::PollerConfig;
use corrente_record::Quality;
use corrente_simulator::{Effect, Fault, Faults, faults::Beyond};

use crate::plant::{ADDRESSES, Line, Polling, assert_every_slot, config, serve, since_good, truth};

const LIVE: u8 = 17;
const SLOTS: usize = 12;

/// The gateway holds its line for a second at every silent unit, and takes one connection.
async fn the_live_one_has_every_slot(transport: &'static str, exception: Option<u8>, timeout: &str) {
    let units: Vec<u8> = (1..=32).collect();
    let silent = units.iter().copied().filter(|unit| *unit != LIVE);
    let mut config = config(&[Line("gw", transport, units.clone())], "2s", timeout);
    let faults = Faults::new(1)
        .with(Fault::new(Effect::Silence).units(silent))
        .with(Fault::new(Effect::Gateway {
            timeout: Duration::from_secs(1),
            exception,
        }))
        .with(Fault::new(Effect::Connections {
            limit: 1,
            beyond: Beyond::Refuse,
        }));
    let _served = serve(&mut config, faults).await;
    assert_live_one(config).await;
}

/// Polls until the live one has had its slots, and sees that none was left out.
async fn assert_live_one(config: PollerConfig) {
    let mut polling = Polling::start(config);
    let live = format!("gw-{LIVE}");
    polling
        .until(|seen| {
            seen.get(&live)
                .is_some_and(|records| since_good(records).len() >= SLOTS)
        })
        .await;
    let records = since_good(polling.of(&live));
    assert_every_slot("the live one", records, 2000);
    // The others are accounted for as well: a record of each slot that they had, and why it holds nothing.
    for unit in (1..=32).filter(|unit| *unit != LIVE) {
        let silent = polling.of(&format!("gw-{unit}"));
        assert!(
            silent
                .iter()
                .all(|record| record.quality == Some(Quality::Failed))
        );
        assert!(silent.iter().all(|record| record.bad.is_some()));
    }
    polling.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_live_one_of_32_has_every_slot_over_tcp() {
    the_live_one_has_every_slot("tcp", Some(0x0b), "1500ms").await;
}

/// The poller waits half as long as the gateway, so that its next question finds the line held.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_live_one_of_32_has_every_slot_over_tcp_though_the_gateway_waits_longer() {
    the_live_one_has_every_slot("tcp", None, "500ms").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_live_one_of_32_has_every_slot_over_rtu() {
    the_live_one_has_every_slot("rtu-over-tcp", None, "500ms").await;
}

/// A process that does not outlive the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = (self.0.kill(), self.0.wait());
    }
}

/// The same with meters of another make: pymodbus, which holds its line as the gateway does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs pymodbus: bring the stack up with `e2e/stack.sh up` and export what `e2e/stack.sh env` prints"]
async fn the_live_one_of_32_has_every_slot_behind_pymodbus() {
    let python = std::env::var("CORRENTE_PYTHON").expect("CORRENTE_PYTHON names a Python that has pymodbus");
    let units: Vec<u8> = (1..=32).collect();
    let mut config = config(&[Line("gw", "tcp", units)], "2s", "1500ms");
    let holding: BTreeMap<String, i64> = ADDRESSES
        .iter()
        .map(|at| (at.to_string(), truth(LIVE, *at)))
        .collect();
    let meters = serde_json::json!([{
        "name": "gw", "host": "127.0.0.1", "port": 0, "missing": "gateway", "hold": 1, "most": 1,
        "units": [{"unit": LIVE, "registers": {"holding": holding}}],
    }]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("meters.json");
    std::fs::write(&file, meters.to_string()).unwrap();
    let mut meters = Killed(
        Command::new(python)
            .arg(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/../../e2e/pymodbus/meters.py"
            ))
            .args([&file, &folder.path().join("trace.jsonl")])
            .arg("--with-parent")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut line = String::new();
    BufReader::new(meters.0.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let ports: serde_json::Value = serde_json::from_str(line.strip_prefix("READY ").unwrap()).unwrap();
    config.endpoints[0].address = format!("127.0.0.1:{}", ports["gw"]);
    assert_live_one(config).await;
}
