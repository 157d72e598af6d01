//! One bad register costs one register, and what a meter allows in one read is learned, with real sockets.

use corrente_record::Quality;
use corrente_simulator::{Effect, Fault, Faults};

use crate::{
    plant::{ADDRESSES, Line, Polling, bad, config, serve},
    recorder::Recorder,
};

/// Polls one meter with a fault until its record has been the same for some slots, and gives the last record,
/// and how many requests a poll then takes.
async fn settled(fault: Fault, quality: Quality) -> (corrente_record::Record, f64) {
    let mut config = config(&[Line("gw", "tcp", vec![1])], "500ms", "200ms");
    let served = serve(&mut config, Faults::new(1).with(fault)).await;
    let recorder = Recorder::before(served.addresses["gw"], None).await;
    config.endpoints[0].address = recorder.address.to_string();
    let mut polling = Polling::start(config);
    let same = 4;
    polling
        .until(|seen| {
            let records = seen.get("gw-1").map_or(&[][..], Vec::as_slice);
            records.len() >= same
                && records[records.len() - same..]
                    .iter()
                    .all(|r| r.quality == Some(quality))
        })
        .await;
    let (polls, asked) = (polling.of("gw-1").len(), recorder.requests(false).len());
    polling.until_count("gw-1", polls + 4).await;
    let (polls, asked) = (
        polling.of("gw-1").len() - polls,
        recorder.requests(false).len() - asked,
    );
    let last = polling.of("gw-1").last().unwrap().clone();
    polling.end().await;
    (last, asked as f64 / polls as f64)
}

#[tokio::test]
async fn one_bad_register_costs_one_register() {
    let (last, requests) = settled(
        Fault::new(Effect::Exception(2)).registers(503..=503),
        Quality::Partial,
    )
    .await;
    assert_eq!(bad(&last).keys().collect::<Vec<_>>(), ["r503"]);
    assert_eq!(
        last.fields
            .iter()
            .filter(|(name, _)| name.starts_with('r'))
            .count(),
        ADDRESSES.len() - 1
    );
    // One block, and the other around the bad register; not one request for each value.
    assert!(requests < 5.0, "{requests} requests a poll");
}

#[tokio::test]
async fn what_a_meter_allows_in_one_read_is_learned() {
    let (last, requests) = settled(Fault::new(Effect::Exception(3)).longer_than(6), Quality::Good).await;
    assert_eq!(bad(&last).len(), 0);
    assert!(
        requests < ADDRESSES.len() as f64 / 2.0,
        "{requests} requests a poll"
    );
}
