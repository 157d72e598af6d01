//! The checks of the API server, offline: one document against the CRD of its kind.
//!
//! 1. The schema, with every field that it does not name refused (`fieldValidation: Strict`).
//! 2. Keys of list-maps and items of sets that come twice.
//! 3. The CEL rules, where nothing was found so far, as the API server does it.
//!
//! A table of documents is run through this and through a real API server, and both must say the same.

use corrente_crds::GROUP;
use kube::core::cel::{CompiledSchema, Validator, compile_schema};
use serde_json::{Value, json};

use super::sentence::{self, join};
use crate::Problem;

/// The CRDs, ready to check documents against.
pub struct Checker {
    kinds: Vec<Kind>,
    cel: Validator,
}

struct Kind {
    name: String,
    namespaced: bool,
    schema: Value,
    validator: jsonschema::Validator,
    rules: CompiledSchema,
}

/// Why the CRDs could not be made ready.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A schema is no JSON.
    #[error("failed to bring the CRD of {0} into JSON: {1}")]
    Json(String, serde_json::Error),
    /// A schema is no schema.
    #[error("failed to read the schema of {0}: {1}")]
    Schema(String, String),
}

impl Checker {
    /// Makes the three CRDs ready. It takes some milliseconds: make one and keep it.
    ///
    /// # Errors
    /// Where a CRD is itself wrong.
    pub fn new() -> Result<Self, Error> {
        let kinds = corrente_crds::all()
            .into_iter()
            .map(|crd| {
                let name = crd.spec.names.kind.clone();
                let mut schema = crd
                    .spec
                    .versions
                    .first()
                    .and_then(|version| version.schema.as_ref())
                    .map(|schema| serde_json::to_value(&schema.open_api_v3_schema))
                    .transpose()
                    .map_err(|e| Error::Json(name.clone(), e))?
                    .unwrap_or_default();
                let rules = compile_schema(&schema);
                schema["properties"]["apiVersion"] = json!({"type": "string"});
                schema["properties"]["kind"] = json!({"type": "string"});
                schema["properties"]["metadata"] = metadata();
                if let Some(required) = schema["required"].as_array_mut() {
                    required.push(json!("metadata"));
                }
                close(&mut schema);
                let validator = jsonschema::draft7::new(&schema)
                    .map_err(|e| Error::Schema(name.clone(), e.to_string()))?;
                Ok(Kind {
                    namespaced: crd.spec.scope == "Namespaced",
                    name,
                    schema,
                    validator,
                    rules,
                })
            })
            .collect::<Result<_, Error>>()?;
        Ok(Self {
            kinds,
            cel: Validator::new(),
        })
    }

    /// What is wrong with a document by itself; `None` where it is none of our group's.
    #[must_use]
    pub fn check(&self, document: &Value) -> Option<Vec<Problem>> {
        let text = |field: &str| document.get(field).and_then(Value::as_str).unwrap_or_default();
        let (api_version, name) = (text("apiVersion"), text("kind"));
        let ours = api_version == GROUP || api_version.starts_with(&format!("{GROUP}/"));
        let kind = self.kinds.iter().find(|kind| kind.name == name);
        if !ours && kind.is_none() {
            return None;
        }
        let expected = format!("{GROUP}/{}", corrente_crds::VERSION);
        if api_version != expected {
            let message = format!("{api_version:?} is not known: write {expected}");
            return Some(vec![Problem::new("apiVersion", message)]);
        }
        let Some(kind) = kind else {
            let known: Vec<&str> = self.kinds.iter().map(|kind| kind.name.as_str()).collect();
            let message = match sentence::closest(name, &known) {
                Some(meant) => format!("{name:?} is not known; did you mean {meant}?"),
                None => format!("{name:?} is not known: write one of {}", known.join(", ")),
            };
            return Some(vec![Problem::new("kind", message)]);
        };
        Some(self.check_kind(kind, document))
    }

