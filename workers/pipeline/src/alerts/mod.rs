//! Thresholds on metrics, and their alerts.
//!
//! 1. [`threshold`]: from values to alerts that begin and end, without IO; [`watch`]: for all values of a batch.
//! 2. The sink evaluates them in the transaction that stores the values: where each meter stands, and the alerts that have
//!    begun or ended, are rows of its tables. So an alert is neither lost nor made twice, whatever dies.
//! 3. [`deliver`]: takes them from there to a Kafka topic and to an Alertmanager, at least once, under ids that follow from
//!    what the alert is: pipeline, threshold, meter, and when it began.
//!
//! This is the only part with a watermark: a value from before the last one that was looked at is left alone. What was
//! said of a moment cannot be taken back.

#[cfg(all(feature = "kafka", feature = "postgres"))]
pub mod deliver;
pub mod message;
pub mod threshold;
pub mod watch;
