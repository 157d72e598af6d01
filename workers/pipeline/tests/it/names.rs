//! Who stores what where: pipelines with one table, pipelines with a new name, groups that are gone, topics that are
//! made anew under a worker; and the marks that all of it rests on.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use corrente_config::PipelineConfig;
use corrente_pipeline::{batch::Place, sink::Sink as _};
use corrente_runtime::broker::TopicPartition;

use crate::{
    database::Database,
    support::{Worker, source, unique, wait},
    topic::Topic,
};

fn worker(db: &Database, config: &PipelineConfig) -> Worker {
    Worker::start(config, source(config), db.sink(config))
}

/// The same pipeline under another name.
fn named(config: &PipelineConfig, name: &str) -> PipelineConfig {
    PipelineConfig {
        name: name.to_owned(),
        group: format!("corrente.test.{name}"),
        ..config.clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka and PostgreSQL"]
async fn two_pipelines_share_a_table_but_no_topic() {
    let (db, topic, other) = (Database::new().await, Topic::new(2), Topic::new(1));
    topic.create().await;
    other.create().await;
    let config = db.config(&topic.name, None);
    for partition in 0..2 {
        topic.send_stream(partition, &format!("s{partition}"), 0..300);
    }
    other.send_stream(0, "s2", 0..300);
    let second = named(&config, &format!("{}-second", db.pipeline));
    let beside = PipelineConfig {
        topics: vec![other.name.clone()],
        ..named(&config, &format!("{}-beside", db.pipeline))
    };
    let workers = [worker(&db, &config), worker(&db, &beside)];
    db.wait_for(900).await;
    let refused = worker(&db, &second);
    let held = format!("from the pipeline test/{} already", db.pipeline);
    refused.trouble(&held).await;
    refused.trouble("set renamedFrom to the old one").await;
    assert_eq!(refused.report().rows, 0);
    // Another table takes the second copy.
    refused.stop().await;
    let copy = Database::new().await;
    let elsewhere = PipelineConfig {
        sink: copy.config(&topic.name, None).sink,
        ..second
    };
    let third = Worker::start(&elsewhere, source(&elsewhere), copy.sink(&elsewhere));
    copy.wait_for(600).await;
    for worker in workers.into_iter().chain([third]) {
        worker.stop().await;
    }
    db.assert_exactly(3, 300).await;
    copy.assert_exactly(2, 300).await;
    for topic in [topic, other] {
        topic.delete().await;
    }
    db.drop().await;
    copy.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka and PostgreSQL"]
async fn a_renamed_pipeline_goes_on_where_it_ended() {
    let (db, topic) = (Database::new().await, Topic::new(2));
    topic.create().await;
    let config = db.config(&topic.name, None);
    let old = worker(&db, &config);
    for partition in 0..2 {
        topic.send_stream(partition, &format!("s{partition}"), 0..300);
    }
    topic.send(0, "not a record");
    db.wait_for(600).await;
    wait("the letter", async || old.report().dead_lettered == 1).await;
    let name = format!("{}-renamed", db.pipeline);
    let mut renamed = named(&config, &name);
    renamed.once.renamed_from = Some(format!("test/{}", db.pipeline));
    // The old one still runs: it is fenced, and says by whom.
    let new = worker(&db, &renamed);
    // What a restarted poller sends again is known under the new name too.
    for partition in 0..2 {
        topic.send_stream(partition, &format!("s{partition}"), 250..500);
    }
    db.wait_for(1000).await;
    old.trouble(&format!("from the pipeline test/{name} already"))
        .await;
    old.stop().await;
    new.stop().await;
    // And once more, for the field stays in the manifest.
    let again = worker(&db, &renamed);
    for partition in 0..2 {
        topic.send_stream(partition, &format!("s{partition}"), 500..600);
    }
    db.wait_for(1200).await;
    again.stop().await;
    db.assert_exactly(2, 600).await;
    let kept = |table: &str, pipeline: &str| {
        format!("SELECT count(*) FROM corrente.{table} WHERE pipeline = 'test/{pipeline}'")
    };
    for (table, count) in [("offsets", "2"), ("streams", "2"), ("dead_letters", "1")] {
        assert_eq!(db.text(&kept(table, &name)).await, count, "{table}");
        assert_eq!(db.text(&kept(table, &db.pipeline)).await, "0", "{table}");
        db.client
            .batch_execute(&format!(
                "DELETE FROM corrente.{table} WHERE pipeline = 'test/{name}'"
            ))
            .await
            .unwrap();
    }
    topic.delete().await;
    db.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka and PostgreSQL"]
async fn a_group_that_was_deleted_or_is_another_one_changes_nothing() {
    let (db, topic) = (Database::new().await, Topic::new(2));
    topic.create().await;
    let mut config = db.config(&topic.name, None);
    let mut sent = 0;
    for round in 0..3 {
        for partition in 0..2 {
            topic.send_stream(partition, &format!("s{partition}"), sent..sent + 200);
        }
        sent += 200;
        let worker = worker(&db, &config);
        db.wait_for(2 * sent).await;
        wait("no lag", async || worker.report().lag == 0).await;
        assert_eq!(worker.report().duplicates, 0, "nothing is read again");
        worker.stop().await;
        if round == 0 {
            topic.delete_group(&config.group).await;
        } else {
            config.group = unique("group");
        }
    }
    db.assert_exactly(2, 600).await;
    topic.delete().await;
    db.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka and PostgreSQL"]
async fn a_topic_made_anew_under_a_worker_is_not_gone_on_with() {
    let (db, topic) = (Database::new().await, Topic::new(1));
    topic.create().await;
    let config = db.config(&topic.name, None);
    topic.send_stream(0, "old", 0..30);
    let running = worker(&db, &config);
    db.wait_for(30).await;
    topic.delete().await;
    topic.create().await;
    // Longer than the old one, at once: offsets alone would not show it.
    topic.send_stream(0, "new", 0..80);
    running.trouble("the topic was made anew").await;
    assert_eq!(
        db.count().await,
        30,
        "nothing of the new one is stored, for its first would be missing"
    );
    db.client
        .batch_execute(&format!(
            "DELETE FROM corrente.offsets WHERE pipeline = 'test/{}'",
            db.pipeline
        ))
        .await
        .unwrap();
    db.wait_for(110).await;
    running.stop().await;
    assert_eq!(db.count().await, 110);
    topic.delete().await;
    db.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka and PostgreSQL"]
async fn another_topic_loses_nothing_when_one_is_made_anew() {
    let (db, topic, other) = (Database::new().await, Topic::new(1), Topic::new(2));
    topic.create().await;
    other.create().await;
    let config = PipelineConfig {
        topics: vec![topic.name.clone(), other.name.clone()],
        ..db.config(&topic.name, None)
    };
    topic.send_stream(0, "old", 0..30);
    let running = worker(&db, &config);
    db.wait_for(30).await;
    // Records come all the time, so that some are on their way whenever the worker finds out.
    let enough = Arc::new(AtomicBool::new(false));
    let sending = tokio::task::spawn_blocking({
        let enough = enough.clone();
        move || {
            let mut sent = 0;
            while !enough.load(Ordering::Relaxed) {
                for partition in 0..2 {
                    other.send_stream(partition, &format!("other {partition}"), sent..sent + 50);
                }
                sent += 50;
            }
            (other, 2 * sent)
        }
    });
    topic.delete().await;
    topic.create().await;
    topic.send_stream(0, "new", 0..80);
    running.trouble("the topic was made anew").await;
    enough.store(true, Ordering::Relaxed);
    let (other, sent) = sending.await.unwrap();
    db.wait_for(30 + sent).await;
    running.stop().await;
    assert_eq!(db.count().await, 30 + sent);
    topic.delete().await;
    other.delete().await;
    db.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_mark_is_dropped_when_nothing_can_come_that_it_would_recognise() {
    let db = Database::new().await;
    let mut sink = db.sink(&db.config("t", None));
    let place = |topic: &str, cluster: &str| Place {
        cluster: cluster.into(),
        partition: TopicPartition {
            topic: topic.into(),
            partition: 0,
        },
    };
    sink.claim(&place("t", "c")).await.unwrap();
    // Only the first is silent for long enough, from this cluster, and behind the log's beginning.
    for (stream, days, offset, cluster, topic) in [
        ("gone", 401, "99", "'c'", "t"),
        ("young", 399, "99", "'c'", "t"),
        ("in the log", 401, "100", "'c'", "t"),
        ("of another cluster", 401, "99", "'d'", "t"),
        ("of an earlier version", 401, "NULL", "NULL", "t"),
        ("of another topic", 401, "99", "'c'", "u"),
    ] {
        db.client
            .batch_execute(&format!(
                "INSERT INTO corrente.streams (pipeline, topic, partition, stream, seq, updated_at, cluster, last_offset) \
                 VALUES ('test/{}', '{topic}', 0, '{stream}', 5, now() - interval '{days} days', {cluster}, {offset})",
                db.pipeline
            ))
            .await
            .unwrap();
    }
    sink.tidy(&place("t", "c"), 100).await.unwrap();
    let left = sink.claim(&place("t", "c")).await.unwrap().marks;
    let mut left: Vec<_> = left.keys().map(String::as_str).collect();
    left.sort_unstable();
    assert_eq!(
        left,
        [
            "in the log",
            "of an earlier version",
            "of another cluster",
            "young"
        ]
    );
    db.drop().await;
}
