//! Windows and alerts on real PostgreSQL: the same whenever and wherever the readings come.

use std::{collections::BTreeMap, sync::Arc};

use corrente_config::{
    PipelineConfig,
    derived::{CounterConfig, DerivedConfig, PerMeter, SwapConfig, WindowsConfig},
    pipeline::{Hypertable, SinkConfig},
};
use corrente_crds::{pipeline::ColumnType, tables::Layout};
use corrente_pipeline::{
    batch::{Batch, Place},
    batcher::Run,
    sink::{
        Sink, SinkError,
        postgres::{PostgresSink, care::Upkeep},
        sqlite::SqliteSink,
    },
};
use corrente_record::Timestamp;
use corrente_runtime::broker::{Incoming, Messages, TopicPartition};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};

use crate::{database::Database, upkeep::round};

/// 2026-11-20T00:00:00Z, in minutes.
const MIDNIGHT: i64 = 1_795_132_800_000 / 60_000;
const MINUTE: i64 = 60_000;

/// A partition of which the sink is told batches.
pub struct Partition<K = PostgresSink> {
    sink: K,
    place: Place,
    epoch: i64,
    next: Option<i64>,
}

impl Partition {
    pub async fn claim(db: &Database, config: &PipelineConfig, number: i32) -> Self {
        Self::of(db.sink(config), number).await
    }
}

impl<K: Sink> Partition<K> {
    pub async fn of(mut sink: K, number: i32) -> Self {
        let place = Place {
            cluster: "c".into(),
            partition: TopicPartition {
                topic: "t".into(),
                partition: number,
            },
        };
        let claimed = sink.claim(&place).await.unwrap();
        Self {
            sink,
            place,
            epoch: claimed.epoch,
            next: claimed.position.map(|position| position.next_offset),
        }
    }

    /// Stores records as one batch. What passes is tried again, as the worker does; a deadlock is no such thing here.
    pub async fn store(&mut self, records: &[String]) {
        let first = self.next.unwrap_or(0);
        let messages: Messages = records
            .iter()
            .enumerate()
            .map(|(at, record)| Incoming {
                offset: first + at as i64,
                timestamp: Some(1),
                key: Some(b"m"),
                payload: Some(record.as_bytes()),
            })
            .collect();
        let run = Run {
            range: 0..records.len(),
            messages: Arc::new(messages),
        };
        let batch = Batch::build(
            self.place.clone(),
            self.epoch,
            self.next,
            vec![run],
            Arc::default(),
        );
        let batch = Arc::new(batch.unwrap());
        loop {
            match self.sink.store(&batch).await {
                Ok(stored) => {
                    assert!(
                        stored.rows >= records.len() as u64,
                        "each in a row, or in several"
                    );
                    assert_eq!(stored.dead_letters, 0);
                    break;
                }
                Err(SinkError::Fenced(why)) => panic!("{why}"),
                Err(error) => {
                    let why = error.to_string();
                    assert!(!why.contains("40P01") && why.contains("55P03"), "{why}");
                }
            }
        }
        self.next = Some(first + records.len() as i64);
    }
}

/// Windows of a quarter of an hour and of an hour, of a counter with a serial number and a power.
fn config(db: &Database) -> PipelineConfig {
    let table = |name: &str, minutes: u64, metrics: &[&str]| WindowsConfig {
        table: name.to_owned(),
        interval_millis: minutes * 60_000,
        metrics: metrics.iter().map(|&metric| metric.to_owned()).collect(),
        expected_every_millis: None,
        retention: None,
    };
    let mut config = db.config("t", None);
    config.columns = BTreeMap::from([
        ("energy".to_owned(), ColumnType::Numeric),
        ("power".to_owned(), ColumnType::Float8),
        ("serial".to_owned(), ColumnType::Text),
    ]);
    config.derived = Some(DerivedConfig {
        windows: vec![
            table("readings_15min", 15, &["energy", "power"]),
            table("readings_hour", 60, &["energy"]),
        ],
        counters: vec![CounterConfig {
            metric: "energy".to_owned(),
            rollover: PerMeter::all(65_536.0),
            most_per_hour: Some(60_000.0),
            serial: Some("serial".to_owned()),
            longest_gap_millis: 4 * 3_600_000,
        }],
        swaps: vec![],
        every: PerMeter::all(60_000),
    });
    config
}

