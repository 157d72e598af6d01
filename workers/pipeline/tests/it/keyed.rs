//! Repeats that are known by a key.

use std::{collections::BTreeMap, sync::Arc};

use corrente_config::{
    PipelineConfig,
    alerts::{AlertsConfig, Side, ThresholdConfig},
    derived::{DerivedConfig, WindowsConfig},
    pipeline::{Hypertable, SinkConfig},
    tables::CompletenessConfig,
};
use corrente_pipeline::{
    batch::{Batch, Place},
    batcher::Run,
    sink::{
        Sink as _, Stored,
        postgres::{
            PostgresSink,
            letters::{Filter, ask},
        },
    },
};
use corrente_runtime::broker::{Incoming, Messages, TopicPartition};

use crate::database::Database;

const HYPERTABLE: Option<Hypertable> = Some(Hypertable {
    chunk_interval_millis: None,
});

/// Stores payloads as the next batch of a partition.
struct Partition {
    sink: PostgresSink,
    place: Place,
    next: Option<i64>,
}

impl Partition {
    async fn claim(db: &Database, config: &PipelineConfig) -> Self {
        let place = Place {
            cluster: "c".into(),
            partition: TopicPartition {
                topic: "t".into(),
                partition: 0,
            },
        };
        let mut sink = db.sink(config);
        assert_eq!(sink.claim(&place).await.unwrap().epoch, 1);
        Self {
            sink,
            place,
            next: None,
        }
    }

    async fn store(&mut self, payloads: &[String]) -> Stored {
        let first = self.next.unwrap_or(0);
        let messages: Messages = payloads
            .iter()
            .zip(first..)
            .map(|(payload, offset)| Incoming {
                offset,
                timestamp: Some(1),
                key: None,
                payload: Some(payload.as_bytes()),
            })
            .collect();
        let run = Run {
            range: 0..messages.len(),
            messages: Arc::new(messages),
        };
        let batch = Batch::build(self.place.clone(), 1, self.next, vec![run], Arc::default()).unwrap();
        self.next = Some(batch.next_offset);
        self.sink.store(&Arc::new(batch)).await.unwrap()
    }
}

