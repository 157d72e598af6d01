//! `kubectl scale`, of pollers and of pipelines.

use anyhow::{Result, ensure};
use corrente_crds::MeterPoller;
use corrente_e2e::{
    plant::{NAME, PIPELINE_PODS, POLLER_PODS, Plant},
    wait::{seconds, until},
};

/// Polling moves to two shards and back; no endpoint is ever asked by two pods.
#[tokio::test]
async fn pollers_scale_to_two_shards_and_back() -> Result<()> {
    let plant = Plant::build("shards").await?;
    for shards in [2, 1] {
        plant.space.scale("meterpoller/plant", shards).await?;
        plant.space.ready_pods(POLLER_PODS, shards as usize).await?;
        plant.every_meter_stores().await?;
        until("the scale subresource to agree", seconds(60), || async {
            let poller: MeterPoller = plant
                .space
                .api()
                .get(NAME)
                .await
                .map_err(|error| error.to_string())?;
            let status = poller.status.unwrap_or_default();
            let meters: i32 = status.shards.iter().map(|shard| shard.meters).sum();
            let ready = status.shards.iter().filter(|shard| shard.ready).count();
            if status.shard_count == shards as i32 && ready == shards as usize && meters == 20 {
                Ok(())
            } else {
                Err(format!("{:?}", status.shards))
            }
        })
        .await?;
    }
    ensure!(
        plant.table.streams().await?.len() >= 2,
        "a second shard never published"
    );
    plant.audit().await
}

/// Three workers share the partitions, then one has them all again.
#[tokio::test]
async fn pipelines_scale_to_three_and_back() -> Result<()> {
    let plant = Plant::build("replicas").await?;
    for replicas in [3, 1] {
        plant.space.scale("telemetrypipeline/plant", replicas).await?;
        plant.space.ready_pods(PIPELINE_PODS, replicas as usize).await?;
        plant.every_meter_stores().await?;
    }
    plant.audit().await
}
