//! Dead letters, from the refusal to the topic and back into the table.

use std::{collections::BTreeMap, time::Duration};

use corrente_config::{PipelineConfig, Secrets};
use corrente_crds::pipeline::ColumnType;
use corrente_pipeline::{
    letters::Desk,
    sink::{
        Sink as _,
        postgres::letters::{Filter, ask, list, outcome, prune},
    },
};
use corrente_runtime::{kafka::Access, memory::MemoryBroker};
use rdkafka::{
    ClientConfig, Message as _,
    consumer::{BaseConsumer, Consumer as _},
    message::Headers as _,
};
use tokio::task::JoinHandle;

use crate::{
    database::Database,
    support::{Worker, producer, record, send, source, unique, wait},
    topic::{Topic, servers},
};

/// The desk as a task, beside a worker.
fn desk(db: &Database, config: &PipelineConfig) -> JoinHandle<()> {
    let access = Access::new(&config.kafka, &Secrets::default());
    let settings = access.read().unwrap();
    let desk = Desk::new(config, &access, &settings, db.sink(config), Default::default());
    tokio::spawn(desk.unwrap().unwrap().run())
}

fn mine(db: &Database) -> Filter {
    Filter {
        pipeline: Some(format!("test/{}", db.pipeline)),
        ..Filter::default()
    }
}

/// Every message of a topic until there are `wanted` different ids; the messages by id.
async fn published(topic: &str, wanted: usize) -> BTreeMap<String, Vec<BTreeMap<String, String>>> {
    let topic = topic.to_owned();
    let reading = tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", servers())
            .set("group.id", unique("check"))
            .set("auto.offset.reset", "earliest")
            // The topic may come later than its reader.
            .set("topic.metadata.refresh.interval.ms", "500")
            .create()
            .unwrap();
        consumer.subscribe(&[&topic]).unwrap();
        let mut all: BTreeMap<String, Vec<BTreeMap<String, String>>> = BTreeMap::new();
        while all.len() < wanted {
            let Some(Ok(message)) = consumer.poll(Duration::from_millis(200)) else {
                continue;
            };
            let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap_or_default().to_vec()).unwrap();
            let mut found: BTreeMap<String, String> = message
                .headers()
                .unwrap()
                .iter()
                .map(|header| (header.key.to_owned(), text(header.value)))
                .collect();
            found.insert("payload".to_owned(), text(message.payload()));
            found.insert("key".to_owned(), text(message.key()));
            all.entry(found["x-dead-letter-id"].clone())
                .or_default()
                .push(found);
        }
        all
    });
    reading.await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka and PostgreSQL"]
