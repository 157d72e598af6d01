//! Which pipelines `corrente local` runs: those of the manifests, with SQLite for a sink, and one more for each
//! topic that none of them reads.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use corrente_config::{PipelineConfig, PollerConfig, once::OnceConfig, pipeline::SinkConfig};
use corrente_crds::{Duration, common::KafkaCluster, pipeline::Batch, tables::Layout};

use crate::site::Site;

/// Which cluster is meant, in whatever order its brokers are written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cluster(BTreeSet<String>);

impl Cluster {
    /// The cluster that a resource names.
    pub fn of(named: &KafkaCluster) -> Self {
        Self(named.bootstrap_servers.iter().cloned().collect())
    }
}

/// The pipelines of a site, which store in the file `database`.
pub fn of(site: &Site, database: &Path) -> Vec<PipelineConfig> {
    let sqlite = |table: &str| SinkConfig::Sqlite {
        path: database.to_owned(),
        table: table.to_owned(),
    };
    let mut pipelines: Vec<PipelineConfig> = Vec::new();
    let mut read: BTreeSet<(Cluster, String)> = BTreeSet::new();
    for config in &site.pipelines {
        let table = table(&config.sink);
        let topics = config.topics.iter().cloned();
        read.extend(topics.map(|topic| (Cluster::of(&config.kafka), topic)));
        pipelines.push(PipelineConfig {
            sink: sqlite(table),
            batch: soon(config.batch),
            ..config.clone()
        });
    }
    for PollerConfig {
        namespace, output, ..
    } in &site.pollers
    {
        if read.insert((Cluster::of(&output.cluster), output.topic.clone())) {
            let name = format!("local-{}", output.topic);
            pipelines.push(PipelineConfig {
                namespace: namespace.clone(),
                group: name.clone(),
                name,
                kafka: output.cluster.clone(),
                topics: vec![output.topic.clone()],
                sink: sqlite("readings"),
                columns: BTreeMap::new(),
                transforms: vec![],
                derived: None,
                alerts: None,
                batch: soon(Batch::default()),
                once: OnceConfig::default(),
            });
        }
    }
    pipelines
}

/// What of a pipeline is left out here, or done otherwise, as sentences.
pub fn left_out(config: &PipelineConfig) -> Vec<&'static str> {
    let mut sentences = vec![];
    if let Some(alerts) = &config.alerts
        && (alerts.topic.is_some() || alerts.alertmanager.is_some())
    {
        sentences.push("nobody is told of its alerts: they are rows of corrente_alerts");
    }
    if let Some(derived) = &config.derived
        && derived.windows.iter().any(|windows| windows.retention.is_some())
    {
        sentences.push("its windows are kept, whatever their retention says");
    }
    if config.once.dead_letter_topic.is_some() {
        sentences.push("what cannot be stored is in corrente_dead_letters, and in no topic");
    }
    if config.once.key.is_some() {
        sentences.push("repeats are known by stream and seq, whatever dedupeKey says");
    }
    if let SinkConfig::Postgres { tables, .. } = &config.sink
        && (tables.layout != Layout::default()
            || tables.retention.is_some()
            || tables.compress_after.is_some()
            || !tables.rollups.is_empty()
            || tables.completeness.is_some()
            || tables.views.is_some())
    {
        sentences.push("its readings are one wide table here, without roll-ups, ledger, views, compression and retention");
    }
    sentences
}

/// The name that what is stored goes by, which the table in SQLite takes over.
fn table(sink: &SinkConfig) -> &str {
    match sink {
        SinkConfig::Postgres { table, .. } | SinkConfig::Sqlite { table, .. } => table,
        SinkConfig::Influxdb(influxdb) => &influxdb.measurement,
        SinkConfig::Mongodb(mongodb) => &mongodb.collection,
        SinkConfig::Cassandra(cassandra) => &cassandra.table,
        SinkConfig::Mqtt(_) | SinkConfig::Amqp(_) => "readings",
    }
}

