//! Whether a MeterPoller can be carried out, and if so as what.
//!
//! The rules that need no cluster are `corrente-config`'s, the same that `corrente validate` applies; here
//! endpoints are spread over the shards, what belongs to others is left out, and each shard's file is
//! written, so that what is too large for a ConfigMap is refused with a sentence and not by the API server.

use std::collections::{BTreeMap, BTreeSet};

use corrente_config::{Problem, conflict::Conflict, resolve::resolve_poller};
use corrente_crds::{common::PodTemplate, poller::Endpoint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt};

use super::dereference::Dereferenced;
use crate::{
    claims,
    context::Key,
    naming::Revision,
    secrets::{self, Need},
    sharding,
};

/// Most bytes of a shard's file; a ConfigMap may have 1 MiB in all.
const MOST_BYTES: usize = 900 * 1024;

/// A MeterPoller that can be carried out.
#[derive(Debug)]
pub struct ValidatedPoller {
    /// Its namespace and name.
    pub key: Key,
    /// Its uid.
    pub uid: String,
    /// The reference by which its objects go when it goes.
    pub owner: OwnerReference,
    /// No pod is to run.
    pub suspended: bool,
    /// What its pods get from the cluster.
    pub template: Option<PodTemplate>,
    /// Its shards, by number.
    pub shards: Vec<ValidatedShard>,
    /// What it names and others own.
    pub conflicts: Vec<Conflict>,
    /// Meters that are polled.
    pub meters: usize,
}

/// A shard: one pod's share.
#[derive(Debug)]
pub struct ValidatedShard {
    /// Its number.
    pub index: i32,
    /// The name of its ConfigMap.
    pub revision: Revision,
    /// Its file.
    pub file: String,
    /// The endpoints it polls, as `host:port`.
    pub addresses: BTreeSet<String>,
    /// What its pod needs of Secrets.
    pub secrets: Vec<Need>,
    /// How many endpoints it polls.
    pub endpoints: usize,
    /// How many meters it polls.
    pub meters: usize,
}

/// Judges a MeterPoller.
///
/// # Errors
/// All that is wrong with it.
pub fn validate(found: &Dereferenced<'_>) -> Result<ValidatedPoller, Vec<Problem>> {
    let poller = found.poller;
    let key = Key::of(poller);
    let problems = found.profiles.problems();
    if !problems.is_empty() {
        return Err(problems);
    }
    let resolved = resolve_poller(&key.namespace, &key.name, &poller.spec, &found.profiles.known)?;
    let endpoints = claims::without(&poller.spec.endpoints, &found.conflicts);
    let mut shards = Vec::new();
    let mut problems = Vec::new();
    for (index, endpoints) in (0..).zip(spread(endpoints, poller.spec.shards)) {
        let addresses: BTreeSet<String> = endpoints.iter().map(claims::address_key).collect();
        let (count, meters) = (endpoints.len(), endpoints.iter().map(|e| e.meters.len()).sum());
        let file = match serde_json::to_string(&resolved.config(index, endpoints.iter())) {
            Ok(file) => file,
            Err(error) => {
                problems.push(Problem::new(
                    "spec",
                    format!("cannot be written as JSON: {error}"),
                ));
                continue;
            }
        };
        if file.len() > MOST_BYTES {
            problems.push(Problem::new(
                "spec.shards",
                format!(
                    "the configuration of shard {index} has {} KiB and may have {}: raise shards, or use several \
                     MeterPollers",
                    file.len() / 1024,
                    MOST_BYTES / 1024
                ),
            ));
        }
        shards.push(ValidatedShard {
            index,
            revision: Revision::of_shard(&key.name, index, &file),
            file,
            addresses,
            secrets: secrets::of_output(&poller.spec.output.kafka)
                .into_iter()
                .chain(secrets::of_endpoints(&endpoints))
                .collect(),
            endpoints: count,
            meters,
        });
    }
    let Some(owner) = poller.controller_owner_ref(&()) else {
        return Err(vec![Problem::new(
            "metadata",
            "has no uid: it was not read from a cluster",
        )]);
    };
    if !problems.is_empty() {
        return Err(problems);
    }
    Ok(ValidatedPoller {
        key,
        uid: poller.uid().unwrap_or_default(),
        owner,
        suspended: poller.spec.suspend,
        template: poller.spec.template.clone(),
        meters: shards.iter().map(|shard| shard.meters).sum(),
        shards,
        conflicts: found.conflicts.clone(),
    })
}

