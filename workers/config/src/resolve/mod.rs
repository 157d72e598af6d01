//! Resources to configuration files, with every check that needs a look at several documents.
//!
//! Both halves are pure and used alike by the operator, by `corrente validate` and by `corrente local`:
//! 1. [`resolve_poller`]: a MeterPoller and the profiles it names to what a shard is told.
//! 2. [`resolve_pipeline`]: a TelemetryPipeline and the MeterPollers behind its topics to what its worker
//!    is told, with the columns that the profiles declare.

mod columns;
mod derived;
mod fields;
mod once;
mod pipeline;
mod poller;
mod tables;
mod transform;

pub use once::dead_letter_topic;
pub use pipeline::{ONE_SINK, resolve_pipeline};
pub(crate) use poller::meters;
pub use poller::{ResolvedPoller, resolve_poller};
