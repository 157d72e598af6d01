//! Against librdkafka's own mock of a cluster.

use std::{sync::Arc, time::Duration};

use corrente_config::Secrets;
use corrente_poller::{kafka::KafkaProducer, publish::Trouble};
use corrente_runtime::broker::{Outcome, Outgoing, Producer as _, SendError};
use rdkafka::{
    mocking::MockCluster,
    types::{RDKafkaApiKey, RDKafkaRespErr},
};
use tokio::sync::mpsc;

use crate::support::{
    consume, drained, fill, open, output, publish, publish_with_patience, stored_by_a_sink,
};

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
    publishing.end().await;
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
    publishing.end().await;
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
    assert_eq!(stored_by_a_sink(&partitions), (1..=2_000).collect::<Vec<_>>());
    publishing.end().await;
}

/// A broker that answers every question, and every message with "later": librdkafka tries again for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_hears_nothing_gives_back_what_it_has_and_the_next_one_stores_it() {
    let cluster = mock();
    cluster.create_topic("one", 1, 1).unwrap();
    let later = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS;
    cluster.request_errors(RDKafkaApiKey::Produce, &[later; 1000]);
    let (sender, mut deliveries) = mpsc::unbounded_channel();
    let trouble = Arc::new(Trouble::default());
    let output = output(&cluster.bootstrap_servers(), "one");
    let patience = Duration::from_secs(1);
    let producer = KafkaProducer::with_patience(
        &output,
        &Secrets::default(),
        "test",
        sender,
        trouble.clone(),
        patience,
    );
    assert_eq!(producer.partitions().await.unwrap(), 1);
    let send = |token: u64| {
        producer.send(Outgoing {
            key: (*b"m").into(),
            payload: (*b"{}").into(),
            headers: Vec::new(),
            partition: 0,
            token,
        })
    };
    send(1).unwrap();
    // The first of a partition goes alone, so that a producer that is replaced in vain sends one message again.
    assert!(matches!(send(2), Err(SendError::QueueFull)));
    for _ in 0..2 {
        let delivery = deliveries.recv().await.unwrap();
        assert_eq!(delivery.token, 1);
        assert!(matches!(delivery.outcome, Outcome::Again(_)), "{delivery:?}");
        // The new one takes nothing before it was heard what the old one gave back.
        while send(1).is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    cluster.clear_request_errors(RDKafkaApiKey::Produce);
    let delivery = deliveries.recv().await.unwrap();
    assert_eq!((delivery.token, delivery.outcome), (1, Outcome::Stored));
}

/// Replaced again and again while the broker takes longer to answer than the poller has patience.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_merely_slow_has_everything_in_order() {
    let cluster = mock();
    cluster.create_topic("one", 1, 1).unwrap();
    let output = output(&cluster.bootstrap_servers(), "one");
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    fill(&spool, 100, 200).await;
    cluster
        .broker_round_trip_time(1, Duration::from_millis(200))
        .unwrap();
    let patience = Duration::from_millis(150);
    let publishing = publish_with_patience(&spool, &output, 10_000, &Secrets::default(), patience);
    drained(&spool).await;
    cluster.broker_round_trip_time(1, Duration::ZERO).unwrap();
    let partitions = consume(&cluster.bootstrap_servers(), "one", 100).await;
    assert_eq!(stored_by_a_sink(&partitions), (1..=100).collect::<Vec<_>>());
    publishing.end().await;
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
    publishing.end().await;
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
    publishing.end().await;
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
