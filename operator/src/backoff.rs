//! How long to wait after a failure: longer each time, per object, and not all at the same moment.

use std::time::Duration;

use kube::Resource;
use xxhash_rust::xxh3::xxh3_64;

use crate::context::{Key, SharedMap};

/// The first wait.
const FIRST: Duration = Duration::from_millis(500);
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(300);

/// What an object is called here: by its kind too, since two of different kinds may have one name.
pub fn name_of<K: Resource<DynamicType = ()>>(object: &K) -> String {
    format!("{} {}", K::kind(&()), Key::of(object))
}

/// How often objects have failed in a row.
#[derive(Default)]
pub struct Backoffs(SharedMap<String, u32>);

impl Backoffs {
    /// Notes a failure of an object, and says when to try again.
    pub fn failed(&self, object: &str) -> Duration {
        let mut failures = self.0.lock();
        let count = failures.entry(object.to_owned()).or_default();
        *count = count.saturating_add(1);
        let wait = wait(object, *count);
        gauge(failures.len());
        wait
    }

    /// Notes that an object did not fail, or is gone.
    pub fn succeeded(&self, object: &str) {
        let mut failures = self.0.lock();
        if failures.remove(object).is_some() {
            gauge(failures.len());
        }
    }
}

fn gauge(objects: usize) {
    metrics::gauge!("corrente_operator_objects_in_backoff").set(crate::telemetry::as_f64(objects));
}

/// Doubles from 0.5 s to 5 min, and takes up to half of it off again. How much follows from the object
/// and the count, so that a thousand objects that failed together do not come back together.
fn wait(object: &str, failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let full = FIRST.saturating_mul(1 << doublings).min(LONGEST);
    let percent = u32::try_from(xxh3_64(format!("{object} {failures}").as_bytes()) % 51).unwrap_or(0);
    full - full * percent / 100
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    #[test]
    fn waits_longer_each_time_within_bounds() {
        for object in ["a", "b", "plant/site"] {
            for failures in 1..100 {
                let full = FIRST * 2_u32.pow((failures - 1).min(16));
                let waited = wait(object, failures);
                assert!(
                    waited <= full.min(LONGEST) && waited >= full.min(LONGEST) / 2,
                    "{failures}: {waited:?}"
                );
            }
        }
    }

    #[test]
    fn objects_that_failed_together_come_back_apart() {
        let waits: std::collections::BTreeSet<_> =
            (0..100).map(|at| wait(&format!("plant/{at}"), 8)).collect();
        assert!(waits.len() > 30, "{}", waits.len());
    }

    #[test]
    fn success_forgets_the_failures() {
        let backoffs = Backoffs::default();
        let first = backoffs.failed("a");
        backoffs.failed("a");
        backoffs.succeeded("a");
        assert_eq!(backoffs.failed("a"), first);
    }

    #[test]
    fn two_kinds_of_one_name_are_two_objects() {
        let (poller, pipeline) = (fixtures::poller("site", 1, &[]), fixtures::pipeline("site"));
        assert_eq!(name_of(&poller), "MeterPoller plant/site");
        assert_eq!(name_of(&pipeline), "TelemetryPipeline plant/site");
    }
}
