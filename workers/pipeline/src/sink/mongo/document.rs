//! Records as documents.
//!
//! `_id` is the record's name ([`crate::sink::record_id`]). Times are dates. Numbers are doubles unless a column is
//! declared `bigint` or `numeric`: these are 64-bit whole numbers, and beyond them decimals, which compare with
//! the others by their value. `bad` is a document of its own.

use std::collections::BTreeMap;

use corrente_crds::pipeline::ColumnType;
use corrente_record::{Timestamp, ValueRef, View};
use mongodb::bson::{Bson, DateTime, Decimal128, Document};

use crate::batch::Refusal;

/// A record's document.
///
/// # Errors
/// Which field cannot be stored, and why.
pub fn document(
    id: String,
    record: &View<'_>,
    declared: &BTreeMap<String, ColumnType>,
) -> Result<Document, Refusal> {
    let date = |time: Timestamp| Bson::DateTime(DateTime::from_millis(time.0));
    let mut document = Document::new();
    document.insert("_id", id);
    document.insert("ts", date(record.ts));
    document.insert("meter", &*record.meter);
    if let Some(slot) = record.slot {
        document.insert("slot", date(slot));
    }
    if let Some(stream) = &record.stream {
        document.insert("stream", &**stream);
    }
    if let Some(seq) = record.seq.and_then(|seq| i64::try_from(seq).ok()) {
        document.insert("seq", seq);
    }
    if let Some(quality) = record.quality {
        document.insert("quality", quality.as_str());
    }
    if let Some(skipped) = record.skipped {
        document.insert("skipped", i64::from(skipped));
    }
    if let Some(bad) = &record.bad {
        document.insert("bad", reasons(bad));
    }
    for (name, value) in &record.fields {
        let refuse = |reason: String| Refusal {
            sqlstate: None,
            column: Some(name.replace('\0', "\u{fffd}")),
            reason,
        };
        check(name).map_err(|reason| refuse(reason.to_owned()))?;
        let stored = fit(value, declared.get(&**name).copied())
            .map_err(|wanted| refuse(format!("{value} is not {wanted}")))?;
        document.insert(&**name, stored);
    }
    Ok(document)
}

/// Names that MongoDB takes and then cannot be asked for, or keeps for itself.
fn check(name: &str) -> Result<(), &'static str> {
    if name.is_empty() || name == "_id" {
        Err("MongoDB keeps this name for itself")
    } else if name.starts_with('$') || name.contains(['.', '\0']) {
        Err("a field's name cannot begin with $, and cannot have a dot or a NUL character in it")
    } else {
        Ok(())
    }
}

fn fit(value: &ValueRef<'_>, declared: Option<ColumnType>) -> Result<Bson, &'static str> {
    match (declared, value) {
        (Some(ColumnType::Text) | None, ValueRef::Text(text)) => Ok(Bson::String(text.clone().into_owned())),
        (Some(ColumnType::Text), other) => Ok(Bson::String(other.to_string())),
        (Some(ColumnType::Boolean) | None, ValueRef::Bool(bit)) => Ok(Bson::Boolean(*bit)),
        (Some(ColumnType::Boolean), _) => Err("true or false"),
        (Some(ColumnType::Bigint | ColumnType::Numeric), ValueRef::Int(number)) => Ok(Bson::Int64(*number)),
        (Some(ColumnType::Bigint), ValueRef::UInt(number)) => i64::try_from(*number)
            .map(Bson::Int64)
            .map_err(|_| "a whole number of 64 bits"),
        (Some(ColumnType::Numeric), ValueRef::UInt(number)) => match i64::try_from(*number) {
            Ok(number) => Ok(Bson::Int64(number)),
            Err(_) => {
                let decimal = number.to_string().parse::<Decimal128>();
                decimal.map(Bson::Decimal128).map_err(|_| "a number")
            }
        },
        (Some(ColumnType::Bigint | ColumnType::Numeric), _) => Err("a whole number of 64 bits"),
        (Some(ColumnType::Float8) | None, number) => number.as_f64().map(Bson::Double).ok_or("a number"),
    }
}

/// `bad` as a document, where its names can be in one.
fn reasons(bad: &str) -> Bson {
    let parsed: Option<BTreeMap<String, String>> = serde_json::from_str(bad).ok();
    match parsed {
        Some(reasons) if reasons.keys().all(|name| check(name).is_ok()) => Bson::Document(
            reasons
                .into_iter()
                .map(|(name, reason)| (name, Bson::String(reason)))
                .collect(),
        ),
        _ => Bson::String(bad.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use mongodb::bson::doc;

    use super::*;

    fn of(json: &str) -> Result<Document, Refusal> {
        let declared = BTreeMap::from([
            ("energy".to_owned(), ColumnType::Numeric),
            ("count".to_owned(), ColumnType::Bigint),
            ("serial".to_owned(), ColumnType::Text),
        ]);
        let json = format!(r#"{{"ts":"1970-01-01T00:00:01.5Z","meter":"m",{json}}}"#);
        document(
            "s/1".to_owned(),
            &View::parse(json.as_bytes()).unwrap_or_default(),
            &declared,
        )
    }

    #[test]
    fn a_record_is_a_document() {
        let found = of(
            r#""slot":"1970-01-01T00:00:01Z","stream":"s","seq":1,"quality":"partial","skipped":2,
                          "bad":{"w":"NaN"},"v":7,"energy":18446744073709551615,"count":-1,"serial":12,"on":true,"site":"a""#,
        );
        let decimal: Decimal128 = "18446744073709551615".parse().unwrap();
        let expected = doc! {
            "_id": "s/1", "ts": DateTime::from_millis(1500), "meter": "m", "slot": DateTime::from_millis(1000),
            "stream": "s", "seq": 1i64, "quality": "partial", "skipped": 2i64, "bad": {"w": "NaN"},
            "v": 7.0, "energy": decimal, "count": -1i64, "serial": "12", "on": true, "site": "a",
        };
        assert_eq!(found, Ok(expected));
    }

    #[test]
    fn what_cannot_be_stored_is_refused_with_its_name() {
        for (json, column, says) in [
            (r#""count":18446744073709551615"#, "count", "64 bits"),
            (r#""count":1.5"#, "count", "1.5 is not"),
            (r#""energy":"much""#, "energy", "64 bits"),
            (r#""$v":1"#, "$v", "begin with $"),
            (r#""a.b":1"#, "a.b", "dot"),
            (r#""_id":1"#, "_id", "for itself"),
        ] {
            let refusal = of(json).unwrap_err();
            assert_eq!(refusal.column.as_deref(), Some(column));
            assert!(refusal.reason.contains(says), "{refusal:?}");
        }
    }
}
