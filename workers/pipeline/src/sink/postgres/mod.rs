//! PostgreSQL, with TimescaleDB or without.
//!
//! One transaction per batch:
//! 1. `ledger`: the partition's row is locked; epoch and offset must be ours;
//! 2. `copy`: the rows, which `rows` and `encode` made into the bytes of a binary COPY; where the database
//!    refuses some, `search` finds them;
//! 3. `ledger`: dead letters, the streams' marks, and the offset;
//! 4. commit.
//!
//! The table is made and widened before it, by `table`. After any failure the connection is dropped and
//! made anew by `session`: whatever was half done is gone with it, and what was learned of the table is
//! learned again.

use std::{path::PathBuf, time::Duration};

use corrente_config::{PipelineConfig, pipeline::SinkConfig};
use tokio::sync::Notify;
use tokio_postgres::{Client, Error};

use self::{
    layout::Layout,
    ledger::Fence,
    rows::{Encoded, encode_rows},
    session::describe,
    table::Table,
};
use crate::{
    batch::{Batch, DeadLetter, Place},
    sink::{Claimed, Sink, SinkError, Stored},
};

mod copy;
mod encode;
mod layout;
mod ledger;
mod rows;
mod search;
mod session;
mod table;

/// The longest that a job may go on without a sign of progress; the connection is given up then.
const ANSWER: Duration = Duration::from_secs(120);
/// How often a batch is encoded anew because somebody altered the table meanwhile.
const ENCODINGS: usize = 5;

/// The PostgreSQL sink.
pub struct PostgresSink {
    url_file: PathBuf,
    pipeline: String,
    table: Table,
    session: Option<Session>,
    /// The outcome of a batch whose commit was sent: what to answer where only the confirmation was lost.
    sent: Option<(Place, i64, Stored)>,
}

struct Session {
    client: Client,
    layout: Layout,
}

impl PostgresSink {
    /// The sink of a pipeline; `None` where the configuration names another kind.
    #[must_use]
    pub fn new(config: &PipelineConfig) -> Option<Self> {
        let SinkConfig::Postgres {
            url_file,
            schema,
            table,
            hypertable,
        } = &config.sink
        else {
            return None;
        };
        Some(Self {
            url_file: url_file.clone(),
            pipeline: format!("{}/{}", config.namespace, config.name),
            table: Table {
                schema: schema.clone(),
                name: table.clone(),
                hypertable: *hypertable,
                declared: config.columns.clone(),
            },
            session: None,
            sent: None,
        })
    }

    /// The connection there is, or a new one.
    async fn session(&mut self) -> Result<Session, SinkError> {
        if let Some(session) = self.session.take().filter(|session| !session.client.is_closed()) {
            return Ok(session);
        }
        let application = format!("corrente-pipeline {}", self.pipeline);
        let mut client = session::connect(&self.url_file, &application)
            .await
            .map_err(SinkError::Retry)?;
        ledger::create(&mut client)
            .await
            .map_err(failed("make the tables of the schema corrente"))?;
        let layout = self.table.ensure(&mut client).await.map_err(SinkError::Retry)?;
        Ok(Session { client, layout })
    }

    /// Stores a batch; the session is ours to drop where that fails.
    async fn store_in(
        &mut self,
        session: &mut Session,
        batch: &Batch,
        answered: &Notify,
    ) -> Result<Stored, SinkError> {
        for _ in 0..ENCODINGS {
            let missing = self.table.missing(&session.layout, &batch.rows);
            if !missing.is_empty() {
                session.layout = self
                    .table
                    .widen(&mut session.client, &missing)
                    .await
                    .map_err(SinkError::Retry)?;
            }
            let encoded = encode_rows(&session.layout, &batch.rows);
            if let Some(stored) = self.transact(session, batch, encoded, answered).await? {
                return Ok(stored);
            }
            let read = Layout::read(&session.client, &self.table.schema, &self.table.name).await;
            session.layout = read.map_err(failed("read the table's columns"))?;
            if session.layout.columns.is_empty() {
                break;
            }
        }
        Err(SinkError::Retry(format!(
            "the table {} keeps changing, or is gone",
            self.table.quoted()
        )))
    }

