//! The process: arguments and configuration, the endpoints, the worker, and an orderly end.

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::Parser;
use corrente_config::{
    PipelineConfig,
    pipeline::SinkConfig,
    report::PIPELINE_CONFIG_PATH,
    secrets::{SECRETS_PATH, Secrets},
};
use corrente_runtime::{
    http,
    kafka::{Access, Settings},
    logging, metrics, shutdown,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    alerts::deliver::{Alertmanager, Topic, deliver},
    letters::Desk,
    run,
    sink::{
        Sink,
        amqp::AmqpSink,
        cassandra::CassandraSink,
        influx::InfluxSink,
        mongo::MongoSink,
        mqtt::MqttSink,
        postgres::{
            PostgresSink,
            care::{Round, Upkeep},
        },
        sqlite::SqliteSink,
    },
    source::kafka::{DeadLetterTopic, KafkaSource},
    state::PipelineState,
};

/// The exit code for a mistake in arguments or configuration: a restart would not help.
const MISTAKE: u8 = 2;
/// How long calls to the broker that still block may hold up the end.
const LAST: Duration = Duration::from_millis(100);

/// What is said of a sink that this program was built without.
const NO_SINK: &str = "the configuration names no sink that this worker has";

/// Stores the records of Kafka topics in a database, each exactly once.
#[derive(Debug, Parser)]
#[command(name = "corrente-pipeline", version)]
pub struct Args {
    /// The configuration file.
    #[arg(long, value_name = "PATH", default_value = PIPELINE_CONFIG_PATH)]
    config: PathBuf,
    /// The folder that the Secrets are mounted in.
    #[arg(long, env = "CORRENTE_SECRETS", value_name = "DIR", default_value = SECRETS_PATH)]
    secrets: PathBuf,
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
    let result = runtime.block_on(work(config, Secrets::new(args.secrets), args.listen));
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

async fn work(config: PipelineConfig, secrets: Secrets, port: u16) -> anyhow::Result<()> {
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
    let access = Access::new(&config.kafka, &secrets);
    let Some(settings) = readable(&access, &state, &shutdown).await else {
        return Ok(());
    };
    let source =
        KafkaSource::new(&config, &access, &settings).context("failed to start the Kafka consumer")?;
    let _alerts = alerts(&config, &settings, &shutdown)?;
    let sink = PostgresSink::new(&config);
    let desk = match sink.as_ref().and_then(Sink::another) {
        Some(sink) => Desk::new(&config, &access, &settings, sink, state.clone())
            .context("failed to start the producer of dead letters")?,
        None => None,
    };
    // Cut off at the end: what it was about is begun anew by another worker.
    let _desk = desk.map(|desk| AbortOnDropHandle::new(tokio::spawn(desk.run())));
    // A consumer keeps what it was made with. Ending in good order and being started again takes a second, and
    // is what the worker is best at: it goes on where the database says.
    let (ended, used) = (shutdown.clone(), settings.clone());
    let _watch = AbortOnDropHandle::new(tokio::spawn(async move {
        access.changed(Some(&used)).await;
        tracing::info!(
            "the files that let this worker into Kafka have changed: it ends, to be started with the new ones"
        );
        ended.cancel();
    }));
    let _upkeep_of_tables = Upkeep::new(&config).map(|upkeep| {
        let state = state.clone();
        let report = move |round: Option<Round>| state.tables(round.map(|round| round.notices));
        AbortOnDropHandle::new(tokio::spawn(upkeep.run(report, shutdown.child_token())))
    });
    start(config, secrets, &settings, source, sink, state, shutdown).await
}

/// Runs the worker with the sink that the configuration names.
async fn start(
    config: PipelineConfig,
    secrets: Secrets,
    settings: &Settings,
    mut source: KafkaSource,
    postgres: Option<PostgresSink>,
    state: Arc<PipelineState>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let letters = DeadLetterTopic::new(&config, settings);
    match &config.sink {
        SinkConfig::Influxdb(_) => {
            let offsets = source.group_offsets();
            let sink = InfluxSink::new(&config, &secrets, offsets, letters).context(NO_SINK)?;
            run(config, source, sink, state, shutdown).await
        }
        SinkConfig::Mqtt(_) => {
            let offsets = source.group_offsets();
            let sink = MqttSink::new(&config, &secrets, offsets, letters).context(NO_SINK)?;
            run(config, source, sink, state, shutdown).await
        }
        SinkConfig::Amqp(_) => {
            let offsets = source.group_offsets();
            let sink = AmqpSink::new(&config, &secrets, offsets, letters).context(NO_SINK)?;
            run(config, source, sink, state, shutdown).await
        }
        SinkConfig::Cassandra(_) => {
            let sink = CassandraSink::new(&config, &secrets, letters).context(NO_SINK)?;
            run(config, source, sink, state, shutdown).await
        }
        SinkConfig::Mongodb(_) => {
            let sink = MongoSink::new(&config, &secrets, letters).context(NO_SINK)?;
            run(config, source, sink, state, shutdown).await
        }
        SinkConfig::Postgres { .. } => {
            let sink = postgres.context(NO_SINK)?;
            run(config, source, sink, state, shutdown).await
        }
        SinkConfig::Sqlite { .. } => {
            let sink = SqliteSink::new(&config).context(NO_SINK)?;
            run(config, source, sink, state, shutdown).await
        }
    }
}

/// The tasks that tell the pipeline's alerts. They end with the worker: what was not told by then, the next one tells.
fn alerts(
    config: &PipelineConfig,
    settings: &Settings,
    shutdown: &CancellationToken,
) -> anyhow::Result<Vec<AbortOnDropHandle<()>>> {
    let (Some(alerts), SinkConfig::Postgres { connection, .. }) = (&config.alerts, &config.sink) else {
        return Ok(vec![]);
    };
    let pipeline = format!("{}/{}", config.namespace, config.name);
    let mut tasks = vec![];
    if let Some(topic) = &alerts.topic {
        let topic =
            Topic::new(settings.client_config(), topic).context("failed to make the producer of alerts")?;
        let task = deliver(topic, connection.clone(), pipeline.clone(), shutdown.clone());
        tasks.push(AbortOnDropHandle::new(tokio::spawn(task)));
    }
    if let Some(url) = &alerts.alertmanager {
        let task = deliver(
            Alertmanager::new(url),
            connection.clone(),
            pipeline,
            shutdown.clone(),
        );
        tasks.push(AbortOnDropHandle::new(tokio::spawn(task)));
    }
    Ok(tasks)
}

/// What lets the worker into the cluster, once the files can be read. `None` where it is told to end before.
async fn readable(access: &Access, state: &PipelineState, shutdown: &CancellationToken) -> Option<Settings> {
    match access.read() {
        Ok(settings) => Some(settings),
        Err(error) => {
            tracing::error!(%error, "Kafka cannot be used yet");
            state.broker_failed(&error.to_string());
            let changed = std::pin::pin!(access.changed(None));
            let alive = async {
                loop {
                    state.beat();
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            };
            tokio::select! {
                settings = changed => Some(settings),
                () = shutdown.cancelled() => None,
                () = alive => None,
            }
        }
    }
}
