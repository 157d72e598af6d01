//! A record read back from JSON.
//!
//! Our own records have every field; records of other producers need only `ts` and `meter`. What is no
//! field of the record's own is a metric or a label: they look alike, and a table does not care.
//!
//! A record in Kafka Connect's envelope, `{"schema":{...},"payload":{...}}`, is known by how it begins. Within it
//! `ts` and `slot` may be milliseconds since the epoch, Connect's `Timestamp`, and `bad` JSON text. The schema is
//! not needed: it says nothing that the values do not. What begins with a zero byte is framed for a schema
//! registry, and is named as that.
//!
//! This is the general way, which says what is wrong; [`View::read`] tries the quick one (`plain`) first.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeSeed, IgnoredAny, MapAccess, Visitor},
};

use crate::{Quality, Timestamp, Value, ValueRef, View};

/// A record that lasts longer than its message; a sink sees a [`View`].
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Record {
    /// When it was read.
    pub ts: Timestamp,
    /// The meter's name.
    pub meter: String,
    /// When the poll was due.
    pub slot: Option<Timestamp>,
    /// The spool's id.
    pub stream: Option<String>,
    /// The record's number in the stream.
    pub seq: Option<u64>,
    /// How much of the poll succeeded.
    pub quality: Option<Quality>,
    /// How many slots right before this one were skipped; `None` where the record does not say, which
    /// from our own poller means none.
    pub skipped: Option<u32>,
    /// Metrics and labels, in the order of the record. JSON nulls are left out.
    pub fields: Vec<(String, Value)>,
    /// Why metrics are missing: a JSON object.
    pub bad: Option<String>,
}

/// Why bytes are not a record.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// Not JSON, or a field of the wrong sort.
    #[error("not a record: {0}")]
    Json(#[from] serde_json::Error),
    /// Avro or Protobuf, framed with the number of a schema.
    #[error(
        "not a record that can be read here: it is framed for a schema registry (Avro or Protobuf), and only the formats \
         json and connect-json are read"
    )]
    Framed,
}

/// How Connect's envelope begins.
const ENVELOPE: &[u8] = b"{\"schema\":";

/// A record in Connect's envelope.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(rename = "schema")]
    _schema: IgnoredAny,
    #[serde(borrow, deserialize_with = "enveloped")]
    payload: View<'a>,
}

fn enveloped<'de, D: Deserializer<'de>>(deserializer: D) -> Result<View<'de>, D::Error> {
    let mut view = View::default();
    deserializer.deserialize_map(RecordVisitor {
        view: &mut view,
        enveloped: true,
    })?;
    Ok(view)
}

impl Record {
    /// Reads one record.
    ///
    /// # Errors
    /// As for [`View::parse`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        Ok(View::parse(bytes)?.to_record())
    }
}

/// Fills `view` with the record in `bytes`, whatever its shape.
pub(crate) fn read<'a>(bytes: &'a [u8], view: &mut View<'a>) -> Result<(), ParseError> {
    if bytes.first() == Some(&0) {
        return Err(ParseError::Framed);
    }
    if bytes.starts_with(ENVELOPE) {
        *view = serde_json::from_slice::<Envelope>(bytes)?.payload;
        return Ok(());
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    json.deserialize_map(RecordVisitor {
        view,
        enveloped: false,
    })?;
    json.end()?;
    Ok(())
}

struct RecordVisitor<'v, 'a> {
    view: &'v mut View<'a>,
    /// Whether times and `bad` may be as Connect has them. Elsewhere a bare number is no time: it might be seconds.
    enveloped: bool,
}

/// A time in Connect's envelope.
#[derive(Deserialize)]
#[serde(untagged)]
enum Time {
    Millis(i64),
    Text(Timestamp),
}

/// `bad` in Connect's envelope.
#[derive(Deserialize)]
#[serde(untagged)]
enum Bad {
    Text(String),
    Object(serde_json::Map<String, serde_json::Value>),
}

impl RecordVisitor<'_, '_> {
    fn time<'de, A: MapAccess<'de>>(&self, map: &mut A) -> Result<Option<Timestamp>, A::Error> {
        if !self.enveloped {
            return map.next_value();
        }
        Ok(map.next_value::<Option<Time>>()?.map(|time| match time {
            Time::Millis(millis) => Timestamp(millis),
            Time::Text(time) => time,
        }))
    }

