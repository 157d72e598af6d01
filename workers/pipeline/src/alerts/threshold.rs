//! One threshold over the values of one meter, in the order of time.
//!
//! ```text
//!             beyond the bound            for long enough            back at clear
//!   quiet  ------------------->  pending  --------------->  firing  ---------------> quiet
//!            <-------------------
//!              within the bound
//! ```

use corrente_config::alerts::{Side, ThresholdConfig};

/// Where a meter stands with a threshold. Instants are milliseconds since the epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The last value that was looked at: what is from before it, or from then, is late.
    pub seen: Option<i64>,
    /// Since when every value was beyond the bound.
    pub since: Option<i64>,
    /// The alert that has begun and not ended: when the bound was first broken.
    pub firing: Option<i64>,
}

/// What a value has brought about.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    /// An alert has begun.
    Begins {
        /// When the bound was first broken.
        started: i64,
        /// The value that made it an alert.
        value: f64,
    },
    /// It has ended.
    Ends {
        /// When the bound was first broken.
        started: i64,
        /// When the value was back.
        ended: i64,
        /// That value.
        value: f64,
    },
}

impl Standing {
    /// Looks at a value. `Err` where it comes too late to say something.
    ///
    /// # Errors
    /// [`Late`].
    pub fn look(&mut self, threshold: &ThresholdConfig, at: i64, value: f64) -> Result<Option<Change>, Late> {
        if self.seen.is_some_and(|seen| at <= seen) {
            return Err(Late);
        }
        self.seen = Some(at);
        let (beyond, back) = match threshold.side {
            Side::Above => (value > threshold.bound, value <= threshold.clear),
            Side::Below => (value < threshold.bound, value >= threshold.clear),
        };
        if let Some(started) = self.firing {
            if !back {
                return Ok(None);
            }
            self.firing = None;
            self.since = None;
            return Ok(Some(Change::Ends {
                started,
                ended: at,
                value,
            }));
        }
        if !beyond {
            self.since = None;
            return Ok(None);
        }
        let started = *self.since.get_or_insert(at);
        let held = u64::try_from(at.saturating_sub(started)).unwrap_or(0);
        if held < threshold.hold_millis {
            return Ok(None);
        }
        self.firing = Some(started);
        Ok(Some(Change::Begins { started, value }))
    }
}

/// A value from before the last one that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Late;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn threshold(side: Side, bound: f64, clear: f64, hold_millis: u64) -> ThresholdConfig {
        ThresholdConfig {
            name: "t".to_owned(),
            metric: "v".to_owned(),
            side,
            bound,
            clear,
            hold_millis,
            labels: BTreeMap::new(),
            summary: None,
        }
    }

    /// What values at 0, 1, 2... bring about: `+` and when it started, `-` and when it ended.
    fn run(threshold: &ThresholdConfig, values: &[f64]) -> String {
        let mut standing = Standing::default();
        let changes = values.iter().enumerate().filter_map(|(at, value)| {
            Some(match standing.look(threshold, at as i64, *value).unwrap()? {
                Change::Begins { started, .. } => format!("+{started}@{at}"),
                Change::Ends { ended, .. } => format!("-{ended}"),
            })
        });
        changes.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn begins_and_ends_with_hysteresis() {
        let above = threshold(Side::Above, 240.0, 235.0, 0);
        for (values, expected) in [
            (&[239.0, 240.0, 240.1, 238.0, 241.0, 235.0, 240.0][..], "+2@2 -5"),
            (&[300.0, 300.0], "+0@0"),
            (&[300.0, 0.0, 300.0, 0.0], "+0@0 -1 +2@2 -3"),
        ] {
            assert_eq!(run(&above, values), expected, "{values:?}");
        }
        let below = threshold(Side::Below, 207.0, 210.0, 0);
        assert_eq!(run(&below, &[207.0, 206.0, 209.0, 210.0]), "+1@1 -3");
    }

    #[test]
    fn holds_before_it_begins() {
        let held = threshold(Side::Above, 10.0, 10.0, 3);
        for (values, expected) in [
            (&[11.0, 11.0, 11.0, 11.0, 9.0][..], "+0@3 -4"),
            (&[11.0, 11.0, 10.0, 11.0, 11.0, 11.0], ""),
            (&[0.0, 11.0, 11.0, 11.0, 11.0], "+1@4"),
        ] {
            assert_eq!(run(&held, values), expected, "{values:?}");
        }
    }

    #[test]
    fn what_is_late_changes_nothing() {
        let above = threshold(Side::Above, 10.0, 10.0, 0);
        let mut standing = Standing::default();
        standing.look(&above, 5, 1.0).unwrap();
        let before = standing;
        assert_eq!(standing.look(&above, 5, 11.0), Err(Late));
        assert_eq!(standing.look(&above, 4, 11.0), Err(Late));
        assert_eq!(standing, before);
    }

    proptest! {
        #[test]
        fn alerts_begin_and_end_in_turn(values in proptest::collection::vec(0f64..20.0, 0..60), hold in 0u64..4, clear in 0f64..10.0) {
            let threshold = threshold(Side::Above, 10.0, clear, hold);
            let mut standing = Standing::default();
            let mut open: Option<i64> = None;
            for (at, value) in values.iter().enumerate() {
                let at = at as i64;
                match standing.look(&threshold, at, *value).unwrap() {
                    Some(Change::Begins { started, value }) => {
                        prop_assert!(open.is_none() && value > 10.0 && at - started >= hold as i64);
                        prop_assert!((started..=at).all(|at| values[at as usize] > 10.0));
                        open = Some(started);
                    }
                    Some(Change::Ends { started, ended, value }) => {
                        prop_assert!(open == Some(started) && ended == at && value <= clear);
                        open = None;
                    }
                    None => {}
                }
                prop_assert_eq!(standing.firing, open);
            }
        }
    }
}
