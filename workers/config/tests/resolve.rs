//! Resources to configurations, and the checks across documents.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests may fail as loudly as the tests themselves"
)]

use std::collections::BTreeMap;

use corrente_config::{
    EndpointAddress,
    conflict::{Claim, Owner, conflicts},
    hash,
    pipeline::{PostgresConnection, SinkConfig},
    report::SINK_URL_PATH,
    resolve::{resolve_pipeline, resolve_poller},
    tables::TablesConfig,
};
use corrente_crds::{
    MeterPollerSpec, MeterProfileSpec, TelemetryPipelineSpec,
    output::Format,
    pipeline::ColumnType::{self, Bigint, Boolean, Float8, Numeric, Text},
    tables::SslMode,
};
use proptest::prelude::*;
use serde_json::{Value, json};

fn poller(endpoints: Value) -> MeterPollerSpec {
    serde_json::from_value(json!({
        "interval": "10s",
        "registerMaps": [{"name": "own", "registers": [
            {"name": "flow", "address": 0, "function": "input", "type": "u16"}]}],
        "endpoints": endpoints,
        "output": {"kafka": {"bootstrapServers": ["kafka:9092"], "topic": "site"}},
    }))
    .unwrap()
}

fn profile(registers: Value) -> MeterProfileSpec {
    let spec = json!({"vendor": "V", "model": "M", "source": ["s"], "registers": registers});
    serde_json::from_value(spec).unwrap()
}

fn profiles() -> BTreeMap<String, MeterProfileSpec> {
    let register = |name: &str, kind: &str, more: Value| {
        let mut register = json!({"name": name, "address": 0, "function": "holding", "type": kind});
        register
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        register
    };
    let one = [
        register("energy", "u64", json!({})),
        register("total", "u32", json!({"address": 10, "scale": 10})),
        register("voltage", "u16", json!({"address": 20, "scale": 0.1})),
        register("closed", "bool", json!({"address": 30, "bit": 1})),
        register("serial", "string", json!({"address": 40, "length": 4})),
    ];
    let two = [
        register("energy", "u32", json!({})),
        register("total", "f32", json!({"address": 10})),
        register("serial", "u32", json!({"address": 20})),
    ];
    BTreeMap::from([
        ("one".to_owned(), profile(json!(one))),
        ("two".to_owned(), profile(json!(two))),
    ])
}

fn meter(name: &str, map: Value) -> Value {
    let mut meter = json!({"name": name, "unitId": 1});
    meter
        .as_object_mut()
        .unwrap()
        .extend(map.as_object().unwrap().clone());
    meter
}

#[test]
fn a_shard_is_told_of_its_endpoints_and_their_maps_alone() {
    let spec = poller(json!([
        {"name": "a", "address": "10.0.0.1", "meters": [meter("m1", json!({"profile": "one"}))]},
        {"name": "b", "address": "10.0.0.2", "meters": [meter("m2", json!({"registerMap": "own"}))]},
    ]));
    let resolved = resolve_poller("ns", "site", &spec, &profiles()).unwrap();
    assert_eq!(resolved.meters(), 2);
    assert_eq!(
        resolved.maps.keys().collect::<Vec<_>>(),
        ["map/own", "profile/one"]
    );
    let config = resolved.config(1, resolved.endpoints[1..].iter());
    assert_eq!(
        (config.shard, config.namespace.as_str(), config.name.as_str()),
        (1, "ns", "site")
    );
    assert_eq!(config.maps.keys().collect::<Vec<_>>(), ["map/own"]);
    assert_eq!(config.endpoints.len(), 1);
    assert_eq!((config.timeout.to_string(), config.retries), ("1s".to_owned(), 1));
    // What is written into the ConfigMap is read back as it was, and its name follows from it.
    let text = serde_json::to_string(&config).unwrap();
    assert_eq!(
        serde_json::from_str::<corrente_config::PollerConfig>(&text).unwrap(),
        config
    );
    assert_eq!(hash::of(&config).unwrap(), hash::of_bytes(text.as_bytes()));
}

