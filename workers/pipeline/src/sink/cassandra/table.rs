//! The table in Cassandra: made, widened by columns, and the values that go into it.
//!
//! A partition is a meter and a day or month in UTC (`bucket`), so that none grows for ever; within it rows lie by
//! time, newest first, and then by the record's name ([`crate::sink::record_id`]). The same record written again is
//! the same row.
//!
//! Changes of the schema that two nodes make at the same moment can end in two tables of one name. So every worker
//! sends them to the same node, the one with the smallest id, which does one after the other.

use std::collections::BTreeMap;

use corrente_crds::{pipeline::ColumnType, sinks::Bucket};
use corrente_record::{Timestamp, ValueRef, View};
use scylla::{
    client::session::Session,
    policies::load_balancing::{NodeIdentifier, SingleTargetLoadBalancingPolicy},
    statement::Statement,
    value::{CqlDate, CqlTimestamp, CqlValue, CqlVarint, MaybeUnset},
};

use super::Failure;
use crate::{
    batch::Refusal,
    sink::columns::{MOST_COLUMNS, check_name, is_own, quote, undeclared},
};

/// The columns that every table has.
pub const OWN: [(&str, &str); 10] = [
    ("meter", "text"),
    ("bucket", "date"),
    ("ts", "timestamp"),
    ("id", "text"),
    ("slot", "timestamp"),
    ("stream", "text"),
    ("seq", "bigint"),
    ("quality", "text"),
    ("bad", "text"),
    ("skipped", "int"),
];

/// The longest text of a key, in bytes: a partition's key has 64 KiB in all.
const KEY: usize = 32 * 1024;

/// The columns for metrics and labels, with their CQL types.
pub type Layout = BTreeMap<String, String>;

/// The CQL word for a type.
#[must_use]
pub fn cql_type(column: ColumnType) -> &'static str {
    match column {
        ColumnType::Float8 => "double",
        ColumnType::Bigint => "bigint",
        ColumnType::Numeric => "varint",
        ColumnType::Text => "text",
        ColumnType::Boolean => "boolean",
    }
}

/// Changes the schema, on the node that all workers use for it.
pub async fn change(session: &Session, cql: String) -> Result<(), Failure> {
    let mut statement = Statement::new(cql);
    let state = session.get_cluster_state();
    if let Some(first) = state.get_nodes_info().iter().min_by_key(|node| node.host_id) {
        let target = NodeIdentifier::Node(first.clone());
        statement.set_load_balancing_policy(Some(SingleTargetLoadBalancingPolicy::new(target, None)));
    }
    session.query_unpaged(statement, ()).await?;
    Ok(())
}

/// Makes the table where it is missing, with the declared columns.
pub async fn ensure(
    session: &Session,
    keyspace: &str,
    table: &str,
    declared: &BTreeMap<String, ColumnType>,
) -> Result<Layout, Failure> {
    let mut layout = read(session, keyspace, table).await?;
    if layout.is_empty() {
        let columns: Vec<String> = OWN.iter().map(|(name, kind)| format!("{name} {kind}")).collect();
        change(
            session,
            format!(
                "CREATE TABLE IF NOT EXISTS {keyspace}.{table} ({}, PRIMARY KEY ((meter, bucket), ts, id)) \
                 WITH CLUSTERING ORDER BY (ts DESC, id ASC)",
                columns.join(", ")
            ),
        )
        .await?;
    }
    let missing: BTreeMap<String, &str> = declared
        .iter()
        .filter(|(name, _)| !layout.contains_key(*name) && !is_taken(name) && check_name(name).is_ok())
        .map(|(name, kind)| (name.clone(), cql_type(*kind)))
        .collect();
    if !missing.is_empty() {
        layout = widen(session, keyspace, table, &missing).await?;
    }
    Ok(layout)
}

/// Whether the name is that of a column of the table's own.
fn is_taken(name: &str) -> bool {
    is_own(name) || OWN.iter().any(|(own, _)| *own == name)
}

/// Adds columns; one that another worker added meanwhile is taken as it is.
pub async fn widen(
    session: &Session,
    keyspace: &str,
    table: &str,
    missing: &BTreeMap<String, &str>,
) -> Result<Layout, Failure> {
    for (name, kind) in missing {
        let cql = format!(
            "ALTER TABLE {keyspace}.{table} ADD IF NOT EXISTS {} {kind}",
            quote(name)
        );
        change(session, cql).await?;
    }
    read(session, keyspace, table).await
}

