//! Whether a TelemetryPipeline can be carried out, and if so as what.
//!
//! The rules are `corrente-config`'s, the same that `corrente validate` applies.

use corrente_config::{Problem, resolve::resolve_pipeline};
use corrente_crds::{
    common::{PodTemplate, SecretKey},
    pipeline::Sink,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt};

use super::dereference::Dereferenced;
use crate::{
    context::Key,
    naming::Revision,
    secrets::{self, Need},
};

/// Most bytes of the file; a ConfigMap may have 1 MiB in all.
const MOST_BYTES: usize = 900 * 1024;

/// A TelemetryPipeline that can be carried out.
#[derive(Debug)]
pub struct ValidatedPipeline {
    /// Its namespace and name.
    pub key: Key,
    /// Its uid.
    pub uid: String,
    /// The reference by which its objects go when it goes.
    pub owner: OwnerReference,
    /// How many pods are to run; none while it is suspended.
    pub replicas: i32,
    /// No pod is to run.
    pub suspended: bool,
    /// What its pods get from the cluster.
    pub template: Option<PodTemplate>,
    /// The name of its ConfigMap.
    pub revision: Revision,
    /// Its file.
    pub file: String,
    /// The Secret's key that holds the sink's address, where that is secret.
    pub secret: Option<SecretKey>,
    /// What its pods need of further Secrets.
    pub secrets: Vec<Need>,
    /// Whether its sink has tables that a worker looks after.
    pub has_tables: bool,
    /// Most bytes of a batch, which a pod has to have room for.
    pub batch_bytes: i32,
}

/// Judges a TelemetryPipeline.
///
/// # Errors
/// All that is wrong with it.
pub fn validate(found: &Dereferenced<'_>) -> Result<ValidatedPipeline, Vec<Problem>> {
    let pipeline = found.pipeline;
    let key = Key::of(pipeline);
    let spec = &pipeline.spec;
    let config = resolve_pipeline(
        &key.namespace,
        &key.name,
        spec,
        &found.pollers,
        &found.profiles.known,
    )?;
    let one = |path: &str, message: String| vec![Problem::new(path, message)];
    let file = serde_json::to_string(&config)
        .map_err(|error| one("spec", format!("cannot be written as JSON: {error}")))?;
    if file.len() > MOST_BYTES {
        let (has, may) = (file.len() / 1024, MOST_BYTES / 1024);
        let message =
            format!("the configuration has {has} KiB and may have {may}: spread the topics over several");
        return Err(one("spec.source.kafka.topics", message));
    }
    let owner = pipeline.controller_owner_ref(&()).ok_or_else(|| {
        one(
            "metadata",
            "has no uid: it was not read from a cluster".to_owned(),
        )
    })?;
    Ok(ValidatedPipeline {
        uid: pipeline.uid().unwrap_or_default(),
        owner,
        replicas: if spec.suspend { 0 } else { spec.replicas },
        suspended: spec.suspend,
        template: spec.template.clone(),
        revision: Revision::of_pipeline(&key.name, &file),
        file,
        secret: connection(&spec.sink).cloned(),
        secrets: secrets::of_kafka(&spec.source.kafka.cluster)
            .into_iter()
            .chain(secrets::of_sink(&spec.sink))
            .collect(),
        has_tables: spec.sink.postgresql.is_some() || spec.sink.timescaledb.is_some(),
        batch_bytes: spec.batch.max_bytes,
        key,
    })
}

fn connection(sink: &Sink) -> Option<&SecretKey> {
    let named = [
        sink.postgresql
            .as_ref()
            .map(|plain| &plain.table.connection_secret),
        sink.timescaledb
            .as_ref()
            .map(|timescale| &timescale.table.connection_secret),
        sink.mongodb.as_ref().map(|mongodb| &mongodb.connection_secret),
        sink.amqp.as_ref().map(|amqp| &amqp.connection_secret),
    ];
    named.into_iter().flatten().next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fixtures::{pipeline, poller, profile},
        profiles::Profiles,
    };

    #[test]
    fn the_columns_follow_from_the_profiles_behind_the_topics() {
        let pipeline = pipeline("store");
        let poller = poller("site", 1, &[("a", "gw1", &["m1"])]);
        let mut found = Dereferenced {
            pipeline: &pipeline,
            pollers: vec![("plant".into(), "site".into(), poller.spec)],
            profiles: Profiles {
                known: [("acme".to_owned(), profile())].into(),
                ..Profiles::default()
            },
        };
        let with = validate(&found).unwrap();
        assert!(with.file.contains("energy_import"), "{}", with.file);
        found.pollers.clear();
        let without = validate(&found).unwrap();
        assert_ne!(with.revision, without.revision);
    }

    #[test]
    fn suspended_runs_no_pod_and_keeps_its_revision() {
        let running = pipeline("store");
        let mut suspended = running.clone();
        suspended.spec.suspend = true;
        let judge = |pipeline: &corrente_crds::TelemetryPipeline| {
            validate(&Dereferenced {
                pipeline,
                pollers: vec![],
                profiles: Profiles::default(),
            })
            .unwrap()
        };
        assert_eq!((judge(&running).replicas, judge(&suspended).replicas), (2, 0));
        assert_eq!(judge(&running).revision, judge(&suspended).revision);
    }

    #[test]
    fn two_sinks_or_none_are_refused() {
        let mut none = pipeline("store");
        none.spec.sink = Sink::default();
        let found = Dereferenced {
            pipeline: &none,
            pollers: vec![],
            profiles: Profiles::default(),
        };
        assert!(validate(&found).unwrap_err()[0].to_string().contains("spec.sink"));
    }
}
