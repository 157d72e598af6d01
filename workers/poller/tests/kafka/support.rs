//! What the tests share: a spool, a publisher of it, and what is in a topic.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use corrente_config::Secrets;
use corrente_crds::{common::KafkaCluster, poller::KafkaOutput};
use corrente_poller::{
    kafka::KafkaProducer,
    publish::{Publisher, Trouble},
    spool::{Limits, Spool, shared::SharedSpool},
    window::WindowLimits,
};
use corrente_record::{Quality, Reading, Record, Timestamp, Value};
use rdkafka::{
    ClientConfig, Message,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    config::FromClientConfig,
    consumer::{BaseConsumer, Consumer},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// A variable that `stack.sh env` gives.
pub fn var(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: see e2e/stack.sh env"))
}

/// A name that no topic has.
pub fn unique() -> String {
    format!("poller-test-{}", corrente_poller::spool::stream::Stream::new().id)
}

pub fn output(bootstrap: &str, topic: &str) -> KafkaOutput {
    KafkaOutput {
        cluster: KafkaCluster {
            bootstrap_servers: bootstrap.split(',').map(str::to_owned).collect(),
            ..KafkaCluster::default()
        },
        topic: topic.to_owned(),
        ..KafkaOutput::default()
    }
}

pub fn open(dir: &Path) -> SharedSpool {
    SharedSpool::new(Spool::open(dir, Limits::new(1 << 26)).unwrap())
}

pub async fn fill(spool: &SharedSpool, records: i64, padding: usize) {
    for n in 0..records {
        let reading = Reading {
            ts: Timestamp(1_795_213_200_000 + n),
            meter: format!("m{}", n % 50).as_str().into(),
            slot: Timestamp(1_795_213_200_000),
            quality: Quality::Good,
            skipped: 0,
            labels: Arc::new(BTreeMap::new()),
            values: vec![
                ("voltage_l1_n".into(), Value::Float(229.8)),
                ("text".into(), Value::Text("x".repeat(padding))),
            ],
            bad: Vec::new(),
        };
        spool.append(&reading).unwrap();
    }
    spool.sync().await.unwrap();
}

/// A publisher of the spool; it ends when dropped.
pub struct Publishing {
    pub drain: CancellationToken,
    pub task: tokio::task::JoinHandle<()>,
    pub trouble: Arc<Trouble>,
}

impl Publishing {
    /// Waits until the trouble says so.
    pub async fn says(&self, part: &str) {
        let mut last = None;
        while !self.trouble.get().is_some_and(|trouble| trouble.contains(part)) {
            let now = self.trouble.get();
            if now != last {
                // Shown where the test does not end well.
                println!("waiting for \"{part}\": {now:?}");
                last = now;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn end(self) {
        self.drain.cancel();
        self.task.await.unwrap();
    }
}

pub fn publish(spool: &SharedSpool, output: &KafkaOutput, window: usize) -> Publishing {
    publish_with(spool, output, window, &Secrets::default())
}

pub fn publish_with(
    spool: &SharedSpool,
    output: &KafkaOutput,
    window: usize,
    secrets: &Secrets,
) -> Publishing {
    // Shorter than in the field, where a broker may take longer than a test has.
    let patience = Duration::from_secs(10);
    publish_with_patience(spool, output, window, secrets, patience)
}

/// Publishes through a producer that is replaced where nothing was heard for so long.
pub fn publish_with_patience(
    spool: &SharedSpool,
    output: &KafkaOutput,
    window: usize,
    secrets: &Secrets,
    patience: Duration,
) -> Publishing {
    let (sender, deliveries) = mpsc::unbounded_channel();
    let (trouble, drain) = (Arc::new(Trouble::default()), CancellationToken::new());
    let producer = KafkaProducer::with_patience(output, secrets, "test", sender, trouble.clone(), patience);
    let (spool, topic) = (spool.clone(), output.topic.clone());
    let (said, draining) = (trouble.clone(), drain.clone());
    let limits = WindowLimits {
        records: window,
        ..WindowLimits::default()
    };
    let task = tokio::spawn(async move {
        Publisher::new(spool, producer, deliveries, &topic, &said, limits)
            .run(draining)
            .await;
    });
    Publishing { drain, task, trouble }
}

pub async fn drained(spool: &SharedSpool) {
    while spool.lock().stats().pending > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The seqs of each partition, in the order of the log, until `wanted` different ones were read.
pub async fn consume(bootstrap: &str, topic: &str, wanted: usize) -> BTreeMap<i32, Vec<u64>> {
    let (bootstrap, topic) = (bootstrap.to_owned(), topic.to_owned());
    let reading = tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("group.id", format!("{topic}-check"))
            .set("auto.offset.reset", "earliest")
            .set("enable.auto.commit", "false")
            .create()
            .unwrap();
        consumer.subscribe(&[&topic]).unwrap();
        let mut partitions: BTreeMap<i32, Vec<u64>> = BTreeMap::new();
        let mut seen = std::collections::BTreeSet::new();
        while seen.len() < wanted {
            let Some(message) = consumer.poll(Duration::from_millis(200)) else {
                continue;
            };
            // A consumer that is still finding its way reports errors that pass.
            let Ok(message) = message else { continue };
            let record = Record::parse(message.payload().unwrap()).unwrap();
            assert_eq!(message.key().unwrap(), record.meter.as_bytes());
            seen.insert(record.seq.unwrap());
            partitions
                .entry(message.partition())
                .or_default()
                .push(record.seq.unwrap());
        }
        partitions
    });
    reading.await.unwrap()
}

/// What a sink stores of it: what is at or below the highest seq of the stream in its partition is a repeat to it.
pub fn stored_by_a_sink(partitions: &BTreeMap<i32, Vec<u64>>) -> Vec<u64> {
    let mut stored = Vec::new();
    for seqs in partitions.values() {
        let mut highest = 0;
        for &seq in seqs {
            if seq > highest {
                stored.push(seq);
                highest = seq;
            }
        }
    }
    stored.sort_unstable();
    stored
}

pub fn admin(bootstrap: &str) -> AdminClient<DefaultClientContext> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap);
    AdminClient::from_config(&config).unwrap()
}

pub async fn make_topic(bootstrap: &str, topic: &str, partitions: i32) {
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
    let made = admin(bootstrap)
        .create_topics(&[new], &AdminOptions::new())
        .await
        .unwrap();
    made.into_iter().for_each(|topic| drop(topic.unwrap()));
}

pub async fn with_topic(bootstrap: &str, partitions: i32) -> String {
    let topic = unique();
    make_topic(bootstrap, &topic, partitions).await;
    topic
}
