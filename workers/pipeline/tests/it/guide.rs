//! What docs/guides/transforms.md shows is loaded and run.

use std::collections::BTreeMap;

use corrente_config::{PipelineConfig, manifest::load, units};
use corrente_pipeline::{
    alerts::message::Alert,
    transform::{Chain, Verdict},
};
use corrente_record::{Timestamp, View};
use serde_json::Value;

const GUIDE: &str = include_str!("../../../../docs/guides/transforms.md");

/// What the guide takes for granted: meters with the metrics that it names.
pub const SITE: &str = "
apiVersion: corrente.dev/v1alpha1
kind: MeterProfile
metadata: {name: acme}
spec:
  vendor: Acme
  model: M1
  source: [the manual]
  registers:
    - {name: voltage_l1_n, address: 0, function: input, type: u16, scale: 0.1, unit: V}
    - {name: frequency, address: 1, function: input, type: u16, scale: 0.01, unit: Hz}
    - {name: active_power_total, address: 2, function: input, type: i32, unit: W}
    - {name: apparent_power_total, address: 4, function: input, type: u32, unit: VA}
    - {name: energy_active_import, address: 6, function: input, type: u32, unit: Wh, kind: counter}
    - {name: serial_number, address: 8, function: input, type: string, length: 4, kind: text}
---
apiVersion: corrente.dev/v1alpha1
kind: MeterPoller
metadata: {name: site}
spec:
  interval: 1m
  endpoints:
    - {name: gateway, address: 10.0.0.1, meters: [{name: feeder-3, unitId: 1, profile: acme}]}
  output:
    kafka: {bootstrapServers: [\"kafka:9092\"], topic: site}
";

/// The blocks of a language in a guide.
pub fn blocks(guide: &'static str, language: &str) -> Vec<&'static str> {
    let mut parts = guide.split("\n```");
    parts.next();
    parts
        .filter_map(|part| part.strip_prefix(language)?.strip_prefix('\n'))
        .collect()
}

/// The one pipeline of a guide, of the site that it takes for granted.
pub fn pipeline(guide: &'static str) -> PipelineConfig {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("site.yaml"), SITE).unwrap();
    // Other blocks show a part of one.
    let mut whole = blocks(guide, "yaml");
    whole.retain(|block| block.starts_with("apiVersion:"));
    let [pipeline] = whole[..] else {
        panic!("the guide has one pipeline");
    };
    std::fs::write(folder.path().join("pipeline.yaml"), pipeline).unwrap();
    let loaded = load(&[folder.path().to_owned()]);
    assert!(loaded.problems.is_empty(), "{:#?}", loaded.problems);
    let resolved = loaded.resolve();
    assert!(resolved.problems.is_empty(), "{:#?}", resolved.problems);
    resolved.pipelines[0].clone()
}

#[test]
fn the_pipeline_of_the_guide_does_what_the_guide_says() {
    let config = &pipeline(GUIDE);
    let derived = config.derived.as_ref().unwrap();
    assert_eq!(derived.windows[0].table, "readings_15min");
    assert_eq!(derived.counters[0].rollover.get("feeder-3"), Some(4_294_967.296));
    assert_eq!(derived.every.get("feeder-3"), Some(60_000));
    let [record] = blocks(GUIDE, "json")[..] else {
        panic!("the guide has one record");
    };
    let chain = Chain::of(config);
    let mut view = View::parse(record.trim().as_bytes()).unwrap();
    assert_eq!(chain.apply(&mut view), Verdict::Keep);
    let number = |name: &str| view.field(name).and_then(|value| value.as_f64());
    for (name, value) in [
        ("energy_import", Some(81_230.25)),
        ("power_factor", Some(0.95)),
        ("apparent_power_total", None),
        ("energy_active_import", None),
    ] {
        assert_eq!(number(name), value, "{name}");
    }
    let other = record.replace("feeder-3", "pump-1");
    let mut view = View::parse(other.trim().as_bytes()).unwrap();
    assert_eq!(chain.apply(&mut view), Verdict::Drop);
}

#[test]
fn the_alert_of_the_guide_is_what_is_published() {
    let start = GUIDE.find("`{\"id\":").unwrap() + 1;
    let shown = GUIDE[start..].split('`').next().unwrap();
    let shown: Value = serde_json::from_str(shown).unwrap();
    let alert = Alert {
        id: "default/site/Overvoltage/feeder-3/2026-11-20T22:20:00.000Z".to_owned(),
        pipeline: "default/site".to_owned(),
        name: "Overvoltage".to_owned(),
        meter: "feeder-3".to_owned(),
        metric: "voltage_l1_n".to_owned(),
        labels: BTreeMap::from([("severity".to_owned(), "warning".to_owned())]),
        summary: None,
        started: "2026-11-20T22:20:00Z".parse::<Timestamp>().unwrap(),
        value: 253.4,
        ended: None,
    };
    assert_eq!(
        serde_json::from_str::<Value>(&alert.to_kafka(false)).unwrap(),
        shown
    );
}

#[test]
fn every_unit_of_the_guide_is_known() {
    let start = GUIDE.find("**Units**").unwrap();
    let list = GUIDE[start..]
        .split_once(": ")
        .unwrap()
        .1
        .split(". `gal`")
        .next()
        .unwrap();
    let names: Vec<&str> = list
        .split([' ', ';', '\n'])
        .filter(|name| !name.is_empty() && *name != "and")
        .collect();
    assert_eq!(names.len(), 74);
    for name in names {
        assert!(units::conversion(name, name).is_ok(), "{name}");
    }
}
