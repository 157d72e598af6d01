//! A record published by hand, as a foreign producer would.

use std::time::Duration;

use anyhow::{Context, Result};
use rdkafka::{
    ClientConfig,
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
