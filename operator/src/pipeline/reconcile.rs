//! A look at a TelemetryPipeline: the stages in their order.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use corrente_crds::TelemetryPipeline;
use k8s_openapi::{api::core::v1::ObjectReference, jiff::Timestamp};
use kube::{Resource, ResourceExt, runtime::controller::Action};

use super::{
    build,
    dereference::{self, Live},
    status as verdict,
    validate::{self, ValidatedPipeline},
};
use crate::{
    apply::{self, Applier},
    context::{Context, GuardedPipeline},
    events,
    poller::{
        reconcile::Error,
        status::{Refusal, Workers},
    },
    prune, status,
    vocabulary::{labels, reasons},
};

/// How soon to see whether a taken name is free.
const TAKEN: Duration = Duration::from_secs(30);

/// Looks at a TelemetryPipeline, and says when to look again although nothing changes.
///
/// # Errors
/// Where the cluster does not do as it is asked; the look is to be repeated.
pub async fn reconcile(object: &GuardedPipeline, context: &Context) -> Result<Action, Error> {
    if !context.settings.include(object) || object.meta().deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let settled = Action::requeue(context.settings.timing.resync);
    let about = object.object_ref(&());
    let pipeline = match &object.0 {
        Ok(pipeline) => pipeline,
        Err(invalid) => {
            let (client, recorder) = (&context.client, &context.recorder);
            let (metadata, error) = (&invalid.metadata, &invalid.error);
            status::write_unreadable::<TelemetryPipeline>(client, recorder, metadata, &about, error).await?;
            return Ok(settled);
        }
    };
    let live = dereference::live(pipeline, &context.stores);
    let found = dereference::dereference(pipeline, context);
    let next = match validate::validate(&found) {
        Ok(valid) => carry_out(pipeline, &valid, &live, &about, context).await?,
        Err(problems) => {
            let sentences = problems.iter().map(ToString::to_string).collect();
            refuse(pipeline, reasons::INVALID, sentences, &live, &about, context).await?
        }
    };
    Ok(next.map_or(settled, Action::requeue))
}

async fn carry_out(
    pipeline: &TelemetryPipeline,
    valid: &ValidatedPipeline,
    live: &Live,
    about: &ObjectReference,
    context: &Context,
) -> Result<Option<Duration>, Error> {
    let resources = build::build(valid, &context.settings);
    let current = BTreeSet::from([resources.config_map.name_any(), resources.deployment.name_any()]);
    let namespace = &valid.key.namespace;
    let inventory = prune::Inventory {
        deployments: &live.deployments,
        config_maps: &live.config_maps,
        pods: &live.pods,
        current: &current,
        series: labels::TELEMETRY_PIPELINE,
    };
    prune::deployments(&context.client, &context.memory, namespace, &inventory).await?;
    match apply(valid, resources, live, about, context).await {
        Ok(()) => {}
        Err(error @ apply::Error::NameTaken { .. }) => {
            refuse(
                pipeline,
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
                let told = refuse(pipeline, reasons::REFUSED, sentences, live, about, context).await;
                if let Err(untold) = told {
                    tracing::warn!(error = %events::chain(&untold), "failed to tell of a refusal");
                }
            }
            return Err(error.into());
        }
    }
    prune::config_maps(&context.client, &context.memory, namespace, &inventory).await?;
    let written = status::current(pipeline, &context.memory);
    let reports = context.reports.of_pipelines(&live.pods);
    let generation = pipeline.metadata.generation;
    let desired = verdict::of(
        valid,
        &live.pods,
        &reports,
        &written,
        generation,
        Timestamp::now(),
    );
    Ok(status::write(context, pipeline, about, &written, desired).await?)
}

async fn apply(
    valid: &ValidatedPipeline,
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
    applier
        .config_map(&resources.config_map, &live.config_maps)
        .await?;
    let name = resources.deployment.name_any();
    let before = live.deployments.iter().find(|live| live.name_any() == name);
    if applier
        .deployment(resources.deployment, before.map(Arc::as_ref))
        .await?
    {
        let note = format!(
            "set {name} to {} pods of {}",
            valid.replicas,
            valid.revision.as_str()
        );
        events::normal(&context.recorder, about, reasons::APPLIED, &note).await;
    }
    Ok(())
}

/// Tells the owner why the resource is not carried out, and stops what runs where it is suspended: that
/// needs nothing else of it to be right.
async fn refuse(
    pipeline: &TelemetryPipeline,
    reason: &'static str,
    sentences: Vec<String>,
    live: &Live,
    about: &ObjectReference,
    context: &Context,
) -> Result<Option<Duration>, Error> {
    if pipeline.spec.suspend {
        let namespace = pipeline.namespace().unwrap_or_default();
        apply::suspend(&context.client, &context.memory, &namespace, &live.deployments).await?;
    }
    let refusal = Refusal {
        reason,
        sentences,
        workers: Workers::of(pipeline.spec.suspend, !live.deployments.is_empty()),
    };
    let written = status::current(pipeline, &context.memory);
    let desired = verdict::refused(&refusal, &written, pipeline.metadata.generation, Timestamp::now());
    Ok(status::write(context, pipeline, about, &written, desired).await?)
}

#[cfg(test)]
mod tests {
    use kube::core::DeserializeGuard;

    use super::*;
    use crate::{fake, fixtures::pipeline};

    const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/plant/deployments";

    #[tokio::test]
    async fn what_is_suspended_stops_although_it_is_invalid() {
        let (client, asked) = fake::client(|_| None);
        let live = fake::deployment("store-pipeline", "uid-store", 2);
        let context = fake::context(client, vec![live]);
        let mut pipeline = pipeline("store");
        pipeline.spec.sink = corrente_crds::pipeline::Sink::default();
        pipeline.spec.suspend = true;
        reconcile(&DeserializeGuard(Ok(pipeline)), &context)
            .await
            .unwrap();
        assert_eq!(
            fake::asked(&asked, &format!("PATCH {DEPLOYMENTS}")),
            [format!("PATCH {DEPLOYMENTS}/store-pipeline")]
        );
        let (reason, message) = fake::ready(&asked);
        assert!(
            reason == "Invalid" && message.contains("suspended"),
            "{reason}: {message}"
        );
    }
    #[tokio::test]
    async fn what_the_api_server_refuses_is_told_and_tried_again() {
        let (client, asked) = fake::client(|line| {
            line.contains("/configmaps")
                .then(|| fake::refusal(403, "exceeded quota: small"))
        });
        let context = fake::context(client, vec![]);
        reconcile(&DeserializeGuard(Ok(pipeline("store"))), &context)
            .await
            .unwrap_err();
        let (reason, message) = fake::ready(&asked);
        assert!(
            reason == "Refused" && message.contains("exceeded quota: small"),
            "{reason}: {message}"
        );
    }
}
