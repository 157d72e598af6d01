//! The chain in one process: in-process broker to SQLite.

use std::{collections::BTreeMap, path::Path};

use corrente_config::{PipelineConfig, derived::PerMeter, pipeline::SinkConfig};
use corrente_crds::pipeline::ColumnType;
use corrente_pipeline::sink::sqlite::SqliteSink;
use corrente_runtime::memory::MemoryBroker;
use rusqlite::Connection;

use crate::support::{Worker, config, producer, record, send, wait};

fn at(path: &Path) -> PipelineConfig {
    config(
        "local",
        &["t"],
        SinkConfig::Sqlite {
            path: path.to_owned(),
            table: "readings".to_owned(),
        },
    )
}

fn one<T: rusqlite::types::FromSql>(path: &Path, sql: &str) -> T {
    Connection::open(path)
        .unwrap()
        .query_row(sql, [], |row| row.get(0))
        .unwrap()
}

/// Rows in the table; 0 before it is made.
fn rows(path: &Path) -> i64 {
    let made = "SELECT count(*) FROM sqlite_master WHERE name = 'readings'";
    if one::<i64>(path, made) == 0 {
        0
    } else {
        one(path, "SELECT count(*) FROM readings")
    }
}

#[tokio::test]
async fn stores_widens_and_sets_aside() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/readings.db");
    let mut config = at(&path);
    config.columns = BTreeMap::from([("energy".to_owned(), ColumnType::Numeric)]);
    let broker = MemoryBroker::new(2);
    let worker = Worker::start(
        &config,
        broker.source(&config.topics),
        SqliteSink::new(&config).unwrap(),
    );
    let producer = producer(&broker, "t");
    for seq in 0..500 {
        send(&producer, (seq % 2) as i32, &record("s", seq));
    }
    wait("rows", async || worker.report().rows == 500).await;
    for payload in [
        "hello",
        r#"{"ts":"2026-11-20T22:20:00Z","meter":"m","voltage":"high"}"#,
        r#"{"ts":"2026-11-20T22:20:00Z","meter":"m","site":"a","SITE":"b"}"#,
        r#"{"ts":"2026-11-20T22:20:00Z","meter":"m","energy":18446744073709551615,"closed":true,"site":"north"}"#,
        r#"{"ts":"2026-11-20T22:20:00Z","meter":"m","quality":"partial","skipped":2,"bad":{"voltage":"NaN"}}"#,
        // As a poller publishes in the format connect-json, and, framed for a registry, in avro.
        r#"{"schema":{"type":"struct"},"payload":{"ts":1795213200123,"meter":"connect","slot":1795213200000,"bad":"{}"}}"#,
        "\0\0\0\0\u{1}rest",
    ] {
        send(&producer, 0, payload);
    }
    wait("the rest", async || {
        worker.report().rows == 503 && worker.report().dead_lettered == 4
    })
    .await;
    wait("readiness", async || {
        corrente_runtime::http::Probe::ready(&*worker.state).is_ok()
    })
    .await;
    worker.stop().await;
    assert_eq!(one::<i64>(&path, "SELECT count(*) FROM readings"), 503);
    assert_eq!(
        one::<String>(&path, "SELECT ts FROM readings WHERE meter = 'connect'"),
        "2026-11-20T22:20:00.123Z"
    );
    assert_eq!(
        one::<f64>(&path, "SELECT sum(voltage) FROM readings"),
        (0..500).map(|v| f64::from(v) + 0.5).sum::<f64>()
    );
    assert_eq!(
        one::<String>(&path, "SELECT energy FROM readings WHERE closed"),
        "18446744073709551615"
    );
    assert_eq!(
        one::<String>(&path, "SELECT site FROM readings WHERE closed = 1"),
        "north"
    );
    assert_eq!(
        one::<String>(&path, "SELECT bad FROM readings WHERE quality = 'partial'"),
        r#"{"voltage":"NaN"}"#
    );
    assert_eq!(one::<i64>(&path, "SELECT sum(skipped) FROM readings"), 2);
    assert_eq!(
        one::<String>(
            &path,
            "SELECT group_concat(coalesce(column_name, '-')) FROM corrente_dead_letters"
        ),
        "-,voltage,SITE,-"
    );
}

#[tokio::test]
async fn a_file_from_an_earlier_run_is_gone_on_with() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("readings.db");
    let config = at(&path);
    // Each run has a new broker, whose offsets begin anew; the spool behind it sends the last ones again.
    for (run, seqs) in [(1u64, 0..300u64), (2, 250..600), (3, 590..700)] {
        let broker = MemoryBroker::new(1);
        let worker = Worker::start(
            &config,
            broker.source(&config.topics),
            SqliteSink::new(&config).unwrap(),
        );
        let producer = producer(&broker, "t");
        for seq in seqs.clone() {
            send(&producer, 0, &record("s", seq));
        }
        let sent = seqs.end - seqs.start;
        wait(&format!("run {run}"), async || {
            worker.report().rows + worker.report().duplicates == sent
        })
        .await;
        worker.stop().await;
    }
    assert_eq!(one::<i64>(&path, "SELECT count(*) FROM readings"), 700);
    assert_eq!(one::<i64>(&path, "SELECT count(DISTINCT seq) FROM readings"), 700);
    assert_eq!(one::<i64>(&path, "SELECT count(*) FROM corrente_offsets"), 1);
}

