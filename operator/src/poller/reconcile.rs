//! A look at a MeterPoller: the stages in their order.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use corrente_crds::MeterPoller;
use k8s_openapi::{
    api::core::v1::{ObjectReference, Pod},
    jiff::Timestamp,
};
use kube::{Resource, ResourceExt, runtime::controller::Action};

use super::{
    awaited, build,
    dereference::{self, Live},
    lingering,
    status::{self as verdict, Refusal, Seen, Workers},
    unsent,
    validate::{self, ValidatedPoller},
};
use crate::{
    apply::{self, Applier},
    conditions,
    context::{Context, GuardedPoller},
    events, prune, status,
    vocabulary::{labels, reasons},
};

/// Why a look failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The objects could not be applied.
    #[error(transparent)]
    Apply(#[from] apply::Error),
    /// What is not wanted any more could not be deleted.
    #[error(transparent)]
    Prune(#[from] prune::Error),
    /// The status could not be written.
    #[error(transparent)]
    Status(#[from] status::Error),
}

impl Error {
    /// The category for metrics.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            Self::Apply(error) => error.category(),
            Self::Prune(_) => "prune",
            Self::Status(_) => "status",
        }
    }
}

/// Looks at a MeterPoller, and says when to look again although nothing changes.
///
/// # Errors
/// Where the cluster does not do as it is asked; the look is to be repeated.
pub async fn reconcile(object: &GuardedPoller, context: &Context) -> Result<Action, Error> {
    let settled = Action::requeue(context.settings.timing.resync);
    if !context.settings.include(object) || object.meta().deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let about = object.object_ref(&());
    let poller = match &object.0 {
        Ok(poller) => poller,
        Err(invalid) => {
            let (client, recorder) = (&context.client, &context.recorder);
            status::write_unreadable::<MeterPoller>(
                client,
                recorder,
                &invalid.metadata,
                &about,
                &invalid.error,
            )
            .await?;
            return Ok(settled);
        }
    };
    let live = dereference::live(poller, &context.stores);
    let found = dereference::dereference(poller, context);
    let next = match validate::validate(&found) {
        Ok(valid) => carry_out(poller, &valid, &live, &about, context).await?,
        Err(problems) => {
            let sentences = problems.iter().map(ToString::to_string).collect();
            refuse(poller, reasons::INVALID, sentences, &live, &about, context).await?
        }
    };
    Ok(next.map_or(settled, Action::requeue))
}

async fn carry_out(
    poller: &MeterPoller,
    valid: &ValidatedPoller,
    live: &Live,
    about: &ObjectReference,
    context: &Context,
) -> Result<Option<Duration>, Error> {
    let resources = build::build(valid, &context.settings);
    let namespace = &valid.key.namespace;
    let replaced = replaced(valid, &resources, live, context)?;
    let hold = unsent::hold(poller, &pods_of(&replaced, live), context).await;
    let awaited = awaited::look(valid, &replaced, context);
    let held = if hold.is_some() {
        replaced
    } else {
        awaited.deployments
    };
    let current: BTreeSet<String> = resources
        .config_maps
        .iter()
        .map(ResourceExt::name_any)
        .chain(resources.deployments.iter().map(ResourceExt::name_any))
        .chain(held.iter().cloned())
        .collect();
    let inventory = prune::Inventory {
        deployments: &live.deployments,
        config_maps: &live.config_maps,
        pods: &live.pods,
        current: &current,
        series: labels::SHARD,
    };
    // Whoever loses an endpoint first: a shard that gains it waits until then, whatever becomes of the rest.
    let gone = prune::deployments(&context.client, &context.memory, namespace, &inventory).await?;
    if gone > 0 {
        let note = format!("deleted the Deployments of {gone} removed shards");
        events::normal(&context.recorder, about, reasons::PRUNED, &note).await;
    }
    match apply(valid, resources, &held, live, about, context).await {
        Ok(()) => {}
        Err(error @ apply::Error::NameTaken { .. }) => {
            refuse(
                poller,
                reasons::NAME_TAKEN,
                vec![error.to_string()],
                live,
                about,
                context,
            )
            .await?;
            return Ok(Some(TAKEN));
        }
        Err(error) => {
            if error.is_refusal() {
                let sentences = vec![events::chain(&error)];
                let told = refuse(poller, reasons::REFUSED, sentences, live, about, context).await;
                if let Err(untold) = told {
                    tracing::warn!(error = %events::chain(&untold), "failed to tell of a refusal");
                }
            }
            return Err(error.into());
        }
    }
    prune::config_maps(&context.client, &context.memory, namespace, &inventory).await?;
    let written = status::current(poller, &context.memory);
    let pods: Vec<&str> = live
        .pods
        .iter()
        .filter_map(|pod| pod.metadata.uid.as_deref())
        .collect();
    let mut waits: Vec<String> = pods
        .iter()
        .filter_map(|uid| context.waits.sentence(uid))
        .collect();
    let lingering = lingering::sentences(&live.pods, &waits, context).await;
    waits.extend(lingering.sentences);
    waits.extend(awaited.sentences);
    let reports = context.reports.of_pollers(&live.pods);
    let seen = Seen {
        pods: &live.pods,
        reports: &reports,
        waits: &waits,
        hold: hold.as_ref().and_then(|hold| hold.sentence.as_deref()),
    };
    let desired = verdict::of(
        valid,
        &seen,
        &written,
        poller.metadata.generation,
        Timestamp::now(),
    );
    let figures = status::write(context, poller, about, &written, desired).await?;
    let again = hold.map(|hold| hold.again);
    Ok([figures, again, lingering.again, awaited.again]
        .into_iter()
        .flatten()
        .min())
}