    fn bad<'de, A: MapAccess<'de>>(&self, map: &mut A) -> Result<Option<String>, A::Error> {
        let object = if self.enveloped {
            match map.next_value::<Option<Bad>>()? {
                None => return Ok(None),
                Some(Bad::Object(object)) => object,
                Some(Bad::Text(text)) => serde_json::from_str(&text)
                    .map_err(|error| de::Error::custom(format!("bad is no JSON object: {error}")))?,
            }
        } else {
            match map.next_value()? {
                None => return Ok(None),
                Some(object) => object,
            }
        };
        Ok(Some(serde_json::Value::Object(object).to_string()))
    }
}

impl<'a> Visitor<'a> for RecordVisitor<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        let (mut ts, mut meter) = (None, None);
        while let Some(Text(key)) = map.next_key()? {
            match &*key {
                "ts" => ts = self.time(&mut map)?,
                "meter" => meter = Some(map.next_value::<Text>()?.0),
                "slot" => self.view.slot = self.time(&mut map)?,
                "stream" => self.view.stream = map.next_value::<Option<Text>>()?.map(|Text(stream)| stream),
                "seq" => self.view.seq = map.next_value()?,
                "quality" => self.view.quality = map.next_value()?,
                "skipped" => self.view.skipped = map.next_value()?,
                "bad" => self.view.bad = self.bad(&mut map)?.map(Cow::Owned),
                _ => {
                    if let Some(value) = map.next_value_seed(Field(&key))? {
                        self.view.fields.push((key, value));
                    }
                }
            }
        }
        self.view.ts = ts.ok_or_else(|| de::Error::missing_field("ts"))?;
        self.view.meter = meter.ok_or_else(|| de::Error::missing_field("meter"))?;
        Ok(())
    }
}

/// Text, borrowed where there are no escapes in it. (serde's own `Cow` always copies within an `Option`.)
struct Text<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

/// A metric or a label, by its name; null is none.
struct Field<'n>(&'n str);

impl<'de> DeserializeSeed<'de> for Field<'_> {
    type Value = Option<ValueRef<'de>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Field<'_> {
    type Value = Option<ValueRef<'de>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a value of field \"{}\"", self.0)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Some(ValueRef::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(Some(ValueRef::Int(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(Some(
            i64::try_from(value).map_or(ValueRef::UInt(value), ValueRef::Int),
        ))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
        Ok(Some(ValueRef::Float(value)))
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Self::Value, E> {
        Ok(Some(ValueRef::Text(Cow::Borrowed(value))))
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(Some(ValueRef::Text(Cow::Owned(value.to_owned()))))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, _: A) -> Result<Self::Value, A::Error> {
        Err(self.not_flat())
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<Self::Value, A::Error> {
        Err(self.not_flat())
    }
}

