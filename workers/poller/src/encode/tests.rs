//! What each format makes of a record, to the byte.

use std::sync::Arc;

use super::*;

fn config(format: &str) -> PollerConfig {
    serde_json::from_value(serde_json::json!({
        "namespace": "site-a", "name": "plant", "shard": 0, "interval": "1s", "timeout": "1s", "retries": 0,
        "maps": {
            "profile/iskra-mc3": {"registers": [
                {"name": "voltage_l1_n", "address": 0, "function": "input", "type": "u16", "scale": 0.1},
                {"name": "active_power", "address": 1, "function": "input", "type": "i32"},
                {"name": "energy", "address": 3, "function": "input", "type": "u64"},
                {"name": "closed", "address": 0, "function": "discrete", "type": "bool"},
                {"name": "serial", "address": 7, "function": "input", "type": "string", "length": 4},
            ]},
            "map/own": {"registers": [{"name": "a", "address": 0, "function": "input", "type": "u16"}]},
        },
        "endpoints": [{"name": "e", "address": "gateway", "meters": [
            {"name": "feeder-12", "unitId": 1, "profile": "iskra-mc3", "labels": {"site": "north"}},
            {"name": "feeder-13", "unitId": 2, "profile": "iskra-mc3", "metrics": ["energy"], "labels": {"feeder": "x"}},
            {"name": "own-1", "unitId": 3, "registerMap": "own"},
        ]}],
        "output": {"bootstrapServers": ["kafka:9092"], "topic": "meters", "format": format,
            "headers": {"cloudEvents": true, "traceparent": true}},
        "buffer": {"maxBytes": 1_000_000, "syncInterval": "1s"},
    }))
    .unwrap()
}

const STORED: &str = r#"{"ts":"2026-11-20T22:20:00.123Z","meter":"feeder-12","slot":"2026-11-20T22:20:00.000Z","stream":"k7f3q2m9w4x1c","seq":8123,"quality":"partial","skipped":2,"site":"north","voltage_l1_n":229.8,"active_power":-12,"energy":18446744073709551615,"closed":true,"bad":{"serial":"no \"answer\""}}"#;

fn stored(json: &str) -> Arc<[u8]> {
    json.as_bytes().into()
}

