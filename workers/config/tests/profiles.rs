//! The meter library: registers as bytes in, values out.
//!
//! For each profile of `manifests/profiles` there is a file in `tests/profiles`: words as a meter answers
//! them, encoded apart from this project's own encoder, and the values they stand for. They go the whole
//! way: the map is compiled, the reads are planned under the profile's limits, the answers decoded.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests may fail as loudly as the tests themselves"
)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use corrente_config::manifest;
use corrente_modbus::{CompiledMap, CostModel, ReadPlan, decode};
use corrente_record::Value;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Golden {
    #[serde(default)]
    base: u16,
    registers: BTreeMap<u16, String>,
    values: BTreeMap<String, serde_json::Number>,
    #[serde(default)]
    bad: BTreeMap<String, String>,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn golden(name: &str) -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/profiles/{name}.yaml"));
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The value as the golden file writes it: whole numbers stay apart from numbers with a fraction.
fn number(value: &Value) -> serde_json::Number {
    match value {
        Value::Int(v) => (*v).into(),
        Value::UInt(v) => (*v).into(),
        Value::Float(v) => serde_json::Number::from_f64(*v).unwrap(),
        other => panic!("{other} is no number"),
    }
}

#[test]
fn every_profile_reads_what_its_meter_means() {
    let loaded = manifest::load(&[root().join("manifests/profiles")]);
    assert!(loaded.profiles.len() >= 14, "{}", loaded.profiles.len());
    for (name, profile) in &loaded.profiles {
        let golden = golden(name);
        assert!(golden.values.len() >= 3, "{name}: too few values");
        let words: BTreeMap<u16, u16> = golden
            .registers
            .iter()
            .flat_map(|(address, words)| {
                words
                    .split(' ')
                    .zip(*address..)
                    .map(|(word, at)| (golden.base + at, u16::from_str_radix(word, 16).unwrap()))
            })
            .collect();

        let map = CompiledMap::compile(&profile.spec.map, &[]).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        let plan = ReadPlan::build(&map, &CostModel::default())
            .at(golden.base)
            .unwrap();
        let mut read = BTreeMap::new();
        let mut bad = BTreeMap::new();
        for request in &plan.requests {
            let answer: Vec<u16> = (0..request.count)
                .map(|i| words.get(&(request.address + i)).copied().unwrap_or(0))
                .collect();
            decode(&map, request, &answer, &mut |index, result| {
                let metric = map.values[index].name.to_string();
                match result {
                    Ok(value) => drop(read.insert(metric, value)),
                    Err(reason) => drop(bad.insert(metric, reason.to_string())),
                }
            });
        }
        assert_eq!(
            read.len() + bad.len(),
            map.values.len(),
            "{name}: not all were read"
        );
        for (metric, expected) in &golden.values {
            let got = read
                .get(metric)
                .unwrap_or_else(|| panic!("{name}: no {metric}: {:?}", bad.get(metric)));
            assert_eq!(number(got), *expected, "{name}: {metric}");
        }
        for (metric, reason) in &golden.bad {
            assert_eq!(bad.get(metric), Some(reason), "{name}: {metric}");
        }
    }
}

#[test]
fn the_library_and_the_examples_have_no_problem() {
    let loaded = manifest::load(&[
        root().join("manifests/profiles"),
        root().join("manifests/examples"),
    ]);
    assert_eq!(loaded.problems, []);
    for (name, profile) in &loaded.profiles {
        let of_its_name =
            ["profiles", "examples"].map(|folder| root().join(format!("manifests/{folder}/{name}.yaml")));
        assert!(
            of_its_name.iter().any(|file| file.exists()),
            "profile {name} is not in a file of its name"
        );
        assert!(!profile.spec.source.is_empty(), "{name}");
    }
    let resolved = loaded.resolve();
    assert_eq!(resolved.problems, []);
    assert_eq!((resolved.pollers.len(), resolved.pipelines.len()), (3, 2));
    assert_eq!(loaded.others, 1, "the Secret");
}
