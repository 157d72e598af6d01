//! The source on librdkafka's own mock of a cluster.

use std::{collections::BTreeMap, time::Duration};

use corrente_config::{Secrets, once::OnceConfig, pipeline::SinkConfig};
use corrente_crds::{common::KafkaCluster, pipeline::Batch};
use rdkafka::{
    mocking::MockCluster,
    producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer},
};
use tokio::time::timeout;

use super::*;

const PARTITIONS: i32 = 2;
const MESSAGES: i64 = 20_000;

fn source(servers: String) -> KafkaSource {
    let config = PipelineConfig {
        namespace: "test".to_owned(),
        name: "source".to_owned(),
        kafka: KafkaCluster {
            bootstrap_servers: vec![servers],
            ..KafkaCluster::default()
        },
        topics: vec!["t".to_owned()],
        group: "g".to_owned(),
        sink: SinkConfig::Sqlite {
            path: "unused".into(),
            table: "unused".to_owned(),
        },
        columns: BTreeMap::new(),
        transforms: vec![],
        derived: None,
        alerts: None,
        batch: Batch::default(),
        once: OnceConfig::default(),
    };
    let access = Access::new(&config.kafka, &Secrets::default());
    KafkaSource::new(&config, &access, &access.read().unwrap()).unwrap()
}

/// What was taken when it was heard that some topic is another one now is not used, whatever topic it is of. It is read
/// again.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_used_is_read_again() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("t", PARTITIONS, 1).unwrap();
    let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", cluster.bootstrap_servers())
        .create()
        .unwrap();
    for offset in 0..MESSAGES {
        for partition in 0..PARTITIONS {
            let payload = format!("{offset:0>100}");
            let record = BaseRecord::to("t")
                .partition(partition)
                .key("m")
                .payload(&payload);
            producer.send(record).map_err(|(error, _)| error).unwrap();
        }
    }
    producer.flush(Duration::from_secs(30)).unwrap();
    let mut source = source(cluster.bootstrap_servers());
    let mut next: BTreeMap<i32, i64> = (0..PARTITIONS).map(|partition| (partition, 0)).collect();
    let mut heard = 0;
    while next.values().any(|next| *next < MESSAGES) {
        let event = timeout(Duration::from_secs(60), source.next()).await;
        match event.unwrap_or_else(|_| panic!("only so far: {next:?}")) {
            SourceEvent::Assigned(places) => {
                source.start(
                    places
                        .into_iter()
                        .map(|place| (place, Start::Beginning))
                        .collect(),
                );
            }
            SourceEvent::Messages(place, messages) => {
                let next = next.get_mut(&place.partition).unwrap();
                for message in messages.iter() {
                    assert_eq!(message.offset, *next, "partition {}", place.partition);
                    *next += 1;
                }
                let consumer = source.consumer.as_ref().unwrap();
                let line = "[thrd:main]: Topic other changed id from EXYuaO0tRAK4M3HmGN-7Yg to lc0ghMpnTRSu1yrpzGTyOw";
                consumer.context().remade.hear(line);
                heard += 1;
            }
            SourceEvent::Trouble(_) => {}
            event => panic!("{event:?}"),
        }
    }
    assert!(heard > 4, "{heard} groups are too few to tell");
}
