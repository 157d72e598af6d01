//! A look at a MeterPoller: the stages in their order.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use corrente_crds::MeterPoller;
use k8s_openapi::{api::core::v1::ObjectReference, jiff::Timestamp};
use kube::{Resource, ResourceExt, runtime::controller::Action};

use super::{
    build,
    dereference::{self, Live},
    status::{self as verdict, Refusal, Seen, Workers},
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
    let current: BTreeSet<String> = resources
        .config_maps
        .iter()
        .map(ResourceExt::name_any)
        .chain(resources.deployments.iter().map(ResourceExt::name_any))
        .collect();
    let namespace = &valid.key.namespace;
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
    match apply(valid, resources, live, about, context).await {
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
    let waits: Vec<String> = pods
        .iter()
        .filter_map(|uid| context.waits.sentence(uid))
        .collect();
    let reports = context.reports.of_pollers(&live.pods);
    let seen = Seen {
        pods: &live.pods,
        reports: &reports,
        waits: &waits,
    };
    let desired = verdict::of(
        valid,
        &seen,
        &written,
        poller.metadata.generation,
        Timestamp::now(),
    );
    Ok(status::write(context, poller, about, &written, desired).await?)
}

/// How soon to see whether a taken name is free.
const TAKEN: Duration = Duration::from_secs(30);

/// Applies every shard, whatever becomes of the others, and returns the first error.
async fn apply(
    valid: &ValidatedPoller,
    resources: build::Resources,
    live: &Live,
    about: &ObjectReference,
    context: &Context,
) -> Result<(), apply::Error> {
    let applier = Applier {
        client: &context.client,
        memory: &context.memory,
        namespace: &valid.key.namespace,
        owner: &valid.uid,
    };
    let mut applied = Vec::new();
    let mut failed = None;
    let objects = resources.config_maps.iter().zip(resources.deployments);
    for ((config_map, deployment), shard) in objects.zip(&valid.shards) {
        let name = deployment.name_any();
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
