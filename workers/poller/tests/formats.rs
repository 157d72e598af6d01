//! The formats: waiting for a schema registry, and read back as they are by clients and a registry that are not
//! the project's own.
#![cfg(feature = "kafka")]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use corrente_config::{PollerConfig, Secrets};
use corrente_crds::output::SchemaRegistry;
use corrente_poller::{
    encode::{Encoder, SchemaId, SchemaLanguage, SchemaRequest},
    formatter::Formatter,
    kafka::KafkaProducer,
    publish::{Publisher, Trouble},
    registry::{Registry, RegistryError, http::HttpRegistry},
    spool::{Limits, Spool, shared::SharedSpool},
    window::WindowLimits,
};
use corrente_record::{Quality, Reading, Timestamp, Value};
use corrente_runtime::{
    broker::{Producer, Source as _, SourceEvent, Start},
    memory::MemoryBroker,
};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

fn config(bootstrap: &str, topic: &str, format: &str) -> PollerConfig {
    serde_json::from_value(json!({
        "namespace": "site-a", "name": "plant", "shard": 0, "interval": "1s", "timeout": "1s", "retries": 0,
        "maps": {"profile/iskra-mc3": {"registers": [
            {"name": "voltage_l1_n", "address": 0, "function": "input", "type": "u16", "scale": 0.1},
            {"name": "active_power", "address": 1, "function": "input", "type": "i32"},
            {"name": "energy", "address": 3, "function": "input", "type": "u64"},
            {"name": "closed", "address": 0, "function": "discrete", "type": "bool"},
            {"name": "serial", "address": 7, "function": "input", "type": "string", "length": 4},
        ]}},
        "endpoints": [{"name": "e", "address": "gateway", "meters": [
            {"name": "feeder-12", "unitId": 1, "profile": "iskra-mc3", "labels": {"site": "north"}},
        ]}],
        "output": {"bootstrapServers": [bootstrap], "topic": topic, "format": format,
            "headers": {"cloudEvents": true, "traceparent": true}},
        "buffer": {"maxBytes": 1_000_000, "syncInterval": "1s"},
    }))
    .unwrap()
}

/// A spool of three records: a good one, one with nothing but reasons, and one whose meter is no longer there.
async fn spool(dir: &Path) -> SharedSpool {
    let spool = SharedSpool::new(Spool::open(dir, Limits::new(1 << 20)).unwrap());
    let good = Reading {
        ts: Timestamp(1_795_213_200_123),
        meter: "feeder-12".into(),
        slot: Timestamp(1_795_213_200_000),
        quality: Quality::Good,
        skipped: 2,
        labels: Arc::new(BTreeMap::from([("site".to_owned(), "north".to_owned())])),
        values: vec![
            ("voltage_l1_n".into(), Value::Float(229.8)),
            ("active_power".into(), Value::Int(-12)),
            ("energy".into(), Value::UInt(u64::MAX)),
            ("closed".into(), Value::Bool(true)),
            ("serial".into(), Value::Text("é\"1\"".to_owned())),
        ],
        bad: vec![],
    };
    let failed = Reading {
        quality: Quality::Failed,
        skipped: 0,
        values: vec![],
        bad: vec![("energy".into(), "no answer".to_owned())],
        ..good.clone()
    };
    let gone = Reading {
        meter: "gone".into(),
        values: vec![("energy".into(), Value::UInt(7))],
        ..good.clone()
    };
    for reading in [&good, &failed, &gone] {
        spool.append(reading).unwrap();
    }
    spool.sync().await.unwrap();
    spool
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), wait)
        .await
        .unwrap_or_else(|_| panic!("waited in vain for {what}"));
}

/// Publishes a spool in the format of the configuration until it is empty.
async fn publish<P: Producer>(
    spool: &SharedSpool,
    config: &PollerConfig,
    producer: P,
    deliveries: mpsc::UnboundedReceiver<corrente_runtime::broker::Delivery>,
    registry: Option<Arc<dyn Registry>>,
    trouble: &Arc<Trouble>,
) {
    let drain = CancellationToken::new();
    let task = tokio::spawn({
        let (spool, drain, trouble) = (spool.clone(), drain.clone(), trouble.clone());
        let formatter = Formatter::new(Encoder::new(config), registry);
        let topic = config.output.topic.clone();
        async move {
            Publisher::new(
                spool,
                producer,
                deliveries,
                &topic,
                &trouble,
                WindowLimits::default(),
            )
            .in_format(formatter)
            .run(drain)
            .await;
        }
    });
    until("an empty spool", || spool.lock().stats().pending == 0).await;
    drain.cancel();
    task.await.unwrap();
}

