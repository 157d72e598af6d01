//! The whole operator, from a client to its end:
//! 1. wait until the CRDs are there;
//! 2. start the watches, and wait until every cache is filled: a profile that is not there yet looks like
//!    one that is missing;
//! 3. run the controllers, the handover gate and the observer until the process is asked to end;
//! 4. let what has begun come to its end.

use std::{
    convert::Infallible,
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream::Stream};
use kube::{
    Client, Resource,
    runtime::{
        applier,
        controller::{self, Action, ReconcileRequest},
        events::{Recorder, Reporter},
        reflector::Store,
    },
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    backoff,
    context::{Context, GuardedPipeline, GuardedPoller, Queues, Settings, Stores},
    crds, events,
    handover::gate,
    health::Health,
    observe, pipeline, poller, telemetry,
    vocabulary::OPERATOR,
    watches,
};

/// How many resources of a kind are looked at at the same time.
const AT_ONCE: u16 = 16;
/// How long a look at a resource may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long what has begun may take to come to its end.
const DRAIN: Duration = Duration::from_secs(10);

/// Why a look at a resource failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Reconcile(#[from] poller::reconcile::Error),
    #[error("failed to look at it: the API server took longer than {} s to answer", PATIENCE.as_secs())]
    Timeout,
}

impl Error {
    fn category(&self) -> &'static str {
        match self {
            Self::Reconcile(error) => error.category(),
            Self::Timeout => "timeout",
        }
    }
}

/// Runs the operator until `shutdown`.
pub async fn run(client: Client, settings: Settings, health: Arc<Health>, shutdown: CancellationToken) {
    telemetry::describe();
    tokio::select! {
        () = shutdown.cancelled() => return,
        () = crds::established(&client, &health) => {}
    }
    let (stores, writers) = watches::caches(&settings.namespaces);
    let (queues, requests) = Queues::new();
    let reporter = Reporter {
        controller: OPERATOR.to_owned(),
        instance: std::env::var("POD_NAME").ok(),
    };
    let context = Arc::new(Context {
        recorder: Recorder::new(client.clone(), reporter),
        client,
        settings,
        stores,
        queues,
        claims: Default::default(),
        memory: Default::default(),
        reports: Default::default(),
        waits: Default::default(),
        unsent: Default::default(),
        backoffs: Default::default(),
    });
    let mut watching = JoinSet::new();
    for watch in watches::watches(&context, writers) {
        watching.spawn(watch);
    }
    health.waits_for("the caches are not filled yet");
    tokio::select! {
        () = shutdown.cancelled() => return,
        () = filled(&context.stores) => {}
    }
    watches::settle_claims(&context);
    health.is_ready();
    tracing::info!(
        profiles = context.stores.profiles.len(),
        pollers = context.stores.pollers.len(),
        pipelines = context.stores.pipelines.len(),
        "the caches are filled, the controllers start"
    );

    let mut working = JoinSet::new();
    let pollers = requests.pollers.take_until(shutdown.clone().cancelled_owned());
    working.spawn(control(
        "meterpoller",
        context.clone(),
        context.stores.pollers.clone(),
        pollers,
        reconcile_poller,
    ));
    let pipelines = requests.pipelines.take_until(shutdown.clone().cancelled_owned());
    working.spawn(control(
        "telemetrypipeline",
        context.clone(),
        context.stores.pipelines.clone(),
        pipelines,
        reconcile_pipeline,
    ));
    working.spawn(gate::run(context.clone(), shutdown.clone()));
    working.spawn(observe::run(context.clone(), shutdown.clone()));

    tokio::select! {
        () = shutdown.cancelled() => {}
        // None of them ends by itself: one that did has failed in a way that only a new start mends.
        Some(ended) = working.join_next() => tracing::error!(?ended, "a part of the operator ended; all of it ends"),
        Some(ended) = watching.join_next() => tracing::error!(?ended, "a watch ended; all of the operator ends"),
    }
    shutdown.cancel();
    health.waits_for("the operator is ending");
    let drained = tokio::time::timeout(DRAIN, async { while working.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        tracing::warn!("gave up waiting for what had begun; the next start takes it up again");
    }
}

/// Returns when every cache has been filled once.
async fn filled(stores: &Stores) {
    // An error says that a watch has ended, which ends the operator.
    let _ = stores.profiles.wait_until_ready().await;
    let _ = stores.pollers.wait_until_ready().await;
    let _ = stores.pipelines.wait_until_ready().await;
    let _ = stores.pods.wait_until_ready().await;
    for store in stores.deployments.values() {
        let _ = store.wait_until_ready().await;
    }
    for store in stores.config_maps.values() {
        let _ = store.wait_until_ready().await;
    }
}

async fn reconcile_poller(object: Arc<GuardedPoller>, context: Arc<Context>) -> Result<Action, Error> {
    Ok(poller::reconcile::reconcile(&object, &context).await?)
}

async fn reconcile_pipeline(object: Arc<GuardedPipeline>, context: Arc<Context>) -> Result<Action, Error> {
    Ok(pipeline::reconcile::reconcile(&object, &context).await?)
}

/// Looks at one resource after another, several at a time but none twice at once, until `requests` ends.
async fn control<K, Look>(
    name: &'static str,
    context: Arc<Context>,
    store: Store<K>,
    requests: impl Stream<Item = ReconcileRequest<K>> + Send + 'static,
    look: fn(Arc<K>, Arc<Context>) -> Look,
) where
    K: Resource<DynamicType = ()> + Clone + Send + Sync + 'static,
    Look: Future<Output = Result<Action, Error>> + Send + 'static,
{
    let config = controller::Config::default()
        .debounce(context.settings.timing.debounce)
        .concurrency(AT_ONCE);
    let counted = store.clone();
    let timed = move |object: Arc<K>, context: Arc<Context>| {
        let began = Instant::now();
        let key = backoff::name_of(object.as_ref());
        let look = look(object, context.clone());
        Box::pin(async move {
            let result = tokio::time::timeout(PATIENCE, look)
                .await
                .unwrap_or(Err(Error::Timeout));
            let result = match result {
                Err(error) if events::is_namespace_ending(&error) => Ok(Action::await_change()),
                result => result,
            };
            telemetry::reconciled(name, began, result.as_ref().err().map(Error::category));
            if result.is_ok() {
                context.backoffs.succeeded(&key);
            }
            result
        })
    };
    let failed = |object: Arc<K>, error: &Error, context: Arc<Context>| {
        let key = backoff::name_of(object.as_ref());
        let wait = context.backoffs.failed(&key);
        let milliseconds = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        tracing::warn!(object = key, error = %events::chain(error), retry_ms = milliseconds, "failed, and will be tried again");
        Action::requeue(wait)
    };
    let queue = requests.map(Ok::<_, Infallible>);
    applier(timed, failed, context, store, queue, config)
        .for_each(|result| {
            metrics::gauge!("corrente_operator_managed_resources", "kind" => name)
                .set(telemetry::as_f64(counted.len()));
            match result {
                // Told where it is put off; an object that is gone meanwhile is no failure.
                Ok(_)
                | Err(controller::Error::ReconcilerFailed(..) | controller::Error::ObjectNotFound(_)) => {}
                Err(error) => {
                    tracing::error!(controller = name, error = %events::chain(&error), "the queue failed")
                }
            }
            std::future::ready(())
        })
        .await;
}
