//! What people get wrong is said where they look, and stops nothing else.

use anyhow::{Result, ensure};
use corrente_crds::MeterPoller;
use corrente_e2e::{
    plant::{NAME, Plant},
    topic::publish,
    wait::{seconds, until},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde_json::json;

/// Waits until a poller's condition says what is wanted, and returns its message.
async fn says(plant: &Plant, name: &str, kind: &str, status: &str, reason: &str) -> Result<String> {
    let wanted = |condition: &Condition| condition.status == status && condition.reason == reason;
    let said = plant
        .space
        .condition::<MeterPoller>(name, kind, seconds(60), wanted);
    Ok(said.await?.message)
}

/// What is no record, and what does not fit its column, is set aside with the reason; the records around it
/// are stored.
#[tokio::test]
async fn what_is_no_record_is_set_aside() -> Result<()> {
    let plant = Plant::build("refused").await?;
    let topic = plant.topic.clone();
    let now = jiff::Timestamp::now();
    for (payload, says, column) in [
        ("hello".to_owned(), "not a record", None),
        (
            format!(r#"{{"ts":"{now}","meter":"x","voltage_l1_n":"high"}}"#),
            "high",
            Some("voltage_l1_n"),
        ),
    ] {
        publish(&plant.space.stack, &topic, "x", payload.as_bytes()).await?;
        let query = format!(
            "SELECT reason, column_name, payload FROM corrente.dead_letters \
             WHERE topic = '{topic}' AND payload = convert_to('{payload}', 'UTF8')"
        );
        let (reason, named) = until("the dead letter", seconds(30), || async {
            let rows = plant
                .table
                .query(&query)
                .await
                .map_err(|error| error.to_string())?;
            let row = rows.first().ok_or("none")?;
            Ok::<_, String>((row.get::<_, String>(0), row.get::<_, Option<String>>(1)))
        })
        .await?;
        ensure!(
            reason.contains(says) && named.as_deref() == column,
            "{reason} {named:?}"
        );
    }
    plant.every_meter_stores().await?;
    plant.audit().await
}

/// A poller without its profile, one that names another's gateway, a meter that does not answer: each is
/// reported in its own resource, and the plant beside them goes on.
#[tokio::test]
async fn mistakes_are_reported_and_stop_nothing() -> Result<()> {
    let plant = Plant::build("mistakes").await?;
    let mine: MeterPoller = plant.space.api().get(NAME).await?;
    let gateway = mine.spec.endpoints[0].address.clone();
    let poller = |name: &str, endpoints: serde_json::Value| -> Result<MeterPoller> {
        Ok(serde_json::from_value(json!({
            "apiVersion": "corrente.dev/v1alpha1", "kind": "MeterPoller", "metadata": {"name": name},
            "spec": {
                "interval": "1s", "timeout": "200ms", "endpoints": endpoints,
                "output": {"kafka": mine.spec.output.kafka},
            },
        }))?)
    };
    let endpoint = |address: &str, meter: &str, unit: i32, profile: &str| json!([{"name": "e", "address": address, "meters": [{"name": meter, "unitId": unit, "profile": profile}]}]);

    plant
        .space
        .apply(&poller(
            "no-profile",
            endpoint(
                &format!("{}:2", plant.space.stack.host),
                "x-1",
                1,
                "no-such-model",
            ),
        )?)
        .await?;
    let message = says(&plant, "no-profile", "Ready", "False", "Invalid").await?;
    ensure!(message.contains("no-such-model"), "{message}");

    plant
        .space
        .apply(&poller(
            "second-master",
            endpoint(&gateway, "x-2", 99, "eastron-sdm630"),
        )?)
        .await?;
    let message = says(&plant, "second-master", "Degraded", "True", "EndpointConflict").await?;
    ensure!(message.contains(NAME) && message.contains(&gateway), "{message}");

    // Nothing listens at port 1 of this machine.
    plant
        .space
        .apply(&poller(
            "unreachable",
            endpoint(
                &format!("{}:1", plant.space.stack.host),
                "x-3",
                1,
                "eastron-sdm630",
            ),
        )?)
        .await?;
    let failing = until("the unreachable meter to be named", seconds(90), || async {
        let poller: MeterPoller = plant
            .space
            .api()
            .get("unreachable")
            .await
            .map_err(|error| error.to_string())?;
        let status = poller.status.unwrap_or_default();
        status
            .failing_meters
            .first()
            .cloned()
            .ok_or_else(|| format!("{status:?}"))
    })
    .await?;
    ensure!(failing.name == "x-3" && !failing.reason.is_empty(), "{failing:?}");
    // It has no readings, but its history says why.
    until("a record of the failed poll", seconds(60), || async {
        let failed = plant
            .table
            .one::<i64>("SELECT count(*) FROM @ WHERE meter = 'x-3' AND quality = 'failed'");
        match failed.await {
            Ok(0) => Err("none".to_owned()),
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    })
    .await?;

    for refused in [
        (json!({"interval": "7s"}), "divide"),
        (
            json!({"endpoints": [{"name": "e", "address": "a:1", "meters": [{"name": "m", "unitId": 1}]}]}),
            "profile",
        ),
    ] {
        let error = match plant.space.change::<MeterPoller>(NAME, refused.0).await {
            Ok(_) => anyhow::bail!("a mistake was taken: {}", refused.1),
            Err(error) => format!("{error:#}"),
        };
        ensure!(error.contains(refused.1), "{error}");
    }

    plant.every_meter_stores().await?;
    for name in ["no-profile", "second-master", "unreachable"] {
        plant
            .space
            .stack
            .kubectl(&["-n", &plant.space.name, "delete", "meterpoller", name])
            .await?;
    }
    plant.audit().await
}
