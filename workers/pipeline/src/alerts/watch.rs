//! The values of a batch that thresholds look at, meter by meter in the order of time: what every sink with alerts
//! does alike.

use std::collections::{BTreeMap, HashMap};

use corrente_config::alerts::ThresholdConfig;
use corrente_record::View;

use super::threshold::{Change, Standing};
use crate::derived::instant;

/// Where meters stand, by meter and the threshold's name.
pub type Standings = HashMap<(String, String), Standing>;

/// Thresholds, and the values of a batch that they look at.
#[derive(Clone, Debug)]
pub struct Watch {
    /// The thresholds.
    pub thresholds: Vec<ThresholdConfig>,
    /// By meter: the threshold's place, when, and what.
    values: BTreeMap<String, Vec<(usize, i64, f64)>>,
}

/// What became of a batch's values.
#[derive(Clone, Debug, Default)]
pub struct Seen<'a> {
    /// What has begun or ended: the meter, the threshold, and how.
    pub changes: Vec<(String, &'a ThresholdConfig, Change)>,
    /// Where each meter stands now: the meter, the threshold's name, and where.
    pub after: Vec<(String, &'a str, Standing)>,
    /// How many values came too late to be looked at.
    pub late: u64,
}

impl Watch {
    /// Watches these thresholds.
    #[must_use]
    pub fn new(thresholds: Vec<ThresholdConfig>) -> Self {
        Self {
            thresholds,
            values: BTreeMap::new(),
        }
    }

    /// A batch begins.
    pub fn clear(&mut self) {
        self.values.clear();
    }

    /// A row is stored.
    pub fn observe(&mut self, view: &View<'_>) {
        for (at, threshold) in self.thresholds.iter().enumerate() {
            if let Some(value) = view.field(&threshold.metric).and_then(|value| value.as_f64()) {
                let when = instant(view.ts.0, view.slot.map(|slot| slot.0));
                match self.values.get_mut(&*view.meter) {
                    Some(values) => values.push((at, when, value)),
                    None => {
                        self.values
                            .insert(view.meter.clone().into_owned(), vec![(at, when, value)]);
                    }
                }
            }
        }
    }

    /// The meters whose values are going to be looked at.
    pub fn meters(&self) -> impl Iterator<Item = &String> {
        self.values.keys()
    }

    /// Looks at the batch's values, and forgets them. `before` says where the meters stood.
    pub fn look(&mut self, mut before: Standings) -> Seen<'_> {
        let mut seen = Seen::default();
        for (meter, mut values) in std::mem::take(&mut self.values) {
            values.sort_by_key(|(threshold, at, _)| (*threshold, *at));
            for of_one in values.chunk_by(|a, b| a.0 == b.0) {
                let Some(threshold) = of_one.first().and_then(|(at, ..)| self.thresholds.get(*at)) else {
                    continue;
                };
                let mut standing = before
                    .remove(&(meter.clone(), threshold.name.clone()))
                    .unwrap_or_default();
                for (_, at, value) in of_one {
                    match standing.look(threshold, *at, *value) {
                        Ok(change) => seen
                            .changes
                            .extend(change.map(|change| (meter.clone(), threshold, change))),
                        Err(_) => seen.late += 1,
                    }
                }
                seen.after.push((meter.clone(), &threshold.name, standing));
            }
        }
        seen
    }
}

#[cfg(test)]
mod tests {
    use corrente_config::alerts::Side;

    use super::*;

    #[test]
    fn each_meter_and_threshold_is_looked_at_in_the_order_of_time() {
        let threshold = |name: &str, side, bound| ThresholdConfig {
            name: name.to_owned(),
            metric: "v".to_owned(),
            side,
            bound,
            clear: bound,
            hold_millis: 0,
            labels: BTreeMap::new(),
            summary: None,
        };
        let mut watch = Watch::new(vec![
            threshold("high", Side::Above, 10.0),
            threshold("low", Side::Below, 1.0),
        ]);
        for (meter, second, v) in [("b", 2, "11"), ("b", 1, "9"), ("a", 3, "0"), ("a", 4, "\"text\"")] {
            let json = format!(r#"{{"ts":"2026-11-20T22:20:0{second}Z","meter":"{meter}","v":{v}}}"#);
            watch.observe(&View::parse(json.as_bytes()).unwrap());
        }
        assert_eq!(watch.meters().collect::<Vec<_>>(), ["a", "b"]);
        let late = Standing {
            seen: Some(i64::MAX),
            ..Standing::default()
        };
        let before = Standings::from([(("b".to_owned(), "low".to_owned()), late)]);
        let seen = watch.look(before);
        let changes: Vec<_> = seen
            .changes
            .iter()
            .map(|(meter, threshold, change)| {
                let begins = matches!(change, Change::Begins { .. });
                (meter.as_str(), threshold.name.as_str(), begins)
            })
            .collect();
        assert_eq!(changes, [("a", "low", true), ("b", "high", true)]);
        assert_eq!((seen.after.len(), seen.late), (4, 2));
        assert_eq!(watch.look(Standings::new()).after.len(), 0, "they are forgotten");
    }
}