fn reading(meter: &str, minute: u64, voltage: f64) -> String {
    format!(r#"{{"ts":"2026-11-20T22:{minute:02}:00Z","meter":"{meter}","voltage":{voltage}}}"#)
}

fn counts(stored: &Stored) -> (u64, u64, u64) {
    (stored.rows, stored.duplicates, stored.dead_letters)
}

fn keyed(db: &Database, hypertable: Option<Hypertable>, key: &[&str]) -> PipelineConfig {
    let mut config = db.config("t", hypertable);
    config.once.key = Some(key.iter().map(|&column| column.to_owned()).collect());
    config
}

async fn the_first_of_a_key_is_kept(hypertable: Option<Hypertable>) {
    let db = Database::new().await;
    let config = keyed(&db, hypertable, &["meter", "ts"]);
    let mut partition = Partition::claim(&db, &config).await;
    let all: Vec<String> = (0..10)
        .map(|minute| reading("m", minute, minute as f64))
        .collect();
    assert_eq!(counts(&partition.store(&all).await), (10, 0, 0));
    // All of it again, with other values, and something new between; then twice within one batch.
    let mut again: Vec<String> = (0..10).map(|minute| reading("m", minute, 99.0)).collect();
    again.insert(5, reading("m", 20, 20.0));
    assert_eq!(counts(&partition.store(&again).await), (1, 10, 0));
    let within = [
        reading("m", 30, 30.0),
        reading("n", 30, 7.0),
        reading("m", 30, 31.0),
    ];
    assert_eq!(counts(&partition.store(&within).await), (2, 1, 0));
    // Nothing but new ones goes the direct way again, and so does what follows.
    for minute in 40..43 {
        assert_eq!(
            counts(&partition.store(&[reading("m", minute, minute as f64)]).await),
            (1, 0, 0)
        );
    }
    // The first values, whatever came later.
    let table = db.table();
    let kept = format!(
        "SELECT count(*), count(DISTINCT ts), bool_and(voltage = extract(minute FROM ts)) FROM {table} WHERE meter = 'm'"
    );
    assert_eq!(db.text(&kept).await, "15|15|t");
    db.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn the_first_of_a_key_is_kept_in_a_table() {
    the_first_of_a_key_is_kept(None).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn the_first_of_a_key_is_kept_in_a_hypertable() {
    the_first_of_a_key_is_kept(HYPERTABLE).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn repeats_and_refused_rows_in_one_batch_are_told_apart() {
    for rule in [
        // Seen where rows are staged, with its line.
        "ALTER TABLE {table} ADD CHECK (voltage < 1000)",
        // Seen only where they are brought into the table.
        "CREATE FUNCTION {schema}.f() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN IF NEW.voltage >= 1000 THEN RAISE 'too high'; END IF; RETURN NEW; END $$;
         CREATE TRIGGER t BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION {schema}.f()",
    ] {
        let db = Database::new().await;
        let config = keyed(&db, None, &["meter", "ts"]);
        let mut partition = Partition::claim(&db, &config).await;
        partition.store(&[reading("m", 0, 0.0)]).await;
        let rule = rule
            .replace("{table}", &db.table())
            .replace("{schema}", &db.schema);
        db.client.batch_execute(&rule).await.unwrap();
        // Without a time of its own it could not be known again.
        let no_slot = |minute: u64| reading("m", minute, if minute == 30 { 5000.0 } else { 1.0 });
        let mut payloads: Vec<String> = (0..60).map(no_slot).collect();
        payloads.extend((10..20).map(no_slot));
        assert_eq!(counts(&partition.store(&payloads).await), (58, 11, 1), "{rule}");
        assert_eq!(db.count().await, 59);
        db.drop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_record_without_its_key_is_set_aside_and_seq_says_nothing() {
    let db = Database::new().await;
    let mut config = keyed(&db, None, &["site", "slot"]);
    config
        .columns
        .insert("site".to_owned(), corrente_crds::pipeline::ColumnType::Text);
    let mut partition = Partition::claim(&db, &config).await;
    let record = |fields: &str| {
        format!(r#"{{"ts":"2026-11-20T22:00:00Z","meter":"m","stream":"s","seq":1,{fields}"v":1}}"#)
    };
    let stored = partition
        .store(&[
            record(r#""site":"a","slot":"2026-11-20T22:00:00Z","#),
            record(r#""site":"b","slot":"2026-11-20T22:00:00Z","#),
            record(r#""site":"b","#),
        ])
        .await;
    assert_eq!(counts(&stored), (2, 0, 1));
    assert_eq!(db.dead_letters().await, "0|2|-|slot");
    db.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_key_that_the_rows_do_not_have_is_said_and_an_index_that_is_there_is_used() {
    let db = Database::new().await;
    let mut partition = Partition::claim(&db, &db.config("t", None)).await;
    partition
        .store(&[reading("m", 0, 1.0), reading("m", 0, 2.0)])
        .await;
    let config = keyed(&db, None, &["meter", "ts"]);
    let error = db.sink(&config).open().await.unwrap_err().to_string();
    assert!(error.contains("several rows of one key (meter, ts)"), "{error}");
    let table = db.table();
    db.client
        .batch_execute(&format!(
            "DELETE FROM {table} WHERE voltage = 2; CREATE UNIQUE INDEX by_hand ON {table} (ts, meter)"
        ))
        .await
        .unwrap();
    db.sink(&config).open().await.unwrap();
    let indexes =
        format!("SELECT count(*) FROM pg_index WHERE indrelid = '{table}'::regclass AND indisunique");
    assert_eq!(db.text(&indexes).await, "1");
    db.drop().await;
}

/// What the ledger of an hour says of a meter: stored, refused, missing; and what a window of it holds.
async fn accounts(db: &Database, meter: &str) -> String {
    let schema = &db.schema;
    let ledger =
        format!("SELECT stored, refused, skipped FROM {schema}.readings_ledger WHERE meter = '{meter}'");
    let window = format!(
        "SELECT readings, mean FROM {schema}.readings_1h WHERE meter = '{meter}' AND metric = 'voltage'"
    );
    format!("{}; {}", db.text(&ledger).await, db.text(&window).await)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn what_is_kept_beside_the_rows_knows_of_those_that_the_table_took_alone() {
    for hypertable in [None, HYPERTABLE] {
        let db = Database::new().await;
        let mut config = keyed(&db, hypertable, &["meter", "ts"]);
        let SinkConfig::Postgres { tables, .. } = &mut config.sink else {
            panic!("not PostgreSQL");
        };
        tables.completeness = Some(CompletenessConfig {
            interval: "1h".parse().unwrap(),
            retention: None,
            meters: BTreeMap::new(),
        });
        config.derived = Some(DerivedConfig {
            windows: vec![WindowsConfig {
                table: "readings_1h".to_owned(),
                interval_millis: 3_600_000,
                metrics: vec!["voltage".to_owned()],
                expected_every_millis: None,
                retention: None,
            }],
            ..DerivedConfig::default()
        });
        config.alerts = Some(AlertsConfig {
            thresholds: vec![ThresholdConfig {
                name: "High".to_owned(),
                metric: "voltage".to_owned(),
                side: Side::Above,
                bound: 90.0,
                clear: 90.0,
                hold_millis: 0,
                labels: BTreeMap::new(),
                summary: None,
            }],
            topic: None,
            alertmanager: None,
        });
        let mut partition = Partition::claim(&db, &config).await;
        partition
            .store(&[reading("m", 1, 1.0), reading("m", 2, 2.0)])
            .await;
        assert_eq!(accounts(&db, "m").await, "2|0|0; 2|1.5", "{hypertable:?}");
        // Repeats say nothing, whatever they say: of rows before, and within the batch.
        let again = [
            reading("m", 1, 99.0),
            reading("m", 3, 3.0),
            reading("m", 3, 99.0),
            reading("m", 2, 99.0),
            reading("m", 4, 4.0),
        ];
        assert_eq!(counts(&partition.store(&again).await), (2, 3, 0));
        assert_eq!(accounts(&db, "m").await, "4|0|0; 4|2.5");
        // Beside rows that the database refuses, whose neighbours are tried in parts.
        let rule = format!("ALTER TABLE {} ADD CONSTRAINT c CHECK (voltage <> 7)", db.table());
        db.client.batch_execute(&rule).await.unwrap();
        let mut mixed: Vec<String> = (1..40)
            .map(|minute| reading("m", minute, minute as f64))
            .collect();
        mixed.extend((30..45).map(|minute| reading("m", minute, 99.0)));
        assert_eq!(counts(&partition.store(&mixed).await), (39, 14, 1));
        // 1 to 6, 8 to 39, and five of 99.
        let (sum, count) = (780.0 - 7.0 + 5.0 * 99.0, 43);
        let mean = sum / f64::from(count);
        let seen = accounts(&db, "m").await;
        assert!(
            seen.starts_with(&format!("{count}|1|0; {count}|{mean:.3}")),
            "{seen}"
        );
        // The refused one is replayed: it is stored, and not refused.
        let drop = format!("ALTER TABLE {} DROP CONSTRAINT c", db.table());
        db.client.batch_execute(&drop).await.unwrap();
        let mine = Filter {
            pipeline: Some(format!("test/{}", db.pipeline)),
            ..Filter::default()
        };
        assert_eq!(ask(&db.client, &mine).await.unwrap().len(), 1);
        assert_eq!(partition.sink.replay().await.unwrap(), (1, 1));
        assert!(accounts(&db, "m").await.starts_with("44|0|0; 44|"));
        // No alert but that of the values that were taken.
        let first = format!(
            "SELECT count(*), min(value), to_char(min(started_at) AT TIME ZONE 'UTC', 'HH24:MI') \
             FROM corrente.alerts WHERE pipeline = 'test/{}'",
            db.pipeline
        );
        assert_eq!(db.text(&first).await, "1|99|22:40");
        db.forget_tables().await;
        db.drop().await;
    }
}
