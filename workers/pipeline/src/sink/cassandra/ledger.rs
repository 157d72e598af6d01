//! How far each partition is stored: a row of `corrente_offsets` for each pipeline, cluster, topic and partition, with
//! the next offset, the epoch of the claim that may move it, the fingerprint of the last message, and the streams'
//! high-water marks. It moves by lightweight transactions, so that of two workers that think they own a partition the
//! later one alone gets on.

use std::collections::HashMap;

use scylla::{
    client::session::Session,
    statement::{Consistency, SerialConsistency, Statement},
    value::{CqlValue, Row},
};

use super::{Failure, table::change};
use crate::{
    assignment::{Fingerprint, Position},
    batch::{Batch, Place},
    sink::Claimed,
};

/// What the row says of a batch.
#[derive(Debug, PartialEq, Eq)]
pub enum Fence {
    /// It is moved past the batch; or was already, by a try whose answer was lost.
    Stored,
    /// Another worker has the partition, for this reason.
    Closed(String),
}

/// Who keeps an account of what.
pub struct Ledger {
    /// The keyspace.
    pub keyspace: String,
    /// The pipeline, with its namespace.
    pub pipeline: String,
}

/// Where a row is: pipeline, cluster, topic and partition.
type Key<'a> = (&'a str, &'a str, &'a str, i32);

type Found = (
    Option<i64>,
    Option<i64>,
    Option<i64>,
    Option<i64>,
    Option<i64>,
    Option<HashMap<String, i64>>,
);

fn serial(cql: String) -> Statement {
    let mut statement = Statement::new(cql);
    statement.set_serial_consistency(Some(SerialConsistency::Serial));
    statement
}

/// Whether a conditional update was carried out.
fn applied(row: &Row) -> bool {
    matches!(row.columns.first(), Some(Some(CqlValue::Boolean(true))))
}

impl Ledger {
    fn key<'a>(&'a self, place: &'a Place) -> Key<'a> {
        let partition = &place.partition;
        (
            &self.pipeline,
            &place.cluster,
            &partition.topic,
            partition.partition,
        )
    }

    /// Makes the table where it is missing.
    pub async fn ensure(&self, session: &Session) -> Result<(), Failure> {
        let cql = format!(
            "CREATE TABLE IF NOT EXISTS {}.corrente_offsets (pipeline text, cluster text, topic text, partition int, \
             epoch bigint, next_offset bigint, last_timestamp bigint, last_key_crc bigint, last_payload_crc bigint, \
             marks map<text, bigint>, PRIMARY KEY ((pipeline, cluster, topic, partition)))",
            self.keyspace
        );
        change(session, cql).await
    }

    async fn found(&self, session: &Session, place: &Place) -> Result<Option<Found>, Failure> {
        let mut select = Statement::new(format!(
            "SELECT epoch, next_offset, last_timestamp, last_key_crc, last_payload_crc, marks \
             FROM {}.corrente_offsets WHERE pipeline = ? AND cluster = ? AND topic = ? AND partition = ?",
            self.keyspace
        ));
        // Sees what a conditional update is about to have done.
        select.set_consistency(Consistency::Serial);
        let rows = session
            .query_unpaged(select, self.key(place))
            .await?
            .into_rows_result()?;
        Ok(rows.maybe_first_row::<Found>()?)
    }

    /// Takes a partition over.
    pub async fn claim(&self, session: &Session, place: &Place) -> Result<Claimed, Failure> {
        let (pipeline, cluster, topic, partition) = self.key(place);
        let keyspace = &self.keyspace;
        loop {
            let Some((epoch, next, timestamp, key, payload, marks)) = self.found(session, place).await?
            else {
                let insert = serial(format!(
                    "INSERT INTO {keyspace}.corrente_offsets (pipeline, cluster, topic, partition, epoch) \
                     VALUES (?, ?, ?, ?, 0) IF NOT EXISTS"
                ));
                session
                    .query_unpaged(insert, (pipeline, cluster, topic, partition))
                    .await?;
                continue;
            };
            let raised = epoch.unwrap_or(0) + 1;
            let update = serial(format!(
                "UPDATE {keyspace}.corrente_offsets SET epoch = ? WHERE pipeline = ? AND cluster = ? AND topic = ? \
                 AND partition = ? IF epoch = ? AND next_offset = ?"
            ));
            let values = (raised, pipeline, cluster, topic, partition, epoch, next);
            let answer = session.query_unpaged(update, values).await?.into_rows_result()?;
            if !answer.maybe_first_row::<Row>()?.is_some_and(|row| applied(&row)) {
                // Another worker claims it too, and the last one has it; or its owner has moved the offset meanwhile.
                continue;
            }
            let crc = |column: Option<i64>| column.and_then(|crc| u32::try_from(crc).ok());
            let last = Fingerprint {
                timestamp,
                key_crc: crc(key),
                payload_crc: crc(payload),
            };
            let nothing = Fingerprint {
                timestamp: None,
                key_crc: None,
                payload_crc: None,
            };
            let marks = marks.unwrap_or_default().into_iter();
            return Ok(Claimed {
                epoch: raised,
                position: next.map(|next_offset| Position {
                    next_offset,
                    last: Some(last).filter(|last| *last != nothing),
                }),
                marks: marks
                    .map(|(stream, seq)| (stream, u64::try_from(seq).unwrap_or(0)))
                    .collect(),
            });
        }
    }

    /// Moves the offset and the marks past a batch whose rows are stored.
    pub async fn advance(
        &self,
        session: &Session,
        batch: &Batch,
        marks: &[(String, u64)],
    ) -> Result<Fence, Failure> {
        let (pipeline, cluster, topic, partition) = self.key(&batch.place);
        let update = serial(format!(
            "UPDATE {}.corrente_offsets SET next_offset = ?, last_timestamp = ?, last_key_crc = ?, \
             last_payload_crc = ?, marks = marks + ? WHERE pipeline = ? AND cluster = ? AND topic = ? AND partition = ? \
             IF epoch = ? AND next_offset = ?",
            self.keyspace
        ));
        let marks: HashMap<&str, i64> = marks
            .iter()
            .map(|(stream, seq)| (stream.as_str(), i64::try_from(*seq).unwrap_or(i64::MAX)))
            .collect();
        let values = (
            batch.next_offset,
            batch.last.timestamp,
            batch.last.key_crc.map(i64::from),
            batch.last.payload_crc.map(i64::from),
            marks,
            pipeline,
            cluster,
            topic,
            partition,
            batch.epoch,
            batch.previous,
        );
        let answer = session.query_unpaged(update, values).await?.into_rows_result()?;
        if answer.maybe_first_row::<Row>()?.is_some_and(|row| applied(&row)) {
            return Ok(Fence::Stored);
        }
        Ok(match self.found(session, &batch.place).await? {
            None => Fence::Closed("its row in corrente_offsets is gone".to_owned()),
            Some((Some(epoch), next, ..)) if epoch == batch.epoch => {
                if next == Some(batch.next_offset) {
                    Fence::Stored
                } else {
                    Fence::Closed(format!(
                        "the next offset is {next:?} in corrente_offsets, and was {:?} here: somebody changed it",
                        batch.previous
                    ))
                }
            }
            Some((epoch, ..)) => Fence::Closed(format!(
                "another worker has taken it: the epoch is {epoch:?}, ours is {}",
                batch.epoch
            )),
        })
    }
}
