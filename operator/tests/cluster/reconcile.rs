//! What becomes of resources: objects, verdicts, and nothing when they are gone.

use std::collections::BTreeSet;

use corrente_crds::{MeterPoller, MeterProfile, TelemetryPipeline};
use corrente_operator::{context::Timing, status};
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::Pod,
    events::v1::Event,
};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
    runtime::events::Recorder,
};
use serde_json::json;

use crate::{
    referee::Referee,
    world::{World, in_a_world, until},
};

#[tokio::test]
#[ignore = "needs a cluster"]
async fn a_poller_and_a_pipeline_become_what_runs() {
    in_a_world(|world| async move {
        let operator = world.operator(Timing::default()).await;
        world.profile().await;
        world.poller("site", &["a", "b"]).await;
        world.pipeline("store").await;

        let held = world.held(&["a", "b"]).await;
        assert_eq!(held.len(), 1, "one shard, one pod");
        until("both Deployments", || async {
            (world.deployments().await == ["site-0", "store-pipeline"]).then_some(())
        })
        .await;
        for config_map in world.config_maps().await {
            assert_eq!(config_map.immutable, Some(true), "{}", config_map.name_any());
            assert_eq!(config_map.owner_references().len(), 1);
        }
        let pods: Api<Pod> = world.api();
        let node = until("the released pod to be scheduled", || async {
            pods.get(&held[0].name).await.unwrap().spec.unwrap().node_name
        })
        .await;
        assert!(node.starts_with("node"), "{node}");

        // The pause image runs, and is never ready.
        world.reason("site", "Ready", "PodsNotReady").await;
        world.reason("site", "Progressing", "Settled").await;
        let status = world
            .api::<MeterPoller>()
            .get("site")
            .await
            .unwrap()
            .status
            .unwrap();
        assert_eq!(
            (
                status.shard_count,
                status.meters.total,
                status.shards[0].endpoints
            ),
            (1, 2, 2)
        );
        let scale = world.api::<MeterPoller>().get_scale("site").await.unwrap();
        assert_eq!(
            scale.status.unwrap().selector.as_deref(),
            Some("corrente.dev/meterpoller=site")
        );
        let pipeline = until("the pipeline's status", || async {
            let pipeline = world.api::<TelemetryPipeline>().get("store").await.unwrap();
            pipeline.status.filter(|status| status.replicas == 2)
        })
        .await;
        assert_eq!(
            pipeline.selector.as_deref(),
            Some("corrente.dev/telemetrypipeline=store")
        );
        operator.end().await;
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a cluster"]
async fn a_mistake_in_one_stops_no_other() {
    in_a_world(|world| async move {
        let operator = world.operator(Timing::default()).await;
        // Its profile does not exist yet.
        world.poller("wrong", &["a"]).await;
        let message = world.reason("wrong", "Ready", "Invalid").await;
        assert!(
            message.contains("spec.endpoints[0].meters[0].profile") && message.contains("acme-"),
            "{message}"
        );
        until("an event that says so", || async {
            let events = world.list::<Event>().await;
            events
                .into_iter()
                .find(|event| event.reason.as_deref() == Some("Invalid"))
        })
        .await;
        let mut right = world.poller_manifest("right", &["b"]);
        right["spec"]["registerMaps"] = json!([{
            "name": "own",
            "registers": [{"name": "power", "address": 0, "function": "holding", "type": "u16", "unit": "W"}],
        }]);
        right["spec"]["endpoints"][0]["meters"] = json!([{"name": "m", "unitId": 1, "registerMap": "own"}]);
        world.create::<MeterPoller>(right).await;
        world.held(&["b"]).await;
        assert_eq!(world.deployments().await, ["right-0"]);

        // The missing profile comes, and the mistake is none any more.
        world.profile().await;
        world.held(&["a", "b"]).await;

        // A running one is edited into a mistake: it goes on as it was.
        let before = world.api::<Deployment>().get("wrong-0").await.unwrap();
        world
            .edit(
                "wrong",
                json!({"endpoints": [{
                    "name": "a", "address": world.gateway("a"),
                    "meters": [{"name": "m1", "unitId": 1, "profile": "no-such-profile"}],
                }]}),
            )
            .await;
        let message = world.reason("wrong", "Ready", "Invalid").await;
        assert!(
            message.contains("no-such-profile") && message.contains("last good configuration"),
            "{message}"
        );
        let after = world.api::<Deployment>().get("wrong-0").await.unwrap();
        assert_eq!(before.metadata.generation, after.metadata.generation);
        operator.end().await;
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a cluster"]
async fn an_edit_of_a_profile_reaches_who_names_it() {
    in_a_world(|world| async move {
        let operator = world.operator(Timing::default()).await;
        let profile = world.profile().await;
        world.poller("site", &["a"]).await;
        world.pipeline("store").await;
        let before = world.held(&["a"]).await;
        let revisions = || async {
            let names: BTreeSet<String> = world
                .config_maps()
                .await
                .iter()
                .map(ResourceExt::name_any)
                .collect();
            names
        };
        until("a configuration of each", || async {
            (revisions().await.len() == 2).then_some(())
        })
        .await;
        let patch = Patch::Merge(json!({"spec": {"registers": [
            {"name": "voltage_l1_n", "address": 0, "function": "input", "type": "f32", "unit": "V"},
            {"name": "power", "address": 2, "function": "input", "type": "f32", "unit": "W"},
        ]}}));
        Api::<MeterProfile>::all(world.client.clone())
            .patch(&profile, &PatchParams::default(), &patch)
            .await
            .unwrap();
        until("a further configuration of each", || async {
            (revisions().await.len() == 4).then_some(())
        })
        .await;
        until("another pod that holds the gateway", || async {
            let now = world.held(&["a"]).await;
            (now[0].uid != before[0].uid).then_some(())
        })
        .await;
        operator.end().await;
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a cluster"]
async fn of_two_on_one_gateway_the_younger_is_told() {
    in_a_world(|world| async move {
        let operator = world.operator(Timing::default()).await;
        world.profile().await;
        world.poller("older", &["a"]).await;
        world.held(&["a"]).await;
        later_second(&world).await;
        world.poller("younger", &["a", "b"]).await;
        let message = world.reason("younger", "Degraded", "EndpointConflict").await;
        let owner = format!("{}/older", world.namespace);
        assert!(
            message.contains(&owner) && message.contains(&world.gateway("a")),
            "{message}"
        );
        world.held(&["a", "b"]).await;
        until("an event that says so", || async {
            let events = world.list::<Event>().await;
            events
                .into_iter()
                .find(|event| event.reason.as_deref() == Some("EndpointConflict"))
        })
        .await;

        world
            .api::<MeterPoller>()
            .delete("older", &DeleteParams::default())
            .await
            .unwrap();
        world.reason("younger", "Degraded", "AsExpected").await;
        let held = world.held(&["a", "b"]).await;
        assert_eq!(held.len(), 1, "the younger has both");
        operator.end().await;
    })
    .await;
}

/// Waits until what is created now is younger by the API server's clock, which tells whole seconds.
async fn later_second(world: &World) {
    let newest = world
        .list::<MeterPoller>()
        .await
        .iter()
        .filter_map(|poller| poller.creation_timestamp())
        .max();
    let newest = newest.unwrap().0;
    until("the next second", || async {
        (k8s_openapi::jiff::Timestamp::now().as_second() > newest.as_second()).then_some(())
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a cluster"]
async fn scaled_out_and_in_each_endpoint_has_one_pod() {
    in_a_world(|world| async move {
        let operator = world.operator(Timing::default()).await;
        let referee = Referee::watch(&world).await;
        world.profile().await;
        let endpoints = ["a", "b", "c", "d", "e"];
        world.poller("site", &endpoints).await;
        assert_eq!(world.held(&endpoints).await.len(), 1);
        for shards in [2_usize, 1, 3] {
            let scale = Patch::Merge(json!({"spec": {"replicas": shards}}));
            world
                .api::<MeterPoller>()
                .patch_scale("site", &PatchParams::default(), &scale)
                .await
                .unwrap();
            until(&format!("{shards} shards"), || async {
                let held = world.held(&endpoints).await;
                (held.len() == shards && world.deployments().await.len() == shards).then_some(())
            })
            .await;
            until("the status to say so", || async {
                let status = world
                    .api::<MeterPoller>()
                    .get("site")
                    .await
                    .unwrap()
                    .status
                    .unwrap();
                (status.shards.len() == shards && status.shard_count == i32::try_from(shards).unwrap())
                    .then_some(())
            })
            .await;
        }
        assert!(referee.released() >= 5);
        referee.saw_no_foul();
        operator.end().await;
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a cluster"]
async fn suspended_runs_nothing_and_wakes_up() {
    in_a_world(|world| async move {
        let operator = world.operator(Timing::default()).await;
        world.profile().await;
        world.poller("site", &["a"]).await;
        world.held(&["a"]).await;
        world.edit("site", json!({"suspend": true})).await;
        world.reason("site", "Ready", "Suspended").await;
        until("no pod", || async {
            world.holders().await.is_empty().then_some(())
        })
        .await;
        world.edit("site", json!({"suspend": false})).await;
        world.held(&["a"]).await;
        operator.end().await;
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a cluster"]
async fn what_is_edited_by_hand_is_put_right() {
    in_a_world(|world| async move {
        let operator = world.operator(Timing::default()).await;
        world.profile().await;
        world.poller("site", &["a"]).await;
        world.held(&["a"]).await;
        let deployments: Api<Deployment> = world.api();
        let patch = Patch::Merge(json!({"spec": {"replicas": 3}}));
        deployments
            .patch("site-0", &PatchParams::default(), &patch)
            .await
            .unwrap();
        until("one replica again", || async {
            let spec = deployments.get("site-0").await.unwrap().spec.unwrap();
            (spec.replicas == Some(1)).then_some(())
        })
        .await;
        deployments
            .delete("site-0", &DeleteParams::default())
            .await
            .unwrap();
        let uid = until("another Deployment", || async {
            deployments
                .get_opt("site-0")
                .await
                .unwrap()
                .filter(|found| found.metadata.deletion_timestamp.is_none())
        })
        .await;
        assert_eq!(uid.owner_references().len(), 1);
        world.held(&["a"]).await;
        operator.end().await;
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a cluster"]
async fn a_deployment_of_somebody_else_is_left_alone() {
    in_a_world(|world| async move {
        let foreign = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "site-0"},
            "spec": {
                "replicas": 0, "selector": {"matchLabels": {"app": "mine"}},
                "template": {"metadata": {"labels": {"app": "mine"}}, "spec": {"containers": [{"name": "x", "image": "x"}]}},
            },
        });
        let before: Deployment = world.create(foreign).await;
        let operator = world.operator(Timing::default()).await;
        world.profile().await;
        world.poller("site", &["a"]).await;
        let message = world.reason("site", "Ready", "NameTaken").await;
        assert!(message.contains("Deployment site-0"), "{message}");
        let after = world.api::<Deployment>().get("site-0").await.unwrap();
        assert_eq!(after.spec, before.spec);
        assert!(after.owner_references().is_empty());
        operator.end().await;
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a cluster"]
async fn deleted_resources_leave_nothing_behind() {
    in_a_world(|world| async move {
        let operator = world.operator(Timing::default()).await;
        world.profile().await;
        world.poller("site", &["a", "b"]).await;
        world.pipeline("store").await;
        world.held(&["a", "b"]).await;
        world.edit("site", json!({"interval": "20s", "shards": 2})).await;
        until("both shards", || async {
            (world.deployments().await.len() == 3).then_some(())
        })
        .await;
        world
            .api::<MeterPoller>()
            .delete("site", &DeleteParams::default())
            .await
            .unwrap();
        world
            .api::<TelemetryPipeline>()
            .delete("store", &DeleteParams::default())
            .await
            .unwrap();
        until("nothing", || async {
            let left = world.list::<Deployment>().await.len()
                + world.list::<ReplicaSet>().await.len()
                + world.list::<Pod>().await.len()
                + world.config_maps().await.len();
            (left == 0).then_some(())
        })
        .await;
        operator.end().await;
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a cluster"]
async fn what_cannot_even_be_read_says_so_once() {
    in_a_world(|world| async move {
        let poller = world.poller("site", &["a"]).await;
        let recorder = Recorder::new(world.client.clone(), "corrente-operator".into());
        let about = poller.object_ref(&());
        for _ in 0..2 {
            status::write_unreadable::<MeterPoller>(
                &world.client,
                &recorder,
                &poller.metadata,
                &about,
                "a new field",
            )
            .await
            .unwrap();
        }
        let message = world.reason("site", "Ready", "Invalid").await;
        assert!(message.contains("it cannot be read: a new field"), "{message}");
        let events = world.list::<Event>().await;
        let told: Vec<&Event> = events
            .iter()
            .filter(|event| event.reason.as_deref() == Some("Invalid"))
            .collect();
        assert!(told.len() == 1 && told[0].series.is_none(), "told once: {told:?}");
    })
    .await;
}
