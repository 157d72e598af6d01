//! What the worker makes of records in its tables: narrow rows, partitions for late ones, columns added by many at a
//! time, roll-ups and the ledger of completeness in step with the batches.

use std::collections::{BTreeMap, BTreeSet};

use corrente_config::tables::CompletenessConfig;
use corrente_crds::{
    pipeline::ColumnType,
    tables::{Layout, PartitionBy, Views},
};
use corrente_pipeline::sink::postgres::letters::{Filter, ask};
use corrente_runtime::memory::MemoryBroker;

use crate::{
    database::{Database, connect, url},
    support::{Worker, producer, record, send, unique, wait},
    upkeep::{HYPERTABLE, rollup, round, with_tables},
};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_narrow_table_holds_every_value_and_names_what_was_not_read() {
    let db = Database::new().await;
    let mut config = with_tables(&db, HYPERTABLE, |tables| {
        tables.layout = Layout::Narrow;
        tables.labels = ["site".to_owned(), "feeder".to_owned()].into();
    });
    config.columns = BTreeMap::from([
        ("energy".to_owned(), ColumnType::Numeric),
        ("closed".to_owned(), ColumnType::Boolean),
        ("site".to_owned(), ColumnType::Text),
    ]);
    let broker = MemoryBroker::new(1);
    let worker = Worker::start(&config, broker.source(&config.topics), db.sink(&config));
    let producer = producer(&broker, "t");
    let own = r#""ts":"2026-11-20T22:20:00.123Z","meter":"m","slot":"2026-11-20T22:20:00Z","stream":"s""#;
    for fields in [
        r#","seq":1,"quality":"partial","skipped":2,"bad":{"current":"NaN","power":"no answer"},"site":"north","feeder":"7",
           "energy":18446744073709551615,"closed":true,"serial":"é \"1\"","voltage":-1.25,"x'; DROP TABLE y; --":7"#,
        r#","seq":2,"quality":"failed""#,
        r#","seq":3,"energy":"high","voltage":1"#,
        r#","seq":4,"energy":9007199254740993,"site":"south""#,
    ] {
        send(&producer, 0, &format!("{{{own}{fields}}}"));
    }
    wait("every record", async || {
        let report = worker.report();
        (report.rows, report.dead_lettered) == (3, 1)
    })
    .await;
    worker.stop().await;
    let shown = db
        .text(&format!(
            "SELECT seq, metric, value, exact, text_value, bool_value, bad, skipped, site, feeder, quality FROM {} \
             ORDER BY seq, metric COLLATE \"C\"",
            db.table()
        ))
        .await;
    assert_eq!(
        shown,
        "1|closed|-|-|-|t|-|-|north|7|partial,1|current|-|-|-|-|NaN|-|north|7|partial,\
         1|energy|1.8446744073709552e+19|18446744073709551615|-|-|-|2|north|7|partial,\
         1|power|-|-|-|-|no answer|-|north|7|partial,1|serial|-|-|é \"1\"|-|-|-|north|7|partial,\
         1|voltage|-1.25|-|-|-|-|-|north|7|partial,1|x'; DROP TABLE y; --|7|-|-|-|-|-|north|7|partial,\
         2|-|-|-|-|-|-|-|-|-|failed,\
         4|energy|9.007199254740992e+15|9007199254740993|-|-|-|-|south|-|-"
    );
    // The whole record is set aside: no row of it is stored.
    assert_eq!(db.dead_letters().await, "0|2|-|energy");
    db.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_row_that_a_narrow_table_refuses_takes_its_record_along_and_no_other() {
    let db = Database::new().await;
    let config = with_tables(&db, None, |tables| tables.layout = Layout::Narrow);
    round(&config, "2026-01-01T00:00:00Z").await;
    db.client
        .batch_execute(&format!(
            "ALTER TABLE {} ADD CONSTRAINT c CHECK (metric <> 'voltage' OR seq % 97 <> 13)",
            db.table()
        ))
        .await
        .unwrap();
    let broker = MemoryBroker::new(1);
    let producer = producer(&broker, "t");
    for seq in 0..1000u64 {
        let more = format!(",\"a\":1,\"z_{}\":2}}", seq % 7);
        send(&producer, 0, &record("s", seq).replace('}', &more));
    }
    let worker = Worker::start(&config, broker.source(&config.topics), db.sink(&config));
    wait("every record", async || {
        let report = worker.report();
        report.rows + report.dead_lettered == 1000
    })
    .await;
    worker.stop().await;
    let expected: Vec<String> = (0..1000)
        .filter(|seq| seq % 97 == 13)
        .map(|seq| format!("0|{seq}|23514|-"))
        .collect();
    assert_eq!(db.dead_letters().await, expected.join(","));
    let found = db
        .text(&format!(
            "SELECT count(*), count(DISTINCT seq), count(*) FILTER (WHERE seq % 97 = 13) FROM {}",
            db.table()
        ))
        .await;
    let good = 1000 - expected.len();
    assert_eq!(found, format!("{}|{good}|0", 3 * good));
    db.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn late_rows_get_a_partition_and_those_past_the_retention_are_set_aside() {
    let db = Database::new().await;
    let config = with_tables(&db, None, |tables| {
        tables.partition_by = Some(PartitionBy::Day);
        tables.retention = Some("3650d".parse().unwrap());
    });
    let broker = MemoryBroker::new(1);
    let producer = producer(&broker, "t");
    for (seq, ts) in [
        "2026-11-20T22:20:00Z",
        "2020-02-29T12:00:00Z",
        "2026-11-21T00:00:00Z",
        "1999-01-01T00:00:00Z",
        "2020-02-29T23:59:59.999Z",
        "2027-06-01T00:00:00Z",
    ]
    .iter()
    .enumerate()
    {
        let payload = format!(r#"{{"ts":"{ts}","meter":"m","stream":"s","seq":{seq},"v":{seq}}}"#);
        send(&producer, 0, &payload);
    }
    let worker = Worker::start(&config, broker.source(&config.topics), db.sink(&config));
    wait("every record", async || {
        let report = worker.report();
        (report.rows, report.dead_lettered) == (5, 1)
    })
    .await;
    worker.stop().await;
    let found = db
        .text(&format!(
            "SELECT tableoid::regclass::text LIKE '%.readings_p' || to_char(ts AT TIME ZONE 'UTC', 'YYYYMMDD'), count(*) \
             FROM {} GROUP BY 1",
            db.table()
        ))
        .await;
    assert_eq!(found, "t|5", "each is in the partition of its day");
    let said = db
        .text(&format!(
            "SELECT message_offset, column_name, reason FROM corrente.dead_letters WHERE pipeline = 'test/{}'",
            db.pipeline
        ))
        .await;
    assert!(
        said.starts_with("3|ts|the reading is older than the table's retention"),
        "{said}"
    );
    db.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn many_workers_widen_one_table_in_any_order_beside_readers() {
    const WORKERS: usize = 6;
    const METRICS: u64 = 24;
    for (hypertable, by) in [(HYPERTABLE, None), (None, Some(PartitionBy::Month))] {
        let db = Database::new().await;
        let broker = MemoryBroker::new(1);
        // Each a pipeline of its own, on a topic of its own, with the same metrics in an order of its own.
        let configs: Vec<_> = (0..WORKERS)
            .map(|number| {
                let mut config = with_tables(&db, hypertable, |tables| tables.partition_by = by);
                config.name = unique("p");
                config.topics = vec![format!("t{number}")];
                config.batch.max_rows = 3;
                config
            })
            .collect();
        for (number, config) in configs.iter().enumerate() {
            let producer = producer(&broker, &config.topics[0]);
            for seq in 0..METRICS {
                let metric = (seq * [1, 5, 7, 11, 13, 17][number] + number as u64) % METRICS;
                let payload = record(&format!("s{number}"), seq)
                    .replace('}', &format!(",\"metric \\\"{metric}\\\"\":{seq}}}"));
                send(&producer, 0, &payload);
            }
        }
        let start = |config| Worker::start(config, broker.source(&config.topics), db.sink(config));
        let workers: Vec<Worker> = configs.iter().map(start).collect();
        // A reader that keeps the table, again and again, each time until a worker has had to give way to it.
        let table = db.table();
        wait("the table", async || db.count().await > 0).await;
        let reader = connect(&url()).await;
        for _ in 0..3 {
            reader
                .batch_execute(&format!("BEGIN; SELECT count(*) FROM {table}"))
                .await
                .unwrap();
            wait("a worker that waits, or the end", async || {
                workers.iter().any(|w| w.report().trouble.is_some())
                    || workers.iter().all(|w| w.report().rows == METRICS)
            })
            .await;
            reader.batch_execute("COMMIT").await.unwrap();
        }
        wait("every row of all", async || {
            workers.iter().all(|w| w.report().rows == METRICS)
        })
        .await;
        for worker in workers {
            assert_eq!(worker.report().dead_lettered, 0);
            worker.stop().await;
        }
        db.assert_exactly(WORKERS as u64, METRICS).await;
        let columns = db
            .text(&format!(
                "SELECT count(*) FROM pg_attribute WHERE attrelid = '{table}'::regclass AND attname LIKE 'metric \"%'"
            ))
            .await;
        assert_eq!(columns, METRICS.to_string());
        let sums: u64 = (0..METRICS).sum::<u64>() * WORKERS as u64;
        let all: Vec<String> = (0..METRICS)
            .map(|m| format!("coalesce(\"metric \"\"{m}\"\"\", 0)"))
            .collect();
        assert_eq!(
            db.text(&format!("SELECT sum({}) FROM {table}", all.join(" + ")))
                .await,
            sums.to_string()
        );
        for config in &configs {
            db.forget(&config.name).await;
        }
        db.drop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_column_is_added_beside_a_copy_under_way() {
    let db = Database::new().await;
    let config = with_tables(&db, HYPERTABLE, |_| ());
    round(&config, "2026-01-01T00:00:00Z").await;
    // Somebody's COPY that is not over yet.
    let mut other = connect(&url()).await;
    let transaction = other.transaction().await.unwrap();
    let copy = format!("COPY {} (ts, meter) FROM STDIN", db.table());
    let sink = transaction.copy_in::<_, bytes::Bytes>(&copy).await.unwrap();
    let mut sink = Box::pin(sink);
    futures::SinkExt::send(
        &mut sink,
        bytes::Bytes::from_static(b"2026-11-20 00:00Z\tother\n"),
    )
    .await
    .unwrap();
    let broker = MemoryBroker::new(1);
    let worker = Worker::start(&config, broker.source(&config.topics), db.sink(&config));
    send(&producer(&broker, "t"), 0, &record("s", 0));
    worker.trouble("lock timeout").await;
    sink.as_mut().finish().await.unwrap();
    transaction.commit().await.unwrap();
    wait("the row", async || worker.report().rows == 1).await;
    worker.stop().await;
    assert_eq!(db.count().await, 2);
    db.drop().await;
}

/// A record of a meter with a slot on 2026-01-01; read in the same moment, unless `more` says otherwise.
fn reading(meter: &str, time: &str, seq: u64, more: &str) -> String {
    format!(
        r#"{{"ts":"2026-01-01T{time}Z","meter":"{meter}","slot":"2026-01-01T{time}Z","stream":"{meter}","seq":{seq}{more}}}"#
    )
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn roll_ups_follow_the_rows_however_late_they_are() {
    for layout in [Layout::Wide, Layout::Narrow] {
        let db = Database::new().await;
        let config = with_tables(&db, HYPERTABLE, |tables| {
            tables.layout = layout;
            tables.slowest = Some("10s".parse().unwrap());
            tables.rollups = vec![rollup("r", "15m")];
        });
        let broker = MemoryBroker::new(1);
        let producer = producer(&broker, "t");
        let worker = Worker::start(&config, broker.source(&config.topics), db.sink(&config));
        let (voltage, avg) = match layout {
            Layout::Wide => ("voltage", "voltage_avg"),
            Layout::Narrow => ("value", "avg"),
        };
        let shown = format!(
            "SELECT to_char(bucket AT TIME ZONE 'UTC', 'HH24:MI'), meter, records, {avg} FROM {}.r ORDER BY 1, 2",
            db.schema
        );
        // The first is read after its interval is over, and belongs to it by its slot.
        let mut seq = 0;
        let mut store = async |lines: &[(&str, &str, &str)]| {
            for (meter, time, fields) in lines {
                seq += 1;
                send(&producer, 0, &reading(meter, time, seq, fields));
            }
            wait("the rows", async || worker.report().rows == seq).await;
        };
        store(&[
            ("a", "09:59:50", r#","voltage":1,"ts":"2026-01-01T10:00:02Z""#),
            ("a", "10:00:00", r#","voltage":2"#),
            ("a", "10:14:50", r#","voltage":4"#),
            ("b", "10:15:00", r#","voltage":8"#),
        ])
        .await;
        round(&config, "2026-01-01T12:00:00Z").await;
        assert_eq!(
            db.text(&shown).await,
            "09:45|a|1|1,10:00|a|2|3,10:15|b|1|8",
            "{layout:?}"
        );
        // A spool drains six hours late.
        store(&[
            ("a", "10:05:00", r#","voltage":6"#),
            ("b", "10:00:00", r#","voltage":5"#),
        ])
        .await;
        round(&config, "2026-01-01T18:00:00Z").await;
        assert_eq!(
            db.text(&shown).await,
            "09:45|a|1|1,10:00|a|3|4,10:00|b|1|5,10:15|b|1|8",
            "{layout:?}"
        );
        // What is past the retention of the rows is not reckoned from what is left of them.
        worker.stop().await;
        let short = with_tables(&db, HYPERTABLE, |tables| {
            tables.layout = layout;
            tables.slowest = Some("10s".parse().unwrap());
            tables.rollups = vec![rollup("r", "15m")];
            tables.retention = Some("1d".parse().unwrap());
        });
        db.client
            .batch_execute(&format!(
                "DELETE FROM {table} WHERE ts > '2026-01-01 10:10Z'; UPDATE {table} SET {voltage} = 100; \
                 INSERT INTO corrente.rollup_log SELECT '{schema}', 'r', generate_series('2026-01-01 09:45Z', \
                     '2026-01-01 10:15Z'::timestamptz, '15 minutes')",
                table = db.table(),
                schema = db.schema
            ))
            .await
            .unwrap();
        round(&short, "2026-01-02T10:15:00Z").await;
        assert_eq!(
            db.text(&shown).await,
            "09:45|a|1|1,10:00|a|3|4,10:00|b|1|5,10:15|b|1|8",
            "{layout:?}"
        );
        db.forget_tables().await;
        db.drop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn the_ledger_is_as_right_as_the_table_whenever_a_worker_is_killed() {
    const PARTITIONS: u64 = 3;
    const EACH: u64 = 1500;
    let db = Database::new().await;
    let config = with_tables(&db, HYPERTABLE, |tables| {
        tables.completeness = Some(completeness("1m", &[("1s", &["s0", "s1", "s2"])]));
        tables.rollups = vec![rollup("r", "1m")];
        tables.slowest = Some("1s".parse().unwrap());
    });
    let broker = MemoryBroker::new(i32::try_from(PARTITIONS).unwrap());
    let producer = producer(&broker, "t");
    for seq in 0..EACH {
        for partition in 0..PARTITIONS {
            // Every record twice, as a producer sends them that was killed; every tenth poll failed.
            let quality = if seq % 10 == 3 { "failed" } else { "good" };
            let payload = record(&format!("s{partition}"), seq).replace("good", quality);
            for _ in 0..2 {
                send(&producer, i32::try_from(partition).unwrap(), &payload);
            }
        }
    }
    let mut kills = 0;
    while db.count().await < PARTITIONS * EACH {
        let worker = Worker::start(&config, broker.source(&config.topics), db.sink(&config));
        let before = db.count().await;
        wait("rows", async || db.count().await > before).await;
        worker.abort().await;
        kills += 1;
    }
    assert!(kills > 1);
    db.assert_exactly(PARTITIONS, EACH).await;
    // A batch that was cut off may still be under way in the server; the table is full, so it is not.
    let differ = db
        .text(&format!(
            "SELECT * FROM (SELECT meter, date_bin('1m', slot, 'epoch') AS bucket, count(*) FILTER (WHERE quality = 'good') AS stored, \
                 count(*) FILTER (WHERE quality = 'failed') AS failed FROM {} GROUP BY 1, 2) t \
             FULL JOIN {}.readings_ledger l USING (meter, bucket) \
             WHERE (t.stored, t.failed) IS DISTINCT FROM (l.stored::bigint, l.failed::bigint)",
            db.table(),
            db.schema
        ))
        .await;
    assert_eq!(differ, "");
    round(&config, "2026-11-21T00:00:00Z").await;
    let differ = db
        .text(&format!(
            "SELECT * FROM (SELECT meter, date_bin('1m', slot, 'epoch') AS bucket, count(*), max(voltage) FROM {} GROUP BY 1, 2) t \
             FULL JOIN {}.r USING (meter, bucket) WHERE (t.count, t.max) IS DISTINCT FROM (r.records, r.voltage_max)",
            db.table(),
            db.schema
        ))
        .await;
    assert_eq!(differ, "");
    db.forget_tables().await;
    db.drop().await;
}

fn completeness(interval: &str, meters: &[(&str, &[&str])]) -> CompletenessConfig {
    CompletenessConfig {
        interval: interval.parse().unwrap(),
        retention: None,
        meters: meters
            .iter()
            .map(|(every, names)| {
                let names: BTreeSet<String> = names.iter().map(|&name| name.to_owned()).collect();
                ((*every).to_owned(), names)
            })
            .collect(),
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn every_slot_of_every_meter_is_accounted_for() {
    let db = Database::new().await;
    let bi = format!("{}_bi", db.schema);
    let configured = |meters: &[(&str, &[&str])]| {
        let ledger = completeness("1h", meters);
        let views = Views {
            schema: bi.clone(),
            reader: None,
        };
        with_tables(&db, HYPERTABLE, |tables| {
            tables.completeness = Some(ledger);
            tables.views = Some(views);
        })
    };
    // One delivers all, one some, one nothing.
    let config = configured(&[("10m", &["all", "some", "none"])]);
    round(&config, "2026-01-01T10:00:00Z").await;
    let broker = MemoryBroker::new(1);
    let producer = producer(&broker, "t");
    let worker = Worker::start(&config, broker.source(&config.topics), db.sink(&config));
    for slot in 0..12u64 {
        let time = format!("{}:{:02}:00", 10 + slot / 6, slot % 6 * 10);
        send(
            &producer,
            0,
            &reading("all", &time, slot, r#","quality":"good","v":1"#),
        );
    }
    for (seq, (time, fields)) in [
        ("10:00:00", r#","quality":"partial","v":1"#),
        ("10:10:00", r#","quality":"failed""#),
        // 10:20 and 10:30 did not arrive; 10:40 to 11:00 were skipped, so the reading after them says.
        ("11:10:00", r#","quality":"good","skipped":3,"v":1"#),
        // 11:20 was skipped, and the record that says so is refused.
        ("11:30:00", r#","quality":"good","skipped":1,"v":"not a number""#),
    ]
    .iter()
    .enumerate()
    {
        send(&producer, 0, &reading("some", time, seq as u64, fields));
    }
    wait("the records", async || {
        worker.report().rows + worker.report().dead_lettered == 16
    })
    .await;
    worker.stop().await;
    assert_eq!(
        round(&config, "2026-01-01T12:05:00Z").await.notices,
        Vec::<String>::new()
    );
    let shown = format!(
        "SELECT to_char(bucket AT TIME ZONE 'UTC', 'HH24'), meter, expected, stored, partial, failed, skipped, refused, missing, \
         round(completeness::numeric, 2) FROM {bi}.completeness WHERE bucket < '2026-01-01 12:00Z' ORDER BY 1, 2"
    );
    assert_eq!(
        db.text(&shown).await,
        "10|all|6|6|0|0|0|0|0|1.00,10|none|6|0|0|0|0|0|6|0.00,10|some|6|1|1|1|2|0|2|0.17,\
         11|all|6|6|0|0|0|0|0|1.00,11|none|6|0|0|0|0|0|6|0.00,11|some|6|1|0|0|2|1|2|0.17"
    );
    // The refused one is replayed once the column takes texts: it is stored then, and not refused any more. What it says
    // of skipped slots counts once.
    db.client
        .batch_execute(&format!(
            "DROP VIEW {bi}.latest; ALTER TABLE {} ALTER COLUMN v TYPE text",
            db.table()
        ))
        .await
        .unwrap();
    let mine = Filter {
        pipeline: Some(format!("test/{}", db.pipeline)),
        ..Filter::default()
    };
    assert_eq!(ask(&db.client, &mine).await.unwrap().len(), 1);
    assert_eq!(db.sink(&config).replay().await.unwrap(), (1, 1));
    let some = format!(
        "SELECT expected, stored, partial, failed, skipped, refused, missing FROM {bi}.completeness \
         WHERE bucket = '2026-01-01 11:00Z' AND meter = 'some'"
    );
    assert_eq!(db.text(&some).await, "6|2|0|0|2|0|2");
    // From 12:00 on `none` is not polled any more, and `some` every 20 minutes. The hour in which that changed is reckoned
    // by both.
    let changed = configured(&[("10m", &["all"]), ("20m", &["some"])]);
    round(&changed, "2026-01-01T12:30:00Z").await;
    round(&changed, "2026-01-01T14:00:00Z").await;
    let expected = format!(
        "SELECT to_char(bucket AT TIME ZONE 'UTC', 'HH24'), meter, expected FROM {}.readings_ledger \
         WHERE bucket BETWEEN '2026-01-01 12:00Z' AND '2026-01-01 13:00Z' ORDER BY 1, 2",
        db.schema
    );
    assert_eq!(
        db.text(&expected).await,
        "12|all|6,12|none|3,12|some|4,13|all|6,13|some|3"
    );
    // A worker that was away for hours fills in what it missed; and readings from before anybody asked count from the
    // first of them on.
    let more = configured(&[("10m", &["all", "old"]), ("20m", &["some"])]);
    round(&more, "2026-01-01T20:00:00Z").await;
    let worker = Worker::start(&more, broker.source(&more.topics), db.sink(&more));
    send(
        &producer,
        0,
        &reading("old", "08:30:00", 0, r#","quality":"good","v":1"#),
    );
    wait("the record", async || worker.report().rows == 1).await;
    worker.stop().await;
    round(&more, "2026-01-01T20:00:10Z").await;
    let gaps = db
        .text(&format!(
            "SELECT meter, count(*), sum(expected) FROM {}.readings_ledger WHERE bucket < '2026-01-01 20:00Z' GROUP BY 1 ORDER BY 1",
            db.schema
        ))
        .await;
    assert_eq!(gaps, "all|10|60,none|3|15,old|12|69,some|10|37");
    // Another interval does not spoil what was counted.
    let mut other = configured(&[]);
    let corrente_config::pipeline::SinkConfig::Postgres { tables, .. } = &mut other.sink else {
        panic!("not PostgreSQL");
    };
    tables.completeness = Some(completeness("15m", &[]));
    let said = round(&other, "2026-01-01T20:00:20Z").await;
    assert!(
        said.notices[0].contains("keeps the interval that it was begun with"),
        "{said:?}"
    );
    db.client
        .batch_execute(&format!("DROP SCHEMA {bi} CASCADE"))
        .await
        .unwrap();
    db.forget_tables().await;
    db.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_renamed_pipeline_expects_of_each_meter_what_it_did_before() {
    let db = Database::new().await;
    let old = with_tables(&db, None, |tables| {
        tables.completeness = Some(completeness("1h", &[("10m", &["m"]), ("20m", &["n"])]));
    });
    round(&old, "2026-01-01T10:00:00Z").await;
    let mut new = old.clone();
    new.name = format!("{}-renamed", db.pipeline);
    new.once.renamed_from = Some(format!("test/{}", db.pipeline));
    round(&new, "2026-01-01T10:30:00Z").await;
    // The old one is still there for a moment.
    round(&old, "2026-01-01T10:40:00Z").await;
    round(&new, "2026-01-01T12:00:00Z").await;
    let expected = format!(
        "SELECT to_char(bucket AT TIME ZONE 'UTC', 'HH24'), meter, expected FROM {}.readings_ledger \
         WHERE bucket < '2026-01-01 12:00Z' ORDER BY 1, 2",
        db.schema
    );
    assert_eq!(db.text(&expected).await, "10|m|6,10|n|3,11|m|6,11|n|3");
    db.forget_tables().await;
    db.drop().await;
}
