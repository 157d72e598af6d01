//! What a MeterPoller refers to and has, from the caches: profiles, conflicts, and its own objects.

use std::sync::Arc;

use corrente_config::conflict::Conflict;
use corrente_crds::MeterPoller;
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Pod},
};
use kube::{ResourceExt, core::PartialObjectMeta};

use crate::{
    context::{Context, Key, Stores},
    naming,
    profiles::Profiles,
    vocabulary::labels,
};

/// A MeterPoller with all that it is judged by.
pub struct Dereferenced<'a> {
    /// The MeterPoller.
    pub poller: &'a MeterPoller,
    /// The profiles its meters name.
    pub profiles: Profiles,
    /// What others own.
    pub conflicts: Vec<Conflict>,
}

/// What a MeterPoller has in the cluster.
pub struct Live {
    /// Its Deployments.
    pub deployments: Vec<Arc<Deployment>>,
    /// Its ConfigMaps, without their content.
    pub config_maps: Vec<Arc<PartialObjectMeta<ConfigMap>>>,
    /// Its pods, those that are ending included.
    pub pods: Vec<Arc<Pod>>,
}

/// Looks up what a MeterPoller refers to.
#[must_use]
pub fn dereference<'a>(poller: &'a MeterPoller, context: &Context) -> Dereferenced<'a> {
    Dereferenced {
        poller,
        profiles: Profiles::of(&context.stores, [&poller.spec]),
        conflicts: context.claims.lock().conflicts(&Key::of(poller)),
    }
}

/// Looks up what a MeterPoller has.
#[must_use]
pub fn live(poller: &MeterPoller, stores: &Stores) -> Live {
    let namespace = poller.metadata.namespace.as_deref().unwrap_or_default();
    let uid = poller.metadata.uid.as_deref().unwrap_or_default();
    Live {
        deployments: Stores::owned(&stores.deployments, namespace, uid),
        config_maps: Stores::owned(&stores.config_maps, namespace, uid),
        pods: stores.pods_with(
            namespace,
            labels::METER_POLLER,
            &naming::label_value(&poller.name_any()),
        ),
    }
}