async fn letters_reach_their_topic_with_where_they_are_from_and_what_is_wrong() {
    let (db, topic, dead) = (Database::new().await, Topic::new(2), Topic::new(1));
    topic.create().await;
    let mut config = db.config(&topic.name, None);
    config.once.dead_letter_topic = Some(dead.name.clone());
    // Or the first to come would make it a column of texts.
    config.columns.insert("voltage".to_owned(), ColumnType::Float8);
    let (worker, first) = (
        Worker::start(&config, source(&config), db.sink(&config)),
        desk(&db, &config),
    );
    topic.send(0, &record("s", 0));
    topic.send(0, "not a record");
    topic.send(1, r#"{"ts":"2026-11-20T22:20:00Z","meter":"m","voltage":"high"}"#);
    wait("two letters", async || worker.report().dead_lettered == 2).await;
    let all = published(&dead.name, 2).await;
    let by_partition = |partition: &str| {
        all.values()
            .flatten()
            .find(|found| found["x-origin-partition"] == partition)
            .unwrap()
    };
    let (noise, misfit) = (by_partition("0"), by_partition("1"));
    for (found, wanted) in [
        (
            noise,
            [
                ("payload", "not a record"),
                ("x-origin-offset", "1"),
                ("key", "m"),
            ],
        ),
        (
            misfit,
            [
                ("x-origin-offset", "0"),
                ("x-column", "voltage"),
                ("x-reason", "\"high\" is not a number"),
            ],
        ),
    ] {
        assert_eq!(found["x-origin-topic"], topic.name);
        assert_eq!(found["x-pipeline"], format!("test/{}", db.pipeline));
        for (header, value) in wanted {
            assert_eq!(found[header], value, "{found:?}");
        }
    }
    assert!(noise["x-reason"].starts_with("not a record: "));
    assert!(!noise.contains_key("x-column") && !noise.contains_key("x-sqlstate"));
    // Another worker's desk goes on behind them.
    first.abort();
    let _ = first.await;
    let second = desk(&db, &config);
    topic.send(0, "one more");
    let all = published(&dead.name, 3).await;
    assert!(all.values().all(|messages| messages.len() == 1), "{all:?}");
    second.abort();
    worker.stop().await;
    for topic in [topic, dead] {
        topic.delete().await;
    }
    db.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_letter_is_replayed_once_by_whomever_and_however_often() {
    let db = Database::new().await;
    let config = db.config("t", None);
    let broker = MemoryBroker::new(1);
    let producer = producer(&broker, "t");
    let worker = Worker::start(&config, broker.source(&config.topics), db.sink(&config));
    send(&producer, 0, &record("s", 0));
    db.wait_for(1).await;
    let table = db.table();
    let rule = format!(
        "ALTER TABLE {table} ADD CONSTRAINT c CHECK (seq % 2 = 0), ADD CONSTRAINT d CHECK (seq <> 9)"
    );
    db.client.batch_execute(&rule).await.unwrap();
    for seq in 1..=10 {
        send(&producer, 0, &record("s", seq));
    }
    send(&producer, 0, "not a record");
    wait("the letters", async || worker.report().dead_lettered == 6).await;
    let filter = Filter {
        sqlstate: Some("23514".to_owned()),
        ..mine(&db)
    };
    let (letters, count) = list(&db.client, &filter, 3).await.unwrap();
    assert_eq!((letters.len(), count), (3, 5));
    assert_eq!(letters[0].offset, 1);

    // The cause is mended but for one.
    let mend = format!("ALTER TABLE {table} DROP CONSTRAINT c");
    db.client.batch_execute(&mend).await.unwrap();
    let ids = ask(&db.client, &filter).await.unwrap();
    assert_eq!(ids.len(), 5);
    assert_eq!(outcome(&db.client, &ids).await.unwrap().waiting, 5);
    // Two workers at once, and again after them.
    let (mut one, mut two) = (db.sink(&config), db.sink(&config));
    one.open().await.unwrap();
    two.open().await.unwrap();
    // One of them may be told that the other was first.
    let _ = tokio::join!(one.replay(), two.replay());
    wait("nothing left to replay", async || {
        matches!(one.replay().await, Ok((0, 0)))
    })
    .await;
    let came = outcome(&db.client, &ids).await.unwrap();
    assert_eq!((came.replayed, came.waiting), (4, 0));
    let [(reason, _, 1)] = &came.refused[..] else {
        panic!("{came:?}");
    };
    assert!(reason.contains("\"d\""), "{reason}");
    // Asked again: only the one that is open, and it is stored once its cause is mended too.
    let mend = format!("ALTER TABLE {table} DROP CONSTRAINT d");
    db.client.batch_execute(&mend).await.unwrap();
    for stored in [1, 0] {
        assert_eq!(ask(&db.client, &filter).await.unwrap().len(), stored);
        assert_eq!(one.replay().await.unwrap().1, stored as u64);
    }
    worker.stop().await;
    db.assert_exactly(1, 11).await;
    // What is no record stays none.
    assert_eq!(ask(&db.client, &mine(&db)).await.unwrap().len(), 1);
    assert_eq!(one.replay().await.unwrap(), (1, 0));
    let all = Filter {
        replayed: true,
        ..mine(&db)
    };
    assert_eq!(list(&db.client, &all, 100).await.unwrap().1, 6);
    assert_eq!(prune(&db.client, &mine(&db)).await.unwrap(), 1);
    assert_eq!(prune(&db.client, &all).await.unwrap(), 5);
    db.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka and PostgreSQL"]
async fn letters_go_when_their_time_is_over() {
    let db = Database::new().await;
    let mut config = db.config("t", None);
    config.once.dead_letter_retention = Some("30d".parse().unwrap());
    let broker = MemoryBroker::new(1);
    let producer = producer(&broker, "t");
    let worker = Worker::start(&config, broker.source(&config.topics), db.sink(&config));
    for noise in ["one", "two", "three"] {
        send(&producer, 0, noise);
    }
    wait("the letters", async || worker.report().dead_lettered == 3).await;
    worker.stop().await;
    let age = format!(
        "UPDATE corrente.dead_letters SET at = now() - interval '31 days' \
         WHERE pipeline = 'test/{}' AND message_offset < 2",
        db.pipeline
    );
    db.client.batch_execute(&age).await.unwrap();
    // One of the old ones is to be replayed: it stays until it was looked at.
    let asked = Filter {
        to_offset: Some(0),
        ..mine(&db)
    };
    assert_eq!(ask(&db.client, &asked).await.unwrap().len(), 1);
    let desk = desk(&db, &config);
    wait("the old ones to go", async || {
        let (left, _) = list(&db.client, &mine(&db), 10).await.unwrap();
        left.iter().all(|letter| letter.offset != 1)
    })
    .await;
    desk.abort();
    let (left, _) = list(&db.client, &mine(&db), 10).await.unwrap();
    assert!(
        left.iter().any(|letter| letter.offset == 2),
        "the young one stays"
    );
    db.drop().await;
}
