//! Roll-ups: tables with mean, least and greatest value of each number, per meter and interval.
//!
//! 1. A batch notes, in its own transaction, which intervals its rows lie in: a row of `corrente.rollup_log` for
//!    each, and nothing that another batch could wait for.
//! 2. The upkeep reckons noted intervals anew from the rows themselves, one transaction each, and takes the notes
//!    away with it. However late a row is, its interval is reckoned again; what was noted by a transaction that
//!    was not over is there for the next time.
//! 3. An interval that is still open is reckoned a dozen times in its length, not with every batch.
//!
//! An interval older than the retention of the rows is not reckoned again: some of its rows may be gone, and what
//! the roll-up holds was reckoned from all of them.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use corrente_config::tables::RollupConfig;
use corrente_crds::tables::Layout as Shape;
use corrente_record::Timestamp;
use tokio_postgres::{Client, Error, GenericClient, Transaction};

use super::super::{
    encode::PgType,
    layout::{Layout, own},
    table::Table,
};
use crate::sink::columns::quote;

/// How long intervals are reckoned in one go, so that a long backlog leaves room for the rest of the upkeep.
const AT_ONCE: Duration = Duration::from_secs(5);
/// How many of the newest intervals come before the others.
const NEWEST: usize = 2;
/// How often an open interval is reckoned in its length.
const OPEN: i64 = 12;
/// How many numbers a wide roll-up has room for: three columns each, and a table has 1600 at most.
const NUMBERS: usize = 500;
/// The longest name of a column.
const NAME_BYTES: usize = 63;

/// The worker's own tables of this module.
pub const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS corrente.rollups (
        table_schema text NOT NULL,
        rollup text NOT NULL,
        source text NOT NULL,
        pipeline text NOT NULL,
        milliseconds bigint NOT NULL,
        left_at timestamptz,
        PRIMARY KEY (table_schema, rollup)
    );
    CREATE TABLE IF NOT EXISTS corrente.rollup_log (
        table_schema text NOT NULL,
        rollup text NOT NULL,
        bucket timestamptz NOT NULL
    );
    CREATE INDEX IF NOT EXISTS rollup_log_rollup ON corrente.rollup_log (table_schema, rollup, bucket);
";

/// The intervals that a batch touches.
#[derive(Debug, Default)]
pub struct Touched {
    rollups: Vec<(String, i64, BTreeSet<i64>)>,
}

impl Touched {
    /// Those of these roll-ups.
    #[must_use]
    pub fn of(rollups: &[RollupConfig]) -> Self {
        let of = |rollup: &RollupConfig| (rollup.table.clone(), millis(rollup), BTreeSet::new());
        Self {
            rollups: rollups.iter().map(of).collect(),
        }
    }

    /// A row at this instant: its slot, or where it has none its time; milliseconds since the epoch.
    pub fn observe(&mut self, at: i64) {
        for (_, interval, touched) in &mut self.rollups {
            let begin = at.div_euclid(*interval) * *interval;
            // Rows come mostly in order: the newest interval is the one.
            if touched.last() != Some(&begin) {
                touched.insert(begin);
            }
        }
    }

    /// Forgets what was observed.
    pub fn clear(&mut self) {
        self.rollups
            .iter_mut()
            .for_each(|(_, _, touched)| touched.clear());
    }

    /// Notes them, in the transaction that stores the rows.
    pub async fn write(&self, transaction: &Transaction<'_>, schema: &str) -> Result<(), Error> {
        let noted = self
            .rollups
            .iter()
            .flat_map(|(rollup, _, touched)| touched.iter().map(move |at| (rollup.as_str(), *at)));
        let (names, instants): (Vec<&str>, Vec<i64>) = noted.unzip();
        if names.is_empty() {
            return Ok(());
        }
        transaction
            .execute(
                "INSERT INTO corrente.rollup_log (table_schema, rollup, bucket) \
                 SELECT $1, rollup, to_timestamp(at / 1000.0) FROM unnest($2::text[], $3::bigint[]) AS t (rollup, at)",
                &[&schema, &names, &instants],
            )
            .await?;
        Ok(())
    }
}

fn millis(rollup: &RollupConfig) -> i64 {
    i64::try_from(rollup.interval.as_millis()).unwrap_or(i64::MAX)
}

