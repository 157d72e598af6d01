//! The poller: reads meters over Modbus and publishes a record of each poll to Kafka.
//!
//! In the order of a reading's life:
//! 1. [`setup`]: the configuration file becomes endpoints and meters.
//! 2. [`endpoint`]: one task per endpoint polls the meters behind it. Its [`agenda`] decides which one is next, by its
//!    slots, by how its unit has done lately ([`backoff`]), and by how long the line would be held ([`hold`]). In
//!    between it sleeps by the [`clock`], which has an [`alarm`] of the kernel.
//! 3. [`meter`]: one poll of one meter by its [`learned`] read plan, over a [`mod@line`], by a [`client`] that
//!    can only read.
//! 4. [`spool`]: every record passes through it, and is safe once it is in.
//! 5. [`publish`]: the spool is drained to the broker through a [`window`], each record written by an [`encode`]r
//!    in the format that is asked for, with a [`registry`] of schemas where it needs one; in a pod the broker is
//!    [`kafka`].
//!
//! [`run`] puts them together, [`state`] and [`observe`] say how they are.

pub mod agenda;
#[cfg(target_os = "linux")]
pub mod alarm;
pub mod backoff;
pub mod client;
pub mod clock;
pub mod encode;
pub mod endpoint;
pub mod formatter;
pub mod hold;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod learned;
pub mod line;
pub mod meter;
pub mod observe;
pub mod publish;
pub mod registry;
mod run;
pub mod setup;
pub mod spool;
pub mod state;
pub mod window;

pub use run::{run, run_with_registry};
pub use state::PollerState;
