//! The table in SQLite: made, widened, and filled. SQLite takes names that differ only in the case of
//! ASCII letters for one column.

use std::collections::{BTreeMap, HashMap};

use corrente_crds::pipeline::ColumnType;
use corrente_record::{ValueRef, View};
use rusqlite::{Error, ErrorCode, Transaction, params_from_iter, types::Value as Sql};

use crate::{
    batch::{DeadLetter, Refusal, Rows, Sorted},
    sink::columns::{MOST_COLUMNS, check_name, check_names, is_own, quote, undeclared},
};

const OWN: [(&str, &str); 8] = [
    ("ts", "TEXT NOT NULL"),
    ("meter", "TEXT NOT NULL"),
    ("slot", "TEXT"),
    ("stream", "TEXT"),
    ("seq", "INTEGER"),
    ("quality", "TEXT"),
    ("bad", "TEXT"),
    ("skipped", "INTEGER"),
];

/// `CREATE TABLE`'s word for a type. A column without one keeps what it gets.
fn sql_type(column: ColumnType) -> &'static str {
    match column {
        ColumnType::Float8 => "REAL",
        ColumnType::Bigint => "INTEGER",
        ColumnType::Numeric => "",
        ColumnType::Text => "TEXT",
        ColumnType::Boolean => "BOOLEAN",
    }
}

/// Makes the table where it is missing, with the declared columns.
pub fn create(
    transaction: &Transaction<'_>,
    table: &str,
    declared: &BTreeMap<String, ColumnType>,
) -> Result<(), Error> {
    let columns: Vec<String> = OWN
        .iter()
        .map(|(name, kind)| format!("{} {kind}", quote(name)))
        .collect();
    let quoted = quote(table);
    transaction.execute_batch(&format!(
        "CREATE TABLE IF NOT EXISTS {quoted} ({}); CREATE INDEX IF NOT EXISTS {} ON {quoted} (meter, ts DESC);",
        columns.join(", "),
        quote(&format!("{table}_meter_ts")),
    ))?;
    let known = layout(transaction, table)?;
    // A table that an earlier version made lacks the columns that came since.
    for (name, kind) in OWN {
        if !known.contains_key(name) {
            add(transaction, table, name, kind)?;
        }
    }
    for (name, kind) in declared {
        if !known.contains_key(&name.to_ascii_lowercase()) && !is_own(name) && check_name(name).is_ok() {
            add(transaction, table, name, sql_type(*kind))?;
        }
    }
    Ok(())
}

fn add(transaction: &Transaction<'_>, table: &str, name: &str, kind: &str) -> Result<(), Error> {
    transaction.execute_batch(&format!(
        "ALTER TABLE {} ADD COLUMN {} {kind}",
        quote(table),
        quote(name)
    ))
}

/// The columns' declared types, by name in lower case.
pub fn layout(transaction: &Transaction<'_>, table: &str) -> Result<HashMap<String, String>, Error> {
    transaction
        .prepare("SELECT name, type FROM pragma_table_info(?1)")?
        .query_map([table], |row| {
            Ok((row.get::<_, String>(0)?.to_ascii_lowercase(), row.get(1)?))
        })?
        .collect()
}

/// Inserts rows, having added the columns they need; gives how many, those that are refused, and what the pass found
/// beside them. `rows` begins a pass, as often as it is called; `stored` is told
/// of each row that is in.
pub fn insert<'b>(
    transaction: &Transaction<'_>,
    table: &str,
    declared: &BTreeMap<String, ColumnType>,
    rows: impl Fn() -> Rows<'b>,
    mut stored: impl FnMut(&View<'_>),
) -> Result<(u64, Vec<DeadLetter<'b>>, Sorted<'b>), Error> {
    let mut known = layout(transaction, table)?;
    let mut used: BTreeMap<String, usize> = BTreeMap::new();
    let mut pass = rows();
    while let Some(row) = pass.next() {
        for (name, value) in &row.record.fields {
            let column = name.to_ascii_lowercase();
            if !known.contains_key(&column) {
                if check_name(name).is_err() || known.len() >= MOST_COLUMNS {
                    continue;
                }
                let declared = declared.get(&**name).copied();
                let kind = sql_type(declared.unwrap_or_else(|| undeclared(value)));
                add(transaction, table, name, kind)?;
                known.insert(column.clone(), kind.to_owned());
            }
            let next = used.len();
            used.entry(column).or_insert(next);
        }
    }
    let mut names: Vec<&str> = vec![""; used.len()];
    for (name, slot) in &used {
        names[*slot] = name;
    }
    let columns: Vec<String> = OWN
        .iter()
        .map(|(name, _)| *name)
        .chain(names)
        .map(quote)
        .collect();
    let places = vec!["?"; columns.len()].join(", ");
    let sql = format!(
        "INSERT INTO {} ({}) VALUES ({places})",
        quote(table),
        columns.join(", ")
    );
    let mut statement = transaction.prepare(&sql)?;
    let (mut count, mut refused, mut pass) = (0, vec![], rows());
    while let Some(row) = pass.next() {
        let done = match bind(row.record, &known, &used) {
            Err(refusal) => Err(refusal),
            Ok(values) => match statement.execute(params_from_iter(values)) {
                Ok(_) => Ok(()),
                Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
                    Err(Refusal {
                        sqlstate: None,
                        column: None,
                        reason: error.to_string(),
                    })
                }
                Err(error) => return Err(error),
            },
        };
        match done {
            Ok(()) => {
                count += 1;
                stored(row.record);
            }
            Err(refusal) => refused.push(DeadLetter {
                origin: row.origin,
                refusal,
            }),
        }
    }
    Ok((count, refused, pass.finish()))
}

