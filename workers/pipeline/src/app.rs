//! The process: arguments and configuration, the endpoints, the worker, and an orderly end.

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::Parser;
use corrente_config::{PipelineConfig, report::PIPELINE_CONFIG_PATH};
use corrente_runtime::{http, logging, metrics, shutdown};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    run,
    sink::{postgres::PostgresSink, sqlite::SqliteSink},
    source::kafka::KafkaSource,
    state::PipelineState,
};

/// The exit code for a mistake in arguments or configuration: a restart would not help.
const MISTAKE: u8 = 2;
/// How long calls to the broker that still block may hold up the end.
const LAST: Duration = Duration::from_millis(100);

/// Stores the records of Kafka topics in a database, each exactly once.
#[derive(Debug, Parser)]
#[command(name = "corrente-pipeline", version)]
pub struct Args {
    /// The configuration file.
    #[arg(long, value_name = "PATH", default_value = PIPELINE_CONFIG_PATH)]
    config: PathBuf,
    /// The port of /livez, /readyz, /metrics and /status; 0 takes a free one.
    #[arg(long, value_name = "PORT", default_value_t = http::PORT)]
    listen: u16,
}

/// The process, from its arguments to its exit code.
#[must_use]
pub fn main() -> ExitCode {
    let args = Args::parse();
    logging::init("info");
    let config = match load(&args.config) {
        Ok(config) => config,
        Err(error) => {
            tracing::error!("{error:#}");
            return ExitCode::from(MISTAKE);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!("failed to start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(work(config, args.listen));
    runtime.shutdown_timeout(LAST);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn load(path: &PathBuf) -> anyhow::Result<PipelineConfig> {
    let file = path.display();
    let json = std::fs::read(path).with_context(|| format!("failed to read the configuration {file}"))?;
    let config: PipelineConfig = serde_json::from_slice(&json)
        .with_context(|| format!("failed to understand the configuration {file}"))?;
    anyhow::ensure!(
        !config.topics.is_empty(),
        "the configuration {file} names no topic: add one to \"topics\""
    );
    anyhow::ensure!(
        !config.kafka.bootstrap_servers.is_empty(),
        "the configuration {file} names no broker: add one to \"kafka.bootstrapServers\""
    );
    Ok(config)
}

async fn work(config: PipelineConfig, port: u16) -> anyhow::Result<()> {
    let shutdown = shutdown::token().context("failed to listen for signals")?;
    metrics::install();
    let _upkeep = AbortOnDropHandle::new(tokio::spawn(metrics::upkeep()));
    let state = Arc::new(PipelineState::default());
    let listener = http::listen(port)
        .await
        .with_context(|| format!("failed to listen on port {port}"))?;
    tracing::info!(
        address = %listener.local_addr()?,
        pipeline = format!("{}/{}", config.namespace, config.name),
        topics = config.topics.join(", "),
        "started"
    );
    // The endpoints answer to the last: they end with the process.
    let _server = AbortOnDropHandle::new(tokio::spawn(http::serve(
        listener,
        state.clone(),
        shutdown.child_token(),
    )));
    let source = KafkaSource::new(&config).context("failed to start the Kafka consumer")?;
    match (PostgresSink::new(&config), SqliteSink::new(&config)) {
        (Some(sink), _) => run(config, source, sink, state, shutdown).await,
        (None, Some(sink)) => run(config, source, sink, state, shutdown).await,
        (None, None) => anyhow::bail!("the configuration names no sink that this worker has"),
    }
}
