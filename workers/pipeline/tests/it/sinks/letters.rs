//! What is in a pipeline's dead-letter topic.

use std::time::{Duration, Instant};

use corrente_config::PipelineConfig;
use corrente_pipeline::source::kafka::topic_of;
use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    message::Headers as _,
};

/// A dead letter: the offset and the column it names, the reason, and the message.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Letter {
    pub offset: i64,
    pub column: Option<String>,
    pub reason: String,
    pub payload: String,
}

/// Waits until the dead-letter topic holds letters of `count` messages, and gives them in the order of their offsets.
pub fn letters(config: &PipelineConfig, count: usize) -> Vec<Letter> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", config.kafka.bootstrap_servers.join(","))
        .set("group.id", "letters")
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&topic_of(config), 0, Offset::Beginning)
        .unwrap();
    consumer.assign(&list).unwrap();
    let mut found: Vec<Letter> = vec![];
    let until = Instant::now() + Duration::from_secs(60);
    while found.len() < count {
        assert!(Instant::now() < until, "{found:?}");
        let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) else {
            continue;
        };
        let header = |name: &str| {
            let headers = message.headers().unwrap();
            let found = headers.iter().find(|header| header.key == name);
            found.map(|header| String::from_utf8(header.value.unwrap().to_vec()).unwrap())
        };
        let letter = Letter {
            offset: header("x-origin-offset").unwrap().parse().unwrap(),
            column: header("x-column"),
            reason: header("x-reason").unwrap(),
            payload: String::from_utf8_lossy(message.payload().unwrap()).into_owned(),
        };
        assert_eq!(
            header("x-origin-topic").as_deref(),
            Some(config.topics[0].as_str())
        );
        if !found.contains(&letter) {
            found.push(letter);
        }
    }
    found.sort();
    found
}
