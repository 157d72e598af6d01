//! One gateway, one owner: who of several MeterPollers may poll an endpoint, and publish as a meter.
//!
//! The rules are `corrente-config`'s, the same for `corrente validate`: the older MeterPoller has it. The
//! younger one goes on without, and is told whose it is. Here they are applied to all MeterPollers of the
//! cluster, and what changed by an edit is found, so that its neighbours are looked at too.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use corrente_config::{
    address::EndpointAddress,
    conflict::{Claim, Conflict, Owner, conflicts},
};
use corrente_crds::{MeterPoller, poller::Endpoint};
use kube::ResourceExt;

use crate::{context::Key, vocabulary::reasons};

/// Who owns what, among all MeterPollers at one moment.
#[derive(Debug, Default)]
pub struct Claims {
    conflicts: BTreeMap<(String, String), Vec<Conflict>>,
    seen: HashMap<Key, (String, i64)>,
}

impl Claims {
    /// Settles who owns what.
    #[must_use]
    pub fn of(pollers: &[&MeterPoller]) -> Self {
        let owners: Vec<Owner<'_>> = pollers
            .iter()
            .map(|poller| Owner {
                namespace: poller.namespace().unwrap_or_default(),
                name: poller.name_any(),
                created: poller
                    .creation_timestamp()
                    .map_or(i64::MAX, |time| time.0.as_second()),
                spec: &poller.spec,
            })
            .collect();
        Self {
            conflicts: conflicts(&owners),
            seen: pollers
                .iter()
                .map(|poller| (Key::of(*poller), state(poller)))
                .collect(),
        }
    }

    /// What a MeterPoller may not do.
    #[must_use]
    pub fn conflicts(&self, key: &Key) -> Vec<Conflict> {
        self.conflicts
            .get(&(key.namespace.clone(), key.name.clone()))
            .cloned()
            .unwrap_or_default()
    }

    /// Whether a MeterPoller is taken into account as it is now.
    #[must_use]
    pub fn knows(&self, poller: &MeterPoller) -> bool {
        self.seen.get(&Key::of(poller)) == Some(&state(poller))
    }

    /// The MeterPollers whose conflicts are not the same in `later`.
    #[must_use]
    pub fn changed(&self, later: &Self) -> BTreeSet<Key> {
        self.conflicts
            .keys()
            .chain(later.conflicts.keys())
            .filter(|key| self.conflicts.get(*key) != later.conflicts.get(*key))
            .map(|(namespace, name)| Key {
                namespace: namespace.clone(),
                name: name.clone(),
            })
            .collect()
    }
}

/// What an edit changes.
fn state(poller: &MeterPoller) -> (String, i64) {
    (
        poller.uid().unwrap_or_default(),
        poller.metadata.generation.unwrap_or_default(),
    )
}

/// The reason that a conflict is for a condition.
#[must_use]
pub fn reason(conflict: &Conflict) -> &'static str {
    match conflict.claim {
        Claim::Endpoint(_) => reasons::ENDPOINT_CONFLICT,
        Claim::Meter { .. } => reasons::METER_CONFLICT,
    }
}

/// The endpoints that are left when what belongs to others is taken away; without meters one is left out.
#[must_use]
pub fn without(endpoints: &[Endpoint], conflicts: &[Conflict]) -> Vec<Endpoint> {
    let mut lost_endpoints: BTreeSet<&EndpointAddress> = BTreeSet::new();
    let mut lost_meters: BTreeSet<&str> = BTreeSet::new();
    for conflict in conflicts {
        match &conflict.claim {
            Claim::Endpoint(address) => {
                lost_endpoints.insert(address);
            }
            Claim::Meter { meter, .. } => {
                lost_meters.insert(meter);
            }
        }
    }
    let lost = |endpoint: &Endpoint| {
        EndpointAddress::of(endpoint).is_ok_and(|address| lost_endpoints.contains(&address))
    };
    let mut left: Vec<Endpoint> = endpoints
        .iter()
        .filter(|endpoint| !lost(endpoint))
        .cloned()
        .collect();
    for endpoint in &mut left {
        endpoint
            .meters
            .retain(|meter| !lost_meters.contains(meter.name.as_str()));
    }
    left.retain(|endpoint| !endpoint.meters.is_empty());
    left
}

/// An endpoint's address as `host:port`, so that two ways to write it are one. What is no address is refused
/// elsewhere; here it is only told apart from others.
#[must_use]
pub fn address_key(endpoint: &Endpoint) -> String {
    EndpointAddress::of(endpoint).map_or_else(|_| endpoint.address.clone(), |address| address.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::poller;

    fn key(name: &str) -> Key {
        Key {
            namespace: "plant".into(),
            name: name.into(),
        }
    }

    /// What is left to a MeterPoller, as `endpoint: meters`.
    fn left(claims: &Claims, poller: &MeterPoller) -> Vec<String> {
        without(&poller.spec.endpoints, &claims.conflicts(&Key::of(poller)))
            .iter()
            .map(|endpoint| {
                let meters: Vec<&str> = endpoint.meters.iter().map(|meter| meter.name.as_str()).collect();
                format!("{}: {}", endpoint.name, meters.join(" "))
            })
            .collect()
    }

    #[test]
    fn the_older_has_the_gateway_however_it_is_written() {
        let old = poller("old", 1, &[("a", "GW1.plant.", &["m1"])]);
        let new = poller(
            "new",
            2,
            &[("x", "gw1.plant:502", &["m2"]), ("y", "gw1.plant:503", &["m3"])],
        );
        for order in [[&old, &new], [&new, &old]] {
            let claims = Claims::of(&order);
            assert_eq!(left(&claims, &old), ["a: m1"]);
            assert_eq!(left(&claims, &new), ["y: m3"]);
            assert_eq!(
                reason(&claims.conflicts(&key("new"))[0]),
                reasons::ENDPOINT_CONFLICT
            );
        }
    }

    #[test]
    fn a_meter_has_one_owner_per_topic() {
        let old = poller("old", 1, &[("a", "gw1", &["m1"])]);
        let new = poller("new", 2, &[("x", "gw2", &["m1", "m2"]), ("z", "gw4", &["m1"])]);
        let mut elsewhere = poller("elsewhere", 3, &[("x", "gw3", &["m1"])]);
        elsewhere.spec.output.kafka.topic = "other".into();
        let claims = Claims::of(&[&old, &new, &elsewhere]);
        assert_eq!(left(&claims, &new), ["x: m2"]);
        assert_eq!(left(&claims, &elsewhere), ["x: m1"]);
        assert_eq!(reason(&claims.conflicts(&key("new"))[0]), reasons::METER_CONFLICT);
    }

    #[test]
    fn says_whose_verdict_changes_when_the_owner_goes() {
        let old = poller("old", 1, &[("a", "gw1", &["m1"])]);
        let new = poller("new", 2, &[("x", "gw1", &["m2"])]);
        let (before, after) = (Claims::of(&[&old, &new]), Claims::of(&[&new]));
        assert_eq!(before.changed(&after), BTreeSet::from([key("new")]));
        assert!(before.changed(&before).is_empty());
        assert!(before.knows(&old) && !after.knows(&old) && after.knows(&new));
        let mut edited = new;
        edited.metadata.generation = Some(2);
        assert!(!after.knows(&edited));
    }
}
