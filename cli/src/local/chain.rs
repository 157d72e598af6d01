//! The chain of `corrente local`: pollers, a broker in memory, pipelines into SQLite.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use corrente_config::{PipelineConfig, PollerConfig, pipeline::SinkConfig, poller::MapKey};
use corrente_crds::{common::KafkaCluster, pipeline::Batch};
use corrente_pipeline::{PipelineState, sink::sqlite::SqliteSink};
use corrente_poller::PollerState;
use corrente_record::{Quality, Reading};
use corrente_runtime::memory::MemoryBroker;
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use super::display::{Figures, Picture};
use crate::site::Site;

/// Partitions of a topic in memory; more than one, so that order holds per meter only, as on a cluster.
const PARTITIONS: i32 = 4;
/// How long the pipelines may take to store what is left at the end.
const STORE: Duration = Duration::from_secs(10);

/// The latest reading of each meter, shared with the pollers.
pub struct Latest {
    picture: Mutex<Picture>,
    failed: Mutex<u64>,
}

impl Latest {
    /// Nothing read yet; knows how many meters there are and the units of their metrics.
    pub fn of(site: &Site) -> Self {
        let mut picture = Picture::default();
        for config in &site.pollers {
            for meter in config.endpoints.iter().flat_map(|endpoint| &endpoint.meters) {
                picture.meters += 1;
                let map = MapKey::of(meter).and_then(|key| config.maps.get(&key));
                for register in map.into_iter().flat_map(|map| &map.registers) {
                    if let Some(unit) = register.unit.as_ref().filter(|unit| *unit != "1") {
                        picture
                            .units
                            .insert((meter.name.clone(), register.name.clone()), unit.clone());
                    }
                }
            }
        }
        Self {
            picture: Mutex::new(picture),
            failed: Mutex::new(0),
        }
    }

    fn take(&self, reading: &Reading) {
        if reading.quality == Quality::Failed {
            *self.failed.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        }
        let mut picture = self.picture.lock().unwrap_or_else(PoisonError::into_inner);
        picture.latest.insert(reading.meter.to_string(), reading.clone());
    }

