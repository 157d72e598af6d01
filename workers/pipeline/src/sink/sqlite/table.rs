//! The table in SQLite: made, widened, and filled. SQLite takes names that differ only in the case of
//! ASCII letters for one column.

use std::collections::{BTreeMap, HashMap};

use corrente_crds::pipeline::ColumnType;
use corrente_record::{Record, Value};
use rusqlite::{Error, ErrorCode, Transaction, params_from_iter, types::Value as Sql};

use crate::{
    batch::{Refusal, Row},
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
fn layout(transaction: &Transaction<'_>, table: &str) -> Result<HashMap<String, String>, Error> {
    transaction
        .prepare("SELECT name, type FROM pragma_table_info(?1)")?
        .query_map([table], |row| {
            Ok((row.get::<_, String>(0)?.to_ascii_lowercase(), row.get(1)?))
        })?
        .collect()
}

/// Inserts rows, having added the columns they need; gives the refused ones by their place.
pub fn insert(
    transaction: &Transaction<'_>,
    table: &str,
    declared: &BTreeMap<String, ColumnType>,
    rows: &[Row],
) -> Result<Vec<(usize, Refusal)>, Error> {
    let mut known = layout(transaction, table)?;
    let mut used: BTreeMap<String, usize> = BTreeMap::new();
    for (name, value) in rows.iter().flat_map(|row| &row.record.fields) {
        let column = name.to_ascii_lowercase();
        if !known.contains_key(&column) {
            if check_name(name).is_err() || known.len() >= MOST_COLUMNS {
                continue;
            }
            let kind = sql_type(declared.get(name).copied().unwrap_or_else(|| undeclared(value)));
            add(transaction, table, name, kind)?;
            known.insert(column.clone(), kind.to_owned());
        }
        let next = used.len();
        used.entry(column).or_insert(next);
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
    let mut refused = vec![];
    for (number, row) in rows.iter().enumerate() {
        match bind(&row.record, &known, &used) {
            Err(refusal) => refused.push((number, refusal)),
            Ok(values) => match statement.execute(params_from_iter(values)) {
                Ok(_) => {}
                Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
                    refused.push((
                        number,
                        Refusal {
                            sqlstate: None,
                            column: None,
                            reason: error.to_string(),
                        },
                    ));
                }
                Err(error) => return Err(error),
            },
        }
    }
    Ok(refused)
}

fn bind(
    record: &Record,
    known: &HashMap<String, String>,
    used: &BTreeMap<String, usize>,
) -> Result<Vec<Sql>, Refusal> {
    check_names(record)?;
    let text = |text: Option<String>| text.map_or(Sql::Null, Sql::Text);
    let mut values = vec![
        Sql::Text(record.ts.to_string()),
        Sql::Text(record.meter.clone()),
        text(record.slot.map(|slot| slot.to_string())),
        text(record.stream.clone()),
        record
            .seq
            .and_then(|seq| i64::try_from(seq).ok())
            .map_or(Sql::Null, Sql::Integer),
        text(record.quality.map(|quality| quality.as_str().to_owned())),
        text(record.bad.clone()),
        record
            .skipped
            .map_or(Sql::Null, |skipped| Sql::Integer(skipped.into())),
    ];
    values.resize(OWN.len() + used.len(), Sql::Null);
    let mut names: Vec<Option<&str>> = vec![None; used.len()];
    for (name, value) in &record.fields {
        let refuse = |reason: String| Refusal {
            sqlstate: None,
            column: Some(name.clone()),
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
fn fit(value: &Value, kind: &str) -> Result<Sql, &'static str> {
    let natural = |value: &Value| match value {
        Value::Bool(bit) => Sql::Integer((*bit).into()),
        Value::Int(number) => Sql::Integer(*number),
        Value::UInt(number) => {
            i64::try_from(*number).map_or_else(|_| Sql::Text(number.to_string()), Sql::Integer)
        }
        Value::Float(number) => Sql::Real(*number),
        Value::Text(text) => Sql::Text(text.clone()),
    };
    match (kind, value) {
        ("REAL", value) => value.as_f64().map(Sql::Real).ok_or("a number"),
        ("INTEGER", Value::Int(number)) => Ok(Sql::Integer(*number)),
        ("INTEGER", _) => Err("a whole number of 64 bits"),
        ("", Value::Bool(_) | Value::Text(_)) => Err("a number"),
        ("", value) => Ok(natural(value)),
        ("BOOLEAN", Value::Bool(bit)) => Ok(Sql::Integer((*bit).into())),
        ("BOOLEAN", _) => Err("true or false"),
        ("TEXT", Value::Text(text)) => Ok(Sql::Text(text.clone())),
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
            (Value::Int(2), "REAL", Ok(Sql::Real(2.0))),
            (Value::Text("x".to_owned()), "REAL", Err("a number")),
            (Value::UInt(7), "", Ok(Sql::Integer(7))),
            // Beyond SQLite's integers the digits are kept.
            (Value::UInt(u64::MAX), "", Ok(text("18446744073709551615"))),
            (Value::Text("x".to_owned()), "", Err("a number")),
            (Value::Float(1.5), "INTEGER", Err("a whole number of 64 bits")),
            (Value::Bool(true), "BOOLEAN", Ok(Sql::Integer(1))),
            (Value::Int(1), "BOOLEAN", Err("true or false")),
            (Value::Int(1), "TEXT", Ok(text("1"))),
        ] {
            assert_eq!(fit(&value, kind), expected, "{value} in {kind}");
        }
    }
}
