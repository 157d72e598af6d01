//! The objects of a validated MeterPoller: per shard a ConfigMap and a Deployment, one file each.

pub mod config_map;
pub mod deployment;

use k8s_openapi::api::{apps::v1::Deployment, core::v1::ConfigMap};

use super::validate::ValidatedPoller;
use crate::context::Settings;

/// The objects of a MeterPoller, in the order in which they are applied.
#[derive(Debug)]
pub struct Resources {
    /// The configuration of each shard.
    pub config_maps: Vec<ConfigMap>,
    /// The Deployment of each shard.
    pub deployments: Vec<Deployment>,
}

/// Builds the objects of a MeterPoller.
#[must_use]
pub fn build(poller: &ValidatedPoller, settings: &Settings) -> Resources {
    Resources {
        config_maps: poller
            .shards
            .iter()
            .map(|shard| config_map::build(poller, shard))
            .collect(),
        deployments: poller
            .shards
            .iter()
            .map(|shard| deployment::build(poller, shard, settings))
            .collect(),
    }
}

/// Labels of everything that belongs to a shard.
fn shard_labels(poller: &ValidatedPoller, shard: i32) -> std::collections::BTreeMap<String, String> {
    use crate::{naming, pods, vocabulary::labels};
    let mut all = pods::common_labels(labels::POLLER, &poller.key.name);
    all.insert(
        labels::METER_POLLER.to_owned(),
        naming::label_value(&poller.key.name),
    );
    all.insert(labels::SHARD.to_owned(), shard.to_string());
    all
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use corrente_crds::{
        kafka::{KafkaSasl, SaslMechanism},
        poller::{EndpointTls, Transport},
    };

    use super::*;
    use crate::{
        fixtures::{poller, profile},
        golden,
        poller::{dereference::Dereferenced, validate::validate},
        profiles::Profiles,
    };

    #[test]
    fn the_objects_are_those_of_the_golden_file() {
        let mut poller = poller("site", 1, &[("a", "GW1", &["m1"]), ("b", "gw2:1502", &["m2"])]);
        poller.spec.template = serde_json::from_value(serde_json::json!({
            "labels": {"team": "metering", "corrente.dev/shard": "9"},
            "annotations": {"note": "by hand", "corrente.dev/endpoints": "none"},
            "nodeSelector": {"zone": "plant"},
            "tolerations": [{"key": "edge", "operator": "Exists"}],
            "imagePullSecrets": [{"name": "registry"}],
        }))
        .unwrap();
        poller.spec.endpoints[0].transport = Transport::Tls;
        poller.spec.endpoints[0].tls = Some(EndpointTls {
            secret_name: "gateway-1".to_owned(),
            server_name: None,
        });
        poller.spec.output.kafka.cluster.sasl = Some(KafkaSasl {
            mechanism: SaslMechanism::ScramSha512,
            secret_name: "kafka-user".to_owned(),
        });
        let profiles = Profiles {
            known: [("acme".to_owned(), profile())].into(),
            unreadable: BTreeMap::new(),
        };
        let found = Dereferenced {
            poller: &poller,
            profiles,
            conflicts: Vec::new(),
        };
        let resources = build(&validate(&found).unwrap(), &golden::settings());
        golden::check("poller-config-map", &resources.config_maps);
        golden::check("poller-deployment", &resources.deployments);
    }
}
