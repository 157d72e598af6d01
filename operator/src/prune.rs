//! What is not wanted any more goes: Deployments of removed shards, and configurations of long ago.
//!
//! The last few revisions of a configuration stay, so that there is something to go back to, and so does
//! one that a pod still runs.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{ConfigMap, Pod},
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Preconditions},
    core::PartialObjectMeta,
};
use serde::de::DeserializeOwned;

use crate::{memory::Memory, vocabulary::annotations};

/// Revisions of a configuration that stay, the current one included.
const REVISIONS: usize = 3;

/// What could not be deleted.
#[derive(Debug, thiserror::Error)]
#[error("failed to delete {kind} {name}")]
pub struct Error {
    kind: &'static str,
    name: String,
    source: kube::Error,
}

/// What a resource has in the cluster, and what of it is current.
pub struct Inventory<'a> {
    /// Its Deployments.
    pub deployments: &'a [Arc<Deployment>],
    /// Its ConfigMaps.
    pub config_maps: &'a [Arc<PartialObjectMeta<ConfigMap>>],
    /// Its pods.
    pub pods: &'a [Arc<Pod>],
    /// The names of the Deployments and ConfigMaps that were built just now.
    pub current: &'a BTreeSet<String>,
    /// The label by which ConfigMaps are revisions of the same thing; all of them where it is missing.
    pub series: &'a str,
}

/// Deletes the Deployments that are not wanted any more, and says how many they were. It comes before
/// anything is applied, and does not depend on that: another pod may wait for what they hold.
///
/// # Errors
/// Where the API server does not let it.
pub async fn deployments(
    client: &Client,
    memory: &Memory,
    namespace: &str,
    inventory: &Inventory<'_>,
) -> Result<usize, Error> {
    let mut gone = 0;
    for deployment in inventory.deployments {
        if !inventory.current.contains(&deployment.name_any())
            && deployment.metadata.deletion_timestamp.is_none()
        {
            delete::<Deployment>(client, memory, "Deployment", namespace, &deployment.metadata).await?;
            gone += 1;
        }
    }
    Ok(gone)
}

/// Deletes the ConfigMaps that are not wanted any more. It comes after the Deployments were applied, which
/// name others from then on.
///
/// # Errors
/// Where the API server does not let it.
pub async fn config_maps(
    client: &Client,
    memory: &Memory,
    namespace: &str,
    inventory: &Inventory<'_>,
) -> Result<(), Error> {
    let in_use = in_use(inventory);
    for config_map in stale(inventory, &in_use) {
        delete::<ConfigMap>(client, memory, "ConfigMap", namespace, &config_map.metadata).await?;
    }
    Ok(())
}

/// The ConfigMaps that pods run, and those that Deployments would make pods of: one that is not replaced yet
/// may need to make another.
fn in_use<'a>(inventory: &Inventory<'a>) -> BTreeSet<&'a str> {
    let templates = inventory.deployments.iter().filter_map(|deployment| {
        let template = deployment.spec.as_ref()?.template.metadata.as_ref()?;
        template.annotations.as_ref()
    });
    inventory
        .pods
        .iter()
        .map(|pod| pod.annotations())
        .chain(templates)
        .filter_map(|all| all.get(annotations::REVISION).map(String::as_str))
        .collect()
}

/// The ConfigMaps that neither run, nor are current, nor are among the last revisions of what still exists.
fn stale<'a>(inventory: &'a Inventory<'_>, in_use: &BTreeSet<&str>) -> Vec<&'a PartialObjectMeta<ConfigMap>> {
    let mut series: BTreeMap<Option<&String>, Vec<&PartialObjectMeta<ConfigMap>>> = BTreeMap::new();
    for config_map in inventory.config_maps {
        series
            .entry(config_map.labels().get(inventory.series))
            .or_default()
            .push(config_map);
    }
    let mut stale = Vec::new();
    for revisions in series.values_mut() {
        let is_current =
            |revision: &PartialObjectMeta<ConfigMap>| inventory.current.contains(&revision.name_any());
        let exists = revisions.iter().any(|revision| is_current(revision));
        // The current one first, although it may be an old one that was gone back to; then the newest.
        revisions.sort_by_key(|revision| {
            let created = revision
                .creation_timestamp()
                .map(|Time(at)| at.as_second())
                .unwrap_or(i64::MAX);
            (
                !is_current(revision),
                std::cmp::Reverse((created, revision.name_any())),
            )
        });
        let kept = if exists { REVISIONS } else { 0 };
        stale.extend(revisions.iter().skip(kept).filter(|revision| {
            !in_use.contains(revision.name_any().as_str()) && revision.metadata.deletion_timestamp.is_none()
        }));
    }
    stale
}

async fn delete<K>(
    client: &Client,
    memory: &Memory,
    kind: &'static str,
    namespace: &str,
    object: &kube::core::ObjectMeta,
) -> Result<(), Error>
where
    K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned,
{
    let name = object.name.clone().unwrap_or_default();
    let params = DeleteParams {
        // Not one of the same name that was made since.
        preconditions: Some(Preconditions {
            uid: object.uid.clone(),
            resource_version: None,
        }),
        ..DeleteParams::background()
    };
    crate::telemetry::write(kind, "delete");
    let deleted = Api::<K>::namespaced(client.clone(), namespace)
        .delete(&name, &params)
        .await;
    memory
        .applied
        .lock()
        .remove(&(kind, namespace.to_owned(), name.clone()));
    match deleted {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(source) => Err(Error { kind, name, source }),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::vocabulary::labels;

    fn config_map(name: &str, shard: &str, created: i64) -> Arc<PartialObjectMeta<ConfigMap>> {
        let mut object = PartialObjectMeta::<ConfigMap>::default();
        object.metadata.name = Some(name.into());
        object.metadata.labels = Some([(labels::SHARD.to_owned(), shard.to_owned())].into());
        object.metadata.creation_timestamp = Some(Time(Timestamp::from_second(created).unwrap()));
        Arc::new(object)
    }

    fn names(
        config_maps: &[Arc<PartialObjectMeta<ConfigMap>>],
        current: &[&str],
        in_use: &[&str],
    ) -> Vec<String> {
        let current: BTreeSet<String> = current.iter().map(|name| (*name).to_owned()).collect();
        let inventory = Inventory {
            deployments: &[],
            config_maps,
            pods: &[],
            current: &current,
            series: labels::SHARD,
        };
        let mut names: Vec<String> = stale(&inventory, &in_use.iter().copied().collect())
            .iter()
            .map(|object| object.name_any())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn the_last_revisions_of_each_shard_stay() {
        let all: Vec<_> = (1..=5)
            .flat_map(|at| {
                [
                    config_map(&format!("a{at}"), "0", at),
                    config_map(&format!("b{at}"), "1", at),
                ]
            })
            .collect();
        assert_eq!(names(&all, &["a5", "b5"], &[]), ["a1", "a2", "b1", "b2"]);
        assert_eq!(
            names(&all, &["a5", "b5"], &["a1"]),
            ["a2", "b1", "b2"],
            "one that runs stays"
        );
        assert_eq!(
            names(&all, &["a1", "b5"], &[]),
            ["a2", "a3", "b1", "b2"],
            "one that was gone back to is current"
        );
        assert_eq!(
            names(&all, &["a5"], &["b4"]),
            ["a1", "a2", "b1", "b2", "b3", "b5"],
            "a removed shard keeps none but what runs"
        );
    }
}
