//! Records as lines of InfluxDB's line protocol.
//!
//! A point is known by its measurement, its tags and its time: the meter and the tags that the pipeline names,
//! and `ts` in milliseconds. The same point written again is the same point, and fields of a second one are
//! added to the first or take their place.
//!
//! Values: numbers are floats unless a column is declared `bigint` or `numeric`, then whole numbers; these are
//! unsigned in versions 2 and 3, and signed in version 1, which knows no others. Syntax and escapes:
//! <https://docs.influxdata.com/influxdb/v1/write_protocols/line_protocol_reference/>.

use std::collections::BTreeMap;

use corrente_crds::{pipeline::ColumnType, sinks::InfluxdbVersion};
use corrente_record::{ValueRef, View};

use crate::batch::Refusal;

/// How records become lines.
pub struct Lines {
    /// The measurement.
    pub measurement: String,
    /// The fields that become tags.
    pub tags: Vec<String>,
    /// The types that are declared.
    pub declared: BTreeMap<String, ColumnType>,
    /// The API, which says whether there are unsigned numbers.
    pub version: InfluxdbVersion,
}

impl Lines {
    /// Appends a record's line, with its newline; nothing where it is refused.
    ///
    /// # Errors
    /// Which field cannot be written, and why.
    pub fn write(&self, record: &View<'_>, out: &mut String) -> Result<(), Refusal> {
        let begin = out.len();
        let written = self.try_write(record, out);
        if written.is_err() {
            out.truncate(begin);
        }
        written
    }

    fn try_write(&self, record: &View<'_>, out: &mut String) -> Result<(), Refusal> {
        escape(&self.measurement, &[',', ' '], out);
        tag("meter", &record.meter, out)?;
        for name in &self.tags {
            // The last of two values of one name counts, as in most readers of JSON.
            if let Some((_, value)) = record.fields.iter().rev().find(|(field, _)| field == name) {
                match value {
                    ValueRef::Text(text) => tag(name, text, out)?,
                    other => tag(name, &other.to_string(), out)?,
                }
            }
        }
        let mut separator = ' ';
        let mut next = |out: &mut String| out.push(std::mem::replace(&mut separator, ','));
        for (at, (name, value)) in record.fields.iter().enumerate() {
            let later = record.fields.iter().skip(at + 1);
            if self.tags.iter().any(|tag| tag == name) || later.into_iter().any(|(other, _)| other == name) {
                continue;
            }
            key(name, out, &mut next)?;
            self.value(name, value, out)
                .map_err(|reason| refuse(name, reason))?;
        }
        for (name, text) in [
            ("quality", record.quality.map(|quality| quality.as_str())),
            ("stream", record.stream.as_deref()),
            ("bad", record.bad.as_deref()),
        ] {
            if let Some(text) = text {
                key(name, out, &mut next)?;
                string(text, out).map_err(|reason| refuse(name, reason))?;
            }
        }
        for (name, number) in [
            ("slot", record.slot.map(|slot| slot.0)),
            ("seq", record.seq.and_then(|seq| i64::try_from(seq).ok())),
            ("skipped", record.skipped.map(i64::from)),
        ] {
            if let Some(number) = number {
                key(name, out, &mut next)?;
                push(out, format_args!("{number}i"));
            }
        }
        if separator == ' ' {
            return Err(Refusal {
                sqlstate: None,
                column: None,
                reason: "a point needs at least one field, and the record has none but tags".to_owned(),
            });
        }
        push(out, format_args!(" {}\n", record.ts.0));
        Ok(())
    }

