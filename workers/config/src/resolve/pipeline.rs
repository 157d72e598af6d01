//! A TelemetryPipeline and the MeterPollers behind its topics to what its worker is told.

use std::collections::BTreeMap;

use corrente_crds::{
    MeterPollerSpec, MeterProfileSpec, TelemetryPipelineSpec,
    output::Format,
    pipeline::Sink,
    tables::{Layout, PostgresTable},
};

use super::{
    columns::columns,
    derived,
    fields::Fields,
    once::once,
    tables::{tables, together},
    transform::transforms,
};
use crate::{
    PipelineConfig, Problem,
    conflict::brokers,
    pipeline::{Hypertable, PostgresConnection, SinkConfig},
    secrets::{CA_FILE, Secrets},
    tables::TablesConfig,
};

/// What to change where there is no sink, or more than one.
pub const ONE_SINK: &str = "name exactly one sink of postgresql, timescaledb, influxdb, mongodb, cassandra, mqtt and amqp; to store \
     twice, make two TelemetryPipelines";

/// Most columns of a PostgreSQL table are 1600 (Appendix K of its manual); some are the record's own.
const MAX_COLUMNS: usize = 1500;

/// Checks a TelemetryPipeline together with the MeterPollers (namespace, name, spec) and profiles behind
/// its topics, and gives what its worker is told.
///
/// A MeterPoller is behind a topic where it publishes to it and shares a bootstrap server with the source.
///
/// # Errors
/// Everything that is wrong, each with its place in the TelemetryPipeline.
pub fn resolve_pipeline(
    namespace: &str,
    name: &str,
    spec: &TelemetryPipelineSpec,
    pollers: &[(String, String, MeterPollerSpec)],
    profiles: &BTreeMap<String, MeterProfileSpec>,
) -> Result<PipelineConfig, Vec<Problem>> {
    let source = &spec.source.kafka;
    let own_brokers = brokers(&source.cluster);
    let behind: Vec<&(String, String, MeterPollerSpec)> = pollers
        .iter()
        .filter(|(_, _, poller)| {
            let output = &poller.output.kafka;
            source.topics.contains(&output.topic) && !brokers(&output.cluster).is_disjoint(&own_brokers)
        })
        .collect();
    let mut problems = unreadable(&source.topics, &behind);
    let behind: Vec<&MeterPollerSpec> = behind.iter().map(|(_, _, poller)| poller).collect();
    let declared = columns(behind.iter().copied(), profiles, &[]);
    let mut fields = Fields::gather(&source.topics, &behind, profiles, &declared, &spec.columns);
    let transforms = transforms(&spec.transforms, &mut fields, &mut problems);
    let mut columns = fields.columns();
    // What the pipeline itself says wins, except of a field that a transform has taken away.
    columns.extend(
        spec.columns
            .iter()
            .filter(|column| fields.known.contains_key(&column.name))
            .map(|column| (column.name.clone(), column.column_type)),
    );
    let wide = of_sink(&spec.sink).is_none_or(|table| table.layout == Layout::Wide);
    if wide && columns.len() > MAX_COLUMNS {
        let message = format!(
            "the topics carry {} metrics and labels, and a table has at most {MAX_COLUMNS} columns for them: \
             spread the topics over several TelemetryPipelines with a table each, or write layout: narrow",
            columns.len()
        );
        problems.push(Problem::new("spec.source.kafka.topics", message));
    }
    let sink = match (&spec.sink.postgresql, &spec.sink.timescaledb) {
        (Some(plain), None) => {
            let tables = TablesConfig {
                partition_by: plain.partition_by,
                ..tables(&plain.table, &behind, "spec.sink.postgresql", &mut problems)
            };
            Some(postgres(&plain.table, None, tables))
        }
        (None, Some(timescale)) => {
            let path = "spec.sink.timescaledb";
            let tables = TablesConfig {
                compress_after: timescale.compress_after,
                ..tables(&timescale.table, &behind, path, &mut problems)
            };
            if let (Some(after), Some(kept)) = (tables.compress_after, tables.retention)
                && after >= kept
            {
                let message = format!(
                    "rows are dropped after {kept}, before they would be compressed: compress earlier, or keep \
                     them longer"
                );
                problems.push(Problem::new(format!("{path}.compressAfter"), message));
            }
            let hypertable = Hypertable {
                chunk_interval_millis: timescale.chunk_interval.map(|interval| interval.as_millis()),
            };
            Some(postgres(&timescale.table, Some(hypertable), tables))
        }
        _ => other(&spec.sink),
    };
    let mut sink = sink.filter(|_| named(&spec.sink) == 1);
    if sink.is_none() {
        problems.push(Problem::new("spec.sink", ONE_SINK));
    }
    let once = once(namespace, name, spec, &columns, sink.as_ref(), &mut problems);
    let readings = match &sink {
        Some(SinkConfig::Postgres { table, tables, .. }) => Some((table.as_str(), &**tables)),
        _ => None,
    };
    let derived = spec
        .derived
        .as_ref()
        .and_then(|derived| derived::derived(derived, readings, &fields, &behind, &mut problems));
    let alerts = spec
        .alerts
        .as_ref()
        .and_then(|alerts| derived::alerts(alerts, readings, &fields, &mut problems));
    if let Some(SinkConfig::Postgres {
        tables, hypertable, ..
    }) = &mut sink
    {
        let path = match hypertable {
            Some(_) => "spec.sink.timescaledb",
            None => "spec.sink.postgresql",
        };
        let key = once.key.is_some();
        together(tables, &transforms, key, derived.as_ref(), path, &mut problems);
    }
    match sink {
        Some(sink) if problems.is_empty() => Ok(PipelineConfig {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            kafka: source.cluster.clone(),
            topics: source.topics.clone(),
            group: source
                .group
                .clone()
                .unwrap_or_else(|| format!("corrente.{namespace}.{name}")),
            sink,
            columns,
            transforms,
            derived,
            alerts,
            batch: spec.batch,
            once,
        }),
        _ => Err(problems),
    }
}

