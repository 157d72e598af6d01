//! Bad input: one line that names the file, the line, the resource, the place and what to change, and
//! nothing else is lost by it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests may fail as loudly as the tests themselves"
)]

use std::{fs, path::PathBuf};

use corrente_config::manifest::{Loaded, load};
use tempfile::TempDir;

const GOOD: &str = r#"---
apiVersion: corrente.dev/v1alpha1
kind: MeterProfile
metadata: {name: acme}
spec:
  vendor: Acme
  model: M1
  source: [the manual]
  registers:
    - {name: voltage_l1_n, address: 0, function: input, type: u16, scale: 0.1, unit: V}
---
apiVersion: corrente.dev/v1alpha1
kind: MeterPoller
metadata: {name: plant}
spec:
  interval: 10s
  endpoints:
    - name: gateway-1
      address: 10.0.0.1
      meters:
        - {name: m1, unitId: 1, profile: acme}
        - name: m2
          unitId: 2
          profile: acme
  output:
    kafka: {bootstrapServers: ["kafka:9092"], topic: plant}
---
apiVersion: v1
kind: Secret
metadata: {name: database}
"#;

fn load_text(text: &str) -> (TempDir, Loaded) {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("plant.yaml"), text).unwrap();
    let loaded = load(&[folder.path().to_owned()]);
    (folder, loaded)
}

/// The problems as lines, without the folder's name.
fn lines(text: &str) -> Vec<String> {
    let (folder, loaded) = load_text(text);
    let mut problems = loaded.problems.clone();
    problems.extend(loaded.resolve().problems);
    let prefix = format!("{}/", folder.path().display());
    problems
        .iter()
        .map(|p| p.to_string().replace(&prefix, ""))
        .collect()
}

#[test]
fn what_is_right_is_loaded() {
    let (_folder, loaded) = load_text(GOOD);
    assert_eq!(loaded.problems, []);
    assert_eq!(
        (loaded.profiles.len(), loaded.pollers.len(), loaded.others),
        (1, 1, 1)
    );
    assert_eq!(loaded.pollers[0].metadata.namespace.as_deref(), Some("default"));
    assert_eq!(loaded.resolve().problems, []);
}

#[test]
fn a_mistake_is_one_line_that_says_what_to_change() {
    for (right, wrong, line) in [
        (
            "interval: 10s",
            "intervall: 10s",
            "plant.yaml:16: MeterPoller \"plant\": spec.intervall: unknown field `intervall`; did you mean `interval`?",
        ),
        (
            "interval: 10s",
            "interval: 7s",
            "plant.yaml:16: MeterPoller \"plant\": spec.interval: the interval must divide a day into equal parts: write one such as 1s, 5s, 10s, 30s, 1m, 5m, 15m or 1h",
        ),
        (
            "unitId: 2",
            "unitId: 300",
            "plant.yaml:23: MeterPoller \"plant\": spec.endpoints[0].meters[1].unitId: 300 is more than 255: write a number from 0 to 255",
        ),
        (
            "unitId: 2",
            "unitId: \"2\"",
            "plant.yaml:23: MeterPoller \"plant\": spec.endpoints[0].meters[1].unitId: \"2\" is a text: write the number without quotes",
        ),
        (
            "unitId: 2",
            "unit: 2",
            "plant.yaml:23: MeterPoller \"plant\": spec.endpoints[0].meters[1].unit: unknown field `unit`; did you mean `unitId`?",
        ),
        (
            "unitId: 2",
            "unitId: 2\n          colour: red",
            "plant.yaml:24: MeterPoller \"plant\": spec.endpoints[0].meters[1].colour: unknown field `colour`: remove it; there are interval, labels, metrics, name, profile, registerMap, unitId",
        ),
        (
            "          unitId: 2\n",
            "",
            "plant.yaml:22: MeterPoller \"plant\": spec.endpoints[0].meters[1].unitId: `unitId` (The Modbus unit id) is missing: write it",
        ),
        (
            "          profile: acme",
            "          profile: acne",
            "plant.yaml:24: MeterPoller \"plant\": spec.endpoints[0].meters[1].profile: there is no MeterProfile \"acne\"; did you mean \"acme\"?",
        ),
        (
            "          profile: acme",
            "          profile: acme\n          metrics: [voltage_l1]",
            "plant.yaml:25: MeterPoller \"plant\": spec.endpoints[0].meters[1].metrics[0]: there is no metric \"voltage_l1\"; did you mean \"voltage_l1_n\"?",
        ),
        (
            "          profile: acme",
            "          profile: acme\n          labels: {voltage_l1_n: high}",
            "plant.yaml:25: MeterPoller \"plant\": spec.endpoints[0].meters[1].labels.voltage_l1_n: a metric of this MeterPoller has this name, and both are columns of one table: give the label another name",
        ),
        (
            "        - name: m2",
            "        - name: m1",
            "plant.yaml:22: MeterPoller \"plant\": spec.endpoints[0].meters[1]: name \"m1\" is there already, at spec.endpoints[0].meters[0]: change one of them",
        ),
        (
            "type: u16, scale: 0.1, unit: V",
            "type: uint16, scale: 0.1, unit: V",
            "plant.yaml:10: MeterProfile \"acme\": spec.registers[0].type: \"uint16\" is none of bool, u16, i16, u32, i32, u64, i64, f32, f64, string; did you mean u16?",
        ),
        (
            "type: u16, scale: 0.1, unit: V",
            "type: u16, length: 1",
            "plant.yaml:21: MeterPoller \"plant\": spec.endpoints[0].meters[0].profile: MeterProfile \"acme\" is refused itself: correct it first",
        ),
        (
            "scale: 0.1, unit: V",
            "scale: 0.1, unit: 1",
            "plant.yaml:10: MeterProfile \"acme\": spec.registers[0].unit: 1 is a number: write a text, in quotes: \"1\"",
        ),
        (
            "  source: [the manual]\n",
            "",
            "plant.yaml:5: MeterProfile \"acme\": spec.source: `source` (Where the facts of the map come from) is missing: write it",
        ),
        (
            "kind: MeterPoller",
            "kind: MeterPoler",
            "plant.yaml:13: MeterPoler \"plant\": kind: \"MeterPoler\" is not known; did you mean MeterPoller?",
        ),
        (
            "corrente.dev/v1alpha1\nkind: MeterPoller",
            "corrente.dev/v1\nkind: MeterPoller",
            "plant.yaml:12: MeterPoller \"plant\": apiVersion: \"corrente.dev/v1\" is not known: write corrente.dev/v1alpha1",
        ),
        (
            "metadata: {name: plant}",
            "metadata: {name: Plant 1}",
            "plant.yaml:14: MeterPoller \"Plant 1\": metadata.name: \"Plant 1\" cannot be used here: write small letters, digits, '-' and '.', beginning and ending with a letter or a digit",
        ),
        (
            "metadata: {name: acme}",
            "metadata: {name: acme, namespace: default}",
            "plant.yaml:4: MeterProfile \"acme\": metadata.namespace: a MeterProfile belongs to no namespace: remove it",
        ),
        (
            "kind: Secret",
            "kinds: Secret",
            "plant.yaml:28: this is no resource of Kubernetes: write apiVersion and kind",
        ),
    ] {
        let text = GOOD.replacen(right, wrong, 1);
        assert_ne!(text, GOOD, "{right} is not in the document");
        let found = lines(&text);
        assert!(
            found.iter().any(|l| l == line),
            "{wrong}:\n{line}\n{}",
            found.join("\n")
        );
        assert!(found.iter().all(|l| !l.contains('\n')));
    }
}

