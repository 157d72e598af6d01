//! Cassandra 5, one node.

use std::{fs, path::Path, process::Command, time::Duration};

use corrente_config::{PipelineConfig, Secrets, pipeline::SinkConfig};
use corrente_crds::pipeline::ColumnType;
use corrente_pipeline::{
    batch::Place,
    sink::{Sink as _, cassandra::CassandraSink},
    source::kafka::DeadLetterTopic,
};
use corrente_runtime::{broker::TopicPartition, kafka::Access};
use scylla::{
    client::{session::Session, session_builder::SessionBuilder},
    value::{CqlValue, Row},
};
use serde_json::json;

use super::{
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
    // Whoever claims last has it.
    let place = Place {
        cluster: "c".into(),
        partition: TopicPartition {
            topic: "t".into(),
            partition: 0,
        },
    };
    let (mut one, mut other) = (cassandra.sink(&config), cassandra.sink(&config));
    assert_eq!(one.claim(&place).await.unwrap().epoch, 1);
    assert_eq!(other.claim(&place).await.unwrap().epoch, 2);
    topic.delete().await;
}