#[test]
fn a_poller_is_told_all_that_is_wrong_with_it() {
    let spec = poller(json!([
        {"name": "a", "address": "Gateway.site:502", "meters": [
            meter("m1", json!({"profile": "three"})),
            meter("m2", json!({"registerMap": "ow"})),
            meter("m3", json!({"profile": "one", "metrics": ["volage"]})),
        ]},
        {"name": "b", "address": "gateway.site.", "meters": [
            meter("m1", json!({"profile": "broken", "labels": {"flow": "x"}})),
            meter("m4", json!({"profile": "broken"})),
            meter("m5", json!({"registerMap": "own"})),
        ]},
    ]));
    let mut profiles = profiles();
    let broken = json!([{"name": "x", "address": 0, "function": "holding", "type": "bool"}]);
    profiles.insert("broken".to_owned(), profile(broken));
    let problems = resolve_poller("ns", "site", &spec, &profiles).unwrap_err();
    let mut problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
    problems.sort();
    let expected = [
        (
            "spec.endpoints[0].meters[0].profile: ",
            "no MeterProfile \"three\"",
        ),
        (
            "spec.endpoints[0].meters[1].registerMap: ",
            "did you mean \"own\"?",
        ),
        (
            "spec.endpoints[0].meters[2].metrics[0]: ",
            "did you mean \"voltage\"?",
        ),
        (
            "spec.endpoints[1].address: ",
            "gateway.site:502 is the address of endpoint \"a\" already",
        ),
        (
            "spec.endpoints[1].meters[0].labels.flow: ",
            "a metric of this MeterPoller has this name",
        ),
        (
            "spec.endpoints[1].meters[0].name: ",
            "\"m1\" is there already, at spec.endpoints[0].meters[0]",
        ),
        // Told once, not for every meter.
        (
            "spec.endpoints[1].meters[0].profile: ",
            "MeterProfile \"broken\": register \"x\": ",
        ),
    ];
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
    for (problem, (path, says)) in problems.iter().zip(expected) {
        assert!(
            problem.starts_with(path) && problem.contains(says),
            "{problem}\n{path}{says}"
        );
    }
}

fn pipeline(columns: Value) -> TelemetryPipelineSpec {
    serde_json::from_value(json!({
        "source": {"kafka": {"bootstrapServers": ["other:9092", "KAFKA:9092"], "topics": ["site"]}},
        "sink": {"timescaledb": {"connectionSecret": {"name": "db", "key": "url"}, "chunkInterval": "1h"}},
        "columns": columns,
    }))
    .unwrap()
}

fn columns(pollers: &[MeterPollerSpec], overrides: Value) -> BTreeMap<String, ColumnType> {
    let pollers: Vec<_> = pollers
        .iter()
        .map(|spec| ("ns".to_owned(), "p".to_owned(), spec.clone()))
        .collect();
    resolve_pipeline("ns", "site", &pipeline(overrides), &pollers, &profiles())
        .unwrap()
        .columns
}

