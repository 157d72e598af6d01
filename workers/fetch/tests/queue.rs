//! The queue beside a consumer, with librdkafka's own cluster in this process.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use corrente_fetch::Queue;
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _, DefaultConsumerContext},
    mocking::MockCluster,
    producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer as _},
    types::RDKafkaErrorCode,
};

const TOPIC: &str = "meters";
const PARTITIONS: i32 = 2;
const MESSAGES: i64 = 500;
const PATIENCE: Duration = Duration::from_secs(30);

/// A cluster whose topic has messages that say their offset, every tenth of them without a key.
fn cluster() -> MockCluster<'static, DefaultProducerContext> {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic(TOPIC, PARTITIONS, 1).unwrap();
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", cluster.bootstrap_servers())
        .create()
        .unwrap();
    for partition in 0..PARTITIONS {
        for offset in 0..MESSAGES {
            let payload = offset.to_string();
            let record = BaseRecord::to(TOPIC).partition(partition).payload(&payload);
            let record = if offset % 10 == 0 { record } else { record.key("m") };
            producer.send(record).map_err(|(error, _)| error).unwrap();
        }
    }
    producer.flush(PATIENCE).unwrap();
    cluster
}

fn consumer(cluster: &MockCluster<'_, DefaultProducerContext>) -> Arc<BaseConsumer> {
    let consumer = ClientConfig::new()
        .set("bootstrap.servers", cluster.bootstrap_servers())
        .set("group.id", "g")
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "error")
        .create()
        .unwrap();
    Arc::new(consumer)
}

fn places(offset: i64) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        list.add_partition_offset(TOPIC, partition, Offset::Offset(offset))
            .unwrap();
    }
    list
}

/// The queue with all partitions, as they are read from an offset on.
fn started(consumer: &Arc<BaseConsumer>, offset: i64) -> Queue<DefaultConsumerContext> {
    let queue = Queue::new(consumer.clone()).unwrap();
    redirect(&queue);
    consumer.incremental_assign(&places(offset)).unwrap();
    queue
}

fn redirect(queue: &Queue<DefaultConsumerContext>) {
    for partition in 0..PARTITIONS {
        queue.redirect(TOPIC, partition).unwrap();
    }
}

/// Takes messages until the last of each partition has come, and sees that they come in order and without a gap.
fn take_all(queue: &Queue<DefaultConsumerContext>, consumer: &BaseConsumer, from: i64) {
    let mut next: BTreeMap<i32, i64> = (0..PARTITIONS).map(|partition| (partition, from)).collect();
    let begun = Instant::now();
    while next.values().any(|next| *next < MESSAGES) {
        assert!(begun.elapsed() < PATIENCE, "only so far: {next:?}");
        redirect(queue);
        let beside = consumer.poll(Duration::ZERO);
        assert!(beside.is_none(), "{beside:?}");
        for message in queue.take(16, Duration::from_millis(10)).iter() {
            assert_eq!((message.error(), message.topic()), (None, TOPIC));
            let next = next.get_mut(&message.partition()).unwrap();
            assert_eq!(message.offset(), *next, "partition {}", message.partition());
            assert_eq!(message.payload(), Some(next.to_string().as_bytes()));
            let key: Option<&[u8]> = (*next % 10 != 0).then_some(b"m");
            assert_eq!(message.key(), key);
            assert!(message.timestamp().is_some_and(|at| at > 1_700_000_000_000));
            *next += 1;
        }
    }
    assert!(queue.take(16, Duration::ZERO).is_empty());
}

#[test]
fn messages_come_in_order_and_none_beside_the_queue() {
    let cluster = cluster();
    let consumer = consumer(&cluster);
    let queue = started(&consumer, 0);
    take_all(&queue, &consumer, 0);
}

/// Also while librdkafka still ends what was started before, which makes it forget where partitions lead.
#[test]
fn partitions_that_are_started_anew_are_read_from_there() {
    let cluster = cluster();
    let consumer = consumer(&cluster);
    let queue = started(&consumer, 0);
    for from in [0, 100, 7, 499, 250] {
        // Some of what was read before is in the queue yet.
        let begun = Instant::now();
        while queue.take(1, Duration::from_millis(10)).is_empty() {
            redirect(&queue);
            assert!(begun.elapsed() < PATIENCE);
        }
        consumer.incremental_unassign(&places(0)).unwrap();
        redirect(&queue);
        consumer.incremental_assign(&places(from)).unwrap();
        take_all(&queue, &consumer, from);
        consumer.incremental_unassign(&places(0)).unwrap();
        redirect(&queue);
        consumer.incremental_assign(&places(0)).unwrap();
    }
}

#[test]
fn an_offset_that_is_not_in_the_log_is_said_and_a_batch_may_be_left_half_way() {
    let cluster = cluster();
    let consumer = consumer(&cluster);
    let queue = started(&consumer, MESSAGES + 1_000);
    let begun = Instant::now();
    let error = loop {
        assert!(begun.elapsed() < PATIENCE);
        let batch = queue.take(16, Duration::from_millis(10));
        // No more than the first of them is looked at.
        if let Some(message) = batch.iter().next() {
            assert_eq!(message.topic(), TOPIC);
            assert!(message.reason().contains("offset"), "{}", message.reason());
            break message.error();
        }
    };
    assert_eq!(error, Some(RDKafkaErrorCode::AutoOffsetReset));
    // With partitions that still lead into it.
    drop(queue);
    assert!(consumer.poll(Duration::ZERO).is_none());
}
