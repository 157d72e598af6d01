//! Avro, framed with its schema's number.
//!
//! | field | Avro's type |
//! |---|---|
//! | `ts`, `slot` | `long`, logical type `timestamp-millis` |
//! | `meter`, `stream`, `quality` | `string` |
//! | `seq` | `long` |
//! | `skipped` | `int`, 0 by default |
//! | labels | `string` or null |
//! | metrics | `double`, `long`, `boolean` or `string`, as the map declares them, or null |
//! | unsigned metrics of 64 bits | `bytes`, logical type `decimal` of precision 20 and scale 0, or null |
//! | `bad` | `string` (JSON text) or null |
//!
//! Whatever can be missing is null by default, so that a schema with a field more or less is compatible both ways.
//!
//! Source: the Avro 1.12 specification, "Binary Encoding" and "Logical Types". Values are written in the order of
//! the schema, without any framing. That is done here and not by a library: those check a tree of values against
//! the schema for every record, and this one is made from the same shape as the schema.

use std::fmt::Write as _;

use corrente_record::Value;

use super::{
    Complete, SchemaId, framed,
    shape::{Kind, Shape},
};

/// The schema of a shape.
#[must_use]
pub fn schema(shape: &Shape) -> String {
    let mut out = format!(
        "{{\"type\":\"record\",\"name\":\"{}\",\"namespace\":\"{}\",\"fields\":[\
         {{\"name\":\"ts\",\"type\":{TIMESTAMP}}},{{\"name\":\"meter\",\"type\":\"string\"}},\
         {{\"name\":\"slot\",\"type\":{TIMESTAMP}}},{{\"name\":\"stream\",\"type\":\"string\"}},\
         {{\"name\":\"seq\",\"type\":\"long\"}},{{\"name\":\"quality\",\"type\":\"string\"}},\
         {{\"name\":\"skipped\",\"type\":\"int\",\"default\":0}}",
        shape.name.name, shape.name.namespace
    );
    optional(&mut out, "bad", "\"string\"");
    for (name, kind) in shape.fields() {
        let kind = match kind {
            Kind::Bool => "\"boolean\"",
            Kind::Int => "\"long\"",
            Kind::UInt => "{\"type\":\"bytes\",\"logicalType\":\"decimal\",\"precision\":20,\"scale\":0}",
            Kind::Float => "\"double\"",
            Kind::Text => "\"string\"",
        };
        optional(&mut out, name, kind);
    }
    out.push_str("]}");
    out
}

const TIMESTAMP: &str = "{\"type\":\"long\",\"logicalType\":\"timestamp-millis\"}";

fn optional(out: &mut String, name: &str, kind: &str) {
    // Writing to a String cannot fail, so the result carries nothing.
    let _ = write!(
        out,
        ",{{\"name\":\"{name}\",\"type\":[\"null\",{kind}],\"default\":null}}"
    );
}

/// Writes a record.
#[must_use]
pub fn encode(id: SchemaId, shape: &Shape, record: &Complete<'_>) -> Vec<u8> {
    let mut out = framed(id);
    long(&mut out, record.ts.0);
    string(&mut out, record.meter);
    long(&mut out, record.slot.0);
    string(&mut out, record.stream);
    // A spool's numbers begin at 1: no stream gets to 2^63.
    long(&mut out, record.seq.cast_signed());
    string(&mut out, record.quality.as_str());
    long(&mut out, i64::from(record.skipped.min(i32::MAX as u32)));
    match record.bad {
        None => out.push(NULL),
        Some(bad) => {
            out.push(VALUE);
            string(&mut out, bad);
        }
    }
    let mut values: Vec<Option<&Value>> = vec![None; shape.fields().len()];
    for (name, value) in record.fields {
        if let Some(place) = shape.position(name).and_then(|at| values.get_mut(at)) {
            *place = Some(value);
        }
    }
    for ((_, kind), value) in shape.fields().iter().zip(values) {
        match value {
            None => out.push(NULL),
            Some(value) => {
                out.push(VALUE);
                write(&mut out, *kind, value);
            }
        }
    }
    out
}

/// The branches of a union with null, as the zigzag of their numbers.
const NULL: u8 = 0;
const VALUE: u8 = 2;

/// The shape holds the value, so that each arm takes all there is.
fn write(out: &mut Vec<u8>, kind: Kind, value: &Value) {
    match (kind, value) {
        (Kind::Bool, value) => out.push(u8::from(*value == Value::Bool(true))),
        (Kind::Int, Value::Int(number)) => long(out, *number),
        (Kind::UInt, Value::UInt(number)) => decimal(out, *number),
        (Kind::UInt, Value::Int(number)) => decimal(out, number.cast_unsigned()),
        (Kind::Int | Kind::UInt, _) => long(out, 0),
        (Kind::Float, value) => out.extend_from_slice(&value.as_f64().unwrap_or(f64::NAN).to_le_bytes()),
        (Kind::Text, Value::Text(text)) => string(out, text),
        (Kind::Text, value) => string(out, &value.to_string()),
    }
}

/// A number in zigzag, seven bits a byte, the lowest first.
fn long(out: &mut Vec<u8>, number: i64) {
    let mut left = ((number << 1) ^ (number >> 63)).cast_unsigned();
    while left >= 0x80 {
        out.push(left as u8 | 0x80);
        left >>= 7;
    }
    out.push(left as u8);
}

fn string(out: &mut Vec<u8>, text: &str) {
    long(out, text.len() as i64);
    out.extend_from_slice(text.as_bytes());
}

/// The unscaled number in two's complement, the highest byte first, as short as it can be.
fn decimal(out: &mut Vec<u8>, number: u64) {
    let mut bytes = [0; 9];
    bytes[1..].copy_from_slice(&number.to_be_bytes());
    // A byte of zeros is needed only where the next one would be taken for a sign.
    let skip = bytes
        .windows(2)
        .take_while(|pair| pair[0] == 0 && pair[1] < 0x80)
        .count();
    let digits = &bytes[skip..];
    long(out, digits.len() as i64);
    out.extend_from_slice(digits);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longs_are_zigzag() {
        // The examples of the specification.
        for (number, bytes) in [
            (0, &[0u8][..]),
            (-1, &[1]),
            (1, &[2]),
            (-64, &[0x7f]),
            (64, &[0x80, 1]),
            (
                i64::MIN,
                &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
            ),
        ] {
            let mut out = Vec::new();
            long(&mut out, number);
            assert_eq!(out, bytes, "{number}");
        }
    }

    #[test]
    fn decimals_are_as_short_as_they_can_be_and_never_negative() {
        for (number, bytes) in [
            (0, &[2u8, 0][..]),
            (127, &[2, 0x7f]),
            (128, &[4, 0, 0x80]),
            (256, &[4, 1, 0]),
            (u64::MAX, &[18, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        ] {
            let mut out = Vec::new();
            decimal(&mut out, number);
            assert_eq!(out, bytes, "{number}");
        }
    }
}
