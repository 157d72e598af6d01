//! Partitions of a plain table by time: months or days in UTC, made ahead, made for late rows as they come, and
//! dropped once all of their rows are older than the retention.
//!
//! 1. What there is, is read from the catalog, whoever made it: bounds need not be ours.
//! 2. A partition that is wanted is cut to the gap that its instant lies in, so that months and days, and bounds
//!    of others, stand beside each other.
//! 3. It is made beside the table and attached: that waits for nobody who reads the table. There is no default
//!    partition, because attaching would have to wait for everybody who reads that one, and search it.

use std::collections::BTreeSet;

use corrente_crds::tables::PartitionBy;
use corrente_record::Timestamp;
use tokio_postgres::{Client, Error, GenericClient};

use super::super::table::Table;
use crate::batch::Refusal;

/// Most partitions that the worker makes of one table: more make every query slow to plan. Rows that would need
/// one more, as those of a clock that runs wild do, are refused.
pub const MOST: usize = 2000;
/// Milliseconds of a day.
const DAY: i64 = 24 * 60 * 60 * 1000;

/// From an instant up to, not including, another; milliseconds since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    /// The first instant.
    pub from: i64,
    /// The first instant after it.
    pub to: i64,
}

/// The partitions of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Partitions {
    /// Their bounds, in order, with their names in SQL.
    pub ranges: Vec<(Range, String)>,
    /// There is a partition for all the rest, which somebody else has made.
    pub default: bool,
}

impl Partitions {
    /// Whether a row at this instant has a place.
    #[must_use]
    pub fn holds(&self, at: i64) -> bool {
        let after = self.ranges.partition_point(|(range, _)| range.to <= at);
        self.default || self.ranges.get(after).is_some_and(|(range, _)| range.from <= at)
    }

    /// The wanted range, cut to the gap around an instant; `None` where the instant has a place.
    fn gap(&self, wanted: Range, at: i64) -> Option<Range> {
        if self.holds(at) {
            return None;
        }
        let after = self.ranges.partition_point(|(range, _)| range.to <= at);
        let before = after.checked_sub(1).and_then(|before| self.ranges.get(before));
        Some(Range {
            from: before.map_or(wanted.from, |(range, _)| range.to.max(wanted.from)),
            to: self
                .ranges
                .get(after)
                .map_or(wanted.to, |(range, _)| range.from.min(wanted.to)),
        })
    }

    /// The ranges to make for these instants, in order.
    #[must_use]
    pub fn missing(&self, by: PartitionBy, instants: &[i64]) -> Vec<Range> {
        let wanted = instants
            .iter()
            .filter_map(|at| self.gap(around(by, *at)?, *at))
            .collect::<BTreeSet<_>>();
        let room = MOST.saturating_sub(self.ranges.len());
        wanted.into_iter().take(room).collect()
    }

    /// Those whose rows are all older than `before`.
    pub fn older_than(&self, before: i64) -> impl Iterator<Item = &str> {
        let old = move |range: &Range| range.to <= before && range.from < range.to;
        self.ranges
            .iter()
            .filter(move |(range, _)| old(range))
            .map(|(_, name)| name.as_str())
    }
}

/// The partitions of a table that a batch goes to.
#[derive(Clone, Debug)]
pub struct Places {
    /// What there is.
    pub partitions: Partitions,
    /// What is made.
    pub by: PartitionBy,
    /// For rows before this instant none is made: it would be dropped again. Milliseconds since the epoch.
    pub oldest: i64,
}

impl Places {
    /// Whether a row at this instant has a place; false where one can be made.
    ///
    /// # Errors
    /// Why none is made.
    pub fn hold(&self, at: i64) -> Result<bool, Refusal> {
        if self.partitions.holds(at) {
            return Ok(true);
        }
        let reason = if at < self.oldest {
            "the reading is older than the table's retention, and its partition is gone"
        } else if self.partitions.missing(self.by, &[at]).is_empty() {
            "the table has no partition for this time, and as many as are made"
        } else {
            return Ok(false);
        };
        Err(Refusal {
            sqlstate: None,
            column: Some("ts".to_owned()),
            reason: reason.to_owned(),
        })
    }
}

