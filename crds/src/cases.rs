//! Documents that must be refused and documents that must be accepted: one table, to which the API server
//! and the offline check are both held.
//!
//! The table is `tests/cases.yaml`; what would be too long to write there is made here.

use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A document, and what is to become of it.
#[derive(Clone, Debug)]
pub struct Case {
    /// What it shows.
    pub name: String,
    /// The document.
    pub document: Value,
    /// Why it is refused; `None` where it is accepted.
    pub refused: Option<Refusal>,
}

/// Why a document is refused.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// The place in the document.
    pub at: String,
    /// A part of the sentence; empty where the words are each checker's own.
    #[serde(default)]
    pub says: String,
}

/// Why the table cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not the YAML it should be.
    #[error("failed to read the table of cases: {0}")]
    Yaml(#[from] serde_saphyr::Error),
    /// A case names a base or a place that is not there.
    #[error("case \"{0}\": there is no {1}")]
    Missing(String, String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    bases: BTreeMap<String, Value>,
    cases: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    name: String,
    base: String,
    #[serde(default)]
    set: BTreeMap<String, Value>,
    refused: Option<Refusal>,
}

/// The whole table.
///
/// # Errors
/// Where the table itself is wrong.
pub fn all() -> Result<Vec<Case>, Error> {
    let table: Table = serde_saphyr::from_str(include_str!("../tests/cases.yaml"))?;
    let mut cases = Vec::new();
    for row in table.cases {
        let missing = |what: &str| Error::Missing(row.name.clone(), what.to_owned());
        let mut document = table
            .bases
            .get(&row.base)
            .ok_or_else(|| missing(&row.base))?
            .clone();
        for (pointer, value) in &row.set {
            set(&mut document, pointer, value).ok_or_else(|| missing(pointer))?;
        }
        cases.push(Case {
            name: row.name,
            document,
            refused: row.refused,
        });
    }
    if let Some(poller) = table.bases.get("poller") {
        cases.push(meters(poller, "1500 meters", &[247, 247, 247, 247, 247, 247, 18]));
        cases.push(Case {
            refused: Some(Refusal {
                at: "spec.endpoints".to_owned(),
                says: "at most 1500 meters".to_owned(),
            }),
            ..meters(poller, "1501 meters", &[247, 247, 247, 247, 247, 247, 19])
        });
    }
    Ok(cases)
}

/// Sets the place; `null` takes it away, and `[null]` sets it to null.
fn set(document: &mut Value, pointer: &str, value: &Value) -> Option<()> {
    let (parent, last) = pointer.rsplit_once('/')?;
    let last = last.replace("~1", "/");
    if document.pointer(parent).is_none() {
        set(document, parent, &json!({}))?;
    }
    match document.pointer_mut(parent)? {
        Value::Object(fields) if value.is_null() => {
            fields.remove(&last)?;
        }
        Value::Object(fields) => {
            let value = if *value == json!([null]) {
                Value::Null
            } else {
                value.clone()
            };
            fields.insert(last, value);
        }
        Value::Array(items) => {
            let index: usize = last.parse().ok()?;
            if index == items.len() {
                items.push(value.clone());
            } else {
                *items.get_mut(index)? = value.clone();
            }
        }
        _ => return None,
    }
    Some(())
}

fn meters(poller: &Value, name: &str, counts: &[usize]) -> Case {
    let endpoints: Vec<Value> = counts
        .iter()
        .enumerate()
        .map(|(e, count)| {
            let meters: Vec<Value> = (0..*count)
                .map(|m| json!({"name": format!("m{e}-{m}"), "unitId": m, "profile": "acme-m1"}))
                .collect();
            json!({"name": format!("e{e}"), "address": format!("10.0.0.{e}"), "meters": meters})
        })
        .collect();
    let mut document = poller.clone();
    document["spec"]["endpoints"] = Value::Array(endpoints);
    Case {
        name: name.to_owned(),
        document,
        refused: None,
    }
}
