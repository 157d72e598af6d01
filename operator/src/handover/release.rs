//! The removal of the gate, on exactly the object that was judged.

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::holder::Holder;
use crate::vocabulary::{HANDOVER_GATE, OPERATOR};

/// Why a gate could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The patch could not be put together.
    #[error("failed to put together the release of pod {namespace}/{name}")]
    Patch {
        /// The pod's namespace.
        namespace: String,
        /// The pod's name.
        name: String,
        /// Why.
        source: serde_json::Error,
    },
    /// The API server refused it or did not answer.
    #[error("failed to release pod {namespace}/{name}")]
    Send {
        /// The pod's namespace.
        namespace: String,
        /// The pod's name.
        name: String,
        /// Why.
        source: kube::Error,
    },
}

/// Removes the gate of a pod. `false` where the pod changed since it was read: it has to be judged again.
///
/// # Errors
/// Where the API server does not answer as it should; the gate may be there still or not.
pub async fn release(client: &Client, pod: &Holder) -> Result<bool, Error> {
    let (namespace, name) = (pod.namespace.clone(), pod.name.clone());
    let Some(gate) = pod.gate else { return Ok(false) };
    let patch = json!([
        {"op": "test", "path": "/metadata/uid", "value": pod.uid},
        {"op": "test", "path": "/metadata/resourceVersion", "value": pod.resource_version},
        {"op": "test", "path": format!("/spec/schedulingGates/{gate}/name"), "value": HANDOVER_GATE},
        {"op": "remove", "path": format!("/spec/schedulingGates/{gate}")},
    ]);
    let patch = match serde_json::from_value(patch) {
        Ok(patch) => Patch::Json::<()>(patch),
        Err(source) => {
            return Err(Error::Patch {
                namespace,
                name,
                source,
            });
        }
    };
    let params = PatchParams {
        field_manager: Some(OPERATOR.to_owned()),
        ..PatchParams::default()
    };
    match Api::<Pod>::namespaced(client.clone(), &namespace)
        .patch(&name, &params, &patch)
        .await
    {
        Ok(_) => Ok(true),
        // Gone, changed in between, or a test of the patch failed.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409 | 422) => Ok(false),
        Err(source) => Err(Error::Send {
            namespace,
            name,
            source,
        }),
    }
}