/// The month or day around an instant; `None` beyond the years that PostgreSQL and the calendar know.
#[must_use]
pub fn around(by: PartitionBy, at: i64) -> Option<Range> {
    if by == PartitionBy::Day {
        // What the calendar knows is far from the ends of the numbers.
        civil(at)?;
        let from = at.div_euclid(DAY) * DAY;
        return Some(Range { from, to: from + DAY });
    }
    let date = civil(at)?;
    let first = date.first_of_month();
    let next = first.checked_add(jiff::Span::new().months(1)).ok()?;
    let millis = |date: jiff::civil::Date| {
        let at = date.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
        Some(at.timestamp().as_millisecond())
    };
    Some(Range {
        from: millis(first)?,
        to: millis(next)?,
    })
}

/// The instants in this and the next units of time, for which partitions are made ahead: two months, or a week.
#[must_use]
pub fn ahead(by: PartitionBy, now: i64) -> Vec<i64> {
    let units = if by == PartitionBy::Day { 7 } else { 2 };
    let mut instants = vec![now];
    let mut at = now;
    for _ in 0..units {
        let Some(range) = around(by, at) else { break };
        at = range.to;
        instants.push(at);
    }
    instants
}

fn civil(at: i64) -> Option<jiff::civil::Date> {
    let at = jiff::Timestamp::from_millisecond(at).ok()?;
    let date = jiff::tz::Offset::UTC.to_datetime(at).date();
    (1..=9998).contains(&date.year()).then_some(date)
}

/// What a partition is named: the table and the month or the day that it begins with.
fn name(table: &str, by: PartitionBy, range: Range) -> String {
    let Some(date) = civil(range.from) else {
        return format!("{table}_p{}", range.from / 1000);
    };
    let whole = around(by, range.from).is_some_and(|unit| unit.from == range.from);
    let (year, month, day) = (date.year(), date.month(), date.day());
    match by {
        PartitionBy::Month if whole => format!("{table}_p{year:04}{month:02}"),
        _ => format!("{table}_p{year:04}{month:02}{day:02}"),
    }
}

/// The partitions of a table; `None` where it has none, or is cut by something else than `ts`.
pub async fn read(client: &impl GenericClient, table: &Table) -> Result<Option<Partitions>, Error> {
    let cut = client
        .query_opt(
            "SELECT pg_get_partkeydef(c.oid) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind = 'p'",
            &[&table.schema, &table.name],
        )
        .await?;
    let Some(cut) = cut else { return Ok(None) };
    if cut.try_get::<_, String>(0)? != "RANGE (ts)" {
        return Ok(None);
    }
    let rows = client
        .query(
            "WITH p AS ( \
                 SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name, \
                        pg_get_expr(c.relpartbound, c.oid) AS bound \
                 FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid \
                 JOIN pg_namespace n ON n.oid = c.relnamespace \
                 WHERE i.inhparent = $1::text::regclass) \
             SELECT name, bound = 'DEFAULT', \
                    (extract(epoch FROM (regexp_match(bound, 'FROM \\(''([^'']*)''\\)'))[1]::timestamptz) * 1000)::bigint, \
                    (extract(epoch FROM (regexp_match(bound, 'TO \\(''([^'']*)''\\)'))[1]::timestamptz) * 1000)::bigint \
             FROM p",
            &[&table.quoted()],
        )
        .await?;
    let mut partitions = Partitions::default();
    for row in rows {
        if row.try_get(1)? {
            partitions.default = true;
        } else {
            let range = Range {
                from: row.try_get::<_, Option<i64>>(2)?.unwrap_or(i64::MIN),
                to: row.try_get::<_, Option<i64>>(3)?.unwrap_or(i64::MAX),
            };
            partitions.ranges.push((range, row.try_get(0)?));
        }
    }
    partitions.ranges.sort();
    Ok(Some(partitions))
}