#[test]
fn columns_follow_from_declarations() {
    let one = poller(json!([{"name": "a", "address": "h", "meters": [
        meter("m1", json!({"profile": "one", "labels": {"feeder": "1"}})),
        meter("m2", json!({"registerMap": "own"})),
    ]}]));
    let declared = [
        ("closed", Boolean),
        ("energy", Numeric),
        ("feeder", Text),
        ("flow", Bigint),
        ("serial", Text),
        ("total", Bigint),
        ("voltage", Float8),
    ];
    let of = |pairs: &[(&str, ColumnType)]| -> BTreeMap<String, ColumnType> {
        pairs
            .iter()
            .map(|(name, column)| ((*name).to_owned(), *column))
            .collect()
    };
    assert_eq!(columns(std::slice::from_ref(&one), json!([])), of(&declared));

    // A second profile widens: u64 with u32, whole with float, text with number.
    let two =
        poller(json!([{"name": "a", "address": "i", "meters": [meter("m3", json!({"profile": "two"}))]}]));
    let widened = columns(&[one.clone(), two.clone()], json!([]));
    assert_eq!(
        (widened["energy"], widened["total"], widened["serial"]),
        (Numeric, Float8, Text)
    );
    assert_eq!(columns(&[two, one.clone()], json!([])), widened);

    // What the pipeline says wins, also over what nothing declares.
    let said = columns(
        std::slice::from_ref(&one),
        json!([{"name": "energy", "type": "float8"}, {"name": "x", "type": "text"}]),
    );
    assert_eq!((said["energy"], said["x"]), (Float8, Text));

    // Only the metrics that are read are declared, and only by who publishes to the topic.
    let mut some = one;
    some.endpoints[0].meters[0].metrics = vec!["voltage".to_owned()];
    some.endpoints[0].meters.truncate(1);
    assert_eq!(
        columns(&[some.clone()], json!([])),
        of(&[("feeder", Text), ("voltage", Float8)])
    );
    some.output.kafka.topic = "elsewhere".to_owned();
    assert_eq!(columns(&[some.clone()], json!([])), of(&[]));
    some.output.kafka.topic = "site".to_owned();
    some.output.kafka.cluster.bootstrap_servers = vec!["third:9092".to_owned()];
    assert_eq!(columns(&[some], json!([])), of(&[]));
}

#[test]
fn a_pipeline_does_not_begin_with_what_it_cannot_read() {
    let mut publisher = poller(
        json!([{"name": "x", "address": "10.0.0.1", "meters": [meter("m1", json!({"registerMap": "own"}))]}]),
    );
    let mut resolved = |format| {
        publisher.output.kafka.format = format;
        let pollers = [("ns".to_owned(), "press".to_owned(), publisher.clone())];
        resolve_pipeline("ns", "site", &pipeline(json!([])), &pollers, &profiles()).map_err(|found| {
            let found: Vec<String> = found.iter().map(ToString::to_string).collect();
            found.join("; ")
        })
    };
    assert!(resolved(Format::Json).is_ok() && resolved(Format::ConnectJson).is_ok());
    for (format, name) in [(Format::Avro, "avro"), (Format::Protobuf, "protobuf")] {
        let said = resolved(format).unwrap_err();
        assert!(
            said.starts_with("spec.source.kafka.topics[0]: MeterPoller ns/press publishes")
                && said.contains(name),
            "{said}"
        );
    }
}

#[test]
fn a_pipeline_is_told_where_and_what() {
    let config = resolve_pipeline("ns", "site", &pipeline(json!([])), &[], &profiles()).unwrap();
    assert_eq!(config.group, "corrente.ns.site");
    let SinkConfig::Postgres {
        connection,
        schema,
        table,
        hypertable,
        tables,
    } = config.sink
    else {
        panic!("not PostgreSQL");
    };
    assert_eq!(
        (connection, schema.as_str(), table.as_str()),
        (
            PostgresConnection {
                url_file: SINK_URL_PATH.into(),
                ..PostgresConnection::default()
            },
            "public",
            "readings"
        )
    );
    assert_eq!(hypertable.unwrap().chunk_interval_millis, Some(3_600_000));
    assert_eq!(*tables, TablesConfig::default());
}

#[test]
fn a_pipeline_is_told_where_the_certificates_of_its_database_are() {
    let mut spec = pipeline(json!([]));
    let table = &mut spec.sink.timescaledb.as_mut().unwrap().table;
    table.ssl_mode = Some(SslMode::VerifyCa);
    table.ca_secret = Some("database-ca".to_owned());
    table.client_certificate_secret = Some("corrente-client".to_owned());
    let config = resolve_pipeline("ns", "site", &spec, &[], &profiles()).unwrap();
    let written = serde_json::to_value(&config.sink).unwrap();
    let postgres = &written["postgres"];
    assert_eq!(postgres["urlFile"], SINK_URL_PATH);
    assert_eq!(postgres["sslMode"], "verify-ca");
    assert_eq!(postgres["caFile"], "/etc/corrente/sink/ca/ca.crt");
    assert_eq!(postgres["clientCertificate"], "/etc/corrente/sink/client");
    assert_eq!(
        serde_json::from_value::<SinkConfig>(written).unwrap(),
        config.sink
    );
}

