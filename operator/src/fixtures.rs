//! Resources for the tests of several modules.

use corrente_crds::{
    Duration, MeterPoller, MeterPollerSpec, MeterProfileSpec, TelemetryPipeline,
    common::KafkaCluster,
    poller::{Buffer, Endpoint, KafkaOutput, Meter, Output},
};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

/// A MeterPoller in namespace `plant`, with a name, the second of its creation, and endpoints as name,
/// address and meters. Its uid follows from its name.
pub fn poller(name: &str, created: i64, endpoints: &[(&str, &str, &[&str])]) -> MeterPoller {
    let endpoints = endpoints.iter().map(|(name, address, meters)| Endpoint {
        name: (*name).to_owned(),
        address: (*address).to_owned(),
        meters: (1..)
            .zip(*meters)
            .map(|(unit_id, name)| Meter {
                name: (*name).to_owned(),
                unit_id,
                profile: Some("acme".to_owned()),
                ..Meter::default()
            })
            .collect(),
        ..Endpoint::default()
    });
    let spec = MeterPollerSpec {
        interval: Duration::from_secs(10),
        timeout: Duration::from_secs(1),
        retries: 1,
        register_maps: vec![],
        endpoints: endpoints.collect(),
        output: Output {
            kafka: KafkaOutput {
                cluster: KafkaCluster {
                    bootstrap_servers: vec!["kafka:9092".to_owned()],
                    ..KafkaCluster::default()
                },
                topic: "telemetry".to_owned(),
                ..KafkaOutput::default()
            },
        },
        buffer: Buffer::default(),
        shards: 1,
        suspend: false,
        template: None,
    };
    let mut poller = MeterPoller::new(name, spec);
    poller.metadata.namespace = Some("plant".to_owned());
    poller.metadata.uid = Some(format!("uid-{name}"));
    poller.metadata.generation = Some(1);
    poller.metadata.creation_timestamp = Some(Time(Timestamp::from_second(created).unwrap()));
    poller
}

/// The profile that the meters of [`poller`] name.
pub fn profile() -> MeterProfileSpec {
    serde_json::from_value(serde_json::json!({
        "vendor": "Acme",
        "model": "One",
        "source": ["a manual"],
        "registers": [
            {"name": "voltage_l1_n", "address": 0, "function": "input", "type": "f32", "unit": "V"},
            {"name": "energy_import", "address": 2, "function": "input", "type": "u32", "unit": "Wh", "kind": "counter"},
        ],
    }))
    .unwrap()
}

/// A TelemetryPipeline in namespace `plant`.
pub fn pipeline(name: &str) -> TelemetryPipeline {
    let mut pipeline = TelemetryPipeline::new(
        name,
        serde_json::from_value(serde_json::json!({
            "source": {"kafka": {"bootstrapServers": ["kafka:9092"], "topics": ["telemetry"]}},
            "sink": {"timescaledb": {"connectionSecret": {"name": "database", "key": "dsn"}}},
            "replicas": 2,
        }))
        .unwrap(),
    );
    pipeline.metadata.namespace = Some("plant".to_owned());
    pipeline.metadata.uid = Some(format!("uid-{name}"));
    pipeline.metadata.generation = Some(1);
    pipeline
}
