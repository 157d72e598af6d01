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

/// The temporary table.
pub struct Stage {
    /// Its name in SQL.
    pub name: String,
    /// The column that numbers its rows, in SQL; the table has none of its name.
    number: String,
}

use super::{fault, layout::Layout};
use crate::{
    batch::Refusal,
    sink::{SinkError, columns::quote},
};

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
    /// What sort of fault it is, with a sentence; a person must change something, or trying again may help.
    pub async fn ensure(&self, client: &mut Client, quoted: &str, name: &str) -> Result<(), SinkError> {
        let failed = |error: Error| {
            if error.code() == Some(&SqlState::UNIQUE_VIOLATION) {
                return SinkError::Retry(format!(
                    "the table {quoted} has several rows of one key ({}) already: remove what is too much, name another \
                     key in dedupeKey, or another table",
                    self.columns.join(", ")
                ));
            }
            fault::failed(&format!("make the unique index of {quoted}"))(error)
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
    ) -> Result<Stage, Error> {
        let mut number = "corrente_row".to_owned();
        while layout.position(&number).is_some() {
            number.push('_');
        }
        let number = quote(&number);
        // A table that was altered has another stamp, and gets another one.
        let name = format!("pg_temp.corrente_{}", layout.stamp);
        transaction
            .batch_execute(&format!(
                "CREATE TEMP TABLE IF NOT EXISTS {} (LIKE {quoted} INCLUDING DEFAULTS INCLUDING CONSTRAINTS, \
                 {number} bigint GENERATED ALWAYS AS IDENTITY) \
                 ON COMMIT DELETE ROWS",
                name.trim_start_matches("pg_temp.")
            ))
            .await?;
        Ok(Stage { name, number })
    }

    /// The statement that brings the rows of the temporary table into the table, in their order. Where there are more
    /// rows to come in the transaction, it takes them out. Where it is to tell which rows the table took, it gives the
    /// place of each among them, from 1 on.
    #[must_use]
    pub fn merge(&self, stage: &Stage, quoted: &str, columns: &str, all: bool, told: bool) -> String {
        let Stage { name, number } = stage;
        let (mut with, from) = match all {
            true => (vec![], name.as_str()),
            false => (
                vec![format!(
                    "moved AS (DELETE FROM {name} RETURNING {columns}, {number})"
                )],
                "moved",
            ),
        };
        let key = self.list();
        // In their order: of several rows of one key the first is kept.
        let insert = format!(
            "INSERT INTO {quoted} ({columns}) SELECT {columns} FROM {from} ORDER BY {number} ON CONFLICT ({key}) DO NOTHING"
        );
        let last = if told {
            // The numbers go on through the transaction: what counts is their order.
            with.push(format!("taken AS ({insert} RETURNING {key})"));
            with.push(format!(
                "numbered AS (SELECT {key}, row_number() OVER (ORDER BY {number}) AS place FROM {from})"
            ));
            format!("SELECT min(place) FROM taken JOIN numbered USING ({key}) GROUP BY {key}")
        } else {
            insert
        };
        match with.is_empty() {
            true => last,
            false => format!("WITH {} {last}", with.join(", ")),
        }
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
