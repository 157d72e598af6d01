//! The worker as a whole: on the in-process broker and SQLite always; on real PostgreSQL with TimescaleDB
//! and real Kafka where `CORRENTE_TEST_POSTGRES` and `CORRENTE_TEST_KAFKA` name them (`--run-ignored`).
//!
//! Each test has a schema, a pipeline and a topic of its own, and waits on conditions.

// The lints know helpers of a test as tests only within a test's own crate.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod alerts;
mod certificates;
mod chaos;
mod database;
mod derived;
mod encrypted;
mod faults;
mod guide;
mod kafka;
mod keyed;
mod letters;
mod lost;
mod mock;
mod names;
mod postgres;
mod refused;
mod remade;
// The servers that a test may kill, which the tests of chaos have too.
#[allow(dead_code)]
#[path = "../chaos/servers.rs"]
mod servers;
mod sinks;
mod sqlite;
mod support;
mod tables;
mod tables_guide;
mod topic;
mod upkeep;
