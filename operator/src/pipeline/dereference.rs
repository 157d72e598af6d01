//! What a TelemetryPipeline refers to and has, from the caches: the MeterPollers behind its topics, which
//! declare the columns, with their profiles; and its own objects.

use std::sync::Arc;

use corrente_crds::{MeterPollerSpec, TelemetryPipeline};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Pod},
};
use kube::{ResourceExt, core::PartialObjectMeta};

use crate::{
    context::{Context, Stores},
    naming,
    profiles::Profiles,
    vocabulary::labels,
};

/// A TelemetryPipeline with all that it is judged by.
pub struct Dereferenced<'a> {
    /// The TelemetryPipeline.
    pub pipeline: &'a TelemetryPipeline,
    /// The MeterPollers that publish to its topics: namespace, name and what they ask for.
    pub pollers: Vec<(String, String, MeterPollerSpec)>,
    /// The profiles that those name. One that cannot be read declares no columns.
    pub profiles: Profiles,
}

/// What a TelemetryPipeline has in the cluster.
pub struct Live {
    /// Its Deployments: one, or one too many.
    pub deployments: Vec<Arc<Deployment>>,
    /// Its ConfigMaps, without their content.
    pub config_maps: Vec<Arc<PartialObjectMeta<ConfigMap>>>,
    /// Its pods, those that are ending included.
    pub pods: Vec<Arc<Pod>>,
}

/// Looks up what a TelemetryPipeline refers to.
#[must_use]
pub fn dereference<'a>(pipeline: &'a TelemetryPipeline, context: &Context) -> Dereferenced<'a> {
    let topics = &pipeline.spec.source.kafka.topics;
    let mut pollers: Vec<(String, String, MeterPollerSpec)> = context
        .stores
        .pollers
        .state()
        .iter()
        .filter_map(|guarded| guarded.0.as_ref().ok())
        .filter(|poller| topics.contains(&poller.spec.output.kafka.topic))
        .map(|poller| {
            (
                poller.namespace().unwrap_or_default(),
                poller.name_any(),
                poller.spec.clone(),
            )
        })
        .collect();
    // The cache has no order, and what follows from it must not depend on one.
    pollers.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
    let profiles = Profiles::of(&context.stores, pollers.iter().map(|(_, _, spec)| spec));
    Dereferenced {
        pipeline,
        pollers,
        profiles,
    }
}

/// Looks up what a TelemetryPipeline has.
#[must_use]
pub fn live(pipeline: &TelemetryPipeline, stores: &Stores) -> Live {
    let namespace = pipeline.metadata.namespace.as_deref().unwrap_or_default();
    let uid = pipeline.metadata.uid.as_deref().unwrap_or_default();
    Live {
        deployments: Stores::owned(&stores.deployments, namespace, uid),
        config_maps: Stores::owned(&stores.config_maps, namespace, uid),
        pods: stores.pods_with(
            namespace,
            labels::TELEMETRY_PIPELINE,
            &naming::label_value(&pipeline.name_any()),
        ),
    }
}
