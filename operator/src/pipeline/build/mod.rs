//! The objects of a validated TelemetryPipeline: a ConfigMap and a Deployment, one file each.

pub mod config_map;
pub mod deployment;

use std::collections::BTreeMap;

use k8s_openapi::api::{apps::v1::Deployment, core::v1::ConfigMap};

use super::validate::ValidatedPipeline;
use crate::{context::Settings, naming, pods, vocabulary::labels};

/// The objects of a TelemetryPipeline, in the order in which they are applied.
#[derive(Debug)]
pub struct Resources {
    /// Its configuration.
    pub config_map: ConfigMap,
    /// Its Deployment.
    pub deployment: Deployment,
}

/// Builds the objects of a TelemetryPipeline.
#[must_use]
pub fn build(pipeline: &ValidatedPipeline, settings: &Settings) -> Resources {
    Resources {
        config_map: config_map::build(pipeline),
        deployment: deployment::build(pipeline, settings),
    }
}

/// Labels of everything that belongs to it.
fn all_labels(pipeline: &ValidatedPipeline) -> BTreeMap<String, String> {
    let mut all = pods::common_labels(labels::PIPELINE, &pipeline.key.name);
    all.insert(
        labels::TELEMETRY_PIPELINE.to_owned(),
        naming::label_value(&pipeline.key.name),
    );
    all
}

#[cfg(test)]
mod tests {
    use corrente_crds::kafka::KafkaTls;

    use super::*;
    use crate::{
        fixtures::pipeline,
        golden,
        pipeline::{dereference::Dereferenced, validate::validate},
        profiles::Profiles,
    };

    #[test]
    fn the_objects_are_those_of_the_golden_file() {
        let mut pipeline = pipeline("store");
        pipeline.spec.source.kafka.cluster.tls = Some(KafkaTls {
            ca_secret: Some("kafka-ca".to_owned()),
            client_certificate_secret: None,
        });
        let found = Dereferenced {
            pipeline: &pipeline,
            pollers: vec![],
            profiles: Profiles::default(),
        };
        let resources = build(&validate(&found).unwrap(), &golden::settings());
        golden::check("pipeline-config-map", &[resources.config_map]);
        golden::check("pipeline-deployment", &[resources.deployment]);
    }
}
