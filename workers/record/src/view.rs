//! A record as it lies in its message: nothing is copied that can be pointed to.
//!
//! A worker that stores hundreds of thousands of records a second cannot allocate for each of their values. So
//! [`View`] borrows from the message, and one view is filled again and again by a [`Reader`]. What lasts longer
//! than the message is a [`Record`].

use std::{borrow::Cow, fmt};

use crate::{ParseError, Quality, Reader, Record, Timestamp, Value};

/// The value of a metric or a label, borrowed where that is possible; see [`Value`].
#[derive(Clone, Debug, PartialEq)]
pub enum ValueRef<'a> {
    /// A bit.
    Bool(bool),
    /// A signed whole number.
    Int(i64),
    /// An unsigned whole number.
    UInt(u64),
    /// A number with a fraction; always finite.
    Float(f64),
    /// Text.
    Text(Cow<'a, str>),
}

impl ValueRef<'_> {
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

    /// The value on its own.
    #[must_use]
    pub fn to_value(&self) -> Value {
        match self {
            Self::Bool(v) => Value::Bool(*v),
            Self::Int(v) => Value::Int(*v),
            Self::UInt(v) => Value::UInt(*v),
            Self::Float(v) => Value::Float(*v),
            Self::Text(v) => Value::Text(v.clone().into_owned()),
        }
    }
}

impl<'a> From<&'a Value> for ValueRef<'a> {
    fn from(value: &'a Value) -> Self {
        match value {
            Value::Bool(v) => Self::Bool(*v),
            Value::Int(v) => Self::Int(*v),
            Value::UInt(v) => Self::UInt(*v),
            Value::Float(v) => Self::Float(*v),
            Value::Text(v) => Self::Text(Cow::Borrowed(v)),
        }
    }
}

impl fmt::Display for ValueRef<'_> {
    /// As JSON writes it; see [`Value`]'s.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(v) => write!(f, "{v}"),
            Self::Int(v) => write!(f, "{v}"),
            Self::UInt(v) => write!(f, "{v}"),
            Self::Float(v) => write!(f, "{v}"),
            Self::Text(v) => crate::value::write_json_string(f, v),
        }
    }
}

/// A record as a sink sees it, borrowed from its message; see [`Record`].
#[derive(Clone, Debug, PartialEq, Default)]
pub struct View<'a> {
    /// When it was read.
    pub ts: Timestamp,
    /// The meter's name.
    pub meter: Cow<'a, str>,
    /// When the poll was due.
    pub slot: Option<Timestamp>,
    /// The spool's id.
    pub stream: Option<Cow<'a, str>>,
    /// The record's number in the stream.
    pub seq: Option<u64>,
    /// How much of the poll succeeded.
    pub quality: Option<Quality>,
    /// How many slots right before this one were skipped; `None` where the record does not say, which
    /// from our own poller means none.
    pub skipped: Option<u32>,
    /// Metrics and labels, in the order of the record. JSON nulls are left out.
    pub fields: Vec<(Cow<'a, str>, ValueRef<'a>)>,
    /// Why metrics are missing: a JSON object.
    pub bad: Option<Cow<'a, str>>,
}

impl<'a> View<'a> {
    /// Reads one record.
    ///
    /// # Errors
    /// Where the bytes are not one JSON object, `ts` or `meter` is missing, or a field has the wrong type;
    /// the message says which and where.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let mut view = Self::default();
        Reader::once().read(bytes, &mut view)?;
        Ok(view)
    }

    /// Empties it, and keeps its room.
    pub(crate) fn clear(&mut self) {
        let mut fields = std::mem::take(&mut self.fields);
        fields.clear();
        *self = Self {
            fields,
            ..Self::default()
        };
    }

    /// The value of a metric or label; the last one where a name comes twice.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&ValueRef<'a>> {
        let found = self.fields.iter().rev().find(|(field, _)| field == name);
        found.map(|(_, value)| value)
    }

    /// The record on its own.
    #[must_use]
    pub fn to_record(&self) -> Record {
        Record {
            ts: self.ts,
            meter: self.meter.clone().into_owned(),
            slot: self.slot,
            stream: self.stream.clone().map(Cow::into_owned),
            seq: self.seq,
            quality: self.quality,
            skipped: self.skipped,
            fields: self
                .fields
                .iter()
                .map(|(name, value)| (name.clone().into_owned(), value.to_value()))
                .collect(),
            bad: self.bad.clone().map(Cow::into_owned),
        }
    }
}