fn bind(
    record: &View<'_>,
    known: &HashMap<String, String>,
    used: &BTreeMap<String, usize>,
) -> Result<Vec<Sql>, Refusal> {
    check_names(record)?;
    let text = |text: Option<&str>| text.map_or(Sql::Null, |text| Sql::Text(text.to_owned()));
    let mut values = vec![
        Sql::Text(record.ts.to_string()),
        Sql::Text(record.meter.clone().into_owned()),
        text(record.slot.map(|slot| slot.to_string()).as_deref()),
        text(record.stream.as_deref()),
        record
            .seq
            .and_then(|seq| i64::try_from(seq).ok())
            .map_or(Sql::Null, Sql::Integer),
        text(record.quality.map(corrente_record::Quality::as_str)),
        text(record.bad.as_deref()),
        record
            .skipped
            .map_or(Sql::Null, |skipped| Sql::Integer(skipped.into())),
    ];
    values.resize(OWN.len() + used.len(), Sql::Null);
    let mut names: Vec<Option<&str>> = vec![None; used.len()];
    for (name, value) in &record.fields {
        let refuse = |reason: String| Refusal {
            sqlstate: None,
            column: Some(name.clone().into_owned()),
            reason,
        };
        let column = name.to_ascii_lowercase();
        let (Some(slot), Some(kind)) = (used.get(&column), known.get(&column)) else {
            return Err(refuse(format!(
                "the table has no such column, and no more than {MOST_COLUMNS} are made"
            )));
        };
        if let Some(other) = names[*slot].replace(name).filter(|other| other != name) {
            return Err(refuse(format!(
                "the fields \"{other}\" and \"{name}\" are one column in SQLite"
            )));
        }
        values[OWN.len() + slot] =
            fit(value, kind).map_err(|wanted| refuse(format!("{value} is not {wanted}")))?;
    }
    Ok(values)
}

/// The value for a column of the declared type, or what it should have been.
fn fit(value: &ValueRef<'_>, kind: &str) -> Result<Sql, &'static str> {
    let natural = |value: &ValueRef<'_>| match value {
        ValueRef::Bool(bit) => Sql::Integer((*bit).into()),
        ValueRef::Int(number) => Sql::Integer(*number),
        ValueRef::UInt(number) => {
            i64::try_from(*number).map_or_else(|_| Sql::Text(number.to_string()), Sql::Integer)
        }
        ValueRef::Float(number) => Sql::Real(*number),
        ValueRef::Text(text) => Sql::Text(text.clone().into_owned()),
    };
    match (kind, value) {
        ("REAL", value) => value.as_f64().map(Sql::Real).ok_or("a number"),
        ("INTEGER", ValueRef::Int(number)) => Ok(Sql::Integer(*number)),
        ("INTEGER", _) => Err("a whole number of 64 bits"),
        ("", ValueRef::Bool(_) | ValueRef::Text(_)) => Err("a number"),
        ("", value) => Ok(natural(value)),
        ("BOOLEAN", ValueRef::Bool(bit)) => Ok(Sql::Integer((*bit).into())),
        ("BOOLEAN", _) => Err("true or false"),
        ("TEXT", ValueRef::Text(text)) => Ok(Sql::Text(text.clone().into_owned())),
        // Numbers and booleans lose nothing as the text they were.
        ("TEXT", value) => Ok(Sql::Text(value.to_string())),
        // A table that somebody else made: SQLite stores anything anywhere.
        (_, value) => Ok(natural(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_fits_its_column_or_not() {
        let text = |text: &str| Sql::Text(text.to_owned());
        for (value, kind, expected) in [
            (ValueRef::Int(2), "REAL", Ok(Sql::Real(2.0))),
            (ValueRef::Text("x".into()), "REAL", Err("a number")),
            (ValueRef::UInt(7), "", Ok(Sql::Integer(7))),
            // Beyond SQLite's integers the digits are kept.
            (ValueRef::UInt(u64::MAX), "", Ok(text("18446744073709551615"))),
            (ValueRef::Text("x".into()), "", Err("a number")),
            (ValueRef::Float(1.5), "INTEGER", Err("a whole number of 64 bits")),
            (ValueRef::Bool(true), "BOOLEAN", Ok(Sql::Integer(1))),
            (ValueRef::Int(1), "BOOLEAN", Err("true or false")),
            (ValueRef::Int(1), "TEXT", Ok(text("1"))),
        ] {
            assert_eq!(fit(&value, kind), expected, "{value} in {kind}");
        }
    }
}
