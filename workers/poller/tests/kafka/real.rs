//! Against a real broker.

use std::time::Duration;

use crate::support::{consume, drained, fill, open, output, publish, stored_by_a_sink, var, with_topic};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kafka broker: set CORRENTE_TEST_KAFKA to its host:port"]
async fn a_real_broker_gets_every_record_once_and_in_order() {
    let bootstrap = var("CORRENTE_TEST_KAFKA");
    let topic = with_topic(&bootstrap, 3).await;
    let output = output(&bootstrap, &topic);
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    fill(&spool, 10_000, 0).await;
    let started = std::time::Instant::now();
    let publishing = publish(&spool, &output, 10_000);
    drained(&spool).await;
    println!("10,000 records published in {:?}", started.elapsed());
    publishing.end().await;
    let partitions = consume(&bootstrap, &topic, 10_000).await;
    assert_eq!(partitions.len(), 3);
    let mut all: Vec<u64> = partitions.values().flatten().copied().collect();
    all.sort_unstable();
    assert_eq!(all, (1..=10_000).collect::<Vec<_>>(), "each once");
    for seqs in partitions.values() {
        assert!(
            seqs.windows(2).all(|pair| pair[0] < pair[1]),
            "in the order of the spool"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kafka broker: set CORRENTE_TEST_KAFKA to its host:port"]
async fn a_publisher_that_is_killed_sends_again_what_a_sink_recognises() {
    let bootstrap = var("CORRENTE_TEST_KAFKA");
    let topic = with_topic(&bootstrap, 3).await;
    let output = output(&bootstrap, &topic);
    let dir = tempfile::tempdir().unwrap();
    let mut kills = 0;
    {
        let spool = open(dir.path());
        fill(&spool, 5_000, 0).await;
    }
    loop {
        let spool = open(dir.path());
        let before = spool.lock().acknowledged();
        if before == 5_000 {
            break;
        }
        let publishing = publish(&spool, &output, 500);
        // Killed as soon as it has got somewhere.
        while spool.lock().acknowledged() < (before + 700).min(5_000) {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        publishing.task.abort();
        let _ = publishing.task.await;
        kills += 1;
    }
    assert!(kills > 1);
    let partitions = consume(&bootstrap, &topic, 5_000).await;
    assert_eq!(stored_by_a_sink(&partitions), (1..=5_000).collect::<Vec<_>>());
    println!(
        "{kills} kills, {} repeats",
        partitions.values().flatten().count() - 5_000
    );
}