#[test]
fn a_pipeline_is_told_how_to_look_after_its_tables() {
    let publisher = poller(json!([
        {"name": "x", "address": "10.0.0.1", "meters": [
            meter("m1", json!({"registerMap": "own", "labels": {"site": "north"}})),
            meter("m2", json!({"registerMap": "own", "interval": "15m"}))]}]));
    let mut resting = publisher.clone();
    resting.suspend = true;
    resting.endpoints[0].meters[0].name = "m3".to_owned();
    let pollers = [
        ("ns".to_owned(), "a".to_owned(), publisher),
        ("ns".to_owned(), "b".to_owned(), resting),
    ];
    let resolved = |sink: Value| {
        let mut spec = pipeline(json!([]));
        spec.sink = serde_json::from_value(sink).unwrap();
        resolve_pipeline("ns", "site", &spec, &pollers, &profiles()).map_err(|found| {
            let found: Vec<String> = found.iter().map(ToString::to_string).collect();
            found.join("; ")
        })
    };
    let secret = json!({"name": "db", "key": "url"});
    let config = resolved(json!({"timescaledb": {
        "connectionSecret": secret, "layout": "narrow", "retention": "30d", "compressAfter": "7d",
        "rollups": [{"interval": "15m"}, {"interval": "24h", "name": "daily", "retention": "365d"}],
        "completeness": {}, "views": {"schema": "bi"}}}))
    .unwrap();
    let SinkConfig::Postgres { tables, .. } = config.sink else {
        panic!("not PostgreSQL");
    };
    let shown = serde_json::to_value(&tables).unwrap();
    assert_eq!(
        shown,
        json!({
            "layout": "narrow", "labels": ["site"], "retention": "30d", "compressAfter": "7d", "slowest": "15m",
            "rollups": [
                {"table": "readings_15m", "interval": "15m"},
                {"table": "daily", "interval": "24h", "retention": "365d"}],
            "completeness": {"interval": "1h", "meters": {"10s": ["m1"], "15m": ["m2"]}},
            "views": {"schema": "bi"},
        })
    );
    assert_eq!(
        tables.completeness.unwrap().intervals(),
        BTreeMap::from([("m1", 10_000), ("m2", 900_000)])
    );

    // Meters that are left out are not missed; what cannot be told apart from missing is refused.
    let with = |more: Value| {
        let mut spec = json!({
            "source": {"kafka": {"bootstrapServers": ["other:9092", "KAFKA:9092"], "topics": ["site"]}},
            "sink": {"timescaledb": {"connectionSecret": secret, "layout": "narrow", "completeness": {},
                "rollups": [{"interval": "1h", "name": "readings_15min"}]}}});
        spec.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let spec: TelemetryPipelineSpec = serde_json::from_value(spec).unwrap();
        resolve_pipeline("ns", "site", &spec, &pollers, &profiles()).map_err(|found| {
            let found: Vec<String> = found.iter().map(ToString::to_string).collect();
            found.join("; ")
        })
    };
    let config = with(json!({"transforms": [
        {"filter": {"meters": ["m2*"]}}, {"rename": {"from": "site", "to": "plant"}}]}))
    .unwrap();
    let SinkConfig::Postgres { tables, .. } = config.sink else {
        panic!("not PostgreSQL");
    };
    assert_eq!(
        serde_json::to_value(&tables.completeness.unwrap().meters).unwrap(),
        json!({"15m": ["m2"]})
    );
    assert_eq!(tables.labels, ["plant".to_owned()].into());
    for (more, says) in [
        (
            json!({"transforms": [{"filter": {"where": "flow > 1"}}]}),
            "completeness: the ledger would take the records",
        ),
        (
            json!({"dedupe": "key"}),
            "spec.dedupe: a key is of a record, which is a row of a wide table",
        ),
        (
            json!({"derived": {"windows": [{"name": "15min", "interval": "15m", "metrics": ["flow"]}]}}),
            "rollups[0].name: the table readings_15min is one of spec.derived already",
        ),
    ] {
        let said = with(more).unwrap_err();
        assert!(said.contains(says), "{said}");
    }

    for (more, says) in [
        (
            json!({"rollups": [{"interval": "15m", "name": "readings"}]}),
            "rollups[0].name: the table readings is the readings' already",
        ),
        (
            json!({"rollups": [{"interval": "15m", "name": "r"}, {"interval": "1h", "name": "r"}]}),
            "rollups[1].name: the table r is that of spec.sink.timescaledb.rollups[0] already",
        ),
        (
            json!({"rollups": [{"interval": "1h"}], "retention": "90m"}),
            "retention: rows that are kept for 90m may be gone",
        ),
        (
            json!({"retention": "7d", "compressAfter": "7d"}),
            "compressAfter: rows are dropped after 7d",
        ),
        (
            json!({"table": "latest", "views": {"schema": "public"}}),
            "views.schema: a view would have the name of the table public.latest",
        ),
    ] {
        let mut sink = json!({"connectionSecret": secret});
        sink.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let said = resolved(json!({"timescaledb": sink})).unwrap_err();
        assert!(said.contains(says), "{said}");
    }
}

