//! The operator against a real API server, its controllers and nodes.
//!
//! These tests need a cluster, and are ignored without one: `CORRENTE_TEST_KUBECONFIG` names the file that
//! leads to it. Each has a namespace of its own, runs the operator within itself and for that namespace
//! alone, and clears up behind itself. The workers' place is taken by an image that only waits, so that
//! pods run and nothing is polled.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests may fail loudly, their helpers too"
)]

mod gate;
mod idle;
mod reconcile;
mod referee;
mod world;
