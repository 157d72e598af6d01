//! Cassandra: exactly once, by a key of each record and a lightweight transaction for the offset.
//!
//! 1. The columns that the batch needs are added ([`table`]).
//! 2. The rows are written, many at a time; a repeat is the same row.
//! 3. What does not fit its column, or is refused, is set aside. The same code tells of a value that is too large and of
//!    a table that is gone: so where a row is refused, table and statement are looked at again.
//! 4. The offset and the marks move on if the partition is still ours ([`ledger`]).
//!
//! A crash between 2 and 4 repeats rows, which have the same key, and so are no new rows. The same holds for a worker
//! that lost its partition: what it still writes is what its successor writes. There is no TLS yet.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use corrente_config::{
    PipelineConfig, Secrets,
    pipeline::SinkConfig,
    secrets::{PASSWORD_FILE, USERNAME_FILE},
};
use corrente_crds::{pipeline::ColumnType, sinks::CassandraSink as CassandraSpec};
use futures::{StreamExt as _, stream};
use scylla::{
    client::{session::Session, session_builder::SessionBuilder},
    errors::{DbError, ExecutionError, RequestAttemptError},
    statement::prepared::PreparedStatement,
};

use self::{
    ledger::{Fence, Ledger},
    table::{Layout, OWN},
};
use crate::{
    batch::{Batch, DeadLetter, Place, Refusal, Row},
    sink::{Claimed, Sink, SinkError, Stored, columns::quote, outside::SetAside, record_id::record_id},
    transform::Chain,
};

mod ledger;
mod table;

/// How many rows are on their way at a time.
const IN_FLIGHT: usize = 64;
/// How long the nodes may take for a batch.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How long a connect may take.
const CONNECT: Duration = Duration::from_secs(5);

/// The Cassandra sink.
pub struct CassandraSink {
    shared: Arc<Shared>,
    open: Option<Open>,
}

struct Shared {
    spec: CassandraSpec,
    secrets: Secrets,
    ledger: Ledger,
    declared: BTreeMap<String, ColumnType>,
    chain: Chain,
    set_aside: Box<dyn SetAside>,
}

/// A connection, and the table as it was when it was last looked at.
struct Open {
    session: Arc<Session>,
    columns: Vec<(String, String)>,
    layout: Layout,
    /// The statement, and what it says.
    insert: PreparedStatement,
    cql: String,
}

/// What went wrong.
pub(crate) enum Failure {
    /// The connection, the statement or the answer.
    Cassandra(String),
    /// What the sink itself says.
    Sink(SinkError),
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Cassandra(error.to_string())
    }
}

impl CassandraSink {
    /// The sink of a pipeline; `None` where the configuration names another kind.
    pub fn new(config: &PipelineConfig, secrets: &Secrets, set_aside: impl SetAside) -> Option<Self> {
        let SinkConfig::Cassandra(spec) = &config.sink else {
            return None;
        };
        Some(Self {
            shared: Arc::new(Shared {
                spec: spec.clone(),
                secrets: secrets.clone(),
                ledger: Ledger {
                    keyspace: spec.keyspace.clone(),
                    pipeline: format!("{}/{}", config.namespace, config.name),
                },
                declared: config.columns.clone(),
                chain: Chain::of(config),
                set_aside: Box::new(set_aside),
            }),
            open: None,
        })
    }

    /// Does a job with the connection there is, or a new one.
    async fn with<T>(
        &mut self,
        what: &str,
        job: impl AsyncFnOnce(&Shared, &mut Open) -> Result<T, Failure>,
    ) -> Result<T, SinkError> {
        let done = tokio::time::timeout(TIMEOUT, async {
            let mut open = match self.open.take() {
                Some(open) => open,
                None => self.shared.connect().await?,
            };
            let done = job(&self.shared, &mut open).await?;
            self.open = Some(open);
            Ok(done)
        })
        .await;
        let fault = |reason: String| SinkError::unreachable(format!("failed to {what}: {reason}"));
        match done {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(Failure::Sink(error))) => Err(error),
            Ok(Err(Failure::Cassandra(error))) => Err(fault(error)),
            Err(_) => Err(fault(format!(
                "Cassandra did not answer within {} s",
                TIMEOUT.as_secs()
            ))),
        }
    }
}

