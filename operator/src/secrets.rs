//! The Secrets that a worker's pod mounts: which ones, what of them, and where the worker looks for it.
//!
//! The operator names them in the pod and never reads one: it has no right to. So a Secret that is missing
//! shows as a pod that waits for its volumes, and the verdict says which Secrets those are. What changes
//! within a Secret reaches the pod's files by itself, and the workers take it up without a restart.

use std::{collections::BTreeMap, path::Path};

use corrente_config::secrets::{
    CA_FILE, CERTIFICATE_FILE, KEY_FILE, PASSWORD_FILE, SECRETS_PATH, Secrets, TOKEN_FILE, USERNAME_FILE,
};
use corrente_crds::{
    kafka::KafkaCluster,
    output::SchemaRegistry,
    pipeline::Sink,
    poller::{Endpoint, KafkaOutput},
    sinks::{InfluxdbVersion, SinkTls},
    tables::{PlainTable, TimescaleTable},
};
use k8s_openapi::api::core::v1::{
    KeyToPath, ProjectedVolumeSource, SecretProjection, Volume, VolumeMount, VolumeProjection,
};

use crate::pods;

/// The worker's group may read them, and nobody else.
const MODE: i32 = 0o440;

/// What a pod needs of a Secret.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Need {
    /// The folder, under the root of [`Secrets`].
    pub folder: String,
    /// The Secret.
    pub secret: String,
    /// The keys, which are the names of the files too.
    pub keys: Vec<&'static str>,
}

/// What a connection to Kafka needs.
#[must_use]
pub fn of_kafka(cluster: &KafkaCluster) -> Vec<Need> {
    let at = Secrets::default();
    let mut needs = Vec::new();
    if let Some(tls) = &cluster.tls {
        needs.extend(need(&at.kafka_ca(), tls.ca_secret.as_ref(), &[CA_FILE]));
        let certificate = tls.client_certificate_secret.as_ref();
        needs.extend(need(
            &at.kafka_client(),
            certificate,
            &[CERTIFICATE_FILE, KEY_FILE],
        ));
    }
    if let Some(sasl) = &cluster.sasl {
        let login = [USERNAME_FILE, PASSWORD_FILE];
        needs.extend(need(&at.kafka_sasl(), Some(&sasl.secret_name), &login));
    }
    needs
}

/// What an output needs: the connection to Kafka, and that to the schema registry.
#[must_use]
pub fn of_output(output: &KafkaOutput) -> Vec<Need> {
    let at = Secrets::default();
    let mut needs = of_kafka(&output.cluster);
    if let Some(SchemaRegistry {
        basic_auth_secret,
        ca_secret,
        ..
    }) = &output.schema_registry
    {
        needs.extend(need(&at.registry_ca(), ca_secret.as_ref(), &[CA_FILE]));
        let login = [USERNAME_FILE, PASSWORD_FILE];
        needs.extend(need(&at.registry_auth(), basic_auth_secret.as_ref(), &login));
    }
    needs
}

/// What a sink needs besides the address, where that is secret.
#[must_use]
pub fn of_sink(sink: &Sink) -> Vec<Need> {
    const LOGIN: &[&str] = &[USERNAME_FILE, PASSWORD_FILE];
    let (ca, client, auth, keys) = match sink {
        Sink {
            postgresql: Some(PlainTable { table, .. }),
            ..
        }
        | Sink {
            timescaledb: Some(TimescaleTable { table, .. }),
            ..
        } => (&table.ca_secret, &table.client_certificate_secret, &None, LOGIN),
        Sink {
            influxdb: Some(influxdb),
            ..
        } => {
            let keys = match influxdb.version {
                InfluxdbVersion::V1 => LOGIN,
                InfluxdbVersion::V2 | InfluxdbVersion::V3 => &[TOKEN_FILE],
            };
            (&influxdb.ca_secret, &None, &influxdb.credentials_secret, keys)
        }
        Sink {
            mongodb: Some(mongodb),
            ..
        } => (&mongodb.ca_secret, &None, &None, LOGIN),
        Sink {
            cassandra: Some(cassandra),
            ..
        } => (&None, &None, &cassandra.credentials_secret, LOGIN),
        Sink { mqtt: Some(mqtt), .. } => {
            let (ca, client) = of_tls(&mqtt.tls);
            (ca, client, &mqtt.credentials_secret, LOGIN)
        }
        Sink { amqp: Some(amqp), .. } => {
            let (ca, client) = of_tls(&amqp.tls);
            (ca, client, &None, LOGIN)
        }
        _ => return Vec::new(),
    };
    let at = Secrets::default();
    need(&at.sink_ca(), ca.as_ref(), &[CA_FILE])
        .into_iter()
        .chain(need(
            &at.sink_client(),
            client.as_ref(),
            &[CERTIFICATE_FILE, KEY_FILE],
        ))
        .chain(need(&at.sink_auth(), auth.as_ref(), keys))
        .collect()
}

