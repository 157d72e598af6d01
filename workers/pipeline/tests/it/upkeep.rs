//! The upkeep of the tables on a real server, at times that the tests choose: partitions, chunks, retention, roll-ups,
//! views and who may read them.

use corrente_config::{
    PipelineConfig,
    pipeline::{Hypertable, SinkConfig},
    tables::{RollupConfig, TablesConfig},
};
use corrente_crds::tables::{Layout, PartitionBy, Reader, Views};
use corrente_pipeline::sink::postgres::care::{Round, Upkeep};
use corrente_record::Timestamp;

use crate::{
    database::{Database, connect, url},
    support::{unique, wait},
};

pub const HYPERTABLE: Option<Hypertable> = Some(Hypertable {
    chunk_interval_millis: Some(86_400_000),
});

/// The configuration of a test's pipeline, with tables of its own making.
pub fn with_tables(
    db: &Database,
    hypertable: Option<Hypertable>,
    change: impl FnOnce(&mut TablesConfig),
) -> PipelineConfig {
    let mut config = db.config("t", hypertable);
    let SinkConfig::Postgres { tables, .. } = &mut config.sink else {
        panic!("not PostgreSQL");
    };
    change(tables);
    config
}

pub fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

pub fn rollup(table: &str, interval: &str) -> RollupConfig {
    RollupConfig {
        table: table.to_owned(),
        interval: interval.parse().unwrap(),
        retention: None,
    }
}

/// One round of a pipeline's upkeep, by a worker that is gone afterwards.
pub async fn round(config: &PipelineConfig, now: &str) -> Round {
    let mut upkeep = Upkeep::new(config).unwrap();
    let mut round = None;
    // The server lets the lock of an earlier one go a moment after it is gone.
    wait("the lock of the upkeep", async || {
        round = upkeep.round(at(now)).await;
        round.is_some()
    })
    .await;
    while round.as_ref().is_some_and(|round| round.more) {
        round = upkeep.round(at(now)).await;
    }
    round.unwrap()
}

