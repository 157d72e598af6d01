//! The pipeline's Deployment: as many pods as are asked for, replaced one by one.

use std::path::Path;

use corrente_config::report::SINK_URL_PATH;
use corrente_crds::common::SecretKey;
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment},
        core::v1::{KeyToPath, SecretVolumeSource, Volume},
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

use crate::{
    context::Settings,
    naming,
    pipeline::validate::ValidatedPipeline,
    pods::{self, Worker},
    secrets,
    vocabulary::{annotations, labels},
};

/// The volume of the sink's address.
const SECRET_VOLUME: &str = "sink";
/// How long a pod on a lost node is waited for. Its successor needs nobody's leave, so not for long.
const LOST_NODE_SECONDS: i64 = 30;

/// Builds the Deployment.
#[must_use]
pub fn build(pipeline: &ValidatedPipeline, settings: &Settings) -> Deployment {
    let all = super::all_labels(pipeline);
    let selected = [labels::COMPONENT, labels::TELEMETRY_PIPELINE];
    let selector = all.iter().filter(|(key, _)| selected.contains(&key.as_str()));
    let selector = selector
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let worker = Worker {
        name: labels::PIPELINE,
        image: &settings.pipeline_image,
        pull_policy: &settings.image_pull_policy,
        config_map: pipeline.revision.as_str(),
        labels: all.clone(),
        annotations: [
            (annotations::RESOURCE.to_owned(), pipeline.key.name.clone()),
            (
                annotations::REVISION.to_owned(),
                pipeline.revision.as_str().to_owned(),
            ),
        ]
        .into(),
        volumes: pipeline
            .secret
            .iter()
            .map(secret_volume)
            .chain(secrets::volumes(&pipeline.secrets))
            .collect(),
        tolerations: pods::tolerate_lost_node(Some(LOST_NODE_SECONDS)),
        resources: pods::resources("50m", "64Mi", &memory_limit(pipeline.batch_bytes)),
        template: pipeline.template.as_ref(),
    };
    Deployment {
        metadata: pods::metadata(
            &naming::pipeline_deployment(&pipeline.key.name),
            &pipeline.key.namespace,
            all,
            &pipeline.owner,
        ),
        spec: Some(DeploymentSpec {
            replicas: Some(pipeline.replicas),
            selector: LabelSelector {
                match_labels: Some(selector),
                ..Default::default()
            },
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_unavailable: Some(IntOrString::Int(0)),
                    max_surge: Some(IntOrString::Int(1)),
                }),
            }),
            revision_history_limit: Some(2),
            template: worker.pod(),
            ..Default::default()
        }),
        status: None,
    }
}

/// The Secret's key as a file: the worker reads it, the operator never does.
fn secret_volume(secret: &SecretKey) -> (Volume, k8s_openapi::api::core::v1::VolumeMount) {
    let url = Path::new(SINK_URL_PATH);
    let part = |part: Option<&std::ffi::OsStr>| {
        part.map(|text| text.to_string_lossy().into_owned())
            .unwrap_or_default()
    };
    let volume = Volume {
        name: SECRET_VOLUME.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret.name.clone()),
            items: Some(vec![KeyToPath {
                key: secret.key.clone(),
                path: part(url.file_name()),
                ..Default::default()
            }]),
            ..Default::default()
        }),
        ..Default::default()
    };
    (
        volume,
        pods::mount(SECRET_VOLUME, &part(url.parent().map(Path::as_os_str)), true),
    )
}

/// Room for the process and for a few batches on their way, each as records, as values and as rows.
fn memory_limit(batch_bytes: i32) -> String {
    const MIB: i64 = 1024 * 1024;
    format!("{}Mi", 256 + 8 * (i64::from(batch_bytes) + MIB - 1) / MIB)
}
