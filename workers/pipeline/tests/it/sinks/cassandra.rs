//! Cassandra 5, one node.

use std::{fs, path::Path, process::Command, time::Duration};

use corrente_config::{PipelineConfig, Secrets, pipeline::SinkConfig};
use corrente_crds::pipeline::ColumnType;
use corrente_pipeline::{sink::cassandra::CassandraSink, source::kafka::DeadLetterTopic};
use corrente_runtime::kafka::Access;
use scylla::{
    client::{session::Session, session_builder::SessionBuilder},
    value::{CqlValue, Row},
};
use serde_json::json;

use super::{
    fenced::whoever_lost_a_partition_stores_nothing_twice,
    letters::letters,
    server::{Server, cache, free_port},
};
use crate::{
    support::{Worker, config, source, unique, wait},
    topic::Topic,
};

fn daemon(folder: &Path, port: u16) -> Command {
    let stack = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../e2e/stack/cassandra");
    let file = folder.join("cassandra.yaml");
    // A node knows itself by its internal address, and comes back with it.
    if !file.exists() {
        let text = fs::read_to_string(stack.join("cassandra.yaml")).unwrap();
        let text = text
            .replace("@FOLDER@", folder.to_str().unwrap())
            .replace("@PORT@", &port.to_string())
            .replace("@INTERNAL@", &free_port().to_string());
        fs::write(&file, text).unwrap();
    }
    let mut command = Command::new("java");
    command
        .arg(format!("@{}", stack.join("jvm.options").display()))
        .arg(format!("-Dcassandra.config=file://{}", file.display()))
        .arg(format!("-Dcassandra.storagedir={}", folder.display()))
        .args(["-Dcassandra-foreground=yes", "-cp"])
        .arg(format!("{}/*", cache().join("cassandra").display()))
        .arg("org.apache.cassandra.service.CassandraDaemon")
        .current_dir(folder);
    command
}

struct Cassandra {
    server: Server,
    session: Session,
}

impl Cassandra {
    async fn new() -> Self {
        let server = Server::start(daemon).await;
        let session = SessionBuilder::new()
            .known_node(server.address())
            .build()
            .await
            .unwrap();
        Self { server, session }
    }

    async fn row(&self, cql: &str) -> Option<Vec<Option<CqlValue>>> {
        let answer = self
            .session
            .query_unpaged(cql, ())
            .await
            .ok()?
            .into_rows_result()
            .ok()?;
        answer.maybe_first_row::<Row>().ok()?.map(|row| row.columns)
    }

    async fn count(&self) -> i64 {
        match self
            .row("SELECT count(*) FROM metering.readings")
            .await
            .as_deref()
        {
            Some([Some(CqlValue::BigInt(count))]) => *count,
            _ => 0,
        }
    }

    fn config(&self, topic: &str) -> PipelineConfig {
        let sink = json!({
            "contactPoints": [self.server.address()], "keyspace": "metering", "replicationFactor": 1,
        });
        let sink = SinkConfig::Cassandra(serde_json::from_value(sink).unwrap());
        let mut config = config(&unique("cassandra"), &[topic], sink);
        config.columns.insert("energy".to_owned(), ColumnType::Numeric);
        config.columns.insert("closed".to_owned(), ColumnType::Boolean);
        config
    }

    fn sink(&self, config: &PipelineConfig) -> CassandraSink {
        let settings = Access::new(&config.kafka, &Secrets::default()).read().unwrap();
        CassandraSink::new(
            config,
            &Secrets::default(),
            DeadLetterTopic::new(config, &settings),
        )
        .unwrap()
    }

    fn worker(&self, config: &PipelineConfig) -> Worker {
        Worker::start(config, source(config), self.sink(config))
    }
}

