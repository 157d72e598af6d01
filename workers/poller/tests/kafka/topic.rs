//! Topics on a real broker: made where asked for, deleted and made anew while the poller runs.

use corrente_config::Secrets;
use corrente_crds::{
    kafka::{KafkaSasl, KafkaTls, SaslMechanism},
    output::CreateTopic,
    poller::KafkaOutput,
};
use rdkafka::{
    admin::{AdminOptions, ResourceSpecifier},
    consumer::{BaseConsumer, Consumer as _},
};

use crate::support::{
    admin, consume, drained, fill, make_topic, open, output, publish, publish_with, unique, var, with_topic,
};

async fn setting(bootstrap: &str, topic: &str, name: &str) -> String {
    let described = admin(bootstrap)
        .describe_configs([&ResourceSpecifier::Topic(topic)], &AdminOptions::new())
        .await
        .unwrap();
    let resource = described.into_iter().next().unwrap().unwrap();
    resource.get(name).unwrap().value.clone().unwrap()
}

async fn partitions(bootstrap: &str, topic: &str) -> usize {
    let (bootstrap, topic) = (bootstrap.to_owned(), topic.to_owned());
    let asking = tokio::task::spawn_blocking(move || {
        let mut config = rdkafka::ClientConfig::new();
        let consumer: BaseConsumer = config.set("bootstrap.servers", bootstrap).create().unwrap();
        let metadata = consumer
            .fetch_metadata(Some(&topic), std::time::Duration::from_secs(10))
            .unwrap();
        metadata.topics().first().unwrap().partitions().len()
    });
    asking.await.unwrap()
}

fn with_create(mut output: KafkaOutput, partitions: i32, replication_factor: i32) -> KafkaOutput {
    output.create_topic = Some(CreateTopic {
        partitions,
        replication_factor,
        retention: Some("36h".parse().unwrap()),
    });
    output
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kafka broker: set what e2e/stack.sh env gives"]
async fn a_topic_is_made_as_asked_and_one_that_is_there_is_left_alone() {
    let bootstrap = var("CORRENTE_TEST_KAFKA");
    let there = with_topic(&bootstrap, 2).await;
    for (topic, expected, timestamps) in [(unique(), 5, "LogAppendTime"), (there, 2, "CreateTime")] {
        let output = with_create(output(&bootstrap, &topic), 5, 1);
        let dir = tempfile::tempdir().unwrap();
        let spool = open(dir.path());
        fill(&spool, 20, 0).await;
        let publishing = publish(&spool, &output, 10_000);
        drained(&spool).await;
        publishing.end().await;
        assert_eq!(partitions(&bootstrap, &topic).await, expected);
        assert_eq!(
            setting(&bootstrap, &topic, "message.timestamp.type").await,
            timestamps
        );
        let retention = setting(&bootstrap, &topic, "retention.ms").await;
        assert_eq!(retention == "129600000", expected == 5, "{retention}");
        consume(&bootstrap, &topic, 20).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kafka broker: set what e2e/stack.sh env gives"]
async fn a_topic_that_cannot_be_made_is_said_and_waited_for() {
    let bootstrap = var("CORRENTE_TEST_KAFKA");
    // More copies than there are brokers.
    let topic = unique();
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    fill(&spool, 20, 0).await;
    let publishing = publish(&spool, &with_create(output(&bootstrap, &topic), 3, 9), 10_000);
    publishing.says("lower createTopic.replicationFactor").await;
    make_topic(&bootstrap, &topic, 1).await;
    drained(&spool).await;
    publishing.end().await;
    // A user without rights.
    let topic = unique();
    let mut output = with_create(output(&var("CORRENTE_TEST_KAFKA_SASL"), &topic), 3, 1);
    output.cluster.tls = Some(KafkaTls {
        ca_secret: Some("authority".to_owned()),
        client_certificate_secret: None,
    });
    output.cluster.sasl = Some(KafkaSasl {
        mechanism: SaslMechanism::ScramSha512,
        secret_name: "login".to_owned(),
    });
    let secrets = tempfile::tempdir().unwrap();
    for (file, text) in [
        (
            "ca/ca.crt",
            std::fs::read_to_string(format!("{}/kafka/ca/ca.crt", var("CORRENTE_TEST_SECRETS"))).unwrap(),
        ),
        ("sasl/username", "guest".to_owned()),
        ("sasl/password", "guest".to_owned()),
    ] {
        let path = secrets.path().join("kafka").join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let publishing = publish_with(&spool, &output, 10_000, &Secrets::new(secrets.path()));
    publishing.says("give it the right to create").await;
    publishing.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Kafka broker: set what e2e/stack.sh env gives"]
async fn a_topic_made_anew_under_a_running_poller_is_taken_up() {
    let bootstrap = var("CORRENTE_TEST_KAFKA");
    let topic = with_topic(&bootstrap, 6).await;
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    fill(&spool, 300, 0).await;
    let publishing = publish(&spool, &output(&bootstrap, &topic), 10_000);
    drained(&spool).await;
    assert_eq!(spool.lock().stream().partitions.as_ref().unwrap().count, 6);
    for (there_are, uses) in [(2, 2), (4, 2)] {
        let deleted = admin(&bootstrap)
            .delete_topics(&[&topic], &AdminOptions::new())
            .await
            .unwrap();
        deleted.into_iter().for_each(|topic| drop(topic.unwrap()));
        // At once: a broker that makes topics by itself would do it for whoever asks for this one.
        make_topic(&bootstrap, &topic, there_are).await;
        fill(&spool, 300, 0).await;
        drained(&spool).await;
        assert_eq!(spool.lock().stream().partitions.as_ref().unwrap().count, uses);
        consume(&bootstrap, &topic, 300).await;
    }
    publishing.end().await;
}
