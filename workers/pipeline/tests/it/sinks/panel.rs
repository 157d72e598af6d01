//! MQTT and AMQP: what a panel hears that listens all the while, and what becomes of the rest.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
};

use corrente_config::{PipelineConfig, Secrets, pipeline::SinkConfig};
use corrente_pipeline::{
    sink::{amqp::AmqpSink, mqtt::MqttSink},
    source::kafka::{DeadLetterTopic, GroupOffsets, KafkaSource},
};
use corrente_record::Record;
use corrente_runtime::kafka::Access;
use futures::StreamExt as _;
use lapin::{Connection, ConnectionProperties, options, types::FieldTable};
use rumqttc::v5::{
    AsyncClient, Event, Incoming, MqttOptions,
    mqttbytes::{QoS, v5::ConnectProperties},
};
use serde_json::json;

use super::{letters::letters, server::Server};
use crate::{
    support::{Worker, config, unique, wait},
    topic::Topic,
};

/// What was heard: how often, by topic and payload.
type Heard = Arc<Mutex<BTreeMap<(String, String), u64>>>;

fn hear(heard: &Heard, topic: &str, payload: &[u8]) {
    let of = (topic.to_owned(), String::from_utf8(payload.to_vec()).unwrap());
    *heard.lock().unwrap().entry(of).or_default() += 1;
}

/// Every seq that was heard of a stream under a topic.
fn seqs(heard: &Heard, topic: &str) -> BTreeSet<u64> {
    let heard = heard.lock().unwrap();
    let of = heard.keys().filter(|(found, _)| found == topic);
    of.filter_map(|(_, payload)| Record::parse(payload.as_bytes()).unwrap().seq)
        .collect()
}

/// What lies outside of a sink.
fn outside(config: &PipelineConfig) -> (KafkaSource, GroupOffsets, DeadLetterTopic) {
    let access = Access::new(&config.kafka, &Secrets::default());
    let settings = access.read().unwrap();
    let mut source = KafkaSource::new(config, &access, &settings).unwrap();
    let offsets = source.group_offsets();
    (source, offsets, DeadLetterTopic::new(config, &settings))
}

/// Sends, kills the worker and the broker in between, and waits until everything was heard.
async fn everything_is_heard(
    topic: &Topic,
    server: &mut Server,
    heard: &Heard,
    config: &PipelineConfig,
    worker: impl Fn() -> Worker,
    named: impl Fn(&str) -> String,
) {
    let mut running = worker();
    topic.send_stream(0, "s0", 0..300);
    wait("the first messages", async || {
        seqs(heard, &named("s0")).len() == 300
    })
    .await;
    running.abort().await;
    topic.send_stream(0, "s0", 300..600);
    running = worker();
    wait("those of the second worker", async || {
        seqs(heard, &named("s0")).len() == 600
    })
    .await;
    server.kill();
    for payload in [
        "hello",
        r#"{"ts":"2026-11-20T22:20:00Z","meter":"a#b"}"#,
        r#"{"ts":"2026-11-20T22:20:00Z","meter":"m","seq":7,"energy":18446744073709551615,"text":"high","on":true}"#,
    ] {
        topic.send(0, payload);
    }
    topic.send_stream(0, "s1", 0..300);
    running.trouble("broker").await;
    server.again().await;
    wait("what was sent meanwhile", async || {
        seqs(heard, &named("s1")).len() == 300
    })
    .await;
    wait("no trouble", async || {
        running.report().trouble.is_none() && running.report().lag == 0
    })
    .await;
    running.stop().await;
    let found = letters(config, 2);
    let said: Vec<_> = found
        .iter()
        .map(|letter| (letter.offset, letter.column.as_deref()))
        .collect();
    assert_eq!(said, [(600, None), (601, Some("meter"))]);
    let expected = r#"{"ts":"2026-11-20T22:20:00.000Z","meter":"m","seq":7,"energy":18446744073709551615,"text":"high","on":true}"#;
    assert!(
        heard
            .lock()
            .unwrap()
            .contains_key(&(named("m"), expected.to_owned()))
    );
    // Nothing is told again that was told and known to be: the group goes on where it was.
    let told: u64 = heard.lock().unwrap().values().sum();
    let idle = worker();
    topic.send_stream(0, "s1", 300..301);
    wait("one more", async || seqs(heard, &named("s1")).len() == 301).await;
    idle.stop().await;
    assert_eq!(heard.lock().unwrap().values().sum::<u64>(), told + 1);
    topic.delete().await;
}