impl Shared {
    async fn connect(&self) -> Result<Open, Failure> {
        let mut builder = SessionBuilder::new()
            .known_nodes(&self.spec.contact_points)
            .connection_timeout(CONNECT);
        if self.spec.credentials_secret.is_some() {
            let folder = self.secrets.sink_auth();
            let read = async |file: &str| {
                let path = folder.join(file);
                let text = tokio::fs::read_to_string(&path).await.map_err(|error| {
                    Failure::Cassandra(format!("failed to read {}: {error}", path.display()))
                })?;
                // Editors and `echo` end a file with a newline.
                Ok::<_, Failure>(text.trim_end_matches(['\r', '\n']).to_owned())
            };
            builder = builder.user(read(USERNAME_FILE).await?, read(PASSWORD_FILE).await?);
        }
        let session = builder.build().await?;
        let CassandraSpec {
            keyspace,
            table,
            replication_factor,
            ..
        } = &self.spec;
        let known = "SELECT keyspace_name FROM system_schema.keyspaces WHERE keyspace_name = ?";
        let known = session
            .query_unpaged(known, (keyspace,))
            .await?
            .into_rows_result()?;
        // Who may use a keyspace may not always make one.
        if known.rows_num() == 0 {
            let replication =
                format!("{{'class': 'NetworkTopologyStrategy', 'replication_factor': {replication_factor}}}");
            table::change(
                &session,
                format!("CREATE KEYSPACE IF NOT EXISTS {keyspace} WITH replication = {replication}"),
            )
            .await?;
        }
        self.ledger.ensure(&session).await?;
        let layout = table::ensure(&session, keyspace, table, &self.declared).await?;
        self.prepare(Arc::new(session), layout).await
    }

    async fn prepare(&self, session: Arc<Session>, layout: Layout) -> Result<Open, Failure> {
        let columns = table::more(&layout);
        let own = OWN.iter().map(|(name, _)| (*name).to_owned());
        let names: Vec<String> = own.chain(columns.iter().map(|(name, _)| quote(name))).collect();
        let CassandraSpec { keyspace, table, .. } = &self.spec;
        let places = vec!["?"; names.len()].join(", ");
        let cql = format!(
            "INSERT INTO {keyspace}.{table} ({}) VALUES ({places})",
            names.join(", ")
        );
        let mut insert = session.prepare(cql.as_str()).await?;
        insert.set_is_idempotent(true);
        Ok(Open {
            session,
            columns,
            layout,
            insert,
            cql,
        })
    }

    /// Whether the table is as it was when the statement was prepared. `why` is what the server says of a row.
    async fn check(&self, open: &Open, why: &str) -> Result<(), Failure> {
        let CassandraSpec { keyspace, table, .. } = &self.spec;
        let layout = table::read(&open.session, keyspace, table).await?;
        open.session.prepare(open.cql.as_str()).await?;
        if table::more(&layout) == open.columns {
            return Ok(());
        }
        Err(Failure::Cassandra(format!(
            "the table {keyspace}.{table} has other columns by now: {why}"
        )))
    }

