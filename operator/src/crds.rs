//! The CRDs: the operator starts when they are there, and says which one is missing until then.

use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client, ResourceExt,
    runtime::{conditions::is_crd_established, wait::Condition},
};

use crate::health::Health;

/// How often to look for them.
const PERIOD: Duration = Duration::from_secs(2);

/// Returns when the API server serves all three kinds.
pub async fn established(client: &Client, health: &Health) {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for crd in corrente_crds::all() {
        let name = crd.name_any();
        loop {
            let reason = match api.get_opt(&name).await {
                Ok(found) if is_crd_established().matches_object(found.as_ref()) => break,
                Ok(Some(_)) => format!("the CRD {name} is not established yet"),
                Ok(None) => format!("the CRD {name} is missing: install the chart corrente-crds"),
                Err(error) => format!("failed to read the CRD {name}: {}", crate::events::chain(&error)),
            };
            if health.waits_for(&reason) {
                tracing::warn!("{reason}");
            }
            tokio::time::sleep(PERIOD).await;
        }
    }
}
