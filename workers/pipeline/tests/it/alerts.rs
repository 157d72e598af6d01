//! Alerts: found in the transaction that stores the values, and told at least once, whatever is killed.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::Duration,
};

use corrente_config::{
    PipelineConfig,
    alerts::{AlertsConfig, Side, ThresholdConfig},
    pipeline::SinkConfig,
};
use corrente_record::Timestamp;
use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    database::Database,
    derived::Partition,
    support::{unique, wait},
    topic::{Topic, servers},
    upkeep::round,
};

fn config(db: &Database, topic: &str) -> PipelineConfig {
    let mut config = db.config(topic, None);
    config.alerts = Some(AlertsConfig {
        thresholds: vec![ThresholdConfig {
            name: "Overvoltage".to_owned(),
            metric: "voltage".to_owned(),
            side: Side::Above,
            bound: 253.0,
            clear: 250.0,
            hold_millis: 60_000,
            labels: BTreeMap::from([("severity".to_owned(), "warning".to_owned())]),
            summary: Some("The voltage is too high".to_owned()),
        }],
        topic: None,
        alertmanager: None,
    });
    config
}

/// A reading some minutes after an instant.
fn record(meter: &str, from: Timestamp, minute: i64, voltage: f64) -> String {
    let ts = Timestamp(from.0 + minute * 60_000);
    format!(r#"{{"ts":"{ts}","meter":"{meter}","slot":"{ts}","quality":"good","voltage":{voltage}}}"#)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn where_a_meter_stands_outlives_its_worker_and_its_partition() {
    let db = Database::new().await;
    let config = config(&db, "t");
    let from: Timestamp = "2026-11-20T22:00:00Z".parse().unwrap();
    let of = |minute, voltage| record("m", from, minute, voltage);
    let sql = format!(
        "SELECT id, to_char(ended_at, 'HH24:MI'), value, end_value FROM corrente.alerts WHERE pipeline = 'test/{}' ORDER BY id",
        db.pipeline
    );
    let id = |minute: &str| {
        format!(
            "test/{}/Overvoltage/m/2026-11-20T22:{minute}:00.000Z",
            db.pipeline
        )
    };
    let mut first = Partition::claim(&db, &config, 0).await;
    first.store(&[of(0, 240.0), of(1, 254.0)]).await;
    assert_eq!(db.text(&sql).await, "", "not for a minute yet");
    // The meter's records come by another partition from here on, to another worker.
    let mut second = Partition::claim(&db, &config, 1).await;
    second.store(&[of(3, 252.0), of(2, 255.0)]).await;
    assert_eq!(
        db.text(&sql).await,
        format!("{}|-|255|-", id("01")),
        "in the order of time"
    );
    // What was said of a moment is not taken back.
    first.store(&[of(1, 100.0), of(2, 100.0)]).await;
    assert_eq!(db.text(&sql).await, format!("{}|-|255|-", id("01")));
    first.store(&[of(4, 250.0), of(5, 260.0), of(6, 260.0)]).await;
    let both = format!("{}|22:04|255|250,{}|-|260|-", id("01"), id("05"));
    assert_eq!(db.text(&sql).await, both);
    // A threshold that is no more ends its alerts.
    let mut other = config.clone();
    for threshold in other.alerts.iter_mut().flat_map(|alerts| &mut alerts.thresholds) {
        threshold.name = "Other".to_owned();
    }
    Partition::claim(&db, &other, 2).await;
    let open = sql.replace("ORDER BY", "AND ended_at IS NULL ORDER BY");
    assert_eq!(db.text(&open).await, "");
    db.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn an_alert_that_began_under_an_old_name_ends_under_the_new_one() {
    let db = Database::new().await;
    let old = config(&db, "t");
    let from: Timestamp = "2026-11-20T22:00:00Z".parse().unwrap();
    let of = |minute, voltage| record("m", from, minute, voltage);
    let mut partition = Partition::claim(&db, &old, 0).await;
    partition.store(&[of(0, 260.0), of(1, 260.0)]).await;
    let mut new = old.clone();
    new.name = format!("{}-renamed", db.pipeline);
    new.once.renamed_from = Some(format!("test/{}", db.pipeline));
    let mut renamed = Partition::claim(&db, &new, 0).await;
    renamed.store(&[of(2, 261.0), of(3, 240.0)]).await;
    let sql = format!(
        "SELECT id, pipeline, to_char(ended_at AT TIME ZONE 'UTC', 'HH24:MI') FROM corrente.alerts \
         WHERE pipeline LIKE 'test/{}%'",
        db.pipeline
    );
    let name = format!("test/{}", db.pipeline);
    let expected = format!("{name}/Overvoltage/m/2026-11-20T22:00:00.000Z|{name}-renamed|22:03");
    assert_eq!(db.text(&sql).await, expected);
    db.forget(&new.name).await;
    db.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn alerts_are_kept_as_long_as_the_readings_they_tell_of() {
    let db = Database::new().await;
    let mut config = config(&db, "t");
    let SinkConfig::Postgres { tables, .. } = &mut config.sink else {
        panic!("not PostgreSQL");
    };
    tables.retention = Some("30d".parse().unwrap());
    let from: Timestamp = "2026-11-20T22:00:00Z".parse().unwrap();
    let of = |meter, minute, voltage| record(meter, from, minute, voltage);
    let mut partition = Partition::claim(&db, &config, 0).await;
    partition
        .store(&[
            of("m", 0, 260.0),
            of("n", 0, 260.0),
            of("m", 1, 260.0),
            of("n", 1, 260.0),
            of("m", 3, 240.0),
        ])
        .await;
    let sql = format!(
        "SELECT meter FROM corrente.alerts WHERE pipeline = 'test/{}' ORDER BY 1",
        db.pipeline
    );
    round(&config, "2026-12-20T22:02:00Z").await;
    assert_eq!(db.text(&sql).await, "m,n");
    round(&config, "2026-12-20T22:04:00Z").await;
    assert_eq!(db.text(&sql).await, "n", "one that lasts is not over");
    db.drop().await;
}

/// A process that ends with its test.
struct Process(Child);

impl Process {
    /// Ends it as a power cut does.
    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A worker in a group of its own: the last one was killed, and would be waited for in its group.
fn worker(config: &PipelineConfig, folder: &std::path::Path) -> Process {
    let file = folder.join("pipeline.json");
    let config = PipelineConfig {
        group: unique("group"),
        ..config.clone()
    };
    std::fs::write(&file, json!(config).to_string()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_corrente-pipeline"));
    command.arg("--config").arg(file).args(["--listen", "0"]);
    Process(command.stdout(Stdio::null()).spawn().unwrap())
}

/// A real Alertmanager.
struct Manager {
    port: u16,
    _process: Process,
    _folder: TempDir,
}

impl Manager {
    async fn start(port: u16) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("alertmanager.yml");
        std::fs::write(&file, "route: {receiver: nobody}\nreceivers: [{name: nobody}]\n").unwrap();
        let process = Command::new("prometheus-alertmanager")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg("--cluster.listen-address=")
            .stderr(Stdio::null())
            .spawn()
            .expect("e2e/install.sh installs prometheus-alertmanager");
        let manager = Self {
            port,
            _process: Process(process),
            _folder: folder,
        };
        wait("the Alertmanager", async || manager.get("/-/ready").is_some()).await;
        manager
    }

    fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.contains(" 200 ").then(|| body.to_owned())
    }

    /// The alerts that go on, by meter.
    fn active(&self) -> BTreeMap<String, Value> {
        let body = self.get("/api/v2/alerts?active=true").unwrap_or_default();
        let alerts: Vec<Value> = serde_json::from_str(&body).unwrap_or_default();
        alerts
            .into_iter()
            .map(|alert| {
                (
                    alert["labels"]["meter"].as_str().unwrap_or_default().to_owned(),
                    alert,
                )
            })
            .collect()
    }
}

fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// A reader of a topic's one partition from its beginning.
fn reader(topic: &str) -> BaseConsumer {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", servers())
        .set("group.id", unique("reader"))
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Beginning).unwrap();
    consumer.assign(&list).unwrap();
    consumer
}

/// What was told, one entry for each id and status, and that each repetition is the same.
fn read(consumer: &BaseConsumer, told: &mut BTreeMap<(String, String), Value>) {
    while let Some(message) = consumer.poll(Duration::from_millis(100)) {
        let message = message.unwrap();
        let alert: Value = serde_json::from_slice(message.payload().unwrap()).unwrap();
        let text = |name: &str| alert[name].as_str().unwrap().to_owned();
        assert_eq!(message.key().unwrap(), text("meter").as_bytes());
        let key = (text("id"), text("status"));
        if let Some(before) = told.insert(key, alert.clone()) {
            assert_eq!(before, alert, "told twice, and not the same");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka, PostgreSQL and Alertmanager"]
async fn alerts_are_told_although_everything_is_killed() {
    let (db, topic, alerts) = (Database::new().await, Topic::new(1), Topic::new(1));
    topic.create().await;
    alerts.create().await;
    // There is no Alertmanager yet.
    let port = free_port();
    let mut config = config(&db, &topic.name);
    if let Some(watch) = &mut config.alerts {
        watch.topic = Some(alerts.name.clone());
        watch.alertmanager = Some(format!("http://127.0.0.1:{port}/"));
    }
    let folder = tempfile::tempdir().unwrap();
    let from = Timestamp(Timestamp::now().0 - 3_600_000);
    for meter in 0..20 {
        for minute in 0..3 {
            topic.send(0, &record(&format!("m{meter}"), from, minute, 255.0));
        }
    }
    let (consumer, mut told) = (reader(&alerts.name), BTreeMap::new());
    for _ in 0..3 {
        let first = worker(&config, folder.path());
        // Killed as soon as it is heard of, wherever it is then.
        let before = told.len();
        wait("something told", async || {
            read(&consumer, &mut told);
            told.len() > before || told.len() == 20
        })
        .await;
        first.kill();
    }
    let second = worker(&config, folder.path());
    wait("every alert on the topic", async || {
        read(&consumer, &mut told);
        told.len() == 20
    })
    .await;
    let manager = Manager::start(port).await;
    wait("every alert at the Alertmanager", async || {
        manager.active().len() == 20
    })
    .await;
    let alert = &manager.active()["m7"];
    let labels = json!({"alertname": "Overvoltage", "meter": "m7", "metric": "voltage", "severity": "warning",
        "pipeline": format!("test/{}", db.pipeline)});
    assert_eq!(alert["labels"], labels);
    assert_eq!(alert["annotations"]["summary"], "The voltage is too high");
    let id = format!("test/{}/Overvoltage/m7/{from}", db.pipeline);
    assert_eq!(alert["annotations"]["id"], id.as_str());
    // Most of them end.
    for meter in 0..15 {
        topic.send(0, &record(&format!("m{meter}"), from, 5, 249.0));
    }
    wait("the ends on the topic", async || {
        read(&consumer, &mut told);
        told.len() == 35
    })
    .await;
    wait("the ends at the Alertmanager", async || {
        manager.active().keys().eq(["m15", "m16", "m17", "m18", "m19"])
    })
    .await;
    let ended = &told[&(id, "resolved".to_owned())];
    assert_eq!(
        (&ended["value"], &ended["endValue"]),
        (&json!(255.0), &json!(249.0))
    );
    drop(second);
    topic.delete().await;
    alerts.delete().await;
    db.drop().await;
}