    async fn store(&self, open: &mut Open, batch: &Batch) -> Result<Stored, Failure> {
        let mut missing = BTreeMap::new();
        let mut pass = batch.rows(&self.chain);
        while let Some(Row { record, .. }) = pass.next() {
            table::missing(&open.layout, record, &self.declared, &mut missing);
        }
        if !missing.is_empty() {
            let CassandraSpec { keyspace, table, .. } = &self.spec;
            let layout = table::widen(&open.session, keyspace, table, &missing).await?;
            *open = self.prepare(open.session.clone(), layout).await?;
        }
        let (mut rows, mut origins, mut letters) = (vec![], vec![], vec![]);
        let mut pass = batch.rows(&self.chain);
        while let Some(Row { origin, record }) = pass.next() {
            let id = record_id(&batch.place, &origin, record);
            match table::values(id, record, self.spec.bucket, &open.columns) {
                Ok(values) => {
                    rows.push((origins.len(), values));
                    origins.push(origin);
                }
                Err(refusal) => letters.push(DeadLetter { origin, refusal }),
            }
        }
        let mut sorted = pass.finish();
        letters.append(&mut sorted.dead);
        let (mut stored, mut refusals) = (0u64, vec![]);
        let (session, insert) = (&open.session, &open.insert);
        let mut written = stream::iter(rows)
            .map(|(at, values)| async move { (at, session.execute_unpaged(insert, values).await) })
            .buffer_unordered(IN_FLIGHT);
        while let Some((at, result)) = written.next().await {
            match result {
                Ok(_) => stored += 1,
                Err(error) => {
                    let reason = refused(&error).ok_or_else(|| Failure::from(error))?;
                    refusals.push((at, reason));
                }
            }
        }
        drop(written);
        if let Some((_, why)) = refusals.first() {
            self.check(open, why).await?;
        }
        for (at, reason) in refusals {
            letters.extend(origins.get(at).map(|origin| DeadLetter {
                origin: *origin,
                refusal: Refusal {
                    sqlstate: None,
                    column: None,
                    reason: format!("Cassandra refuses it: {reason}"),
                },
            }));
        }
        letters.sort_by_key(|letter| letter.origin.offset);
        if !letters.is_empty() {
            // Few, and seldom: the thread may be kept for it.
            tokio::task::block_in_place(|| self.set_aside.set_aside(&batch.place, &letters))
                .map_err(Failure::Sink)?;
        }
        match self.ledger.advance(&open.session, batch, &sorted.marks).await? {
            Fence::Stored => Ok(Stored::new(stored, letters.len() as u64, sorted)),
            Fence::Closed(reason) => Err(Failure::Sink(SinkError::Fenced(reason))),
        }
    }
}

/// What the server says of a row that it refuses, where that may be for good; `None` where it passes, or concerns every
/// row.
fn refused(error: &ExecutionError) -> Option<String> {
    let ExecutionError::LastAttemptError(RequestAttemptError::DbError(code, message)) = error else {
        return None;
    };
    let is_record = match code {
        // Of the guardrails, those of a value's size alone are about a record, and not about the disk or the level of
        // consistency.
        DbError::Invalid => !message.starts_with("Guardrail") || message.contains("value_size"),
        _ => false,
    };
    is_record.then(|| message.clone())
}

impl Sink for CassandraSink {
    async fn open(&mut self) -> Result<(), SinkError> {
        self.with("open the table", async |_, _| Ok(())).await
    }

    async fn claim(&mut self, place: &Place) -> Result<Claimed, SinkError> {
        self.with("claim a partition", async |shared, open| {
            shared.ledger.claim(&open.session, place).await
        })
        .await
    }

    async fn store(&mut self, batch: &Arc<Batch>) -> Result<Stored, SinkError> {
        self.with("store a batch", async |shared, open| {
            shared.store(open, batch).await
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_about_a_record_is_told_from_what_is_about_all() {
        let said = |code, message: &str| {
            let error = RequestAttemptError::DbError(code, message.to_owned());
            refused(&ExecutionError::LastAttemptError(error)).is_some()
        };
        for (message, of_record) in [
            (
                "Rejected an oversized mutation (600301/524288) for keyspace: metering",
                true,
            ),
            (
                "Guardrail column_value_size violated: Value of column v has size 70KiB",
                true,
            ),
            (
                "Guardrail data_disk_usage_percentage violated: Write request failed",
                false,
            ),
        ] {
            assert_eq!(said(DbError::Invalid, message), of_record, "{message}");
        }
        assert!(!said(DbError::Overloaded, "Too many requests"));
        assert!(!said(DbError::Unauthorized, "User has no MODIFY permission"));
    }
}
