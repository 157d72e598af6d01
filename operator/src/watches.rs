//! The watches: they fill the caches, and turn each change into a look at the resources it concerns.
//!
//! | a change of | is looked at |
//! |---|---|
//! | MeterPoller | itself; those it takes from or gives back to; the pipelines of its topic |
//! | MeterProfile | the MeterPollers whose meters name it, and all pipelines behind them |
//! | TelemetryPipeline | itself |
//! | Deployment, ConfigMap | its owner |
//! | pod | its owner, and the handover gate |
//!
//! After a broken watch the list is read anew, and what vanished meanwhile is in no event: everything is
//! looked at then, which costs no request where nothing differs. Pods and our own kinds are watched in all
//! namespaces, since an endpoint may be held in any; what we make, only where we make it.

use std::{collections::BTreeMap, fmt::Debug, hash::Hash, sync::Arc};

use corrente_crds::MeterPoller;
use futures::{StreamExt, future::BoxFuture, pin_mut};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Pod},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::{DeserializeGuard, NamespaceResourceScope, PartialObjectMeta},
    runtime::{
        WatchStreamExt,
        reflector::store::Writer,
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;

use crate::{
    backoff,
    claims::Claims,
    context::{Context, GuardedPipeline, GuardedPoller, GuardedProfile, Key, Namespaces, Stores},
    podstate, profiles,
    vocabulary::{annotations, labels},
};

/// The writing ends of the caches.
pub struct Writers {
    profiles: Writer<GuardedProfile>,
    pollers: Writer<GuardedPoller>,
    pipelines: Writer<GuardedPipeline>,
    pods: Writer<Pod>,
    deployments: BTreeMap<String, Writer<Deployment>>,
    config_maps: BTreeMap<String, Writer<PartialObjectMeta<ConfigMap>>>,
}

/// Empty caches for these namespaces, and their writing ends.
#[must_use]
pub fn caches(namespaces: &Namespaces) -> (Stores, Writers) {
    let scopes: Vec<String> = match namespaces {
        Namespaces::All => vec![String::new()],
        Namespaces::Only(names) => names.iter().cloned().collect(),
    };
    let writers = Writers {
        profiles: Writer::default(),
        pollers: Writer::default(),
        pipelines: Writer::default(),
        pods: Writer::default(),
        deployments: scopes
            .iter()
            .map(|scope| (scope.clone(), Writer::default()))
            .collect(),
        config_maps: scopes
            .iter()
            .map(|scope| (scope.clone(), Writer::default()))
            .collect(),
    };
    let stores = Stores {
        profiles: writers.profiles.as_reader(),
        pollers: writers.pollers.as_reader(),
        pipelines: writers.pipelines.as_reader(),
        pods: writers.pods.as_reader(),
        deployments: writers
            .deployments
            .iter()
            .map(|(scope, writer)| (scope.clone(), writer.as_reader()))
            .collect(),
        config_maps: writers
            .config_maps
            .iter()
            .map(|(scope, writer)| (scope.clone(), writer.as_reader()))
            .collect(),
    };
    (stores, writers)
}

/// The watches, each of which runs until it is dropped.
#[must_use]
pub fn watches(context: &Arc<Context>, writers: Writers) -> Vec<BoxFuture<'static, ()>> {
    let client = &context.client;
    let managed = watcher::Config::default().labels(&format!("{}={}", labels::MANAGED_BY, labels::CORRENTE));
    let components = format!(
        "{} in ({},{})",
        labels::COMPONENT,
        labels::POLLER,
        labels::PIPELINE
    );
    let workers = watcher::Config::default().labels(&components);
    let all = watcher::Config::default();
    let mut watches: Vec<BoxFuture<'static, ()>> = vec![
        Box::pin(follow(
            "MeterProfile",
            Api::all(client.clone()),
            all.clone(),
            writers.profiles,
            trim,
            {
                let context = context.clone();
                move |change| on_profile(&context, change)
            },
        )),
        Box::pin(follow(
            "MeterPoller",
            Api::all(client.clone()),
            all.clone(),
            writers.pollers,
            trim,
            {
                let context = context.clone();
                move |change| on_poller(&context, change)
            },
        )),
        Box::pin(follow(
            "TelemetryPipeline",
            Api::all(client.clone()),
            all,
            writers.pipelines,
            trim,
            {
                let context = context.clone();
                move |change| on_pipeline(&context, change)
            },
        )),
        Box::pin(follow(
            "Pod",
            Api::all(client.clone()),
            workers,
            writers.pods,
            podstate::trim,
            {
                let context = context.clone();
                move |change| on_pod(&context, change)
            },
        )),
    ];
    for (scope, writer) in writers.deployments {
        let (api, context) = (scoped(client, &scope), context.clone());
        watches.push(Box::pin(follow(
            "Deployment",
            api,
            managed.clone(),
            writer,
            trim_deployment,
            move |change| {
                on_owned(&context, "Deployment", change);
            },
        )));
    }
    for (scope, writer) in writers.config_maps {
        let (api, context) = (scoped(client, &scope), context.clone());
        watches.push(Box::pin(follow(
            "ConfigMap",
            api,
            managed.clone(),
            writer,
            trim,
            move |change| {
                on_owned(&context, "ConfigMap", change);
            },
        )));
    }
    watches
}

