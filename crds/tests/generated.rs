//! The committed files are what the types say, and what the API server asks of them holds.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests may fail as loudly as the tests themselves"
)]

use std::{fs, path::Path};

use corrente_crds::{
    cases,
    generate::{COMMAND, files},
};
use serde_json::Value;

#[test]
fn committed_files_are_what_the_types_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for file in files().unwrap() {
        let committed = fs::read_to_string(root.join(&file.path)).unwrap_or_default();
        assert!(
            committed == file.content,
            "{} is not what the types in crds/src say: run `{COMMAND}` and commit what it writes",
            file.path
        );
    }
}

#[test]
fn a_template_has_nothing_for_helm_to_fill_in() {
    for file in files().unwrap() {
        assert!(!file.content.contains("{{"), "{} has a {{{{", file.path);
    }
}

#[test]
fn every_list_text_and_map_is_bounded() {
    for crd in corrente_crds::all() {
        let name = crd.spec.names.kind.clone();
        let schema = serde_json::to_value(&crd.spec.versions[0].schema).unwrap();
        let schema = &schema["openAPIV3Schema"];
        let mut unbounded = Vec::new();
        walk(&schema["properties"]["spec"], "spec", &mut unbounded);
        walk(&schema["properties"]["status"], "status", &mut unbounded);
        assert_eq!(unbounded, Vec::<String>::new(), "{name}");
    }
}

#[test]
fn every_rule_has_a_document_that_it_refuses() {
    let said: Vec<String> = cases::all()
        .unwrap()
        .into_iter()
        .filter_map(|case| case.refused)
        .map(|refused| refused.says)
        .filter(|says| !says.is_empty())
        .collect();
    for crd in corrente_crds::all() {
        let mut messages = Vec::new();
        rules(&serde_json::to_value(&crd).unwrap(), &mut messages);
        assert!(!messages.is_empty());
        for message in messages {
            let shown = said.iter().any(|says| message.contains(says.as_str()));
            assert!(
                shown,
                "{}: no case of crds/tests/cases.yaml shows: {message}",
                crd.spec.names.kind
            );
        }
    }
}

/// Collects the messages of all CEL rules; a rule without one has an empty text, which no case shows.
fn rules(value: &Value, messages: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for rule in fields
                .get("x-kubernetes-validations")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
            {
                messages.push(rule["message"].as_str().unwrap_or_default().to_owned());
            }
            fields.values().for_each(|inner| rules(inner, messages));
        }
        Value::Array(items) => items.iter().for_each(|inner| rules(inner, messages)),
        _ => {}
    }
}

/// Notes the path of everything without a bound, and of every format that Kubernetes does not know.
fn walk(schema: &Value, path: &str, unbounded: &mut Vec<String>) {
    let has = |field: &str| schema.get(field).is_some();
    let bounded = match schema["type"].as_str() {
        Some("array") => has("maxItems"),
        Some("string") => has("maxLength") || has("enum") || schema["format"] == "date-time",
        Some("object") => has("properties") || has("maxProperties"),
        _ => true,
    };
    let known = match schema["format"].as_str() {
        None => true,
        Some(format) => ["int32", "int64", "double", "date-time"].contains(&format),
    };
    if !bounded || !known || has("nullable") || has("x-kubernetes-preserve-unknown-fields") {
        unbounded.push(path.to_owned());
    }
    if let Some(properties) = schema["properties"].as_object() {
        for (name, property) in properties {
            walk(property, &format!("{path}.{name}"), unbounded);
        }
    }
    for inner in ["items", "additionalProperties"] {
        if has(inner) {
            walk(&schema[inner], &format!("{path}[]"), unbounded);
        }
    }
}