/// Makes what is missing for rows at these instants, and gives what there is then.
pub async fn make(
    client: &mut Client,
    table: &Table,
    by: PartitionBy,
    instants: &[i64],
) -> Result<Option<Partitions>, Error> {
    let Some(found) = read(client, table).await? else {
        return Ok(None);
    };
    if found.missing(by, instants).is_empty() {
        return Ok(Some(found));
    }
    let transaction = client.transaction().await?;
    table.lock(&transaction).await?;
    let Some(found) = read(&transaction, table).await? else {
        return Ok(None);
    };
    for range in found.missing(by, instants) {
        let name = free_name(&transaction, table, &name(&table.name, by, range)).await?;
        let (parent, child) = (table.quoted(), table.beside(&name));
        let bound = |at: i64| match at {
            i64::MIN => "MINVALUE".to_owned(),
            i64::MAX => "MAXVALUE".to_owned(),
            at => format!("'{}'", Timestamp(at)),
        };
        transaction
            .batch_execute(&format!(
                "CREATE TABLE {child} (LIKE {parent} INCLUDING ALL); \
                 ALTER TABLE {parent} ATTACH PARTITION {child} FOR VALUES FROM ({}) TO ({})",
                bound(range.from),
                bound(range.to)
            ))
            .await?;
        tracing::info!(partition = child, "made a partition");
    }
    transaction.commit().await?;
    read(client, table).await
}

/// The name, or the name and a number where something has it already.
async fn free_name(client: &impl GenericClient, table: &Table, name: &str) -> Result<String, Error> {
    let mut candidate = name.to_owned();
    for number in 2.. {
        let taken = client
            .query_one("SELECT to_regclass($1) IS NOT NULL", &[&table.beside(&candidate)])
            .await?;
        if !taken.try_get::<_, bool>(0)? {
            break;
        }
        let short: String = name.chars().take(58).collect();
        candidate = format!("{short}_{number}");
    }
    Ok(candidate)
}