/// The Secrets of the authorities and of the client's certificate.
fn of_tls(tls: &Option<SinkTls>) -> (&Option<String>, &Option<String>) {
    tls.as_ref().map_or((&None, &None), |tls| {
        (&tls.ca_secret, &tls.client_certificate_secret)
    })
}

/// What the endpoints need, each Secret once.
#[must_use]
pub fn of_endpoints(endpoints: &[Endpoint]) -> Vec<Need> {
    let at = Secrets::default();
    let mut needs: Vec<Need> = endpoints
        .iter()
        .filter_map(|endpoint| endpoint.tls.as_ref())
        .filter_map(|tls| {
            let name = &tls.secret_name;
            need(
                &at.endpoint(name),
                Some(name),
                &[CA_FILE, CERTIFICATE_FILE, KEY_FILE],
            )
        })
        .collect();
    needs.sort();
    needs.dedup();
    needs
}

fn need(folder: &Path, secret: Option<&String>, keys: &[&'static str]) -> Option<Need> {
    Some(Need {
        folder: folder
            .strip_prefix(SECRETS_PATH)
            .ok()?
            .to_string_lossy()
            .into_owned(),
        secret: secret?.clone(),
        keys: keys.to_vec(),
    })
}

/// The volumes for what is needed: one for each folder right under the root, whatever number of Secrets is
/// in it. A Secret or a key that is missing keeps the pod from starting.
#[must_use]
pub fn volumes(needs: &[Need]) -> Vec<(Volume, VolumeMount)> {
    let mut by_top: BTreeMap<&str, Vec<VolumeProjection>> = BTreeMap::new();
    for need in needs {
        let (top, rest) = need.folder.split_once('/').unwrap_or((&need.folder, ""));
        let item = |key: &&str| KeyToPath {
            key: (*key).to_owned(),
            path: format!("{rest}/{key}").trim_start_matches('/').to_owned(),
            ..Default::default()
        };
        by_top.entry(top).or_default().push(VolumeProjection {
            secret: Some(SecretProjection {
                name: need.secret.clone(),
                items: Some(need.keys.iter().map(item).collect()),
                ..Default::default()
            }),
            ..Default::default()
        });
    }
    by_top
        .into_iter()
        .map(|(top, sources)| {
            let volume = Volume {
                name: format!("secrets-{top}"),
                projected: Some(ProjectedVolumeSource {
                    default_mode: Some(MODE),
                    sources: Some(sources),
                }),
                ..Default::default()
            };
            let mount = pods::mount(&volume.name, &format!("{SECRETS_PATH}/{top}"), true);
            (volume, mount)
        })
        .collect()
}

/// What must be there for a pod to start, as a sentence for each Secret.
#[must_use]
pub fn sentences(needs: &[Need]) -> Vec<String> {
    let mut keys: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for need in needs {
        keys.entry(&need.secret).or_default().extend(&need.keys);
    }
    let keys = keys.into_iter().map(|(secret, mut keys)| {
        keys.sort_unstable();
        keys.dedup();
        format!(
            "the Secret {secret} must be there and have {}",
            match keys.as_slice() {
                [key] => format!("the key {key}"),
                keys => format!("the keys {}", keys.join(", ")),
            }
        )
    });
    keys.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn output(value: Value) -> KafkaOutput {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_names_no_secret_needs_none() {
        let plain = output(json!({"bootstrapServers": ["k:9092"], "topic": "t"}));
        assert_eq!(of_output(&plain), []);
        let trusting = output(json!({"bootstrapServers": ["k:9092"], "topic": "t", "tls": {}}));
        assert_eq!(of_output(&trusting), []);
        assert!(volumes(&[]).is_empty() && sentences(&[]).is_empty());
    }

    #[test]
    fn a_sink_gets_what_it_logs_in_with() {
        let files = |sink: Value| -> Vec<String> {
            let sink: Sink = serde_json::from_value(sink).unwrap();
            let needs = of_sink(&sink).into_iter();
            needs
                .flat_map(|need| {
                    let key = move |key| format!("{}/{key} of {}", need.folder, need.secret);
                    need.keys.into_iter().map(key).collect::<Vec<_>>()
                })
                .collect()
        };
        let influx = |version: &str| {
            json!({"influxdb": {"url": "https://i", "version": version, "database": "d", "credentialsSecret": "s",
                   "caSecret": "c"}})
        };
        let connection = json!({"name": "s", "key": "url"});
        let login = ["sink/auth/username of s", "sink/auth/password of s"];
        let ca = "sink/ca/ca.crt of c";
        let client = ["sink/client/tls.crt of i", "sink/client/tls.key of i"];
        for (sink, expected) in [
            (influx("v1"), vec![ca, login[0], login[1]]),
            (influx("v2"), vec![ca, "sink/auth/token of s"]),
            (influx("v3"), vec![ca, "sink/auth/token of s"]),
            (
                json!({"mongodb": {"connectionSecret": connection, "database": "d", "caSecret": "c"}}),
                vec![ca],
            ),
            (
                json!({"cassandra": {"contactPoints": ["c:9042"], "keyspace": "k", "credentialsSecret": "s"}}),
                login.to_vec(),
            ),
            (
                json!({"mqtt": {"address": "m:8883", "credentialsSecret": "s",
                       "tls": {"caSecret": "c", "clientCertificateSecret": "i"}}}),
                vec![ca, client[0], client[1], login[0], login[1]],
            ),
            (json!({"amqp": {"connectionSecret": connection}}), vec![]),
            (
                json!({"amqp": {"connectionSecret": connection, "tls": {"caSecret": "c"}}}),
                vec![ca],
            ),
            (json!({"postgresql": {"connectionSecret": connection}}), vec![]),
            (
                json!({"postgresql": {"connectionSecret": connection, "caSecret": "c"}}),
                vec![ca],
            ),
            (
                json!({"timescaledb": {"connectionSecret": connection, "caSecret": "c", "clientCertificateSecret": "i"}}),
                vec![ca, client[0], client[1]],
            ),
        ] {
            assert_eq!(files(sink.clone()), expected, "{sink}");
        }
    }

    #[test]
    fn each_secret_is_mounted_where_the_worker_looks_for_it() {
        let output = output(json!({
            "bootstrapServers": ["k:9093"], "topic": "t",
            "tls": {"caSecret": "ca", "clientCertificateSecret": "client"},
            "sasl": {"mechanism": "SCRAM-SHA-512", "secretName": "user"},
            "format": "avro",
            "schemaRegistry": {"url": "https://r", "caSecret": "ca", "basicAuthSecret": "registry"},
        }));
        let endpoints: Vec<Endpoint> = serde_json::from_value(json!([
            {"name": "a", "address": "a", "transport": "tls", "tls": {"secretName": "gw.b"}, "meters": []},
            {"name": "b", "address": "b", "transport": "tls", "tls": {"secretName": "gw.a"}, "meters": []},
            {"name": "c", "address": "c", "transport": "tls", "tls": {"secretName": "gw.b"}, "meters": []},
            {"name": "d", "address": "d", "meters": []},
        ]))
        .unwrap();
        let mut needs = of_output(&output);
        needs.extend(of_endpoints(&endpoints));
        let mut files = Vec::new();
        let volumes = volumes(&needs);
        for (volume, mount) in &volumes {
            assert_eq!(volume.name, mount.name);
            assert_eq!(mount.read_only, Some(true));
            let projected = volume.projected.as_ref().unwrap();
            assert_eq!(projected.default_mode, Some(0o440));
            for source in projected.sources.iter().flatten() {
                let secret = source.secret.as_ref().unwrap();
                assert_eq!(secret.optional, None, "it must be there");
                for item in secret.items.iter().flatten() {
                    let file = format!("{}/{}", mount.mount_path, item.path);
                    files.push(format!("{file} = {}/{}", secret.name, item.key));
                }
            }
        }
        files.sort();
        assert_eq!(
            files,
            [
                "/etc/corrente/kafka/ca/ca.crt = ca/ca.crt",
                "/etc/corrente/kafka/client/tls.crt = client/tls.crt",
                "/etc/corrente/kafka/client/tls.key = client/tls.key",
                "/etc/corrente/kafka/sasl/password = user/password",
                "/etc/corrente/kafka/sasl/username = user/username",
                "/etc/corrente/registry/auth/password = registry/password",
                "/etc/corrente/registry/auth/username = registry/username",
                "/etc/corrente/registry/ca/ca.crt = ca/ca.crt",
                "/etc/corrente/tls/gw.a/ca.crt = gw.a/ca.crt",
                "/etc/corrente/tls/gw.a/tls.crt = gw.a/tls.crt",
                "/etc/corrente/tls/gw.a/tls.key = gw.a/tls.key",
                "/etc/corrente/tls/gw.b/ca.crt = gw.b/ca.crt",
                "/etc/corrente/tls/gw.b/tls.crt = gw.b/tls.crt",
                "/etc/corrente/tls/gw.b/tls.key = gw.b/tls.key",
            ]
        );
        assert_eq!(volumes.len(), 3);
        assert_eq!(
            sentences(&needs)[..2],
            [
                "the Secret ca must be there and have the key ca.crt",
                "the Secret client must be there and have the keys tls.crt, tls.key",
            ]
        );
    }
}