/// It keeps a subscription as soon as it has it: after a kill the worker may be back before the panel is. Its queues have
/// a bound that nobody reaches: without one (`max_queued_messages 0`) Mosquitto 2.0.11 takes every message that it refuses
/// for one too many and hangs up, now and then before the reason is read.
fn mosquitto(folder: &Path, port: u16) -> Command {
    let file = folder.join("mosquitto.conf");
    let data = folder.display();
    let text = format!(
        "listener {port} 127.0.0.1\nallow_anonymous true\nuser root\nmax_queued_messages 1000000\npersistence true\n\
         persistence_location {data}/\nautosave_on_changes true\nautosave_interval 1\n"
    );
    fs::write(&file, text).unwrap();
    let mut command = Command::new("/usr/sbin/mosquitto");
    command.arg("-c").arg(file);
    command
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka and Mosquitto"]
async fn every_record_is_heard_over_mqtt() {
    let (mut server, topic) = (Server::start(mosquitto).await, Topic::new(1));
    topic.create().await;
    let sink = json!({"address": server.address(), "topic": "plant/{meter}/readings"});
    let sink = SinkConfig::Mqtt(serde_json::from_value(sink).unwrap());
    let config = config(&unique("mqtt"), &[&topic.name], sink);
    let heard = Heard::default();
    let mut options = MqttOptions::new("panel", "127.0.0.1", server.port);
    options.set_clean_start(false);
    let mut properties = ConnectProperties::new();
    properties.session_expiry_interval = Some(3600);
    options.set_connect_properties(properties);
    let (client, mut events) = AsyncClient::new(options, 10);
    client
        .subscribe("plant/+/readings", QoS::AtLeastOnce)
        .await
        .unwrap();
    let (subscribed, listening) = tokio::sync::oneshot::channel();
    let listener = tokio::spawn({
        let heard = heard.clone();
        async move {
            let mut subscribed = Some(subscribed);
            loop {
                match events.poll().await {
                    Ok(Event::Incoming(Incoming::SubAck(_))) => {
                        let _ = subscribed.take().map(|subscribed| subscribed.send(()));
                    }
                    Ok(Event::Incoming(Incoming::Publish(message))) => {
                        hear(
                            &heard,
                            std::str::from_utf8(&message.topic).unwrap(),
                            &message.payload,
                        );
                    }
                    Ok(_) => {}
                    Err(_) => {
                        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                        // What a killed broker forgot of the subscription is said again.
                        let _ = client.try_subscribe("plant/+/readings", QoS::AtLeastOnce);
                    }
                }
            }
        }
    });
    listening.await.unwrap();
    let worker = || {
        let (source, offsets, letters) = outside(&config);
        let sink = MqttSink::new(&config, &Secrets::default(), offsets, letters).unwrap();
        Worker::start(&config, source, sink)
    };
    let named = |meter: &str| format!("plant/{meter}/readings");
    everything_is_heard(&topic, &mut server, &heard, &config, worker, named).await;
    listener.abort();
}

/// Mosquitto with further lines in its configuration, and an access list for those who have no name.
fn strict(more: &'static str) -> impl Fn(&Path, u16) -> Command {
    move |folder, port| {
        let command = mosquitto(folder, port);
        let (file, list) = (folder.join("mosquitto.conf"), folder.join("acl"));
        if !list.exists() {
            fs::write(&list, "topic readwrite plant/m/#\n").unwrap();
        }
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, format!("{text}acl_file {}\n{more}\n", list.display())).unwrap();
        command
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka and Mosquitto"]
async fn what_a_broker_refuses_is_set_aside_or_waits() {
    // One that says what it takes, and one that says it when it is too late.
    for more in ["max_packet_size 2000", "message_size_limit 2000"] {
        let (mut server, topic) = (Server::start(strict(more)).await, Topic::new(1));
        topic.create().await;
        let sink = json!({"address": server.address(), "topic": "plant/{meter}/readings"});
        let sink = SinkConfig::Mqtt(serde_json::from_value(sink).unwrap());
        let config = config(&unique("mqtt"), &[&topic.name], sink);
        let (source, offsets, set_aside) = outside(&config);
        let sink = MqttSink::new(&config, &Secrets::default(), offsets, set_aside).unwrap();
        let worker = Worker::start(&config, source, sink);
        let text = |meter: &str, length: usize| {
            let text = "x".repeat(length);
            format!(r#"{{"ts":"2026-11-20T22:20:00Z","meter":"{meter}","text":"{text}"}}"#)
        };
        for length in [10, 3000, 20, 2500, 30] {
            topic.send(0, &text("m", length));
        }
        wait("the large ones to be set aside", async || {
            let report = worker.report();
            (report.rows, report.dead_lettered, report.lag) == (3, 2, 0)
        })
        .await;
        let found = letters(&config, 2);
        let said: Vec<_> = found.iter().map(|letter| letter.offset).collect();
        assert_eq!(said, [1, 3]);
        for letter in &found {
            assert!(
                letter.reason.contains("larger than the MQTT broker takes"),
                "{}",
                letter.reason
            );
        }
        // What it may not publish is nobody's letter: a person grants the right.
        for meter in ["m", "n", "m"] {
            topic.send(0, &text(meter, 40));
        }
        worker
            .trouble("no messages of the topic plant/n/readings: NotAuthorized")
            .await;
        fs::write(server.folder().join("acl"), "topic readwrite plant/#\n").unwrap();
        server.kill();
        server.again().await;
        wait("all to be told", async || {
            let report = worker.report();
            (report.rows, report.dead_lettered, report.lag) == (6, 2, 0) && report.trouble.is_none()
        })
        .await;
        worker.stop().await;
        topic.delete().await;
    }
}

fn rabbitmq(folder: &Path, port: u16) -> Command {
    let home = fs::read_dir("/usr/lib/rabbitmq/lib")
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    fs::write(folder.join("plugins"), "[].\n").unwrap();
    let mut command = Command::new(home.join("sbin/rabbitmq-server"));
    command
        .env("HOME", folder)
        .env("RABBITMQ_NODENAME", format!("corrente{port}@localhost"))
        .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
        .env("RABBITMQ_NODE_PORT", port.to_string())
        .env("RABBITMQ_DIST_PORT", super::server::free_port().to_string())
        .env("RABBITMQ_MNESIA_BASE", folder.join("mnesia"))
        .env("RABBITMQ_LOG_BASE", folder.join("logs"))
        .env("RABBITMQ_ENABLED_PLUGINS_FILE", folder.join("plugins"))
        .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
        .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "+S 2:2");
    command
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka and RabbitMQ"]
async fn every_record_is_heard_over_amqp() {
    let (mut server, topic) = (Server::start(rabbitmq).await, Topic::new(1));
    topic.create().await;
    let url = format!("amqp://guest:guest@{}/%2f", server.address());
    let secrets = Secrets::new(server.folder().join("secrets"));
    fs::create_dir_all(secrets.sink_url().parent().unwrap()).unwrap();
    fs::write(secrets.sink_url(), &url).unwrap();
    let sink = json!({"connectionSecret": {"name": "s", "key": "url"}, "routingKey": "plant.{meter}"});
    let sink = SinkConfig::Amqp(serde_json::from_value(sink).unwrap());
    let config = config(&unique("amqp"), &[&topic.name], sink);
    let heard = Heard::default();
    let (subscribed, listening) = tokio::sync::oneshot::channel();
    let listener = tokio::spawn({
        let heard = heard.clone();
        async move {
            let mut subscribed = Some(subscribed);
            loop {
                let listened: lapin::Result<()> = async {
                    let connection = Connection::connect(&url, ConnectionProperties::default()).await?;
                    let channel = connection.create_channel().await?;
                    let durable = options::QueueDeclareOptions {
                        durable: true,
                        ..Default::default()
                    };
                    let exchange = options::ExchangeDeclareOptions {
                        durable: true,
                        ..Default::default()
                    };
                    let (none, kind) = (FieldTable::default(), lapin::ExchangeKind::Topic);
                    channel
                        .exchange_declare("corrente".into(), kind, exchange, none.clone())
                        .await?;
                    channel
                        .queue_declare("panel".into(), durable, none.clone())
                        .await?;
                    let bind = options::QueueBindOptions::default();
                    channel
                        .queue_bind(
                            "panel".into(),
                            "corrente".into(),
                            "plant.*".into(),
                            bind,
                            none.clone(),
                        )
                        .await?;
                    let consume = options::BasicConsumeOptions {
                        no_ack: true,
                        ..Default::default()
                    };
                    let mut messages = channel
                        .basic_consume("panel".into(), "p".into(), consume, none)
                        .await?;
                    let _ = subscribed.take().map(|subscribed| subscribed.send(()));
                    while let Some(message) = messages.next().await {
                        let message = message?;
                        hear(&heard, message.routing_key.as_str(), &message.data);
                    }
                    Ok(())
                }
                .await;
                drop(listened);
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    });
    listening.await.unwrap();
    let worker = || {
        let (source, offsets, letters) = outside(&config);
        Worker::start(
            &config,
            source,
            AmqpSink::new(&config, &secrets, offsets, letters).unwrap(),
        )
    };
    let named = |meter: &str| format!("plant.{meter}");
    everything_is_heard(&topic, &mut server, &heard, &config, worker, named).await;
    listener.abort();
}
