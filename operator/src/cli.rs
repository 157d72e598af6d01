//! The command line: `run` is the operator, `crd` prints the resource definitions it works by.

use std::{collections::BTreeSet, sync::Arc};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use kube::{Client, Config};
use tokio_util::sync::CancellationToken;

use crate::{
    context::{Namespaces, Settings, Timing},
    health::Health,
    manager,
};

/// The Corrente operator: from MeterPollers and TelemetryPipelines to running workers.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the operator.
    Run(RunArgs),
    /// Print the custom resource definitions as JSON, to be applied with kubectl apply -f -.
    Crd,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// The image of poller pods.
    #[arg(long, env = "POLLER_IMAGE")]
    poller_image: String,
    /// The image of pipeline pods.
    #[arg(long, env = "PIPELINE_IMAGE")]
    pipeline_image: String,
    /// When nodes pull these images.
    #[arg(long, env = "IMAGE_PULL_POLICY", default_value = "IfNotPresent",
          value_parser = ["Always", "IfNotPresent", "Never"])]
    image_pull_policy: String,
    /// The namespaces to work in, separated by commas; all of them where it is empty.
    #[arg(long, env = "WATCH_NAMESPACES", default_value = "")]
    watch_namespaces: String,
    /// The class of resources to carry out: those annotated with corrente.dev/operator-class and this value,
    /// or those without the annotation where it is empty.
    #[arg(long, env = "OPERATOR_CLASS", default_value = "")]
    operator_class: String,
    /// The port of /livez, /readyz, /metrics and /status.
    #[arg(long, env = "LISTEN", default_value_t = corrente_runtime::http::PORT)]
    listen: u16,
}

impl RunArgs {
    fn settings(self) -> Settings {
        Settings {
            poller_image: self.poller_image,
            pipeline_image: self.pipeline_image,
            image_pull_policy: self.image_pull_policy,
            namespaces: namespaces(&self.watch_namespaces),
            class: self.operator_class,
            worker_port: corrente_runtime::http::PORT,
            timing: Timing::default(),
        }
    }
}

fn namespaces(text: &str) -> Namespaces {
    let names: BTreeSet<String> = text
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect();
    if names.is_empty() {
        Namespaces::All
    } else {
        Namespaces::Only(names)
    }
}

impl Cli {
    /// Does what the command line says.
    ///
    /// # Errors
    /// Where it cannot be done, with the reason.
    pub async fn execute(self) -> anyhow::Result<()> {
        match self.command {
            Command::Run(args) => run(args).await,
            Command::Crd => print_crds(),
        }
    }
}

fn print_crds() -> anyhow::Result<()> {
    let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": corrente_crds::all()});
    let text = serde_json::to_string_pretty(&list).context("failed to write the CRDs as JSON")?;
    // Not println: a reader that has seen enough is no reason to panic.
    use std::io::Write as _;
    writeln!(std::io::stdout(), "{text}").context("failed to print the CRDs")
}

async fn run(args: RunArgs) -> anyhow::Result<()> {
    corrente_runtime::logging::init("info");
    corrente_runtime::metrics::install();
    let shutdown = corrente_runtime::shutdown::token().context("failed to install the signal handlers")?;
    let health = Arc::new(Health::default());
    let listener = corrente_runtime::http::listen(args.listen)
        .await
        .with_context(|| format!("failed to listen on port {}", args.listen))?;
    // It answers until the very end, so that the last metrics can be fetched.
    let served = CancellationToken::new();
    let server = tokio::spawn(corrente_runtime::http::serve(
        listener,
        health.clone(),
        served.clone(),
    ));
    tokio::spawn(corrente_runtime::metrics::upkeep());

    let client = client().await?;
    manager::run(client, args.settings(), health, shutdown.clone()).await;
    served.cancel();
    server
        .await
        .context("failed to end the HTTP server")?
        .context("failed to serve HTTP")?;
    tracing::info!("ended");
    Ok(())
}

/// A client that fails rather than waits: what failed is tried again by whoever asked, and told.
async fn client() -> anyhow::Result<Client> {
    let mut config = Config::infer()
        .await
        .context("failed to find out how to reach the API server")?;
    config.default_retry = false;
    Client::try_from(config).context("failed to make a client for the API server")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn namespaces_are_a_list_or_all() {
        assert_eq!(namespaces(" "), Namespaces::All);
        assert_eq!(
            namespaces("a, b,"),
            Namespaces::Only(["a".to_owned(), "b".to_owned()].into())
        );
    }
}