#[test]
fn the_older_keeps_what_both_claim() {
    let a = poller(
        json!([{"name": "x", "address": "10.0.0.1", "meters": [meter("m1", json!({"registerMap": "own"}))]}]),
    );
    let b = poller(json!([
        {"name": "y", "address": "10.0.0.1:502", "meters": [meter("m2", json!({"registerMap": "own"}))]},
        {"name": "z", "address": "10.0.0.2", "meters": [meter("m1", json!({"registerMap": "own"}))]},
    ]));
    let owner = |name: &str, created, spec| Owner {
        namespace: "ns".to_owned(),
        name: name.to_owned(),
        created,
        spec,
    };
    // `b` comes first in the list: age alone counts.
    let found = conflicts(&[owner("b", 2, &b), owner("a", 1, &a)]);
    assert_eq!(found.len(), 1);
    let of_b = &found[&("ns".to_owned(), "b".to_owned())];
    assert_eq!(
        of_b[0].claim,
        Claim::Endpoint(EndpointAddress::normalise("10.0.0.1").unwrap())
    );
    assert_eq!(of_b[0].owner, ("ns".to_owned(), "a".to_owned()));
    assert_eq!(of_b[1].path, "spec.endpoints[1].meters[0].name");
    assert!(
        of_b[0]
            .problem()
            .to_string()
            .contains("polled by the older MeterPoller ns/a")
    );
    assert!(
        of_b[1]
            .problem()
            .to_string()
            .contains("publishes a meter \"m1\" to topic site too")
    );
    assert_eq!(of_b.len(), 2);
    // Of equal age, the name decides.
    assert!(
        conflicts(&[owner("b", 1, &a), owner("a", 1, &a)]).contains_key(&("ns".to_owned(), "b".to_owned()))
    );
    // Another topic is another record, another cluster too; the gateway is the same.
    let mut elsewhere = a.clone();
    elsewhere.output.kafka.cluster.bootstrap_servers = vec!["third:9092".to_owned()];
    let found = conflicts(&[owner("a", 1, &a), owner("c", 2, &elsewhere)]);
    assert_eq!(found[&("ns".to_owned(), "c".to_owned())].len(), 1);
}