/// The columns for metrics and labels of a layout, without those that every table has.
pub fn more(layout: &Layout) -> Vec<(String, String)> {
    let more = layout
        .iter()
        .filter(|(name, _)| !OWN.iter().any(|(own, _)| own == name));
    more.map(|(name, kind)| (name.clone(), kind.clone())).collect()
}

/// The columns that the table has by now; none where there is no such table.
pub async fn read(session: &Session, keyspace: &str, table: &str) -> Result<Layout, Failure> {
    let cql =
        "SELECT column_name, type FROM system_schema.columns WHERE keyspace_name = ? AND table_name = ?";
    let found = session
        .query_unpaged(cql, (keyspace, table))
        .await?
        .into_rows_result()?;
    let mut layout = Layout::new();
    for row in found.rows::<(String, String)>()? {
        let (name, kind) = row?;
        layout.insert(name, kind);
    }
    Ok(layout)
}

/// The columns that a record needs and the table lacks.
pub fn missing(
    layout: &Layout,
    record: &View<'_>,
    declared: &BTreeMap<String, ColumnType>,
    into: &mut BTreeMap<String, &'static str>,
) {
    for (name, value) in &record.fields {
        if !layout.contains_key(&**name)
            && !into.contains_key(&**name)
            && layout.len() + into.len() < MOST_COLUMNS
            && check_name(name).is_ok()
        {
            let kind = declared
                .get(&**name)
                .copied()
                .unwrap_or_else(|| undeclared(value));
            into.insert(name.to_string(), cql_type(kind));
        }
    }
}

/// The first day of the bucket that an instant lies in, as days since the epoch.
#[must_use]
pub fn bucket_day(bucket: Bucket, ts: Timestamp) -> i64 {
    let day = ts.0.div_euclid(86_400_000);
    match bucket {
        Bucket::Day => day,
        Bucket::Month => day - (day_of_month(day) - 1),
    }
}

/// The day of the month, from 1, of a day since the epoch (Howard Hinnant's `civil_from_days`).
fn day_of_month(day: i64) -> i64 {
    let shifted = day + 719_468;
    let of_era = shifted.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    of_year - (153 * month + 2) / 5 + 1
}

/// The values of a record's row, in the order of [`OWN`] and the layout's other columns.
///
/// # Errors
/// Which field cannot be stored, and why.
pub fn values(
    id: String,
    record: &View<'_>,
    bucket: Bucket,
    columns: &[(String, String)],
) -> Result<Vec<MaybeUnset<CqlValue>>, Refusal> {
    let refuse = |column: &str, reason: String| Refusal {
        sqlstate: None,
        column: Some(column.to_owned()),
        reason,
    };
    if record.meter.is_empty() || record.meter.len() > KEY {
        return Err(refuse("meter", format!("a key has from 1 to {KEY} bytes")));
    }
    let day = u32::try_from(bucket_day(bucket, record.ts) + (1 << 31))
        .map_err(|_| refuse("ts", "the time is beyond the dates of Cassandra".to_owned()))?;
    let text = |text: &str| MaybeUnset::Set(CqlValue::Text(text.to_owned()));
    let time = |time: Timestamp| MaybeUnset::Set(CqlValue::Timestamp(CqlTimestamp(time.0)));
    // What is not said is not written: a null would be a tombstone.
    let or_unset = |value: Option<MaybeUnset<CqlValue>>| value.unwrap_or(MaybeUnset::Unset);
    let seq = record.seq.and_then(|seq| i64::try_from(seq).ok());
    let skipped = record.skipped.and_then(|skipped| i32::try_from(skipped).ok());
    let mut values = vec![
        text(&record.meter),
        MaybeUnset::Set(CqlValue::Date(CqlDate(day))),
        time(record.ts),
        text(&id),
        or_unset(record.slot.map(time)),
        or_unset(record.stream.as_deref().map(text)),
        or_unset(seq.map(|seq| MaybeUnset::Set(CqlValue::BigInt(seq)))),
        or_unset(record.quality.map(|quality| text(quality.as_str()))),
        or_unset(record.bad.as_deref().map(text)),
        or_unset(skipped.map(|skipped| MaybeUnset::Set(CqlValue::Int(skipped)))),
    ];
    values.resize(OWN.len() + columns.len(), MaybeUnset::Unset);
    for (name, value) in &record.fields {
        check_name(name)?;
        let Some(at) = columns.iter().position(|(column, _)| column == name) else {
            let reason = if is_taken(name) {
                "the table has a column of this name of its own".to_owned()
            } else {
                format!("the table has no such column, and no more than {MOST_COLUMNS} are made")
            };
            return Err(refuse(name, reason));
        };
        let kind = columns.get(at).map_or("", |(_, kind)| kind);
        let fitted = fit(value, kind).map_err(|wanted| refuse(name, format!("{value} is not {wanted}")))?;
        if let Some(place) = values.get_mut(OWN.len() + at) {
            *place = MaybeUnset::Set(fitted);
        }
    }
    Ok(values)
}