    /// One transaction; `None` where the table is not what the rows were encoded for.
    async fn transact(
        &mut self,
        session: &mut Session,
        batch: &Batch,
        encoded: Encoded,
        answered: &Notify,
    ) -> Result<Option<Stored>, SinkError> {
        let failed = failed("store a batch");
        let transaction = session.client.transaction().await.map_err(&failed)?;
        match ledger::fence(&transaction, &self.pipeline, batch)
            .await
            .map_err(&failed)?
        {
            Fence::Open => {}
            Fence::Stored => return Ok(Some(self.confirmed(batch))),
            Fence::Closed(reason) => return Err(SinkError::Fenced(reason)),
        }
        let mut dead: Vec<DeadLetter> = batch.dead.clone();
        let mut refuse = |number: usize, refusal| {
            if let Some(row) = batch.rows.get(number) {
                dead.push(DeadLetter {
                    origin: row.origin.clone(),
                    refusal,
                });
            }
        };
        let mut rows = encoded.rows.len();
        // Rows that were found not to fit are looked at again as well, where a column is another by now.
        if !batch.rows.is_empty() {
            // From here on nobody can alter a column; whether somebody did is looked at once. Constraints
            // that would be checked at the commit, for all rows together, are checked at each.
            let lock = format!(
                "LOCK TABLE ONLY {} IN ROW EXCLUSIVE MODE; SET CONSTRAINTS ALL IMMEDIATE",
                self.table.quoted()
            );
            transaction.batch_execute(&lock).await.map_err(&failed)?;
            let now = Layout::read(&transaction, &self.table.schema, &self.table.name).await;
            if now.map_err(&failed)?.stamp != session.layout.stamp {
                return Ok(None);
            }
            let refused = copy::copy(&transaction, &self.table.quoted(), &encoded, answered)
                .await
                .map_err(&failed)?;
            rows -= refused.len();
            for (at, refusal) in refused {
                if let Some((number, _)) = encoded.rows.get(at) {
                    refuse(*number, refusal);
                }
            }
        }
        for (number, refusal) in encoded.refused {
            refuse(number, refusal);
        }
        dead.sort_by_key(|letter| letter.origin.offset);
        ledger::dead_letters(&transaction, &self.pipeline, &batch.place, &dead)
            .await
            .map_err(&failed)?;
        ledger::advance(&transaction, &self.pipeline, batch)
            .await
            .map_err(&failed)?;
        let stored = Stored {
            rows: rows as u64,
            dead_letters: dead.len() as u64,
        };
        self.sent = Some((batch.place.clone(), batch.next_offset, stored));
        transaction.commit().await.map_err(&failed)?;
        for letter in &dead {
            tracing::warn!(
                partition = %batch.place.partition,
                offset = letter.origin.offset,
                column = letter.refusal.column,
                sqlstate = letter.refusal.sqlstate,
                reason = letter.refusal.reason,
                "set aside in corrente.dead_letters"
            );
        }
        Ok(Some(stored))
    }

    /// What became of a batch that was stored without our knowing.
    fn confirmed(&self, batch: &Batch) -> Stored {
        match &self.sent {
            Some((place, next, stored)) if *place == batch.place && *next == batch.next_offset => *stored,
            _ => Stored {
                rows: batch.rows.len() as u64,
                dead_letters: batch.dead.len() as u64,
            },
        }
    }
}

/// Makes an error of the database one that is tried again.
fn failed(what: &str) -> impl Fn(Error) -> SinkError {
    move |error| SinkError::Retry(format!("failed to {what}: {}", describe(&error)))
}

/// Bounds a job by `limit`, so that a server that stands still is left. Each sign on `answered` gives it as
/// long again: a batch of which the database refuses many rows is long, but it comes to its end.
async fn bounded<T>(
    limit: Duration,
    answered: &Notify,
    job: impl Future<Output = Result<T, SinkError>>,
) -> Result<T, SinkError> {
    tokio::pin!(job);
    loop {
        tokio::select! {
            // What was done in time counts, however late it is looked at.
            biased;
            outcome = &mut job => return outcome,
            () = answered.notified() => {}
            () = tokio::time::sleep(limit) => {
                return Err(SinkError::Retry(format!(
                    "the database has not answered for {} s",
                    limit.as_secs()
                )));
            }
        }
    }
}

impl Sink for PostgresSink {
    async fn open(&mut self) -> Result<(), SinkError> {
        let session = bounded(ANSWER, &Notify::new(), self.session()).await?;
        self.session = Some(session);
        Ok(())
    }

    async fn claim(&mut self, place: &Place) -> Result<Claimed, SinkError> {
        bounded(ANSWER, &Notify::new(), async {
            let mut session = self.session().await?;
            let claimed = ledger::claim(&mut session.client, &self.pipeline, place).await;
            let claimed = claimed.map_err(failed("claim a partition"))?;
            self.session = Some(session);
            Ok(claimed)
        })
        .await
    }

    async fn store(&mut self, batch: &Batch) -> Result<Stored, SinkError> {
        let answered = Notify::new();
        bounded(ANSWER, &answered, async {
            let mut session = self.session().await?;
            let stored = self.store_in(&mut session, batch, &answered).await?;
            self.session = Some(session);
            Ok(stored)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_job_may_be_long_but_not_stand_still() {
        let (limit, answered) = (Duration::from_millis(30), Notify::new());
        let long = bounded(limit, &answered, async {
            for _ in 0..5 {
                tokio::time::sleep(limit * 2 / 3).await;
                answered.notify_one();
            }
            Ok(())
        });
        assert!(long.await.is_ok());
        let hung: Result<(), _> = bounded(limit, &answered, std::future::pending()).await;
        assert!(matches!(hung, Err(SinkError::Retry(why)) if why.contains("has not answered")));
    }
}