/// A registry that says no twice, first as if it were away, then as one that finds the schema incompatible.
struct Moody {
    asked: AtomicUsize,
    trouble: Arc<Trouble>,
}

impl Registry for Moody {
    fn register(&self, request: &SchemaRequest) -> Result<SchemaId, RegistryError> {
        assert!(
            request.subject.starts_with("t-dev.corrente."),
            "{}",
            request.subject
        );
        match self.asked.fetch_add(1, Ordering::Relaxed) {
            0 => Err(RegistryError::Away {
                url: "http://registry".to_owned(),
                reason: "connection refused".to_owned(),
            }),
            1 => {
                let said = self.trouble.get().unwrap();
                assert!(said.contains("does not answer: connection refused"), "{said}");
                Err(RegistryError::Refused {
                    subject: request.subject.clone(),
                    reason: "incompatible".to_owned(),
                })
            }
            2 => {
                let said = self.trouble.get().unwrap();
                assert!(
                    said.contains("refuses the schema") && said.contains("incompatible"),
                    "{said}"
                );
                Ok(SchemaId(1))
            }
            _ => Ok(SchemaId(0x0102_0304)),
        }
    }
}

#[tokio::test]
async fn records_wait_for_a_registry_that_is_away_or_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let spool = spool(dir.path()).await;
    let broker = MemoryBroker::new(1);
    let (sender, deliveries) = mpsc::unbounded_channel();
    let trouble = Arc::new(Trouble::default());
    let registry = Arc::new(Moody {
        asked: AtomicUsize::new(0),
        trouble: trouble.clone(),
    });
    let config = config("kafka:9092", "t", "avro");
    let producer = broker.producer("t", sender);
    publish(
        &spool,
        &config,
        producer,
        deliveries,
        Some(registry.clone()),
        &trouble,
    )
    .await;
    // Once for each of the two schemas, and twice in vain.
    assert_eq!(registry.asked.load(Ordering::Relaxed), 4);
    assert_eq!(trouble.get(), None);
    let mut source = broker.source(&["t".to_owned()]);
    let mut frames = Vec::new();
    while frames.len() < 3 {
        match source.next().await {
            SourceEvent::Assigned(partitions) => {
                source.start(partitions.into_iter().map(|p| (p, Start::Beginning)).collect());
            }
            SourceEvent::Messages(_, messages) => {
                frames.extend(messages.iter().map(|m| m.payload.unwrap()[..5].to_vec()));
            }
            _ => {}
        }
    }
    assert_eq!(frames, [[0, 0, 0, 0, 1], [0, 0, 0, 0, 1], [0, 1, 2, 3, 4]]);
}

#[tokio::test]
async fn a_registry_that_is_not_configured_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let spool = spool(dir.path()).await;
    let mut formatter = Formatter::new(Encoder::new(&config("kafka:9092", "t", "protobuf")), None);
    let stored = spool.lock().read(0, 1, 1000).unwrap();
    let error = format!("{:?}", formatter.format(&stored[0].payload).unwrap_err());
    assert!(
        error.contains("NoRegistry") && error.contains("schemaRegistry"),
        "{error}"
    );
}

#[test]
fn a_registry_that_cannot_be_reached_is_named() {
    let registry = SchemaRegistry {
        // Reserved, and never listened on.
        url: "http://127.0.0.1:1".to_owned(),
        ..SchemaRegistry::default()
    };
    let error = HttpRegistry::new(&registry, &Secrets::default())
        .register(&schema("{\"type\":\"string\"}"))
        .unwrap_err();
    assert!(matches!(error, RegistryError::Away { .. }), "{error}");
    let secured = SchemaRegistry {
        url: "https://127.0.0.1:1".to_owned(),
        ca_secret: Some("ca".to_owned()),
        ..SchemaRegistry::default()
    };
    let error = HttpRegistry::new(&secured, &Secrets::new("/nowhere"))
        .register(&schema("{\"type\":\"string\"}"))
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("failed to read /nowhere/registry/ca/ca.crt"),
        "{error}"
    );
}

fn schema(text: &str) -> SchemaRequest {
    SchemaRequest {
        subject: "t-dev.corrente.x".to_owned(),
        language: SchemaLanguage::Avro,
        schema: text.to_owned(),
    }
}

// --- against real servers ---------------------------------------------------------------------------------

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set; e2e/stack.sh env says what it is"))
}

/// franz-go's schema registry; it ends when dropped.
struct RealRegistry {
    process: Child,
    http: String,
    https: String,
}