    /// What to draw.
    pub fn picture(&self) -> Picture {
        self.picture
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// The running chain.
pub struct Chain {
    pollers: Vec<Arc<PollerState>>,
    pipelines: Vec<Arc<PipelineState>>,
    polling: JoinSet<Result<()>>,
    storing: JoinSet<Result<()>>,
    stop_polling: CancellationToken,
    stop_storing: CancellationToken,
    latest: Arc<Latest>,
}

impl Chain {
    /// Starts it all.
    ///
    /// # Errors
    /// Where a pipeline has no table in SQLite.
    pub fn start(site: Site, data: &Path, database: &Path, latest: Arc<Latest>) -> Result<Self> {
        let mut chain = Self {
            pollers: Vec::new(),
            pipelines: Vec::new(),
            polling: JoinSet::new(),
            storing: JoinSet::new(),
            stop_polling: CancellationToken::new(),
            stop_storing: CancellationToken::new(),
            latest,
        };
        let mut brokers: BTreeMap<Vec<String>, MemoryBroker> = BTreeMap::new();
        let mut broker = |cluster: &KafkaCluster| {
            let mut name = cluster.bootstrap_servers.clone();
            name.sort();
            brokers
                .entry(name)
                .or_insert_with(|| MemoryBroker::new(PARTITIONS))
                .clone()
        };
        // Consumers before producers: a topic in memory keeps only what somebody is to read.
        for config in with_sinks(&site, database) {
            let source = broker(&config.kafka).source(&config.topics);
            let sink = SqliteSink::new(&config).context("the pipeline has no SQLite table")?;
            let state = Arc::new(PipelineState::default());
            chain.pipelines.push(state.clone());
            let stop = chain.stop_storing.clone();
            chain
                .storing
                .spawn(corrente_pipeline::run(config, source, sink, state, stop));
        }
        for config in site.pollers {
            let spool = data
                .join("spool")
                .join(format!("{}.{}", config.namespace, config.name));
            let latest = chain.latest.clone();
            let state = Arc::new(PollerState::new(Some(Arc::new(move |reading: &Reading| {
                latest.take(reading)
            }))));
            chain.pollers.push(state.clone());
            let (broker, stop) = (broker(&config.output.cluster), chain.stop_polling.clone());
            chain.polling.spawn(async move {
                let topic = config.output.topic.clone();
                let producer = |deliveries| Ok(broker.producer(&topic, deliveries));
                corrente_poller::run(config, &spool, producer, state, stop).await
            });
        }
        Ok(chain)
    }

    /// Returns when a part ends that should not; safe to cancel.
    ///
    /// # Errors
    /// Why it ended.
    pub async fn broken(&mut self) -> Result<()> {
        let ended = tokio::select! {
            Some(ended) = self.polling.join_next() => ended,
            Some(ended) = self.storing.join_next() => ended,
            else => std::future::pending().await,
        };
        ended.map_err(anyhow::Error::from).flatten()?;
        Err(anyhow!("a worker ended by itself"))
    }

    /// The figures so far. What is on its way is not lost.
    pub fn figures(&self) -> Figures {
        let mut figures = Figures {
            failed: *self.latest.failed.lock().unwrap_or_else(PoisonError::into_inner),
            ..Figures::default()
        };
        for report in self.pollers.iter().map(|state| state.report()) {
            figures.polls += report.polls;
            figures.skipped += report.skipped;
            figures.records += report.spool.records;
            figures.lost += report.spool.evicted + report.spool.refused;
        }
        for report in self.pipelines.iter().map(|state| state.report()) {
            figures.rows += report.rows;
            figures.dead_lettered += report.dead_lettered;
            figures.lost += report.gaps;
        }
        figures
    }

    /// Ends the pollers, waits until the pipelines have stored what they published, and ends them too.
    /// Whatever is then neither stored nor set aside is lost.
    pub async fn end(mut self) -> Figures {
        self.stop_polling.cancel();
        while self.polling.join_next().await.is_some() {}
        let deadline = Instant::now() + STORE;
        let missing = |figures: &Figures| {
            figures
                .records
                .saturating_sub(figures.rows + figures.dead_lettered + figures.lost)
        };
        while missing(&self.figures()) > 0 && Instant::now() < deadline && !self.storing.is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.stop_storing.cancel();
        while self.storing.join_next().await.is_some() {}
        let mut figures = self.figures();
        figures.lost += missing(&figures);
        figures
    }
}

/// The pipelines of the site with SQLite for a sink, and one more for topics that none of them reads.
fn with_sinks(site: &Site, database: &Path) -> Vec<PipelineConfig> {
    let sqlite = |table: &str| SinkConfig::Sqlite {
        path: database.to_owned(),
        table: table.to_owned(),
    };
    let mut pipelines: Vec<PipelineConfig> = Vec::new();
    let mut read: BTreeSet<(Vec<String>, String)> = BTreeSet::new();
    for config in &site.pipelines {
        let table = match &config.sink {
            SinkConfig::Postgres { table, .. } | SinkConfig::Sqlite { table, .. } => table.clone(),
        };
        read.extend(
            config
                .topics
                .iter()
                .map(|topic| (config.kafka.bootstrap_servers.clone(), topic.clone())),
        );
        let batch = Batch {
            max_age: corrente_crds::Duration::from_millis(200),
            ..config.batch
        };
        pipelines.push(PipelineConfig {
            sink: sqlite(&table),
            batch,
            ..config.clone()
        });
    }
    for PollerConfig {
        namespace, output, ..
    } in &site.pollers
    {
        if read.insert((output.cluster.bootstrap_servers.clone(), output.topic.clone())) {
            let name = format!("local-{}", output.topic);
            pipelines.push(PipelineConfig {
                namespace: namespace.clone(),
                group: name.clone(),
                name,
                kafka: output.cluster.clone(),
                topics: vec![output.topic.clone()],
                sink: sqlite("readings"),
                columns: BTreeMap::new(),
                batch: Batch {
                    max_age: corrente_crds::Duration::from_millis(200),
                    ..Batch::default()
                },
            });
        }
    }
    pipelines
}
