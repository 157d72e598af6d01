//! What a metric can be.

use std::fmt;

/// The value of a metric.
///
/// Whole numbers stay whole, so that an unsigned 64-bit counter loses nothing; what was scaled by a
/// fraction is a [`Value::Float`].
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A bit.
    Bool(bool),
    /// A signed whole number.
    Int(i64),
    /// An unsigned whole number.
    UInt(u64),
    /// A number with a fraction; always finite.
    Float(f64),
    /// Text.
    Text(String),
}

impl Value {
    /// The value as a double, where it is a number.
    #[must_use]
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Int(v) => Some(*v as f64),
            Self::UInt(v) => Some(*v as f64),
            Self::Float(v) => Some(*v),
            Self::Bool(_) | Self::Text(_) => None,
        }
    }
}

impl fmt::Display for Value {
    /// The value as JSON writes it: digits for every whole number, the shortest decimal that reads back
    /// as the same double for the rest.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(v) => write!(f, "{v}"),
            Self::Int(v) => write!(f, "{v}"),
            Self::UInt(v) => write!(f, "{v}"),
            Self::Float(v) => write!(f, "{v}"),
            Self::Text(v) => write_json_string(f, v),
        }
    }
}

impl Value {
    /// Writes what [`Display`](fmt::Display) does. The fractions and texts of all records pass here, so they are written
    /// without the formatting machinery, which takes longer than the digits do. A record's whole numbers do not: they
    /// have a shorter way.
    ///
    /// # Errors
    /// Only where the writer fails.
    pub fn write_json(&self, out: &mut impl fmt::Write) -> fmt::Result {
        match self {
            Self::Bool(v) => out.write_str(if *v { "true" } else { "false" }),
            Self::Int(v) => write!(out, "{v}"),
            Self::UInt(v) => write!(out, "{v}"),
            Self::Float(v) => write_double(*v, out),
            Self::Text(v) => write_json_string(out, v),
        }
    }
}

/// The digits are the same in both ways; only very large and very small numbers come with an exponent in one.
fn write_double(value: f64, out: &mut impl fmt::Write) -> fmt::Result {
    let mut buffer = zmij::Buffer::new();
    let text = buffer.format(value);
    if text.bytes().any(|byte| byte.is_ascii_alphabetic()) {
        write!(out, "{value}")
    } else {
        out.write_str(text.strip_suffix(".0").unwrap_or(text))
    }
}

/// Writes `text` as a JSON string, quotes included.
///
/// # Errors
/// Only where the writer fails.
pub fn write_json_string(out: &mut impl fmt::Write, text: &str) -> fmt::Result {
    let special = |byte: u8| byte < 0x20 || byte == b'"' || byte == b'\\';
    out.write_char('"')?;
    // What needs no escape, which is nearly all there is, is copied in one piece.
    let mut rest = text;
    while let Some(at) = rest.bytes().position(special) {
        let (plain, from) = rest.split_at(at);
        out.write_str(plain)?;
        let mut chars = from.chars();
        match chars.next() {
            Some('"') => out.write_str("\\\"")?,
            Some('\\') => out.write_str("\\\\")?,
            Some('\n') => out.write_str("\\n")?,
            Some('\r') => out.write_str("\\r")?,
            Some('\t') => out.write_str("\\t")?,
            Some(c) => write!(out, "\\u{:04x}", c as u32)?,
            None => {}
        }
        rest = chars.as_str();
    }
    out.write_str(rest)?;
    out.write_char('"')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(value: &Value) -> String {
        let mut out = String::new();
        value.write_json(&mut out).unwrap();
        out
    }

    #[test]
    fn texts_are_escaped() {
        let text = Value::Text("a\"b\\c\n\r\t\u{1}\u{1f}ä€".to_owned());
        assert_eq!(written(&text), r#""a\"b\\c\n\r\t\u0001\u001fä€""#);
        assert_eq!(written(&Value::Text(String::new())), r#""""#);
    }

    proptest! {
        #[test]
        fn values_are_written_as_they_are_displayed(
            value in prop_oneof![
                any::<bool>().prop_map(Value::Bool),
                any::<i64>().prop_map(Value::Int),
                any::<u64>().prop_map(Value::UInt),
                any::<f64>().prop_filter("finite", |v| v.is_finite()).prop_map(Value::Float),
                (-1_000_000i64..1_000_000, 0i32..7)
                    .prop_map(|(digits, places)| Value::Float(digits as f64 / 10f64.powi(places))),
                any::<String>().prop_map(Value::Text),
            ],
        ) {
            let out = written(&value);
            prop_assert_eq!(&out, &value.to_string());
            if let Value::Text(text) = &value {
                let read: String = serde_json::from_str(&out).unwrap();
                prop_assert_eq!(&read, text);
            }
        }
    }
}
