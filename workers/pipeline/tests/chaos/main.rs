//! Exactly once, by a ledger: pollers with their spools and a producer of known stream and seq write, workers
//! store, and everything between is killed, stopped, frozen, cut off and grown, at random.
//!
//! 1. [`servers`]: a Kafka broker and a PostgreSQL of the test's own, so that both can be killed.
//! 2. [`producers`]: real pollers that read simulated meters, and a feeder whose streams, seqs and bad records
//!    are known.
//! 3. [`plan`]: what is done to them, by a seed that is printed.
//! 4. [`plant`]: carries it out.
//! 5. [`ledger`]: what every spool and stream acknowledged is in the table or among the dead letters, each once.
//!
//! `DISTURBANCES` says how many there are (12 where it is not set), `SEED` makes them those of an earlier run.

// The lints know helpers of a test as tests only within a test's own crate.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod ledger;
mod plan;
mod plant;
mod producers;
// The other tests have them too, with files of their own in the database's folder.
#[allow(dead_code)]
mod servers;

use std::time::Duration;

use plan::Plan;
use plant::Plant;

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is no number: {text}")),
    )
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root, Java and the servers that e2e/install.sh installs"]
async fn whatever_is_killed_each_reading_is_stored_once() {
    let (count, seed) = (
        variable("DISTURBANCES").unwrap_or(12),
        variable("SEED").unwrap_or_else(rand::random),
    );
    println!("{count} disturbances of seed {seed}; the same again: DISTURBANCES={count} SEED={seed}");
    let mut plant = Plant::start().await;
    for (number, (disturbance, pause)) in (1..=count).zip(Plan::new(seed)) {
        println!("{:7.1} s  {number}: {disturbance:?}", plant.seconds());
        plant.suffer(disturbance).await;
        tokio::time::sleep(pause).await;
    }
    plant.settle().await;
    ledger::check(plant, Duration::from_secs(120)).await;
}
