//! What is derived from the stored readings: the energy of counters, the demand, and other aggregates over windows of time.
//!
//! Windows are a function of the rows in the table and of nothing else: not of the order in which they came, nor of the
//! batches they came in. So a window that late data touch is made anew from the table, in the transaction that stores them,
//! and a spool that drains six hours late leaves what one that never waited would have left.
//!
//! 1. [`plan`]: what to derive, from the configuration.
//! 2. [`touched`]: which stretches of which meters a batch has touched.
//! 3. [`counter`]: what lies between two readings of a counter: a rise, a rollover, a reset, a swap.
//! 4. [`window`]: the readings of a stretch to its windows; [`job`]: for all stretches of a batch.
//!
//! Reading the table and writing the windows is the sink's.
//!
//! **When a reading was** is its slot, where it was read within [`SLOT_SLACK`] of it, else its `ts`: windows of meters that
//! are polled on the minute then have exactly the readings of their minutes, and what can be recalculated by hand from the
//! table agrees. **Their order** is that of `ts`, and of the values where that is equal: total, and the index's own.

pub mod counter;
pub mod job;
pub mod plan;
pub mod touched;
pub mod window;

/// How long after its slot a reading may have been read, in milliseconds, to be taken for one of that instant.
pub const SLOT_SLACK: i64 = 60_000;

/// When a reading was, in milliseconds since the epoch, from its `ts` and its slot.
#[must_use]
pub fn instant(ts: i64, slot: Option<i64>) -> i64 {
    slot.filter(|slot| (0..=SLOT_SLACK).contains(&ts.saturating_sub(*slot)))
        .unwrap_or(ts)
}

/// A row of the table, as far as windows need it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// When it was read, in milliseconds since the epoch: what rows are ordered by.
    pub ts: i64,
    /// When it was, for windows; see [`instant`].
    pub at: i64,
    /// The values of the plan's metrics, in its order.
    pub values: Vec<Option<f64>>,
    /// The plan's serial numbers, in its order.
    pub serials: Vec<Option<String>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_counts_where_it_was_kept() {
        for (ts, slot, at) in [
            (100_000, Some(100_000), 100_000),
            (100_250, Some(100_000), 100_000),
            (160_000, Some(100_000), 100_000),
            (160_001, Some(100_000), 160_001),
            (99_999, Some(100_000), 99_999),
            (100_250, None, 100_250),
        ] {
            assert_eq!(instant(ts, slot), at);
        }
    }
}
