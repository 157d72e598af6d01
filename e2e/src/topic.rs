//! A scenario's topic: how far it is written, what is in it, and a record published by hand, as a foreign producer
//! would.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result};
use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    producer::{FutureProducer, FutureRecord},
};

use crate::stack::Stack;

/// Publishes one record, and waits until the broker has it.
///
/// # Errors
/// Where the broker does not take it.
pub async fn publish(stack: &Stack, topic: &str, key: &str, payload: &[u8]) -> Result<()> {
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", &stack.kafka)
        .create()
        .context("failed to make a producer")?;
    let record = FutureRecord::to(topic).key(key).payload(payload);
    match producer.send(record, Duration::from_secs(10)).await {
        Ok(_) => Ok(()),
        Err((error, _)) => Err(error).context("failed to publish a record"),
    }
}

/// How many partitions the topic has; 0 where there is none.
///
/// # Errors
/// Where the broker does not say.
pub async fn partitions(stack: &Stack, topic: &str) -> Result<usize> {
    let (servers, topic) = (stack.kafka.clone(), topic.to_owned());
    tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", servers)
            .set("group.id", "scenario")
            .create()?;
        // Of all topics: to ask for one makes it, where the broker is set up so.
        let metadata = consumer.fetch_metadata(None, Duration::from_secs(10))?;
        let of_it = metadata.topics().iter().find(|found| found.name() == topic);
        Ok(of_it.map_or(0, |topic| topic.partitions().len()))
    })
    .await?
}

/// The next offset to be written of each partition that holds anything.
///
/// # Errors
/// Where the broker does not say.
pub async fn written(stack: &Stack, topic: &str) -> Result<BTreeMap<i32, i64>> {
    let (servers, topic) = (stack.kafka.clone(), topic.to_owned());
    tokio::task::spawn_blocking(move || {
        let limit = Duration::from_secs(10);
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", servers)
            .set("group.id", "scenario")
            .create()?;
        let metadata = consumer.fetch_metadata(Some(&topic), limit)?;
        let partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
        let mut written = BTreeMap::new();
        for partition in partitions.map(|partition| partition.id()) {
            let (_, high) = consumer.fetch_watermarks(&topic, partition, limit)?;
            if high > 0 {
                written.insert(partition, high);
            }
        }
        Ok(written)
    })
    .await?
}

/// Every record in a topic, as JSON: those of each partition in their order.
///
/// # Errors
/// Where the broker does not give them, or one is no JSON.
pub async fn read(stack: &Stack, topic: &str) -> Result<Vec<serde_json::Value>> {
    let ends = written(stack, topic).await?;
    let (servers, topic) = (stack.kafka.clone(), topic.to_owned());
    tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", servers)
            .set("group.id", "scenario")
            .set("enable.auto.commit", "false")
            .create()?;
        let mut records = Vec::new();
        for (partition, end) in ends {
            let mut at = TopicPartitionList::new();
            at.add_partition_offset(&topic, partition, Offset::Beginning)?;
            consumer.assign(&at)?;
            loop {
                let message = consumer
                    .poll(Duration::from_secs(10))
                    .with_context(|| format!("partition {partition} ends before {end}"))??;
                records.push(serde_json::from_slice(message.payload().unwrap_or_default())?);
                if message.offset() + 1 >= end {
                    break;
                }
            }
        }
        Ok(records)
    })
    .await?
}
