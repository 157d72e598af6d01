//! Nodes that are emptied, and nodes that vanish.

use anyhow::{Context, Result, ensure};
use corrente_crds::MeterPoller;
use corrente_e2e::{
    plant::{NAME, POLLER_PODS, Plant},
    release::{NAMESPACE, OPERATOR_SELECTOR},
    space::{Space, describe},
    stack::{Stack, node_number},
    wait::{seconds, until},
};
use k8s_openapi::{
    api::core::v1::{Node, Pod},
    apimachinery::pkg::apis::meta::v1::Condition,
};
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
    let number = node_number(&node)?;
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

    the_operator_is_not_on(&stack, &node).await?;
    stack.switch(&["cut", number]).await?;
    let cut = async {
        ready("Unknown").await?;
        let unknown = jiff::Timestamp::now().as_millisecond() as f64 / 1000.0;
        // Now somebody asks for another pod, as an impatient person would: it must wait for the lost one.
        let pod = pods[0].metadata.name.clone().context("a pod without a name")?;
        stack
            .kubectl(&["-n", &plant.space.name, "delete", "pod", &pod, "--wait=false"])
            .await?;
        // The operator has judged the replacement, and names for whom it waits.
        until(
            "the poller to say for whom its pod waits",
            seconds(60),
            || async {
                let poller: MeterPoller = plant
                    .space
                    .api()
                    .get(NAME)
                    .await
                    .map_err(|error| error.to_string())?;
                let conditions = poller.status.unwrap_or_default().conditions;
                let says = |c: &Condition| c.reason == "WaitingForHandover" && c.message.contains(&pod);
                if conditions.iter().any(says) {
                    Ok(())
                } else {
                    Err(format!("{conditions:?}"))
                }
            },
        )
        .await?;
        let gated = plant.space.pods(POLLER_PODS).await?.iter().any(|pod| {
            let gates = pod.spec.as_ref().and_then(|spec| spec.scheduling_gates.as_ref());
            gates.is_some_and(|gates| !gates.is_empty())
        });
        ensure!(
            gated,
            "the replacement was released while the old pod may still poll"
        );
        let trace = plant.meters.trace()?;
        let asked = trace
            .iter()
            .filter(|event| event.event == "request" && event.t > unknown)
            .count();
        ensure!(
            asked == 0,
            "{asked} requests came while the only master was cut off"
        );
        Ok(())
    }
    .await;
    // Whatever came of it, the other scenarios need both nodes.
    stack.switch(&["mend", number]).await?;
    ready("True").await?;
    cut?;
    plant.space.ready_pods(POLLER_PODS, 1).await?;
    plant.every_meter_stores().await?;
    // An answer that was under way when the node was cut off may have been lost, once for each endpoint.
    plant.audit_forgiving(3).await
}

/// Moves the operator away from a node, so that the node can be cut off without it.
async fn the_operator_is_not_on(stack: &Stack, node: &str) -> Result<()> {
    let operator = Space {
        stack: stack.clone(),
        name: NAMESPACE.to_owned(),
    };
    let pods = operator.ready_pods(OPERATOR_SELECTOR, 1).await?;
    if node_of(&pods)? != node {
        return Ok(());
    }
    stack.kubectl(&["cordon", node]).await?;
    let moved = async {
        let pod = pods[0].metadata.name.clone().context("a pod without a name")?;
        stack.kubectl(&["-n", NAMESPACE, "delete", "pod", &pod]).await?;
        operator.ready_pods(OPERATOR_SELECTOR, 1).await
    }
    .await;
    stack.kubectl(&["uncordon", node]).await?;
    ensure!(node_of(&moved?)? != node, "the operator did not move");
    Ok(())
}
