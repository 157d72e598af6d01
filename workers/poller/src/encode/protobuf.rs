//! Protocol Buffers, framed with their schema's number.
//!
//! | field | Protobuf's type | number |
//! |---|---|---|
//! | `ts`, `slot` | `google.protobuf.Timestamp` | 1, 3 |
//! | `meter`, `stream`, `quality` | `string` | 2, 4, 6 |
//! | `seq` | `uint64` | 5 |
//! | `skipped` | `uint32` | 7 |
//! | `bad` | `optional string`: JSON text | 8 |
//! | labels | `optional string` | by name |
//! | metrics | `optional` `double`, `sint64`, `uint64`, `bool` or `string`, as the map declares them | by name |
//!
//! A reader knows a field by its number alone, so that a number must stay with its name while a map is edited. It is
//! `16 + crc32(name) mod (2^25 - 1016)`, and 1000 more from 19000 on, because 19000 to 19999 are Protobuf's own.
//! Where two names of a map meet, which for 128 fields happens in one map of four thousand, the names are taken in
//! the order of their letters, and the later one is hashed again with `#1` after it, then `#2`, until its number is
//! free. Numbers below 2^25 take four bytes in a message: more than counted ones would, and the price of stability.
//!
//! Source: "Encoding" and "Language Guide (proto 3)" of protobuf.dev; Confluent's wire format, by which the path
//! of the message type in its file stands after the schema's number: a single 0 for the first one. It is written
//! here and not by a library, because those want the type when they are compiled.

use std::{collections::HashSet, fmt::Write as _};

use corrente_record::{Timestamp, Value};

use super::{
    Complete, SchemaId, framed,
    shape::{Kind, Shape},
};

/// The record's own fields have the numbers below.
const FIRST: u32 = 16;
/// How many numbers there are for the rest: up to 2^25, less Protobuf's own.
const COUNT: u32 = (1 << 25) - FIRST - 1000;
/// Protobuf's own numbers.
const RESERVED: std::ops::Range<u32> = 19_000..20_000;

/// The numbers of a shape's fields, in their order.
#[derive(Debug)]
pub struct Numbers(Vec<u32>);

impl Numbers {
    /// Numbers the fields of a shape by their names.
    #[must_use]
    pub fn of(shape: &Shape) -> Self {
        let mut by_name: Vec<usize> = (0..shape.fields().len()).collect();
        by_name.sort_by_key(|at| &shape.fields()[*at].0);
        let mut numbers = vec![0; by_name.len()];
        let mut taken = HashSet::new();
        for at in by_name {
            let name = &shape.fields()[at].0;
            let free = (0u32..)
                .map(|attempt| match attempt {
                    0 => number(name),
                    _ => number(&format!("{name}#{attempt}")),
                })
                .find(|number| taken.insert(*number));
            numbers[at] = free.unwrap_or_default();
        }
        Self(numbers)
    }
}

fn number(name: &str) -> u32 {
    let number = FIRST + crc32fast::hash(name.as_bytes()) % COUNT;
    if number < RESERVED.start {
        number
    } else {
        number + (RESERVED.end - RESERVED.start)
    }
}

/// The schema of a shape: a `.proto` file.
#[must_use]
pub fn schema(shape: &Shape, numbers: &Numbers) -> String {
    let mut out = format!(
        "syntax = \"proto3\";\n\
         package {};\n\
         \n\
         import \"google/protobuf/timestamp.proto\";\n\
         \n\
         message {} {{\n\
         \x20 google.protobuf.Timestamp ts = {TS};\n\
         \x20 string meter = {METER};\n\
         \x20 google.protobuf.Timestamp slot = {SLOT};\n\
         \x20 string stream = {STREAM};\n\
         \x20 uint64 seq = {SEQ};\n\
         \x20 string quality = {QUALITY};\n\
         \x20 uint32 skipped = {SKIPPED};\n\
         \x20 optional string bad = {BAD};\n",
        shape.name.namespace, shape.name.name
    );
    for ((name, kind), number) in shape.fields().iter().zip(&numbers.0) {
        let kind = match kind {
            Kind::Bool => "bool",
            Kind::Int => "sint64",
            Kind::UInt => "uint64",
            Kind::Float => "double",
            Kind::Text => "string",
        };
        // With the name in JSON, which else loses its underscores, and a_1 and a1 would be one.
        let _ = writeln!(
            out,
            "  optional {kind} {name} = {number} [json_name = \"{name}\"];"
        );
    }
    out.push_str("}\n");
    out
}

const TS: u32 = 1;
const METER: u32 = 2;
const SLOT: u32 = 3;
const STREAM: u32 = 4;
const SEQ: u32 = 5;
const QUALITY: u32 = 6;
const SKIPPED: u32 = 7;
const BAD: u32 = 8;

