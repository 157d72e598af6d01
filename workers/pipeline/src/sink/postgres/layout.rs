//! What columns the table has, as the catalog tells: what is in the table wins over every declaration.

use std::collections::HashMap;

use corrente_crds::{pipeline::ColumnType, tables::Layout as Shape};
use tokio_postgres::{Error, GenericClient, types::Oid};

use super::{encode::PgType, session::Statements};

/// The record's own columns in a wide table, and how they are made.
pub const OWN: [(&str, &str); 8] = [
    ("ts", "timestamptz NOT NULL"),
    ("meter", "text NOT NULL"),
    ("slot", "timestamptz"),
    ("stream", "text"),
    ("seq", "bigint"),
    ("quality", "text"),
    ("bad", "jsonb"),
    ("skipped", "integer"),
];

/// The columns of a narrow table: of the record, then of the metric.
pub const NARROW: [(&str, &str); 13] = [
    ("ts", "timestamptz NOT NULL"),
    ("meter", "text NOT NULL"),
    ("slot", "timestamptz"),
    ("stream", "text"),
    ("seq", "bigint"),
    ("quality", "text"),
    ("skipped", "integer"),
    ("metric", "text"),
    ("value", "double precision"),
    ("exact", "numeric(20,0)"),
    ("text_value", "text"),
    ("bool_value", "boolean"),
    ("bad", "text"),
];

/// The own columns of a table of this shape, and how they are made.
#[must_use]
pub fn own(shape: Shape) -> &'static [(&'static str, &'static str)] {
    match shape {
        Shape::Wide => &OWN,
        Shape::Narrow => &NARROW,
    }
}

/// The columns of the table $2 in the schema $1, as `c`.
const COLUMNS: &str = "WITH c AS ( \
         SELECT a.attnum, a.attname::text AS name, a.atttypid, a.atttypmod, \
                format_type(a.atttypid, a.atttypmod) AS type, \
                a.attgenerated <> '' OR a.attidentity = 'a' AS made \
         FROM pg_attribute a JOIN pg_class t ON t.oid = a.attrelid \
         JOIN pg_namespace n ON n.oid = t.relnamespace \
         WHERE n.nspname = $1 AND t.relname = $2 AND a.attnum > 0 AND NOT a.attisdropped)";
/// What changes when one of them does.
const STAMP: &str =
    "(SELECT md5(string_agg(concat_ws(':', attnum, name, type, made), ',' ORDER BY attnum)) FROM c)";

/// The columns of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Name and type, in the table's order.
    pub columns: Vec<(String, PgType)>,
    index: HashMap<String, usize>,
    /// Changes whenever a column is added, dropped or altered.
    pub stamp: String,
}

/// `CREATE TABLE`'s word for a type.
#[must_use]
pub fn sql_type(column: ColumnType) -> &'static str {
    match column {
        ColumnType::Float8 => "double precision",
        ColumnType::Bigint => "bigint",
        ColumnType::Numeric => "numeric(20,0)",
        ColumnType::Text => "text",
        ColumnType::Boolean => "boolean",
    }
}

/// The type by its number in the catalog (`pg_type.dat`); `modifier` is PostgreSQL's `atttypmod`.
fn pg_type(oid: Oid, modifier: i32, name: &str) -> PgType {
    match oid {
        16 => PgType::Boolean,
        20 => PgType::Int8,
        21 => PgType::Int2,
        23 => PgType::Int4,
        25 | 1043 => PgType::Text,
        700 => PgType::Float4,
        701 => PgType::Float8,
        1184 => PgType::Timestamptz,
        // Precision and scale, offset by the size of a header (numeric.c, make_numeric_typmod).
        1700 => PgType::Numeric((modifier >= 4).then_some(((modifier - 4) & 0x7ff) as i16)),
        3802 => PgType::Jsonb,
        _ => PgType::Other(name.to_owned()),
    }
}

