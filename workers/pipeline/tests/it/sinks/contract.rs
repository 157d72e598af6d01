//! InfluxDB 2 and 3 by their contract: a server that takes exactly what theirs take, and answers as they do.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard},
};

use corrente_config::{PipelineConfig, Secrets, pipeline::SinkConfig};
use corrente_crds::{pipeline::ColumnType, sinks::InfluxdbVersion};
use corrente_pipeline::{
    assignment::Position,
    batch::{DeadLetter, Place},
    sink::{
        SinkError,
        influx::InfluxSink,
        outside::{Offsets, SetAside},
    },
};
use corrente_runtime::{broker::TopicPartition, memory::MemoryBroker};
use serde_json::json;

use crate::support::{Worker, config, producer, record, send, wait};

/// What is kept outside of the sink, in memory.
#[derive(Clone, Default)]
pub struct Outside(Arc<Mutex<Kept>>);

#[derive(Default)]
pub struct Kept {
    offsets: BTreeMap<TopicPartition, Position>,
    letters: BTreeMap<i64, String>,
}

impl Outside {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap()
    }
}

impl Offsets for Outside {
    fn load(&self, partition: &TopicPartition) -> Result<Option<Position>, SinkError> {
        Ok(self.kept().offsets.get(partition).copied())
    }

    fn save(&self, partition: &TopicPartition, position: &Position) -> Result<(), SinkError> {
        self.kept().offsets.insert(partition.clone(), *position);
        Ok(())
    }
}

impl SetAside for Outside {
    fn set_aside(&self, _: &Place, letters: &[DeadLetter<'_>]) -> Result<(), SinkError> {
        let mut kept = self.kept();
        for letter in letters {
            kept.letters
                .insert(letter.origin.offset, letter.refusal.reason.clone());
        }
        Ok(())
    }
}

/// What the server has stored: the lines; and what it was asked that it should not have been.
#[derive(Default)]
struct Seen {
    lines: BTreeSet<String>,
    wrong: Vec<String>,
    busy: u32,
}

fn serve(version: InfluxdbVersion) -> (u16, Arc<Mutex<Seen>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = Arc::new(Mutex::new(Seen {
        busy: 2,
        ..Seen::default()
    }));
    let shared = seen.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let shared = shared.clone();
            std::thread::spawn(move || while answer(version, stream.as_ref().unwrap(), &shared).is_some() {});
        }
    });
    (port, seen)
}

/// Answers one request; `None` at the end of the connection.
fn answer(version: InfluxdbVersion, mut stream: &TcpStream, seen: &Mutex<Seen>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let (mut request, mut headers, mut length) = (String::new(), BTreeMap::new(), 0);
    reader.read_line(&mut request).ok().filter(|count| *count > 0)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.parse().ok()?;
        }
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let (path, authorization) = match version {
        InfluxdbVersion::V3 => (
            "/api/v3/write_lp?db=plant%20a&precision=millisecond&accept_partial=true",
            "Bearer secret",
        ),
        _ => (
            "/api/v2/write?org=acme&bucket=plant%20a&precision=ms",
            "Token secret",
        ),
    };
    let mut seen = seen.lock().unwrap();
    let expected = (
        format!("POST {path} HTTP/1.1"),
        Some(authorization),
        Some("text/plain; charset=utf-8"),
    );
    let header = |name: &str| headers.get(name).map(String::as_str);
    let found = (
        request.trim_end().to_owned(),
        header("authorization"),
        header("content-type"),
    );
    if found != expected {
        seen.wrong.push(format!("{found:?}"));
    }
    let body = String::from_utf8(body).unwrap();
    let (status, said) = if seen.busy > 0 && !body.is_empty() {
        seen.busy -= 1;
        (
            "429 Too Many Requests",
            json!({"code": "too many requests", "message": "slow down"}),
        )
    } else {
        let bad = |line: &&str| line.contains("voltage=\"");
        seen.lines
            .extend(body.lines().filter(|line| !bad(line)).map(str::to_owned));
        let numbered = body.lines().enumerate().filter(|(_, line)| bad(line));
        let data: Vec<_> = numbered
            .map(|(at, line)| json!({"original_line": line, "line_number": at + 1, "error_message": "invalid column type"}))
            .collect();
        match version {
            _ if data.is_empty() => ("204 No Content", json!(null)),
            InfluxdbVersion::V3 => (
                "400 Bad Request",
                json!({"error": "partial write of line protocol occurred", "data": data}),
            ),
            _ => (
                "422 Unprocessable Entity",
                json!({"code": "unprocessable entity", "message":
                    "failure writing points to database: partial write: field type conflict: input field \"voltage\" on measurement \"readings\" is type string, already exists as type float dropped=1"}),
            ),
        }
    };
    let said = if said.is_null() {
        String::new()
    } else {
        said.to_string()
    };
    let reply = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{said}",
        said.len()
    );
    stream.write_all(reply.as_bytes()).ok()
}

async fn speaks(version: InfluxdbVersion) {
    let (port, seen) = serve(version);
    let folder = tempfile::tempdir().unwrap();
    let secrets = Secrets::new(folder.path());
    std::fs::create_dir_all(secrets.sink_auth()).unwrap();
    std::fs::write(secrets.sink_auth().join("token"), "secret\n").unwrap();
    let sink = json!({
        "url": format!("http://127.0.0.1:{port}"), "version": version, "database": "plant a", "organization": "acme",
        "credentialsSecret": "s",
    });
    let sink = SinkConfig::Influxdb(serde_json::from_value(sink).unwrap());
    let mut config: PipelineConfig = config("contract", &["t"], sink);
    config.columns.insert("energy".to_owned(), ColumnType::Numeric);
    let (broker, outside) = (MemoryBroker::new(1), Outside::default());
    let producer = producer(&broker, "t");
    for seq in 0..300 {
        send(&producer, 0, &record("s", seq));
    }
    send(
        &producer,
        0,
        r#"{"ts":"2026-11-20T22:20:00Z","meter":"m","text":"two\nlines","energy":18446744073709551615}"#,
    );
    send(
        &producer,
        0,
        r#"{"ts":"2026-11-20T22:20:00Z","meter":"m","voltage":"high"}"#,
    );
    send(&producer, 0, "hello");
    for seq in 300..400 {
        send(&producer, 0, &record("s", seq));
    }
    let sink = InfluxSink::new(&config, &secrets, outside.clone(), outside.clone()).unwrap();
    let worker = Worker::start(&config, broker.source(&config.topics), sink);
    wait("the rows", async || {
        worker.report().rows == 401 && worker.report().dead_lettered == 2
    })
    .await;
    worker.stop().await;
    let seen = seen.lock().unwrap();
    assert_eq!(seen.wrong, Vec::<String>::new());
    // One of the points is of two lines.
    assert_eq!(seen.lines.len(), 402);
    assert!(
        seen.lines
            .iter()
            .any(|line| line.contains("energy=18446744073709551615u"))
    );
    let kept = outside.0.lock().unwrap();
    let place = kept.offsets.values().next().unwrap();
    assert_eq!(place.next_offset, 403);
    let reasons: Vec<_> = kept
        .letters
        .iter()
        .map(|(offset, reason)| (*offset, reason.as_str()))
        .collect();
    assert_eq!((reasons[0].0, reasons[1].0, reasons.len()), (301, 302, 2));
    assert!(reasons[0].1.contains("type"), "{reasons:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn influxdb_2() {
    speaks(InfluxdbVersion::V2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn influxdb_3() {
    speaks(InfluxdbVersion::V3).await;
}
