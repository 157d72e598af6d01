//! An idle cluster sees no writes, and neither does one whose operator was started anew.

use std::{
    collections::BTreeSet,
    sync::Mutex,
    time::{Duration, Instant},
};

use corrente_crds::{MeterPoller, TelemetryPipeline};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Pod},
};
use kube::{Resource, ResourceExt};
use serde_json::json;

use crate::world::{World, in_a_world, quick, until};

/// How many looks at resources there have been in this process.
fn looks() -> u64 {
    corrente_runtime::metrics::render()
        .lines()
        .filter(|line| line.starts_with("corrente_operator_reconcile_operations_total{"))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

/// The resource version of everything that the operator has to do with.
async fn versions(world: &World) -> BTreeSet<String> {
    fn of<K: Resource<DynamicType = ()>>(objects: Vec<K>) -> impl Iterator<Item = String> {
        objects.into_iter().map(|object| {
            format!(
                "{} {} {}",
                K::kind(&()),
                object.name_any(),
                object.resource_version().unwrap_or_default()
            )
        })
    }
    of(world.list::<MeterPoller>().await)
        .chain(of(world.list::<TelemetryPipeline>().await))
        .chain(of(world.list::<Deployment>().await))
        .chain(of(world.list::<ConfigMap>().await))
        .chain(of(world.list::<Pod>().await))
        .collect()
}

/// Waits until nothing of the cluster's own doing is under way any more: nothing changed for two seconds.
async fn settled(world: &World) {
    let last = Mutex::new((versions(world).await, Instant::now()));
    until("the cluster to settle", || async {
        let now = versions(world).await;
        let mut last = last.lock().unwrap();
        if last.0 != now {
            *last = (now, Instant::now());
        }
        (last.1.elapsed() > Duration::from_secs(2)).then_some(())
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a cluster"]
async fn an_idle_cluster_sees_no_writes() {
    in_a_world(|world| async move {
        let operator = world.operator(quick()).await;
        world.profile().await;
        let mut manifest = world.poller_manifest("site", &["a", "b", "c"]);
        manifest["spec"]["shards"] = json!(2);
        // The API server writes these in another way: 1 CPU, and 1536Mi.
        manifest["spec"]["template"] =
            json!({"resources": {"requests": {"cpu": "1000m", "memory": "16777216"}}});
        world.create::<MeterPoller>(manifest).await;
        world.poller("wrong", &["a"]).await;
        world.pipeline("store").await;
        world.held(&["a", "b", "c"]).await;
        settled(&world).await;

        let (written, looked) = (operator.writes().len(), looks());
        until("fifty looks", || async { (looks() >= looked + 50).then_some(()) }).await;
        assert_eq!(operator.writes()[written..], Vec::<String>::new()[..]);
        operator.end().await;

        let looked = looks();
        let successor = world.operator(quick()).await;
        until("fifty more looks", || async {
            (looks() >= looked + 50).then_some(())
        })
        .await;
        assert_eq!(
            successor.writes(),
            Vec::<String>::new(),
            "a new start is no reason to write"
        );
        successor.end().await;
    })
    .await;
}
