//! What every process of Corrente shares, so that a poller, a pipeline worker and the operator look alike
//! to the person who runs them.
//!
//! 1. [`logging`]: one line per event on standard error, JSON in a pod, text in a terminal.
//! 2. [`metrics`]: the recorder behind `/metrics`.
//! 3. [`http`]: `/metrics`, `/livez`, `/readyz` and `/status`.
//! 4. [`shutdown`]: SIGTERM and SIGINT as one token.
//! 5. [`broker`]: what the workers need of a broker, and [`memory`], a broker within the process.
//! 6. `kafka` (a feature): how the Kafka clients of the workers are let in by a cluster.

pub mod broker;
pub mod http;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod logging;
pub mod memory;
pub mod metrics;
pub mod shutdown;
