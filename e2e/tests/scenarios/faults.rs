//! Everything is killed with -9 in turn: what was acknowledged is stored once.

use anyhow::{Context, Result, ensure};
use corrente_e2e::{
    plant::{PIPELINE_PODS, POLLER_PODS, Plant},
    release::{NAMESPACE, OPERATOR_SELECTOR},
    space::Space,
    wait::{seconds, until},
};

/// A poller, a worker, the operator, the broker and the database, killed in turn while readings flow.
#[tokio::test]
async fn whatever_is_killed_nothing_is_lost_or_doubled() -> Result<()> {
    let mut plant = Plant::build("kill").await?;
    let stack = plant.space.stack.clone();

    plant.space.crash(POLLER_PODS).await.context("the poller")?;
    plant
        .every_meter_stores()
        .await
        .context("after the poller was killed")?;

    plant
        .space
        .crash(PIPELINE_PODS)
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
    operator.crash(OPERATOR_SELECTOR).await.context("the operator")?;
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