fn record(meter: &str, minute: i64, late: i64, fields: &str) -> String {
    let slot = Timestamp((MIDNIGHT + minute) * MINUTE);
    let ts = Timestamp(slot.0 + late);
    format!(r#"{{"ts":"{ts}","meter":"{meter}","slot":"{slot}"{fields}}}"#)
}

/// Readings of some meters, each minute for some hours, in the order of time: with polls that failed, gaps, rollovers,
/// resets, and meters that were replaced.
fn history(rng: &mut StdRng, meters: usize, minutes: i64) -> Vec<(usize, i64, String)> {
    let mut records = vec![];
    for meter in 0..meters {
        let (mut energy, mut serial, mut away) = (rng.random_range(0..65_536u32), meter * 100, 0);
        for minute in 0..minutes {
            let watts = rng.random_range(0..900u32);
            energy += watts;
            if energy >= 65_536 {
                energy -= 65_536;
            }
            match rng.random_range(0..400) {
                0 => energy = 0,
                1 => (energy, serial) = (rng.random_range(0..65_536), serial + 1),
                2 => away = rng.random_range(2..300),
                _ => {}
            }
            let late = rng.random_range(0..2000);
            let name = format!("m{meter}");
            if away > 0 {
                away -= 1;
            } else if rng.random_range(0..20) == 0 {
                records.push((
                    meter,
                    minute,
                    record(&name, minute, late, r#","quality":"failed""#),
                ));
            } else {
                let fields =
                    format!(r#","quality":"good","energy":{energy},"power":{watts}.5,"serial":"S{serial}""#);
                records.push((meter, minute, record(&name, minute, late, &fields)));
            }
        }
    }
    records.sort_by_key(|(_, minute, _)| *minute);
    records
}

const SAYS: &str = "meter, metric, window_start, window_end, demand, energy, mean, min, max, last, readings, expected, \
                    completeness, quality, rollovers, resets, jumps, swaps";

/// A table of windows, all but how often and when it was written.
async fn windows(db: &Database, table: &str) -> Vec<String> {
    let sql = format!(
        "SELECT {SAYS} FROM {}.{table} ORDER BY meter COLLATE \"C\", metric COLLATE \"C\", window_end",
        db.schema
    );
    db.text(&sql).await.split(',').map(str::to_owned).collect()
}

/// A table of the readings.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Shape {
    Wide,
    Narrow,
    Hypertable,
}

fn shaped(db: &Database, shape: Shape) -> PipelineConfig {
    let mut config = config(db);
    if let SinkConfig::Postgres {
        hypertable, tables, ..
    } = &mut config.sink
    {
        match shape {
            Shape::Wide => {}
            Shape::Narrow => tables.layout = Layout::Narrow,
            Shape::Hypertable => {
                *hypertable = Some(Hypertable {
                    chunk_interval_millis: Some(2 * 3_600_000),
                });
            }
        }
    }
    config
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_spool_that_drains_hours_late_leaves_what_one_that_never_waited_leaves() {
    late_is_as_good_as_prompt(Shape::Wide).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_late_spool_leaves_the_same_of_a_narrow_table() {
    late_is_as_good_as_prompt(Shape::Narrow).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs TimescaleDB"]
async fn a_late_spool_leaves_the_same_of_a_hypertable() {
    late_is_as_good_as_prompt(Shape::Hypertable).await;
}

async fn late_is_as_good_as_prompt(shape: Shape) {
    let seed = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let history = history(&mut rng, 6, 9 * 60);
    // As it comes where nothing waits: in the order of time, one partition.
    let prompt = Database::new().await;
    let mut partition = Partition::claim(&prompt, &shaped(&prompt, shape), 0).await;
    let all: Vec<String> = history.iter().map(|(.., record)| record.clone()).collect();
    for batch in all.chunks(400) {
        partition.store(batch).await;
    }
    // Half of the meters' spools wait for six hours, and drain while the others go on. A meter's records come by two
    // partitions, since it changed its shard or the topic grew, and whatever is in a partition comes in any order.
    let late = Database::new().await;
    let mut waiting: Vec<(i64, i32, String)> = history
        .iter()
        .map(|(meter, minute, record)| {
            let held = meter % 2 == 0 && (60..420).contains(minute);
            let comes = if held { 420 + minute / 6 } else { *minute };
            let jitter = rng.random_range(0..30);
            let partition = ((meter + usize::from(rng.random_range(0..3) == 0)) % 4) as i32;
            (comes + jitter, partition, record.clone())
        })
        .collect();
    waiting.shuffle(&mut rng);
    waiting.sort_by_key(|(comes, ..)| *comes);
    let mut tasks = vec![];
    for number in 0..4 {
        let mut partition = Partition::claim(&late, &shaped(&late, shape), number).await;
        let own: Vec<String> = waiting
            .iter()
            .filter(|(_, at, _)| *at == number)
            .map(|(.., record)| record.clone())
            .collect();
        let size = rng.random_range(20..200);
        tasks.push(tokio::spawn(async move {
            for batch in own.chunks(size) {
                partition.store(batch).await;
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(prompt.count().await, late.count().await);
    for table in ["readings_15min", "readings_hour"] {
        let (expected, got) = (windows(&prompt, table).await, windows(&late, table).await);
        // Meters may be away for most of the time, but not all of them.
        assert!(expected.len() > 12, "{}, seed {seed}", expected.len());
        for (expected, got) in expected.iter().zip(&got) {
            assert_eq!(got, expected, "{table}, seed {seed}");
        }
        assert_eq!(got.len(), expected.len(), "{table}, seed {seed}");
    }
    // They were made several times to come to this.
    let revised = format!("SELECT max(revision) > 1 FROM {}.readings_15min", late.schema);
    assert_eq!(late.text(&revised).await, "t");
    // And what they hold is what the readings say, recalculated by the database itself.
    let value = if shape == Shape::Narrow {
        "CASE WHEN metric = 'power' THEN value END"
    } else {
        "power"
    };
    for db in [&prompt, &late] {
        let wrong = db
            .text(&format!(
                "SELECT count(*) FROM (SELECT meter, date_bin('15 minutes', slot - interval '1 microsecond', '2000-01-01') \
                 + interval '15 minutes' AS window_end, avg({value}) AS mean, count(*) AS readings FROM {schema}.readings \
                 WHERE {value} IS NOT NULL GROUP BY 1, 2) r FULL JOIN (SELECT * FROM {schema}.readings_15min \
                 WHERE metric = 'power') w USING (meter, window_end) \
                 WHERE abs(r.mean - w.mean) > 1e-9 OR (r.mean IS NULL) <> (w.mean IS NULL) OR r.readings <> w.readings",
                schema = db.schema
            ))
            .await;
        assert_eq!(wrong, "0");
    }
    prompt.drop().await;
    late.drop().await;
}

/// A row of a table of windows: its texts, and its numbers.
type Row = (Vec<String>, Vec<Option<f64>>);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn sqlite_derives_what_postgresql_derives() {
    const TEXTS: [&str; 3] = ["meter", "metric", "quality"];
    const NUMBERS: [&str; 13] = [
        "demand",
        "energy",
        "mean",
        "min",
        "max",
        "last",
        "readings",
        "expected",
        "completeness",
        "rollovers",
        "resets",
        "jumps",
        "swaps",
    ];
    let seed = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut records: Vec<String> = history(&mut rng, 4, 6 * 60)
        .into_iter()
        .map(|(.., record)| record)
        .collect();
    let db = Database::new().await;
    let config = config(&db);
    let mut partition = Partition::claim(&db, &config, 0).await;
    for batch in records.chunks(300) {
        partition.store(batch).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("readings.sqlite");
    let mut local = config.clone();
    local.sink = SinkConfig::Sqlite {
        path: path.clone(),
        table: "readings".to_owned(),
    };
    let mut partition = Partition::of(SqliteSink::new(&local).unwrap(), 0).await;
    records.shuffle(&mut rng);
    for batch in records.chunks(100) {
        partition.store(batch).await;
    }
    let file = rusqlite::Connection::open(&path).unwrap();
    for table in ["readings_15min", "readings_hour"] {
        let order = "ORDER BY 1, 2, window_end";
        let numbers = NUMBERS.map(|number| format!("{number}::float8")).join(", ");
        let sql = format!(
            "SELECT meter COLLATE \"C\", metric COLLATE \"C\", quality, {numbers} \
             FROM {}.{table} {order}",
            db.schema
        );
        let expected: Vec<Row> = db
            .client
            .query(&sql, &[])
            .await
            .unwrap()
            .iter()
            .map(|row| {
                let texts = (0..3).map(|at| row.get::<_, String>(at)).collect();
                (texts, (3..16).map(|at| row.get(at)).collect())
            })
            .collect();
        let sql = format!(
            "SELECT {}, {} FROM {table} {order}",
            TEXTS.join(", "),
            NUMBERS.join(", ")
        );
        let mut statement = file.prepare(&sql).unwrap();
        let got: Vec<Row> = statement
            .query_map([], |row| {
                let texts = (0..3).map(|at| row.get(at)).collect::<Result<_, _>>()?;
                Ok((texts, (3..16).map(|at| row.get(at)).collect::<Result<_, _>>()?))
            })
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        assert!(!expected.is_empty(), "{table}, seed {seed}");
        for (expected, got) in expected.iter().zip(&got) {
            assert_eq!(got, expected, "{table}, seed {seed}");
        }
        assert_eq!(got.len(), expected.len(), "{table}, seed {seed}");
    }
    db.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn two_batches_that_touch_one_window_at_once_lose_nothing_of_it() {
    let db = Database::new().await;
    // Eight partitions have records of the same meters and minutes, one second apart.
    let mut tasks = vec![];
    for number in 0..8 {
        let mut partition = Partition::claim(&db, &config(&db), number).await;
        tasks.push(tokio::spawn(async move {
            for minute in 0..30 {
                let mut records: Vec<String> = (0..5)
                    .map(|meter| {
                        let late = i64::from(number) * 1000;
                        record(
                            &format!("m{meter}"),
                            minute,
                            late,
                            r#","quality":"good","power":1"#,
                        )
                    })
                    .collect();
                if number % 2 == 0 {
                    records.reverse();
                }
                partition.store(&records).await;
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let sum = db
        .text(&format!(
            "SELECT count(*), sum(readings), max(readings) FROM {}.readings_15min",
            db.schema
        ))
        .await;
    // Minute 0 ends a window; 1 to 15 are one, 16 to 29 another.
    assert_eq!(sum, "15|1200|120");
    db.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_swap_that_is_written_down_later_changes_what_it_touches() {
    let db = Database::new().await;
    let mut config = config(&db);
    if let Some(derived) = &mut config.derived {
        derived.counters[0].serial = None;
    }
    let reading = |minute: i64, energy: i64| record("m", minute, 5, &format!(r#","energy":{energy}"#));
    let mut partition = Partition::claim(&db, &config, 0).await;
    let records: Vec<String> = (0..=40)
        .map(|minute| {
            reading(
                minute,
                if minute < 20 {
                    50_000 + minute * 10
                } else {
                    (minute - 20) * 10 + 300
                },
            )
        })
        .collect();
    partition.store(&records).await;
    let sql = format!(
        "SELECT to_char(window_end, 'HH24:MI'), energy, quality, resets, swaps, revision FROM {}.readings_15min \
         WHERE metric = 'energy' ORDER BY window_end",
        db.schema
    );
    let before = db.text(&sql).await;
    assert_eq!(
        before,
        "00:00|-|partial|0|0|1,00:15|150|good|0|0|1,00:30|140|partial|1|0|1,00:45|100|partial|0|0|1"
    );
    // The worker is started with the swap in its configuration: the next batch, of whatever, looks at it.
    if let Some(derived) = &mut config.derived {
        derived.swaps = vec![SwapConfig {
            meter: "m".to_owned(),
            at: Timestamp((MIDNIGHT + 19) * MINUTE + 30_000),
            metric: None,
            last: Some(50_195.0),
            first: Some(297.0),
        }];
    }
    let mut partition = Partition::claim(&db, &config, 0).await;
    partition.store(&[record("other", 31, 0, r#","power":1"#)]).await;
    let after = db.text(&sql).await;
    assert_eq!(
        after,
        "00:00|-|partial|0|0|1,00:15|150|good|0|0|1,00:30|148|good|0|1|2,00:45|100|partial|0|0|1"
    );
    db.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_window_whose_readings_retention_has_dropped_stays() {
    let db = Database::new().await;
    let config = config(&db);
    let mut partition = Partition::claim(&db, &config, 0).await;
    let reading = |minute: i64| record("m", minute, 0, r#","power":2"#);
    partition.store(&(1..15).map(reading).collect::<Vec<_>>()).await;
    db.client
        .batch_execute(&format!("DELETE FROM {}", db.table()))
        .await
        .unwrap();
    partition.store(&[reading(15)]).await;
    let sql = format!("SELECT readings, revision FROM {}.readings_15min", db.schema);
    assert_eq!(db.text(&sql).await, "14|1");
    db.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs TimescaleDB"]
async fn windows_that_are_added_later_are_made_of_what_was_there() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let records: Vec<String> = history(&mut rng, 3, 3_000)
        .into_iter()
        .map(|(.., record)| record)
        .collect();
    for shape in [Shape::Wide, Shape::Narrow, Shape::Hypertable] {
        let (throughout, later) = (Database::new().await, Database::new().await);
        let mut known = Partition::claim(&throughout, &shaped(&throughout, shape), 0).await;
        let config = shaped(&later, shape);
        let mut without = config.clone();
        without.derived = None;
        let (before, since) = records.split_at(records.len() - 100);
        let mut plain = Partition::claim(&later, &without, 0).await;
        for part in before.chunks(1_000) {
            known.store(part).await;
            plain.store(part).await;
        }
        let mut windowed = Partition::claim(&later, &config, 0).await;
        known.store(since).await;
        windowed.store(since).await;
        let tables = ["readings_15min", "readings_hour"];
        for table in tables {
            let (all, some) = (windows(&throughout, table).await, windows(&later, table).await);
            assert!(some.len() < all.len(), "{shape:?}: there is something to make");
        }
        // Broken off after its first round, by a worker that goes, and taken up by another.
        let mut upkeep = Upkeep::new(&config).unwrap();
        let first = upkeep.round(Timestamp::now()).await.unwrap();
        drop(upkeep);
        let last = round(&config, "2026-11-22T12:00:00Z").await;
        assert_eq!(last.notices, Vec::<String>::new(), "{first:?}");
        for table in tables {
            assert_eq!(
                windows(&later, table).await,
                windows(&throughout, table).await,
                "{shape:?}"
            );
        }
        let noted = format!(
            "SELECT count(*) FROM corrente.backfills WHERE table_schema = '{}'",
            later.schema
        );
        assert_eq!(later.text(&noted).await, "0");
        // What was made anew and is as it was is not written again.
        let written = format!("SELECT max(revision) FROM {}.readings_hour", later.schema);
        let revision = later.text(&written).await;
        round(&config, "2026-11-22T12:00:30Z").await;
        assert_eq!(later.text(&written).await, revision);
        for db in [throughout, later] {
            let forget = format!(
                "DELETE FROM corrente.backfills WHERE table_schema = '{}'",
                db.schema
            );
            db.client.batch_execute(&forget).await.unwrap();
            db.drop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn windows_go_when_their_time_is_over() {
    let db = Database::new().await;
    let mut config = config(&db);
    config.derived.as_mut().unwrap().windows[0].retention = Some("1d".parse().unwrap());
    let mut partition = Partition::claim(&db, &config, 0).await;
    let power = |minute| {
        record(
            "m",
            minute,
            0,
            r#","quality":"good","energy":1,"power":2,"serial":"S""#,
        )
    };
    partition.store(&[power(5), power(25), power(45)]).await;
    round(&config, "2026-11-20T12:00:00Z").await;
    // A day after the end of the second quarter.
    let last = round(&config, "2026-11-21T00:30:00Z").await;
    assert_eq!(last.notices, Vec::<String>::new());
    let ends = async |table: &str| {
        let sql = format!(
            "SELECT DISTINCT to_char(window_end AT TIME ZONE 'UTC', 'HH24:MI') AS at FROM {}.{table} ORDER BY 1",
            db.schema
        );
        db.text(&sql).await
    };
    assert_eq!(ends("readings_15min").await, "00:45");
    assert_eq!(ends("readings_hour").await, "01:00", "kept for ever");
    db.drop().await;
}
