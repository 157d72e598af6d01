//! Where rows go: one narrow trait, and what stands behind it.
//!
//! The sink is the truth of how far a partition is stored. It keeps, with the rows and in the same
//! transaction, one row per partition: the next offset, the epoch of the claim that may write, and the
//! fingerprint of the last message; and one mark per stream. Whoever takes a partition raises the epoch,
//! so that a worker that lost the partition and does not know it yet is refused.

use std::{collections::HashMap, future::Future, sync::Arc};

use crate::{
    assignment::Position,
    batch::{Batch, Place, Sorted},
    fault::{Fault, FaultKind},
};

#[cfg(feature = "amqp")]
pub mod amqp;
#[cfg(feature = "cassandra")]
pub mod cassandra;
pub mod columns;
#[cfg(feature = "influxdb")]
pub mod influx;
pub mod message;
#[cfg(feature = "mongodb")]
pub mod mongo;
#[cfg(feature = "mqtt")]
pub mod mqtt;
pub mod outside;
#[cfg(feature = "postgres")]
pub mod postgres;
pub mod record_id;
pub mod sqlite;
#[cfg(feature = "tls")]
pub mod tls;

/// What the sink knows of a partition, at the time of the claim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claimed {
    /// The epoch under which batches are stored from now on; earlier ones are refused.
    pub epoch: i64,
    /// How far the partition is stored; `None` where nothing of it ever was.
    pub position: Option<Position>,
    /// The highest stored `seq` of each stream.
    pub marks: HashMap<String, u64>,
}

/// What became of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// Rows that are in the table.
    pub rows: u64,
    /// Records that are among the dead letters.
    pub dead_letters: u64,
    /// Records that the table had already.
    pub duplicates: u64,
    /// Messages without payload.
    pub tombstones: u64,
    /// Records that a transformation left out.
    pub dropped: u64,
    /// The streams' new high-water marks.
    pub marks: Vec<(String, u64)>,
}

impl Stored {
    /// What became of a batch of which so many rows were stored and so many records set aside.
    #[must_use]
    pub fn new(rows: u64, dead_letters: u64, sorted: Sorted<'_>) -> Self {
        Self {
            rows,
            dead_letters,
            duplicates: sorted.duplicates,
            tombstones: sorted.tombstones,
            dropped: sorted.dropped,
            marks: sorted.marks,
        }
    }
}

/// Why the sink did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// Another worker has the partition, or the row is not where we left it. The batch must be dropped and
    /// the partition claimed again.
    #[error("{0}")]
    Fenced(String),
    /// Something that passes, or that a person must put right; the same is tried again for ever.
    #[error("{0}")]
    Retry(String),
    /// The same, where it is known what sort of fault it is.
    #[error("{}", .0.reason)]
    Fault(Fault),
}

impl SinkError {
    /// The other side cannot be reached, or does not answer.
    #[must_use]
    pub fn unreachable(reason: String) -> Self {
        Self::Fault(Fault {
            kind: FaultKind::Unreachable,
            reason,
        })
    }

    /// The fault, for what is to be tried again.
    #[must_use]
    pub fn into_fault(self) -> Fault {
        match self {
            Self::Fault(fault) => fault,
            Self::Fenced(reason) | Self::Retry(reason) => Fault {
                kind: FaultKind::Other,
                reason,
            },
        }
    }
}

/// A place to store rows in, exactly once.
pub trait Sink: Send + Sized + 'static {
    /// Makes sure that the database answers and that the tables are there.
    ///
    /// # Errors
    /// [`SinkError::Retry`] or [`SinkError::Fault`].
    fn open(&mut self) -> impl Future<Output = Result<(), SinkError>> + Send;

    /// Takes a partition over: raises its epoch and tells how far it is stored.
    ///
    /// # Errors
    /// [`SinkError::Retry`] or [`SinkError::Fault`].
    fn claim(&mut self, place: &Place) -> impl Future<Output = Result<Claimed, SinkError>> + Send;

    /// Stores a batch: rows, dead letters, marks and offset, all or nothing. A batch whose storing was
    /// not confirmed may be stored again: the sink recognises it.
    ///
    /// # Errors
    /// [`SinkError::Fenced`] where the partition is not ours any more, else as for the others.
    fn store(&mut self, batch: &Arc<Batch>) -> impl Future<Output = Result<Stored, SinkError>> + Send;

    /// Drops what need not be known of a partition any more, whose log begins at `low`.
    ///
    /// # Errors
    /// As for the others.
    fn tidy(&mut self, place: &Place, low: i64) -> impl Future<Output = Result<(), SinkError>> + Send {
        let _ = (place, low);
        std::future::ready(Ok(()))
    }

    /// Another writer to the same place, which works beside this one: batches of several partitions are stored at
    /// the same time then. `None` where there can be one alone.
    fn another(&self) -> Option<Self> {
        None
    }
}