/// The table of a sink in PostgreSQL.
fn of_sink(sink: &Sink) -> Option<&PostgresTable> {
    let plain = sink.postgresql.as_ref().map(|plain| &plain.table);
    plain.or(sink.timescaledb.as_ref().map(|timescale| &timescale.table))
}

/// The topics that hold what a pipeline cannot read, each once.
fn unreadable(topics: &[String], behind: &[&(String, String, MeterPollerSpec)]) -> Vec<Problem> {
    let found = topics.iter().enumerate().filter_map(|(at, topic)| {
        let (namespace, name, format) = behind.iter().find_map(|(namespace, name, poller)| {
            let output = &poller.output.kafka;
            let format = match output.format {
                Format::Avro => "avro",
                Format::Protobuf => "protobuf",
                Format::Json | Format::ConnectJson => return None,
            };
            (output.topic == *topic).then_some((namespace, name, format))
        })?;
        let message = format!(
            "MeterPoller {namespace}/{name} publishes {format} to {topic}, and pipelines read json and connect-json: \
             choose one of these there, or remove the topic here"
        );
        Some(Problem::new(format!("spec.source.kafka.topics[{at}]"), message))
    });
    found.collect()
}

/// How many sinks are named.
fn named(sink: &Sink) -> usize {
    let sql = [sink.postgresql.is_some(), sink.timescaledb.is_some()];
    let sql = sql.into_iter().filter(|named| *named).count();
    sql + others(sink).into_iter().flatten().count()
}

/// The sink that is no SQL database.
fn other(sink: &Sink) -> Option<SinkConfig> {
    others(sink).into_iter().flatten().next()
}

fn others(sink: &Sink) -> [Option<SinkConfig>; 5] {
    [
        sink.influxdb.clone().map(SinkConfig::Influxdb),
        sink.mongodb.clone().map(SinkConfig::Mongodb),
        sink.cassandra.clone().map(SinkConfig::Cassandra),
        sink.mqtt.clone().map(SinkConfig::Mqtt),
        sink.amqp.clone().map(SinkConfig::Amqp),
    ]
}

fn postgres(table: &PostgresTable, hypertable: Option<Hypertable>, tables: TablesConfig) -> SinkConfig {
    let secrets = Secrets::default();
    SinkConfig::Postgres {
        connection: PostgresConnection {
            url_file: secrets.sink_url(),
            ssl_mode: table.ssl_mode,
            ca_file: table.ca_secret.as_ref().map(|_| secrets.sink_ca().join(CA_FILE)),
            client_certificate: table
                .client_certificate_secret
                .as_ref()
                .map(|_| secrets.sink_client()),
        },
        schema: table.schema.clone(),
        table: table.table.clone(),
        hypertable,
        tables: Box::new(tables),
    }
}
