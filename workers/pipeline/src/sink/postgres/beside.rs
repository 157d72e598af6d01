//! What is written beside the rows, in their transaction: tables that are derived from them.

use corrente_record::View;
use futures::future::BoxFuture;
use tokio_postgres::Transaction;

use crate::{batch::Place, sink::SinkError};

/// Something that is kept in step with the rows.
///
/// A transaction that fails is begun again, from [`Beside::begin`] on, and nothing of it may be left here.
pub trait Beside: Send {
    /// A transaction of a partition begins.
    fn begin(&mut self, place: &Place);

    /// A row of the batch is in the table. Each row that the transaction stores is told once, in the order of the
    /// offsets; those that are set aside are not told.
    fn observe(&mut self, row: &View<'_>);

    /// Writes what follows from the rows, after them and before the offset.
    ///
    /// # Errors
    /// The transaction is rolled back then, and begun again after a while.
    fn write<'a>(&'a mut self, transaction: &'a Transaction<'_>) -> BoxFuture<'a, Result<(), SinkError>>;
}
