//! What a scenario checks at its end: nothing lost, nothing doubled.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Result, bail, ensure};
use tokio_postgres::{Client, NoTls};

use crate::{
    stack::Stack,
    topic,
    wait::{seconds, until},
};

/// The table of a scenario.
pub struct Table {
    client: Client,
    /// The table's name with its schema, quoted.
    pub name: String,
}

/// Rows of one stream, and the numbers they should have.
#[derive(Debug, PartialEq, Eq)]
pub struct Stream {
    /// The stream's id.
    pub id: String,
    /// How many rows it has.
    pub rows: i64,
    /// The lowest number.
    pub first: i64,
    /// The highest number.
    pub last: i64,
}

impl Table {
    /// Connects to the database; makes the schema anew, so that a run before leaves nothing in it.
    ///
    /// # Errors
    /// Where the database refuses.
    pub async fn fresh(url: &str, schema: &str, table: &str) -> Result<Self> {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        tokio::spawn(connection);
        client
            .batch_execute(&format!("DROP SCHEMA IF EXISTS \"{schema}\" CASCADE"))
            .await?;
        Ok(Self {
            client,
            name: format!("\"{schema}\".\"{table}\""),
        })
    }

    /// Connects again; waits until the database answers.
    ///
    /// # Errors
    /// Where it does not.
    pub async fn reconnect(&mut self, url: &str) -> Result<()> {
        let (client, connection) = until("the database", seconds(30), || async {
            tokio_postgres::connect(url, NoTls)
                .await
                .map_err(|error| error.to_string())
        })
        .await?;
        tokio::spawn(connection);
        self.client = client;
        Ok(())
    }

    /// Rows there are; 0 where there is no table yet.
    ///
    /// # Errors
    /// Where the database refuses.
    pub async fn rows(&self) -> Result<i64> {
        let there = self
            .client
            .query_one("SELECT to_regclass($1) IS NOT NULL", &[&self.name])
            .await?;
        if !there.get::<_, bool>(0) {
            return Ok(0);
        }
        self.one("SELECT count(*) FROM @").await
    }

    /// The first column of the only row of a query; `@` stands for the table.
    ///
    /// # Errors
    /// Where the database refuses.
    pub async fn one<T>(&self, query: &str) -> Result<T>
    where
        T: for<'a> tokio_postgres::types::FromSql<'a>,
    {
        Ok(self
            .client
            .query_one(&query.replace('@', &self.name), &[])
            .await?
            .try_get(0)?)
    }

    /// Waits until a query of one number gives at least `least`; `@` stands for the table, which need not be there
    /// yet.
    ///
    /// # Errors
    /// Where that does not come within `limit`.
    pub async fn at_least(&self, what: &str, limit: Duration, query: &str, least: i64) -> Result<()> {
        until(what, limit, || async {
            match self.one::<i64>(query).await {
                Ok(number) if number >= least => Ok(()),
                Ok(number) => Err(format!("{number} of {least}")),
                Err(error) => Err(format!("{error:#}")),
            }
        })
        .await
    }

    /// The rows of a query; `@` stands for the table.
    ///
    /// # Errors
    /// Where the database refuses.
    pub async fn query(&self, query: &str) -> Result<Vec<tokio_postgres::Row>> {
        Ok(self.client.query(&query.replace('@', &self.name), &[]).await?)
    }

    /// The streams in the table.
    ///
    /// # Errors
    /// Where the database refuses.
    pub async fn streams(&self) -> Result<Vec<Stream>> {
        let rows = self
            .query("SELECT stream, count(*), min(seq)::bigint, max(seq)::bigint FROM @ GROUP BY 1 ORDER BY 1")
            .await?;
        Ok(rows
            .iter()
            .map(|row| Stream {
                id: row.get(0),
                rows: row.get(1),
                first: row.get(2),
                last: row.get(3),
            })
            .collect())
    }

    /// Waits until the table is as far as the topic, in every partition.
    ///
    /// # Errors
    /// Where it does not get there.
    pub async fn is_as_far_as(&self, stack: &Stack, topic: &str) -> Result<()> {
        let query = format!(
            "SELECT partition, next_offset FROM corrente.offsets \
             WHERE topic = '{topic}' AND next_offset IS NOT NULL AND next_offset > 0"
        );
        until("everything published to be stored", seconds(60), || async {
            let written = topic::written(stack, topic)
                .await
                .map_err(|error| error.to_string())?;
            let rows = self.query(&query).await.map_err(|error| error.to_string())?;
            let stored: BTreeMap<i32, i64> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
            if !written.is_empty() && written == stored {
                Ok(())
            } else {
                Err(format!("written up to {written:?}, stored up to {stored:?}"))
            }
        })
        .await
    }

    /// Checks that each stream is whole, from its first record to its last, and no meter has two rows
    /// for one slot. To be called when nothing is on its way any more.
    ///
    /// # Errors
    /// Where a row is missing or doubled.
    pub async fn nothing_lost_nothing_doubled(&self) -> Result<()> {
        let doubled = self
            .query("SELECT meter, slot::text, count(*) FROM @ GROUP BY 1, 2 HAVING count(*) > 1 LIMIT 5")
            .await?;
        let doubled: Vec<(String, String, i64)> = doubled
            .iter()
            .map(|row| (row.get(0), row.get(1), row.get(2)))
            .collect();
        ensure!(doubled.is_empty(), "doubled: {doubled:?}");
        let streams = self.streams().await?;
        ensure!(!streams.is_empty(), "there is no row at all");
        for stream in streams {
            if stream.first != 1 || stream.last != stream.rows {
                let gaps = self.gaps(&stream.id).await?;
                bail!(
                    "rows are missing or doubled: {stream:?}; from the row before to the one after each gap: {gaps}"
                );
            }
        }
        Ok(())
    }

    /// Where a stream's numbers do not rise by one.
    async fn gaps(&self, stream: &str) -> Result<String> {
        let gaps = format!(
            "SELECT coalesce(string_agg(format('%s to %s (%s at %s)', before, seq, meter, ts), ', ' ORDER BY seq), '') \
             FROM (SELECT seq, meter, ts, lag(seq) OVER (ORDER BY seq) AS before FROM @ WHERE stream = '{stream}') AS rows \
             WHERE seq <> before + 1"
        );
        self.one(&gaps).await
    }
}
