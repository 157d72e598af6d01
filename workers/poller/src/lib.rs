//! The poller.
pub mod spool;
