//! The poller's process: arguments, logs, HTTP endpoints, and [`corrente_poller::run`].

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::Parser;
use corrente_config::{PollerConfig, report, secrets::Secrets};
use corrente_poller::{
    PollerState,
    kafka::KafkaProducer,
    registry::{Registry, http::HttpRegistry},
    setup,
};
use corrente_runtime::{http, logging, metrics, shutdown};

/// How long calls to the broker or the resolver that still block may hold up the end.
const LAST: Duration = Duration::from_millis(200);

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
    /// The folder that the Secrets are mounted in.
    #[arg(long, env = "CORRENTE_SECRETS", value_name = "DIR", default_value = report::SECRETS_PATH)]
    secrets: PathBuf,
    /// The port of /metrics, /livez, /readyz and /status.
    #[arg(long, env = "CORRENTE_LISTEN", default_value_t = http::PORT)]
    listen: u16,
}

/// What the allocator may keep of what it got back, in bytes. A second's records of a shard are a small part of it.
const KEPT: usize = 2 * 1024 * 1024;

fn main() -> ExitCode {
    keep_memory();
    let arguments = Arguments::parse();
    logging::init("info");
    let config = match setup::load(&arguments.config) {
        Ok(config) => config,
        Err(error) => {
            tracing::error!("{error}");
            return ExitCode::from(2);
        }
    };
    // One thread for all endpoints: a poll takes microseconds of it, and handing tasks from thread to thread
    // costs more than the polls themselves. What blocks (the disk, the resolver) has threads of its own.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!("failed to start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(serve(arguments, config));
    // Dropping the runtime would wait for them as long as they like.
    runtime.shutdown_timeout(LAST);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Lets the allocator keep the memory of one batch of records for the next, instead of handing its pages to the
/// kernel and faulting them in again each second, which cost librdkafka's thread a quarter of its processor time.
///
/// glibc sets its thresholds by the largest block that was mapped and freed (mallopt(3), `M_MMAP_THRESHOLD`). Such a
/// block is asked for here, and never touched. With another allocator this does nothing.
fn keep_memory() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(KEPT)));
}

async fn serve(arguments: Arguments, mut config: PollerConfig) -> anyhow::Result<()> {
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
    let secrets = Secrets::new(&arguments.secrets);
    config.secrets = secrets.clone();
    let producer = |deliveries| {
        Ok(KafkaProducer::new(
            &output, &secrets, &client, deliveries, trouble,
        ))
    };
    let registry = output
        .schema_registry
        .as_ref()
        .map(|registry| Arc::new(HttpRegistry::new(registry, &secrets)) as Arc<dyn Registry>);
    corrente_poller::run_with_registry(config, &arguments.spool, producer, registry, state, shutdown).await
}
