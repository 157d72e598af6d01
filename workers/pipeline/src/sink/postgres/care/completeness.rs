//! The ledger of completeness: what became of each slot of each meter.
//!
//! 1. A batch adds what it stored to `<table>_ledger`, per meter and interval, in its own transaction: exactly
//!    once, as the rows themselves. Failed polls make records too, and a record says how many slots before it were
//!    skipped; so whatever is accounted for is accounted for by the record that says so, however late it comes.
//!    A letter that is replayed is taken back as refused where it counted as such, and counts as what it is then.
//! 2. The upkeep knows the meters behind the topics and how often they are polled (`<table>_meters`), and writes how
//!    many slots are to be expected: a meter that delivers nothing at all has rows too, with nothing in them.
//! 3. What is expected and neither stored, failed, skipped nor refused is missing: it did not arrive.

use std::collections::{BTreeMap, HashMap};

use corrente_config::tables::CompletenessConfig;
use corrente_record::{Quality, Timestamp, View};
use tokio_postgres::{Client, Error, GenericClient, Transaction};

use super::super::table::Table;

/// Intervals over which the slots that one record says were skipped are spread; more than that are put into the
/// record's own, for a record that says it of years is not to be believed.
const MOST_INTERVALS: i64 = 10_000;

/// How far back readings count from before anybody asked what to expect of a meter.
const EARLIER: &str = "366 days";

/// The worker's own table of this module.
pub const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS corrente.ledgers (
        table_schema text NOT NULL,
        table_name text NOT NULL,
        milliseconds bigint NOT NULL,
        filled_to timestamptz,
        PRIMARY KEY (table_schema, table_name)
    );
";

/// What became of the slots of a meter in an interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    stored: i32,
    partial: i32,
    failed: i32,
    skipped: i32,
    refused: i32,
    first: Option<i64>,
}

/// What a record says of its slot.
#[derive(Clone, Copy, Debug)]
pub struct Slot<'a> {
    /// The meter.
    pub meter: &'a str,
    /// The slot, or where it has none the time; milliseconds since the epoch.
    pub at: i64,
    /// How much of the poll succeeded; all of it where the record does not say.
    pub quality: Option<Quality>,
    /// Slots right before it that were skipped.
    pub skipped: u32,
}

impl<'a> Slot<'a> {
    /// What a record says.
    #[must_use]
    pub fn of(record: &'a View<'_>) -> Self {
        Self {
            meter: &record.meter,
            at: record.slot.unwrap_or(record.ts).0,
            quality: record.quality,
            skipped: record.skipped.unwrap_or(0),
        }
    }
}

/// What a batch adds to the ledger.
#[derive(Debug, Default)]
pub struct Tally {
    interval: i64,
    every: HashMap<String, i64>,
    counts: HashMap<String, BTreeMap<i64, Counts>>,
}

impl Tally {
    /// A tally by intervals of so many milliseconds.
    #[must_use]
    pub fn new(config: &CompletenessConfig, interval: i64) -> Self {
        let every = config
            .intervals()
            .into_iter()
            .map(|(meter, every)| (meter.to_owned(), i64::try_from(every).unwrap_or(i64::MAX)))
            .collect();
        Self {
            interval: interval.max(1),
            every,
            counts: HashMap::new(),
        }
    }

    /// A row that goes into the table.
    pub fn stored(&mut self, slot: Slot<'_>) {
        let counts = self.of(slot.meter, slot.at);
        match slot.quality {
            Some(Quality::Failed) => counts.failed += 1,
            Some(Quality::Partial) => {
                counts.stored += 1;
                counts.partial += 1;
            }
            Some(Quality::Good) | None => counts.stored += 1,
        }
        self.skip(slot, 1);
    }

    /// A record that is set aside.
    pub fn refused(&mut self, slot: Slot<'_>) {
        self.of(slot.meter, slot.at).refused += 1;
        // What it says of the slots before it is true all the same.
        self.skip(slot, 1);
    }

    /// A record that was set aside, and is so no more: all that [`Tally::refused`] added. Where it is stored now,
    /// [`Tally::stored`] is told so as well.
    pub fn taken_back(&mut self, slot: Slot<'_>) {
        self.of(slot.meter, slot.at).refused -= 1;
        self.skip(slot, -1);
    }