    fn check_kind(&self, kind: &Kind, document: &Value) -> Vec<Problem> {
        let mut document = document.clone();
        normalise(&mut document, &kind.schema);
        let mut problems: Vec<Problem> = kind
            .validator
            .iter_errors(&document)
            .flat_map(|error| sentence::problems(&error, &kind.schema))
            .collect();
        if !kind.namespaced && document["metadata"].get("namespace").is_some() {
            let message = format!("a {} belongs to no namespace: remove it", kind.name);
            problems.push(Problem::new("metadata.namespace", message));
        }
        twice(&document, &kind.schema, "", &mut problems);
        if problems.is_empty() {
            let found = self.cel.validate_compiled(&kind.rules, &document, None);
            problems.extend(
                found
                    .err()
                    .into_iter()
                    .flatten()
                    .map(|error| Problem::new(error.field_path, error.message)),
            );
        }
        problems.sort();
        problems.dedup();
        problems
    }
}

/// The part of `metadata` that people write, and the names of the rest.
fn metadata() -> Value {
    let texts = json!({"type": "object", "additionalProperties": {"type": "string"}});
    let mut schema = json!({
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 253, "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"},
            "namespace": {"type": "string", "minLength": 1, "maxLength": 63, "pattern": "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"},
            "labels": texts.clone(),
            "annotations": texts,
        },
    });
    for set_by_the_server in [
        "creationTimestamp",
        "deletionGracePeriodSeconds",
        "deletionTimestamp",
        "finalizers",
        "generateName",
        "generation",
        "managedFields",
        "ownerReferences",
        "resourceVersion",
        "selfLink",
        "uid",
    ] {
        schema["properties"][set_by_the_server] = json!({});
    }
    schema
}

/// Refuses what a schema does not name, and says in JSON Schema what Kubernetes says in its own words.
fn close(schema: &mut Value) {
    let Some(fields) = schema.as_object_mut() else {
        return;
    };
    if fields.contains_key("properties") && !fields.contains_key("additionalProperties") {
        fields.insert("additionalProperties".to_owned(), json!(false));
    }
    if fields.get("x-kubernetes-int-or-string") == Some(&json!(true)) {
        fields.insert("type".to_owned(), json!(["integer", "number", "string"]));
    }
    for inner in ["properties", "items", "additionalProperties"] {
        match fields.get_mut(inner) {
            Some(Value::Object(all)) if inner == "properties" => all.values_mut().for_each(close),
            Some(one) => close(one),
            None => {}
        }
    }
}

/// Brings a document into the form in which the API server checks it: fields that are null are as good as
/// none, and a whole number is a double where the schema says `number`, so that rules compare like with like.
fn normalise(value: &mut Value, schema: &Value) {
    match value {
        Value::Object(fields) => {
            let known = &schema["properties"];
            fields.retain(|name, field| !(field.is_null() && known.get(name).is_some()));
            for (name, field) in fields {
                normalise(field, known.get(name).unwrap_or(&schema["additionalProperties"]));
            }
        }
        Value::Array(items) => items
            .iter_mut()
            .for_each(|item| normalise(item, &schema["items"])),
        Value::Number(number) if schema["type"] == "number" => {
            if let Some(double) = number.as_f64().and_then(serde_json::Number::from_f64) {
                *number = double;
            }
        }
        _ => {}
    }
}

/// Finds what comes twice in list-maps and sets.
fn twice(value: &Value, schema: &Value, path: &str, problems: &mut Vec<Problem>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                if let Some(schema) = schema["properties"].get(name) {
                    twice(field, schema, &join(path, name), problems);
                }
            }
        }
        Value::Array(items) => {
            let keys: Option<Vec<&str>> = match schema["x-kubernetes-list-type"].as_str() {
                Some("map") => schema["x-kubernetes-list-map-keys"]
                    .as_array()
                    .map(|keys| keys.iter().filter_map(Value::as_str).collect()),
                Some("set") => Some(Vec::new()),
                _ => None,
            };
            let mut seen = std::collections::HashMap::new();
            for (i, item) in items.iter().enumerate() {
                let place = format!("{path}[{i}]");
                twice(item, &schema["items"], &place, problems);
                let Some(keys) = &keys else { continue };
                let key = if keys.is_empty() {
                    item.to_string()
                } else {
                    let values: Vec<String> = keys.iter().map(|k| item[k].to_string()).collect();
                    format!("{} {}", keys.join(", "), values.join(", "))
                };
                if let Some(first) = seen.get(&key) {
                    let message = format!("{key} is there already, at {path}[{first}]: change one of them");
                    problems.push(Problem::new(place, message));
                } else {
                    seen.insert(key, i);
                }
            }
        }
        _ => {}
    }
}
