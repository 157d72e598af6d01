//! Rows as PostgreSQL's binary COPY format, and the check that each value fits its column.
//!
//! Source: PostgreSQL's documentation, "COPY, Binary Format": a signature, flags, the length of an
//! extension; per row the number of columns, and per value its length in bytes (-1 for null) and its
//! binary form; at the end -1. The forms of the types are those of their `recv` functions
//! (`numeric_recv`: digits to the base of 10,000, the weight of the first, sign, decimals).

use corrente_record::{Timestamp, ValueRef, View};

/// What a binary COPY begins with.
pub const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// What a binary COPY ends with.
pub const TRAILER: &[u8] = b"\xff\xff";

/// A column's type, as far as the worker writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PgType {
    /// `double precision`.
    Float8,
    /// `real`.
    Float4,
    /// `bigint`.
    Int8,
    /// `integer`.
    Int4,
    /// `smallint`.
    Int2,
    /// `numeric`, with its number of decimals where it is limited.
    Numeric(Option<i16>),
    /// `text`, and `varchar` whose length the database checks.
    Text,
    /// `boolean`.
    Boolean,
    /// `jsonb`.
    Jsonb,
    /// `timestamp with time zone`.
    Timestamptz,
    /// A type that the worker does not write, by its name.
    Other(String),
}

/// Appends null.
pub fn null(out: &mut Vec<u8>) {
    out.extend_from_slice(&(-1i32).to_be_bytes());
}