    /// Each skipped slot counts in the interval that it lies in; `sign` is -1 where it is taken back.
    fn skip(&mut self, slot: Slot<'_>, sign: i32) {
        let Slot {
            meter, at, skipped, ..
        } = slot;
        let interval = self.interval;
        let spread = self
            .every
            .get(meter)
            .copied()
            .filter(|every| i64::from(skipped).saturating_mul(*every) / interval <= MOST_INTERVALS);
        let Some(every) = spread else {
            let all = i32::try_from(skipped).unwrap_or(i32::MAX);
            let counts = self.of(meter, at);
            counts.skipped = counts.skipped.saturating_add(sign * all);
            return;
        };
        for step in 1..=i64::from(skipped) {
            self.of(meter, at - step * every).skipped += sign;
        }
    }

    fn of(&mut self, meter: &str, at: i64) -> &mut Counts {
        let begin = at.div_euclid(self.interval) * self.interval;
        if !self.counts.contains_key(meter) {
            self.counts.insert(meter.to_owned(), BTreeMap::new());
        }
        let intervals = self.counts.entry(meter.to_owned()).or_default();
        let counts = intervals.entry(begin).or_default();
        counts.first = Some(counts.first.map_or(at, |first| first.min(at)));
        counts
    }

    /// Forgets what was counted.
    pub fn clear(&mut self) {
        self.counts.clear();
    }

    /// Adds it to the ledger, in the transaction that stores the rows.
    pub async fn write(&self, transaction: &Transaction<'_>, table: &Table) -> Result<(), Error> {
        // In one order, so that two batches never wait for each other.
        let mut rows: Vec<(&str, i64, Counts)> = self
            .counts
            .iter()
            .flat_map(|(meter, intervals)| {
                intervals
                    .iter()
                    .map(|(begin, counts)| (meter.as_str(), *begin, *counts))
            })
            .collect();
        if rows.is_empty() {
            return Ok(());
        }
        rows.sort_unstable_by_key(|(meter, begin, _)| (*meter, *begin));
        let meters: Vec<&str> = rows.iter().map(|(meter, ..)| *meter).collect();
        let begins: Vec<i64> = rows.iter().map(|(_, begin, _)| *begin).collect();
        let count = |of: fn(&Counts) -> i32| rows.iter().map(|(.., c)| of(c)).collect::<Vec<i32>>();
        let firsts: Vec<Option<i64>> = rows.iter().map(|(.., c)| c.first).collect();
        let ledger = ledger(table);
        transaction
            .execute(
                &format!(
                    "INSERT INTO {ledger} AS l (meter, bucket, stored, partial, failed, skipped, refused, first_slot) \
                     SELECT meter, to_timestamp(at / 1000.0), stored, partial, failed, skipped, refused, \
                            to_timestamp(first / 1000.0) \
                     FROM unnest($1::text[], $2::bigint[], $3::int[], $4::int[], $5::int[], $6::int[], $7::int[], $8::bigint[]) \
                          AS t (meter, at, stored, partial, failed, skipped, refused, first) \
                     ON CONFLICT (meter, bucket) DO UPDATE SET \
                         stored = l.stored + excluded.stored, partial = l.partial + excluded.partial, \
                         failed = l.failed + excluded.failed, \
                         skipped = greatest(l.skipped + excluded.skipped, 0), \
                         refused = greatest(l.refused + excluded.refused, 0), first_slot = least(l.first_slot, excluded.first_slot)"
                ),
                &[
                    &meters,
                    &begins,
                    &count(|c| c.stored),
                    &count(|c| c.partial),
                    &count(|c| c.failed),
                    &count(|c| c.skipped),
                    &count(|c| c.refused),
                    &firsts,
                ],
            )
            .await?;
        if rows.iter().any(|(.., c)| c.refused < 0 || c.skipped < 0) {
            // A ledger that was begun anew, or has dropped the interval, does not know what is taken back.
            let none = format!(
                "UPDATE {ledger} SET skipped = greatest(skipped, 0), refused = greatest(refused, 0) \
                 WHERE (skipped < 0 OR refused < 0) AND (meter, bucket) IN \
                     (SELECT meter, to_timestamp(at / 1000.0) FROM unnest($1::text[], $2::bigint[]) AS t (meter, at))"
            );
            transaction.execute(&none, &[&meters, &begins]).await?;
        }
        Ok(())
    }
}

/// The ledger's table, in SQL.
pub fn ledger(table: &Table) -> String {
    table.beside(&format!("{}_ledger", table.name))
}

/// The meters' table, in SQL.
pub fn meters(table: &Table) -> String {
    table.beside(&format!("{}_meters", table.name))
}

