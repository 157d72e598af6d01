//! The Kafka producer: against librdkafka's own mock of a cluster, and against a real broker where
//! `CORRENTE_TEST_KAFKA` names one (`cargo nextest run --run-ignored all`).
#![cfg(feature = "kafka")]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

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
use corrente_runtime::broker::Producer as _;
use rdkafka::{
    ClientConfig, Message,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    config::FromClientConfig,
    consumer::{BaseConsumer, Consumer},
    mocking::MockCluster,
    types::{RDKafkaApiKey, RDKafkaRespErr},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

fn output(bootstrap: &str, topic: &str) -> KafkaOutput {
    KafkaOutput {
        cluster: KafkaCluster {
            bootstrap_servers: bootstrap.split(',').map(str::to_owned).collect(),
            ..KafkaCluster::default()
        },
        topic: topic.to_owned(),
        ..KafkaOutput::default()
    }
}

fn open(dir: &Path) -> SharedSpool {
    SharedSpool::new(Spool::open(dir, Limits::new(1 << 26)).unwrap())
}

async fn fill(spool: &SharedSpool, records: i64, padding: usize) {
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
struct Publishing {
    drain: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    trouble: Arc<Trouble>,
}

fn publish(spool: &SharedSpool, output: &KafkaOutput, window: usize) -> Publishing {
    let (sender, deliveries) = mpsc::unbounded_channel();
    let (trouble, drain) = (Arc::new(Trouble::default()), CancellationToken::new());
    let producer = KafkaProducer::new(output, &Secrets::default(), "test", sender, trouble.clone());
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

async fn drained(spool: &SharedSpool) {
    while spool.lock().stats().pending > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The seqs of each partition, in the order of the log, until `wanted` different ones were read.
async fn consume(bootstrap: &str, topic: &str, wanted: usize) -> BTreeMap<i32, Vec<u64>> {
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

fn mock() -> MockCluster<'static, impl rdkafka::ClientContext> {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("meters", 3, 1).unwrap();
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_goes_and_comes_back_gets_every_record_once() {
    let cluster = mock();
    let output = output(&cluster.bootstrap_servers(), "meters");
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    fill(&spool, 500, 0).await;
    let publishing = publish(&spool, &output, 10_000);
    drained(&spool).await;
    cluster.broker_down(1).unwrap();
    fill(&spool, 500, 0).await;
    while publishing.trouble.get().is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(spool.lock().stats().pending, 500);
    cluster.broker_up(1).unwrap();
    drained(&spool).await;
    assert_eq!(publishing.trouble.get(), None);
    let partitions = consume(&cluster.bootstrap_servers(), "meters", 1000).await;
    assert_eq!(partitions.len(), 3);
    for seqs in partitions.values() {
        assert!(
            seqs.windows(2).all(|pair| pair[0] < pair[1]),
            "in order, and none twice"
        );
    }
    publishing.drain.cancel();
    publishing.task.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fatal_error_costs_a_producer_and_no_record() {
    let cluster = mock();
    let output = output(&cluster.bootstrap_servers(), "meters");
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    fill(&spool, 200, 0).await;
    // Not authorised as an idempotent producer: fatal for librdkafka, and what an administrator puts right.
    cluster.request_errors(
        RDKafkaApiKey::InitProducerId,
        &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED],
    );
    let publishing = publish(&spool, &output, 10_000);
    drained(&spool).await;
    let partitions = consume(&cluster.bootstrap_servers(), "meters", 200).await;
    for seqs in partitions.values() {
        assert!(seqs.windows(2).all(|pair| pair[0] < pair[1]), "{seqs:?}");
    }
    publishing.drain.cancel();
    publishing.task.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_record_overtakes_one_that_comes_back() {
    let fine = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR;
    let gone = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    nothing_is_overtaken(&[fine, gone, fine, fine, fine, fine, fine, gone]).await;
}

/// A broker takes any batch for the first of a producer that it does not know yet.
#[tokio::test(flavor = "multi_thread")]
async fn no_record_overtakes_the_very_first_one_of_a_producer() {
    let gone = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    let few = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS;
    // Given back by the producer, and tried again by librdkafka itself.
    nothing_is_overtaken(&[gone]).await;
    nothing_is_overtaken(&[few]).await;
}

/// What happens to produce requests in turn, while more batches of the partition would be in flight.
async fn nothing_is_overtaken(answers: &[RDKafkaRespErr]) {
    let cluster = mock();
    cluster.create_topic("one", 1, 1).unwrap();
    let output = output(&cluster.bootstrap_servers(), "one");
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    fill(&spool, 2_000, 200).await;
    cluster
        .broker_round_trip_time(1, Duration::from_millis(30))
        .unwrap();
    cluster.request_errors(RDKafkaApiKey::Produce, answers);
    let publishing = publish(&spool, &output, 10_000);
    drained(&spool).await;
    cluster.broker_round_trip_time(1, Duration::ZERO).unwrap();
    assert_eq!(spool.lock().stats().refused, 0);
    let partitions = consume(&cluster.bootstrap_servers(), "one", 2_000).await;
    for seqs in partitions.values() {
        // What the sink does: at or below the highest seq so far is a repeat.
        let mut seen = std::collections::BTreeSet::new();
        for seq in seqs {
            assert!(
                seen.last().is_none_or(|highest| seq > highest) || seen.contains(seq),
                "{seq} was overtaken by {:?}",
                seen.last()
            );
            seen.insert(*seq);
        }
    }
    publishing.drain.cancel();
    publishing.task.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_too_large_is_set_aside() {
    let cluster = mock();
    let output = output(&cluster.bootstrap_servers(), "meters");
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    fill(&spool, 10, 0).await;
    fill(&spool, 1, 2_000_000).await;
    fill(&spool, 10, 0).await;
    let publishing = publish(&spool, &output, 10_000);
    drained(&spool).await;
    assert_eq!(spool.lock().stats().refused, 1);
    let partitions = consume(&cluster.bootstrap_servers(), "meters", 20).await;
    assert!(partitions.values().flatten().all(|seq| *seq != 11));
    publishing.drain.cancel();
    publishing.task.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_too_large_costs_few_records() {
    let cluster = mock();
    cluster.create_topic("one", 1, 1).unwrap();
    let output = output(&cluster.bootstrap_servers(), "one");
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    fill(&spool, 2_000, 200).await;
    cluster.request_errors(
        RDKafkaApiKey::Produce,
        &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE],
    );
    let publishing = publish(&spool, &output, 10_000);
    drained(&spool).await;
    let refused = spool.lock().stats().refused;
    assert!((1..200).contains(&refused), "{refused}");
    let kept = 2_000 - usize::try_from(refused).unwrap();
    let partitions = consume(&cluster.bootstrap_servers(), "one", kept).await;
    assert_eq!(partitions.len(), 1);
    publishing.drain.cancel();
    publishing.task.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_broker_is_named() {
    let (sender, _deliveries) = mpsc::unbounded_channel();
    let gone = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let producer = KafkaProducer::new(
        &output(&gone.to_string(), "meters"),
        &Secrets::default(),
        "test",
        sender,
        Arc::default(),
    );
    let error = producer.partitions().await.unwrap_err().to_string();
    assert!(error.contains("the broker does not answer"), "{error}");
}

async fn with_topic(bootstrap: &str, partitions: i32) -> String {
    let topic = format!("poller-test-{}", corrente_poller::spool::stream::Stream::new().id);
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap);
    let admin = AdminClient::<DefaultClientContext>::from_config(&config).unwrap();
    let new = NewTopic::new(&topic, partitions, TopicReplication::Fixed(1));
    let made = admin.create_topics(&[new], &AdminOptions::new()).await.unwrap();
    made.into_iter().for_each(|topic| drop(topic.unwrap()));
    topic
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kafka broker: set CORRENTE_TEST_KAFKA to its host:port"]
async fn a_real_broker_gets_every_record_once_and_in_order() {
    let bootstrap = std::env::var("CORRENTE_TEST_KAFKA").expect("CORRENTE_TEST_KAFKA is not set");
    let topic = with_topic(&bootstrap, 3).await;
    let output = output(&bootstrap, &topic);
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    fill(&spool, 10_000, 0).await;
    let started = std::time::Instant::now();
    let publishing = publish(&spool, &output, 10_000);
    drained(&spool).await;
    println!("10,000 records published in {:?}", started.elapsed());
    publishing.drain.cancel();
    publishing.task.await.unwrap();
    let partitions = consume(&bootstrap, &topic, 10_000).await;
    assert_eq!(partitions.len(), 3);
    let mut all: Vec<u64> = partitions.values().flatten().copied().collect();
    all.sort_unstable();
    assert_eq!(all, (1..=10_000).collect::<Vec<_>>(), "each once");
    for seqs in partitions.values() {
        assert!(
            seqs.windows(2).all(|pair| pair[0] < pair[1]),
            "in the order of the spool"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kafka broker: set CORRENTE_TEST_KAFKA to its host:port"]
async fn a_publisher_that_is_killed_sends_again_what_a_sink_recognises() {
    let bootstrap = std::env::var("CORRENTE_TEST_KAFKA").expect("CORRENTE_TEST_KAFKA is not set");
    let topic = with_topic(&bootstrap, 3).await;
    let output = output(&bootstrap, &topic);
    let dir = tempfile::tempdir().unwrap();
    let mut kills = 0;
    {
        let spool = open(dir.path());
        fill(&spool, 5_000, 0).await;
    }
    loop {
        let spool = open(dir.path());
        let before = spool.lock().acknowledged();
        if before == 5_000 {
            break;
        }
        let publishing = publish(&spool, &output, 500);
        // Killed as soon as it has got somewhere.
        while spool.lock().acknowledged() < (before + 700).min(5_000) {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        publishing.task.abort();
        let _ = publishing.task.await;
        kills += 1;
    }
    assert!(kills > 1);
    let partitions = consume(&bootstrap, &topic, 5_000).await;
    // What the sink does: at or below the highest seq of the stream in this partition is a repeat.
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
    assert_eq!(stored, (1..=5_000).collect::<Vec<_>>());
    println!(
        "{kills} kills, {} repeats",
        partitions.values().flatten().count() - 5_000
    );
}
