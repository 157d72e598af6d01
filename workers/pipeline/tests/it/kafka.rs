//! The whole worker: real Kafka to real PostgreSQL.

use corrente_runtime::http::Probe as _;

use crate::{
    database::Database,
    support::{Worker, source, wait},
    topic::Topic,
};

fn worker(db: &Database, config: &corrente_config::PipelineConfig) -> Worker {
    Worker::start(config, source(config), db.sink(config))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka and PostgreSQL"]
async fn a_topic_that_comes_late_is_stored_and_its_lag_is_told() {
    let (db, topic) = (Database::new().await, Topic::new(3));
    let config = db.config(&topic.name, None);
    let worker = worker(&db, &config);
    worker.trouble("is in the cluster; waiting for it").await;
    topic.create().await;
    for partition in 0..3 {
        topic.send_stream(partition, &format!("s{partition}"), 0..1000);
    }
    db.wait_for(3000).await;
    db.assert_exactly(3, 1000).await;
    wait("readiness and three partitions without lag", async || {
        let report = worker.report();
        worker.state.ready().is_ok() && report.partitions == 3 && report.lag == 0 && report.trouble.is_none()
    })
    .await;
    let began = std::time::Instant::now();
    worker.stop().await;
    assert!(began.elapsed().as_secs() < 5, "left in {:?}", began.elapsed());
    topic.delete().await;
    db.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka and PostgreSQL"]
async fn what_a_restarted_producer_sends_again_is_dropped() {
    let (db, topic) = (Database::new().await, Topic::new(1));
    topic.create().await;
    let config = db.config(&topic.name, None);
    topic.send_stream(0, "a", 0..400);
    topic.send_stream(0, "a", 300..700);
    let first = worker(&db, &config);
    db.wait_for(700).await;
    wait("the duplicates", async || first.report().duplicates == 100).await;
    first.stop().await;
    // The worker restarts too: the marks are in the database.
    topic.send_stream(0, "a", 650..800);
    let second = worker(&db, &config);
    wait("the rest", async || {
        second.report().rows == 100 && second.report().duplicates == 50
    })
    .await;
    second.stop().await;
    db.assert_exactly(1, 800).await;
    topic.delete().await;
    db.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka and PostgreSQL"]
async fn a_topic_that_was_made_anew_is_noticed_and_left_alone() {
    // The new log is longer than the old one, or shorter.
    for (again, says) in [
        (50, "is not the one that was stored last"),
        (10, "but the log ends at 10"),
    ] {
        let (db, topic) = (Database::new().await, Topic::new(1));
        topic.create().await;
        let config = db.config(&topic.name, None);
        topic.send_stream(0, "old", 0..30);
        let first = worker(&db, &config);
        db.wait_for(30).await;
        first.stop().await;
        topic.delete().await;
        topic.create().await;
        topic.send_stream(0, "new", 0..again);
        let second = worker(&db, &config);
        second.trouble(says).await;
        assert_eq!(db.count().await, 30);
        // What the sentence says to do helps, without a restart.
        db.client
            .batch_execute(&format!(
                "DELETE FROM corrente.offsets WHERE pipeline = 'test/{}'",
                db.pipeline
            ))
            .await
            .unwrap();
        db.wait_for(30 + again).await;
        wait("no trouble", async || second.report().trouble.is_none()).await;
        second.stop().await;
        assert_eq!(db.count().await, 30 + again);
        topic.delete().await;
        db.drop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka and PostgreSQL"]
async fn what_retention_took_is_counted_as_a_gap() {
    let (db, topic) = (Database::new().await, Topic::new(1));
    topic.create().await;
    let config = db.config(&topic.name, None);
    topic.send_stream(0, "a", 0..30);
    let first = worker(&db, &config);
    db.wait_for(30).await;
    first.stop().await;
    topic.send_stream(0, "a", 30..60);
    topic.forget(0, 45).await;
    let second = worker(&db, &config);
    db.wait_for(45).await;
    wait("the gap", async || second.report().gaps == 15).await;
    second.stop().await;
    let seqs = db
        .text(&format!("SELECT count(*), max(seq) FROM {}", db.table()))
        .await;
    assert_eq!(seqs, "45|59");
    // All that was stored is gone, and nothing else: no gap.
    topic.forget(0, 60).await;
    topic.send_stream(0, "a", 60..70);
    let third = worker(&db, &config);
    db.wait_for(55).await;
    assert_eq!(third.report().gaps, 0);
    third.stop().await;
    topic.delete().await;
    db.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka and PostgreSQL"]
async fn a_replica_too_many_is_ready_and_has_nothing_to_do() {
    let (db, topic) = (Database::new().await, Topic::new(1));
    topic.create().await;
    let config = db.config(&topic.name, None);
    let workers = [worker(&db, &config), worker(&db, &config)];
    topic.send_stream(0, "a", 0..500);
    wait("both ready", async || {
        workers.iter().all(|w| w.state.ready().is_ok())
    })
    .await;
    wait("one partition", async || {
        workers.iter().map(|w| w.report().partitions).sum::<u32>() == 1
    })
    .await;
    db.wait_for(500).await;
    for worker in workers {
        worker.stop().await;
    }
    db.assert_exactly(1, 500).await;
    topic.delete().await;
    db.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka and PostgreSQL"]
async fn two_workers_that_both_think_a_partition_theirs_store_it_once() {
    let (db, topic) = (Database::new().await, Topic::new(1));
    topic.create().await;
    let config = db.config(&topic.name, None);
    let mut zombie = config.clone();
    zombie.group.push_str(".zombie");
    let workers = [worker(&db, &config), worker(&db, &zombie)];
    let mut sent = 0;
    wait("both to have stored some", async || {
        topic.send_stream(0, "a", sent..sent + 100);
        sent += 100;
        workers.iter().all(|w| w.report().rows > 0)
    })
    .await;
    db.wait_for(sent).await;
    for worker in workers {
        worker.stop().await;
    }
    db.assert_exactly(1, sent).await;
    topic.delete().await;
    db.drop().await;
}