/// Drops the partitions whose rows are all older than `before`; gives how many they were.
pub async fn drop_old(client: &mut Client, table: &Table, before: i64) -> Result<usize, Error> {
    let Some(found) = read(client, table).await? else {
        return Ok(0);
    };
    let mut dropped = 0;
    for name in found.older_than(before) {
        // One at a time, so that a reader of one does not keep the others.
        let transaction = client.transaction().await?;
        table.lock(&transaction).await?;
        transaction
            .batch_execute(&format!("DROP TABLE IF EXISTS {name}"))
            .await?;
        transaction.commit().await?;
        tracing::info!(
            partition = name,
            "dropped a partition, whose rows are older than the retention"
        );
        dropped += 1;
    }
    Ok(dropped)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().0
    }

    fn partitions(ranges: &[(i64, i64)]) -> Partitions {
        Partitions {
            ranges: ranges
                .iter()
                .map(|(from, to)| (Range { from: *from, to: *to }, format!("p{from}")))
                .collect(),
            default: false,
        }
    }

    #[test]
    fn months_and_days_are_those_of_the_calendar() {
        for (by, instant, from, to, named) in [
            (
                PartitionBy::Month,
                "2026-11-21T15:00:00Z",
                "2026-11-01T00:00:00Z",
                "2026-12-01T00:00:00Z",
                "t_p202611",
            ),
            (
                PartitionBy::Month,
                "2026-12-31T23:59:59.999Z",
                "2026-12-01T00:00:00Z",
                "2027-01-01T00:00:00Z",
                "t_p202612",
            ),
            (
                PartitionBy::Month,
                "1969-12-31T23:59:59Z",
                "1969-12-01T00:00:00Z",
                "1970-01-01T00:00:00Z",
                "t_p196912",
            ),
            (
                PartitionBy::Day,
                "2024-02-29T12:00:00Z",
                "2024-02-29T00:00:00Z",
                "2024-03-01T00:00:00Z",
                "t_p20240229",
            ),
        ] {
            let range = around(by, at(instant)).unwrap();
            assert_eq!((range.from, range.to), (at(from), at(to)), "{instant}");
            assert_eq!(name("t", by, range), named);
        }
        let cut = Range {
            from: at("2026-11-15T00:00:00Z"),
            to: at("2026-12-01T00:00:00Z"),
        };
        assert_eq!(name("t", PartitionBy::Month, cut), "t_p20261115");
        assert_eq!(around(PartitionBy::Month, i64::MAX), None);
        assert_eq!(around(PartitionBy::Day, i64::MIN), None);
    }

    #[test]
    fn they_are_made_ahead() {
        let now = at("2026-11-21T15:00:00Z");
        let made: Vec<String> = Partitions::default()
            .missing(PartitionBy::Month, &ahead(PartitionBy::Month, now))
            .iter()
            .map(|range| name("t", PartitionBy::Month, *range))
            .collect();
        assert_eq!(made, ["t_p202611", "t_p202612", "t_p202701"]);
        assert_eq!(ahead(PartitionBy::Day, now).len(), 8);
    }

    #[test]
    fn a_wild_clock_does_not_use_up_the_table() {
        let instants: Vec<i64> = (0..3000).map(|day| day * DAY).collect();
        assert_eq!(
            Partitions::default().missing(PartitionBy::Day, &instants).len(),
            MOST
        );
    }

    #[test]
    fn a_row_has_a_place_or_gets_one_or_is_refused() {
        let mut places = Places {
            partitions: partitions(&[(10 * DAY, 20 * DAY)]),
            by: PartitionBy::Day,
            oldest: 5 * DAY,
        };
        assert_eq!(places.hold(15 * DAY), Ok(true));
        assert_eq!(places.hold(5 * DAY), Ok(false));
        assert!(
            places
                .hold(5 * DAY - 1)
                .unwrap_err()
                .reason
                .contains("older than the table's retention")
        );
        assert!(
            places
                .hold(i64::MAX)
                .unwrap_err()
                .reason
                .contains("as many as are made")
        );
        places.partitions.default = true;
        assert_eq!(places.hold(i64::MAX), Ok(true));
    }

    #[test]
    fn only_what_is_wholly_older_is_dropped() {
        let found = partitions(&[(0, 10), (10, 20), (20, 30)]);
        let old = |before| found.older_than(before).collect::<Vec<_>>();
        assert_eq!(old(9), Vec::<&str>::new());
        assert_eq!(old(10), ["p0"]);
        assert_eq!(old(29), ["p0", "p10"]);
    }

    proptest! {
        /// Whatever stands there already, what is made lies around the instant, in its unit, and over nothing.
        #[test]
        fn what_is_made_fits_between_what_is_there(
            mut bounds in prop::collection::btree_set(0i64..4000, 0..12),
            instants in prop::collection::vec(0i64..4000, 1..12),
            by in prop_oneof![Just(PartitionBy::Month), Just(PartitionBy::Day)],
        ) {
            let hours = |hours: i64| hours * 3_600_000;
            if bounds.len() % 2 == 1 { bounds.pop_last(); }
            let bounds: Vec<i64> = bounds.into_iter().map(hours).collect();
            let ranges: Vec<(i64, i64)> = bounds.chunks(2).map(|pair| (pair[0], pair[1])).collect();
            let found = partitions(&ranges);
            let instants: Vec<i64> = instants.into_iter().map(hours).collect();
            let mut all = found.clone();
            for range in found.missing(by, &instants) {
                prop_assert!(range.from < range.to);
                let unit = around(by, range.from).unwrap();
                prop_assert!(unit.from <= range.from && range.to <= unit.to);
                all.ranges.push((range, String::new()));
            }
            all.ranges.sort();
            prop_assert!(all.ranges.windows(2).all(|pair| pair[0].0.to <= pair[1].0.from));
            prop_assert!(instants.iter().all(|at| all.holds(*at)));
        }
    }
}
