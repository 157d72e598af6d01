//! Rows that cannot be stored: each alone goes to the dead letters, and the rest is stored once.

use corrente_config::pipeline::Hypertable;
use corrente_runtime::memory::MemoryBroker;

use crate::{
    database::Database,
    support::{Worker, producer, record, send},
};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn what_the_worker_can_tell_is_told_with_column_and_reason() {
    let db = Database::new().await;
    let config = db.config("t", None);
    let broker = MemoryBroker::new(1);
    let producer = producer(&broker, "t");
    let worker = Worker::start(&config, broker.source(&config.topics), db.sink(&config));
    let long = format!(
        r#"{{"ts":"2026-11-20T22:20:00Z","meter":"m","{}":1}}"#,
        "x".repeat(64)
    );
    for payload in [
        record("s", 0).as_str(),
        "not json",
        r#"{"ts":"2026-11-20T22:20:00Z","meter":"m","voltage":"high"}"#,
        r#"{"ts":"2026-11-20T22:20:00Z","meter":"m","site":"a\u0000b"}"#,
        r#"{"ts":"2026-11-20T22:20:00Z","meter":"m","xmin":1}"#,
        &long,
        r#"{"ts":"2026-11-20T22:20:00Z","meter":"m","bad":{"v":"\u0000"}}"#,
        &record("s", 1),
    ] {
        send(&producer, 0, payload);
    }
    db.wait_for(2).await;
    crate::support::wait("the dead letters", async || worker.report().dead_lettered == 6).await;
    worker.stop().await;
    db.assert_exactly(1, 2).await;
    let long = "x".repeat(64);
    assert_eq!(
        db.dead_letters().await,
        format!("0|1|-|-,0|2|-|voltage,0|3|-|site,0|4|-|xmin,0|5|-|{long},0|6|22P05|bad")
    );
    let kept = db
        .text(&format!(
            "SELECT convert_from(payload, 'UTF8'), convert_from(key, 'UTF8'), reason FROM corrente.dead_letters \
             WHERE pipeline = 'test/{}' AND message_offset = 1",
            db.pipeline
        ))
        .await;
    assert!(kept.starts_with("not json|m|not a record: "), "{kept}");
    db.drop().await;
}

async fn refused_by_the_database(hypertable: Option<Hypertable>, rule: &str, sqlstate: &str) {
    let db = Database::new().await;
    let mut config = db.config("t", hypertable);
    config.batch.max_rows = 1000;
    let broker = MemoryBroker::new(1);
    let producer = producer(&broker, "t");
    // One worker makes the table, then a rule is set, then another fills it.
    let worker = Worker::start(&config, broker.source(&config.topics), db.sink(&config));
    send(&producer, 0, &record("s", 0));
    db.wait_for(1).await;
    worker.stop().await;
    db.client
        .batch_execute(
            &rule
                .replace("{table}", &db.table())
                .replace("{schema}", &db.schema),
        )
        .await
        .unwrap();
    // The rule forbids every 97th.
    for seq in 1..1000u64 {
        send(&producer, 0, &record("s", seq));
    }
    let worker = Worker::start(&config, broker.source(&config.topics), db.sink(&config));
    crate::support::wait("every record", async || {
        let report = worker.report();
        report.rows + report.dead_lettered == 999
    })
    .await;
    worker.stop().await;
    let forbidden: Vec<u64> = (1..1000).filter(|seq| seq % 97 == 0).collect();
    let expected: Vec<String> = forbidden
        .iter()
        .map(|seq| format!("0|{seq}|{sqlstate}|-"))
        .collect();
    assert_eq!(db.dead_letters().await, expected.join(","));
    assert_eq!(db.count().await, 1000 - forbidden.len() as u64);
    let table = db.table();
    let stored = db
        .text(&format!(
            "SELECT count(DISTINCT seq), count(*) FILTER (WHERE seq % 97 = 0) FROM {table}"
        ))
        .await;
    assert_eq!(
        stored,
        format!("{}|1", 1000 - forbidden.len()),
        "only seq 0 is stored of the forbidden ones"
    );
    db.drop().await;
}

const CHECK: &str = "ALTER TABLE {table} ADD CONSTRAINT c CHECK (seq = 0 OR seq % 97 <> 0)";
// The forbidden ones all have the key 0, which the row that is there already has.
const UNIQUE: &str = "CREATE UNIQUE INDEX ON {table} ((CASE WHEN seq % 97 = 0 THEN 0 ELSE seq END))";
const TRIGGER: &str = "
    CREATE FUNCTION {schema}.f() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN IF NEW.seq % 97 = 0 THEN RAISE 'no'; END IF; RETURN NEW; END $$;
    CREATE TRIGGER t BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION {schema}.f()";
const DEFERRED: &str = "
    CREATE TABLE {schema}.allowed (seq bigint PRIMARY KEY);
    INSERT INTO {schema}.allowed SELECT n FROM generate_series(0, 1000) n WHERE n = 0 OR n % 97 <> 0;
    ALTER TABLE {table} ADD FOREIGN KEY (seq) REFERENCES {schema}.allowed DEFERRABLE INITIALLY DEFERRED";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_check_refuses_rows_of_a_table() {
    refused_by_the_database(None, CHECK, "23514").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_check_refuses_rows_of_a_hypertable() {
    refused_by_the_database(
        Some(Hypertable {
            chunk_interval_millis: None,
        }),
        CHECK,
        "23514",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_unique_index_refuses_rows() {
    refused_by_the_database(None, UNIQUE, "23505").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_trigger_refuses_rows() {
    refused_by_the_database(None, TRIGGER, "P0001").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_deferred_constraint_refuses_rows() {
    refused_by_the_database(None, DEFERRED, "23503").await;
}
