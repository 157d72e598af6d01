//! The worker's own tables, in the schema `corrente`: how far each partition is stored, the streams'
//! high-water marks, and the dead letters.
//!
//! `corrente.offsets` has a row per pipeline, cluster, topic and partition. A claim raises its epoch; a
//! batch locks it, and goes on only if epoch and offset are still its own. The row names the table too: a second
//! pipeline would store each record of the partition in it once more, and is refused. Where the pipeline had another
//! name, the claim takes over what was kept under that.
//!
//! `corrente.streams` does not tell clusters apart: a stream's id is its own everywhere, so records that reach the
//! table by way of a second cluster are recognised too. A mark is dropped ([`tidy`]) only when nothing can come any
//! more that it would have to recognise.

use std::collections::HashMap;

use corrente_runtime::broker::TopicPartition;
use tokio_postgres::{Client, Error, Transaction};

use super::session::{Statements, describe, make_tables};
use crate::{
    assignment::{Fingerprint, Position},
    batch::{Batch, DeadLetter, Place},
    sink::Claimed,
};

const TABLES: &str = "
    CREATE SCHEMA IF NOT EXISTS corrente;
    CREATE TABLE IF NOT EXISTS corrente.offsets (
        pipeline text NOT NULL,
        cluster text NOT NULL,
        topic text NOT NULL,
        partition integer NOT NULL,
        epoch bigint NOT NULL,
        next_offset bigint,
        last_timestamp bigint,
        last_key_crc bigint,
        last_payload_crc bigint,
        updated_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (pipeline, cluster, topic, partition)
    );
    CREATE TABLE IF NOT EXISTS corrente.streams (
        pipeline text NOT NULL,
        topic text NOT NULL,
        partition integer NOT NULL,
        stream text NOT NULL,
        seq bigint NOT NULL,
        updated_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (pipeline, topic, partition, stream)
    );
    CREATE TABLE IF NOT EXISTS corrente.dead_letters (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        at timestamptz NOT NULL DEFAULT now(),
        pipeline text NOT NULL,
        cluster text NOT NULL,
        topic text NOT NULL,
        partition integer NOT NULL,
        message_offset bigint NOT NULL,
        key bytea,
        payload bytea,
        sqlstate text,
        column_name text,
        reason text NOT NULL
    );
    ALTER TABLE corrente.offsets ADD COLUMN IF NOT EXISTS stored_in text;
    CREATE UNIQUE INDEX IF NOT EXISTS offsets_stored_in ON corrente.offsets (stored_in, topic, partition, cluster);
    ALTER TABLE corrente.streams ADD COLUMN IF NOT EXISTS cluster text, ADD COLUMN IF NOT EXISTS last_offset bigint;
    ALTER TABLE corrente.dead_letters ADD COLUMN IF NOT EXISTS replay_asked_at timestamptz,
        ADD COLUMN IF NOT EXISTS replayed_at timestamptz, ADD COLUMN IF NOT EXISTS counted boolean;
    CREATE INDEX IF NOT EXISTS dead_letters_origin ON corrente.dead_letters (pipeline, cluster, topic, partition, id);
    CREATE INDEX IF NOT EXISTS dead_letters_asked ON corrente.dead_letters (pipeline, id)
        WHERE replay_asked_at IS NOT NULL AND replayed_at IS NULL;
    CREATE TABLE IF NOT EXISTS corrente.dead_letters_published (
        pipeline text NOT NULL,
        cluster text NOT NULL,
        topic text NOT NULL,
        partition integer NOT NULL,
        id bigint NOT NULL,
        PRIMARY KEY (pipeline, cluster, topic, partition)
    );
";

/// How long a stream must have been silent before its mark may be dropped. A spool outlives its poller, on a volume
/// of its own, and a poller that comes back sends again what it does not know to be stored: a plant that rests for a
/// season must not store its last seconds twice.
const SILENT: &str = "400 days";

/// Makes the tables where they are missing. A worker that finds them needs no right to make any.
pub async fn create(client: &mut Client) -> Result<(), Error> {
    // The youngest part of them: the others were there before.
    let made = client
        .query_one(
            "SELECT to_regclass('corrente.dead_letters_published') IS NOT NULL AND EXISTS ( \
                 SELECT FROM pg_attribute WHERE attrelid = to_regclass('corrente.dead_letters') AND attname = 'counted')",
            &[],
        )
        .await?;
    match made.try_get(0)? {
        true => Ok(()),
        false => make_tables(client, TABLES).await,
    }
}