/// Encodes, with the number 7 for every schema that is asked for; and what was asked for.
fn encode(encoder: &mut Encoder, json: &str) -> (Encoded, Vec<SchemaRequest>) {
    let mut asked = Vec::new();
    loop {
        match encoder.encode(&stored(json)) {
            Ok(encoded) => return (encoded, asked),
            Err(EncodeError::Unregistered(request)) => {
                encoder.registered(&request, SchemaId(7));
                assert!(!asked.contains(&*request), "asked twice");
                asked.push((*request).clone());
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn text(encoded: &Encoded) -> &str {
    std::str::from_utf8(&encoded.payload).unwrap()
}

#[test]
fn json_is_the_stored_bytes_themselves() {
    let stored = stored(STORED);
    let encoded = Encoder::json().encode(&stored).unwrap();
    assert!(Arc::ptr_eq(&encoded.payload, &stored));
    assert_eq!(encoded.headers, []);
    let encoded = Encoder::new(&config("json")).encode(&stored).unwrap();
    assert!(Arc::ptr_eq(&encoded.payload, &stored));
}

#[test]
fn headers_name_the_record() {
    let (encoded, _) = encode(&mut Encoder::new(&config("json")), STORED);
    let headers: Vec<(&str, &str)> = encoded
        .headers
        .iter()
        .map(|(key, value)| (*key, std::str::from_utf8(value).unwrap()))
        .collect();
    assert_eq!(
        headers,
        [
            (
                "traceparent",
                "00-00c9af5bea63da4f5d4ed67c46afd255-9dc6099ec3f362de-00"
            ),
            ("ce_specversion", "1.0"),
            ("ce_id", "k7f3q2m9w4x1c/8123"),
            ("ce_source", "/corrente/site-a/plant"),
            ("ce_type", "dev.corrente.reading.v1"),
            ("ce_subject", "feeder-12"),
            ("ce_time", "2026-11-20T22:20:00.123Z"),
            ("content-type", "application/json"),
        ]
    );
    let mut one = config("avro");
    one.output.headers.traceparent = false;
    let (encoded, _) = encode(&mut Encoder::new(&one), STORED);
    assert_eq!(encoded.headers.len(), 7);
    assert_eq!(encoded.headers[6].1, b"application/avro");
}

#[test]
fn connect_json_carries_its_schema() {
    let mut encoder = Encoder::new(&config("connect-json"));
    assert!(!encoder.needs_registry());
    let (encoded, asked) = encode(&mut encoder, STORED);
    assert_eq!(asked, []);
    let timestamp = r#""type":"int64","name":"org.apache.kafka.connect.data.Timestamp","version":1"#;
    let decimal = r#""type":"bytes","name":"org.apache.kafka.connect.data.Decimal","version":1,"parameters":{"scale":"0","connect.decimal.precision":"20"}"#;
    let schema = format!(
        "{{\"type\":\"struct\",\"name\":\"dev.corrente.iskra_mc3\",\"optional\":false,\"fields\":[\
         {{\"field\":\"ts\",{timestamp},\"optional\":false}},\
         {{\"field\":\"meter\",\"type\":\"string\",\"optional\":false}},\
         {{\"field\":\"slot\",{timestamp},\"optional\":false}},\
         {{\"field\":\"stream\",\"type\":\"string\",\"optional\":false}},\
         {{\"field\":\"seq\",\"type\":\"int64\",\"optional\":false}},\
         {{\"field\":\"quality\",\"type\":\"string\",\"optional\":false}},\
         {{\"field\":\"skipped\",\"type\":\"int32\",\"optional\":true}},\
         {{\"field\":\"bad\",\"type\":\"string\",\"optional\":true}},\
         {{\"field\":\"feeder\",\"type\":\"string\",\"optional\":true}},\
         {{\"field\":\"site\",\"type\":\"string\",\"optional\":true}},\
         {{\"field\":\"voltage_l1_n\",\"type\":\"double\",\"optional\":true}},\
         {{\"field\":\"active_power\",\"type\":\"int64\",\"optional\":true}},\
         {{\"field\":\"energy\",{decimal},\"optional\":true}},\
         {{\"field\":\"closed\",\"type\":\"boolean\",\"optional\":true}},\
         {{\"field\":\"serial\",\"type\":\"string\",\"optional\":true}}]}}"
    );
    let payload = r#"{"ts":1795213200123,"meter":"feeder-12","slot":1795213200000,"stream":"k7f3q2m9w4x1c","seq":8123,"quality":"partial","skipped":2,"bad":"{\"serial\":\"no \\\"answer\\\"\"}","site":"north","voltage_l1_n":229.8,"active_power":-12,"energy":18446744073709551615,"closed":true}"#;
    assert_eq!(
        text(&encoded),
        format!("{{\"schema\":{schema},\"payload\":{payload}}}")
    );
    // What the pipeline reads of it is what was stored.
    assert_eq!(
        Record::parse(&encoded.payload).unwrap(),
        Record::parse(STORED.as_bytes()).unwrap()
    );
    // Another meter of the map, with other labels and fewer metrics, has the same schema.
    let other = STORED
        .replace("feeder-12", "feeder-13")
        .replace(r#""site":"north","#, r#""feeder":"x","#);
    let (encoded, _) = encode(&mut encoder, &other);
    assert!(text(&encoded).starts_with(&format!("{{\"schema\":{schema},")));
}

/// Found by fuzzing.
#[test]
fn connect_json_is_json_whatever_a_field_is_called() {
    let json = STORED.replace("voltage_l1_n", "a\\\\}b\\\"c");
    let (encoded, _) = encode(&mut Encoder::new(&config("connect-json")), &json);
    let record = Record::parse(&encoded.payload).unwrap();
    assert_eq!(record.fields[1], ("a\\}b\"c".to_owned(), Value::Float(229.8)));
}

#[test]
fn avro_is_framed_and_in_the_order_of_the_schema() {
    let mut encoder = Encoder::new(&config("avro"));
    assert!(encoder.needs_registry());
    let (encoded, asked) = encode(&mut encoder, STORED);
    let optional =
        |name: &str, kind: &str| format!(r#"{{"name":"{name}","type":["null",{kind}],"default":null}}"#);
    let time = r#"{"type":"long","logicalType":"timestamp-millis"}"#;
    let expected = SchemaRequest {
        subject: "meters-dev.corrente.iskra_mc3".to_owned(),
        language: SchemaLanguage::Avro,
        schema: format!(
            "{{\"type\":\"record\",\"name\":\"iskra_mc3\",\"namespace\":\"dev.corrente\",\"fields\":[\
             {{\"name\":\"ts\",\"type\":{time}}},{{\"name\":\"meter\",\"type\":\"string\"}},\
             {{\"name\":\"slot\",\"type\":{time}}},{{\"name\":\"stream\",\"type\":\"string\"}},\
             {{\"name\":\"seq\",\"type\":\"long\"}},{{\"name\":\"quality\",\"type\":\"string\"}},\
             {{\"name\":\"skipped\",\"type\":\"int\",\"default\":0}},{},{},{},{},{},{},{},{}]}}",
            optional("bad", "\"string\""),
            optional("feeder", "\"string\""),
            optional("site", "\"string\""),
            optional("voltage_l1_n", "\"double\""),
            optional("active_power", "\"long\""),
            optional(
                "energy",
                r#"{"type":"bytes","logicalType":"decimal","precision":20,"scale":0}"#
            ),
            optional("closed", "\"boolean\""),
            optional("serial", "\"string\""),
        ),
    };
    assert_eq!(asked, [expected]);
    let bad = br#"{"serial":"no \"answer\""}"#;
    let expected = [
        &[0, 0, 0, 0, 7][..],
        // 1795213200123 and 1795213200000, in zigzag.
        &[0xf6, 0xab, 0xdc, 0xb0, 0xbf, 0x68, 18],
        b"feeder-12",
        &[0x80, 0xaa, 0xdc, 0xb0, 0xbf, 0x68, 26],
        b"k7f3q2m9w4x1c",
        &[0xf6, 0x7e, 14],
        b"partial",
        &[4, 2, bad.len() as u8 * 2],
        bad,
        &[0, 2, 10],
        b"north",
        &[2],
        &229.8f64.to_le_bytes(),
        &[
            2, 23, 2, 18, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 1, 0,
        ],
    ]
    .concat();
    assert_eq!(encoded.payload[..], expected);
    assert_eq!(encode(&mut encoder, STORED).1, [], "the number is remembered");
}

#[test]
fn protobuf_is_framed_and_numbered_by_name() {
    let mut encoder = Encoder::new(&config("protobuf"));
    let (encoded, asked) = encode(&mut encoder, STORED);
    assert_eq!(asked[0].subject, "meters-dev.corrente.iskra_mc3");
    assert_eq!(asked[0].language, SchemaLanguage::Protobuf);
    // The numbers are those of CRC-32 as zlib has it.
    assert_eq!(
        asked[0].schema,
        r#"syntax = "proto3";
package dev.corrente;

import "google/protobuf/timestamp.proto";

message iskra_mc3 {
  google.protobuf.Timestamp ts = 1;
  string meter = 2;
  google.protobuf.Timestamp slot = 3;
  string stream = 4;
  uint64 seq = 5;
  string quality = 6;
  uint32 skipped = 7;
  optional string bad = 8;
  optional string feeder = 18617206 [json_name = "feeder"];
  optional string site = 21224508 [json_name = "site"];
  optional double voltage_l1_n = 4257575 [json_name = "voltage_l1_n"];
  optional sint64 active_power = 28839726 [json_name = "active_power"];
  optional uint64 energy = 17999665 [json_name = "energy"];
  optional bool closed = 13064652 [json_name = "closed"];
  optional string serial = 24538764 [json_name = "serial"];
}
"#
    );
    let expected = [
        &[0, 0, 0, 0, 7, 0][..],
        &[
            0xa, 0xb, 8, 0x90, 0x8f, 0x83, 0xd8, 6, 0x10, 0xc0, 0xa9, 0xd3, 0x3a, 0x12, 9,
        ],
        b"feeder-12",
        &[0x1a, 6, 8, 0x90, 0x8f, 0x83, 0xd8, 6, 0x22, 0xd],
        b"k7f3q2m9w4x1c",
        &[0x28, 0xbb, 0x3f, 0x32, 7],
        b"partial",
        &[0x38, 2, 0x42, 0x1a],
        br#"{"serial":"no \"answer\""}"#,
        &[0xe2, 0xc3, 0xfb, 0x50, 5],
        b"north",
        &[0xb9, 0xf2, 0x9e, 0x10],
        &229.8f64.to_le_bytes(),
        &[
            0xf0, 0xf2, 0x81, 0x6e, 0x17, 0x88, 0xf3, 0xd4, 0x44, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
            0xff, 0xff, 1, 0xe0, 0x9c, 0xeb, 0x31, 1,
        ],
    ]
    .concat();
    assert_eq!(encoded.payload[..], expected);
}

#[test]
fn what_the_configuration_no_longer_has_gets_a_schema_of_its_own() {
    let mut encoder = Encoder::new(&config("avro"));
    // The metric "gone" was read before the map was edited, and "closed" was a number.
    let older = STORED.replace(r#""closed":true"#, r#""closed":1,"gone":3"#);
    let (_, asked) = encode(&mut encoder, &older);
    assert_eq!(asked[0].subject, "meters-dev.corrente.iskra_mc3");
    assert!(
        asked[0]
            .schema
            .contains(r#"{"name":"closed","type":["null","double"]"#),
        "{}",
        asked[0].schema
    );
    assert!(
        asked[0]
            .schema
            .ends_with(r#"{"name":"gone","type":["null","double"],"default":null}]}"#)
    );
    assert_eq!(encode(&mut encoder, &older).1, []);
    // The meter itself is gone.
    let (_, asked) = encode(&mut encoder, &STORED.replace("feeder-12", "feeder-99"));
    assert_eq!(asked[0].subject, "meters-dev.corrente.record");
    assert!(
        asked[0]
            .schema
            .contains(r#"{"name":"energy","type":["null","double"]"#)
    );
    // Inline maps are their MeterPoller's own.
    let own = r#"{"ts":"2026-11-20T22:20:00.123Z","meter":"own-1","slot":"2026-11-20T22:20:00.000Z","stream":"s","seq":1,"quality":"good","a":1}"#;
    let (_, asked) = encode(&mut encoder, own);
    assert_eq!(asked[0].subject, "meters-dev.corrente.site_a.plant.own");
}

#[test]
fn what_is_no_record_of_ours_is_never_encoded() {
    let mut encoder = Encoder::new(&config("avro"));
    for (json, says) in [
        ("hello", "not a record"),
        (
            r#"{"ts":"2026-11-20T22:20:00Z","meter":"m"}"#,
            "missing field `stream`",
        ),
    ] {
        let error = encoder.encode(&stored(json)).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    let mut config = config("avro");
    config.output.headers = corrente_crds::output::Headers::default();
    let error = Encoder::new(&config)
        .encode(&stored(r#"{"ts":"2026-11-20T22:20:00Z","meter":"m"}"#))
        .unwrap_err();
    assert_eq!(error.to_string(), "the stored record has no slot");
}
