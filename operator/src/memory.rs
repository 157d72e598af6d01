//! What the operator applied and wrote last, so that it does not do it again while the caches lag behind.

use std::time::{Duration, Instant};

use corrente_crds::{MeterPollerStatus, TelemetryPipelineStatus};

use crate::context::SharedMap;

/// How long an object that was just applied may be missing from the cache.
const CACHE_LAG: Duration = Duration::from_secs(10);

/// What names an applied object: its kind, its namespace and its name.
pub type ObjectKey = (&'static str, String, String);

/// What the API server said when an object was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The hash of what was asked for.
    pub hash: String,
    /// The object's identity.
    pub uid: String,
    /// The object's generation afterwards.
    pub generation: i64,
    /// When.
    pub at: Instant,
}

impl Applied {
    /// Whether the cache may not know of it yet.
    #[must_use]
    pub fn is_recent(&self) -> bool {
        self.at.elapsed() < CACHE_LAG
    }
}

/// A status as it was written last.
#[derive(Clone, Debug)]
pub struct Written<S> {
    /// The status.
    pub status: S,
    /// The resource version that the write made.
    pub resource_version: String,
    /// When.
    pub at: Instant,
}

impl<S> Written<S> {
    /// Whether an object of this resource version shows that write or a later one.
    #[must_use]
    pub fn is_seen_at(&self, resource_version: Option<&str>) -> bool {
        let number = |text: &str| text.parse::<u128>().ok();
        match (resource_version.and_then(number), number(&self.resource_version)) {
            (Some(seen), Some(written)) => seen >= written,
            // Versions that are no numbers cannot be put in order: trust what the cache has.
            _ => true,
        }
    }
}

/// What the operator remembers.
#[derive(Default)]
pub struct Memory {
    /// Objects, by what names them.
    pub applied: SharedMap<ObjectKey, Applied>,
    /// Statuses of MeterPollers, by uid.
    pub pollers: SharedMap<String, Written<MeterPollerStatus>>,
    /// Statuses of TelemetryPipelines, by uid.
    pub pipelines: SharedMap<String, Written<TelemetryPipelineStatus>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_whether_the_cache_has_caught_up() {
        let written = Written {
            status: (),
            resource_version: "100".into(),
            at: Instant::now(),
        };
        for (seen, caught_up) in [("99", false), ("100", true), ("1000", true), ("opaque", true)] {
            assert_eq!(written.is_seen_at(Some(seen)), caught_up, "{seen}");
        }
    }
}
