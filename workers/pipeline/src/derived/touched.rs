//! Which stretches of which meters a batch has touched.
//!
//! A row touches the windows that it is in; and where counters are concerned, also those between the reading before it and
//! the one after it, which are known only from the table. Rows that lie near each other make one stretch, so that a batch
//! which holds a late drain beside what is live does not read back everything in between.

use std::collections::{BTreeMap, HashMap};

use corrente_record::View;

use super::{SLOT_SLACK, instant, plan::Plan};

/// A stretch of time, in milliseconds since the epoch, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// The least and the greatest `ts` of its rows.
    pub ts: (i64, i64),
    /// When the first and the last of them was; see [`instant`].
    pub at: (i64, i64),
}

impl Stretch {
    fn of(ts: i64, at: i64) -> Self {
        Self {
            ts: (ts, ts),
            at: (at, at),
        }
    }

    fn near(&self, other: &Self, apart: i64) -> bool {
        other.ts.0.saturating_sub(self.ts.1) <= apart && self.ts.0.saturating_sub(other.ts.1) <= apart
    }

    fn join(&mut self, other: &Self) {
        self.ts = (self.ts.0.min(other.ts.0), self.ts.1.max(other.ts.1));
        self.at = (self.at.0.min(other.at.0), self.at.1.max(other.at.1));
    }
}

/// What a batch has touched.
#[derive(Clone, Debug, Default)]
pub struct Touched {
    meters: HashMap<String, Vec<Stretch>>,
}

impl Touched {
    /// A row is going to be stored.
    pub fn observe(&mut self, plan: &Plan, view: &View<'_>) {
        if view
            .fields
            .iter()
            .any(|(name, _)| plan.metrics.iter().any(|metric| metric.name == *name))
        {
            let at = instant(view.ts.0, view.slot.map(|slot| slot.0));
            self.add(plan, &view.meter, view.ts.0, at);
        }
    }

    /// The windows around an instant are to be made anew.
    pub fn add(&mut self, plan: &Plan, meter: &str, ts: i64, at: i64) {
        let new = Stretch::of(ts, at);
        let apart = Self::apart(plan);
        match self.meters.get_mut(meter) {
            // Rows come mostly in their order: the stretch that grew last grows.
            Some(stretches) => match stretches.iter_mut().rev().find(|known| known.near(&new, apart)) {
                Some(known) => known.join(&new),
                None => stretches.push(new),
            },
            None => {
                self.meters.insert(meter.to_owned(), vec![new]);
            }
        }
    }

    /// The windows of all readings between two instants are to be made anew, whatever lies between them.
    pub fn stretch(&mut self, meter: &str, first: i64, last: i64) {
        let stretch = Stretch {
            ts: (first, last),
            // As far as their slots may be from when they were read.
            at: (first.saturating_sub(SLOT_SLACK), last.saturating_add(SLOT_SLACK)),
        };
        self.meters.entry(meter.to_owned()).or_default().push(stretch);
    }

    /// Rows that are further apart than this, in milliseconds, make stretches of their own.
    fn apart(plan: &Plan) -> i64 {
        plan.longest().saturating_mul(2)
    }

    /// Whether nothing was touched.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.meters.is_empty()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.meters.clear();
    }

    /// What was touched, in the order of the meters' names, which is the order in which they are to be locked.
    #[must_use]
    pub fn stretches(&self, plan: &Plan) -> BTreeMap<&str, Vec<Stretch>> {
        let apart = Self::apart(plan);
        let joined = self.meters.iter().map(|(meter, stretches)| {
            let mut sorted = stretches.clone();
            sorted.sort_by_key(|stretch| stretch.ts);
            let mut joined: Vec<Stretch> = vec![];
            for stretch in sorted {
                match joined.last_mut().filter(|last| last.near(&stretch, apart)) {
                    Some(last) => last.join(&stretch),
                    None => joined.push(stretch),
                }
            }
            (meter.as_str(), joined)
        });
        joined.collect()
    }
}

#[cfg(test)]
mod tests {
    use corrente_config::derived::{DerivedConfig, WindowsConfig};

    use super::*;

    fn plan() -> Plan {
        Plan::new(&DerivedConfig {
            windows: vec![WindowsConfig {
                table: "w".to_owned(),
                interval_millis: 900_000,
                metrics: vec!["energy".to_owned()],
                expected_every_millis: None,
                retention: None,
            }],
            ..DerivedConfig::default()
        })
    }

    #[test]
    fn near_rows_make_one_stretch_in_whatever_order() {
        let plan = plan();
        let mut touched = Touched::default();
        let minutes = [0, 5, 20, 400, 430, 415, 60, 800];
        for minute in minutes.iter().chain(minutes.iter().rev()) {
            touched.add(&plan, "a", minute * 60_000 + 7, minute * 60_000);
        }
        touched.add(&plan, "B", 5, 5);
        let stretches = touched.stretches(&plan);
        assert_eq!(stretches.keys().copied().collect::<Vec<_>>(), ["B", "a"]);
        let spans: Vec<_> = stretches["a"]
            .iter()
            .map(|stretch| (stretch.at.0 / 60_000, stretch.at.1 / 60_000))
            .collect();
        assert_eq!(spans, [(0, 20), (60, 60), (400, 430), (800, 800)]);
        assert!(
            stretches["a"]
                .iter()
                .all(|stretch| stretch.ts.0 == stretch.at.0 + 7)
        );
        assert!(!touched.is_empty());
        touched.clear();
        assert!(touched.is_empty());
    }

    #[test]
    fn a_row_without_the_metrics_touches_nothing() {
        let plan = plan();
        let mut touched = Touched::default();
        for (fields, empty) in [
            (r#""quality":"failed""#, true),
            (r#""power":1"#, true),
            (r#""energy":1"#, false),
        ] {
            let json = format!(
                r#"{{"ts":"2026-11-20T22:20:00.2Z","slot":"2026-11-20T22:20:00Z","meter":"m",{fields}}}"#
            );
            touched.observe(&plan, &View::parse(json.as_bytes()).unwrap());
            assert_eq!(touched.is_empty(), empty, "{fields}");
        }
        let stretch = touched.stretches(&plan)["m"][0];
        assert_eq!(stretch.ts.0 - stretch.at.0, 200);
    }
}
