//! Stores the records of topics in a database, each exactly once.
//!
//! The cores, without IO:
//! 1. [`assignment`]: where to start reading a partition, and whether it is still the same topic;
//! 2. [`batcher`]: when messages become a batch;
//! 3. [`dedupe`]: which records the table has already;
//! 4. [`batch`]: from messages to what is stored in one transaction;
//! 5. [`transform`]: what is done to a record on its way;
//! 6. [`partition`]: these together, for one partition;
//! 7. [`derived`] and [`alerts`]: what follows from the rows, in windows of time and beyond thresholds;
//! 8. [`fault`]: how long to wait when the sink has a fault.
//!
//! At the rims: [`source`] reads from Kafka, [`sink`] stores, [`writer`] owns the sink's writers, [`mod@run`] is the main
//! loop, [`state`] answers `/livez`, `/readyz` and `/status`, `letters` looks after the dead letters,
//! and [`app`] is the process.
//!
//! *Exactly once* rests on the sink alone: it holds the next offset of each partition in the transaction
//! that stores the rows, behind an epoch that each new owner raises. The broker's own committed offsets
//! are for lag tools.

pub mod alerts;
pub mod assignment;
pub mod batch;
pub mod batcher;
pub mod dedupe;
pub mod derived;
pub mod fault;
pub mod partition;
pub mod run;
pub mod sink;
pub mod source;
pub mod state;
pub mod transform;
pub mod writer;

#[cfg(feature = "worker")]
pub mod app;
#[cfg(all(feature = "kafka", feature = "postgres"))]
pub mod letters;

pub use run::run;
pub use state::PipelineState;