/// Who claims.
#[derive(Clone, Copy, Debug)]
pub struct Claimant<'a> {
    /// The pipeline, with its namespace.
    pub pipeline: &'a str,
    /// The name that it had before.
    pub renamed_from: Option<&'a str>,
    /// The table that it stores in.
    pub stored_in: &'a str,
}

/// Why a partition was not taken over.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// The database did not do it.
    #[error("failed to claim a partition: {}", describe(.0))]
    Database(#[from] Error),
    /// Another pipeline stores it in the same table.
    #[error(
        "the table {stored_in} has the records of {place} from the pipeline {other} already, and this one would store \
         each of them again. If it is that pipeline under a new name, set renamedFrom to the old one; to store twice, \
         name another table; if {other} is gone for good, run DELETE FROM corrente.offsets WHERE pipeline = '{other}'"
    )]
    Taken {
        /// The table.
        stored_in: String,
        /// The partition.
        place: TopicPartition,
        /// The other pipeline.
        other: String,
    },
}

/// Takes a partition over.
pub async fn claim(
    client: &mut Client,
    claimant: Claimant<'_>,
    place: &Place,
) -> Result<Claimed, ClaimError> {
    let (pipeline, topic) = (claimant.pipeline, &*place.partition.topic);
    let transaction = client.transaction().await?;
    if let Some(old) = claimant.renamed_from {
        rename(&transaction, old, pipeline, place).await?;
    }
    let other = transaction
        .query_opt(
            "SELECT pipeline FROM corrente.offsets \
             WHERE stored_in = $1 AND topic = $2 AND partition = $3 AND cluster = $4 AND pipeline <> $5",
            &[
                &claimant.stored_in,
                &topic,
                &place.partition.partition,
                &&*place.cluster,
                &pipeline,
            ],
        )
        .await?;
    if let Some(other) = other {
        return Err(ClaimError::Taken {
            stored_in: claimant.stored_in.to_owned(),
            place: place.partition.clone(),
            other: other.try_get(0)?,
        });
    }
    // Waits for a batch of an earlier owner that is under way, and sees what it stored.
    let row = transaction
        .query_one(
            "INSERT INTO corrente.offsets (pipeline, cluster, topic, partition, epoch, stored_in) \
             VALUES ($1, $2, $3, $4, 1, $5) \
             ON CONFLICT (pipeline, cluster, topic, partition) \
             DO UPDATE SET epoch = corrente.offsets.epoch + 1, stored_in = $5, updated_at = now() \
             RETURNING epoch, next_offset, last_timestamp, last_key_crc, last_payload_crc",
            &[
                &pipeline,
                &&*place.cluster,
                &topic,
                &place.partition.partition,
                &claimant.stored_in,
            ],
        )
        .await?;
    let marks = transaction
        .query(
            "SELECT stream, seq FROM corrente.streams WHERE pipeline = $1 AND topic = $2 AND partition = $3",
            &[&pipeline, &topic, &place.partition.partition],
        )
        .await?;
    let marks = marks
        .iter()
        .map(|row| {
            Ok((
                row.try_get(0)?,
                u64::try_from(row.try_get::<_, i64>(1)?).unwrap_or(0),
            ))
        })
        .collect::<Result<HashMap<_, _>, Error>>()?;
    let crc = |column: Option<i64>| column.and_then(|crc| u32::try_from(crc).ok());
    let last = Fingerprint {
        timestamp: row.try_get(2)?,
        key_crc: crc(row.try_get(3)?),
        payload_crc: crc(row.try_get(4)?),
    };
    let nothing = Fingerprint {
        timestamp: None,
        key_crc: None,
        payload_crc: None,
    };
    let claimed = Claimed {
        epoch: row.try_get(0)?,
        position: row.try_get::<_, Option<i64>>(1)?.map(|next_offset| Position {
            next_offset,
            last: Some(last).filter(|last| *last != nothing),
        }),
        marks,
    };
    transaction.commit().await?;
    Ok(claimed)
}

