//! A record as the rows of a narrow table: one for each metric, and one for each metric that was not read.
//!
//! | column | holds |
//! |---|---|
//! | `ts`, `meter`, `slot`, `stream`, `seq`, `quality`, labels | what the record says, in each of its rows |
//! | `skipped` | what the record says, in the first of its rows alone, so that it can be added up |
//! | `metric` | the metric's name; null where the record has none at all |
//! | `value` | a number |
//! | `exact` | a whole number that `value` cannot hold, beyond 2^53: all digits of it |
//! | `text_value`, `bool_value` | a text, true or false |
//! | `bad` | why the metric was not read; the others are null then |

use std::collections::{BTreeMap, BTreeSet};

use corrente_crds::pipeline::ColumnType;
use corrente_record::{ValueRef, View};

use super::encode::{self, PgType};
use crate::batch::Refusal;

/// The longest name of a metric, in bytes: it is part of an index.
const METRIC_BYTES: usize = 255;
/// Whole numbers up to this one are doubles without loss.
const EXACT: u64 = 1 << 53;

/// What a narrow table has to know of metrics and labels.
#[derive(Clone, Debug, Default)]
pub struct Narrow {
    /// Declared types, by metric.
    pub declared: BTreeMap<String, ColumnType>,
    /// The fields that are columns of their own.
    pub labels: BTreeSet<String>,
}

impl Narrow {
    /// Whether the field is a column of its own.
    pub fn is_label(&self, name: &str) -> bool {
        self.labels.contains(name)
    }

    /// Appends the rows of a record; gives how many they are. `columns` is how many columns a row has, `labels` the
    /// bytes of the columns behind `bad`.
    ///
    /// # Errors
    /// What does not fit.
    pub fn append(
        &self,
        record: &View<'_>,
        columns: usize,
        labels: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<usize, Refusal> {
        let mut rows = Rows {
            columns,
            labels,
            head: None,
            count: 0,
        };
        for (number, (name, value)) in record.fields.iter().enumerate() {
            let rest = record.fields.get(number + 1..).unwrap_or_default();
            // A name that comes twice: the last one counts, as in most readers of JSON.
            if self.is_label(name) || rest.iter().any(|(other, _)| other == name) {
                continue;
            }
            check(name)?;
            rows.begin(record, Some(name), out);
            let declared = self.declared.get(&**name).copied();
            self.value(value, declared, out).map_err(|reason| Refusal {
                sqlstate: None,
                column: Some(name.clone().into_owned()),
                reason,
            })?;
            encode::null(out);
            rows.end(out);
        }
        for (name, reason) in record.bad.iter().flat_map(|bad| reasons(bad)) {
            check(&name)?;
            if reason.contains('\0') {
                return Err(refusal("bad", "the text has a NUL character"));
            }
            rows.begin(record, Some(&name), out);
            (0..4).for_each(|_| encode::null(out));
            encode::text(out, &reason);
            rows.end(out);
        }
        if rows.count == 0 {
            rows.begin(record, None, out);
            (0..5).for_each(|_| encode::null(out));
            rows.end(out);
        }
        Ok(rows.count)
    }

    /// Appends `value`, `exact`, `text_value` and `bool_value`.
    fn value(
        &self,
        value: &ValueRef<'_>,
        declared: Option<ColumnType>,
        out: &mut Vec<u8>,
    ) -> Result<(), String> {
        let kind = declared.unwrap_or_else(|| crate::sink::columns::undeclared(value));
        match kind {
            ColumnType::Float8 | ColumnType::Bigint | ColumnType::Numeric => {
                // What the column of a wide table would not take is refused here too.
                let begin = out.len();
                let fits = match kind {
                    ColumnType::Bigint => PgType::Int8,
                    ColumnType::Numeric => PgType::Numeric(Some(0)),
                    _ => PgType::Float8,
                };
                encode::value(out, value, &fits)?;
                out.truncate(begin);
                encode::value(out, value, &PgType::Float8)?;
                let beyond = match value {
                    ValueRef::Int(number) => number.unsigned_abs() > EXACT,
                    ValueRef::UInt(number) => *number > EXACT,
                    _ => false,
                };
                if beyond {
                    encode::value(out, value, &PgType::Numeric(Some(0)))?;
                } else {
                    encode::null(out);
                }
                encode::null(out);
                encode::null(out);
            }
            ColumnType::Text => {
                encode::null(out);
                encode::null(out);
                encode::value(out, value, &PgType::Text)?;
                encode::null(out);
            }
            ColumnType::Boolean => {
                (0..3).for_each(|_| encode::null(out));
                encode::value(out, value, &PgType::Boolean)?;
            }
        }
        Ok(())
    }
}

/// The rows of one record.
struct Rows<'a> {
    columns: usize,
    labels: &'a [u8],
    /// Where the first row's columns of the record are, up to `quality`.
    head: Option<std::ops::Range<usize>>,
    count: usize,
}

