//! The handover gate on a real cluster.

use corrente_crds::MeterPoller;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::json;

use crate::{
    referee::Referee,
    world::{World, create_namespace, in_a_world, quick, until},
};

/// A poller pod without any owner, called `orphan`, in a namespace of its own. It is never scheduled: the object counts.
async fn orphan(world: &World, namespace: &str, endpoints: &str) -> Api<Pod> {
    create_namespace(&world.client, namespace).await;
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), namespace);
    let orphan: Pod = serde_json::from_value(json!({
        "metadata": {
            "name": "orphan",
            "labels": {"corrente.dev/component": "poller"},
            "annotations": {"corrente.dev/endpoints": endpoints},
        },
        "spec": {
            "nodeSelector": {"corrente.dev/no-such": "node"},
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "x", "image": "x",
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
        },
    }))
    .unwrap();
    pods.create(&PostParams::default(), &orphan).await.unwrap();
    pods
}

#[tokio::test]
#[ignore = "needs a cluster"]
async fn who_gains_a_gateway_goes_on_until_it_is_free() {
    in_a_world(|world| async move {
        let elsewhere = format!("{}-elsewhere", world.namespace);
        let pods = orphan(&world, &elsewhere, &world.gateway("b")).await;
        let operator = world.operator(quick()).await;
        let referee = Referee::watch(&world).await;
        world.profile().await;
        world.poller("site", &["a"]).await;
        let before = world.held(&["a"]).await.remove(0);
        let both = world.poller_manifest("site", &["a", "b"]);
        world
            .edit("site", json!({"endpoints": both["spec"]["endpoints"]}))
            .await;
        let message = world.reason("site", "Progressing", "WaitingForHandover").await;
        assert!(
            message.contains("goes on as it is")
                && message.contains(&world.gateway("b"))
                && message.contains(&format!("{elsewhere}/orphan")),
            "{message}"
        );
        // The change was looked at, and the pod is the one that it was.
        let held = world.held(&["a"]).await.remove(0);
        assert!(held.uid == before.uid && !held.deleting);
        pods.delete("orphan", &DeleteParams::default().grace_period(0))
            .await
            .unwrap();
        let after = world.held(&["a", "b"]).await;
        assert!(after.len() == 1 && after[0].uid != before.uid);
        world.reason("site", "Progressing", "Settled").await;
        referee.saw_no_foul();
        let namespaces: Api<Namespace> = Api::all(world.client.clone());
        namespaces
            .delete(&elsewhere, &DeleteParams::default())
            .await
            .unwrap();
        operator.end().await;
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a cluster"]
async fn a_pod_waits_for_whoever_holds_its_gateway_wherever_that_is() {
    in_a_world(|world| async move {
        let elsewhere = format!("{}-elsewhere", world.namespace);
        let pods = orphan(&world, &elsewhere, &format!("gw9:502,{}", world.gateway("a"))).await;

        let operator = world.operator(quick()).await;
        world.profile().await;
        world.poller("site", &["a"]).await;
        world.poller("neighbour", &["b"]).await;
        world.held(&["b"]).await;
        let message = world.reason("site", "Progressing", "WaitingForHandover").await;
        assert!(
            message.contains(&format!("{elsewhere}/orphan")) && message.contains(&world.gateway("a")),
            "{message}"
        );
        let waiting: Vec<_> = world
            .holders()
            .await
            .into_iter()
            .filter(|pod| pod.gate.is_some())
            .collect();
        assert_eq!(waiting.len(), 1);
        let events: Api<k8s_openapi::api::events::v1::Event> = world.api();
        until("an event on the pod that waits", || async {
            let events = events.list(&Default::default()).await.unwrap();
            events.into_iter().find(|event| {
                event.reason.as_deref() == Some("WaitingForHandover")
                    && event.regarding.as_ref().and_then(|about| about.name.as_deref())
                        == Some(&waiting[0].name)
            })
        })
        .await;

        pods.delete("orphan", &DeleteParams::default().grace_period(0))
            .await
            .unwrap();
        let released = world.held(&["a", "b"]).await;
        assert!(
            released.iter().any(|pod| pod.uid == waiting[0].uid),
            "the very pod that waited"
        );
        world.reason("site", "Progressing", "Settled").await;
        let namespaces: Api<Namespace> = Api::all(world.client.clone());
        namespaces
            .delete(&elsewhere, &DeleteParams::default())
            .await
            .unwrap();
        operator.end().await;
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a cluster"]
async fn a_replacement_waits_until_the_old_one_has_ended() {
    in_a_world(|world| async move {
        let operator = world.operator(quick()).await;
        let referee = Referee::watch(&world).await;
        world.profile().await;
        world.poller("site", &["a"]).await;
        let old = world.held(&["a"]).await.remove(0);
        let pods: Api<Pod> = world.api();
        // A finalizer keeps the object; it holds the gateway until its containers have ended for good.
        let hold = Patch::Merge(json!({"metadata": {"finalizers": ["corrente.dev/test"]}}));
        pods.patch(&old.name, &PatchParams::default(), &hold)
            .await
            .unwrap();
        pods.delete(&old.name, &DeleteParams::default()).await.unwrap();
        until("the replacement", || async {
            let pods = world.holders().await;
            let replaced = pods.iter().any(|pod| pod.uid != old.uid && pod.gate.is_none());
            let ended = pods.iter().any(|pod| pod.uid == old.uid && pod.finished);
            (replaced && ended).then_some(())
        })
        .await;
        let let_go = Patch::Merge(json!({"metadata": {"finalizers": null}}));
        pods.patch(&old.name, &PatchParams::default(), &let_go)
            .await
            .unwrap();
        referee.saw_no_foul();
        operator.end().await;
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a cluster"]
async fn two_operators_at_once_make_no_two_masters() {
    in_a_world(|world| async move {
        let (one, other) = tokio::join!(world.operator(quick()), world.operator(quick()));
        let referee = Referee::watch(&world).await;
        world.profile().await;
        let endpoints = ["a", "b", "c", "d"];
        world.poller("site", &endpoints).await;
        let mut last = world.held(&endpoints).await;
        for (interval, shards) in [("20s", 3), ("30s", 1), ("40s", 4), ("1m", 2)] {
            world
                .edit("site", json!({"interval": interval, "shards": shards}))
                .await;
            let before: Vec<String> = last.iter().map(|pod| pod.uid.clone()).collect();
            last = until(&format!("{shards} new pods"), || async {
                let held = world.held(&endpoints).await;
                (held.len() == shards && held.iter().all(|pod| !before.contains(&pod.uid))).then_some(held)
            })
            .await;
        }
        let pods: Api<Pod> = world.api();
        for pod in &last {
            pods.delete(&pod.name, &DeleteParams::default()).await.unwrap();
        }
        until("replacements", || async {
            let held = world.held(&endpoints).await;
            held.iter()
                .all(|pod| last.iter().all(|old| old.uid != pod.uid))
                .then_some(())
        })
        .await;
        referee.saw_no_foul();
        one.end().await;
        other.end().await;
        assert!(world.api::<MeterPoller>().get("site").await.unwrap().name_any() == "site");
    })
    .await;
}
