//! A poller from start to end, in a pod or within `corrente local`.
//!
//! Start: the endpoints are set up, the spool is opened, then the publisher, the syncing of the spool and one
//! task per endpoint begin. End, within five seconds: no poll begins any more; the polls under way end; the
//! spool is synced; the publisher sends what it can until the time is up; what it could not stays in the spool.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use corrente_config::PollerConfig;
use corrente_runtime::broker::{DeliverySender, Producer};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, interval, timeout_at},
};
use tokio_util::sync::CancellationToken;

#[cfg(target_os = "linux")]
use crate::alarm::Alarm;
use crate::{
    clock::Clock,
    encode::Encoder,
    endpoint::{self, SHOWN_EVERY, Surroundings},
    formatter::Formatter,
    observe,
    publish::Publisher,
    registry::Registry,
    setup,
    spool::{Limits, Spool, shared::SharedSpool},
    state::PollerState,
    window::WindowLimits,
};

/// How long the end may take, the leaving of the process aside: all of it is promised within five seconds. It takes so
/// long only where the broker does not take what was read. A pod that is deleted often takes its spool along, so that a
/// broker that was cut off until just now is worth waiting for.
const FAREWELL: Duration = Duration::from_secs(4);

/// Runs a poller, without a schema registry, until `shutdown` is cancelled. `producer` makes the producer, given
/// the channel for its deliveries; `spool_dir` is this poller's own.
///
/// # Errors
/// Where the spool cannot be opened, the producer cannot be made, or a task ends that should not.
pub async fn run<P, F>(
    config: PollerConfig,
    spool_dir: &Path,
    producer: F,
    state: Arc<PollerState>,
    shutdown: CancellationToken,
) -> anyhow::Result<()>
where
    P: Producer,
    F: FnOnce(DeliverySender) -> anyhow::Result<P>,
{
    run_with_registry(config, spool_dir, producer, None, state, shutdown).await
}

/// Runs a poller as [`run`] does, with a schema registry for the formats that need one.
///
/// # Errors
/// As for [`run`].
pub async fn run_with_registry<P, F>(
    config: PollerConfig,
    spool_dir: &Path,
    producer: F,
    registry: Option<Arc<dyn Registry>>,
    state: Arc<PollerState>,
    shutdown: CancellationToken,
) -> anyhow::Result<()>
where
    P: Producer,
    F: FnOnce(DeliverySender) -> anyhow::Result<P>,
{
    // Its own, so that what ends here early ends nothing else.
    let shutdown = shutdown.child_token();
    let (setups, endpoint_states): (Vec<_>, Vec<_>) = setup::endpoints(&config).into_iter().unzip();
    let limits = Limits::new(u64::try_from(config.buffer.max_bytes).unwrap_or(0));
    let dir = spool_dir.to_owned();
    let spool = tokio::task::spawn_blocking(move || Spool::open(&dir, limits))
        .await
        .context("failed to open the spool")??;
    let stats = spool.stats();
    tracing::info!(
        namespace = config.namespace,
        name = config.name,
        shard = config.shard,
        endpoints = setups.len(),
        stream = stats.stream,
        pending = stats.pending,
        "polling begins"
    );
    let spool = SharedSpool::new(spool);

    let (sender, deliveries) = mpsc::unbounded_channel();
    let producer = producer(sender).context("failed to make the producer")?;
    let drain = CancellationToken::new();
    let mut publisher = tokio::spawn({
        let (spool, drain, trouble) = (spool.clone(), drain.clone(), state.trouble().clone());
        let topic = config.output.topic.clone();
        let formatter = Formatter::new(Encoder::new(&config), registry);
        async move {
            let limits = WindowLimits::default();
            Publisher::new(spool, producer, deliveries, &topic, &trouble, limits)
                .in_format(formatter)
                .run(drain)
                .await;
        }
    });
    let keepers = CancellationToken::new();
    let _keepers = keepers.clone().drop_guard();
    tokio::spawn(keepers.clone().run_until_cancelled_owned(keep_synced(
        spool.clone(),
        config.buffer.sync_interval.as_std(),
        state.clone(),
    )));
    tokio::spawn(
        keepers
            .clone()
            .run_until_cancelled_owned(show_figures(spool.clone(), state.clone())),
    );

    let clock = clock(&keepers);
    let mut endpoints = JoinSet::new();
    for (number, setup) in setups.into_iter().enumerate() {
        let around = Surroundings {
            spool: spool.clone(),
            state: state.clone(),
            shutdown: shutdown.clone(),
            clock: clock.clone(),
        };
        endpoints.spawn(endpoint::run(number, setup, around));
    }
    state.start(spool.clone(), endpoint_states);

    let broken = tokio::select! {
        () = shutdown.cancelled() => None,
        Some(ended) = endpoints.join_next() => {
            (!shutdown.is_cancelled()).then(|| format!("an endpoint's task ended: {ended:?}"))
        }
        ended = &mut publisher => Some(format!("the publisher ended: {ended:?}")),
    };
    state.stop();
    let deadline = Instant::now() + FAREWELL;
    shutdown.cancel();
    // Each ends by itself within a second.
    while endpoints.join_next().await.is_some() {}
    // The sync goes on by itself where it takes longer; what is not on disk by then is not published.
    match timeout_at(deadline, spool.sync()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "failed to sync the spool at the end"),
        Err(_) => tracing::error!("the disk is too slow to sync the spool before the end"),
    }
    drain.cancel();
    if !publisher.is_finished() && timeout_at(deadline, &mut publisher).await.is_err() {
        publisher.abort();
    }
    let stats = spool.lock().stats();
    observe::spool(&stats, state.lost());
    tracing::info!(
        pending = stats.pending,
        records = stats.appended,
        "polling has ended"
    );
    match broken {
        Some(what) => Err(anyhow::anyhow!(what)),
        None => Ok(()),
    }
}

/// The system's clock, with an alarm that rings until `keepers` are cancelled.
#[cfg(target_os = "linux")]
fn clock(keepers: &CancellationToken) -> Clock {
    match Alarm::new() {
        Ok(alarm) => {
            tokio::spawn(keepers.clone().run_until_cancelled_owned(alarm.clone().ring()));
            Clock::with_alarm(alarm)
        }
        Err(error) => {
            tracing::warn!(%error, "the kernel's timer cannot be had; the runtime's is used, and polls are later by it");
            Clock::system()
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn clock(_: &CancellationToken) -> Clock {
    Clock::system()
}

async fn keep_synced(spool: SharedSpool, every: Duration, state: Arc<PollerState>) {
    spool
        .keep_synced(every, |result| {
            if let Err(error) = result {
                tracing::error!(%error, "failed to sync the spool; it is tried again");
            }
            state.synced(result);
        })
        .await;
}

async fn show_figures(spool: SharedSpool, state: Arc<PollerState>) {
    let mut every = interval(SHOWN_EVERY);
    loop {
        every.tick().await;
        let stats = spool.lock().stats();
        observe::spool(&stats, state.lost());
    }
}
