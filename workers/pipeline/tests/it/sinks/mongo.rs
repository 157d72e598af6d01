//! MongoDB's protocol, as FerretDB serves it: a plain collection with a deterministic `_id`.

use std::{path::Path, process::Command};

use corrente_config::{PipelineConfig, Secrets, pipeline::SinkConfig};
use corrente_crds::pipeline::ColumnType;
use corrente_pipeline::{sink::mongo::MongoSink, source::kafka::DeadLetterTopic};
use corrente_runtime::kafka::Access;
use mongodb::{
    Client, Collection,
    bson::{Document, doc},
};
use serde_json::json;

use super::{
    fenced::whoever_lost_a_partition_stores_nothing_twice,
    letters::letters,
    server::{Server, cache},
};
use crate::{
    support::{Worker, config, source, unique, wait},
    topic::Topic,
};

fn ferretdb(folder: &Path, port: u16) -> Command {
    let data = folder.join("data");
    std::fs::create_dir_all(&data).unwrap();
    let mut command = Command::new(cache().join("bin/ferretdb"));
    command.arg(format!("127.0.0.1:{port}")).arg(data);
    command
}

struct Mongo {
    server: Server,
    secrets: Secrets,
    readings: Collection<Document>,
    offsets: Collection<Document>,
}

impl Mongo {
    async fn new() -> Self {
        let server = Server::start(ferretdb).await;
        let url = format!("mongodb://{}/", server.address());
        let secrets = Secrets::new(server.folder().join("secrets"));
        std::fs::create_dir_all(secrets.sink_url().parent().unwrap()).unwrap();
        std::fs::write(secrets.sink_url(), format!("{url}\n")).unwrap();
        let database = Client::with_uri_str(url).await.unwrap().database("metering");
        Self {
            server,
            secrets,
            readings: database.collection("readings"),
            offsets: database.collection("corrente_offsets"),
        }
    }

    async fn count(&self, filter: Document) -> u64 {
        self.readings.count_documents(filter).await.unwrap_or_default()
    }

    fn config(&self, topic: &str) -> PipelineConfig {
        let sink = json!({"connectionSecret": {"name": "s", "key": "url"}, "database": "metering"});
        let sink = SinkConfig::Mongodb(serde_json::from_value(sink).unwrap());
        let mut config = config(&unique("mongo"), &[topic], sink);
        config.columns.insert("energy".to_owned(), ColumnType::Bigint);
        config
    }

    fn sink(&self, config: &PipelineConfig) -> MongoSink {
        let settings = Access::new(&config.kafka, &Secrets::default()).read().unwrap();
        MongoSink::new(config, &self.secrets, DeadLetterTopic::new(config, &settings)).unwrap()
    }

    fn worker(&self, config: &PipelineConfig) -> Worker {
        Worker::start(config, source(config), self.sink(config))
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka and FerretDB"]
async fn every_record_is_one_document_whatever_is_killed() {
    let (mut mongo, topic) = (Mongo::new().await, Topic::new(2));
    topic.create().await;
    let config = mongo.config(&topic.name);
    let mut sent = 0;
    let mut running = mongo.worker(&config);
    for round in 0..6u64 {
        if round == 2 {
            mongo.server.kill();
        }
        for partition in 0..2 {
            topic.send_stream(partition, &format!("s{partition}"), sent..sent + 200);
            // A producer that restarts sends its last ones again.
            topic.send_stream(partition, &format!("s{partition}"), sent + 150..sent + 200);
        }
        sent += 200;
        match round {
            1 | 3 => {
                tokio::time::sleep(std::time::Duration::from_millis(rand::random_range(0..400))).await;
                running.abort().await;
                running = mongo.worker(&config);
            }
            2 => {
                running.trouble("failed to").await;
                mongo.server.again().await;
            }
            _ => {}
        }
    }
    wait("every document", async || mongo.count(doc! {}).await == 2 * sent).await;
    wait("no trouble", async || {
        let report = running.report();
        report.trouble.is_none() && report.lag == 0
    })
    .await;
    running.stop().await;
    for meter in ["s0", "s1"] {
        assert_eq!(mongo.count(doc! {"meter": meter}).await, sent);
    }
    // The rows are there, and nobody knows any more that they are: as after a crash between the two.
    mongo.offsets.delete_many(doc! {}).await.unwrap();
    let again = mongo.worker(&config);
    wait("all of it again", async || {
        again.report().lag == 0 && again.report().partitions == 2
    })
    .await;
    again.stop().await;
    assert_eq!(mongo.count(doc! {}).await, 2 * sent);
    topic.delete().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka and FerretDB"]
async fn what_is_refused_is_set_aside_and_the_rest_is_stored() {
    let (mongo, topic) = (Mongo::new().await, Topic::new(1));
    topic.create().await;
    let config = mongo.config(&topic.name);
    let running = mongo.worker(&config);
    topic.send_stream(0, "s", 0..200);
    wait("the first", async || mongo.count(doc! {}).await == 200).await;
    let command = doc! {
        "createIndexes": "readings",
        "indexes": [{"key": {"serial": 1}, "name": "serial", "unique": true}],
    };
    let client = Client::with_uri_str(format!("mongodb://{}/", mongo.server.address()))
        .await
        .unwrap();
    for seq in 0..200 {
        let (of, set) = (doc! {"seq": seq}, doc! {"$set": {"serial": format!("old {seq}")}});
        mongo.readings.update_one(of, set).await.unwrap();
    }
    client.database("metering").run_command(command).await.unwrap();
    for payload in [
        r#"{"ts":"2026-11-20T22:20:00Z","meter":"m","serial":"a"}"#,
        // 201: the server refuses it for an index of somebody else's, not for its own name.
        r#"{"ts":"2026-11-20T22:20:01Z","meter":"m","serial":"a"}"#,
        "hello",
        r#"{"ts":"2026-11-20T22:20:02Z","meter":"m","serial":"b","energy":18446744073709551615}"#,
        r#"{"ts":"2026-11-20T22:20:03Z","meter":"m","serial":"c","a.b":1}"#,
        r#"{"ts":"2001-11-20T22:20:04Z","meter":"late","serial":"d","energy":9007199254740993,"closed":true,"bad":{"v":"NaN"}}"#,
    ] {
        topic.send(0, payload);
    }
    wait("the rest", async || {
        running.report().dead_lettered == 4 && running.report().rows == 202
    })
    .await;
    let found = letters(&config, 4);
    let said: Vec<_> = found
        .iter()
        .map(|letter| (letter.offset, letter.column.as_deref()))
        .collect();
    assert_eq!(
        said,
        [
            (201, None),
            (202, None),
            (203, Some("energy")),
            (204, Some("a.b"))
        ]
    );
    assert!(found[0].reason.contains("11000"), "{found:?}");
    let late = mongo
        .readings
        .find_one(doc! {"meter": "late"})
        .await
        .unwrap()
        .unwrap();
    assert_eq!(late.get_i64("energy").ok(), Some(9_007_199_254_740_993));
    assert_eq!(late.get_bool("closed").ok(), Some(true));
    assert_eq!(late.get_document("bad").ok(), Some(&doc! {"v": "NaN"}));
    running.stop().await;
    topic.delete().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs FerretDB"]
async fn a_worker_that_lost_its_partition_stores_nothing_twice() {
    let mongo = Mongo::new().await;
    let config = mongo.config("t");
    let sink = |gate| MongoSink::new(&config, &mongo.secrets, gate).unwrap();
    let count = async || mongo.count(doc! {}).await;
    whoever_lost_a_partition_stores_nothing_twice("t", sink, count).await;
}
