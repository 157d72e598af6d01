//! The PostgreSQL sink, behind the in-process broker.

use std::{collections::BTreeMap, sync::Arc};

use corrente_config::pipeline::Hypertable;
use corrente_crds::pipeline::ColumnType;
use corrente_pipeline::{
    assignment::{Fingerprint, Position},
    batch::{Batch, Place},
    batcher::Run,
    sink::{Sink as _, SinkError, Stored},
};
use corrente_runtime::{
    broker::{Incoming, Messages, TopicPartition},
    memory::MemoryBroker,
};

use crate::{
    database::{Database, connect, url},
    support::{Worker, producer, record, send, unique, wait},
};

fn place(topic: &str) -> Place {
    Place {
        cluster: "c".into(),
        partition: TopicPartition {
            topic: topic.into(),
            partition: 0,
        },
    }
}

fn messages(offsets: std::ops::Range<i64>) -> Messages {
    let mut messages = Messages::default();
    for offset in offsets {
        messages.push(Incoming {
            offset,
            timestamp: Some(1000 + offset),
            key: Some(b"s"),
            payload: Some(record("s", offset as u64).as_bytes()),
        });
    }
    messages
}

fn batch(epoch: i64, previous: Option<i64>, offsets: std::ops::Range<i64>) -> Arc<Batch> {
    let messages = Arc::new(messages(offsets));
    let run = Run {
        range: 0..messages.len(),
        messages,
    };
    let batch = Batch::build(place("t"), epoch, previous, vec![run], Arc::default());
    Arc::new(batch.unwrap())
}