fn scoped<K>(client: &Client, scope: &str) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
{
    if scope.is_empty() {
        Api::all(client.clone())
    } else {
        Api::namespaced(client.clone(), scope)
    }
}

/// What happened to the objects of a kind.
enum Change<'a, K> {
    /// One was made or changed.
    Applied(&'a K),
    /// One is gone.
    Gone(&'a K),
    /// All were read anew.
    Relisted,
}

/// Keeps a cache up to date, for ever, and tells what changed after the cache has it.
async fn follow<K>(
    kind: &'static str,
    api: Api<K>,
    config: watcher::Config,
    mut writer: Writer<K>,
    trim: fn(&mut K),
    mut on_change: impl FnMut(Change<'_, K>),
) where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let events = watcher(api, config).modify(trim).default_backoff();
    pin_mut!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                writer.apply_watcher_event(&event);
                match &event {
                    Event::Apply(object) => on_change(Change::Applied(object)),
                    Event::Delete(object) => on_change(Change::Gone(object)),
                    Event::InitDone => on_change(Change::Relisted),
                    Event::Init | Event::InitApply(_) => {}
                }
            }
            Err(error) => {
                tracing::warn!(kind, error = %crate::events::chain(&error), "a watch broke off and is started again");
                metrics::counter!("corrente_operator_watch_errors_total", "kind" => kind).increment(1);
            }
        }
    }
}