impl RealRegistry {
    fn start(folder: &Path) -> Self {
        let mut process = Command::new(variable("CORRENTE_REGISTRY"))
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let ready: BTreeMap<String, String> = serde_json::from_str(&line).unwrap();
        Self {
            process,
            http: ready["http"].clone(),
            https: ready["https"].clone(),
        }
    }
}

impl Drop for RealRegistry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Publishes the three records in a format to a topic of its own; the topic.
async fn published(format: &str, registry: Option<&str>) -> String {
    let bootstrap = variable("CORRENTE_TEST_KAFKA");
    let topic = format!("{format}-{:016x}", rand::random::<u64>());
    let dir = tempfile::tempdir().unwrap();
    let spool = spool(dir.path()).await;
    let config = config(&bootstrap, &topic, format);
    let trouble = Arc::new(Trouble::default());
    let client: Option<Arc<dyn Registry>> = registry.map(|url| {
        let config = SchemaRegistry {
            url: format!("{url}/"),
            ..SchemaRegistry::default()
        };
        Arc::new(HttpRegistry::new(&config, &Secrets::default())) as Arc<dyn Registry>
    });
    let (sender, deliveries) = mpsc::unbounded_channel();
    let producer = KafkaProducer::new(
        &config.output,
        &Secrets::default(),
        "test",
        sender,
        trouble.clone(),
    );
    publish(&spool, &config, producer, deliveries, client, &trouble).await;
    topic
}

/// What the reader prints of a topic with the three records, in the order of their seq.
async fn read_back(format: &str, registry: Option<&str>) -> Vec<serde_json::Value> {
    let (bootstrap, topic) = (variable("CORRENTE_TEST_KAFKA"), published(format, registry).await);
    let output = Command::new(variable("CORRENTE_PYTHON"))
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../e2e/readers/read.py"))
        .args([&bootstrap, &topic, format, "3"])
        .args(registry)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut lines: Vec<serde_json::Value> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    lines.sort_by_key(|line| line["value"]["seq"].as_u64());
    lines
}

