//! What is written beside the rows, in their transaction: tables that are derived from them.

use corrente_config::PipelineConfig;
use corrente_record::View;
use futures::future::BoxFuture;
use tokio_postgres::{Client, Transaction};

use super::{care::step::InStep, derivation::Derivation};
use crate::{batch::Place, sink::SinkError};

/// What a pipeline keeps beside its rows, in the order in which it is written.
#[must_use]
pub fn of(config: &PipelineConfig) -> Vec<Box<dyn Beside>> {
    let derivation = Derivation::new(config).map(|derivation| Box::new(derivation) as Box<dyn Beside>);
    let in_step = InStep::new(config).map(|in_step| Box::new(in_step) as Box<dyn Beside>);
    derivation.into_iter().chain(in_step).collect()
}

/// Something that is kept in step with the rows.
///
/// A transaction that fails is begun again, from [`Beside::begin`] on, and nothing of it may be left here.
pub trait Beside: Send {
    /// A connection is new: makes the tables that are missing.
    ///
    /// # Errors
    /// The connection is given up then, and made anew after a while.
    fn prepare<'a>(&'a mut self, _client: &'a mut Client) -> BoxFuture<'a, Result<(), SinkError>> {
        Box::pin(async { Ok(()) })
    }

    /// A transaction of a partition begins.
    fn begin(&mut self, place: &Place);

    /// A row of the batch is in the table. Each row that the transaction stores is told once, in the order of the
    /// offsets; those that are set aside are not told.
    fn observe(&mut self, row: &View<'_>);

    /// A record of the batch is set aside; its payload, which need not be a record at all. Gives whether it was counted,
    /// and is to be [taken back](Beside::taken_back) when it is stored after all.
    fn set_aside(&mut self, _payload: &[u8]) -> bool {
        false
    }

    /// A record that was set aside, and counted then, is set aside no more: it was replayed.
    fn taken_back(&mut self, _payload: &[u8]) {}

    /// Writes what follows from the rows, after them and before the offset.
    ///
    /// # Errors
    /// The transaction is rolled back then, and begun again after a while.
    fn write<'a>(&'a mut self, transaction: &'a Transaction<'_>) -> BoxFuture<'a, Result<(), SinkError>>;
}