/// Brings what was kept of a partition under the name `old` under the name `new`, unless there is something already.
async fn rename(transaction: &Transaction<'_>, old: &str, new: &str, place: &Place) -> Result<(), Error> {
    let (cluster, topic, partition) = (
        &*place.cluster,
        &*place.partition.topic,
        place.partition.partition,
    );
    let renamed = transaction
        .execute(
            "UPDATE corrente.offsets o SET pipeline = $2 \
             WHERE pipeline = $1 AND cluster = $3 AND topic = $4 AND partition = $5 AND NOT EXISTS ( \
                 SELECT FROM corrente.offsets n \
                 WHERE n.pipeline = $2 AND n.cluster = $3 AND n.topic = $4 AND n.partition = $5)",
            &[&old, &new, &cluster, &topic, &partition],
        )
        .await?;
    if renamed == 0 {
        return Ok(());
    }
    transaction
        .execute(
            "WITH old AS (DELETE FROM corrente.streams WHERE pipeline = $1 AND topic = $3 AND partition = $4 RETURNING *) \
             INSERT INTO corrente.streams (pipeline, topic, partition, stream, seq, updated_at, cluster, last_offset) \
             SELECT $2, topic, partition, stream, seq, updated_at, cluster, last_offset FROM old \
             ON CONFLICT (pipeline, topic, partition, stream) \
             DO UPDATE SET seq = greatest(corrente.streams.seq, excluded.seq)",
            &[&old, &new, &topic, &partition],
        )
        .await?;
    for table in ["dead_letters", "dead_letters_published"] {
        let sql = format!(
            "UPDATE corrente.{table} SET pipeline = $2 \
             WHERE pipeline = $1 AND cluster = $3 AND topic = $4 AND partition = $5"
        );
        transaction
            .execute(&sql, &[&old, &new, &cluster, &topic, &partition])
            .await?;
    }
    tracing::info!(partition = %place.partition, old, "taken over from the pipeline's old name");
    Ok(())
}

/// Drops marks that have nothing left to recognise: the partition's log, which begins at `low`, holds no record of the
/// stream any more, so that nobody can read one again; and the stream has been silent for so long that its spool will
/// not come back with one. Gives how many there were.
pub async fn tidy(client: &Client, pipeline: &str, place: &Place, low: i64) -> Result<u64, Error> {
    let sql = format!(
        "DELETE FROM corrente.streams WHERE pipeline = $1 AND topic = $2 AND partition = $3 AND cluster = $4 \
         AND last_offset < $5 AND updated_at < now() - interval '{SILENT}'"
    );
    client
        .execute(
            &sql,
            &[
                &pipeline,
                &&*place.partition.topic,
                &place.partition.partition,
                &&*place.cluster,
                &low,
            ],
        )
        .await
}

/// Whether a batch may be stored.
pub enum Fence {
    /// It may; its row is locked.
    Open,
    /// It is stored already: an earlier commit got through, but its answer did not.
    Stored,
    /// It may not, for this reason.
    Closed(String),
}

/// Locks the partition's row and compares it with what the batch expects.
pub async fn fence(
    transaction: &Transaction<'_>,
    statements: &mut Statements,
    pipeline: &str,
    batch: &Batch,
) -> Result<Fence, Error> {
    let partition = &batch.place.partition;
    let lock = "SELECT epoch, next_offset FROM corrente.offsets \
                WHERE pipeline = $1 AND cluster = $2 AND topic = $3 AND partition = $4 FOR UPDATE";
    let lock = statements.get(transaction, lock).await?;
    let row = transaction
        .query_opt(
            &lock,
            &[
                &pipeline,
                &&*batch.place.cluster,
                &&*partition.topic,
                &partition.partition,
            ],
        )
        .await?;
    let Some(row) = row else {
        return Ok(Fence::Closed("its row in corrente.offsets is gone".to_owned()));
    };
    let (epoch, next): (i64, Option<i64>) = (row.try_get(0)?, row.try_get(1)?);
    Ok(if epoch != batch.epoch {
        Fence::Closed(format!(
            "another worker has taken it: the epoch is {epoch}, ours is {}",
            batch.epoch
        ))
    } else if next == batch.previous {
        Fence::Open
    } else if next == Some(batch.next_offset) {
        Fence::Stored
    } else {
        let shown = |offset: Option<i64>| offset.map_or("none".to_owned(), |offset| offset.to_string());
        Fence::Closed(format!(
            "the next offset is {} in corrente.offsets, and was {} here: the database lost commits, or \
             somebody changed it",
            shown(next),
            shown(batch.previous)
        ))
    })
}

