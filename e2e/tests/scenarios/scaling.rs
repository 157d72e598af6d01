//! `kubectl scale`, of pollers and of pipelines.

use anyhow::{Result, ensure};
use corrente_config::report::PipelineReport;
use corrente_crds::MeterPoller;
use corrente_e2e::{
    plant::{NAME, PIPELINE_PODS, POLLER_PODS, Plant},
    wait::{seconds, until},
};
use kube::ResourceExt;

/// Partitions of a topic that a producer makes by its first record; see the broker's properties.
const PARTITIONS: u32 = 6;

/// Polling moves to two shards and back; no endpoint is ever asked by two pods.
#[tokio::test]
async fn pollers_scale_to_two_shards_and_back() -> Result<()> {
    let plant = Plant::build("shards").await?;
    for shards in [2, 1] {
        plant.space.scale("meterpoller/plant", shards).await?;
        plant.space.ready_pods(POLLER_PODS, shards as usize).await?;
        until("the scale subresource to agree", seconds(60), || async {
            let poller: MeterPoller = plant
                .space
                .api()
                .get(NAME)
                .await
                .map_err(|error| error.to_string())?;
            let status = poller.status.unwrap_or_default();
            let meters: i32 = status.shards.iter().map(|shard| shard.meters).sum();
            let at_work = status
                .shards
                .iter()
                .filter(|shard| shard.ready && shard.meters > 0)
                .count();
            if status.shard_count == shards as i32 && at_work == shards as usize && meters == 20 {
                Ok(())
            } else {
                Err(format!("{:?}", status.shards))
            }
        })
        .await?;
        let settled = jiff::Timestamp::now();
        plant.every_meter_stores().await?;
        let streams = format!("SELECT count(DISTINCT stream) FROM @ WHERE slot > '{settled}'");
        let streams: i64 = plant.table.one(&streams).await?;
        ensure!(
            streams == i64::from(shards),
            "{shards} shards publish {streams} streams"
        );
    }
    plant.audit().await
}

/// Three workers share the partitions, then one has them all again.
#[tokio::test]
async fn pipelines_scale_to_three_and_back() -> Result<()> {
    let plant = Plant::build("replicas").await?;
    for replicas in [3, 1] {
        plant.space.scale("telemetrypipeline/plant", replicas).await?;
        plant.space.ready_pods(PIPELINE_PODS, replicas as usize).await?;
        until("every worker to have partitions", seconds(90), || async {
            let shares = shares(&plant).await.map_err(|error| error.to_string())?;
            let all = shares.iter().sum::<u32>() == PARTITIONS;
            if all && shares.len() == replicas as usize && !shares.contains(&0) {
                Ok(())
            } else {
                Err(format!("{shares:?}"))
            }
        })
        .await?;
        plant.every_meter_stores().await?;
    }
    plant.audit().await
}

/// How many partitions each worker says it has.
async fn shares(plant: &Plant) -> Result<Vec<u32>> {
    let mut shares = Vec::new();
    for pod in plant.space.pods(PIPELINE_PODS).await? {
        let path = format!(
            "/api/v1/namespaces/{}/pods/{}:8080/proxy/status",
            plant.space.name,
            pod.name_any()
        );
        let report = plant.space.stack.kubectl(&["get", "--raw", &path]).await?;
        shares.push(serde_json::from_str::<PipelineReport>(&report)?.partitions);
    }
    Ok(shares)
}