/// What the server itself refuses: of a record, of all records, and of now. `next` is the topic's end.
async fn refusals(cassandra: &Cassandra, topic: &Topic, config: &PipelineConfig, next: i64) {
    let run = async |cql: &str| cassandra.session.query_unpaged(cql, ()).await.unwrap();
    let worker = cassandra.worker(config);
    wait("the worker to have its partition", async || {
        worker.report().partitions == 1
    })
    .await;
    // A row beyond the size of a mutation.
    let text = |fields: &[usize]| {
        let fields = fields.iter().enumerate();
        let fields = fields.map(|(at, length)| format!(r#","text{at}":"{}""#, "x".repeat(*length)));
        let fields: String = fields.collect();
        format!(r#"{{"ts":"2026-11-21T22:20:00Z","meter":"large"{fields}}}"#)
    };
    for fields in [&[5][..], &[60_000; 10], &[6]] {
        topic.send(0, &text(fields));
    }
    wait("the large one to be set aside", async || {
        let report = worker.report();
        (report.dead_lettered, report.lag) == (1, 0) || report.trouble.is_some()
    })
    .await;
    assert_eq!(worker.report().trouble, None);
    let found = letters(config, 5);
    let said: Vec<_> = found.iter().map(|letter| letter.offset).collect();
    assert_eq!(said[4..], [next + 1]);
    assert!(found[4].reason.contains("oversized"), "{}", found[4].reason);
    // Copies are asked for that no node can hold: it passes, and nothing is lost.
    let replicas = |count: u32| {
        format!(
            "ALTER KEYSPACE metering WITH replication = {{'class': 'NetworkTopologyStrategy', 'datacenter1': {count}}}"
        )
    };
    run(&replicas(3)).await;
    topic.send(0, &text(&[7]));
    worker.trouble("consistency").await;
    run(&replicas(1)).await;
    wait("the nodes to suffice", async || {
        worker.report().trouble.is_none() && worker.report().lag == 0
    })
    .await;
    assert_eq!(worker.report().dead_lettered, 1);
    // The keyspace is gone: it is made anew, and filled from the topic's beginning.
    run("DROP KEYSPACE metering").await;
    topic.send(0, &text(&[8]));
    wait("all of it again", async || {
        cassandra.count().await == 701 + 4 && worker.report().lag == 0
    })
    .await;
    worker.stop().await;
}

/// One test, because a node takes its time to start.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka and Cassandra"]
async fn every_record_is_one_row_whatever_is_killed_and_what_is_refused_is_set_aside() {
    let (mut cassandra, topic) = (Cassandra::new().await, Topic::new(1));
    topic.create().await;
    let config = cassandra.config(&topic.name);
    let first = cassandra.worker(&config);
    topic.send_stream(0, "s", 0..300);
    wait("the first rows", async || first.report().rows > 0).await;
    tokio::time::sleep(Duration::from_millis(rand::random_range(0..200))).await;
    first.abort().await;
    let second = cassandra.worker(&config);
    topic.send_stream(0, "s", 250..600);
    wait("the rows of the second worker", async || {
        cassandra.count().await == 600
    })
    .await;
    cassandra.server.kill();
    for payload in [
        "hello",
        r#"{"ts":"2026-11-20T22:20:00Z","meter":"m","voltage":"high"}"#,
        r#"{"ts":"2026-11-20T22:20:00Z","meter":"","voltage":1}"#,
        r#"{"ts":"2026-11-20T22:20:00Z","meter":"m","closed":2}"#,
        r#"{"ts":"2001-11-20T22:20:00Z","meter":"late","energy":18446744073709551615,"closed":true,"site":"north"}"#,
    ] {
        topic.send(0, payload);
    }
    topic.send_stream(0, "s", 600..700);
    second.trouble("failed to").await;
    cassandra.server.again().await;
    wait("what was sent meanwhile", async || cassandra.count().await == 701).await;
    wait("no trouble", async || {
        second.report().trouble.is_none() && second.report().lag == 0
    })
    .await;
    second.stop().await;
    let found = letters(&config, 4);
    let said: Vec<_> = found
        .iter()
        .map(|letter| (letter.offset, letter.column.as_deref()))
        .collect();
    assert_eq!(
        said,
        [
            (650, None),
            (651, Some("voltage")),
            (652, Some("meter")),
            (653, Some("closed"))
        ]
    );
    let late = cassandra
        .row("SELECT energy, closed, site FROM metering.readings WHERE meter = 'late' AND bucket = '2001-11-20'")
        .await
        .unwrap();
    let Some(CqlValue::Varint(energy)) = &late[0] else {
        panic!("{late:?}")
    };
    assert_eq!(
        energy.as_signed_bytes_be_slice(),
        [0, 255, 255, 255, 255, 255, 255, 255, 255]
    );
    assert_eq!(
        late[1..],
        [
            Some(CqlValue::Boolean(true)),
            Some(CqlValue::Text("north".to_owned()))
        ]
    );
    // The rows are there, and nobody knows any more that they are: as after a crash between the two.
    cassandra
        .session
        .query_unpaged("TRUNCATE metering.corrente_offsets", ())
        .await
        .unwrap();
    let again = cassandra.worker(&config);
    wait("all of it again", async || {
        again.report().rows == 701 && again.report().lag == 0
    })
    .await;
    assert_eq!(cassandra.count().await, 701);
    again.stop().await;
    let before = cassandra.count().await as u64;
    let sink = |gate| CassandraSink::new(&config, &Secrets::default(), gate).unwrap();
    let count = async || cassandra.count().await as u64 - before;
    whoever_lost_a_partition_stores_nothing_twice("t", sink, count).await;
    refusals(&cassandra, &topic, &config, 755).await;
    topic.delete().await;
}