proptest! {
    /// Every gateway that anyone names is polled by exactly one, in whatever order the resources are listed.
    #[test]
    fn every_gateway_has_exactly_one_owner(
        addresses in prop::collection::vec(prop::collection::btree_set(0_u8..6, 1..5), 1..6),
        ages in prop::collection::vec(0_i64..3, 6),
        seed in any::<u64>(),
    ) {
        let specs: Vec<MeterPollerSpec> = addresses
            .iter()
            .enumerate()
            .map(|(p, addresses)| {
                let endpoints: Vec<Value> = addresses
                    .iter()
                    .map(|a| json!({"name": format!("e{a}"), "address": format!("10.0.0.{a}"),
                        "meters": [meter(&format!("p{p}-{a}"), json!({"registerMap": "own"}))]}))
                    .collect();
                poller(json!(endpoints))
            })
            .collect();
        let owners: Vec<Owner<'_>> = specs
            .iter()
            .enumerate()
            .map(|(p, spec)| Owner { namespace: "ns".to_owned(), name: format!("p{p}"), created: ages[p], spec })
            .collect();
        let found = conflicts(&owners);
        let mut shuffled = owners.clone();
        shuffled.sort_by_key(|o| hash::of_bytes(format!("{seed}{}", o.name).as_bytes()));
        prop_assert_eq!(&conflicts(&shuffled), &found);
        let mut held: BTreeMap<u8, usize> = BTreeMap::new();
        for (p, addresses) in addresses.iter().enumerate() {
            let lost = found.get(&("ns".to_owned(), format!("p{p}"))).map_or(0, Vec::len);
            prop_assert!(lost <= addresses.len());
            for a in addresses {
                let claim = Claim::Endpoint(EndpointAddress::normalise(&format!("10.0.0.{a}")).unwrap());
                let lost = found
                    .get(&("ns".to_owned(), format!("p{p}")))
                    .is_some_and(|lost| lost.iter().any(|c| c.claim == claim));
                *held.entry(*a).or_default() += usize::from(!lost);
            }
        }
        prop_assert!(held.values().all(|holders| *holders == 1), "{:?}", held);
    }
}

#[test]
fn a_key_must_be_one_that_the_table_can_have() {
    let resolve = |sink: &str, spec: Value| {
        let mut whole = json!({
            "source": {"kafka": {"bootstrapServers": ["kafka:9092"], "topics": ["site"]}},
            "sink": {sink: {"connectionSecret": {"name": "db", "key": "url"}}},
            "columns": [{"name": "site", "type": "text"}],
        });
        whole
            .as_object_mut()
            .unwrap()
            .extend(spec.as_object().unwrap().clone());
        let spec: TelemetryPipelineSpec = serde_json::from_value(whole).unwrap();
        resolve_pipeline("ns", "p", &spec, &[], &BTreeMap::new())
            .map(|config| config.once)
            .map_err(|problems| {
                problems
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join("; ")
            })
    };
    let key = |columns: Value| json!({"dedupe": "key", "dedupeKey": columns});
    let key_of = |sink: &str, spec: Value| resolve(sink, spec).unwrap().key;
    assert_eq!(key_of("postgresql", json!({})), None);
    assert_eq!(
        key_of("timescaledb", json!({"dedupe": "key"})).unwrap(),
        ["meter", "ts"]
    );
    assert_eq!(
        key_of("postgresql", key(json!(["site", "meter", "slot"])))
            .unwrap()
            .len(),
        3
    );
    let once = resolve(
        "postgresql",
        json!({"renamedFrom": "old", "deadLetter": {"topic": "dead", "retention": "30d"}}),
    )
    .unwrap();
    assert_eq!(once.renamed_from.as_deref(), Some("ns/old"));
    assert_eq!(once.dead_letter_topic.as_deref(), Some("dead"));
    assert_eq!(once.dead_letter_retention.unwrap().to_string(), "30d");
    for (sink, spec, says) in [
        ("timescaledb", key(json!(["meter", "slot"])), "add ts"),
        ("postgresql", key(json!(["meter"])), "add ts, or slot"),
        (
            "postgresql",
            key(json!(["ts", "room"])),
            "room is no column that is declared",
        ),
        (
            "postgresql",
            json!({"dedupeKey": ["meter", "ts"]}),
            "a key is for dedupe: key",
        ),
        (
            "postgresql",
            json!({"deadLetter": {"topic": "site"}}),
            "would come back",
        ),
        (
            "postgresql",
            json!({"renamedFrom": "p"}),
            "is the pipeline's own name",
        ),
    ] {
        let problems = resolve(sink, spec).unwrap_err();
        assert!(problems.contains(says), "{problems}");
    }
}
