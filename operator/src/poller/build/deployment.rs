//! A shard's Deployment: one pod, replaced and never doubled, born behind the handover gate.

use corrente_config::report::SPOOL_PATH;
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy},
        core::v1::{EmptyDirVolumeSource, PodSchedulingGate, Volume, VolumeMount},
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};

use crate::{
    context::Settings,
    naming,
    pods::{self, Worker},
    poller::validate::{ValidatedPoller, ValidatedShard},
    secrets,
    vocabulary::{HANDOVER_GATE, annotations, labels},
};

/// The volume of the spool.
const SPOOL_VOLUME: &str = "spool";

/// Builds the Deployment of a shard. A shard without endpoints has a pod too, which holds nothing: what
/// scales by the number of shards counts pods.
#[must_use]
pub fn build(poller: &ValidatedPoller, shard: &ValidatedShard, settings: &Settings) -> Deployment {
    let all = super::shard_labels(poller, shard.index);
    let selected = [labels::COMPONENT, labels::METER_POLLER, labels::SHARD];
    let selector = all.iter().filter(|(key, _)| selected.contains(&key.as_str()));
    let selector = selector
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let addresses: Vec<&str> = shard.addresses.iter().map(String::as_str).collect();
    let worker = Worker {
        name: labels::POLLER,
        image: &settings.poller_image,
        pull_policy: &settings.image_pull_policy,
        config_map: shard.revision.as_str(),
        labels: all.clone(),
        annotations: [
            (annotations::ENDPOINTS.to_owned(), addresses.join(",")),
            (annotations::RESOURCE.to_owned(), poller.key.name.clone()),
            (
                annotations::REVISION.to_owned(),
                shard.revision.as_str().to_owned(),
            ),
        ]
        .into(),
        volumes: std::iter::once(spool())
            .chain(secrets::volumes(&shard.secrets))
            .collect(),
        // A replacement could not be released while this one may still poll: moving it would only lose it.
        tolerations: pods::tolerate_lost_node(None),
        resources: pods::resources("20m", "32Mi", "256Mi"),
        template: poller.template.as_ref(),
    };
    let mut template = worker.pod();
    if let Some(spec) = template.spec.as_mut() {
        spec.scheduling_gates = Some(vec![PodSchedulingGate {
            name: HANDOVER_GATE.to_owned(),
        }]);
    }
    Deployment {
        metadata: pods::metadata(
            &naming::shard_deployment(&poller.key.name, shard.index),
            &poller.key.namespace,
            all,
            &poller.owner,
        ),
        spec: Some(DeploymentSpec {
            replicas: Some(i32::from(!poller.suspended)),
            selector: LabelSelector {
                match_labels: Some(selector),
                ..Default::default()
            },
            strategy: Some(DeploymentStrategy {
                type_: Some("Recreate".to_owned()),
                ..Default::default()
            }),
            // A pod may rightly wait at the gate for as long as it takes.
            progress_deadline_seconds: Some(i32::MAX),
            revision_history_limit: Some(2),
            template,
            ..Default::default()
        }),
        status: None,
    }
}

/// The spool's volume: it outlives the container, and goes with the pod.
fn spool() -> (Volume, VolumeMount) {
    let volume = Volume {
        name: SPOOL_VOLUME.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource::default()),
        ..Default::default()
    };
    (volume, pods::mount(SPOOL_VOLUME, SPOOL_PATH, false))
}
