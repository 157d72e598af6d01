//! One live meter among silent ones, behind a gateway that does everything to keep it from answering.

use std::time::Duration;

use corrente_record::Quality;
use corrente_simulator::{Effect, Fault, Faults, faults::Beyond};

use crate::plant::{Line, Polling, assert_every_slot, config, serve, since_good};

const LIVE: u8 = 17;
const SLOTS: usize = 12;

/// The gateway holds its line for a second at every silent unit, and takes one connection.
async fn the_live_one_has_every_slot(transport: &'static str, exception: Option<u8>) {
    let units: Vec<u8> = (1..=32).collect();
    let silent = units.iter().copied().filter(|unit| *unit != LIVE);
    let mut config = config(&[Line("gw", transport, units.clone())], "2s", "500ms");
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
    for unit in units.iter().filter(|unit| **unit != LIVE) {
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
    the_live_one_has_every_slot("tcp", Some(0x0b)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_live_one_of_32_has_every_slot_where_the_gateway_says_nothing() {
    the_live_one_has_every_slot("tcp", None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_live_one_of_32_has_every_slot_over_rtu() {
    the_live_one_has_every_slot("rtu-over-tcp", None).await;
}
