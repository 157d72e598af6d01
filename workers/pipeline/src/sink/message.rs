//! Records as messages for panels: the JSON that is sent, and the topic or key it is sent under.

use corrente_record::{ValueRef, View, value::write_json_string};

use crate::batch::Refusal;

/// Appends a record as flat JSON, as a poller would have written it.
pub fn write_json(record: &View<'_>, out: &mut String) {
    // Writing to a String cannot fail, so the results carry nothing.
    let text = |out: &mut String, name: &str, text: &str| {
        out.push(',');
        let _ = write_json_string(out, name);
        out.push(':');
        let _ = write_json_string(out, text);
    };
    out.push_str("{\"ts\":\"");
    push(out, format_args!("{}\"", record.ts));
    text(out, "meter", &record.meter);
    if let Some(slot) = record.slot {
        push(out, format_args!(",\"slot\":\"{slot}\""));
    }
    if let Some(stream) = &record.stream {
        text(out, "stream", stream);
    }
    if let Some(seq) = record.seq {
        push(out, format_args!(",\"seq\":{seq}"));
    }
    if let Some(quality) = record.quality {
        text(out, "quality", quality.as_str());
    }
    if let Some(skipped) = record.skipped {
        push(out, format_args!(",\"skipped\":{skipped}"));
    }
    for (name, value) in &record.fields {
        out.push(',');
        let _ = write_json_string(out, name);
        push(out, format_args!(":{value}"));
    }
    if let Some(bad) = &record.bad {
        // It is JSON already.
        push(out, format_args!(",\"bad\":{bad}"));
    }
    out.push('}');
}

fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    let _ = std::fmt::Write::write_fmt(out, text);
}

/// A name with fields of the record in braces, such as `plant/{site}/{meter}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
    /// The most bytes that a name may have.
    most: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Field(String),
}

impl Template {
    /// Reads a template, whose names have at most `most` bytes. What is not in braces is taken as it is.
    #[must_use]
    pub fn new(text: &str, most: usize) -> Self {
        let mut parts = vec![];
        let mut rest = text;
        while let Some((before, (field, after))) = rest
            .split_once('{')
            .and_then(|(before, after)| Some((before, after.split_once('}')?)))
        {
            parts.extend([Part::Text(before.to_owned()), Part::Field(field.to_owned())]);
            rest = after;
        }
        parts.push(Part::Text(rest.to_owned()));
        Self { parts, most }
    }

    /// The name for a record.
    ///
    /// # Errors
    /// Where the record lacks a field, or one has what a name cannot have.
    pub fn name(&self, record: &View<'_>) -> Result<String, Refusal> {
        let mut name = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => name.push_str(text),
                Part::Field(field) => {
                    let refuse = |reason: &str| Refusal {
                        sqlstate: None,
                        column: Some(field.clone()),
                        reason: reason.to_owned(),
                    };
                    let value = match (field.as_str(), record.field(field)) {
                        ("meter", _) => record.meter.to_string(),
                        ("stream", _) => record.stream.as_deref().unwrap_or_default().to_owned(),
                        ("quality", _) => record.quality.map(|q| q.as_str()).unwrap_or_default().to_owned(),
                        (_, Some(ValueRef::Text(text))) => text.to_string(),
                        (_, Some(other)) => other.to_string(),
                        (_, None) => String::new(),
                    };
                    if value.is_empty() {
                        return Err(refuse(
                            "the name of its message needs this field, and the record has none",
                        ));
                    }
                    if value.contains(|c: char| matches!(c, '+' | '#') || c.is_control()) {
                        return Err(refuse(
                            "the name of its message cannot have '+', '#' or a control character",
                        ));
                    }
                    name.push_str(&value);
                }
            }
        }
        if name.len() > self.most {
            return Err(Refusal {
                sqlstate: None,
                column: None,
                reason: format!("the name of its message is longer than {} bytes", self.most),
            });
        }
        Ok(name)
    }
}

#[cfg(test)]
mod tests {
    use corrente_record::Record;

    use super::*;

    const JSON: &str = r#"{"ts":"2026-11-20T22:20:00.123Z","meter":"m \"1\"","slot":"2026-11-20T22:20:00.000Z","stream":"s","seq":8,"quality":"partial","skipped":2,"site":"a/b","energy":18446744073709551615,"v":1.5,"on":true,"bad":{"w":"NaN"}}"#;

    #[test]
    fn a_record_is_written_as_it_came() {
        let mut out = String::new();
        write_json(&View::parse(JSON.as_bytes()).unwrap(), &mut out);
        assert_eq!(out, JSON);
        assert_eq!(
            Record::parse(out.as_bytes()).unwrap(),
            Record::parse(JSON.as_bytes()).unwrap()
        );
    }

    #[test]
    fn a_name_is_made_of_fields() {
        let record = View::parse(JSON.as_bytes()).unwrap();
        let name = |template: &str, most: usize| Template::new(template, most).name(&record);
        for (template, expected) in [
            ("plain", "plain"),
            ("plant/{site}/{meter}", "plant/a/b/m \"1\""),
            ("{seq}{v}-{on}{", "1.5-true{"),
            ("{quality}", "partial"),
        ] {
            match name(template, 100) {
                Ok(found) => assert_eq!(found, expected),
                // `seq` is no field of the record's fields, and names of messages are not made of it.
                Err(refusal) => assert_eq!(
                    (template, refusal.column.as_deref()),
                    ("{seq}{v}-{on}{", Some("seq"))
                ),
            }
        }
        assert_eq!(name("{line}", 100).unwrap_err().column.as_deref(), Some("line"));
        assert!(
            name("{site}", 2)
                .unwrap_err()
                .reason
                .contains("longer than 2 bytes")
        );
        let odd = View {
            meter: "a+b".into(),
            ..View::default()
        };
        assert!(
            Template::new("{meter}", 100)
                .name(&odd)
                .unwrap_err()
                .reason
                .contains("'+'")
        );
    }
}
