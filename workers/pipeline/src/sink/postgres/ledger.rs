//! The worker's own tables, in the schema `corrente`: how far each partition is stored, the streams'
//! high-water marks, and the dead letters.
//!
//! `corrente.offsets` has a row per pipeline, cluster, topic and partition. A claim raises its epoch; a
//! batch locks it, and goes on only if epoch and offset are still its own. `corrente.streams` does not name
//! the cluster: a stream's id is its own everywhere, so records that reach the table by way of a second
//! cluster are recognised too.

use std::collections::HashMap;

use tokio_postgres::{Client, Error, Transaction};

use super::session::Statements;
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
";

/// Makes the tables where they are missing. A worker that finds them needs no right to make any.
pub async fn create(client: &mut Client) -> Result<(), Error> {
    let found = client
        .query_one(
            "SELECT to_regclass('corrente.offsets') IS NOT NULL AND to_regclass('corrente.streams') IS NOT NULL \
             AND to_regclass('corrente.dead_letters') IS NOT NULL",
            &[],
        )
        .await?;
    if found.try_get(0)? {
        return Ok(());
    }
    let transaction = client.transaction().await?;
    // IF NOT EXISTS alone lets two workers collide.
    transaction
        .batch_execute("SELECT pg_advisory_xact_lock(hashtextextended('corrente', 0))")
        .await?;
    transaction.batch_execute(TABLES).await?;
    transaction.commit().await
}

/// Takes a partition over.
pub async fn claim(client: &mut Client, pipeline: &str, place: &Place) -> Result<Claimed, Error> {
    let topic: &str = &place.partition.topic;
    let transaction = client.transaction().await?;
    // Waits for a batch of an earlier owner that is under way, and sees what it stored.
    let row = transaction
        .query_one(
            "INSERT INTO corrente.offsets (pipeline, cluster, topic, partition, epoch) VALUES ($1, $2, $3, $4, 1) \
             ON CONFLICT (pipeline, cluster, topic, partition) \
             DO UPDATE SET epoch = corrente.offsets.epoch + 1, updated_at = now() \
             RETURNING epoch, next_offset, last_timestamp, last_key_crc, last_payload_crc",
            &[&pipeline, &&*place.cluster, &topic, &place.partition.partition],
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

/// Stores what is set aside.
pub async fn dead_letters(
    transaction: &Transaction<'_>,
    pipeline: &str,
    place: &Place,
    letters: &[DeadLetter<'_>],
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
             (pipeline, cluster, topic, partition, message_offset, key, payload, sqlstate, column_name, reason) \
             SELECT $1, $2, $3, $4, * FROM unnest($5::bigint[], $6::bytea[], $7::bytea[], $8::text[], $9::text[], \
             $10::text[])",
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
        let raise = "INSERT INTO corrente.streams (pipeline, topic, partition, stream, seq) \
                     SELECT $1, $2, $3, * FROM unnest($4::text[], $5::bigint[]) \
                     ON CONFLICT (pipeline, topic, partition, stream) \
                     DO UPDATE SET seq = greatest(corrente.streams.seq, excluded.seq), updated_at = now()";
        let raise = statements.get(transaction, raise).await?;
        transaction
            .execute(&raise, &[&pipeline, &topic, &partition, &streams, &seqs])
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
