//! JSON with its schema in every message, as Kafka Connect's `JsonConverter` reads it with `schemas.enable=true`.
//!
//! | field | Connect's type |
//! |---|---|
//! | `ts`, `slot` | `org.apache.kafka.connect.data.Timestamp`: milliseconds since the epoch |
//! | `meter`, `stream`, `quality` | string |
//! | `seq` | int64 |
//! | `skipped` | int32, optional |
//! | labels | string, optional |
//! | metrics | float64, int64, boolean or string, as the map declares them, optional |
//! | unsigned metrics of 64 bits | `org.apache.kafka.connect.data.Decimal` of scale 0, optional |
//! | `bad` | string, optional: JSON text |
//!
//! Times are Connect's own type, because a JDBC sink makes a timestamp column of it and a text column of a string.
//! `Decimal` becomes a numeric column, the only one that holds all of 64 bits; its value is written in digits,
//! which the converter takes for a decimal as it is. `bad` is text, because JDBC sinks know no maps.
//!
//! Source: `org.apache.kafka.connect.json.{JsonConverter,JsonSchema}` of Kafka 4.1.

use std::fmt::Write as _;

use corrente_record::value::write_json_string;

use super::{
    Complete,
    shape::{Kind, Shape},
};

/// All of the message that is the same for every record of a shape.
#[derive(Debug)]
pub struct Envelope {
    head: String,
}

impl Envelope {
    /// Writes the schema of a shape.
    #[must_use]
    pub fn new(shape: &Shape) -> Self {
        let mut head = format!(
            "{{\"schema\":{{\"type\":\"struct\",\"name\":\"{}\",\"optional\":false,\"fields\":[",
            shape.name
        );
        for (name, kind, optional) in [
            ("ts", TIMESTAMP, false),
            ("meter", STRING, false),
            ("slot", TIMESTAMP, false),
            ("stream", STRING, false),
            ("seq", INT64, false),
            ("quality", STRING, false),
            ("skipped", "\"type\":\"int32\"", true),
            ("bad", STRING, true),
        ] {
            field(&mut head, name, kind, optional);
        }
        for (name, kind) in shape.fields() {
            let kind = match kind {
                Kind::Bool => "\"type\":\"boolean\"",
                Kind::Int => INT64,
                Kind::UInt => DECIMAL,
                Kind::Float => "\"type\":\"double\"",
                Kind::Text => STRING,
            };
            field(&mut head, name, kind, true);
        }
        // The last comma.
        head.pop();
        head.push_str("]},\"payload\":");
        Self { head }
    }

    /// Writes a record.
    #[must_use]
    pub fn encode(&self, record: &Complete<'_>) -> Vec<u8> {
        let mut out = String::with_capacity(self.head.len() + 512);
        out.push_str(&self.head);
        // Writing to a String cannot fail, so the results carry nothing.
        let _ = write!(out, "{{\"ts\":{},\"meter\":", record.ts.0);
        let _ = write_json_string(&mut out, record.meter);
        let _ = write!(out, ",\"slot\":{},\"stream\":", record.slot.0);
        let _ = write_json_string(&mut out, record.stream);
        let _ = write!(
            out,
            ",\"seq\":{},\"quality\":\"{}\"",
            record.seq,
            record.quality.as_str()
        );
        if record.skipped > 0 {
            let _ = write!(out, ",\"skipped\":{}", record.skipped);
        }
        if let Some(bad) = record.bad {
            out.push_str(",\"bad\":");
            let _ = write_json_string(&mut out, bad);
        }
        for (name, value) in record.fields {
            out.push(',');
            let _ = write_json_string(&mut out, name);
            let _ = write!(out, ":{value}");
        }
        out.push_str("}}");
        out.into_bytes()
    }
}

const STRING: &str = "\"type\":\"string\"";
const INT64: &str = "\"type\":\"int64\"";
const TIMESTAMP: &str =
    "\"type\":\"int64\",\"name\":\"org.apache.kafka.connect.data.Timestamp\",\"version\":1";
/// The precision is Confluent's convention, which JDBC sinks read.
const DECIMAL: &str = "\"type\":\"bytes\",\"name\":\"org.apache.kafka.connect.data.Decimal\",\"version\":1,\
    \"parameters\":{\"scale\":\"0\",\"connect.decimal.precision\":\"20\"}";

fn field(out: &mut String, name: &str, kind: &str, optional: bool) {
    out.push_str("{\"field\":");
    let _ = write_json_string(out, name);
    let _ = write!(out, ",{kind},\"optional\":{optional}}},");
}
