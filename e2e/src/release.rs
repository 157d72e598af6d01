//! Corrente on the cluster, installed as a platform team does: by its Helm charts.

use anyhow::{Context, Result};
use tokio::process::Command;

use crate::stack::{Stack, run};

/// The namespace of the operator.
pub const NAMESPACE: &str = "corrente-system";
/// The operator's Deployment, as a resource word for kubectl.
pub const OPERATOR: &str = "deployment/corrente-operator";
/// Selects the operator's pod.
pub const OPERATOR_SELECTOR: &str = "app.kubernetes.io/name=corrente-operator";

/// Installs both charts, or brings an earlier installation up to these; waits until the operator is
/// ready. Then applies the meter library.
///
/// # Errors
/// Where helm or kubectl fails; with what it printed.
pub async fn install(stack: &Stack) -> Result<()> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let tag = std::env::var("CORRENTE_IMAGE_TAG").unwrap_or_else(|_| "e2e".to_owned());
    let images = [
        format!("operator.image.tag={tag}"),
        format!("poller.image.tag={tag}"),
        format!("pipeline.image.tag={tag}"),
    ]
    .join(",");
    for (release, chart, values) in [
        ("corrente-crds", "corrente-crds", None),
        ("corrente", "corrente", Some(images)),
    ] {
        let mut helm = Command::new("helm");
        helm.env("KUBECONFIG", &stack.kubeconfig)
            .args(["upgrade", "--install", release, &format!("{root}/charts/{chart}")])
            .args(["--namespace", NAMESPACE, "--create-namespace"])
            // The tests against the API server have applied the definitions before, without helm.
            .args(["--take-ownership", "--force-conflicts"])
            .args(["--wait", "--timeout", "2m"]);
        if let Some(values) = values {
            helm.args(["--set", &values]);
        }
        run(helm)
            .await
            .with_context(|| format!("failed to install the chart {chart}"))?;
    }
    stack
        .kubectl(&[
            "apply",
            "--server-side",
            "--force-conflicts",
            "-f",
            &format!("{root}/manifests/profiles"),
        ])
        .await?;
    Ok(())
}