/// Makes the ledger where it is missing; gives the length of its intervals in milliseconds, which is the one that it
/// was begun with.
pub async fn make(client: &mut Client, table: &Table, config: &CompletenessConfig) -> Result<i64, Error> {
    let known = "SELECT milliseconds FROM corrente.ledgers WHERE table_schema = $1 AND table_name = $2 \
                 AND to_regclass($3) IS NOT NULL AND to_regclass($4) IS NOT NULL";
    let (ledger, meters) = (ledger(table), meters(table));
    if let Some(row) = client
        .query_opt(known, &[&table.schema, &table.name, &ledger, &meters])
        .await?
    {
        return row.try_get(0);
    }
    let asked = i64::try_from(config.interval.as_millis()).unwrap_or(i64::MAX);
    let transaction = client.transaction().await?;
    table.lock(&transaction).await?;
    let begun = transaction
        .query_one("SELECT to_regclass($1) IS NOT NULL", &[&ledger])
        .await?
        .try_get::<_, bool>(0)?;
    let index = |suffix: &str| crate::sink::columns::quote(&format!("{}_ledger_{suffix}", table.name));
    transaction
        .batch_execute(&format!(
            "CREATE TABLE IF NOT EXISTS {ledger} ( \
                 bucket timestamptz NOT NULL, meter text NOT NULL, expected integer, \
                 stored integer NOT NULL DEFAULT 0, partial integer NOT NULL DEFAULT 0, \
                 failed integer NOT NULL DEFAULT 0, skipped integer NOT NULL DEFAULT 0, \
                 refused integer NOT NULL DEFAULT 0, first_slot timestamptz, PRIMARY KEY (meter, bucket)); \
             CREATE INDEX IF NOT EXISTS {} ON {ledger} (bucket); \
             CREATE INDEX IF NOT EXISTS {} ON {ledger} (bucket) WHERE expected IS NULL; \
             CREATE TABLE IF NOT EXISTS {meters} ( \
                 pipeline text NOT NULL, meter text NOT NULL, milliseconds bigint NOT NULL, since timestamptz NOT NULL, \
                 until timestamptz, PRIMARY KEY (pipeline, meter, since))",
            index("bucket"),
            index("open"),
        ))
        .await?;
    // A ledger that is gone is begun anew, with the interval that is asked for now.
    let row = transaction
        .query_one(
            "INSERT INTO corrente.ledgers AS l (table_schema, table_name, milliseconds) VALUES ($1, $2, $3) \
             ON CONFLICT (table_schema, table_name) DO UPDATE SET \
                 milliseconds = CASE WHEN $4 THEN l.milliseconds ELSE excluded.milliseconds END, \
                 filled_to = CASE WHEN $4 THEN l.filled_to END \
             RETURNING milliseconds",
            &[&table.schema, &table.name, &asked, &begun],
        )
        .await?;
    let interval = row.try_get(0)?;
    transaction.commit().await?;
    Ok(interval)
}

/// Brings what was noted of the meters under a pipeline's old name under its new one: what is expected would be the sum of
/// both otherwise. The old one may still be at it, and note the same meters again.
pub async fn rename(client: &mut Client, table: &Table, old: &str, new: &str) -> Result<(), Error> {
    let meters = meters(table);
    let transaction = client.transaction().await?;
    table.lock(&transaction).await?;
    transaction
        .execute(
            &format!(
                "DELETE FROM {meters} o WHERE o.pipeline = $1 AND EXISTS (SELECT FROM {meters} n WHERE n.pipeline = $2 \
                     AND n.meter = o.meter AND n.since <= o.since AND (n.until IS NULL OR n.until > o.since))"
            ),
            &[&old, &new],
        )
        .await?;
    transaction
        .execute(
            &format!("UPDATE {meters} SET pipeline = $2 WHERE pipeline = $1"),
            &[&old, &new],
        )
        .await?;
    transaction.commit().await
}

