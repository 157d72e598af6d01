//! No pod is restarted for an endpoint that another pod still holds.
//!
//! The gate lets the successor start only when the endpoint is free. Were the pod that gains it replaced before that,
//! all that it polls already would wait at the gate with it: for a moment as a rule, and for as long as the machine is
//! away where the one that loses it is on a lost node. So a shard that gains goes on as it is until those that lose have
//! let go.
//!
//! Nobody waits for one that waits. Within a MeterPoller, shards wait only for such as gain nothing themselves; among
//! MeterPollers, the younger waits for the older; and everybody for a pod that was told to end. Whatever is left, as two
//! shards that change places, is for the gate alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::validate::ValidatedPoller;
use crate::{
    context::{Context, Key},
    handover::holder::Holder,
    naming,
    vocabulary::labels,
};

/// How soon to look again while a pod of another MeterPoller is waited for, of which no event tells.
const SOON: Duration = Duration::from_secs(1);

/// The shards that wait.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Awaited {
    /// Their Deployments.
    pub deployments: BTreeSet<String>,
    /// What a person should know of those that wait for another MeterPoller.
    pub sentences: Vec<String>,
    /// When to look again.
    pub again: Option<Duration>,
}

/// A poller pod, and its shard.
struct Seen {
    holder: Holder,
    shard: Option<i32>,
}

/// Which of the shards whose pods a change replaces are to wait.
#[must_use]
pub fn look(valid: &ValidatedPoller, replaced: &BTreeSet<String>, context: &Context) -> Awaited {
    if valid.suspended || replaced.is_empty() {
        return Awaited::default();
    }
    let pods = context.stores.pods.state();
    let pods = pods.iter().filter_map(|pod| seen(pod)).collect::<Vec<_>>();
    let pollers = context.stores.pollers.state();
    let ages: BTreeMap<Key, Age> = pollers
        .iter()
        .filter_map(|guarded| guarded.0.as_ref().ok())
        .map(|poller| (Key::of(poller), age(poller)))
        .collect();
    judge(valid, replaced, &pods, &ages)
}

/// The order in which MeterPollers come: the oldest first.
type Age = (i64, Key);

fn age(poller: &corrente_crds::MeterPoller) -> Age {
    let created = poller.creation_timestamp();
    (
        created.map_or(i64::MAX, |time| time.0.as_second()),
        Key::of(poller),
    )
}

fn seen(pod: &Pod) -> Option<Seen> {
    let shard = pod
        .labels()
        .get(labels::SHARD)
        .and_then(|shard| shard.parse().ok());
    let holder = Holder::of(pod)?;
    (holder.gate.is_none() && !holder.finished).then_some(Seen { holder, shard })
}