fn trim<K: Resource>(object: &mut K) {
    object.meta_mut().managed_fields = None;
    if let Some(annotations) = object.meta_mut().annotations.as_mut() {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
}

fn trim_deployment(deployment: &mut Deployment) {
    deployment.metadata.managed_fields = None;
    deployment.status = None;
}

fn on_poller(context: &Context, change: Change<'_, GuardedPoller>) {
    match change {
        Change::Applied(guarded) => {
            // A write of the status changes nobody's claims.
            if let Ok(poller) = &guarded.0
                && !context.claims.lock().knows(poller)
            {
                settle_claims(context);
                pipelines_of(context, poller);
            }
            context.queues.poller(&Key::of(guarded), "it changed");
        }
        Change::Gone(guarded) => {
            settle_claims(context);
            if let Ok(poller) = &guarded.0 {
                pipelines_of(context, poller);
            }
            let uid = guarded.meta().uid.as_deref().unwrap_or_default();
            crate::status::forget::<MeterPoller>(uid, &context.memory);
            context.backoffs.succeeded(&backoff::name_of(guarded));
        }
        Change::Relisted => {
            settle_claims(context);
            everything(context, "MeterPollers were read anew");
        }
    }
}

/// Settles anew who owns what, and has a look at those for whom it comes out otherwise.
pub fn settle_claims(context: &Context) {
    let pollers = context.stores.pollers.state();
    let readable: Vec<&MeterPoller> = pollers
        .iter()
        .filter_map(|guarded| guarded.0.as_ref().ok())
        .collect();
    let later = Arc::new(Claims::of(&readable));
    let before = std::mem::replace(&mut *context.claims.lock(), later.clone());
    for key in before.changed(&later) {
        context
            .queues
            .poller(&key, "another MeterPoller's endpoints or meters changed");
    }
}

fn pipelines_of(context: &Context, poller: &MeterPoller) {
    // Of its topic as it was before an edit, too: what is not behind a topic any more declares no columns.
    let topic = &poller.spec.output.kafka.topic;
    for pipeline in context.stores.pipelines.state() {
        if let Ok(readable) = &pipeline.0 {
            let why = format!("the MeterPollers behind its topics changed ({topic})");
            context.queues.pipeline(&Key::of(readable), &why);
        }
    }
}

fn on_profile(context: &Context, change: Change<'_, GuardedProfile>) {
    let (Change::Applied(profile) | Change::Gone(profile)) = change else {
        return everything(context, "MeterProfiles were read anew");
    };
    let name = profile.name_any();
    for guarded in context.stores.pollers.state() {
        if let Ok(poller) = &guarded.0
            && profiles::named(&poller.spec).contains(name.as_str())
        {
            context
                .queues
                .poller(&Key::of(poller), "a MeterProfile that it names changed");
        }
    }
    for pipeline in context.stores.pipelines.state() {
        context
            .queues
            .pipeline(&Key::of(pipeline.as_ref()), "a MeterProfile changed");
    }
}

fn on_pipeline(context: &Context, change: Change<'_, GuardedPipeline>) {
    match change {
        Change::Applied(pipeline) => context.queues.pipeline(&Key::of(pipeline), "it changed"),
        Change::Gone(pipeline) => {
            let uid = pipeline.meta().uid.as_deref().unwrap_or_default();
            crate::status::forget::<corrente_crds::TelemetryPipeline>(uid, &context.memory);
            context.backoffs.succeeded(&backoff::name_of(pipeline));
        }
        Change::Relisted => everything(context, "TelemetryPipelines were read anew"),
    }
}

fn on_pod(context: &Context, change: Change<'_, Pod>) {
    let (Change::Applied(pod) | Change::Gone(pod)) = change else {
        context.queues.gate();
        return everything(context, "pods were read anew");
    };
    let component = pod.labels().get(labels::COMPONENT).map(String::as_str);
    if component == Some(labels::POLLER) {
        context.queues.gate();
    }
    let Some(name) = pod.annotations().get(annotations::RESOURCE) else {
        return;
    };
    let key = Key {
        namespace: pod.namespace().unwrap_or_default(),
        name: name.clone(),
    };
    match component {
        Some(labels::POLLER) => context.queues.poller(&key, "its pod changed"),
        Some(labels::PIPELINE) => context.queues.pipeline(&key, "its pod changed"),
        _ => {}
    }
}

fn on_owned<K: Resource>(context: &Context, kind: &'static str, change: Change<'_, K>) {
    let (Change::Applied(object) | Change::Gone(object)) = change else {
        return everything(context, "objects were read anew");
    };
    if let Change::Gone(object) = change {
        let Key { namespace, name } = Key::of(object);
        context.memory.applied.lock().remove(&(kind, namespace, name));
    }
    let namespace = object.meta().namespace.clone().unwrap_or_default();
    for owner in object.meta().owner_references.iter().flatten() {
        let key = Key {
            namespace: namespace.clone(),
            name: owner.name.clone(),
        };
        match owner.kind.as_str() {
            "MeterPoller" => context.queues.poller(&key, "an object of its changed"),
            "TelemetryPipeline" => context.queues.pipeline(&key, "an object of its changed"),
            _ => {}
        }
    }
}

fn everything(context: &Context, why: &str) {
    fn keys<K>(objects: Vec<Arc<DeserializeGuard<K>>>) -> impl Iterator<Item = Key>
    where
        K: Resource<DynamicType: Eq + Hash>,
    {
        objects.into_iter().map(|object| Key::of(object.as_ref()))
    }
    for key in keys(context.stores.pollers.state()) {
        context.queues.poller(&key, why);
    }
    for key in keys(context.stores.pipelines.state()) {
        context.queues.pipeline(&key, why);
    }
}