fn fit(value: &ValueRef<'_>, kind: &str) -> Result<CqlValue, String> {
    let whole = match value {
        ValueRef::Int(number) => Some(i128::from(*number)),
        ValueRef::UInt(number) => Some(i128::from(*number)),
        _ => None,
    };
    match (kind, value) {
        ("text", ValueRef::Text(text)) => Ok(CqlValue::Text(text.clone().into_owned())),
        ("text", other) => Ok(CqlValue::Text(other.to_string())),
        ("boolean", ValueRef::Bool(bit)) => Ok(CqlValue::Boolean(*bit)),
        ("boolean", _) => Err("true or false".to_owned()),
        ("double", number) => number.as_f64().map(CqlValue::Double).ok_or("a number".to_owned()),
        ("bigint", _) => whole
            .and_then(|number| i64::try_from(number).ok())
            .map(CqlValue::BigInt)
            .ok_or("a whole number of 64 bits".to_owned()),
        ("varint", _) => whole.map(varint).ok_or("a whole number".to_owned()),
        (other, _) => Err(format!("what is stored here: the column is of the type {other}")),
    }
}

/// A whole number in as few bytes as hold it and its sign, as Cassandra itself writes them.
fn varint(number: i128) -> CqlValue {
    let bytes = number.to_be_bytes();
    let is_sign =
        |pair: &[u8]| matches!(pair, [0, next] if *next < 128) || matches!(pair, [255, next] if *next >= 128);
    let signs = bytes.windows(2).take_while(|pair| is_sign(pair)).count();
    CqlValue::Varint(CqlVarint::from_signed_bytes_be_slice(
        bytes.get(signs..).unwrap_or_default(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_begins_with_its_day_or_month() {
        for (ts, day, month) in [
            ("1970-01-01T00:00:00Z", 0, 0),
            ("1969-12-31T23:59:59.999Z", -1, -31),
            ("2024-02-29T23:59:59Z", 19_782, 19_754),
            ("2024-03-01T00:00:00Z", 19_783, 19_783),
            ("2026-12-31T12:00:00Z", 20_818, 20_788),
        ] {
            let ts: Timestamp = ts.parse().unwrap();
            assert_eq!(
                (bucket_day(Bucket::Day, ts), bucket_day(Bucket::Month, ts)),
                (day, month),
                "{ts}"
            );
        }
    }

    #[test]
    fn a_value_fits_its_column_or_not() {
        let varint = |bytes: &[u8]| CqlValue::Varint(CqlVarint::from_signed_bytes_be_slice(bytes));
        for (value, kind, expected) in [
            (ValueRef::Int(2), "double", Ok(CqlValue::Double(2.0))),
            (ValueRef::UInt(7), "bigint", Ok(CqlValue::BigInt(7))),
            (
                ValueRef::UInt(u64::MAX),
                "bigint",
                Err("a whole number of 64 bits".to_owned()),
            ),
            (
                ValueRef::UInt(u64::MAX),
                "varint",
                Ok(varint(&[0, 255, 255, 255, 255, 255, 255, 255, 255])),
            ),
            (ValueRef::Int(-1), "varint", Ok(varint(&[255]))),
            (ValueRef::Float(1.5), "varint", Err("a whole number".to_owned())),
            (ValueRef::Text("x".into()), "double", Err("a number".to_owned())),
            (
                ValueRef::Bool(true),
                "text",
                Ok(CqlValue::Text("true".to_owned())),
            ),
            (ValueRef::Int(1), "boolean", Err("true or false".to_owned())),
        ] {
            assert_eq!(fit(&value, kind), expected, "{value} in {kind}");
        }
        assert!(
            fit(&ValueRef::Int(1), "uuid")
                .unwrap_err()
                .contains("of the type uuid")
        );
    }
}