/// Makes, alters and removes roll-ups, so that they are the ones that are asked for. Gives what a person should
/// know, as sentences.
pub async fn bring_in_line(client: &mut Client, table: &Table, pipeline: &str) -> Result<Vec<String>, Error> {
    let mut notices = vec![];
    for rollup in &table.tables.rollups {
        notices.extend(make(client, table, rollup, pipeline).await?);
    }
    let wanted: Vec<&str> = table.tables.rollups.iter().map(|r| r.table.as_str()).collect();
    let left = client
        .query(
            "SELECT rollup, milliseconds FROM corrente.rollups \
             WHERE table_schema = $1 AND source = $2 AND pipeline = $3 AND NOT rollup = ANY($4::text[])",
            &[&table.schema, &table.name, &pipeline, &wanted],
        )
        .await?;
    for row in left {
        let (name, interval): (String, i64) = (row.try_get(0)?, row.try_get(1)?);
        notices.extend(remove(client, table, &name, interval).await?);
    }
    Ok(notices)
}

async fn make(
    client: &mut Client,
    table: &Table,
    rollup: &RollupConfig,
    pipeline: &str,
) -> Result<Option<String>, Error> {
    let (name, interval) = (table.beside(&rollup.table), millis(rollup));
    let transaction = client.transaction().await?;
    table.lock(&transaction).await?;
    let known = transaction
        .query_opt(
            "SELECT source, milliseconds, left_at IS NOT NULL FROM corrente.rollups \
             WHERE table_schema = $1 AND rollup = $2",
            &[&table.schema, &rollup.table],
        )
        .await?;
    let exists = transaction
        .query_one("SELECT to_regclass($1) IS NOT NULL", &[&name])
        .await?
        .try_get::<_, bool>(0)?;
    let mut fill = !exists;
    match known {
        None if exists => {
            return Ok(Some(format!(
                "the roll-up of {} cannot be made: there is a table {name} already; write another name for it",
                rollup.interval
            )));
        }
        Some(row) if exists => {
            let (source, found, left): (String, i64, bool) =
                (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            if source != table.name {
                return Ok(Some(format!(
                    "the table {name} is the roll-up of {}: write another name for the roll-up of {}",
                    table.beside(&source),
                    rollup.interval
                )));
            }
            if found != interval {
                if !can_be_made_again(&transaction, table, &rollup.table, found).await? {
                    return Ok(Some(format!(
                        "the roll-up {name} keeps its old interval, because rows that it was made of are gone: write \
                         another name for the one of {}",
                        rollup.interval
                    )));
                }
                transaction.batch_execute(&format!("TRUNCATE {name}")).await?;
            }
            fill = left || found != interval;
        }
        _ => {}
    }
    if !fill {
        return Ok(None);
    }
    let (columns, key) = match table.tables.layout {
        Shape::Wide => ("", "meter, bucket"),
        Shape::Narrow => (
            "metric text NOT NULL, avg double precision, min double precision, max double precision, ",
            "meter, metric, bucket",
        ),
    };
    let index = quote(&format!("{}_bucket", rollup.table));
    transaction
        .batch_execute(&format!(
            "CREATE TABLE IF NOT EXISTS {name} (bucket timestamptz NOT NULL, meter text NOT NULL, \
                 records bigint NOT NULL, {columns} PRIMARY KEY ({key})); \
             CREATE INDEX IF NOT EXISTS {index} ON {name} (bucket)",
        ))
        .await?;
    transaction
        .execute(
            "INSERT INTO corrente.rollups (table_schema, rollup, source, pipeline, milliseconds) \
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT (table_schema, rollup) \
             DO UPDATE SET pipeline = excluded.pipeline, milliseconds = excluded.milliseconds, left_at = NULL",
            &[&table.schema, &rollup.table, &table.name, &pipeline, &interval],
        )
        .await?;
    // What is in the table already is to be rolled up too.
    transaction
        .execute(
            &format!(
                "WITH t AS (SELECT min(ts) AS first, max(ts) AS last FROM {}) \
                 INSERT INTO corrente.rollup_log (table_schema, rollup, bucket) \
                 SELECT $1, $2, b FROM t, generate_series( \
                     date_bin({step}, t.first - {slack}, 'epoch'), t.last, {step}) AS b",
                table.quoted(),
                step = sql_millis(interval),
                slack = sql_millis(slack(table, interval)),
            ),
            &[&table.schema, &rollup.table],
        )
        .await?;
    transaction.commit().await?;
    tracing::info!(rollup = name, interval = %rollup.interval, "made a roll-up");
    Ok(None)
}

/// A roll-up that is not asked for any more goes, where the rows can make it again; else it stays, and is told.
async fn remove(
    client: &mut Client,
    table: &Table,
    name: &str,
    interval: i64,
) -> Result<Option<String>, Error> {
    let quoted = table.beside(name);
    let transaction = client.transaction().await?;
    table.lock(&transaction).await?;
    let exists = transaction
        .query_one("SELECT to_regclass($1) IS NOT NULL", &[&quoted])
        .await?;
    let notice = if exists.try_get::<_, bool>(0)?
        && !can_be_made_again(&transaction, table, name, interval).await?
    {
        transaction
            .execute(
                "UPDATE corrente.rollups SET left_at = coalesce(left_at, now()) WHERE table_schema = $1 AND rollup = $2",
                &[&table.schema, &name],
            )
            .await?;
        Some(format!(
            "the roll-up {quoted} is not kept up to date any more; it was not dropped, because rows that it was made \
             of are gone: drop it, or ask for it again"
        ))
    } else {
        transaction
            .batch_execute(&format!("DROP TABLE IF EXISTS {quoted}"))
            .await?;
        transaction
            .execute(
                "DELETE FROM corrente.rollups WHERE table_schema = $1 AND rollup = $2",
                &[&table.schema, &name],
            )
            .await?;
        tracing::info!(
            rollup = quoted,
            "dropped a roll-up that is not asked for any more"
        );
        None
    };
    transaction
        .execute(
            "DELETE FROM corrente.rollup_log WHERE table_schema = $1 AND rollup = $2",
            &[&table.schema, &name],
        )
        .await?;
    transaction.commit().await?;
    Ok(notice)
}

/// Whether the rows go back as far as the roll-up does, and none of them are about to go.
async fn can_be_made_again(
    transaction: &Transaction<'_>,
    table: &Table,
    name: &str,
    interval: i64,
) -> Result<bool, Error> {
    if table.tables.retention.is_some() {
        return Ok(false);
    }
    let row = transaction
        .query_one(
            &format!(
                "WITH f AS (SELECT min(ts) AS first FROM {table}), \
                 r AS (SELECT min(bucket) AS first FROM {rollup}) \
                 SELECT r.first IS NULL OR coalesce(r.first >= (SELECT date_bin({step}, min(coalesce(slot, ts)), 'epoch') \
                     FROM {table} WHERE ts <= f.first + {slack}), false) FROM f, r",
                table = table.quoted(),
                rollup = table.beside(name),
                step = sql_millis(interval),
                slack = sql_millis(slack(table, interval)),
            ),
            &[],
        )
        .await?;
    row.try_get(0)
}

/// How far the time of a reading may be behind its slot: what is read of the table to reckon an interval.
fn slack(table: &Table, interval: i64) -> i64 {
    let slowest = table.tables.slowest.map(|slowest| slowest.as_millis());
    let slowest = slowest.and_then(|slowest| i64::try_from(slowest).ok());
    slowest.unwrap_or(interval).max(60_000)
}

fn sql_millis(millis: i64) -> String {
    format!("INTERVAL '{millis} milliseconds'")
}

/// Reckons the intervals that are due; gives whether some are left over.
///
/// The newest come first, for people look at them, and then the oldest, whose rows are the next to go.
pub async fn refresh(
    client: &mut Client,
    table: &Table,
    rollup: &RollupConfig,
    open: &mut HashMap<(String, i64), i64>,
    now: Timestamp,
) -> Result<bool, Error> {
    let interval = millis(rollup);
    let kept = table
        .tables
        .retention
        .and_then(|kept| i64::try_from(kept.as_millis()).ok());
    if let Some(kept) = kept {
        // Some of their rows may be gone: they stay as they are.
        client
            .execute(
                "DELETE FROM corrente.rollup_log \
                 WHERE table_schema = $1 AND rollup = $2 AND bucket < $3::text::timestamptz",
                &[
                    &table.schema,
                    &rollup.table,
                    &Timestamp(now.0.saturating_sub(kept)).to_string(),
                ],
            )
            .await?;
    }
    let noted = client
        .query(
            "SELECT DISTINCT (extract(epoch FROM bucket) * 1000)::bigint AS at FROM corrente.rollup_log \
             WHERE table_schema = $1 AND rollup = $2 ORDER BY at",
            &[&table.schema, &rollup.table],
        )
        .await?;
    open.retain(|(name, begin), _| *name != rollup.table || begin + interval > now.0);
    let mut due = vec![];
    for row in noted {
        let begin: i64 = row.try_get(0)?;
        let since = open.get(&(rollup.table.clone(), begin));
        if is_due(begin, interval, now.0, since.copied()) {
            due.push(begin);
        }
    }
    let newest = NEWEST.min(due.len());
    due.rotate_right(newest);
    let until = Instant::now() + AT_ONCE;
    for begin in due {
        if Instant::now() > until {
            return Ok(true);
        }
        reckon(client, table, rollup, begin).await?;
        if begin + interval > now.0 {
            open.insert((rollup.table.clone(), begin), now.0);
        }
    }
    Ok(false)
}

/// Whether an interval is reckoned now: once it is over, and before that from time to time.
fn is_due(begin: i64, interval: i64, now: i64, reckoned: Option<i64>) -> bool {
    begin + interval <= now || reckoned.is_none_or(|at| now - at >= interval / OPEN || now < at)
}

/// Reckons an interval from its rows, and takes its notes away.
async fn reckon(client: &mut Client, table: &Table, rollup: &RollupConfig, begin: i64) -> Result<(), Error> {
    let numbers = match table.tables.layout {
        Shape::Wide => widen(client, table, rollup).await?,
        Shape::Narrow => vec![],
    };
    let transaction = client.transaction().await?;
    // One at a time: what is reckoned later is from more rows.
    transaction
        .execute(
            "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))",
            &[&format!("corrente rollup {}", table.beside(&rollup.table))],
        )
        .await?;
    let at = Timestamp(begin).to_string();
    // The notes go before the rows are read: a note that is gone is of rows that are seen.
    transaction
        .execute(
            "DELETE FROM corrente.rollup_log WHERE table_schema = $1 AND rollup = $2 AND bucket = $3::text::timestamptz",
            &[&table.schema, &rollup.table, &at],
        )
        .await?;
    let sql = statement(table, rollup, &numbers);
    transaction.execute(&sql, &[&at]).await?;
    transaction.commit().await
}

/// The numbers of a wide table, with the type of their extremes.
fn numbers(layout: &Layout) -> Vec<(String, &'static str)> {
    let of = |(name, kind): &(String, PgType)| {
        let extreme = match kind {
            PgType::Float8 | PgType::Float4 => "double precision",
            PgType::Int8 | PgType::Int4 | PgType::Int2 => "bigint",
            PgType::Numeric(_) => "numeric",
            _ => return None,
        };
        let ours = own(Shape::Wide).iter().any(|(own, _)| own == name);
        (!ours && name.len() + 4 <= NAME_BYTES).then(|| (name.clone(), extreme))
    };
    layout.columns.iter().filter_map(of).take(NUMBERS).collect()
}

/// Adds the columns of metrics that are new, and gives all that the roll-up has.
async fn widen(
    client: &mut Client,
    table: &Table,
    rollup: &RollupConfig,
) -> Result<Vec<(String, &'static str)>, Error> {
    let numbers = numbers(&Layout::read(client, &table.schema, &table.name).await?);
    let found = Layout::read(client, &table.schema, &rollup.table).await?;
    let added: Vec<String> = numbers
        .iter()
        .filter(|(name, _)| found.position(&format!("{name}_avg")).is_none())
        .flat_map(|(name, extreme)| {
            [("avg", "double precision"), ("min", *extreme), ("max", *extreme)].map(|(suffix, kind)| {
                let column = quote(&format!("{name}_{suffix}"));
                format!("ADD COLUMN IF NOT EXISTS {column} {kind}")
            })
        })
        .collect();
    if !added.is_empty() {
        let transaction = client.transaction().await?;
        table.lock(&transaction).await?;
        let name = table.beside(&rollup.table);
        transaction
            .batch_execute(&format!("ALTER TABLE {name} {}", added.join(", ")))
            .await?;
        transaction.commit().await?;
    }
    Ok(numbers)
}

/// The statement that reckons the interval that begins at `$1`.
fn statement(table: &Table, rollup: &RollupConfig, numbers: &[(String, &str)]) -> String {
    let interval = millis(rollup);
    let (columns, values, keys, what) = match table.tables.layout {
        Shape::Wide => {
            let columns = numbers
                .iter()
                .flat_map(|(name, _)| ["avg", "min", "max"].map(|suffix| quote(&format!("{name}_{suffix}"))));
            let values = numbers.iter().flat_map(|(name, extreme)| {
                let column = quote(name);
                [
                    format!("avg({column})::double precision"),
                    format!("min({column})::{extreme}"),
                    format!("max({column})::{extreme}"),
                ]
            });
            let columns: Vec<String> = ["records".to_owned()].into_iter().chain(columns).collect();
            let values: Vec<String> = ["count(*)".to_owned()].into_iter().chain(values).collect();
            (columns, values, "meter", "true")
        }
        Shape::Narrow => (
            ["records", "avg", "min", "max"].map(str::to_owned).to_vec(),
            ["count(*)", "avg(value)", "min(value)", "max(value)"]
                .map(str::to_owned)
                .to_vec(),
            "meter, metric",
            "value IS NOT NULL",
        ),
    };
    let set: Vec<String> = columns
        .iter()
        .map(|column| format!("{column} = excluded.{column}"))
        .collect();
    format!(
        "INSERT INTO {rollup} (bucket, {keys}, {columns}) \
         SELECT b.at, {keys}, {values} FROM {table}, (SELECT $1::text::timestamptz AS at) b \
         WHERE ts >= $1::text::timestamptz - INTERVAL '1 minute' AND ts < $1::text::timestamptz + {step} + {slack} \
               AND coalesce(slot, ts) >= b.at AND coalesce(slot, ts) < b.at + {step} AND {what} \
         GROUP BY b.at, {keys} \
         ON CONFLICT ({keys}, bucket) DO UPDATE SET {set}",
        rollup = table.beside(&rollup.table),
        columns = columns.join(", "),
        values = values.join(", "),
        table = table.quoted(),
        step = sql_millis(interval),
        slack = sql_millis(slack(table, interval)),
        set = set.join(", "),
    )
}

/// Deletes what is older than the roll-up's own retention.
pub async fn drop_old(
    client: &impl GenericClient,
    table: &Table,
    rollup: &RollupConfig,
    now: Timestamp,
) -> Result<u64, Error> {
    let Some(kept) = rollup.retention else {
        return Ok(0);
    };
    let before = Timestamp(
        now.0
            .saturating_sub(i64::try_from(kept.as_millis()).unwrap_or(i64::MAX)),
    );
    let name = table.beside(&rollup.table);
    client
        .execute(
            &format!(
                "DELETE FROM {name} WHERE bucket + {} <= $1::text::timestamptz",
                sql_millis(millis(rollup))
            ),
            &[&before.to_string()],
        )
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rollup(interval: &str) -> RollupConfig {
        RollupConfig {
            table: format!("r_{interval}"),
            interval: interval.parse().unwrap(),
            retention: None,
        }
    }

    #[test]
    fn a_batch_notes_each_interval_once() {
        let mut touched = Touched::of(&[rollup("1m"), rollup("1h")]);
        for at in [59_999, 60_000, 61_000, 0, 3_600_000, -1] {
            touched.observe(at);
        }
        let noted: Vec<Vec<i64>> = touched
            .rollups
            .iter()
            .map(|(_, _, touched)| touched.iter().copied().collect())
            .collect();
        assert_eq!(
            noted,
            [
                vec![-60_000, 0, 60_000, 3_600_000],
                vec![-3_600_000, 0, 3_600_000]
            ]
        );
        touched.clear();
        assert!(touched.rollups.iter().all(|(_, _, touched)| touched.is_empty()));
    }

    #[test]
    fn an_open_interval_is_reckoned_from_time_to_time() {
        let (begin, hour) = (0, 3_600_000);
        assert!(is_due(begin, hour, 10, None));
        assert!(!is_due(begin, hour, 200_000, Some(10)));
        assert!(is_due(begin, hour, 310_000, Some(10)));
        assert!(is_due(begin, hour, hour, Some(hour - 1)), "it is over");
        assert!(is_due(begin, hour, 5, Some(10)), "the clock went back");
    }

    #[test]
    fn numbers_are_the_columns_that_can_be_added_up() {
        let long = "x".repeat(60);
        let layout = Layout::of(&[
            ("ts", PgType::Timestamptz),
            ("seq", PgType::Int8),
            ("voltage", PgType::Float8),
            ("energy", PgType::Numeric(Some(0))),
            ("site", PgType::Text),
            ("closed", PgType::Boolean),
            (&long, PgType::Float8),
        ]);
        let expected = [
            ("voltage".to_owned(), "double precision"),
            ("energy".to_owned(), "numeric"),
        ];
        assert_eq!(numbers(&layout), expected);
    }
}