/// Stores what is set aside. `counted` says of each letter whether the ledger of completeness counts it as refused.
pub async fn dead_letters(
    transaction: &Transaction<'_>,
    pipeline: &str,
    place: &Place,
    letters: &[DeadLetter<'_>],
    counted: &[bool],
) -> Result<(), Error> {
    if letters.is_empty() {
        return Ok(());
    }
    let offsets: Vec<i64> = letters.iter().map(|l| l.origin.offset).collect();
    let keys: Vec<Option<&[u8]>> = letters.iter().map(|l| l.origin.key).collect();
    let payloads: Vec<&[u8]> = letters.iter().map(|l| l.origin.payload).collect();
    let states: Vec<Option<&str>> = letters.iter().map(|l| l.refusal.sqlstate.as_deref()).collect();
    let columns: Vec<Option<&str>> = letters.iter().map(|l| l.refusal.column.as_deref()).collect();
    // A parser's message can quote what it read.
    let reasons: Vec<String> = letters
        .iter()
        .map(|l| l.refusal.reason.replace('\0', "\u{fffd}"))
        .collect();
    transaction
        .execute(
            "INSERT INTO corrente.dead_letters \
             (pipeline, cluster, topic, partition, message_offset, key, payload, sqlstate, column_name, reason, \
              counted) SELECT $1, $2, $3, $4, * FROM unnest($5::bigint[], $6::bytea[], $7::bytea[], $8::text[], $9::text[], \
             $10::text[], $11::boolean[])",
            &[
                &pipeline,
                &&*place.cluster,
                &&*place.partition.topic,
                &place.partition.partition,
                &offsets,
                &keys,
                &payloads,
                &states,
                &columns,
                &reasons,
                &counted,
            ],
        )
        .await?;
    Ok(())
}

/// Moves the marks, which the batch raised to `marks`, and the offset past the batch.
pub async fn advance(
    transaction: &Transaction<'_>,
    statements: &mut Statements,
    pipeline: &str,
    batch: &Batch,
    marks: &[(String, u64)],
) -> Result<(), Error> {
    let (cluster, topic) = (&*batch.place.cluster, &*batch.place.partition.topic);
    let partition = batch.place.partition.partition;
    if !marks.is_empty() {
        // In one order, so that two pipelines' batches never wait for each other.
        let mut marks: Vec<_> = marks.iter().collect();
        marks.sort();
        let streams: Vec<&str> = marks.iter().map(|(stream, _)| stream.as_str()).collect();
        let seqs: Vec<i64> = marks
            .iter()
            .map(|(_, seq)| i64::try_from(*seq).unwrap_or(i64::MAX))
            .collect();
        // No record of the streams is behind the batch yet, so its end is where the log must have come to before a
        // mark is of no use.
        let raise = "INSERT INTO corrente.streams (pipeline, topic, partition, stream, seq, cluster, last_offset) \
                     SELECT $1, $2, $3, *, $6, $7 FROM unnest($4::text[], $5::bigint[]) \
                     ON CONFLICT (pipeline, topic, partition, stream) \
                     DO UPDATE SET seq = greatest(corrente.streams.seq, excluded.seq), cluster = excluded.cluster, \
                     last_offset = excluded.last_offset, updated_at = now()";
        let raise = statements.get(transaction, raise).await?;
        let last = batch.next_offset - 1;
        transaction
            .execute(
                &raise,
                &[&pipeline, &topic, &partition, &streams, &seqs, &cluster, &last],
            )
            .await?;
    }
    let advance = "UPDATE corrente.offsets SET next_offset = $5, last_timestamp = $6, last_key_crc = $7, \
                   last_payload_crc = $8, updated_at = now() \
                   WHERE pipeline = $1 AND cluster = $2 AND topic = $3 AND partition = $4";
    let advance = statements.get(transaction, advance).await?;
    transaction
        .execute(
            &advance,
            &[
                &pipeline,
                &cluster,
                &topic,
                &partition,
                &batch.next_offset,
                &batch.last.timestamp,
                &batch.last.key_crc.map(i64::from),
                &batch.last.payload_crc.map(i64::from),
            ],
        )
        .await?;
    Ok(())
}
