//! The record: one poll of one meter, as it travels from the poller to the sink.
//!
//! 1. [`time`]: instants as whole milliseconds, written as RFC 3339.
//! 2. [`value`]: what a metric can be.
//! 3. [`name`] and [`reading`]: what a poll gives, and how it becomes flat JSON.
//! 4. [`view`]: the same JSON read back where it lies, and [`parse`], tolerant of records that others wrote.
//! 5. [`partition`]: which partition a meter's records go to, as Java clients choose it.
//!
//! The format is flat JSON because Kafka Connect, Telegraf and ksqlDB read it as it is:
//! `{"ts":"2026-11-20T22:20:00.123Z","meter":"feeder-12","slot":"2026-11-20T22:20:00.000Z",
//! "stream":"k7f3q2m9w4x1c","seq":8123,"quality":"good","voltage_l1_n":229.8}`.

pub mod name;
pub mod parse;
pub mod partition;
pub mod reader;
pub mod reading;
pub mod time;
pub mod value;
pub mod view;

mod json;
mod plain;

pub use name::Name;
pub use parse::{ParseError, Record};
pub use reader::Reader;
pub use reading::{Quality, Reading};
pub use time::Timestamp;
pub use value::Value;
pub use view::{ValueRef, View};

/// The record's own field names: no metric and no label may have one of them.
pub const RESERVED: [&str; 8] = [
    "ts", "meter", "slot", "stream", "seq", "quality", "skipped", "bad",
];