/// The endpoints of each shard. Two entries with one address stay together, as they are one line.
fn spread(endpoints: Vec<Endpoint>, shards: i32) -> Vec<Vec<Endpoint>> {
    let count = usize::try_from(shards).unwrap_or(1).max(1);
    let addresses: BTreeSet<String> = endpoints.iter().map(claims::address_key).collect();
    let keys: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let shard_of: BTreeMap<&str, usize> = keys.iter().copied().zip(sharding::assign(&keys, count)).collect();
    let mut spread: Vec<Vec<Endpoint>> = vec![Vec::new(); count];
    for endpoint in endpoints {
        let shard = shard_of
            .get(claims::address_key(&endpoint).as_str())
            .copied()
            .unwrap_or_default();
        spread[shard].push(endpoint);
    }
    spread
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        claims::Claims,
        fixtures::{poller, profile},
        profiles::Profiles,
    };

    fn profiles() -> Profiles {
        Profiles {
            known: [("acme".to_owned(), profile())].into(),
            unreadable: BTreeMap::new(),
        }
    }

    #[test]
    fn every_endpoint_is_in_one_shard() {
        let mut poller = poller(
            "site",
            1,
            &[
                ("a", "gw1", &["m1", "m2"]),
                ("b", "gw2", &["m3"]),
                ("c", "gw3", &["m4"]),
            ],
        );
        poller.spec.shards = 2;
        let found = Dereferenced {
            poller: &poller,
            profiles: profiles(),
            conflicts: Vec::new(),
        };
        let valid = validate(&found).unwrap();
        assert_eq!((valid.shards.len(), valid.meters), (2, 4));
        assert_eq!(valid.shards.iter().map(|shard| shard.endpoints).sum::<usize>(), 3);
        assert!(
            valid.shards.iter().all(|shard| shard.endpoints > 0),
            "both have something to do"
        );
        let all: BTreeSet<String> = valid
            .shards
            .iter()
            .flat_map(|shard| shard.addresses.clone())
            .collect();
        assert_eq!(
            all,
            BTreeSet::from(["gw1:502".into(), "gw2:502".into(), "gw3:502".into()])
        );
        assert_ne!(valid.shards[0].revision, valid.shards[1].revision);
    }

    #[test]
    fn more_shards_than_endpoints_leave_some_idle() {
        let mut poller = poller("site", 1, &[("a", "gw1", &["m1"])]);
        poller.spec.shards = 3;
        let found = Dereferenced {
            poller: &poller,
            profiles: profiles(),
            conflicts: Vec::new(),
        };
        let mut endpoints: Vec<usize> = validate(&found)
            .unwrap()
            .shards
            .iter()
            .map(|shard| shard.endpoints)
            .collect();
        endpoints.sort_unstable();
        assert_eq!(endpoints, [0, 0, 1]);
    }

    #[test]
    fn what_others_own_is_left_out_and_the_rest_goes_on() {
        let old = poller("old", 1, &[("a", "gw1", &["m1"])]);
        let new = poller("new", 2, &[("x", "gw1", &["m2"]), ("y", "gw2", &["m3"])]);
        let claims = Claims::of(&[&old, &new]);
        let conflicts = claims.conflicts(&Key::of(&new));
        let found = Dereferenced {
            poller: &new,
            profiles: profiles(),
            conflicts,
        };
        let valid = validate(&found).unwrap();
        assert_eq!(valid.shards[0].addresses, BTreeSet::from(["gw2:502".to_owned()]));
        assert_eq!((valid.meters, valid.conflicts.len()), (1, 1));
    }

    #[test]
    fn a_missing_or_unreadable_profile_is_a_problem() {
        let poller = poller("site", 1, &[("a", "gw1", &["m1"])]);
        let none = Dereferenced {
            poller: &poller,
            profiles: Profiles::default(),
            conflicts: Vec::new(),
        };
        let problems = validate(&none).unwrap_err();
        assert!(
            problems.iter().any(|problem| problem.message.contains("acme")),
            "{problems:?}"
        );
        let unreadable = Profiles {
            known: BTreeMap::new(),
            unreadable: [("acme".into(), "bad scale".into())].into(),
        };
        let found = Dereferenced {
            poller: &poller,
            profiles: unreadable,
            conflicts: Vec::new(),
        };
        let problems = validate(&found).unwrap_err();
        assert!(
            problems[0]
                .message
                .contains("MeterProfile acme cannot be read: bad scale"),
            "{problems:?}"
        );
    }

    #[test]
    fn a_change_of_content_is_another_revision_and_nothing_else_is() {
        let one = poller("site", 1, &[("a", "gw1", &["m1"])]);
        let mut same = one.clone();
        same.metadata.generation = Some(9);
        same.spec.suspend = true;
        let mut other = one.clone();
        other.spec.interval = corrente_crds::Duration::from_secs(20);
        let revision = |poller: &corrente_crds::MeterPoller| {
            let found = Dereferenced {
                poller,
                profiles: profiles(),
                conflicts: Vec::new(),
            };
            validate(&found).unwrap().shards[0].revision.clone()
        };
        assert_eq!(revision(&one), revision(&same));
        assert_ne!(revision(&one), revision(&other));
    }
}
