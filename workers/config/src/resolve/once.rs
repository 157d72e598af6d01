//! The fields of a TelemetryPipeline that make a record be stored once, checked against the rest of it.

use std::collections::BTreeMap;

use corrente_crds::{TelemetryPipelineSpec, once::Dedupe, pipeline::ColumnType, tables::Layout};

use crate::{
    Problem,
    once::{DEFAULT_KEY, OnceConfig},
    pipeline::SinkConfig,
};

/// The record's own columns that a key may have. The others say nothing of which reading it is.
const OWN: [&str; 5] = ["ts", "meter", "slot", "stream", "seq"];

/// What the worker is told; what is wrong is added to `problems`.
pub fn once(
    namespace: &str,
    name: &str,
    spec: &TelemetryPipelineSpec,
    columns: &BTreeMap<String, ColumnType>,
    sink: Option<&SinkConfig>,
    problems: &mut Vec<Problem>,
) -> OnceConfig {
    let letters = spec.dead_letter.clone().unwrap_or_default();
    if let Some(topic) = letters
        .topic
        .as_ref()
        .filter(|topic| spec.source.kafka.topics.contains(topic))
    {
        let message =
            format!("{topic} is read by this pipeline: dead letters would come back; name another topic");
        problems.push(Problem::new("spec.deadLetter.topic", message));
    }
    if spec.renamed_from.as_deref() == Some(name) {
        let message = format!(
            "{name} is the pipeline's own name: write the one that it had before, or remove the field"
        );
        problems.push(Problem::new("spec.renamedFrom", message));
    }
    // The other sinks keep their own account of what they hold.
    let (postgres, cut) = match sink {
        Some(SinkConfig::Postgres {
            hypertable, tables, ..
        }) => {
            if spec.dedupe == Dedupe::Key && tables.layout == Layout::Narrow {
                let message = "a narrow table has several rows for each record, so that a key cannot tell records \
                               apart: write layout wide, or dedupe: stream";
                problems.push(Problem::new("spec.dedupe", message));
            }
            (true, hypertable.is_some() || tables.partition_by.is_some())
        }
        Some(_) => (false, false),
        None => (true, false),
    };
    let mut only_postgres = |given: bool, field: &str| {
        if given && !postgres {
            let message = "this is for the sinks postgresql and timescaledb: remove it, or name one of these";
            problems.push(Problem::new(field, message));
        }
    };
    only_postgres(letters.retention.is_some(), "spec.deadLetter.retention");
    only_postgres(spec.dedupe == Dedupe::Key, "spec.dedupe");
    only_postgres(spec.renamed_from.is_some(), "spec.renamedFrom");
    OnceConfig {
        key: key(spec, columns, cut, problems),
        dead_letter_topic: letters
            .topic
            .or_else(|| (!postgres).then(|| dead_letter_topic(namespace, name))),
        dead_letter_retention: letters.retention,
        renamed_from: spec.renamed_from.as_ref().map(|old| format!("{namespace}/{old}")),
    }
}

/// The topic of dead letters of a sink that has no table for them, where none is named.
#[must_use]
pub fn dead_letter_topic(namespace: &str, name: &str) -> String {
    format!("corrente.{namespace}.{name}.dead-letters")
}

fn key(
    spec: &TelemetryPipelineSpec,
    columns: &BTreeMap<String, ColumnType>,
    cut: bool,
    problems: &mut Vec<Problem>,
) -> Option<Vec<String>> {
    let named = &spec.dedupe_key;
    if spec.dedupe != Dedupe::Key {
        if !named.is_empty() {
            let message = "a key is for dedupe: key; write that, or remove the key";
            problems.push(Problem::new("spec.dedupeKey", message));
        }
        return None;
    }
    if named.is_empty() {
        return Some(DEFAULT_KEY.map(str::to_owned).to_vec());
    }
    let has = |column: &str| named.iter().any(|name| name == column);
    if cut && !has("ts") {
        let message = "the unique index of a hypertable or a partitioned table must have the column ts, by which it is cut: add ts";
        problems.push(Problem::new("spec.dedupeKey", message));
    } else if !has("ts") && !has("slot") {
        let message = "without a time a meter would have one reading for ever: add ts, or slot";
        problems.push(Problem::new("spec.dedupeKey", message));
    }
    for (at, column) in named.iter().enumerate() {
        if !OWN.contains(&column.as_str()) && !columns.contains_key(column) {
            let message = format!(
                "{column} is no column that is declared: name it in spec.columns, or choose one of {}",
                OWN.join(", ")
            );
            problems.push(Problem::new(format!("spec.dedupeKey[{at}]"), message));
        }
    }
    Some(named.clone())
}
