//! The chain of `corrente local`: pollers, a broker in memory, pipelines into SQLite.
//!
//! 1. It starts the pipelines, then the pollers, with one broker for each cluster of the manifests.
//! 2. A record leaves its poller's spool once every pipeline of its topic has stored it, so what the process
//!    had not stored when it ended, in whatever way, is in the spools and is sent by the next run.
//! 3. At the end the pollers drain their spools while the pipelines go on storing; then the pipelines end.
//!    What is still in the spools *waits*. *Lost* is what no run can bring any more.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result, anyhow};
use corrente_config::poller::MapKey;
use corrente_crds::common::KafkaCluster;
use corrente_crds::output::Format;
use corrente_pipeline::{PipelineState, sink::sqlite::SqliteSink};
use corrente_poller::{
    PollerState,
    spool::{Limits, Spool},
};
use corrente_record::{Quality, Reading};
use corrente_runtime::memory::MemoryBroker;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    display::Picture,
    figures::{Figures, Gone},
    pipelines::{self, Cluster},
};
use crate::site::Site;

/// Partitions of a topic in memory; more than one, so that order holds per meter only, as on a cluster.
const PARTITIONS: i32 = 4;

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

/// A poller, and what its spool had lost before this run.
struct Poller {
    state: Arc<PollerState>,
    before: Gone,
}

impl Poller {
    /// Records that no run can bring any more, since the start.
    fn lost(&self) -> u64 {
        let spool = self.state.report().spool;
        let gone = Gone {
            evicted: spool.evicted,
            refused: spool.refused,
            damaged: spool.damaged,
        };
        gone.since(self.before) + self.state.lost()
    }
}

/// The running chain.
pub struct Chain {
    pollers: Vec<Poller>,
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
    /// Where a pipeline has no table in SQLite, or a spool cannot be used.
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
        let mut brokers: BTreeMap<Cluster, MemoryBroker> = BTreeMap::new();
        let mut broker = |cluster: &KafkaCluster| {
            brokers
                .entry(Cluster::of(cluster))
                .or_insert_with(|| MemoryBroker::new(PARTITIONS))
                .clone()
        };
        // Consumers before producers: what is sent to a topic without a consumer counts as stored at once.
        for config in pipelines::of(&site, database) {
            let source = broker(&config.kafka).source(&config.topics);
            let sink = SqliteSink::new(&config).context("the pipeline has no SQLite table")?;
            let state = Arc::new(PipelineState::default());
            chain.pipelines.push(state.clone());
            let stop = chain.stop_storing.clone();
            chain
                .storing
                .spawn(corrente_pipeline::run(config, source, sink, state, stop));
        }
        for mut config in site.pollers {
            // The pipelines within read flat JSON, and nobody else can read along: a registry is not needed.
            config.output.format = Format::Json;
            let spool = data
                .join("spool")
                .join(format!("{}.{}", config.namespace, config.name));
            let before = gone(&spool)?;
            let latest = chain.latest.clone();
            let state = Arc::new(PollerState::new(Some(Arc::new(move |reading: &Reading| {
                latest.take(reading)
            }))));
            chain.pollers.push(Poller {
                state: state.clone(),
                before,
            });
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

    /// The figures so far.
    pub fn figures(&self) -> Figures {
        let mut figures = Figures {
            failed: *self.latest.failed.lock().unwrap_or_else(PoisonError::into_inner),
            ..Figures::default()
        };
        for poller in &self.pollers {
            figures.add_poller(&poller.state.report(), poller.lost());
        }
        for state in &self.pipelines {
            figures.add_pipeline(&state.report());
        }
        figures
    }

    /// Ends the pollers, each of which waits a few seconds for the pipelines to store what is in its spool,
    /// and then the pipelines.
    pub async fn end(mut self) -> Figures {
        self.stop_polling.cancel();
        while self.polling.join_next().await.is_some() {}
        // What they store from here on no spool hears of: it waits, and the sink knows it when it comes again.
        self.stop_storing.cancel();
        while self.storing.join_next().await.is_some() {}
        self.figures()
    }
}

/// What a spool had lost before this run.
fn gone(dir: &Path) -> Result<Gone> {
    // Opened for a moment, before its poller does; nothing is written to it, so that the bound does not matter.
    let stats = Spool::open(dir, Limits::new(0))?.stats();
    Ok(Gone {
        evicted: stats.evicted,
        refused: stats.refused,
        damaged: stats.damaged,
    })
}