/// Writes how many slots are expected, up to the interval that is open now.
pub async fn fill(
    client: &mut Client,
    table: &Table,
    config: &CompletenessConfig,
    pipeline: &str,
    interval: i64,
    now: Timestamp,
) -> Result<(), Error> {
    let (ledger, meters, now) = (ledger(table), meters(table), now.to_string());
    let asked = config.intervals();
    let names: Vec<&str> = asked.keys().copied().collect();
    let every: Vec<i64> = asked
        .values()
        .map(|every| i64::try_from(*every).unwrap_or(i64::MAX))
        .collect();
    let transaction = client.transaction().await?;
    table.lock(&transaction).await?;
    // Who is polled, how often, and since when.
    transaction
        .execute(
            &format!(
                "WITH asked AS (SELECT * FROM unnest($2::text[], $3::bigint[]) AS a (meter, milliseconds)), \
                 ended AS (UPDATE {meters} m SET until = greatest($4::text::timestamptz, m.since) \
                     WHERE m.pipeline = $1 AND m.until IS NULL AND NOT EXISTS (SELECT FROM asked a \
                         WHERE a.meter = m.meter AND a.milliseconds = m.milliseconds)) \
                 INSERT INTO {meters} (pipeline, meter, milliseconds, since) \
                 SELECT $1, a.meter, a.milliseconds, $4::text::timestamptz FROM asked a \
                 WHERE NOT EXISTS (SELECT FROM {meters} m WHERE m.pipeline = $1 AND m.until IS NULL \
                     AND m.meter = a.meter AND m.milliseconds = a.milliseconds) \
                 ON CONFLICT (pipeline, meter, since) DO UPDATE SET milliseconds = excluded.milliseconds, until = NULL"
            ),
            &[&pipeline, &names, &every, &now],
        )
        .await?;
    // A meter was polled before anybody asked what to expect of it, where there are earlier readings. Those of a clock
    // that ran wild say nothing.
    transaction
        .execute(
            &format!(
                "UPDATE {meters} m SET since = f.first \
                 FROM (SELECT meter, min(first_slot) AS first FROM {ledger} WHERE expected IS NULL \
                       AND first_slot > $2::text::timestamptz - INTERVAL '{EARLIER}' GROUP BY meter) f \
                 WHERE m.pipeline = $1 AND m.meter = f.meter AND f.first < m.since AND NOT EXISTS \
                     (SELECT FROM {meters} e WHERE e.pipeline = m.pipeline AND e.meter = m.meter AND e.since < m.since)"
            ),
            &[&pipeline, &now],
        )
        .await?;
    let step = format!("INTERVAL '{interval} milliseconds'");
    // Slots are multiples of the meter's interval since the epoch: those from `a` on and before `b`.
    let count = |at: &str| {
        format!("((extract(epoch FROM {at}) * 1000)::bigint + m.milliseconds - 1) / m.milliseconds")
    };
    let (after, before) = (
        count("greatest(b.at, m.since)"),
        count(&format!("least(b.at + {step}, coalesce(m.until, 'infinity'))")),
    );
    let from = format!(
        "least($1::text::timestamptz - {step}, \
             (SELECT filled_to FROM corrente.ledgers WHERE table_schema = $2 AND table_name = $3), \
             (SELECT min(l.bucket) FROM {ledger} l WHERE l.expected IS NULL AND EXISTS \
                 (SELECT FROM {meters} m WHERE m.meter = l.meter AND m.since < l.bucket + {step} \
                  AND (m.until IS NULL OR m.until > l.bucket))))"
    );
    // Only rows that are to change are touched, in the order of the batches, so that neither waits for the other.
    transaction
        .execute(
            &format!(
                "WITH f AS (SELECT {from} AS at), \
                 w AS (SELECT b.at, m.meter, sum(greatest({before} - ({after}), 0))::integer AS expected \
                     FROM f, {meters} m, LATERAL generate_series( \
                         date_bin({step}, greatest(f.at, m.since), 'epoch'), \
                         least($1::text::timestamptz, m.until), {step}) AS b (at) \
                     GROUP BY 1, 2) \
                 INSERT INTO {ledger} AS l (bucket, meter, expected) \
                 SELECT at, meter, expected FROM w WHERE NOT EXISTS (SELECT FROM {ledger} k \
                     WHERE k.meter = w.meter AND k.bucket = w.at AND k.expected = w.expected) \
                 ORDER BY meter COLLATE \"C\", at \
                 ON CONFLICT (meter, bucket) DO UPDATE SET expected = excluded.expected"
            ),
            &[&now, &table.schema, &table.name],
        )
        .await?;
    transaction
        .execute(
            &format!(
                "UPDATE corrente.ledgers SET filled_to = date_bin({step}, $1::text::timestamptz, 'epoch') \
                 WHERE table_schema = $2 AND table_name = $3"
            ),
            &[&now, &table.schema, &table.name],
        )
        .await?;
    transaction.commit().await
}

/// Deletes what is older than the ledger's retention.
pub async fn drop_old(
    client: &impl GenericClient,
    table: &Table,
    config: &CompletenessConfig,
    interval: i64,
    now: Timestamp,
) -> Result<u64, Error> {
    let Some(kept) = config.retention else {
        return Ok(0);
    };
    let kept = i64::try_from(kept.as_millis()).unwrap_or(i64::MAX);
    let before = Timestamp(now.0.saturating_sub(kept).saturating_sub(interval));
    client
        .execute(
            &format!(
                "DELETE FROM {} WHERE bucket <= $1::text::timestamptz",
                ledger(table)
            ),
            &[&before.to_string()],
        )
        .await
}

