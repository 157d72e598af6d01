//! Transforms, windows and thresholds, checked against the profiles behind the topics.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_in_result,
    reason = "helpers of tests may fail as loudly as the tests themselves"
)]

use std::collections::BTreeMap;

use corrente_config::{PipelineConfig, resolve::resolve_pipeline, transform::Step};
use corrente_crds::{MeterPollerSpec, MeterProfileSpec, pipeline::ColumnType};
use serde_json::{Value, json};

fn profile(registers: Value) -> MeterProfileSpec {
    serde_json::from_value(json!({"vendor": "V", "model": "M", "source": ["s"], "registers": registers}))
        .unwrap()
}

/// Two models of meters: one counts Wh in 32 bits, the other kWh in 16 with a tenth of one.
fn resolve(topics: Value, more: Value) -> Result<PipelineConfig, Vec<String>> {
    let register = |name: &str, address: i32, kind: &str, more: Value| {
        let mut register = json!({"name": name, "address": address, "function": "input", "type": kind});
        register
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        register
    };
    let profiles = BTreeMap::from([
        (
            "one".to_owned(),
            profile(json!([
                register("energy", 0, "u32", json!({"kind": "counter", "unit": "Wh"})),
                register("power", 2, "i32", json!({"unit": "W"})),
                register("apparent", 4, "u32", json!({"unit": "VA"})),
                register("serial", 6, "string", json!({"length": 4, "kind": "text"})),
                register("gas", 10, "u16", json!({"kind": "counter", "unit": "m3"})),
            ])),
        ),
        (
            "two".to_owned(),
            profile(json!([
                register(
                    "energy",
                    0,
                    "u32",
                    json!({"kind": "counter", "unit": "Wh", "scale": 0.1})
                ),
                register("power", 2, "i16", json!({"unit": "W", "scale": 10})),
                register(
                    "gas",
                    10,
                    "u16",
                    json!({"kind": "counter", "unit": "l", "rollover": 9999})
                ),
            ])),
        ),
    ]);
    let meter = |name: &str, profile: &str| json!({"name": name, "unitId": 1, "profile": profile, "labels": {"hall": "3"}});
    let mut slow = meter("b1", "two");
    slow["interval"] = "5m".into();
    slow["unitId"] = 3.into();
    let poller: MeterPollerSpec = serde_json::from_value(json!({
        "interval": "1m",
        "endpoints": [{"name": "g", "address": "h", "meters": [meter("a1", "one"), meter("a2", "one"), slow]}],
        "output": {"kafka": {"bootstrapServers": ["kafka:9092"], "topic": "site"}},
    }))
    .unwrap();
    let mut spec = json!({
        "source": {"kafka": {"bootstrapServers": ["kafka:9092"], "topics": topics}},
        "sink": {"postgresql": {"connectionSecret": {"name": "db", "key": "url"}}},
    });
    spec.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    let spec = serde_json::from_value(spec).unwrap();
    let pollers = [("ns".to_owned(), "p".to_owned(), poller)];
    resolve_pipeline("ns", "site", &spec, &pollers, &profiles)
        .map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

#[test]
fn columns_follow_the_transforms() {
    let config = resolve(
        json!(["site"]),
        json!({"transforms": [
            {"rename": {"from": "energy", "to": "import"}},
            {"convert": {"metric": "import", "to": "kWh"}},
            {"derive": {"metric": "factor", "expression": "power / apparent"}},
            {"filter": {"remove": ["serial", "gas"]}},
        ]}),
    )
    .unwrap();
    use ColumnType::{Bigint, Float8, Text};
    let expected = [
        ("apparent", Bigint),
        ("factor", Float8),
        ("hall", Text),
        ("import", Float8),
        ("power", Bigint),
    ];
    let columns: Vec<(&str, ColumnType)> = config
        .columns
        .iter()
        .map(|(name, kind)| (name.as_str(), *kind))
        .collect();
    assert_eq!(columns, expected);
    let convert = Step::Convert {
        metric: "import".to_owned(),
        factor: 0.001,
        offset: 0.0,
    };
    assert_eq!((config.transforms.len(), &config.transforms[1]), (4, &convert));
    // As the worker reads it.
    let read: PipelineConfig = serde_json::from_str(&serde_json::to_string(&config).unwrap()).unwrap();
    assert_eq!(read, config);
}

#[test]
fn counters_know_their_width_and_meters_how_often_they_are_read() {
    let config = resolve(
        json!(["site"]),
        json!({
            "transforms": [{"convert": {"metric": "energy", "to": "kWh"}}],
            "derived": {
                "windows": [
                    {"name": "15min", "interval": "15m", "metrics": ["energy", "power"]},
                    {"name": "shift", "interval": "8h", "metrics": ["gas"], "table": "gas_shift"},
                ],
                "counters": [{"metric": "energy", "serial": "serial", "longestGap": "2h"}],
                "swaps": [{"meter": "a1", "at": "2026-11-20T14:00:00-03:00", "metric": "gas", "last": 5.0}],
            },
        }),
    )
    .unwrap();
    let derived = config.derived.as_ref().unwrap();
    let tables: Vec<&str> = derived
        .windows
        .iter()
        .map(|window| window.table.as_str())
        .collect();
    assert_eq!(tables, ["readings_15min", "gas_shift"]);
    let [energy, gas] = &derived.counters[..] else {
        panic!("{derived:?}");
    };
    // 32 bits of Wh in kWh; the other model counts tenths.
    for (meter, rollover) in [
        ("a1", 4_294_967.296),
        ("a2", 4_294_967.296),
        ("b1", 429_496.729_6),
    ] {
        assert!(
            (energy.rollover.get(meter).unwrap() - rollover).abs() < 1e-6,
            "{meter}"
        );
    }
    assert_eq!(
        (gas.rollover.get("a1"), gas.rollover.get("b1")),
        (Some(65_536.0), Some(9999.0))
    );
    assert_eq!(
        (energy.serial.as_deref(), energy.longest_gap_millis),
        (Some("serial"), 7_200_000)
    );
    assert_eq!(gas.longest_gap_millis, 86_400_000);
    assert_eq!(
        (derived.every.get("a1"), derived.every.get("b1")),
        (Some(60_000), Some(300_000))
    );
    assert_eq!(derived.swaps[0].at.to_string(), "2026-11-20T17:00:00.000Z");
    let read: PipelineConfig = serde_json::from_str(&serde_json::to_string(&config).unwrap()).unwrap();
    assert_eq!(read, config);
}

#[test]
fn says_what_is_wrong() {
    let windows = |metrics: Value| json!([{"name": "w", "interval": "15m", "metrics": metrics}]);
    for (more, path, says) in [
        (
            json!({"transforms": [{"rename": {"from": "enrgy", "to": "e"}}]}),
            "spec.transforms[0].rename.from",
            "did you mean \"energy\"?",
        ),
        (
            json!({"transforms": [{"filter": {"keep": ["power"]}}, {"derive": {"metric": "x", "expression": "energy + 1"}}]}),
            "spec.transforms[1].derive.expression",
            "has the metric \"energy\" here",
        ),
        (
            json!({"transforms": [{"derive": {"metric": "x", "expression": "power ^ 2"}}]}),
            "spec.transforms[0].derive.expression",
            "pow(a, 2)",
        ),
        (
            json!({"transforms": [{"filter": {"where": "serial > 0"}}]}),
            "spec.transforms[0].filter.where",
            "\"serial\" is text",
        ),
        (
            json!({"transforms": [{"convert": {"metric": "energy", "to": "kW"}}]}),
            "spec.transforms[0].convert",
            "do not measure the same",
        ),
        (
            json!({"transforms": [{"convert": {"metric": "energy", "from": "kWh", "to": "Wh"}}]}),
            "spec.transforms[0].convert",
            "declare \"energy\" in Wh",
        ),
        (
            json!({"transforms": [{"convert": {"metric": "gas", "to": "m3"}}]}),
            "spec.transforms[0].convert",
            "in l and m3, which no record tells",
        ),
        (
            json!({"columns": [{"name": "own", "type": "float8"}], "transforms": [{"convert": {"metric": "own", "to": "m3"}}]}),
            "spec.transforms[0].convert",
            "write from",
        ),
        (
            json!({"derived": {"windows": windows(json!(["energy", "demand"]))}}),
            "spec.derived.windows[0].metrics[1]",
            "has the metric \"demand\"",
        ),
        (
            json!({"derived": {"windows": [{"name": "w", "interval": "15m", "metrics": ["power"], "table": "readings"}]}}),
            "spec.derived.windows[0]",
            "the table readings is taken",
        ),
        (
            json!({"derived": {"windows": [{"name": "d", "interval": "24h", "metrics": ["power"]}]}}),
            "spec.derived.windows[0].interval",
            "a window of 24h has up to 1440 readings",
        ),
        (
            json!({"derived": {"windows": windows(json!(["power"])), "counters": [{"metric": "energy"}]}}),
            "spec.derived.counters[0].metric",
            "no window has the metric",
        ),
        (
            json!({"derived": {"windows": windows(json!(["energy"])), "counters": [{"metric": "energy", "serial": "number"}]}}),
            "spec.derived.counters[0].serial",
            "has the metric \"number\"",
        ),
        (
            json!({"derived": {"windows": windows(json!(["energy"])), "swaps": [{"meter": "a1", "at": "yesterday"}]}}),
            "spec.derived.swaps[0].at",
            "RFC 3339",
        ),
        (
            json!({"derived": {"windows": windows(json!(["energy", "gas"])), "swaps":
                [{"meter": "a1", "at": "2026-11-20T14:00:00Z", "last": 1.0}]}}),
            "spec.derived.swaps[0]",
            "say with metric which one",
        ),
        (
            json!({"alerts": {"thresholds": [{"name": "a", "metric": "volts", "above": 1}], "kafka": {"topic": "t"}}}),
            "spec.alerts.thresholds[0].metric",
            "has the metric \"volts\"",
        ),
    ] {
        let problems = resolve(json!(["site"]), more.clone()).unwrap_err();
        assert_eq!(problems.len(), 1, "{more}: {problems:#?}");
        assert!(
            problems[0].starts_with(&format!("{path}: ")) && problems[0].contains(says),
            "{problems:#?}"
        );
    }
}

#[test]
fn a_topic_of_another_producer_may_hold_anything() {
    let more = json!({"transforms": [
        {"rename": {"from": "KWH", "to": "energy"}},
        {"convert": {"metric": "energy", "from": "kWh", "to": "Wh"}},
        {"derive": {"metric": "x", "expression": "foreign * 2"}},
    ]});
    let config = resolve(json!(["other"]), more).unwrap();
    assert_eq!(config.columns.keys().collect::<Vec<_>>(), ["energy", "x"]);
}

#[test]
fn alerts_clear_at_their_bound_where_nothing_else_is_said() {
    let more = json!({"alerts": {"thresholds": [{"name": "low", "metric": "power", "below": 5, "for": "1m"}],
        "alertmanager": {"url": "http://alertmanager:9093"}}});
    let alerts = resolve(json!(["site"]), more).unwrap().alerts.unwrap();
    assert_eq!(
        (alerts.thresholds[0].clear, alerts.thresholds[0].hold_millis),
        (5.0, 60_000)
    );
    assert_eq!(
        (alerts.topic, alerts.alertmanager.as_deref()),
        (None, Some("http://alertmanager:9093"))
    );
}