impl Layout {
    /// The columns of a table; none where there is no such table.
    pub async fn read(client: &impl GenericClient, schema: &str, table: &str) -> Result<Self, Error> {
        let rows = client
            .query(
                &format!(
                    "{COLUMNS} SELECT name, atttypid, atttypmod, type, made, {STAMP} FROM c ORDER BY attnum"
                ),
                &[&schema, &table],
            )
            .await?;
        let mut layout = Self::default();
        for row in rows {
            let (name, oid, modifier): (String, Oid, i32) =
                (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            let (type_name, made): (String, bool) = (row.try_get(3)?, row.try_get(4)?);
            layout.stamp = row.try_get(5)?;
            let kind = if made {
                PgType::Other(format!("{type_name}, which the database makes itself"))
            } else {
                pg_type(oid, modifier, &type_name)
            };
            layout.index.insert(name.clone(), layout.columns.len());
            layout.columns.push((name, kind));
        }
        Ok(layout)
    }

    /// The [`Layout::stamp`] of the table as it is now; empty where there is no such table.
    pub async fn stamp_now(
        client: &impl GenericClient,
        statements: &mut Statements,
        schema: &str,
        table: &str,
    ) -> Result<String, Error> {
        let stamp = format!("{COLUMNS} SELECT {STAMP}");
        let stamp = statements.get(client, &stamp).await?;
        let row = client.query_one(&stamp, &[&schema, &table]).await?;
        Ok(row.try_get::<_, Option<String>>(0)?.unwrap_or_default())
    }

    /// Where a column is in [`Layout::columns`].
    #[must_use]
    pub fn position(&self, name: &str) -> Option<usize> {
        self.index.get(name).copied()
    }

    /// Whether the table that is there has the shape that is asked for. One with columns of the record's but no
    /// `metric` is wide; one without any takes the shape it is given.
    ///
    /// # Errors
    /// What to change.
    pub fn check_shape(&self, shape: Shape, table: &str) -> Result<(), String> {
        let has = |name: &str| self.position(name).is_some();
        let narrow = ["metric", "value", "exact", "text_value"]
            .iter()
            .all(|name| has(name));
        let wide = !narrow && ["stream", "seq", "quality"].iter().any(|name| has(name));
        match shape {
            Shape::Wide if narrow => Err(format!(
                "the table {table} is narrow, and the layout asked for is wide: name another table, or write \
                 layout: narrow"
            )),
            Shape::Narrow if wide => Err(format!(
                "the table {table} is wide, and the layout asked for is narrow: name another table, or write \
                 layout: wide"
            )),
            _ => Ok(()),
        }
    }

    /// The own columns, found in the table.
    ///
    /// # Errors
    /// Which column has a type that the worker cannot write.
    pub fn check_own(&self, shape: Shape, table: &str) -> Result<(), String> {
        for (name, sql) in own(shape) {
            let kind = sql.trim_end_matches(" NOT NULL");
            let wanted = match kind {
                "timestamptz" => PgType::Timestamptz,
                "bigint" => PgType::Int8,
                "integer" => PgType::Int4,
                "jsonb" => PgType::Jsonb,
                "double precision" => PgType::Float8,
                "numeric(20,0)" => PgType::Numeric(Some(0)),
                "boolean" => PgType::Boolean,
                _ => PgType::Text,
            };
            let found = self.position(name).and_then(|at| self.columns.get(at));
            if found.is_none_or(|(_, found)| *found != wanted) {
                return Err(format!(
                    "the column \"{name}\" of the table {table} must have the type {kind}: name another table, \
                     or alter this one"
                ));
            }
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn of(columns: &[(&str, PgType)]) -> Self {
        let mut layout = Self::default();
        for (name, kind) in columns {
            layout.index.insert((*name).to_owned(), layout.columns.len());
            layout.columns.push(((*name).to_owned(), kind.clone()));
        }
        layout
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_numerics_scale() {
        for (modifier, scale) in [
            (-1, None),
            ((20 << 16) + 4, Some(0)),
            (((12 << 16) | 3) + 4, Some(3)),
        ] {
            assert_eq!(pg_type(1700, modifier, "numeric"), PgType::Numeric(scale));
        }
        assert_eq!(pg_type(2950, -1, "uuid"), PgType::Other("uuid".to_owned()));
    }

    #[test]
    fn says_which_own_column_has_the_wrong_type() {
        let layout = Layout::of(&[("ts", PgType::Other("date".to_owned()))]);
        assert!(
            layout
                .check_own(Shape::Wide, "t")
                .unwrap_err()
                .contains("\"ts\" of the table t must have the type timestamptz")
        );
    }
}