fn judge(
    valid: &ValidatedPoller,
    replaced: &BTreeSet<String>,
    pods: &[Seen],
    ages: &BTreeMap<Key, Age>,
) -> Awaited {
    let is_own = |seen: &Seen| {
        seen.holder.namespace == valid.key.namespace && seen.holder.resource.as_ref() == Some(&valid.key.name)
    };
    // What each shard gains; nothing where it has no pod that polls, and so nothing to spare.
    let gains: BTreeMap<i32, BTreeSet<&String>> = valid
        .shards
        .iter()
        .map(|shard| {
            let own = |seen: &&Seen| is_own(seen) && seen.shard == Some(shard.index) && !seen.holder.deleting;
            let mut held = pods.iter().filter(own).peekable();
            let at_work = held.peek().is_some();
            let held: BTreeSet<&String> = held.flat_map(|seen| &seen.holder.endpoints).collect();
            let gained = shard.addresses.iter().filter(|address| !held.contains(address));
            (shard.index, gained.filter(|_| at_work).collect())
        })
        .collect();
    let lets_go = |seen: &Seen| {
        if seen.holder.deleting {
            return true;
        }
        if is_own(seen) {
            let gained = seen.shard.and_then(|shard| gains.get(&shard));
            return gained.is_none_or(BTreeSet::is_empty);
        }
        let owner = seen.holder.resource.as_ref().map(|name| Key {
            namespace: seen.holder.namespace.clone(),
            name: name.clone(),
        });
        // One without an owner ends, or is a person's to end.
        let theirs = owner.and_then(|owner| ages.get(&owner));
        theirs.is_none_or(|theirs| ages.get(&valid.key).is_some_and(|ours| theirs < ours))
    };
    let mut awaited = Awaited::default();
    for shard in &valid.shards {
        let name = naming::shard_deployment(&valid.key.name, shard.index);
        let Some(gained) = gains.get(&shard.index).filter(|_| replaced.contains(&name)) else {
            continue;
        };
        let blocks = |seen: &&Seen| {
            !(is_own(seen) && seen.shard == Some(shard.index))
                && seen.holder.endpoints.iter().any(|held| gained.contains(held))
                && lets_go(seen)
        };
        for seen in pods.iter().filter(blocks) {
            awaited.deployments.insert(name.clone());
            if is_own(seen) {
                continue; // its own pods are looked at by others, and an event tells when they are gone
            }
            awaited.again = Some(SOON);
            let held = seen.holder.endpoints.iter().find(|held| gained.contains(held));
            awaited.sentences.push(format!(
                "shard {} goes on as it is, and takes {} over when pod {}/{} has ended, which may still poll it",
                shard.index,
                held.map_or("an endpoint", String::as_str),
                seen.holder.namespace,
                seen.holder.name
            ));
        }
    }
    awaited
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        fixtures::{poller, profile},
        poller::{dereference::Dereferenced, validate::validate},
        profiles::Profiles,
    };

    /// The site with shards that are to poll these endpoints.
    fn site(shards: &[&[&str]]) -> ValidatedPoller {
        let endpoints = [("a", "gw1", &["m1"][..])];
        let poller = poller("site", 5, &endpoints);
        let found = Dereferenced {
            poller: &poller,
            profiles: Profiles {
                known: [("acme".to_owned(), profile())].into(),
                ..Profiles::default()
            },
            conflicts: Vec::new(),
        };
        let mut all = Vec::new();
        for (index, addresses) in (0..).zip(shards) {
            let mut shard = validate(&found).unwrap().shards.remove(0);
            shard.index = index;
            shard.addresses = addresses.iter().map(|&address| address.to_owned()).collect();
            all.push(shard);
        }
        let mut valid = validate(&found).unwrap();
        valid.shards = all;
        valid
    }

    /// A pod of a shard of a MeterPoller: `site/0`, `-` for none, with a word for its state.
    fn pod(of: &str, state: &str, endpoints: &str) -> Seen {
        let (resource, shard) = of.split_once('/').unwrap_or((of, "0"));
        let pod = json!({
            "metadata": {
                "namespace": "plant", "name": format!("{resource}-{shard}-x"), "uid": of,
                "labels": {"corrente.dev/component": "poller", "corrente.dev/shard": shard},
                "annotations": {"corrente.dev/resource": resource, "corrente.dev/endpoints": endpoints},
                "deletionTimestamp": (state == "ending").then_some("2026-01-01T00:00:00Z"),
            },
            "spec": {"containers": []},
            "status": {"phase": "Running"},
        });
        seen(&serde_json::from_value(pod).unwrap()).unwrap()
    }

    #[test]
    fn who_gains_waits_for_those_who_lose() {
        let key = |name: &str| Key {
            namespace: "plant".to_owned(),
            name: name.to_owned(),
        };
        let ages =
            [("elder", 1), ("site", 5), ("junior", 9)].map(|(name, age)| (key(name), (age, key(name))));
        let ages = BTreeMap::from(ages);
        type Case<'a> = (&'a str, Vec<&'a [&'a str]>, Vec<Seen>, &'a [i32]);
        let table: Vec<Case<'_>> = vec![
            ("nothing moves", vec![&["a"]], vec![pod("site/0", "", "a")], &[]),
            (
                "an endpoint is new",
                vec![&["a", "b"]],
                vec![pod("site/0", "", "a")],
                &[],
            ),
            (
                "a shard is added: who loses does not wait",
                vec![&["a"], &["b"]],
                vec![pod("site/0", "", "a,b")],
                &[],
            ),
            (
                "a shard is removed",
                vec![&["a", "b"]],
                vec![pod("site/0", "", "a"), pod("site/1", "", "b")],
                &[0],
            ),
            (
                "a removed shard is on a lost node",
                vec![&["a", "b"]],
                vec![pod("site/0", "", "a"), pod("site/1", "ending", "b")],
                &[0],
            ),
            (
                "who has no pod at work has nothing to spare",
                vec![&["a", "b"]],
                vec![pod("site/0", "ending", "a"), pod("site/1", "", "b")],
                &[],
            ),
            (
                "two change places",
                vec![&["a"], &["b"]],
                vec![pod("site/0", "", "b"), pod("site/1", "", "a")],
                &[],
            ),
            (
                "one gives, and takes from the next",
                vec![&["a", "b"], &["c", "d"], &["e"]],
                vec![
                    pod("site/0", "", "a"),
                    pod("site/1", "", "b,c"),
                    pod("site/2", "", "d,e"),
                ],
                &[1],
            ),
            (
                "an older MeterPoller lets go",
                vec![&["a", "b"]],
                vec![pod("site/0", "", "a"), pod("elder", "", "b")],
                &[0],
            ),
            (
                "a younger one has to, and may wait for us elsewhere",
                vec![&["a", "b"]],
                vec![pod("site/0", "", "a"), pod("junior", "", "b")],
                &[],
            ),
            (
                "a younger one ends",
                vec![&["a", "b"]],
                vec![pod("site/0", "", "a"), pod("junior", "ending", "b")],
                &[0],
            ),
            (
                "one whose MeterPoller is gone",
                vec![&["a", "b"]],
                vec![pod("site/0", "", "a"), pod("gone", "", "b")],
                &[0],
            ),
        ];
        for (what, shards, pods, expected) in table {
            let valid = site(&shards);
            let all = (0..3)
                .map(|shard| naming::shard_deployment("site", shard))
                .collect();
            let expected: BTreeSet<String> = expected
                .iter()
                .map(|shard| naming::shard_deployment("site", *shard))
                .collect();
            assert_eq!(judge(&valid, &all, &pods, &ages).deployments, expected, "{what}");
            // What no change replaces does not wait either.
            assert_eq!(
                judge(&valid, &BTreeSet::new(), &pods, &ages),
                Awaited::default(),
                "{what}"
            );
        }
        let pods = [pod("site/0", "", "a"), pod("elder", "", "b")];
        let all = BTreeSet::from([naming::shard_deployment("site", 0)]);
        let awaited = judge(&site(&[&["a", "b"]]), &all, &pods, &ages);
        assert_eq!(
            awaited.sentences,
            [
                "shard 0 goes on as it is, and takes b over when pod plant/elder-0-x has ended, which may still poll it"
            ]
        );
    }
}