/// The batches, made after a shorter time than on a cluster, since somebody watches.
fn soon(batch: Batch) -> Batch {
    Batch {
        max_age: Duration::from_millis(200),
        ..batch
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn poller(name: &str, brokers: &str, topic: &str) -> String {
        format!(
            "---
apiVersion: corrente.dev/v1alpha1
kind: MeterPoller
metadata: {{name: {name}}}
spec:
  interval: 1s
  endpoints:
    - {{name: {name}, address: {name}, meters: [{{name: {name}, unitId: 1, profile: eastron-sdm120}}]}}
  output: {{kafka: {{bootstrapServers: [{brokers}], topic: {topic}}}}}
"
        )
    }

    fn pipeline(name: &str, brokers: &str, topic: &str) -> String {
        format!(
            "---
apiVersion: corrente.dev/v1alpha1
kind: TelemetryPipeline
metadata: {{name: {name}}}
spec:
  source: {{kafka: {{bootstrapServers: [{brokers}], topics: [{topic}]}}}}
  sink: {{timescaledb: {{connectionSecret: {{name: s, key: k}}, table: history}}}}
"
        )
    }

    /// The topics that are read and the tables they go to.
    fn read(manifests: &[String]) -> Vec<(String, String)> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("site.yaml"), manifests.concat()).unwrap();
        let checked = Site::check(&[folder.path().to_owned()]);
        assert_eq!(checked.problems, Vec::<String>::new());
        of(&checked.site, Path::new("db"))
            .into_iter()
            .map(|config| match config.sink {
                SinkConfig::Sqlite { table, .. } => (config.topics.join(","), table),
                _ => panic!("not stored here"),
            })
            .collect()
    }

    #[test]
    fn what_is_done_otherwise_here_is_said() {
        let said = |more: &str| -> Vec<&str> {
            let folder = tempfile::tempdir().unwrap();
            let manifest = pipeline("p", "\"a:1\"", "t") + more;
            fs::write(folder.path().join("site.yaml"), manifest).unwrap();
            let checked = Site::check(&[folder.path().to_owned()]);
            assert_eq!(checked.problems, Vec::<String>::new());
            left_out(&checked.site.pipelines[0])
        };
        assert_eq!(said(""), Vec::<&str>::new());
        let windows = "  derived: {windows: [{name: w, interval: 1m, metrics: [v]}]}\n";
        assert_eq!(said(windows), Vec::<&str>::new(), "they are made here too");
        let kept = windows.replace("metrics: [v]", "metrics: [v], retention: 30d");
        assert_eq!(
            said(&kept),
            ["its windows are kept, whatever their retention says"]
        );
        let letters = said("  deadLetter: {topic: letters}\n");
        assert!(
            letters.len() == 1 && letters[0].contains("in no topic"),
            "{letters:?}"
        );
        let alerts = said(
            "  alerts: {thresholds: [{name: High, metric: v, above: 1}], kafka: {topic: alerts}}\n  dedupe: key\n",
        );
        assert!(
            alerts.len() == 2 && alerts[0].contains("corrente_alerts"),
            "{alerts:?}"
        );
        let kept = pipeline("p", "\"a:1\"", "t").replace("table: history", "table: history, retention: 1d");
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("site.yaml"), kept).unwrap();
        let checked = Site::check(&[folder.path().to_owned()]);
        assert_eq!(left_out(&checked.site.pipelines[0]).len(), 1);
    }

    #[test]
    fn a_topic_is_read_once_in_whatever_order_its_brokers_are_written() {
        let pairs = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            let owned = pairs
                .iter()
                .map(|(topic, table)| ((*topic).to_owned(), (*table).to_owned()));
            owned.collect()
        };
        assert_eq!(
            read(&[
                pipeline("p", "\"a:1\", \"b:2\"", "t"),
                poller("one", "\"b:2\", \"a:1\"", "t"),
            ]),
            pairs(&[("t", "history")])
        );
        // Nobody reads it: one pipeline for both pollers.
        assert_eq!(
            read(&[
                poller("one", "\"b:2\", \"a:1\"", "t"),
                poller("two", "\"a:1\", \"b:2\"", "t"),
            ]),
            pairs(&[("t", "readings")])
        );
        // Another topic, and the topic of that name on another cluster, are not read by it.
        assert_eq!(
            read(&[
                pipeline("p", "\"a:1\"", "t"),
                poller("one", "\"a:1\"", "u"),
                poller("two", "\"b:2\"", "t"),
            ]),
            pairs(&[("t", "history"), ("u", "readings"), ("t", "readings")])
        );
    }
}
