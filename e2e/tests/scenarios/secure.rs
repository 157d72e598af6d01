//! Nothing in the clear: meters with Modbus/TCP Security, a broker with TLS and logins, all by Secrets.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, ensure};
use corrente_crds::{MeterPoller, TelemetryPipeline};
use corrente_e2e::{
    audit::Table,
    certificates::Authority,
    meters::{Endpoint, Meters, Unit},
    release,
    space::Space,
    stack::Stack,
    topic,
    wait::{seconds, until},
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
    let stack = Stack::connect().await?;
    release::install(&stack).await?;
    let space = Space::create(&stack, NAME).await?;
    let schema = space.name.replace('-', "_");
    let table = Table::fresh(&stack.postgres, &schema, "readings").await?;

    let (folder, authority) = (tempfile::tempdir()?, Authority::new("the site's authority")?);
    let unit = |unit: u8| Unit {
        unit,
        registers: [("input", BTreeMap::from([(0, 2300 + u16::from(unit))]))].into(),
    };
    let served = Endpoint {
        name: "gateway".into(),
        host: stack.host.clone(),
        port: 0,
        framer: "socket",
        units: vec![unit(1), unit(2)],
        tls: Some(authority.folder(folder.path(), &stack.host)?),
    };
    let meters = Meters::serve(&stack, &[served]).await?;

    let topic = format!("{NAME}-{}", jiff::Timestamp::now().as_millisecond());
    let cluster = json!({
        "bootstrapServers": [stack.kafka_login], "tls": {"caSecret": "kafka-ca"},
        "sasl": {"mechanism": "SCRAM-SHA-512", "secretName": "kafka-user"},
    });
    let with = |more: serde_json::Value| {
        let mut kafka = cluster.clone();
        if let (Some(kafka), Some(more)) = (kafka.as_object_mut(), more.as_object()) {
            kafka.extend(more.clone());
        }
        kafka
    };
    space
        .apply(&serde_json::from_value::<Secret>(json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "history"},
            "stringData": {"url": stack.pod_postgres},
        }))?)
        .await?;
    secret(&space, "kafka-ca", &stack.secrets.join("kafka/ca"), &["ca.crt"]).await?;
    let login = stack.secrets.join("kafka/sasl");
    secret(&space, "kafka-user", &login, &["username", "password"]).await?;
    space
        .apply(&serde_json::from_value::<MeterPoller>(json!({
            "apiVersion": "corrente.dev/v1alpha1", "kind": "MeterPoller", "metadata": {"name": NAME},
            "spec": {
                "interval": "1s", "timeout": "500ms",
                "registerMaps": [{"name": "one", "registers": [
                    {"name": "voltage", "address": 0, "function": "input", "type": "u16", "scale": 0.1}]}],
                "endpoints": [{
                    "name": "gateway", "address": format!("{}:{}", stack.host, meters.ports["gateway"]),
                    "transport": "tls", "tls": {"secretName": "gateway"}, "maxInFlight": 2,
                    "meters": [
                        {"name": "secure-1", "unitId": 1, "registerMap": "one"},
                        {"name": "secure-2", "unitId": 2, "registerMap": "one"},
                    ],
                }],
                "output": {"kafka": with(json!({"topic": topic, "createTopic": {"partitions": 3, "retention": "1d"}}))},
            },
        }))?)
        .await?;
    space
        .apply(&serde_json::from_value::<TelemetryPipeline>(json!({
            "apiVersion": "corrente.dev/v1alpha1", "kind": "TelemetryPipeline", "metadata": {"name": NAME},
            "spec": {
                "source": {"kafka": with(json!({"topics": [topic]}))},
                "sink": {"postgresql": {
                    "connectionSecret": {"name": "history", "key": "url"}, "schema": schema, "table": "readings",
                }},
                "batch": {"maxAge": "200ms"},
            },
        }))?)
        .await?;

    until("the poller to miss its Secret", seconds(60), || async {
        let poller: MeterPoller = space.api().get(NAME).await.map_err(|error| error.to_string())?;
        let conditions = poller.status.unwrap_or_default().conditions;
        let says = "the Secret gateway must be there and have the keys ca.crt, tls.crt, tls.key";
        if conditions
            .iter()
            .any(|c| c.type_ == "Ready" && c.message.contains(says))
        {
            Ok(())
        } else {
            Err(format!("{conditions:?}"))
        }
    })
    .await?;
    let own = authority.folder(folder.path(), "poller")?;
    secret(&space, "gateway", &own, &["ca.crt", "tls.crt", "tls.key"]).await?;

    until("good rows of both meters", seconds(150), || async {
        match table.rows().await {
            Ok(0) => return Err("no row".to_owned()),
            Ok(_) => {}
            Err(error) => return Err(error.to_string()),
        }
        let good = "SELECT count(DISTINCT meter) FROM @ WHERE quality = 'good' AND voltage IN (230.1, 230.2)";
        match table.one::<i64>(good).await {
            Ok(2) => Ok(()),
            Ok(meters) => Err(format!("{meters} of 2 meters")),
            Err(error) => Err(error.to_string()),
        }
    })
    .await?;
    let partitions = topic::partitions(&stack, &topic).await?;
    ensure!(partitions == 3, "the topic has {partitions} partitions");
    meters.never_two_masters()?;
    space.delete().await
}
