//! Nothing in the clear: meters with Modbus/TCP Security, a broker with TLS and logins, all by Secrets.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, ensure};
use corrente_crds::MeterPoller;
use corrente_e2e::{
    certificates::Authority,
    meters::{Endpoint, Meters, Unit},
    site::{Site, with},
    space::Space,
    topic,
    wait::seconds,
};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use serde_json::json;

const NAME: &str = "secure";

/// Applies a Secret of these files, which are its keys too.
async fn secret(space: &Space, name: &str, folder: &Path, files: &[&str]) -> Result<()> {
    let mut data = BTreeMap::new();
    for file in files {
        let path = folder.join(file);
        let bytes = fs::read(&path).with_context(|| format!("failed to read {}", path.display()))?;
        data.insert((*file).to_owned(), ByteString(bytes));
    }
    let mut secret = Secret {
        data: Some(data),
        ..Secret::default()
    };
    secret.metadata.name = Some(name.to_owned());
    space.apply(&secret).await.map(drop)
}

/// Mutual TLS to the meters, SCRAM within TLS to Kafka, a topic that the worker makes; rows by a pipeline that
/// is let in in the same way. While a Secret is missing, the resource says which one.
#[tokio::test]
async fn what_is_read_over_tls_is_stored_over_tls() -> Result<()> {
    let site = Site::create(NAME).await?;
    let (space, table) = (&site.space, &site.table);
    let stack = &space.stack;

    let (folder, authority) = (tempfile::tempdir()?, Authority::new("the site's authority")?);
    let unit = |unit: u8| Unit::with_inputs(unit, [(0, 2300 + u16::from(unit))]);
    let served = Endpoint {
        tls: Some(authority.folder(folder.path(), &stack.host)?),
        ..Endpoint::tcp(stack, "gateway", vec![unit(1), unit(2)])
    };
    let meters = Meters::serve(stack, &[served]).await?;

    let cluster = json!({
        "bootstrapServers": [stack.kafka_login], "tls": {"caSecret": "kafka-ca"},
        "sasl": {"mechanism": "SCRAM-SHA-512", "secretName": "kafka-user"},
    });
    let topic = json!({"topic": site.topic, "createTopic": {"partitions": 3, "retention": "1d"}});
    secret(space, "kafka-ca", &stack.secrets.join("kafka/ca"), &["ca.crt"]).await?;
    let login = stack.secrets.join("kafka/sasl");
    secret(space, "kafka-user", &login, &["username", "password"]).await?;
    let address = format!("{}:{}", stack.host, meters.ports["gateway"]);
    site.poller(
        NAME,
        json!({
            "interval": "1s", "timeout": "500ms",
            "registerMaps": [{"name": "one", "registers": [
                {"name": "voltage", "address": 0, "function": "input", "type": "u16", "scale": 0.1}]}],
            "endpoints": [{
                "name": "gateway", "address": address,
                "transport": "tls", "tls": {"secretName": "gateway"}, "maxInFlight": 2,
                "meters": [
                    {"name": "secure-1", "unitId": 1, "registerMap": "one"},
                    {"name": "secure-2", "unitId": 2, "registerMap": "one"},
                ],
            }],
            "output": {"kafka": with(cluster.clone(), topic)},
        }),
    )
    .await?;
    site.pipeline(
        NAME,
        json!({
            "source": {"kafka": with(cluster, json!({"topics": [site.topic]}))},
            "sink": {"postgresql": site.sink(json!({}))},
        }),
    )
    .await?;

    let says = "the Secret gateway must be there and have the keys ca.crt, tls.crt, tls.key";
    space
        .condition::<MeterPoller>(NAME, "Ready", seconds(60), |ready| ready.message.contains(says))
        .await?;
    let own = authority.folder(folder.path(), "poller")?;
    secret(space, "gateway", &own, &["ca.crt", "tls.crt", "tls.key"]).await?;

    let good = "SELECT count(DISTINCT meter) FROM @ WHERE quality = 'good' AND voltage IN (230.1, 230.2)";
    table
        .at_least("good rows of both meters", seconds(150), good, 2)
        .await?;
    let partitions = topic::partitions(stack, &site.topic).await?;
    ensure!(partitions == 3, "the topic has {partitions} partitions");
    meters.never_two_masters()?;
    space.delete().await
}