fn counts(stored: &Stored) -> (u64, u64) {
    (stored.rows, stored.dead_letters)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_zombie_is_refused_and_a_lost_answer_is_no_second_storing() {
    let db = Database::new().await;
    let config = db.config("t", None);
    let (mut old, mut new) = (db.sink(&config), db.sink(&config));
    let first = old.claim(&place("t")).await.unwrap();
    assert_eq!((first.epoch, first.position), (1, None));
    let stored = old.store(&batch(1, None, 0..5)).await.unwrap();
    assert_eq!(
        (counts(&stored), &stored.marks[..]),
        ((5, 0), &[("s".to_owned(), 4)][..])
    );
    // The same again, as after a commit whose answer was lost; by another connection too.
    assert_eq!(old.store(&batch(1, None, 0..5)).await.unwrap(), stored);
    assert_eq!(
        db.sink(&config).store(&batch(1, None, 0..5)).await.unwrap(),
        stored
    );
    let second = new.claim(&place("t")).await.unwrap();
    let last = Fingerprint::of(&messages(4..5).get(0).unwrap());
    assert_eq!(
        (second.epoch, second.position),
        (
            2,
            Some(Position {
                next_offset: 5,
                last: Some(last)
            })
        )
    );
    assert_eq!(second.marks["s"], 4);
    for (sink, batch, says) in [
        (&mut old, batch(1, Some(5), 5..9), "epoch is 2, ours is 1"),
        (&mut new, batch(2, Some(3), 3..9), "the next offset is 5"),
    ] {
        let refused = sink.store(&batch).await.unwrap_err();
        assert!(
            matches!(&refused, SinkError::Fenced(why) if why.contains(says)),
            "{refused}"
        );
    }
    assert_eq!(new.store(&batch(2, Some(5), 5..9)).await.unwrap().rows, 4);
    db.assert_exactly(1, 9).await;
    db.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_batch_of_which_every_row_is_refused_is_done_with() {
    let db = Database::new().await;
    let config = db.config("t", None);
    let mut sink = db.sink(&config);
    sink.claim(&place("t")).await.unwrap();
    sink.store(&batch(1, None, 0..1)).await.unwrap();
    let table = db.table();
    db.client
        .batch_execute(&format!(
            "DELETE FROM {table}; ALTER TABLE {table} ADD COLUMN operator text NOT NULL"
        ))
        .await
        .unwrap();
    let stored = sink.store(&batch(1, Some(1), 1..10_001)).await.unwrap();
    assert_eq!(counts(&stored), (0, 10_000));
    let letters = db
        .text(&format!(
            "SELECT count(DISTINCT message_offset), min(sqlstate), max(sqlstate), min(column_name) \
             FROM corrente.dead_letters WHERE pipeline = 'test/{}'",
            db.pipeline
        ))
        .await;
    assert_eq!(letters, "10000|23502|23502|operator");
    // The next batch finds a connection without a trace of it.
    db.client
        .batch_execute(&format!(
            "ALTER TABLE {table} ALTER COLUMN operator DROP NOT NULL"
        ))
        .await
        .unwrap();
    let next = sink.store(&batch(1, Some(10_001), 10_001..10_101)).await.unwrap();
    assert_eq!(counts(&next), (100, 0));
    db.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn columns_have_the_types_that_were_declared_and_hold_every_value() {
    let db = Database::new().await;
    let mut config = db.config(
        "t",
        Some(Hypertable {
            chunk_interval_millis: Some(3_600_000),
        }),
    );
    config.columns = BTreeMap::from([
        ("energy".to_owned(), ColumnType::Numeric),
        ("pulses".to_owned(), ColumnType::Bigint),
        ("closed".to_owned(), ColumnType::Boolean),
        ("serial".to_owned(), ColumnType::Text),
    ]);
    let broker = MemoryBroker::new(1);
    let worker = Worker::start(&config, broker.source(&config.topics), db.sink(&config));
    let producer = producer(&broker, "t");
    send(
        &producer,
        0,
        r#"{"ts":"2026-11-20T22:20:00.123Z","meter":"m","slot":"2026-11-20T22:20:00Z","stream":"s","seq":1,
            "quality":"partial","skipped":2,"bad":{"current":"NaN"},"site":"north \"1\"","energy":18446744073709551615,
            "pulses":-9223372036854775808,"closed":true,"serial":"é","power":-1.25,"Größe \"x\"":7}"#,
    );
    send(
        &producer,
        0,
        r#"{"ts":"1999-12-31T23:59:59.999Z","meter":"m","energy":10000}"#,
    );
    db.wait_for(2).await;
    worker.stop().await;
    let shown = db
        .text(&format!("SELECT * FROM {} ORDER BY ts", db.table()))
        .await;
    assert_eq!(
        shown,
        "1999-12-31 23:59:59.999+00|m|-|-|-|-|-|-|-|10000|-|-|-|-|-,\
         2026-11-20 22:20:00.123+00|m|2026-11-20 22:20:00+00|s|1|partial|{\"current\": \"NaN\"}|2|t|\
         18446744073709551615|-9223372036854775808|é|7|-1.25|north \"1\""
    );
    let types = db
        .text(&format!(
            "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = '{}'::regclass \
             AND attname IN ('energy', 'pulses', 'closed', 'serial', 'power', 'site') ORDER BY attname",
            db.table()
        ))
        .await;
    assert_eq!(types, "boolean,numeric(20,0),double precision,bigint,text,text");
    let interval = db
        .text(&format!(
            "SELECT time_interval FROM timescaledb_information.dimensions WHERE hypertable_schema = '{}'",
            db.schema
        ))
        .await;
    assert_eq!(interval, "01:00:00");
    db.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_missing_extension_is_said_in_a_sentence() {
    let admin = connect(&url()).await;
    let name = unique("plain");
    admin
        .batch_execute(&format!("CREATE DATABASE {name} TEMPLATE template0"))
        .await
        .unwrap();
    let (server, _) = url()
        .rsplit_once('/')
        .map(|(s, d)| (s.to_owned(), d.to_owned()))
        .unwrap();
    let db = Database::at(&format!("{server}/{name}")).await;
    let config = db.config(
        "t",
        Some(Hypertable {
            chunk_interval_millis: None,
        }),
    );
    let broker = MemoryBroker::new(1);
    let worker = Worker::start(&config, broker.source(&config.topics), db.sink(&config));
    worker.trouble("the database has no TimescaleDB").await;
    worker.stop().await;
    drop(db);
    wait("the database to be free", async || {
        admin
            .batch_execute(&format!("DROP DATABASE {name}"))
            .await
            .is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn two_workers_widen_one_table_while_a_reader_looks_on() {
    let db = Database::new().await;
    // Two pipelines, as two sites would have, each with its topic, on one table.
    let config = db.config(
        "t",
        Some(Hypertable {
            chunk_interval_millis: None,
        }),
    );
    let mut other = config.clone();
    other.name = unique("p");
    other.topics = vec!["u".to_owned()];
    let broker = MemoryBroker::new(2);
    let workers = [&config, &other].map(|c| Worker::start(c, broker.source(&c.topics), db.sink(c)));
    let producers = ["t", "u"].map(|topic| producer(&broker, topic));
    let table = db.table();
    producers
        .iter()
        .for_each(|producer| send(producer, 0, &record("s", 0)));
    wait("a row of each", async || {
        workers.iter().all(|worker| worker.report().rows == 1)
    })
    .await;
    // The reader holds the table until a worker has given up waiting for it once.
    let reader = connect(&url()).await;
    reader
        .batch_execute(&format!("BEGIN; SELECT count(*) FROM {table}"))
        .await
        .unwrap();
    for seq in 1..300u64 {
        // Every tenth record brings a metric that was never there.
        let payload = record("s", seq).replace('}', &format!(",\"metric_{}\":{seq}}}", seq / 10));
        for producer in &producers {
            send(producer, (seq % 2) as i32, &payload);
        }
    }
    workers[0].trouble("lock timeout").await;
    reader.batch_execute("COMMIT").await.unwrap();
    wait("every row of both", async || {
        workers.iter().all(|worker| worker.report().rows == 300)
    })
    .await;
    for worker in workers {
        assert_eq!(worker.report().dead_lettered, 0);
        worker.stop().await;
    }
    assert_eq!(db.count().await, 600);
    assert_eq!(
        db.text(&format!("SELECT count(metric_29), sum(metric_7) FROM {table}"))
            .await,
        "20|1490"
    );
    db.client
        .batch_execute(&format!(
            "DELETE FROM corrente.offsets WHERE pipeline = 'test/{}'",
            other.name
        ))
        .await
        .unwrap();
    db.client
        .batch_execute(&format!(
            "DELETE FROM corrente.streams WHERE pipeline = 'test/{}'",
            other.name
        ))
        .await
        .unwrap();
    db.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_table_altered_under_the_worker_is_looked_at_again() {
    let db = Database::new().await;
    let config = db.config("t", None);
    let mut sink = db.sink(&config);
    let epoch = sink.claim(&place("t")).await.unwrap().epoch;
    sink.store(&batch(epoch, None, 0..5)).await.unwrap();
    // As many bytes as before, and other ones.
    let alter = format!(
        "ALTER TABLE {} ALTER COLUMN voltage TYPE bigint USING 0",
        db.table()
    );
    db.client.batch_execute(&alter).await.unwrap();
    let stored = sink.store(&batch(epoch, Some(5), 5..8)).await.unwrap();
    assert_eq!(counts(&stored), (0, 3));
    assert_eq!(
        db.dead_letters().await,
        "0|5|-|voltage,0|6|-|voltage,0|7|-|voltage"
    );
    db.client
        .batch_execute(&format!("ALTER TABLE {} DROP COLUMN voltage", db.table()))
        .await
        .unwrap();
    assert_eq!(sink.store(&batch(epoch, Some(8), 8..9)).await.unwrap().rows, 1);
    assert_eq!(
        db.text(&format!("SELECT voltage FROM {} WHERE seq = 8", db.table()))
            .await,
        "8.5"
    );
    db.client
        .batch_execute(&format!("DROP TABLE {}", db.table()))
        .await
        .unwrap();
    assert!(matches!(
        sink.store(&batch(epoch, Some(9), 9..10)).await,
        Err(SinkError::Retry(_) | SinkError::Fault(_))
    ));
    assert_eq!(sink.store(&batch(epoch, Some(9), 9..10)).await.unwrap().rows, 1);
    assert_eq!(db.count().await, 1);
    db.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn the_url_may_come_late_and_may_be_mended() {
    let db = Database::new().await;
    let config = db.config("t", None);
    let right = std::fs::read_to_string(db.url_file()).unwrap();
    std::fs::remove_file(db.url_file()).unwrap();
    let broker = MemoryBroker::new(1);
    let worker = Worker::start(&config, broker.source(&config.topics), db.sink(&config));
    send(&producer(&broker, "t"), 0, &record("s", 0));
    worker.trouble("failed to read the database's URL").await;
    for (url, says) in [
        (
            "postgres://corrente:se cret@:x/",
            "cannot be read: write postgres://",
        ),
        (
            "postgres://corrente:secret@127.0.0.1:1/x",
            "failed to connect to the database",
        ),
        (
            "postgres://corrente:secret@127.0.0.1:1/x?sslmode=allow",
            "write disable, prefer, require",
        ),
    ] {
        std::fs::write(db.url_file(), url).unwrap();
        worker.trouble(says).await;
        assert!(!worker.report().trouble.unwrap().reason.contains("secret"));
    }
    std::fs::write(db.url_file(), right).unwrap();
    db.wait_for(1).await;
    wait("no trouble", async || worker.report().trouble.is_none()).await;
    worker.stop().await;
    db.drop().await;
}
