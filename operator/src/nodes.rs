//! Whether a node answers: what tells a pod that ends slowly from one that nobody can ask to end.

use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client};

/// Whether a node is there and answers. Where that cannot be found out, nothing is claimed about it.
pub async fn answers(client: &Client, node: &str) -> bool {
    match Api::<Node>::all(client.clone()).get_opt(node).await {
        Ok(Some(node)) => {
            let conditions = node
                .status
                .and_then(|status| status.conditions)
                .unwrap_or_default();
            conditions
                .iter()
                .find(|condition| condition.type_ == "Ready")
                .is_none_or(|ready| ready.status != "Unknown")
        }
        Ok(None) => true,
        Err(error) => {
            tracing::debug!(node, %error, "failed to ask for a node");
            true
        }
    }
}
