//! What the tests share: configurations, records, a worker as a task, and waiting.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use corrente_config::{
    PipelineConfig, Secrets, once::OnceConfig, pipeline::SinkConfig, report::PipelineReport,
};
use corrente_crds::{Duration as Span, common::KafkaCluster, pipeline::Batch};
use corrente_pipeline::{PipelineState, run, sink::Sink, source::kafka::KafkaSource};
use corrente_runtime::{
    broker::{Outgoing, Producer as _, Source},
    kafka::Access,
    memory::{MemoryBroker, MemoryProducer},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A name that nothing else has, on this machine and now.
pub fn unique(what: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let mixed = now ^ (u64::from(std::process::id()) << 40);
    format!(
        "{what}_{:x}_{}",
        mixed & 0xffff_ffff_ffff,
        COUNT.fetch_add(1, Ordering::Relaxed)
    )
}

/// A consumer of a cluster that lets everybody in.
pub fn source(config: &PipelineConfig) -> KafkaSource {
    let access = Access::new(&config.kafka, &Secrets::default());
    KafkaSource::new(config, &access, &access.read().unwrap()).unwrap()
}

/// A configuration with small batches, so that there are many.
pub fn config(name: &str, topics: &[&str], sink: SinkConfig) -> PipelineConfig {
    PipelineConfig {
        namespace: "test".to_owned(),
        name: name.to_owned(),
        kafka: KafkaCluster {
            bootstrap_servers: vec![std::env::var("CORRENTE_TEST_KAFKA").unwrap_or("127.0.0.1:9".to_owned())],
            ..KafkaCluster::default()
        },
        topics: topics.iter().map(|&topic| topic.to_owned()).collect(),
        group: format!("corrente.test.{name}"),
        sink,
        columns: BTreeMap::new(),
        transforms: vec![],
        derived: None,
        alerts: None,
        batch: Batch {
            max_rows: 200,
            max_bytes: 64 * 1024,
            max_age: Span::from_millis(50),
            writers: 2,
        },
        once: OnceConfig::default(),
    }
}

/// A record as a poller writes it.
pub fn record(stream: &str, seq: u64) -> String {
    let (minute, second) = (seq / 60 % 60, seq % 60);
    format!(
        r#"{{"ts":"2026-11-20T22:{minute:02}:{second:02}.000Z","meter":"{stream}","slot":"2026-11-20T22:{minute:02}:{second:02}.000Z","stream":"{stream}","seq":{seq},"quality":"good","voltage":{seq}.5}}"#
    )
}

/// A worker as a task.
pub struct Worker {
    pub state: Arc<PipelineState>,
    shutdown: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Worker {
    pub fn start<S: Source + 'static, K: Sink>(config: &PipelineConfig, source: S, sink: K) -> Self {
        let (state, shutdown) = (Arc::new(PipelineState::default()), CancellationToken::new());
        let task = tokio::spawn(run(config.clone(), source, sink, state.clone(), shutdown.clone()));
        Self {
            state,
            shutdown,
            task,
        }
    }

    pub fn report(&self) -> PipelineReport {
        self.state.report()
    }

    /// Asks it to end, and waits until it has.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }

    /// Cuts it off wherever it is.
    pub async fn abort(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    pub async fn trouble(&self, says: &str) {
        wait(&format!("trouble that says {says:?}"), async || {
            self.report()
                .trouble
                .is_some_and(|trouble| trouble.reason.contains(says))
        })
        .await;
    }
}

/// Waits until `condition` holds, for a minute and a half at most.
pub async fn wait(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(90);
    while !condition().await {
        assert!(Instant::now() < until, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A producer of the in-process broker whose deliveries nobody needs.
pub fn producer(broker: &MemoryBroker, topic: &str) -> MemoryProducer {
    let (deliveries, _) = tokio::sync::mpsc::unbounded_channel();
    broker.producer(topic, deliveries)
}

pub fn send(producer: &MemoryProducer, partition: i32, payload: &str) {
    let message = Outgoing {
        key: (*b"m").into(),
        payload: payload.as_bytes().into(),
        headers: Vec::new(),
        partition,
        token: 0,
    };
    producer.send(message).unwrap();
}
