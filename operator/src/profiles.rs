//! The MeterProfiles that MeterPollers name, from the cache.

use std::collections::{BTreeMap, BTreeSet};

use corrente_config::Problem;
use corrente_crds::{MeterPollerSpec, MeterProfileSpec};
use kube::runtime::reflector::ObjectRef;

use crate::context::Stores;

/// The MeterProfiles that some MeterPollers name.
#[derive(Debug, Default)]
pub struct Profiles {
    /// Those that can be read, by name.
    pub known: BTreeMap<String, MeterProfileSpec>,
    /// Those that are there and cannot be read, with the reason.
    pub unreadable: BTreeMap<String, String>,
}

impl Profiles {
    /// Looks up what these MeterPollers name. What is in neither map does not exist.
    pub fn of<'a>(stores: &Stores, specs: impl IntoIterator<Item = &'a MeterPollerSpec>) -> Self {
        let mut profiles = Self::default();
        for name in specs.into_iter().flat_map(named) {
            match stores
                .profiles
                .get(&ObjectRef::new(name))
                .as_deref()
                .map(|guarded| &guarded.0)
            {
                Some(Ok(profile)) => {
                    profiles.known.insert(name.to_owned(), profile.spec.clone());
                }
                Some(Err(invalid)) => {
                    profiles.unreadable.insert(name.to_owned(), invalid.error.clone());
                }
                None => {}
            }
        }
        profiles
    }

    /// What is wrong with the profiles that cannot be read.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let problem = |(name, error): (&String, &String)| {
            Problem::new(
                "",
                format!("MeterProfile {name} cannot be read: {error}; correct that profile"),
            )
        };
        self.unreadable.iter().map(problem).collect()
    }
}

/// The names of the MeterProfiles that a MeterPoller names, each once.
pub fn named(spec: &MeterPollerSpec) -> BTreeSet<&str> {
    let meters = spec.endpoints.iter().flat_map(|endpoint| &endpoint.meters);
    meters.filter_map(|meter| meter.profile.as_deref()).collect()
}
