//! The Kafka source on librdkafka's own mock of a broker, which can be taken away and given back.

use std::time::Duration;

use corrente_config::pipeline::SinkConfig;
use corrente_pipeline::sink::sqlite::SqliteSink;
use rdkafka::{
    ClientConfig,
    mocking::MockCluster,
    producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer},
};

use crate::support::{Worker, config, record, source, wait};

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_goes_away_is_waited_for() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("t", 2, 1).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let sink = SinkConfig::Sqlite {
        path: folder.path().join("readings.db"),
        table: "readings".to_owned(),
    };
    let mut config = config("mock", &["t"], sink);
    config.kafka.bootstrap_servers = vec![cluster.bootstrap_servers()];
    let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", cluster.bootstrap_servers())
        .create()
        .unwrap();
    let send = |seqs: std::ops::Range<u64>| {
        for seq in seqs {
            let payload = record("s", seq);
            producer
                .send(BaseRecord::to("t").partition(0).key("m").payload(&payload))
                .map_err(|(e, _)| e)
                .unwrap();
        }
        producer.flush(Duration::from_secs(20)).unwrap();
    };
    send(0..100);
    let worker = Worker::start(&config, source(&config), SqliteSink::new(&config).unwrap());
    wait("the first rows", async || worker.report().rows == 100).await;
    cluster.broker_down(1).unwrap();
    worker.trouble("").await;
    cluster.broker_up(1).unwrap();
    send(100..200);
    wait("the rest", async || worker.report().rows == 200).await;
    wait("no trouble", async || worker.report().trouble.is_none()).await;
    assert_eq!((worker.report().duplicates, worker.report().gaps), (0, 0));
    worker.stop().await;
}
