//! Taking a partition over from a worker that stands still in the middle of a transaction.
//!
//! A process that is frozen, with its node or alone, still answers the kernel's probes, so the server keeps its session,
//! and with it the lock on the partition's row, for as long as it stands. The server knows no bound for a COPY that
//! waits for its client. So each batch's transaction is marked with an advisory lock, which `pg_locks` shows with the
//! session that holds it. Who claims a partition waits for a batch that is under way; where that takes longer than
//! `lock_timeout`, the sessions that hold its mark are ended. Their batch is rolled back, and would have been refused
//! anyway by the epoch that the claim raises.
//!
//! The mark is shared: it holds up nobody.

use tokio_postgres::{Client, Error, Transaction, error::SqlState};

use super::{
    ledger::{self, ClaimError, Claimant},
    session::Statements,
};
use crate::{batch::Place, sink::Claimed};

/// What the marks of a partition's batches are known by.
fn key(pipeline: &str, place: &Place) -> String {
    // None of the parts has a line break in it.
    format!("corrente\n{pipeline}\n{}\n{}", place.cluster, place.partition)
}

/// Marks a batch's transaction.
pub async fn mark(
    transaction: &Transaction<'_>,
    statements: &mut Statements,
    pipeline: &str,
    place: &Place,
) -> Result<(), Error> {
    let mark = "SELECT pg_advisory_xact_lock_shared(hashtextextended($1, 0))";
    let mark = statements.get(transaction, mark).await?;
    transaction.execute(&mark, &[&key(pipeline, place)]).await?;
    Ok(())
}

/// Takes a partition over, from a worker that stands still too.
pub async fn claim(
    client: &mut Client,
    claimant: Claimant<'_>,
    place: &Place,
) -> Result<Claimed, ClaimError> {
    match ledger::claim(client, claimant, place).await {
        Err(ClaimError::Database(error)) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
            let mut ended = 0;
            // The worker that stands still may know the pipeline by its old name.
            for name in [Some(claimant.pipeline), claimant.renamed_from]
                .into_iter()
                .flatten()
            {
                ended += end(client, name, place).await?;
            }
            if ended == 0 {
                return Err(error.into());
            }
            tracing::warn!(
                partition = %place.partition,
                sessions = ended,
                "ended the session of a worker that stood still in the middle of a batch"
            );
            ledger::claim(client, claimant, place).await
        }
        claimed => claimed,
    }
}

/// Ends the sessions that hold the mark; gives how many there were.
async fn end(client: &Client, pipeline: &str, place: &Place) -> Result<u64, Error> {
    // An advisory lock on one 64-bit key is shown in two halves, with objsubid 1.
    client
        .execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks \
             WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND pid <> pg_backend_pid() \
             AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
             AND (classid::bigint << 32) | objid::bigint = hashtextextended($1, 0)",
            &[&key(pipeline, place)],
        )
        .await
}