#[tokio::test]
async fn a_worker_cut_off_anywhere_loses_and_doubles_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("readings.db");
    let config = at(&path);
    let broker = MemoryBroker::new(3);
    let producer = producer(&broker, "t");
    let first = broker.source(&config.topics);
    let mut worker = Worker::start(&config, first, SqliteSink::new(&config).unwrap());
    let mut sent = 0u64;
    for round in 0..20u64 {
        for _ in 0..150 {
            send(
                &producer,
                (sent % 3) as i32,
                &record(&format!("s{}", sent % 3), sent),
            );
            sent += 1;
        }
        // Somewhere between nothing and everything is stored by then.
        for _ in 0..rand::random_range(0..20 + round) {
            tokio::task::yield_now().await;
        }
        worker.abort().await;
        worker = Worker::start(
            &config,
            broker.source(&config.topics),
            SqliteSink::new(&config).unwrap(),
        );
    }
    wait("every row", async || rows(&path) == sent as i64).await;
    worker.stop().await;
    assert_eq!(rows(&path), sent as i64);
    assert_eq!(
        one::<i64>(&path, "SELECT count(DISTINCT stream || seq) FROM readings"),
        sent as i64
    );
}

/// A counter in kWh that is read each minute, from 20:00 on, and a voltage.
fn reading(minute: u64) -> String {
    let voltage = if (10..14).contains(&minute) { 260 } else { 230 };
    format!(
        r#"{{"ts":"2026-11-20T20:{minute:02}:00.250Z","meter":"m","slot":"2026-11-20T20:{minute:02}:00Z","stream":"s",
            "seq":{minute},"energy":{},"voltage":{voltage}}}"#,
        1000 + 2 * minute
    )
}

#[tokio::test]
async fn windows_and_alerts_are_made_of_the_rows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("readings.db");
    let mut config = at(&path);
    config.derived = Some(
        serde_json::from_value(serde_json::json!({
            "windows": [{"table": "readings_15min", "intervalMillis": 900_000, "metrics": ["energy", "voltage"]}],
            "counters": [{"metric": "energy", "longestGapMillis": 86_400_000}],
            "swaps": [], "every": PerMeter::all(60_000u64),
        }))
        .unwrap(),
    );
    config.alerts = Some(
        serde_json::from_value(serde_json::json!({
            "thresholds": [{"name": "High", "metric": "voltage", "side": "above", "bound": 253.0, "clear": 250.0,
                            "holdMillis": 60_000, "labels": {"severity": "warning"}}],
        }))
        .unwrap(),
    );
    let broker = MemoryBroker::new(2);
    let worker = Worker::start(
        &config,
        broker.source(&config.topics),
        SqliteSink::new(&config).unwrap(),
    );
    let producer = producer(&broker, "t");
    // Some minutes in the middle come last, by another partition.
    for minute in (0..20).chain(25..46) {
        send(&producer, 0, &reading(minute));
    }
    wait("the first rows", async || worker.report().rows == 41).await;
    for minute in 20..25 {
        send(&producer, 1, &reading(minute));
    }
    wait("the late rows", async || worker.report().rows == 46).await;
    worker.stop().await;
    // That of 20:00 has one reading, at its very end: what was counted in it nobody knows.
    let windows = "SELECT group_concat(w, ' ') FROM (SELECT substr(window_end, 12, 5) || '=' || energy || '/' || demand || \
                   '/' || readings || '/' || quality AS w FROM readings_15min WHERE metric = 'energy' ORDER BY window_end)";
    assert_eq!(
        one::<String>(&path, windows),
        "20:15=30.0/120.0/15/good 20:30=30.0/120.0/15/good 20:45=30.0/120.0/15/good"
    );
    let means = "SELECT group_concat(w, ' ') FROM (SELECT mean || '/' || max || '/' || completeness AS w \
                 FROM readings_15min WHERE metric = 'voltage' AND window_end > '2026-11-20T20:01' ORDER BY window_end)";
    assert_eq!(
        one::<String>(&path, means),
        "238.0/260.0/1.0 230.0/230.0/1.0 230.0/230.0/1.0"
    );
    let revised = "SELECT min(revision) > 1 FROM readings_15min WHERE window_end LIKE '%T20:30%' AND metric = 'voltage'";
    assert!(one::<bool>(&path, revised), "late rows have changed it");
    let alerts =
        "SELECT group_concat(id || ' ' || value || ' ' || ended_at || ' ' || labels) FROM corrente_alerts";
    assert_eq!(
        one::<String>(&path, alerts),
        "test/local/High/m/2026-11-20T20:10:00.000Z 260.0 2026-11-20T20:14:00.000Z {\"severity\":\"warning\"}"
    );
    // Of a threshold that is no more nothing is kept in mind.
    config.alerts.as_mut().unwrap().thresholds[0].name = "Higher".to_owned();
    let broker = MemoryBroker::new(1);
    let worker = Worker::start(
        &config,
        broker.source(&config.topics),
        SqliteSink::new(&config).unwrap(),
    );
    wait("the start", async || {
        corrente_runtime::http::Probe::ready(&*worker.state).is_ok()
    })
    .await;
    worker.stop().await;
    assert_eq!(
        one::<i64>(&path, "SELECT count(*) FROM corrente_alert_standings"),
        0
    );
}
