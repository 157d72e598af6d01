//! Repeats that are known by a key: for producers that send a reading again and number nothing.
//!
//! 1. The table has a unique index over the key's columns, made where it is missing.
//! 2. Rows are copied straight into the table. As long as none is a repeat, the index is all that it costs.
//! 3. Where the database finds a repeat (23505), the transaction is begun anew, and the rows go by way of a temporary
//!    table: copied into it, and inserted from there `ON CONFLICT DO NOTHING`. So it goes on for as long as there are
//!    repeats.
//!
//! The first record of a key is kept, whatever a later one says: a history does not change under its readers, and it
//! is the same in whatever batches the records come. A value that must be corrected is corrected in the table.

use corrente_record::View;
use tokio_postgres::{Client, Error, Transaction, error::SqlState};

use super::{layout::Layout, session::describe};
use crate::{batch::Refusal, sink::columns::quote};

/// The key of a table.
#[derive(Clone, Debug)]
pub struct Keyed {
    columns: Vec<String>,
}

impl Keyed {
    /// A key of these columns.
    #[must_use]
    pub fn new(columns: Vec<String>) -> Self {
        Self { columns }
    }

    /// Makes the unique index, unless there is one over the same columns. `quoted` is the table in SQL, `name` its
    /// name.
    ///
    /// # Errors
    /// A sentence; a person must change something, or trying again may help.
    pub async fn ensure(&self, client: &mut Client, quoted: &str, name: &str) -> Result<(), String> {
        let failed = |error: Error| {
            if error.code() == Some(&SqlState::UNIQUE_VIOLATION) {
                return format!(
                    "the table {quoted} has several rows of one key ({}) already: remove what is too much, name another \
                     key in dedupeKey, or another table",
                    self.columns.join(", ")
                );
            }
            format!(
                "failed to make the unique index of {quoted}: {}",
                describe(&error)
            )
        };
        let mut sorted = self.columns.clone();
        sorted.sort();
        let found = client
            .query_opt(
                "SELECT 1 FROM pg_index i WHERE i.indrelid = $1::text::regclass AND i.indisunique AND i.indisvalid \
                 AND i.indpred IS NULL AND i.indexprs IS NULL AND $2 = ( \
                     SELECT array_agg(a.attname::text ORDER BY a.attname::text COLLATE \"C\") FROM pg_attribute a \
                     WHERE a.attrelid = i.indrelid \
                     AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])) LIMIT 1",
                &[&quoted, &sorted],
            )
            .await
            .map_err(failed)?;
        if found.is_some() {
            return Ok(());
        }
        let transaction = client.transaction().await.map_err(failed)?;
        transaction
            .execute(
                "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))",
                &[&format!("corrente {quoted}")],
            )
            .await
            .map_err(failed)?;
        let index = quote(&format!("{name}_key"));
        let make = format!(
            "CREATE UNIQUE INDEX IF NOT EXISTS {index} ON {quoted} ({})",
            self.list()
        );
        transaction.batch_execute(&make).await.map_err(failed)?;
        transaction.commit().await.map_err(failed)
    }

    /// Whether the record has its key.
    ///
    /// # Errors
    /// Which column it lacks: null equals nothing, and the row would never be known again.
    pub fn check(&self, record: &View<'_>) -> Result<(), Refusal> {
        let lacks = |column: &&String| match column.as_str() {
            "ts" | "meter" => false,
            "slot" => record.slot.is_none(),
            "stream" => record.stream.is_none(),
            "seq" => record.seq.is_none(),
            name => !record.fields.iter().any(|(field, _)| *field == name),
        };
        match self.columns.iter().find(lacks) {
            None => Ok(()),
            Some(column) => Err(Refusal {
                sqlstate: None,
                column: Some(column.clone()),
                reason: format!(
                    "the record has no {column}, which is part of the key that repeats are known by"
                ),
            }),
        }
    }

    /// The temporary table of a layout, in SQL: the same columns and rules, made where it is missing.
    pub async fn stage(
        &self,
        transaction: &Transaction<'_>,
        quoted: &str,
        layout: &Layout,
    ) -> Result<String, Error> {
        // A table that was altered has another stamp, and gets another one.
        let name = format!("pg_temp.corrente_{}", layout.stamp);
        transaction
            .batch_execute(&format!(
                "CREATE TEMP TABLE IF NOT EXISTS {} (LIKE {quoted} INCLUDING DEFAULTS INCLUDING CONSTRAINTS) \
                 ON COMMIT DELETE ROWS",
                name.trim_start_matches("pg_temp.")
            ))
            .await?;
        Ok(name)
    }

    /// The statement that brings the rows of the temporary table into the table, in their order. Where there are more
    /// rows to come in the transaction, it takes them out.
    #[must_use]
    pub fn merge(&self, stage: &str, quoted: &str, columns: &str, all: bool) -> String {
        let (with, from) = match all {
            true => (String::new(), stage.to_owned()),
            false => (
                format!("WITH moved AS (DELETE FROM {stage} RETURNING {columns}) "),
                "moved".to_owned(),
            ),
        };
        format!(
            "{with}INSERT INTO {quoted} ({columns}) SELECT {columns} FROM {from} ON CONFLICT ({}) DO NOTHING",
            self.list()
        )
    }

    fn list(&self) -> String {
        let columns: Vec<String> = self.columns.iter().map(|column| quote(column)).collect();
        columns.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_without_its_key_is_told_what_it_lacks() {
        let keyed = Keyed::new(["site", "meter", "slot"].map(str::to_owned).to_vec());
        for (fields, lacks) in [
            (r#""site":"a","slot":"2026-01-01T00:00:00Z""#, None),
            (r#""slot":"2026-01-01T00:00:00Z""#, Some("site")),
            (r#""site":"a""#, Some("slot")),
        ] {
            let json = format!(r#"{{"ts":"2026-01-01T00:00:00Z","meter":"m",{fields}}}"#);
            let checked = keyed.check(&View::parse(json.as_bytes()).unwrap());
            assert_eq!(checked.err().and_then(|refusal| refusal.column).as_deref(), lacks);
        }
    }
}