/// The Deployments of which a change replaces or removes the pod.
fn replaced(
    valid: &ValidatedPoller,
    resources: &build::Resources,
    live: &Live,
    context: &Context,
) -> Result<BTreeSet<String>, Error> {
    let applier = applier(valid, context);
    let mut replaced = BTreeSet::new();
    for before in &live.deployments {
        let name = before.name_any();
        let desired = resources
            .deployments
            .iter()
            .find(|desired| desired.name_any() == name);
        let changes = match desired {
            Some(desired) => applier.would_change(desired, Some(before))?,
            None => before.metadata.deletion_timestamp.is_none(),
        };
        if changes {
            replaced.insert(name);
        }
    }
    Ok(replaced)
}

/// The pods of these Deployments, each with its shard's number.
fn pods_of<'a>(deployments: &BTreeSet<String>, live: &'a Live) -> Vec<(String, &'a Pod)> {
    let shard = |labels: &std::collections::BTreeMap<String, String>| labels.get(labels::SHARD).cloned();
    let shards: BTreeSet<String> = live
        .deployments
        .iter()
        .filter(|deployment| deployments.contains(&deployment.name_any()))
        .filter_map(|deployment| shard(deployment.labels()))
        .collect();
    live.pods
        .iter()
        .filter_map(|pod| Some((shard(pod.labels())?, pod.as_ref())))
        .filter(|(shard, _)| shards.contains(shard))
        .collect()
}

fn applier<'a>(valid: &'a ValidatedPoller, context: &'a Context) -> Applier<'a> {
    Applier {
        client: &context.client,
        memory: &context.memory,
        namespace: &valid.key.namespace,
        owner: &valid.uid,
    }
}

/// How soon to see whether a taken name is free.
const TAKEN: Duration = Duration::from_secs(30);

/// Applies every shard but those that are held up, whatever becomes of the others, and returns the first error.
async fn apply(
    valid: &ValidatedPoller,
    resources: build::Resources,
    held: &BTreeSet<String>,
    live: &Live,
    about: &ObjectReference,
    context: &Context,
) -> Result<(), apply::Error> {
    let applier = applier(valid, context);
    let mut applied = Vec::new();
    let mut failed = None;
    let objects = resources.config_maps.iter().zip(resources.deployments);
    for ((config_map, deployment), shard) in objects.zip(&valid.shards) {
        let name = deployment.name_any();
        if held.contains(&name) {
            continue;
        }
        let before = live.deployments.iter().find(|live| live.name_any() == name);
        // A Deployment whose configuration is not there would stop a pod that runs.
        let done = match applier.config_map(config_map, &live.config_maps).await {
            Ok(_) => applier.deployment(deployment, before.map(Arc::as_ref)).await,
            Err(error) => Err(error),
        };
        match done {
            Ok(true) => applied.push(format!("{name} to {}", shard.revision.as_str())),
            Ok(false) => {}
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    if !applied.is_empty() {
        let note = format!("set {}", conditions::sentences(&applied, 4));
        events::normal(&context.recorder, about, reasons::APPLIED, &note).await;
    }
    failed.map_or(Ok(()), Err)
}

/// Tells the owner why the resource is not carried out, and stops what runs where it is suspended: that
/// needs nothing else of it to be right.
async fn refuse(
    poller: &MeterPoller,
    reason: &'static str,
    sentences: Vec<String>,
    live: &Live,
    about: &ObjectReference,
    context: &Context,
) -> Result<Option<Duration>, Error> {
    if poller.spec.suspend {
        let namespace = poller.namespace().unwrap_or_default();
        apply::suspend(&context.client, &context.memory, &namespace, &live.deployments).await?;
    }
    let refusal = Refusal {
        reason,
        sentences,
        workers: Workers::of(poller.spec.suspend, !live.deployments.is_empty()),
    };
    let written = status::current(poller, &context.memory);
    let desired = verdict::refused(&refusal, &written, poller.metadata.generation, Timestamp::now());
    Ok(status::write(context, poller, about, &written, desired).await?)
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
mod tests;
