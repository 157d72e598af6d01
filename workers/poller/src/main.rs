//! The poller's process: arguments, logs, HTTP endpoints, and [`corrente_poller::run`].

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::Context as _;
use clap::Parser;
use corrente_config::{PollerConfig, report};
use corrente_poller::{PollerState, kafka::KafkaProducer, setup};
use corrente_runtime::{http, logging, metrics, shutdown};

/// Reads meters over Modbus and publishes every reading to Kafka.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The configuration file.
    #[arg(long, env = "CORRENTE_CONFIG", default_value = report::POLLER_CONFIG_PATH)]
    config: PathBuf,
    /// The folder of the spool.
    #[arg(long, env = "CORRENTE_SPOOL", default_value = report::SPOOL_PATH)]
    spool: PathBuf,
    /// The port of /metrics, /livez, /readyz and /status.
    #[arg(long, env = "CORRENTE_LISTEN", default_value_t = http::PORT)]
    listen: u16,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    logging::init("info");
    let config = match setup::load(&arguments.config) {
        Ok(config) => config,
        Err(error) => {
            tracing::error!("{error}");
            return ExitCode::from(2);
        }
    };
    match serve(arguments, config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(arguments: Arguments, config: PollerConfig) -> anyhow::Result<()> {
    let shutdown = shutdown::token().context("failed to listen for signals")?;
    metrics::install();
    tokio::spawn(metrics::upkeep());
    let state = Arc::new(PollerState::new(None));
    let listener = http::listen(arguments.listen)
        .await
        .context("failed to listen for HTTP")?;
    tokio::spawn(http::serve(listener, state.clone(), shutdown.clone()));
    let (output, trouble) = (config.output.clone(), state.trouble().clone());
    let client = format!(
        "corrente-poller-{}-{}-{}",
        config.namespace, config.name, config.shard
    );
    let producer = |deliveries| Ok(KafkaProducer::new(&output, &client, deliveries, trouble)?);
    corrente_poller::run(config, &arguments.spool, producer, state, shutdown).await
}
