//! The field side against the simulator, on real sockets: what one fault costs, and whom.
//!
//! Every register holds a number that names its unit and its address, so that a value which belongs to another
//! register or another unit is seen in any record that it gets into.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod certificates;
#[path = "../common/mod.rs"]
mod common;
mod each_fault;
mod gateway;
mod plant;
mod read_only;
mod recorder;
mod registers;
