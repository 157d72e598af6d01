//! Logs: one line per event on standard error.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

/// The environment variable that sets what is logged, such as `info` or `corrente_poller=debug,warn`.
pub const FILTER_VARIABLE: &str = "CORRENTE_LOG";

/// Starts logging, at `default` where [`FILTER_VARIABLE`] says nothing. JSON unless standard error is a
/// terminal. A second call changes nothing.
pub fn init(default: &str) {
    let filter = EnvFilter::try_from_env(FILTER_VARIABLE).unwrap_or_else(|_| EnvFilter::new(default));
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    // An error here only says that logging is on already.
    let _ = if std::io::stderr().is_terminal() {
        registry.with(layer).try_init()
    } else {
        registry.with(layer.json().flatten_event(true)).try_init()
    };
}