#[test]
fn broken_yaml_costs_its_own_document_alone() {
    let text = format!(
        "{GOOD}---\nkind: MeterPoller\nspec: [1,\n---\n{}",
        GOOD.replace("plant", "plant-2")
    );
    let (_folder, loaded) = load_text(&text);
    assert_eq!(loaded.pollers.len(), 2);
    let lines: Vec<String> = loaded.problems.iter().map(ToString::to_string).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].contains("this is not YAML"), "{}", lines[0]);
    assert!(
        (29..=33).contains(&loaded.problems[0].line),
        "{}",
        loaded.problems[0].line
    );
    // The second copy repeats the profile's name.
    assert!(
        lines[1].contains("metadata.name") && lines[1].contains("plant.yaml:2 has this name already"),
        "{}",
        lines[1]
    );
}

#[test]
fn folders_files_and_lists_are_read_once_each() {
    let folder = TempDir::new().unwrap();
    let below = folder.path().join("a/b");
    fs::create_dir_all(&below).unwrap();
    let file = below.join("one.yml");
    fs::write(&file, GOOD).unwrap();
    fs::write(folder.path().join("notes.txt"), "kind: [").unwrap();
    let list = r#"{"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "corrente.dev/v1alpha1", "kind": "MeterProfile", "metadata": {"name": "two"},
         "spec": {"vendor": "V", "model": "M", "source": ["s"], "registers": [
            {"name": "a", "address": 0, "function": "coil", "type": "bool"}]}},
        {"apiVersion": "corrente.dev/v1alpha1", "kind": "MeterProfile", "metadata": {"name": "three"},
         "spec": {}}]}"#;
    fs::write(folder.path().join("two.json"), list).unwrap();
    let missing = PathBuf::from("does/not/exist.yaml");
    let loaded = load(&[folder.path().to_owned(), file, missing]);
    assert_eq!(loaded.profiles.keys().collect::<Vec<_>>(), ["acme", "two"]);
    assert_eq!(loaded.pollers.len(), 1);
    let lines: Vec<String> = loaded.problems.iter().map(ToString::to_string).collect();
    assert!(
        lines
            .iter()
            .any(|l| l.starts_with("does/not/exist.yaml: failed to read it")),
        "{lines:?}"
    );
    assert!(
        lines
            .iter()
            .any(|l| l.contains("two.json:6: MeterProfile \"three\": spec.registers")),
        "{lines:?}"
    );
}