/// Appends eight bytes with their length.
fn eight(out: &mut Vec<u8>, value: [u8; 8]) {
    let mut bytes = [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    if let Some(place) = bytes.last_chunk_mut() {
        *place = value;
    }
    out.extend_from_slice(&bytes);
}

/// Appends an instant.
pub fn timestamp(out: &mut Vec<u8>, value: Timestamp) {
    eight(out, value.as_postgres_micros().to_be_bytes());
}

/// Appends the length of a value.
fn length(out: &mut Vec<u8>, bytes: usize) {
    // A message has at most 2^31 bytes, and what is in it fewer.
    out.extend_from_slice(&i32::try_from(bytes).unwrap_or(i32::MAX).to_be_bytes());
}

/// Appends text; the caller has seen that there is no NUL in it.
pub fn text(out: &mut Vec<u8>, value: &str) {
    length(out, value.len());
    out.extend_from_slice(value.as_bytes());
}

/// Appends a JSON document.
pub fn jsonb(out: &mut Vec<u8>, json: &str) {
    length(out, json.len() + 1);
    // The version of the binary form, which is the text.
    out.push(1);
    out.extend_from_slice(json.as_bytes());
}

/// Appends a 64-bit whole number.
pub fn int8(out: &mut Vec<u8>, value: i64) {
    eight(out, value.to_be_bytes());
}

/// Appends a 32-bit whole number.
pub fn int4(out: &mut Vec<u8>, value: i32) {
    length(out, 4);
    out.extend_from_slice(&value.to_be_bytes());
}

/// Appends the number of a row's columns, and what each row begins with: `ts`, `meter`, `slot`, `stream`, `seq` and
/// `quality`.
pub fn head(out: &mut Vec<u8>, columns: usize, record: &View<'_>) {
    out.extend_from_slice(&(columns as i16).to_be_bytes());
    timestamp(out, record.ts);
    text(out, &record.meter);
    match record.slot {
        Some(slot) => timestamp(out, slot),
        None => null(out),
    }
    match &record.stream {
        Some(stream) => text(out, stream),
        None => null(out),
    }
    match record.seq.and_then(|seq| i64::try_from(seq).ok()) {
        Some(seq) => int8(out, seq),
        None => null(out),
    }
    match record.quality {
        Some(quality) => text(out, quality.as_str()),
        None => null(out),
    }
}

/// Appends a metric or a label, or says why it does not fit.
///
/// # Errors
/// A sentence; nothing is appended then.
pub fn value(out: &mut Vec<u8>, value: &ValueRef<'_>, column: &PgType) -> Result<(), String> {
    match (column, value) {
        (PgType::Float8, value) => {
            let number = value.as_f64().ok_or_else(|| misfit(value, "a number"))?;
            eight(out, number.to_be_bytes());
        }
        (PgType::Float4, value) => {
            let number = value.as_f64().ok_or_else(|| misfit(value, "a number"))? as f32;
            if !number.is_finite() {
                return Err(misfit(value, "a number of single precision"));
            }
            length(out, 4);
            out.extend_from_slice(&number.to_be_bytes());
        }
        (PgType::Int8, value) => int8(out, whole(value, i64::MIN, i64::MAX)?),
        (PgType::Int4, value) => {
            let number = whole(value, i32::MIN.into(), i32::MAX.into())?;
            int4(out, number as i32);
        }
        (PgType::Int2, value) => {
            let number = whole(value, i16::MIN.into(), i16::MAX.into())?;
            length(out, 2);
            out.extend_from_slice(&(number as i16).to_be_bytes());
        }
        (PgType::Numeric(_), ValueRef::Int(number)) => numeric_whole(out, *number < 0, number.unsigned_abs()),
        (PgType::Numeric(_), ValueRef::UInt(number)) => numeric_whole(out, false, *number),
        (PgType::Numeric(scale), value) => {
            if value.as_f64().is_none() {
                return Err(misfit(value, "a number"));
            }
            if let (Some(0), ValueRef::Float(number)) = (scale, value)
                && number.fract() != 0.0
            {
                return Err(misfit(value, "a whole number"));
            }
            numeric(out, &value.to_string());
        }
        (PgType::Boolean, ValueRef::Bool(bit)) => {
            length(out, 1);
            out.push(u8::from(*bit));
        }
        (PgType::Boolean, value) => return Err(misfit(value, "true or false")),
        (PgType::Text, ValueRef::Text(value)) if value.contains('\0') => {
            return Err("the text has a NUL character, which a text column cannot hold".to_owned());
        }
        (PgType::Text, ValueRef::Text(value)) => text(out, value),
        // Numbers and booleans lose nothing as the text they were.
        (PgType::Text, value) => text(out, &value.to_string()),
        (PgType::Jsonb | PgType::Timestamptz, value) => {
            return Err(misfit(value, "what the column holds"));
        }
        (PgType::Other(name), _) => {
            return Err(format!(
                "the column's type, {name}, is none that the worker writes"
            ));
        }
    }
    Ok(())
}

fn misfit(value: &ValueRef<'_>, wanted: &str) -> String {
    let mut shown = value.to_string();
    if shown.chars().count() > 60 {
        shown = shown.chars().take(60).chain("...".chars()).collect();
    }
    format!("{shown} is not {wanted}")
}

fn whole(value: &ValueRef<'_>, least: i64, most: i64) -> Result<i64, String> {
    // Doubles from -2^63 up to but not including 2^63 are the ones that fit.
    const BEYOND: f64 = 9_223_372_036_854_775_808.0;
    let number = match value {
        ValueRef::Int(number) => Some(*number),
        ValueRef::UInt(number) => i64::try_from(*number).ok(),
        ValueRef::Float(number) if number.fract() == 0.0 && (-BEYOND..BEYOND).contains(number) => {
            Some(*number as i64)
        }
        _ => None,
    };
    number
        .filter(|number| (least..=most).contains(number))
        .ok_or_else(|| misfit(value, &format!("a whole number from {least} to {most}")))
}

/// Appends a whole number as `numeric`: an unscaled counter, of which there are many.
fn numeric_whole(out: &mut Vec<u8>, negative: bool, mut number: u64) {
    // 2^64 has twenty digits.
    let mut groups = [0u16; 5];
    let mut begin = groups.len();
    while number > 0 && begin > 0 {
        begin -= 1;
        groups[begin] = (number % 10_000) as u16;
        number /= 10_000;
    }
    let groups = groups.get(begin..).unwrap_or_default();
    let weight = groups.len().saturating_sub(1) as u16;
    let end = groups
        .iter()
        .rposition(|group| *group != 0)
        .map_or(0, |last| last + 1);
    length(out, 8 + 2 * end);
    for word in [end as u16, weight, if negative { 0x4000 } else { 0 }, 0] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    for group in groups.iter().take(end) {
        out.extend_from_slice(&group.to_be_bytes());
    }
}

/// Appends a decimal, given as digits with an optional sign and point.
fn numeric(out: &mut Vec<u8>, decimal: &str) {
    let (negative, digits) = match decimal.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, decimal),
    };
    let (before, after) = digits.split_once('.').unwrap_or((digits, ""));
    let mut groups: Vec<i16> = Vec::with_capacity(digits.len() / 4 + 2);
    let lead = (4 - before.len() % 4) % 4;
    let padded = "0".repeat(lead) + before;
    let tail = after.to_owned() + &"0".repeat((4 - after.len() % 4) % 4);
    for group in padded.as_bytes().chunks(4).chain(tail.as_bytes().chunks(4)) {
        groups.push(
            group
                .iter()
                .fold(0, |sum, digit| sum * 10 + i16::from(digit - b'0')),
        );
    }
    let mut weight = (padded.len() / 4) as i16 - 1;
    let zeros = groups.iter().take_while(|group| **group == 0).count();
    groups.drain(..zeros);
    weight -= zeros as i16;
    while groups.last() == Some(&0) {
        groups.pop();
    }
    if groups.is_empty() {
        weight = 0;
    }
    length(out, 8 + 2 * groups.len());
    let sign = if negative && !groups.is_empty() { 0x4000 } else { 0 };
    for word in [groups.len() as i16, weight, sign, after.len() as i16]
        .into_iter()
        .chain(groups)
    {
        out.extend_from_slice(&word.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(v: &ValueRef<'_>, column: &PgType) -> Result<Vec<u8>, String> {
        let mut out = vec![];
        let result = value(&mut out, v, column);
        assert!(
            result.is_ok() || out.is_empty(),
            "nothing is appended where it does not fit"
        );
        result.map(|()| out)
    }

    proptest::proptest! {
        #[test]
        fn whole_numbers_are_numerics_as_their_digits_are(number: i64, unsigned: u64, shift in 0u32..64) {
            for value in [ValueRef::Int(number >> shift), ValueRef::UInt(unsigned >> shift)] {
                let mut digits = vec![];
                numeric(&mut digits, &value.to_string());
                proptest::prop_assert_eq!(encoded(&value, &PgType::Numeric(None)).unwrap(), digits);
            }
        }
    }

    #[test]
    fn numeric_is_in_groups_of_four_digits() {
        for (decimal, groups, weight, sign, scale) in [
            ("0", &[][..], 0, 0, 0),
            ("1", &[1], 0, 0, 0),
            ("10000", &[1], 1, 0, 0),
            ("12345678", &[1234, 5678], 1, 0, 0),
            ("-12.5", &[12, 5000], 0, 0x4000, 1),
            ("0.0001", &[1], -1, 0, 4),
            ("0.00001", &[1000], -2, 0, 5),
            ("18446744073709551615", &[1844, 6744, 737, 955, 1615], 4, 0, 0),
        ] {
            let mut out = vec![];
            numeric(&mut out, decimal);
            let words: Vec<i16> = out[4..]
                .chunks(2)
                .map(|w| i16::from_be_bytes([w[0], w[1]]))
                .collect();
            assert_eq!(
                words[..4],
                [groups.len() as i16, weight, sign, scale],
                "{decimal}"
            );
            assert_eq!(&words[4..], groups, "{decimal}");
            assert_eq!(
                i32::from_be_bytes(out[..4].try_into().unwrap()) as usize,
                out.len() - 4
            );
        }
    }

    #[test]
    fn a_value_fits_its_column_or_says_why_not() {
        let text = |s: &'static str| ValueRef::Text(s.into());
        for (value, column, says) in [
            (text("x"), PgType::Float8, "\"x\" is not a number"),
            (ValueRef::Bool(true), PgType::Float8, "true is not a number"),
            (ValueRef::Float(1e300), PgType::Float4, "single precision"),
            (ValueRef::Float(1.5), PgType::Int8, "1.5 is not a whole number"),
            (
                ValueRef::UInt(u64::MAX),
                PgType::Int8,
                "is not a whole number from",
            ),
            (
                ValueRef::Float(9_223_372_036_854_775_808.0),
                PgType::Int8,
                "is not a whole number",
            ),
            (ValueRef::Int(40_000), PgType::Int2, "from -32768 to 32767"),
            (ValueRef::Int(3_000_000_000), PgType::Int4, "from -2147483648"),
            (
                ValueRef::Float(0.5),
                PgType::Numeric(Some(0)),
                "0.5 is not a whole number",
            ),
            (text("1"), PgType::Numeric(None), "is not a number"),
            (ValueRef::Int(1), PgType::Boolean, "1 is not true or false"),
            (text("a\0b"), PgType::Text, "NUL"),
            (text("x"), PgType::Other("uuid".to_owned()), "uuid"),
        ] {
            let error = encoded(&value, &column).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        for (value, column, bytes) in [
            (ValueRef::Int(2), PgType::Float8, &2f64.to_be_bytes()[..]),
            (ValueRef::Float(2.0), PgType::Int8, &2i64.to_be_bytes()),
            (ValueRef::Int(-2), PgType::Int4, &(-2i32).to_be_bytes()),
            (ValueRef::Int(-2), PgType::Int2, &(-2i16).to_be_bytes()),
            (ValueRef::Bool(true), PgType::Boolean, &[1]),
            (text("é"), PgType::Text, "é".as_bytes()),
            (ValueRef::Float(1.5), PgType::Text, b"1.5"),
        ] {
            assert_eq!(encoded(&value, &column).unwrap()[4..], *bytes);
        }
    }
}