/// The last interval that is over: slots by what became of them, and meters of which nothing arrived.
pub async fn figures(
    client: &impl GenericClient,
    table: &Table,
    interval: i64,
    now: Timestamp,
) -> Result<[(&'static str, i64); 7], Error> {
    let row = client
        .query_one(
            &format!(
                "SELECT coalesce(sum(expected), 0), coalesce(sum(stored), 0), coalesce(sum(failed), 0), \
                        coalesce(sum(skipped), 0), coalesce(sum(refused), 0), \
                        coalesce(sum(greatest(expected - stored - failed - skipped - refused, 0)), 0), \
                        count(*) FILTER (WHERE expected > 0 AND stored + failed + skipped + refused = 0) \
                 FROM {} WHERE bucket = date_bin(INTERVAL '{interval} milliseconds', $1::text::timestamptz, 'epoch') \
                     - INTERVAL '{interval} milliseconds'",
                ledger(table)
            ),
            &[&now.to_string()],
        )
        .await?;
    Ok([
        ("expected", row.try_get(0)?),
        ("stored", row.try_get(1)?),
        ("failed", row.try_get(2)?),
        ("skipped", row.try_get(3)?),
        ("refused", row.try_get(4)?),
        ("missing", row.try_get(5)?),
        ("silent", row.try_get(6)?),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally() -> Tally {
        let config = CompletenessConfig {
            interval: "1m".parse().unwrap(),
            retention: None,
            meters: BTreeMap::from([("10s".to_owned(), ["m".to_owned()].into())]),
        };
        Tally::new(&config, 60_000)
    }

    fn slot(meter: &str, at: i64, quality: Quality, skipped: u32) -> Slot<'_> {
        Slot {
            meter,
            at,
            quality: Some(quality),
            skipped,
        }
    }

    fn shown(tally: &Tally, meter: &str) -> Vec<(i64, [i32; 5])> {
        let intervals = tally.counts.get(meter).cloned().unwrap_or_default();
        intervals
            .into_iter()
            .map(|(at, c)| (at, [c.stored, c.partial, c.failed, c.skipped, c.refused]))
            .collect()
    }

    #[test]
    fn every_slot_counts_in_the_interval_that_it_lies_in() {
        let mut tally = tally();
        tally.stored(slot("m", 50_000, Quality::Good, 0));
        // Eight slots were skipped before it: 40 s to 110 s.
        tally.stored(slot("m", 120_000, Quality::Partial, 8));
        tally.stored(slot("m", 130_000, Quality::Failed, 0));
        assert_eq!(
            shown(&tally, "m"),
            [
                (0, [1, 0, 0, 2, 0]),
                (60_000, [0, 0, 0, 6, 0]),
                (120_000, [1, 1, 1, 0, 0])
            ]
        );
        // Nobody knows how often this one is polled.
        tally.stored(slot("x", 0, Quality::Good, 3));
        assert_eq!(shown(&tally, "x"), [(0, [1, 0, 0, 3, 0])]);
    }

    #[test]
    fn what_is_set_aside_is_accounted_for() {
        let mut tally = tally();
        tally.refused(slot("m", 120_000, Quality::Good, 2));
        assert_eq!(
            shown(&tally, "m"),
            [(60_000, [0, 0, 0, 2, 0]), (120_000, [0, 0, 0, 0, 1])]
        );
        tally.clear();
        assert!(tally.counts.is_empty());
    }

    #[test]
    fn what_is_replayed_counts_as_what_it_is_then() {
        let mut tally = tally();
        let letter = slot("m", 120_000, Quality::Good, 2);
        tally.refused(letter);
        tally.taken_back(letter);
        assert_eq!(
            shown(&tally, "m"),
            [(60_000, [0; 5]), (120_000, [0; 5])],
            "as though it had not been refused"
        );
        tally.clear();
        // In the transaction of the replay, where it is stored.
        tally.stored(letter);
        tally.taken_back(letter);
        assert_eq!(
            shown(&tally, "m"),
            [(60_000, [0; 5]), (120_000, [1, 0, 0, 0, -1])]
        );
    }

    #[test]
    fn a_record_that_speaks_of_years_is_not_spread() {
        let mut tally = tally();
        tally.stored(slot("m", 0, Quality::Good, u32::MAX));
        assert_eq!(shown(&tally, "m"), [(0, [1, 0, 0, i32::MAX, 0])]);
    }
}
