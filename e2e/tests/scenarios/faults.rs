//! Everything is killed with -9 in turn: what was acknowledged is stored once.

use anyhow::{Context, Result, ensure};
use corrente_e2e::{
    plant::{PIPELINE_PODS, POLLER_PODS, Plant},
    release::{NAMESPACE, OPERATOR_SELECTOR},
    space::Space,
    wait::{seconds, until},
};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_ref());
    statuses.into_iter().flatten().map(|c| c.restart_count).sum()
}

/// Kills the only pod of a selector and waits until it was restarted and is ready.
async fn kill(space: &Space, selector: &str) -> Result<()> {
    let before = space.ready_pods(selector, 1).await?;
    space.stack.kill_9(&before[0]).await?;
    until(&format!("{selector} to be restarted"), seconds(60), || async {
        let pods = space.pods(selector).await.map_err(|error| error.to_string())?;
        match pods.iter().find(|pod| pod.name_any() == before[0].name_any()) {
            Some(pod) if restarts(pod) > restarts(&before[0]) => Ok(()),
            pod => Err(format!("{:?}", pod.map(restarts))),
        }
    })
    .await?;
    space.ready_pods(selector, 1).await.map(drop)
}

/// A poller, a worker, the operator, the broker and the database, killed in turn while readings flow.
#[tokio::test]
async fn whatever_is_killed_nothing_is_lost_or_doubled() -> Result<()> {
    let mut plant = Plant::build("kill").await?;
    let stack = plant.space.stack.clone();

    kill(&plant.space, POLLER_PODS).await.context("the poller")?;
    plant
        .every_meter_stores()
        .await
        .context("after the poller was killed")?;

    kill(&plant.space, PIPELINE_PODS)
        .await
        .context("the pipeline worker")?;
    plant
        .every_meter_stores()
        .await
        .context("after the pipeline worker was killed")?;

    let operator = Space {
        stack: stack.clone(),
        name: NAMESPACE.to_owned(),
    };
    kill(&operator, OPERATOR_SELECTOR).await.context("the operator")?;
    plant
        .every_meter_stores()
        .await
        .context("after the operator was killed")?;

    stack.switch(&["kafka", "kill"]).await?;
    // Meters go on being read while the broker is away: the spool keeps what comes.
    let asked = plant.meters.trace()?.len();
    until("the meters to be asked on", seconds(30), || async {
        let now = plant.meters.trace().map_or(0, |trace| trace.len());
        if now > asked + 60 {
            Ok(())
        } else {
            Err(now - asked)
        }
    })
    .await?;
    stack.switch(&["kafka", "start"]).await?;
    plant
        .every_meter_stores()
        .await
        .context("after the broker was killed")?;

    stack.switch(&["postgres", "kill"]).await?;
    stack.switch(&["postgres", "start"]).await?;
    plant.reconnect().await?;
    plant
        .every_meter_stores()
        .await
        .context("after the database was killed")?;

    ensure!(
        plant.table.rows().await? > 200,
        "too little happened to say anything"
    );
    // A poller killed with -9 may lose the poll in progress of each of its three endpoints.
    plant.audit_forgiving(3).await
}
