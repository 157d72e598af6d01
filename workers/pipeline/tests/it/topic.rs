//! A topic in the real broker for one test.

use std::time::Duration;

use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer},
};

use crate::support::{record, unique};

pub fn servers() -> String {
    std::env::var("CORRENTE_TEST_KAFKA").expect("CORRENTE_TEST_KAFKA names no Kafka broker")
}

pub struct Topic {
    pub name: String,
    partitions: i32,
    admin: AdminClient<DefaultClientContext>,
    producer: ThreadedProducer<DefaultProducerContext>,
}

impl Topic {
    /// A name for a topic, which is not made yet.
    pub fn new(partitions: i32) -> Self {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", servers());
        let admin = client.create().unwrap();
        let producer = client
            .set("enable.idempotence", "true")
            .set("linger.ms", "5")
            .create()
            .unwrap();
        Self {
            name: unique("topic"),
            partitions,
            admin,
            producer,
        }
    }

    pub async fn create(&self) {
        let topic = NewTopic::new(&self.name, self.partitions, TopicReplication::Fixed(1));
        // Just after a deletion the broker may still know the old one.
        crate::support::wait("the topic", async || {
            let made = self
                .admin
                .create_topics([&topic], &AdminOptions::new())
                .await
                .unwrap();
            made.into_iter().all(|result| result.is_ok())
        })
        .await;
    }

    pub async fn delete(&self) {
        let deleted = self
            .admin
            .delete_topics(&[&self.name], &AdminOptions::new())
            .await
            .unwrap();
        assert!(deleted.into_iter().all(|result| result.is_ok()));
    }

    /// Deletes a consumer group, once its last member has left.
    pub async fn delete_group(&self, group: &str) {
        crate::support::wait("the end of the group", async || {
            let deleted = self.admin.delete_groups(&[group], &AdminOptions::new()).await;
            deleted.is_ok_and(|all| all.iter().all(Result::is_ok))
        })
        .await;
    }

    /// Deletes what is before `offset`, as retention does.
    pub async fn forget(&self, partition: i32, offset: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.name, partition, Offset::Offset(offset))
            .unwrap();
        self.admin
            .delete_records(&list, &AdminOptions::new())
            .await
            .unwrap();
    }

    pub fn send(&self, partition: i32, payload: &str) {
        loop {
            let message = BaseRecord::to(&self.name)
                .partition(partition)
                .key("m")
                .payload(payload);
            match self.producer.send(message) {
                Ok(()) => return,
                Err(_) => self.producer.flush(Duration::from_millis(100)).unwrap_or(()),
            }
        }
    }

    /// Sends a stream's records, from one seq up to another, and waits until the broker has them.
    pub fn send_stream(&self, partition: i32, stream: &str, seqs: std::ops::Range<u64>) {
        for seq in seqs {
            self.send(partition, &record(stream, seq));
        }
        self.producer.flush(Duration::from_secs(30)).unwrap();
    }
}
