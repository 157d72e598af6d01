//! The worker as a whole: on the in-process broker and SQLite always; on real PostgreSQL with TimescaleDB
//! and real Kafka where `CORRENTE_TEST_POSTGRES` and `CORRENTE_TEST_KAFKA` name them (`--run-ignored`).
//!
//! Each test has a schema, a pipeline and a topic of its own, and waits on conditions.

mod chaos;
mod database;
mod kafka;
mod postgres;
mod refused;
mod sqlite;
mod support;
mod topic;