/// Writes a record.
#[must_use]
pub fn encode(id: SchemaId, shape: &Shape, numbers: &Numbers, record: &Complete<'_>) -> Vec<u8> {
    let mut out = framed(id);
    // The first message type of the file.
    out.push(0);
    timestamp(&mut out, TS, record.ts);
    text(&mut out, METER, record.meter);
    timestamp(&mut out, SLOT, record.slot);
    text(&mut out, STREAM, record.stream);
    integer(&mut out, SEQ, record.seq);
    text(&mut out, QUALITY, record.quality.as_str());
    if record.skipped > 0 {
        integer(&mut out, SKIPPED, record.skipped.into());
    }
    if let Some(bad) = record.bad {
        text(&mut out, BAD, bad);
    }
    for (name, value) in record.fields {
        let field = shape
            .position(name)
            .and_then(|at| Some((shape.fields().get(at)?.1, *numbers.0.get(at)?)));
        if let Some((kind, number)) = field {
            write(&mut out, number, kind, value);
        }
    }
    out
}

/// The shape holds the value, so that each arm takes all there is.
fn write(out: &mut Vec<u8>, number: u32, kind: Kind, value: &Value) {
    match (kind, value) {
        (Kind::Bool, value) => integer(out, number, u64::from(*value == Value::Bool(true))),
        (Kind::Int, Value::Int(signed)) => {
            integer(out, number, ((signed << 1) ^ (signed >> 63)).cast_unsigned());
        }
        (Kind::UInt, Value::UInt(unsigned)) => integer(out, number, *unsigned),
        (Kind::UInt, Value::Int(signed)) => integer(out, number, signed.cast_unsigned()),
        (Kind::Int | Kind::UInt, _) => {}
        (Kind::Float, value) => {
            tag(out, number, WireType::Fixed64);
            out.extend_from_slice(&value.as_f64().unwrap_or(f64::NAN).to_le_bytes());
        }
        (Kind::Text, Value::Text(value)) => text(out, number, value),
        (Kind::Text, value) => text(out, number, &value.to_string()),
    }
}

/// How a field's bytes are to be read.
#[derive(Clone, Copy)]
enum WireType {
    Varint = 0,
    Fixed64 = 1,
    Length = 2,
}

fn tag(out: &mut Vec<u8>, number: u32, wire: WireType) {
    varint(out, u64::from(number << 3 | wire as u32));
}

fn integer(out: &mut Vec<u8>, number: u32, value: u64) {
    tag(out, number, WireType::Varint);
    varint(out, value);
}

fn text(out: &mut Vec<u8>, number: u32, value: &str) {
    tag(out, number, WireType::Length);
    varint(out, value.len() as u64);
    out.extend_from_slice(value.as_bytes());
}

/// `google.protobuf.Timestamp`: seconds, and nanoseconds that count forward.
fn timestamp(out: &mut Vec<u8>, number: u32, value: Timestamp) {
    let mut inner = Vec::with_capacity(12);
    integer(&mut inner, 1, value.0.div_euclid(1000).cast_unsigned());
    let nanos = value.0.rem_euclid(1000).cast_unsigned() * 1_000_000;
    if nanos > 0 {
        integer(&mut inner, 2, nanos);
    }
    tag(out, number, WireType::Length);
    varint(out, inner.len() as u64);
    out.extend_from_slice(&inner);
}

/// Seven bits a byte, the lowest first.
fn varint(out: &mut Vec<u8>, mut left: u64) {
    while left >= 0x80 {
        out.push(left as u8 | 0x80);
        left >>= 7;
    }
    out.push(left as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::shape::shape_of;

    #[test]
    fn a_number_depends_on_the_name_alone() {
        let before = shape_of("m", &[("voltage_l1_n", Kind::Float), ("site", Kind::Text)]);
        let after = shape_of(
            "m",
            &[
                ("added", Kind::Float),
                ("site", Kind::Text),
                ("voltage_l1_n", Kind::Float),
            ],
        );
        let (old, new) = (Numbers::of(&before), Numbers::of(&after));
        assert_eq!((old.0[0], old.0[1]), (new.0[2], new.0[1]));
        // CRC-32 of "voltage_l1_n" as zlib has it.
        assert_eq!(old.0[0], number("voltage_l1_n"));
    }

    #[test]
    fn numbers_are_legal_and_those_that_meet_are_parted_in_the_order_of_the_names() {
        let names: Vec<String> = (0..40_000).map(|n| format!("metric_{n}")).collect();
        let mut by_number = std::collections::HashMap::new();
        let mut pair = None;
        for name in &names {
            let number = number(name);
            assert!((FIRST..1 << 25).contains(&number) && !RESERVED.contains(&number));
            if let Some(other) = by_number.insert(number, name) {
                pair = Some((other, name));
            }
        }
        let (a, b) = pair.expect("40,000 names meet in 2^25 numbers somewhere");
        let (first, second) = if a < b { (a, b) } else { (b, a) };
        for fields in [[first, second], [second, first]] {
            let numbers = Numbers::of(&shape_of("m", &fields.map(|name| (name.as_str(), Kind::Float))));
            let of = |name: &String| numbers.0[fields.iter().position(|n| *n == name).unwrap()];
            assert_eq!(of(first), number(first));
            assert_eq!(of(second), number(&format!("{second}#1")));
        }
    }
}