impl Field<'_> {
    fn not_flat<E: de::Error>(&self) -> E {
        E::custom(format!(
            "field \"{}\" is a list or an object; records are flat",
            self.0
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use super::*;
    use crate::Reading;

    #[test]
    fn what_is_written_is_read_back() {
        let reading = Reading {
            ts: Timestamp(1_795_213_200_123),
            meter: "feeder-12".into(),
            slot: Timestamp(1_795_213_200_000),
            quality: Quality::Partial,
            skipped: 3,
            labels: Arc::new(BTreeMap::from([(
                "tariff".to_owned(),
                "a \"quoted\"\nname".to_owned(),
            )])),
            values: vec![
                ("voltage_l1_n".into(), Value::Float(229.8)),
                ("energy_active_import".into(), Value::UInt(u64::MAX)),
                ("breaker_closed".into(), Value::Bool(true)),
                ("active_power_total".into(), Value::Int(-12)),
            ],
            bad: vec![("current_l1".into(), "not a number".to_owned())],
        };
        let mut json = Vec::new();
        reading.write_json("k7f3q2m9w4x1c", 8123, &mut json);
        let record = Record::parse(&json).unwrap();
        assert_eq!(record.ts, reading.ts);
        assert_eq!(record.slot, Some(reading.slot));
        assert_eq!(record.meter, "feeder-12");
        assert_eq!(
            (record.stream.as_deref(), record.seq),
            (Some("k7f3q2m9w4x1c"), Some(8123))
        );
        assert_eq!(record.quality, Some(Quality::Partial));
        assert_eq!(record.skipped, Some(3));
        assert_eq!(record.bad.as_deref(), Some(r#"{"current_l1":"not a number"}"#));
        let fields: BTreeMap<_, _> = record.fields.into_iter().collect();
        assert_eq!(fields["tariff"], Value::Text("a \"quoted\"\nname".to_owned()));
        assert_eq!(fields["voltage_l1_n"], Value::Float(229.8));
        assert_eq!(fields["energy_active_import"], Value::UInt(u64::MAX));
        assert_eq!(fields["breaker_closed"], Value::Bool(true));
        assert_eq!(fields["active_power_total"], Value::Int(-12));
    }

    #[test]
    fn says_what_is_wrong_with_the_rest() {
        for (bytes, says) in [
            (&b"hello"[..], "not a record"),
            (b"[1,2]", "a JSON object"),
            (br#"{"meter":"m"}"#, "missing field `ts`"),
            (br#"{"ts":"2026-11-20T22:20:00Z"}"#, "missing field `meter`"),
            (br#"{"ts":"noon","meter":"m"}"#, "RFC 3339"),
            (
                br#"{"ts":"2026-11-20T22:20:00Z","meter":"m","x":[1]}"#,
                "records are flat",
            ),
            (
                br#"{"ts":"2026-11-20T22:20:00Z","meter":"m","skipped":-1}"#,
                "invalid value: integer `-1`",
            ),
            (
                br#"{"ts":"2026-11-20T22:20:00Z","meter":"m"} x"#,
                "trailing characters",
            ),
            (b"\xff\xfe", "not a record"),
            (b"\0\0\0\0\x07rest", "framed for a schema registry"),
            (br#"{"schema":{},"payload":null}"#, "a JSON object"),
            (br#"{"schema":{}}"#, "missing field `payload`"),
            (
                br#"{"schema":{},"payload":{"ts":1,"meter":"m","bad":"x"}}"#,
                "bad is no JSON object",
            ),
            (br#"{"ts":1795213200123,"meter":"m"}"#, "invalid type: integer"),
        ] {
            let error = Record::parse(bytes).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn an_envelope_of_connect_is_opened() {
        let flat = br#"{"ts":"2026-11-20T22:20:00.123Z","meter":"m","slot":"2026-11-20T22:20:00Z","stream":"s","seq":7,
            "quality":"partial","skipped":1,"bad":{"a":"NaN"},"b":1.5,"n":18446744073709551615}"#;
        let millis = "2026-11-20T22:20:00.123Z".parse::<Timestamp>().unwrap().0;
        let enveloped = format!(
            r#"{{"schema":{{"type":"struct","fields":[]}},"payload":{{"ts":{millis},"meter":"m","slot":{},"stream":"s",
            "seq":7,"quality":"partial","skipped":1,"bad":"{{\"a\":\"NaN\"}}","b":1.5,"n":18446744073709551615}}}}"#,
            millis - 123
        );
        assert_eq!(
            Record::parse(enveloped.as_bytes()).unwrap(),
            Record::parse(flat).unwrap()
        );
        // Whoever wraps our flat JSON as it is may do so.
        let wrapped = [&br#"{"schema":null,"payload":"#[..], flat, b"}"].concat();
        assert_eq!(Record::parse(&wrapped).unwrap(), Record::parse(flat).unwrap());
    }

    #[test]
    fn a_foreign_record_needs_little() {
        let record = Record::parse(br#"{"ts":"2026-11-20T22:20:00Z","meter":"m","a":null,"b":1.0}"#).unwrap();
        assert_eq!(record.fields, vec![("b".to_owned(), Value::Float(1.0))]);
        assert_eq!((record.seq, record.skipped), (None, None));
    }

    #[test]
    fn no_skipped_slots_are_not_written() {
        let reading = Reading {
            ts: Timestamp(0),
            meter: "m".into(),
            slot: Timestamp(0),
            quality: Quality::Good,
            skipped: 0,
            labels: Arc::default(),
            values: vec![],
            bad: vec![],
        };
        let mut json = Vec::new();
        reading.write_json("s", 1, &mut json);
        assert_eq!(
            std::str::from_utf8(&json),
            Ok(
                r#"{"ts":"1970-01-01T00:00:00.000Z","meter":"m","slot":"1970-01-01T00:00:00.000Z","stream":"s","seq":1,"quality":"good"}"#
            )
        );
        assert_eq!(Record::parse(&json).unwrap().skipped, None);
    }
}
