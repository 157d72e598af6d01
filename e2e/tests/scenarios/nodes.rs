//! Nodes that are emptied, and nodes that vanish.

use anyhow::{Context, Result};
use corrente_e2e::{
    plant::{POLLER_PODS, Plant},
    space::describe,
    wait::{seconds, until},
};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;

fn node_of(pods: &[Pod]) -> Result<String> {
    let spec = pods.first().and_then(|pod| pod.spec.as_ref()).context("no pod")?;
    spec.node_name.clone().context("a pod without a node")
}

/// A node is drained while its pods poll and store; both go on elsewhere.
#[tokio::test]
async fn a_drained_node_moves_its_work() -> Result<()> {
    let plant = Plant::build("drain").await?;
    let node = node_of(&plant.space.ready_pods(POLLER_PODS, 1).await?)?;
    let stack = plant.space.stack.clone();
    let drained = stack
        .kubectl(&[
            "drain",
            &node,
            "--ignore-daemonsets",
            "--delete-emptydir-data",
            "--force",
            "--timeout=90s",
        ])
        .await;
    let moved = async {
        drained?;
        until("the poller to run on another node", seconds(60), || async {
            let pods = plant
                .space
                .ready_pods(POLLER_PODS, 1)
                .await
                .map_err(|error| error.to_string())?;
            if node_of(&pods).ok().as_ref() == Some(&node) {
                Err(describe(&pods[0]))
            } else {
                Ok(())
            }
        })
        .await?;
        plant.every_meter_stores().await
    }
    .await;
    // The other scenarios need both nodes, whatever came of this one.
    stack.kubectl(&["uncordon", &node]).await?;
    moved?;
    plant.audit().await
}

/// A node is cut off the network: its pods may still run, so nobody takes over; put back, it goes on, and
/// what it could not send meanwhile arrives.
#[tokio::test]
async fn a_node_that_was_cut_off_has_no_second_master() -> Result<()> {
    let plant = Plant::build("cut").await?;
    let pods = plant.space.ready_pods(POLLER_PODS, 1).await?;
    let node = node_of(&pods)?;
    let number = node.strip_prefix("node-").context("a node of another name")?;
    let stack = plant.space.stack.clone();
    let nodes: Api<Node> = Api::all(stack.client.clone());
    let ready = |wanted: &'static str| {
        let (nodes, node) = (nodes.clone(), node.clone());
        async move {
            until(
                &format!("the node to be Ready: {wanted}"),
                seconds(90),
                || async {
                    let is = nodes.get(&node).await.map_err(|error| error.to_string())?;
                    let conditions = is.status.and_then(|s| s.conditions).unwrap_or_default();
                    let status = conditions
                        .into_iter()
                        .find(|c| c.type_ == "Ready")
                        .map(|c| c.status);
                    if status.as_deref() == Some(wanted) {
                        Ok(())
                    } else {
                        Err(format!("{status:?}"))
                    }
                },
            )
            .await
        }
    };

    stack.switch(&["cut", number]).await?;
    let cut = async {
        ready("Unknown").await?;
        // Now somebody asks for another pod, as an impatient person would: it must wait for the lost one.
        let pod = pods[0].metadata.name.clone().context("a pod without a name")?;
        stack
            .kubectl(&["-n", &plant.space.name, "delete", "pod", &pod, "--wait=false"])
            .await?;
        until("the replacement to wait at the gate", seconds(60), || async {
            let pods = plant
                .space
                .pods(POLLER_PODS)
                .await
                .map_err(|error| error.to_string())?;
            let gated = pods.iter().any(|pod| {
                pod.spec
                    .as_ref()
                    .is_some_and(|spec| spec.scheduling_gates.as_ref().is_some_and(|g| !g.is_empty()))
            });
            if gated {
                Ok(())
            } else {
                Err(format!("{:?}", pods.iter().map(describe).collect::<Vec<_>>()))
            }
        })
        .await
    }
    .await;
    // Whatever came of it, the other scenarios need both nodes.
    stack.switch(&["mend", number]).await?;
    ready("True").await?;
    cut?;
    plant.space.ready_pods(POLLER_PODS, 1).await?;
    plant.every_meter_stores().await?;
    plant.audit().await
}