impl Rows<'_> {
    fn begin(&mut self, record: &View<'_>, metric: Option<&str>, out: &mut Vec<u8>) {
        match self.head.clone() {
            Some(head) => out.extend_from_within(head),
            None => {
                let begin = out.len();
                encode::head(out, self.columns, record);
                self.head = Some(begin..out.len());
            }
        }
        let skipped = record.skipped.filter(|_| self.count == 0);
        match skipped.and_then(|skipped| i32::try_from(skipped).ok()) {
            Some(skipped) => encode::int4(out, skipped),
            None => encode::null(out),
        }
        match metric {
            Some(metric) => encode::text(out, metric),
            None => encode::null(out),
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.labels);
        self.count += 1;
    }
}

fn check(name: &str) -> Result<(), Refusal> {
    let reason = if name.is_empty() {
        "a field without a name cannot be a metric"
    } else if name.len() > METRIC_BYTES {
        "the field's name is longer than the 255 bytes of a metric's name"
    } else if name.contains('\0') {
        "the field's name has a NUL character"
    } else {
        return Ok(());
    };
    Err(refusal(&name.replace('\0', "\u{fffd}"), reason))
}

fn refusal(column: &str, reason: &str) -> Refusal {
    Refusal {
        sqlstate: None,
        column: Some(column.to_owned()),
        reason: reason.to_owned(),
    }
}

/// The metrics that were not read, with the reasons; what is no object of texts is kept as it is.
fn reasons(bad: &str) -> Vec<(String, String)> {
    let object: BTreeMap<String, serde_json::Value> = serde_json::from_str(bad).unwrap_or_default();
    object
        .into_iter()
        .map(|(name, reason)| match reason {
            serde_json::Value::String(text) => (name, text),
            other => (name, other.to_string()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each row has as many columns as it says.
    fn whole(mut rest: &[u8], count: usize) {
        for _ in 0..count {
            assert_eq!(rest[..2], 14i16.to_be_bytes());
            rest = &rest[2..];
            for _ in 0..14 {
                let length = i32::from_be_bytes(rest[..4].try_into().unwrap());
                rest = &rest[4 + usize::try_from(length).unwrap_or(0)..];
            }
        }
        assert!(rest.is_empty());
    }

    fn rows(json: &str) -> Result<usize, String> {
        let narrow = Narrow {
            declared: [
                ("energy".to_owned(), ColumnType::Numeric),
                ("closed".to_owned(), ColumnType::Boolean),
                ("serial".to_owned(), ColumnType::Text),
                ("pulses".to_owned(), ColumnType::Bigint),
            ]
            .into(),
            labels: ["site".to_owned()].into(),
        };
        let json = format!(r#"{{"ts":"2000-01-01T00:00:00Z","meter":"m"{json}}}"#);
        let record = View::parse(json.as_bytes());
        assert!(record.is_ok());
        let record = record.unwrap_or_default();
        let mut out = vec![];
        let count = narrow.append(&record, 14, &[0xff; 4], &mut out);
        let said = |refusal: Refusal| format!("{}: {}", refusal.column.unwrap_or_default(), refusal.reason);
        let count = count.map_err(said)?;
        whole(&out, count);
        Ok(count)
    }

    #[test]
    fn a_record_is_a_row_for_each_metric() {
        for (json, count) in [
            ("", 1),
            (r#","site":"north""#, 1),
            (
                r#","v":1,"w":2.5,"site":"north","closed":true,"serial":"x","odd name":"text""#,
                5,
            ),
            (r#","v":1,"v":2"#, 1),
            (r#","quality":"failed","bad":{"v":"timeout","w":"NaN"}"#, 2),
            (
                r#","energy":18446744073709551615,"pulses":-9223372036854775808"#,
                2,
            ),
            (r#","serial":7"#, 1),
        ] {
            assert_eq!(rows(json), Ok(count), "{json}");
        }
    }

    #[test]
    fn what_is_declared_otherwise_is_refused() {
        for (json, says) in [
            (r#","energy":"high""#, "energy: \"high\" is not a number"),
            (r#","energy":1.5"#, "energy: 1.5 is not a whole number"),
            (r#","closed":1"#, "closed: 1 is not true or false"),
            (
                r#","pulses":18446744073709551615"#,
                "pulses: 18446744073709551615 is not a whole number",
            ),
            (r#","":1"#, "without a name"),
            (r#","t":"a\u0000b""#, "t: the text has a NUL"),
            (r#","bad":{"v":"\u0000"}"#, "bad: the text has a NUL"),
        ] {
            let said = rows(json).unwrap_err();
            assert!(said.contains(says), "{said}");
        }
    }
}
