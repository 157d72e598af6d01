//! From charts and manifests to rows.

use anyhow::{Result, ensure};
use corrente_crds::{MeterPoller, TelemetryPipeline};
use corrente_e2e::{
    plant::{NAME, Plant},
    wait::{seconds, until},
};

/// The charts install; 20 meters on 3 endpoints served by pymodbus become rows with the values that the
/// registers hold; the resources say so; deleting them leaves nothing behind.
#[tokio::test]
async fn twenty_meters_become_rows() -> Result<()> {
    let plant = Plant::build("install").await?;
    plant.values_are_right().await?;

    let poller = until(
        "the poller to say that all its meters are healthy",
        seconds(90),
        || async {
            let poller: MeterPoller = plant
                .space
                .api()
                .get(NAME)
                .await
                .map_err(|error| error.to_string())?;
            let status = poller.status.clone().unwrap_or_default();
            let counts = (status.meters.total, status.meters.healthy, status.meters.failing);
            if counts == (20, 20, 0) {
                Ok(poller)
            } else {
                Err(format!("{counts:?}"))
            }
        },
    )
    .await?;
    let status = poller.status.unwrap_or_default();
    ensure!(
        status.observed_generation == poller.metadata.generation,
        "status is of another generation"
    );
    ensure!(
        status.shards.len() == 1 && status.shards[0].ready,
        "{:?}",
        status.shards
    );
    ensure!(
        status
            .conditions
            .iter()
            .any(|c| c.type_ == "Ready" && c.status == "True")
    );

    plant
        .space
        .condition::<TelemetryPipeline>(NAME, "Ready", seconds(90), |ready| ready.status == "True")
        .await?;

    let hypertables: i64 = plant
        .table
        .one(&format!(
            "SELECT count(*) FROM timescaledb_information.hypertables \
             WHERE hypertable_schema = '{}' AND hypertable_name = 'readings'",
            plant.space.name.replace('-', "_")
        ))
        .await?;
    ensure!(hypertables == 1, "the table is no hypertable");

    let printed = plant
        .space
        .stack
        .kubectl(&["-n", &plant.space.name, "get", "corrente"])
        .await?;
    ensure!(
        printed.contains("meterpoller") && printed.contains("telemetrypipeline"),
        "{printed}"
    );
    plant.audit().await
}
