//! The table's shape, which is the same in every SQL sink: the record's own columns, then one column for
//! each metric and each label.

use corrente_crds::pipeline::ColumnType;
use corrente_record::{RESERVED, ValueRef, View};

use crate::batch::Refusal;

/// The longest column name, in bytes: PostgreSQL would cut longer ones short, and two might become one.
pub const NAME_BYTES: usize = 63;
/// Most columns that the worker makes, so that records whose field names are data do not use up what the
/// database has (1,600 in PostgreSQL, 2,000 in SQLite).
pub const MOST_COLUMNS: usize = 1000;

/// PostgreSQL's names for its own columns, which no table's column may have.
const SYSTEM: [&str; 6] = ["tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"];

/// The type of a column that nothing declares, from the first value: numbers are `float8`, whatever they
/// look like, because the next one may have a fraction.
#[must_use]
pub fn undeclared(value: &ValueRef<'_>) -> ColumnType {
    match value {
        ValueRef::Bool(_) => ColumnType::Boolean,
        ValueRef::Int(_) | ValueRef::UInt(_) | ValueRef::Float(_) => ColumnType::Float8,
        ValueRef::Text(_) => ColumnType::Text,
    }
}

/// Whether a field can be a column.
///
/// # Errors
/// What is wrong with the name.
pub fn check_name(name: &str) -> Result<(), Refusal> {
    let reason = if name.is_empty() {
        "a field without a name cannot be a column".to_owned()
    } else if name.len() > NAME_BYTES {
        format!("the field's name is longer than the {NAME_BYTES} bytes of a column's name")
    } else if name.contains('\0') {
        "the field's name has a NUL character".to_owned()
    } else if SYSTEM.contains(&name) {
        format!("the database has a column \"{name}\" of its own in every table")
    } else {
        return Ok(());
    };
    Err(Refusal {
        sqlstate: None,
        column: Some(name.replace('\0', "\u{fffd}")),
        reason,
    })
}

/// The first field of a record that cannot be a column.
///
/// # Errors
/// What is wrong with it.
pub fn check_names(record: &View<'_>) -> Result<(), Refusal> {
    record.fields.iter().try_for_each(|(name, _)| check_name(name))
}

/// An identifier for SQL, quoted. It must not have a NUL character.
#[must_use]
pub fn quote(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

/// Whether the name is one of the record's own columns.
#[must_use]
pub fn is_own(name: &str) -> bool {
    RESERVED.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_which_names_cannot_be_columns() {
        for (name, says) in [
            ("", "without a name"),
            (&"x".repeat(64), "63 bytes"),
            ("a\0b", "NUL"),
            ("xmin", "of its own"),
        ] {
            assert!(check_name(name).unwrap_err().reason.contains(says), "{name:?}");
        }
        for name in ["voltage_l1_n", "Größe", "with space", "a\"b", "select"] {
            assert_eq!(check_name(name), Ok(()));
        }
        assert_eq!(quote("a\"b"), "\"a\"\"b\"");
    }
}
