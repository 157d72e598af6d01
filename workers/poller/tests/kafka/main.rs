//! The Kafka producer: against librdkafka's own mock of a cluster, and against a real broker where
//! `CORRENTE_TEST_KAFKA` and its like name one (`e2e/stack.sh env`; `cargo nextest run --run-ignored all`).
#![cfg(feature = "kafka")]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod mock;
mod real;
mod secure;
mod support;
mod topic;