/// What is the same in every format: keys, headers, and the fields with plain types.
fn check(lines: &[serde_json::Value]) {
    let keys: Vec<_> = lines.iter().map(|line| line["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["feeder-12", "feeder-12", "gone"]);
    let headers: BTreeMap<String, String> =
        serde_json::from_value::<Vec<(String, String)>>(lines[0]["headers"].clone())
            .unwrap()
            .into_iter()
            .collect();
    let value = &lines[0]["value"];
    let stream = value["stream"].as_str().unwrap();
    assert_eq!(headers["ce_id"], format!("{stream}/{}", value["seq"]));
    assert_eq!(headers["ce_specversion"], "1.0");
    assert_eq!(headers["traceparent"].len(), 55);
    for (field, wanted) in [
        ("meter", json!("feeder-12")),
        ("quality", json!("good")),
        ("skipped", json!(2)),
        ("site", json!("north")),
        ("voltage_l1_n", json!(229.8)),
        ("active_power", json!(-12)),
        ("closed", json!(true)),
        ("serial", json!("é\"1\"")),
    ] {
        assert_eq!(value[field], wanted, "{field}");
    }
    assert_eq!(value.get("bad"), None);
    let failed = &lines[1]["value"];
    assert_eq!(failed["quality"], "failed");
    assert_eq!(failed.get("voltage_l1_n"), None);
    assert_eq!(lines[2]["value"]["energy"].as_f64(), Some(7.0));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka"]
async fn kafka_python_reads_json() {
    let lines = read_back("json", None).await;
    check(
        &lines[..2]
            .iter()
            .cloned()
            .chain([json!({"key": "gone", "value": {"energy": 7.0}})])
            .collect::<Vec<_>>(),
    );
    assert_eq!(lines[0]["value"]["energy"], json!(u64::MAX));
    assert_eq!(lines[0]["value"]["ts"], "2026-11-20T22:20:00.123Z");
    assert_eq!(lines[1]["value"]["bad"], json!({"energy": "no answer"}));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka"]
async fn kafka_python_reads_connect_json() {
    let lines = read_back("connect-json", None).await;
    check(&lines);
    for line in &lines {
        assert_eq!(line["schema"]["type"], "struct");
        let fields: BTreeMap<&str, &serde_json::Value> = line["schema"]["fields"]
            .as_array()
            .unwrap()
            .iter()
            .map(|field| (field["field"].as_str().unwrap(), field))
            .collect();
        let value = line["value"].as_object().unwrap();
        // The schema has what the record has, and what it must have the record has.
        assert!(value.keys().all(|name| fields.contains_key(name.as_str())));
        assert!(
            fields
                .iter()
                .all(|(name, field)| field["optional"] == true || value.contains_key(*name))
        );
    }
    assert_eq!(lines[0]["value"]["energy"], json!(u64::MAX));
    // 2026-11-20T22:20:00.123Z, in milliseconds since 1970.
    assert_eq!(lines[0]["value"]["ts"], json!(1_795_213_200_123_u64));
    assert_eq!(lines[0]["value"]["slot"], json!(1_795_213_200_000_u64));
    assert_eq!(lines[1]["value"]["bad"], r#"{"energy":"no answer"}"#);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka"]
async fn fastavro_reads_avro_by_the_registrys_schema() {
    let folder = tempfile::tempdir().unwrap();
    let registry = RealRegistry::start(folder.path());
    let lines = read_back("avro", Some(&registry.http)).await;
    check(&lines);
    assert_eq!(lines[0]["value"]["energy"], u64::MAX.to_string());
    assert_eq!(lines[0]["value"]["ts"], "2026-11-20T22:20:00.123Z");
    assert_eq!(lines[0]["value"]["slot"], "2026-11-20T22:20:00.000Z");
    assert_eq!(lines[1]["value"]["bad"], r#"{"energy":"no answer"}"#);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka"]
async fn google_reads_protobuf_by_the_registrys_schema() {
    let folder = tempfile::tempdir().unwrap();
    let registry = RealRegistry::start(folder.path());
    let lines = read_back("protobuf", Some(&registry.http)).await;
    check(&lines);
    assert_eq!(lines[0]["value"]["energy"], json!(u64::MAX));
    assert_eq!(lines[0]["value"]["ts"], "2026-11-20T22:20:00.123Z");
    assert_eq!(lines[0]["value"]["slot"], "2026-11-20T22:20:00Z");
    assert_eq!(lines[1]["value"]["bad"], r#"{"energy":"no answer"}"#);
}

#[test]
#[ignore = "needs a schema registry"]
fn a_registry_over_tls_wants_its_authority_and_its_password() {
    let folder = tempfile::tempdir().unwrap();
    let secrets = Secrets::new(folder.path());
    for made in [secrets.registry_ca(), secrets.registry_auth()] {
        std::fs::create_dir_all(made).unwrap();
    }
    let registry = RealRegistry::start(&secrets.registry_ca());
    let mut config = SchemaRegistry {
        url: registry.https.clone(),
        basic_auth_secret: Some("auth".to_owned()),
        ca_secret: Some("ca".to_owned()),
    };
    let write = |file: &str, text: &str| std::fs::write(secrets.registry_auth().join(file), text).unwrap();
    write("username", "corrente");
    write("password", "wrong");
    let client = HttpRegistry::new(&config, &secrets);
    let error = client.register(&schema("\"string\"")).unwrap_err().to_string();
    assert!(error.contains("answers 403 for t-dev.corrente.x"), "{error}");
    // A password that is changed counts from then on.
    write("password", "pass:word\n");
    let first = client.register(&schema("\"string\"")).unwrap();
    let other = client.register(&schema("\"long\"")).unwrap();
    assert_eq!(client.register(&schema("\"string\"")).unwrap(), first);
    assert_eq!(BTreeSet::from([first.0, other.0]).len(), 2);
    config.ca_secret = None;
    let error = HttpRegistry::new(&config, &secrets)
        .register(&schema("\"string\""))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("does not answer") && error.contains("UnknownIssuer"),
        "{error}"
    );
}

/// Kafka Connect with one worker in one process; it ends when dropped.
struct Connect {
    process: Child,
    log: std::path::PathBuf,
}

impl Connect {
    /// Starts the connectors that these properties describe. Their files and the log are in `folder`.
    fn start(folder: &Path, connectors: &[String]) -> Self {
        let worker = format!(
            "bootstrap.servers={}\nlisteners=http://127.0.0.1:0\noffset.storage.file.filename={}\n\
             key.converter=org.apache.kafka.connect.storage.StringConverter\n\
             value.converter=org.apache.kafka.connect.json.JsonConverter\nconsumer.auto.offset.reset=earliest\n",
            variable("CORRENTE_TEST_KAFKA"),
            folder.join("offsets").display()
        );
        let mut files = Vec::new();
        for (number, text) in [&worker].into_iter().chain(connectors).enumerate() {
            let file = folder.join(format!("{number}.properties"));
            std::fs::write(&file, text).unwrap();
            files.push(file);
        }
        let log = folder.join("connect.log");
        let out = std::fs::File::create(&log).unwrap();
        let process = Command::new("java")
            // The star is for the JVM to expand.
            .args(["-Xmx256m", "-cp", &format!("{}/*", variable("CORRENTE_CONNECT"))])
            .arg("org.apache.kafka.connect.cli.ConnectStandalone")
            .args(files)
            .stdin(Stdio::null())
            .stderr(out.try_clone().unwrap())
            .stdout(out)
            .spawn()
            .unwrap();
        Self { process, log }
    }
}

impl Drop for Connect {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka and PostgreSQL"]
async fn kafka_connect_reads_json_and_makes_a_table_of_connect_json() {
    let url = variable("CORRENTE_TEST_POSTGRES");
    let address: tokio_postgres::Config = url.parse().unwrap();
    let (client, connection) = address.connect(tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let (json, enveloped) = (
        published("json", None).await,
        published("connect-json", None).await,
    );
    let table = enveloped.replace('-', "_");
    let folder = tempfile::tempdir().unwrap();
    let written = folder.path().join("written");
    let rest = url.split_once('@').unwrap().1;
    let connect = Connect::start(
        folder.path(),
        &[
            format!(
                "name=table\nconnector.class=io.debezium.connector.jdbc.JdbcSinkConnector\ntopics={enveloped}\n\
                 connection.url=jdbc:postgresql://{rest}\nconnection.username={}\nconnection.password={}\n\
                 insert.mode=insert\nprimary.key.mode=none\nschema.evolution=basic\ncollection.name.format={table}\n",
                address.get_user().unwrap(),
                std::str::from_utf8(address.get_password().unwrap()).unwrap()
            ),
            format!(
                "name=file\nconnector.class=org.apache.kafka.connect.file.FileStreamSinkConnector\ntopics={json}\n\
                 value.converter=org.apache.kafka.connect.json.JsonConverter\nvalue.converter.schemas.enable=false\n\
                 file={}\n",
                written.display()
            ),
        ],
    );
    let lines = || std::fs::read_to_string(&written).unwrap_or_default();
    until("the flat records", || lines().lines().count() == 3).await;
    // Without a schema the converter takes every whole number for a signed one of 64 bits, and 2^64 - 1 for -1;
    // the guide says so. With one the table below has all its digits.
    for field in [
        "meter=feeder-12",
        "voltage_l1_n=229.8",
        "bad={energy=no answer}",
        "energy=-1",
    ] {
        assert!(lines().contains(field), "{field} is not in {}", lines());
    }
    let rows = async {
        loop {
            // The table is made by the first record.
            if let Ok(row) = client
                .query_one(&format!("SELECT count(*) FROM {table}"), &[])
                .await
                && row.get::<_, i64>(0) == 3
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), rows)
        .await
        .expect("waited in vain for the rows");
    let types = text(
        &client,
        &format!(
            "SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' ORDER BY attnum) \
             FROM pg_attribute WHERE attrelid = '{table}'::regclass AND attnum > 0"
        ),
    )
    .await;
    assert_eq!(
        types,
        "ts timestamp(6) without time zone, meter text, slot timestamp(6) without time zone, stream text, seq bigint, \
         quality text, skipped integer, bad text, site text, voltage_l1_n double precision, active_power bigint, \
         energy numeric(20,0), closed boolean, serial text"
    );
    let shown = text(
        &client,
        &format!(
            "SELECT string_agg(concat_ws('|', ts, meter, slot, seq, quality, skipped, bad, site, voltage_l1_n, \
             active_power, energy, closed, serial), E'\\n' ORDER BY seq) FROM {table}"
        ),
    )
    .await;
    let begins = |meter: &str| format!("2026-11-20 22:20:00.123|{meter}|2026-11-20 22:20:00");
    assert_eq!(
        shown.lines().collect::<Vec<_>>(),
        [
            format!(
                "{}|1|good|2|north|229.8|-12|18446744073709551615|t|é\"1\"",
                begins("feeder-12")
            ),
            format!(
                "{}|2|failed|{{\"energy\":\"no answer\"}}|north",
                begins("feeder-12")
            ),
            format!("{}|3|good|2|north|7", begins("gone")),
        ]
    );
    client
        .batch_execute(&format!("DROP TABLE {table}"))
        .await
        .unwrap();
    drop(connect);
}

async fn text(client: &tokio_postgres::Client, query: &str) -> String {
    client.query_one(query, &[]).await.unwrap().get(0)
}