async fn partitions(db: &Database) -> String {
    db.text(&format!(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid \
         WHERE i.inhparent = '{}'::regclass ORDER BY 1",
        db.table()
    ))
    .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn partitions_are_made_ahead_and_dropped_once_they_are_wholly_old() {
    let db = Database::new().await;
    let config = with_tables(&db, None, |tables| {
        tables.partition_by = Some(PartitionBy::Month);
        tables.retention = Some("30d".parse().unwrap());
    });
    assert_eq!(round(&config, "2026-01-15T00:00:00Z").await, Round::default());
    assert_eq!(
        partitions(&db).await,
        "readings_p202601,readings_p202602,readings_p202603"
    );
    // A month on, more are made; January's last row is 30 days old on March 2 only.
    assert_eq!(round(&config, "2026-03-02T23:59:59Z").await, Round::default());
    assert!(partitions(&db).await.starts_with("readings_p202601,"));
    assert_eq!(round(&config, "2026-03-03T00:00:00Z").await, Round::default());
    assert_eq!(
        partitions(&db).await,
        "readings_p202602,readings_p202603,readings_p202604,readings_p202605"
    );
    // Daily from now on: the months that are there stay, and days follow them.
    let daily = with_tables(&db, None, |tables| tables.partition_by = Some(PartitionBy::Day));
    assert_eq!(round(&daily, "2026-05-28T12:00:00Z").await, Round::default());
    assert!(partitions(&db).await.ends_with(
        "readings_p202605,readings_p20260601,readings_p20260602,readings_p20260603,readings_p20260604"
    ));
    db.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_partition_is_made_beside_a_long_reader_and_not_dropped_under_it() {
    let db = Database::new().await;
    let config = with_tables(&db, None, |tables| {
        tables.partition_by = Some(PartitionBy::Month);
        tables.retention = Some("30d".parse().unwrap());
    });
    round(&config, "2026-01-15T00:00:00Z").await;
    let reader = connect(&url()).await;
    reader
        .batch_execute(&format!("BEGIN; SELECT count(*) FROM {}", db.table()))
        .await
        .unwrap();
    let said = round(&config, "2026-04-15T00:00:00Z").await;
    assert!(
        said.notices.len() == 1 && said.notices[0].contains("failed to drop"),
        "{said:?}"
    );
    let now = partitions(&db).await;
    assert!(
        now.starts_with("readings_p202601,") && now.ends_with("readings_p202606"),
        "{now}"
    );
    reader.batch_execute("COMMIT").await.unwrap();
    assert_eq!(round(&config, "2026-04-15T00:00:00Z").await, Round::default());
    assert!(partitions(&db).await.starts_with("readings_p202603,"));
    db.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_table_that_was_whole_stays_whole_and_is_told() {
    let db = Database::new().await;
    let plain = db.config("t", None);
    round(&plain, "2026-01-15T00:00:00Z").await;
    let asked = with_tables(&db, None, |tables| {
        tables.partition_by = Some(PartitionBy::Month);
        tables.retention = Some("30d".parse().unwrap());
    });
    let said = round(&asked, "2026-01-15T00:00:00Z").await;
    assert!(
        said.notices[0].contains("is not partitioned by ts: it is left as it is, so nothing"),
        "{said:?}"
    );
    db.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn chunks_follow_the_pipeline_and_go_once_they_are_wholly_old() {
    let db = Database::new().await;
    round(&with_tables(&db, HYPERTABLE, |_| ()), "2026-01-10T00:00:00Z").await;
    let table = db.table();
    db.client
        .batch_execute(&format!(
            "INSERT INTO {table} (ts, meter) SELECT t, 'm' FROM generate_series('2026-01-01 00:00Z'::timestamptz, \
             '2026-01-09 23:00Z', '1 hour') t"
        ))
        .await
        .unwrap();
    let config = with_tables(
        &db,
        Some(Hypertable {
            chunk_interval_millis: Some(6 * 3_600_000),
        }),
        |tables| {
            tables.retention = Some("3d".parse().unwrap());
            tables.compress_after = Some("1d".parse().unwrap());
        },
    );
    let said = round(&config, "2026-01-10T00:00:00Z").await;
    // The Apache edition has no compression: that is said, and the rest is done.
    assert!(
        said.notices.len() == 1
            && said.notices[0].contains("compressAfter needs TimescaleDB's community edition"),
        "{said:?}"
    );
    let oldest = format!("SELECT min(ts), count(*) FROM {table}");
    assert_eq!(db.text(&oldest).await, "2026-01-07 00:00:00+00|72");
    round(&config, "2026-01-10T23:59:59Z").await;
    assert_eq!(
        db.text(&oldest).await,
        "2026-01-07 00:00:00+00|72",
        "its last rows are not 3 days old"
    );
    let interval = format!(
        "SELECT time_interval FROM timescaledb_information.dimensions WHERE hypertable_schema = '{}'",
        db.schema
    );
    assert_eq!(db.text(&interval).await, "06:00:00");
    db.drop().await;
}

/// What a roll-up must hold, from the rows themselves.
async fn reckoned(db: &Database, interval: &str) -> String {
    db.text(&format!(
        "SELECT meter, date_bin('{interval}', coalesce(slot, ts), 'epoch') AS bucket, count(*), avg(voltage), min(voltage), \
         max(voltage) FROM {} GROUP BY 1, 2 ORDER BY 1, 2",
        db.table()
    ))
    .await
}

async fn rolled_up(db: &Database, table: &str) -> String {
    db.text(&format!(
        "SELECT meter, bucket, records, voltage_avg, voltage_min, voltage_max FROM {}.{table} ORDER BY 1, 2",
        db.schema
    ))
    .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn roll_ups_are_made_altered_and_removed_with_the_pipeline() {
    for hypertable in [None, HYPERTABLE] {
        let db = Database::new().await;
        round(&with_tables(&db, hypertable, |_| ()), "2026-01-02T00:00:00Z").await;
        let table = db.table();
        db.client
            .batch_execute(&format!(
                "ALTER TABLE {table} ADD voltage double precision, ADD energy numeric(20,0), ADD \"a\"\"b\" bigint, \
                     ADD site text, ADD closed boolean; \
                 INSERT INTO {table} (ts, slot, meter, voltage, energy, \"a\"\"b\") \
                 SELECT t + INTERVAL '2 seconds', t, 'm' || m, extract(epoch FROM t)::bigint % 977, 18446744073709551615, m \
                 FROM generate_series('2026-01-01 00:00Z'::timestamptz, '2026-01-01 06:00Z', '1 minute') t, \
                      generate_series(1, 3) m"
            ))
            .await
            .unwrap();
        let config = with_tables(&db, hypertable, |tables| {
            tables.rollups = vec![rollup("r_15m", "15m"), rollup("r_1h", "1h")];
        });
        assert_eq!(round(&config, "2026-01-02T00:00:00Z").await, Round::default());
        assert_eq!(rolled_up(&db, "r_15m").await, reckoned(&db, "15m").await);
        assert_eq!(rolled_up(&db, "r_1h").await, reckoned(&db, "1h").await);
        assert_eq!(
            db.text(&format!(
                "SELECT DISTINCT energy_max, \"a\"\"b_min\" FROM {}.r_1h WHERE meter = 'm2'",
                db.schema
            ))
            .await,
            "18446744073709551615|2"
        );

        // Another interval under the same name: made anew from the rows, which are all there.
        let altered = with_tables(&db, hypertable, |tables| {
            tables.rollups = vec![rollup("r_1h", "30m")]
        });
        assert_eq!(round(&altered, "2026-01-02T00:00:00Z").await, Round::default());
        assert_eq!(rolled_up(&db, "r_1h").await, reckoned(&db, "30m").await);
        let gone = format!("SELECT to_regclass('{}.r_15m') IS NULL", db.schema);
        assert_eq!(
            db.text(&gone).await,
            "t",
            "the one that is not asked for is dropped"
        );

        // Once rows are gone, what was made of them is kept.
        db.client
            .batch_execute(&format!("DELETE FROM {table} WHERE ts < '2026-01-01 02:00Z'"))
            .await
            .unwrap();
        let none = with_tables(&db, hypertable, |_| ());
        let said = round(&none, "2026-01-02T00:00:00Z").await;
        assert!(
            said.notices[0].contains("is not kept up to date any more; it was not dropped"),
            "{said:?}"
        );
        let again = with_tables(&db, hypertable, |tables| {
            tables.rollups = vec![rollup("r_1h", "1h")]
        });
        let said = round(&again, "2026-01-02T00:00:00Z").await;
        assert!(said.notices[0].contains("keeps its old interval"), "{said:?}");
        let count = format!(
            "SELECT count(*) FROM {}.r_1h WHERE bucket < '2026-01-01 02:00Z'",
            db.schema
        );
        assert_eq!(db.text(&count).await, "12");
        // A table of somebody else's is not touched.
        let taken = with_tables(&db, hypertable, |tables| {
            tables.rollups = vec![rollup("mine", "1h")]
        });
        db.client
            .batch_execute(&format!("CREATE TABLE {}.mine (x int)", db.schema))
            .await
            .unwrap();
        let said = round(&taken, "2026-01-02T00:00:00Z").await;
        assert!(
            said.notices
                .iter()
                .any(|n| n.contains("there is a table") && n.contains("already")),
            "{said:?}"
        );
        db.forget_tables().await;
        db.drop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn those_who_read_see_views_and_nothing_else() {
    let db = Database::new().await;
    let role = unique("reader");
    let schema = format!("{}_bi", db.schema);
    let viewed = |create, named: &str| {
        let reader = Reader {
            role: named.to_owned(),
            create,
        };
        let views = Views {
            schema: schema.clone(),
            reader: Some(reader),
        };
        with_tables(&db, HYPERTABLE, |tables| tables.views = Some(views))
    };
    let said = round(&viewed(false, &role), "2026-01-02T00:00:00Z").await;
    assert!(said.notices[0].contains("the database has no role"), "{said:?}");
    // The worker's user may not make roles: what to do is said.
    let said = round(&viewed(true, &role), "2026-01-02T00:00:00Z").await;
    assert!(said.notices[0].contains("lacks CREATEROLE"), "{said:?}");
    // One that every server has, and that gives its members nothing else to read.
    let role = "pg_signal_backend";
    assert_eq!(
        round(&viewed(false, role), "2026-01-02T00:00:00Z").await,
        Round::default()
    );
    let may = |what: &str| format!("SELECT has_table_privilege('{role}', '{what}', 'SELECT')");
    let (table, latest) = (db.table(), format!("{schema}.latest"));
    assert_eq!(db.text(&may(&latest)).await, "t");
    assert_eq!(db.text(&may(&table)).await, "t");
    assert_eq!(db.text(&may("corrente.offsets")).await, "f");
    for right in ["INSERT", "UPDATE", "DELETE", "TRUNCATE"] {
        let sql = format!("SELECT has_table_privilege('{role}', '{table}', '{right}')");
        assert_eq!(db.text(&sql).await, "f", "{right}");
    }

    // `latest` has the newest row of each meter, and the columns that came later.
    db.client
        .batch_execute(&format!(
            "ALTER TABLE {table} ADD voltage double precision; \
             INSERT INTO {table} (ts, meter, voltage) \
             SELECT t, 'm' || m, extract(day FROM t) * m FROM generate_series('2026-01-01'::timestamptz, '2026-01-09', '1 day') t, \
             generate_series(1, 3) m"
        ))
        .await
        .unwrap();
    assert_eq!(
        round(&viewed(false, role), "2026-01-02T00:00:00Z").await,
        Round::default()
    );
    assert_eq!(
        db.text(&format!("SELECT meter, voltage FROM {latest} ORDER BY 1"))
            .await,
        "m1|9,m2|18,m3|27"
    );
    // Another pipeline, or a person, keeps what is theirs.
    let mut other = viewed(false, role);
    other.name = unique("p");
    let said = round(&other, "2026-01-02T00:00:00Z").await;
    assert!(
        said.notices[0].contains("was not made: there is something of that name"),
        "{said:?}"
    );
    // Not asked for any more: the views go, and the reader's rights with them.
    let none = with_tables(&db, HYPERTABLE, |_| ());
    assert_eq!(round(&none, "2026-01-02T00:00:00Z").await, Round::default());
    assert_eq!(db.text(&may(&table)).await, "f");
    assert_eq!(
        db.text(&format!("SELECT to_regclass('{latest}') IS NULL")).await,
        "t"
    );
    db.client
        .batch_execute(&format!("DROP SCHEMA {schema} CASCADE"))
        .await
        .unwrap();
    db.forget_tables().await;
    db.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn one_worker_of_a_pipeline_looks_after_the_tables() {
    let db = Database::new().await;
    let config = with_tables(&db, None, |tables| tables.layout = Layout::Narrow);
    let (mut one, mut two) = (Upkeep::new(&config).unwrap(), Upkeep::new(&config).unwrap());
    let now = at("2026-01-02T00:00:00Z");
    assert_eq!(one.round(now).await, Some(Round::default()));
    assert_eq!(two.round(now).await, None);
    assert_eq!(one.round(now).await, Some(Round::default()));
    drop(one);
    wait("the other to take over", async || two.round(now).await.is_some()).await;
    // A table keeps the layout it has.
    drop(two);
    let said = round(&with_tables(&db, None, |_| ()), "2026-01-02T00:00:00Z").await;
    assert!(
        said.notices[0].contains("is narrow, and the layout asked for is wide"),
        "{said:?}"
    );
    db.drop().await;
}