    fn value(&self, name: &str, value: &ValueRef<'_>, out: &mut String) -> Result<(), String> {
        let whole = |bits: &str| Err(format!("{value} is not a whole number of {bits} bits"));
        match (self.declared.get(name), value) {
            (Some(ColumnType::Text), ValueRef::Text(text)) => string(text, out)?,
            (Some(ColumnType::Text), other) => string(&other.to_string(), out)?,
            (Some(ColumnType::Boolean) | None, ValueRef::Bool(bit)) => {
                out.push_str(if *bit { "true" } else { "false" });
            }
            (Some(ColumnType::Boolean), _) => return Err(format!("{value} is not true or false")),
            (None, ValueRef::Text(text)) => string(text, out)?,
            (Some(ColumnType::Bigint), _) => match signed(value) {
                Some(number) => push(out, format_args!("{number}i")),
                None => return whole("a signed 64"),
            },
            (Some(ColumnType::Numeric), _) if self.version == InfluxdbVersion::V1 => match signed(value) {
                Some(number) => push(out, format_args!("{number}i")),
                None => return whole("a signed 64, and InfluxDB 1 has no other"),
            },
            (Some(ColumnType::Numeric), _) => match unsigned(value) {
                Some(number) => push(out, format_args!("{number}u")),
                None => return whole("an unsigned 64"),
            },
            (Some(ColumnType::Float8) | None, _) => match value.as_f64() {
                // Every float that is written in digits is read back as the same one.
                Some(number) => push(out, format_args!("{number}")),
                None => return Err(format!("{value} is not a number")),
            },
        }
        Ok(())
    }
}

fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = std::fmt::Write::write_fmt(out, text);
}

fn signed(value: &ValueRef<'_>) -> Option<i64> {
    match value {
        ValueRef::Int(number) => Some(*number),
        ValueRef::UInt(number) => i64::try_from(*number).ok(),
        _ => None,
    }
}

fn unsigned(value: &ValueRef<'_>) -> Option<u64> {
    match value {
        ValueRef::Int(number) => u64::try_from(*number).ok(),
        ValueRef::UInt(number) => Some(*number),
        _ => None,
    }
}

fn refuse(column: &str, reason: String) -> Refusal {
    Refusal {
        sqlstate: None,
        column: Some(column.to_owned()),
        reason,
    }
}

/// A key or a tag's value: what would end it has a backslash before it.
fn escape(text: &str, special: &[char], out: &mut String) {
    for c in text.chars() {
        if special.contains(&c) {
            out.push('\\');
        }
        out.push(c);
    }
}

/// Whether a key or a tag's value can be written: there is no escape for these.
fn check(name: &str, text: &str) -> Result<(), Refusal> {
    if text.contains(|c: char| c.is_control()) {
        return Err(refuse(
            name,
            "line ends and other control characters cannot be in a tag or in a name".to_owned(),
        ));
    }
    if text.ends_with('\\') {
        return Err(refuse(
            name,
            "a tag or a name cannot end with a backslash".to_owned(),
        ));
    }
    Ok(())
}

fn tag(name: &str, value: &str, out: &mut String) -> Result<(), Refusal> {
    if value.is_empty() {
        // A tag without a value is no tag.
        return Ok(());
    }
    check(name, value)?;
    out.push(',');
    escape(name, &[',', '=', ' '], out);
    out.push('=');
    escape(value, &[',', '=', ' '], out);
    Ok(())
}

fn key(name: &str, out: &mut String, next: &mut impl FnMut(&mut String)) -> Result<(), Refusal> {
    if name.is_empty() || name == "time" || name == "meter" {
        return Err(refuse(
            name,
            format!("InfluxDB has no field of the name \"{name}\""),
        ));
    }
    check(name, name)?;
    next(out);
    escape(name, &[',', '=', ' '], out);
    out.push('=');
    Ok(())
}

/// The longest text of a field, in bytes.
const LONGEST: usize = 64 * 1024;

