//! Where records come from. The in-process broker is `corrente_runtime::memory`.

#[cfg(feature = "kafka")]
pub mod kafka;
