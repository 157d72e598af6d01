//! Who owns what, among all MeterPollers: a gateway has one master, and a meter's records one writer.
//!
//! Each claim, an endpoint's address or a meter's name in a topic, belongs to the oldest MeterPoller that
//! makes it. Each claim is judged by itself: who loses one keeps the others. A suspended MeterPoller keeps
//! its claims, since it polls again as soon as it is told to.

use std::collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry};

use corrente_crds::{MeterPollerSpec, common::KafkaCluster};

use crate::{Problem, address::EndpointAddress};

/// A MeterPoller and its age.
#[derive(Clone, Debug)]
pub struct Owner<'a> {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// When it was made, in any unit that rises; equal ages are ordered by namespace and name.
    pub created: i64,
    /// What it asks for.
    pub spec: &'a MeterPollerSpec,
}

/// What can have one owner only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// An endpoint.
    Endpoint(EndpointAddress),
    /// A meter's name in a topic.
    Meter {
        /// The topic.
        topic: String,
        /// The meter.
        meter: String,
    },
}

/// A claim that an older MeterPoller has made before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// What both claim.
    pub claim: Claim,
    /// Where the younger claims it, such as `spec.endpoints[0].address`.
    pub path: String,
    /// Namespace and name of the older.
    pub owner: (String, String),
}

impl Conflict {
    /// The conflict as a problem of the younger.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let (namespace, name) = &self.owner;
        let message = match &self.claim {
            Claim::Endpoint(address) => format!(
                "{address} is polled by the older MeterPoller {namespace}/{name}, and a gateway has one master: \
                 remove the endpoint from one of the two"
            ),
            Claim::Meter { topic, meter } => format!(
                "the older MeterPoller {namespace}/{name} publishes a meter {meter:?} to topic {topic} too: \
                 give one of the two another name or another topic"
            ),
        };
        Problem::new(self.path.clone(), message)
    }
}

/// The conflicts of every MeterPoller that has any, by namespace and name.
#[must_use]
pub fn conflicts(pollers: &[Owner<'_>]) -> BTreeMap<(String, String), Vec<Conflict>> {
    let mut by_age: Vec<&Owner<'_>> = pollers.iter().collect();
    by_age.sort_by_key(|p| (p.created, &p.namespace, &p.name));
    let mut endpoints: HashMap<EndpointAddress, &Owner<'_>> = HashMap::new();
    let mut meters: HashMap<(String, &str, &str), &Owner<'_>> = HashMap::new();
    let mut found: BTreeMap<(String, String), Vec<Conflict>> = BTreeMap::new();
    for poller in by_age {
        let mut lost = Vec::new();
        let kafka = &poller.spec.output.kafka;
        let brokers = brokers(&kafka.cluster);
        for (e, endpoint) in poller.spec.endpoints.iter().enumerate() {
            // An address that is none is the schema's to refuse, and owns nothing.
            if let Ok(address) = EndpointAddress::of(endpoint)
                && let Some(owner) = take(&mut endpoints, address.clone(), poller)
            {
                lost.push(Conflict {
                    claim: Claim::Endpoint(address),
                    path: format!("spec.endpoints[{e}].address"),
                    owner,
                });
            }
            for (m, meter) in endpoint.meters.iter().enumerate() {
                // Two clusters are one where they share a broker's address.
                let mut owners = brokers.iter().filter_map(|broker| {
                    let key = (broker.clone(), kafka.topic.as_str(), meter.name.as_str());
                    take(&mut meters, key, poller)
                });
                let first = owners.next();
                // The others are to be taken as well, for whoever comes after.
                owners.for_each(drop);
                if let Some(owner) = first {
                    lost.push(Conflict {
                        claim: Claim::Meter {
                            topic: kafka.topic.clone(),
                            meter: meter.name.clone(),
                        },
                        path: format!("spec.endpoints[{e}].meters[{m}].name"),
                        owner,
                    });
                }
            }
        }
        if !lost.is_empty() {
            found.insert((poller.namespace.clone(), poller.name.clone()), lost);
        }
    }
    found
}

/// Takes a claim, or names its owner where that is another.
fn take<'a, 'b, K: std::hash::Hash + Eq>(
    claims: &mut HashMap<K, &'a Owner<'b>>,
    key: K,
    poller: &'a Owner<'b>,
) -> Option<(String, String)> {
    match claims.entry(key) {
        Entry::Vacant(free) => {
            free.insert(poller);
            None
        }
        Entry::Occupied(owner) => {
            let owner = owner.get();
            let same = owner.namespace == poller.namespace && owner.name == poller.name;
            (!same).then(|| (owner.namespace.clone(), owner.name.clone()))
        }
    }
}

/// The addresses of a cluster's brokers, in one spelling.
pub(crate) fn brokers(cluster: &KafkaCluster) -> BTreeSet<String> {
    cluster
        .bootstrap_servers
        .iter()
        .map(|broker| broker.to_ascii_lowercase())
        .collect()
}
