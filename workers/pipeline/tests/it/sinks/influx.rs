//! InfluxDB 1 as Debian has it; versions 2 and 3 by their contract.

use std::{fs, path::Path, process::Command};

use corrente_config::{PipelineConfig, Secrets, pipeline::SinkConfig};
use corrente_crds::pipeline::ColumnType;
use corrente_pipeline::{
    sink::influx::InfluxSink,
    source::kafka::{DeadLetterTopic, KafkaSource},
};
use corrente_runtime::kafka::Access;
use serde_json::{Value, json};

use super::{letters::letters, server::Server};
use crate::{
    support::{Worker, config, unique, wait},
    topic::Topic,
};

fn influxd(folder: &Path, port: u16) -> Command {
    let file = folder.join("influxdb.conf");
    let at = |name: &str| folder.join(name).display().to_string();
    let text = format!(
        "reporting-disabled = true\nbind-address = \"127.0.0.1:0\"\n[meta]\ndir = {:?}\n[data]\ndir = {:?}\nwal-dir = {:?}\n\
         [monitor]\nstore-enabled = false\n[http]\nbind-address = \"127.0.0.1:{port}\"\nlog-enabled = false\n",
        at("meta"),
        at("data"),
        at("wal"),
    );
    fs::write(&file, text).unwrap();
    let mut command = Command::new("influxd");
    command.arg("-config").arg(file);
    command
}

struct Influx(Server);

impl Influx {
    async fn new() -> Self {
        let influx = Self(Server::start(influxd).await);
        influx
            .ask("CREATE DATABASE metering WITH DURATION INF SHARD DURATION 520w")
            .unwrap();
        influx
    }

    fn ask(&self, query: &str) -> Option<Value> {
        let url = format!("http://{}/query", self.0.address());
        let mut answer = ureq::post(&url)
            .query("db", "metering")
            .query("q", query)
            .send_empty()
            .ok()?;
        serde_json::from_str(&answer.body_mut().read_to_string().ok()?).ok()
    }

    /// The values of the first row of an answer, without its time.
    fn row(&self, query: &str) -> Vec<Value> {
        let answer = self.ask(query).unwrap_or_default();
        let row = answer.pointer("/results/0/series/0/values/0").cloned();
        row.and_then(|row| row.as_array().map(|row| row[1..].to_vec()))
            .unwrap_or_default()
    }

    fn count(&self, field: &str) -> u64 {
        let row = self.row(&format!("SELECT count({field}) FROM readings"));
        row.first().and_then(Value::as_u64).unwrap_or_default()
    }

    fn config(&self, topic: &str) -> PipelineConfig {
        let sink = json!({"url": format!("http://{}", self.0.address()), "version": "v1", "database": "metering", "tags": ["site"]});
        let sink = SinkConfig::Influxdb(serde_json::from_value(sink).unwrap());
        let mut config = config(&unique("influx"), &[topic], sink);
        config.columns.insert("energy".to_owned(), ColumnType::Numeric);
        config
    }
}

fn worker(config: &PipelineConfig) -> Worker {
    let access = Access::new(&config.kafka, &Secrets::default());
    let settings = access.read().unwrap();
    let mut source = KafkaSource::new(config, &access, &settings).unwrap();
    let (offsets, letters) = (source.group_offsets(), DeadLetterTopic::new(config, &settings));
    let sink = InfluxSink::new(config, &Secrets::default(), offsets, letters).unwrap();
    Worker::start(config, source, sink)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka and InfluxDB"]
async fn every_record_is_one_point_whatever_is_killed() {
    let (mut influx, topic) = (Influx::new().await, Topic::new(2));
    topic.create().await;
    let config = influx.config(&topic.name);
    let mut sent = 0;
    let mut running = worker(&config);
    for round in 0..6u64 {
        if round == 2 {
            influx.0.kill();
        }
        for partition in 0..2 {
            topic.send_stream(partition, &format!("s{partition}"), sent..sent + 300);
        }
        sent += 300;
        match round {
            // Somewhere between nothing and everything is stored by then.
            1 | 3 => {
                tokio::time::sleep(std::time::Duration::from_millis(rand::random_range(0..400))).await;
                running.abort().await;
                running = worker(&config);
            }
            2 => {
                running.trouble("cannot be reached").await;
                influx.0.again().await;
            }
            4 => {
                wait("all so far", async || influx.count("voltage") == 2 * sent).await;
                running.stop().await;
                running = worker(&config);
            }
            _ => {}
        }
    }
    wait("every point", async || influx.count("voltage") == 2 * sent).await;
    wait("no trouble", async || {
        running.report().trouble.is_none() && running.report().lag == 0
    })
    .await;
    let sum = (0..sent).map(|seq| seq as f64 + 0.5).sum::<f64>();
    for meter in ["s0", "s1"] {
        let row = influx.row(&format!(
            "SELECT sum(voltage), count(seq) FROM readings WHERE meter = '{meter}'"
        ));
        assert_eq!((row[0].as_f64(), row[1].as_u64()), (Some(sum), Some(sent)));
    }
    running.stop().await;
    // A group that goes on where it was repeats nothing.
    let idle = worker(&config);
    wait("the partitions", async || idle.report().partitions == 2).await;
    topic.send_stream(0, "s0", sent..sent + 1);
    wait("one more", async || idle.report().rows == 1).await;
    idle.stop().await;
    topic.delete().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka and InfluxDB"]
async fn what_is_refused_is_set_aside_and_the_rest_is_stored() {
    let (influx, topic) = (Influx::new().await, Topic::new(1));
    influx
        .ask("CREATE RETENTION POLICY short ON metering DURATION 520w REPLICATION 1")
        .unwrap();
    topic.create().await;
    let mut config = influx.config(&topic.name);
    let SinkConfig::Influxdb(sink) = &mut config.sink else {
        panic!()
    };
    sink.retention_policy = Some("short".to_owned());
    let running = worker(&config);
    topic.send_stream(0, "s", 0..500);
    for payload in [
        // 500: the server refuses it, since voltage is a float.
        r#"{"ts":"2026-11-20T22:20:00Z","meter":"m","voltage":"high"}"#,
        "hello",
        // 502: InfluxDB 1 has no unsigned numbers.
        r#"{"ts":"2026-11-20T22:20:00Z","meter":"m","energy":18446744073709551615}"#,
        // 503: older than the retention.
        r#"{"ts":"2001-01-01T00:00:00Z","meter":"m","voltage":1.5}"#,
        r#"{"ts":"2026-11-20T22:20:00Z","meter":"late","energy":9007199254740993,"closed":true,"site":"north, 2"}"#,
    ] {
        topic.send(0, payload);
    }
    topic.send_stream(0, "s", 500..1000);
    wait("the points", async || {
        influx.row("SELECT count(voltage) FROM short.readings") == [json!(1000)]
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
            (500, Some("voltage")),
            (501, None),
            (502, Some("energy")),
            (503, None)
        ]
    );
    assert!(found[0].reason.contains("field type conflict"), "{found:?}");
    assert!(found[3].reason.contains("beyond retention policy"), "{found:?}");
    assert_eq!(found[1].payload, "hello");
    // JSON's numbers would round it.
    let row = influx.row("SELECT energy, closed, site FROM short.readings WHERE meter = 'late'");
    assert_eq!(
        row,
        [json!(9_007_199_254_740_993u64), json!(true), json!("north, 2")]
    );
    wait("the counts", async || {
        running.report().dead_lettered == 4 && running.report().rows == 1001
    })
    .await;
    running.stop().await;
    topic.delete().await;
}