fn string(text: &str, out: &mut String) -> Result<(), String> {
    if text.len() >= LONGEST {
        return Err(format!("the text is longer than the {LONGEST} bytes of a field"));
    }
    out.push('"');
    escape(text, &['"', '\\'], out);
    out.push('"');
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(version: InfluxdbVersion) -> Lines {
        Lines {
            measurement: "readings".to_owned(),
            tags: vec!["site".to_owned(), "line no".to_owned()],
            declared: BTreeMap::from([
                ("energy".to_owned(), ColumnType::Numeric),
                ("count".to_owned(), ColumnType::Bigint),
                ("serial".to_owned(), ColumnType::Text),
                ("closed".to_owned(), ColumnType::Boolean),
            ]),
            version,
        }
    }

    fn view(json: &str) -> View<'_> {
        View::parse(json.as_bytes()).unwrap()
    }

    fn written(version: InfluxdbVersion, fields: &str) -> Result<String, Refusal> {
        let json = format!(r#"{{"ts":"1970-01-01T00:00:01.5Z","meter":"m 1",{fields}}}"#);
        let mut out = "before".to_owned();
        let record = view(&json);
        let result = lines(version).write(&record, &mut out);
        result.map(|()| out.split_off("before".len()))
    }

    #[test]
    fn a_record_is_a_line() {
        let v1 = |fields: &str| written(InfluxdbVersion::V1, fields).unwrap();
        for (fields, line) in [
            (r#""v":229.8"#, "readings,meter=m\\ 1 v=229.8 1500\n"),
            (
                r#""v":1,"site":"a,b=c","line no":7,"w":-2e-9"#,
                "readings,meter=m\\ 1,site=a\\,b\\=c,line\\ no=7 v=1,w=-0.000000002 1500\n",
            ),
            (
                r#""energy":9007199254740993,"count":-3,"serial":12,"closed":true,"text":"a \"b\" \\ c\nd""#,
                "readings,meter=m\\ 1 energy=9007199254740993i,count=-3i,serial=\"12\",closed=true,\
                 text=\"a \\\"b\\\" \\\\ c\nd\" 1500\n",
            ),
            (
                r#""site":"","quality":"failed","slot":"1970-01-01T00:00:01Z","stream":"s","seq":8,"skipped":2,"bad":{"v":"NaN"}"#,
                "readings,meter=m\\ 1 quality=\"failed\",stream=\"s\",bad=\"{\\\"v\\\":\\\"NaN\\\"}\",slot=1000i,seq=8i,skipped=2i 1500\n",
            ),
            // The last of two values of one name counts.
            (r#""v":1,"v":2"#, "readings,meter=m\\ 1 v=2 1500\n"),
        ] {
            assert_eq!(v1(fields), line);
        }
        let large = r#""energy":18446744073709551615"#;
        assert_eq!(
            written(InfluxdbVersion::V3, large).unwrap(),
            "readings,meter=m\\ 1 energy=18446744073709551615u 1500\n"
        );
    }

    #[test]
    fn what_cannot_be_written_is_refused_with_its_name() {
        for (fields, column, says) in [
            (r#""energy":18446744073709551615"#, Some("energy"), "InfluxDB 1"),
            (r#""count":1.5"#, Some("count"), "whole number"),
            (r#""closed":1"#, Some("closed"), "true or false"),
            (r#""energy":"much""#, Some("energy"), "\"much\" is not"),
            (r#""site":"a\nb","v":1"#, Some("site"), "line ends"),
            (r#""site":"a\\","v":1"#, Some("site"), "backslash"),
            (r#""time":1"#, Some("time"), "no field of the name"),
            (r#""site":"a""#, None, "at least one field"),
        ] {
            let refusal = written(InfluxdbVersion::V1, fields).unwrap_err();
            assert_eq!(refusal.column.as_deref(), column, "{fields}");
            assert!(refusal.reason.contains(says), "{fields}: {}", refusal.reason);
        }
    }

    proptest! {
        /// A line is one line outside of quoted text, however odd the names and the texts.
        #[test]
        fn nothing_breaks_out_of_its_place(name in "[^\"\\\\\\p{Cc}]{1,8}", text: String, site: String) {
            let json = serde_json::json!({"ts": "1970-01-01T00:00:00Z", "meter": "m", (name): text, "site": site});
            let json = json.to_string();
            let Ok(record) = View::parse(json.as_bytes()) else { return Ok(()) };
            let mut out = String::new();
            if lines(InfluxdbVersion::V2).write(&record, &mut out).is_ok() {
                let (mut quoted, mut ends, mut spaces) = (false, 0, 0);
                let mut chars = out.chars().peekable();
                while let Some(c) = chars.next() {
                    match c {
                        // In a text it escapes whatever follows, elsewhere only what would end a name or a tag.
                        '\\' if quoted || chars.peek().is_some_and(|next| ",= ".contains(*next)) => { chars.next(); }
                        // In tags they are characters like any other.
                        '"' if spaces > 0 => quoted = !quoted,
                        '\n' if !quoted => ends += 1,
                        ' ' if !quoted => spaces += 1,
                        _ => {}
                    }
                }
                prop_assert!(!quoted && ends == 1 && spaces == 2, "{out:?}");
            }
        }
    }
}
