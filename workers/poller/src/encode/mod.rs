//! How a record is written when it is published: the stored JSON becomes the payload and the headers of a message.
//!
//! The spool holds flat JSON whatever the format is, so that it needs no registry, and a change of the format holds
//! for the records that still wait. [`Encoder`] has no IO:
//! 1. `json` is the stored bytes themselves, neither read nor copied, unless there are [`headers`] to make of them.
//! 2. For the rest the record is parsed and its [`shape`] looked up: its register map's, as far as it has one.
//! 3. [`connect`] carries the schema along; [`avro`] and [`protobuf`] carry the number that a schema registry has
//!    given it. Where that is not known, the encoder says what to ask for ([`EncodeError::Unregistered`]), hears
//!    the answer ([`Encoder::registered`]), and is asked again.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use corrente_config::PollerConfig;
use corrente_crds::output::Format;
use corrente_record::{ParseError, Quality, Record, Timestamp, Value};
use corrente_runtime::broker::Headers;

use self::{
    headers::HeaderMaker,
    shape::{Kind, Shape},
};

pub mod avro;
pub mod connect;
pub mod headers;
pub mod protobuf;
pub mod shape;

/// Most schemas that are kept for records that their register map does not cover. A spool can hold records of many
/// configurations, but those of one come together.
const MOST_INFERRED: usize = 64;

/// A message's payload and headers.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// The payload.
    pub payload: Arc<[u8]>,
    /// The headers; mostly none.
    pub headers: Headers,
}

/// A schema, as a registry is asked to register it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SchemaRequest {
    /// What its versions are kept under: `<topic>-<record name>`, as Confluent's `TopicRecordNameStrategy` has it.
    pub subject: String,
    /// The language it is in.
    pub language: SchemaLanguage,
    /// The schema's text.
    pub schema: String,
}

/// The language of a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SchemaLanguage {
    /// Avro's JSON.
    Avro,
    /// A `.proto` file.
    Protobuf,
}

/// The number of a schema in its registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SchemaId(pub u32);

/// Why a record is not encoded.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// Its schema is not registered yet, as far as the encoder knows.
    #[error("the schema of {} is not registered", .0.subject)]
    Unregistered(Arc<SchemaRequest>),
    /// The stored bytes are no record.
    #[error("the stored bytes are {0}")]
    NotARecord(#[from] ParseError),
    /// A field that every record of the poller has is missing.
    #[error("the stored record has no {0}")]
    Incomplete(&'static str),
}

/// A record with all that the poller writes into every one.
#[derive(Debug)]
pub struct Complete<'a> {
    /// When it was read.
    pub ts: Timestamp,
    /// The meter.
    pub meter: &'a str,
    /// When it was due.
    pub slot: Timestamp,
    /// The stream's id.
    pub stream: &'a str,
    /// The number in the stream.
    pub seq: u64,
    /// How much of the poll succeeded.
    pub quality: Quality,
    /// Slots skipped right before this one.
    pub skipped: u32,
    /// Why metrics are missing, as JSON text.
    pub bad: Option<&'a str>,
    /// Labels and metrics.
    pub fields: &'a [(String, Value)],
}

impl<'a> Complete<'a> {
    fn of(record: &'a Record) -> Result<Self, EncodeError> {
        Ok(Self {
            ts: record.ts,
            meter: &record.meter,
            slot: record.slot.ok_or(EncodeError::Incomplete("slot"))?,
            stream: record
                .stream
                .as_deref()
                .ok_or(EncodeError::Incomplete("stream"))?,
            seq: record.seq.ok_or(EncodeError::Incomplete("seq"))?,
            quality: record.quality.ok_or(EncodeError::Incomplete("quality"))?,
            skipped: record.skipped.unwrap_or(0),
            bad: record.bad.as_deref(),
            fields: &record.fields,
        })
    }
}

/// A shape, and what a format has made of it once for all its records.
#[derive(Debug)]
struct Prepared {
    shape: Shape,
    schema: Schema,
}

#[derive(Debug)]
enum Schema {
    Connect(connect::Envelope),
    Avro(Registered),
    Protobuf(Registered, protobuf::Numbers),
}

#[derive(Debug)]
struct Registered {
    request: Arc<SchemaRequest>,
    id: Option<SchemaId>,
}

impl Registered {
    fn new(topic: &str, shape: &Shape, language: SchemaLanguage, schema: String) -> Self {
        let request = SchemaRequest {
            subject: format!("{topic}-{}", shape.name),
            language,
            schema,
        };
        Self {
            request: Arc::new(request),
            id: None,
        }
    }

    fn id(&self) -> Result<SchemaId, EncodeError> {
        self.id
            .ok_or_else(|| EncodeError::Unregistered(self.request.clone()))
    }
}

impl Schema {
    fn of(shape: &Shape, format: Structured, topic: &str) -> Self {
        match format {
            Structured::Connect => Self::Connect(connect::Envelope::new(shape)),
            Structured::Avro => Self::Avro(Registered::new(
                topic,
                shape,
                SchemaLanguage::Avro,
                avro::schema(shape),
            )),
            Structured::Protobuf => {
                let numbers = protobuf::Numbers::of(shape);
                let schema = protobuf::schema(shape, &numbers);
                Self::Protobuf(
                    Registered::new(topic, shape, SchemaLanguage::Protobuf, schema),
                    numbers,
                )
            }
        }
    }

    fn registered(&mut self) -> Option<&mut Registered> {
        match self {
            Self::Connect(_) => None,
            Self::Avro(registered) | Self::Protobuf(registered, _) => Some(registered),
        }
    }

    fn encode(&self, shape: &Shape, record: &Complete<'_>) -> Result<Vec<u8>, EncodeError> {
        Ok(match self {
            Self::Connect(envelope) => envelope.encode(record),
            Self::Avro(registered) => avro::encode(registered.id()?, shape, record),
            Self::Protobuf(registered, numbers) => protobuf::encode(registered.id()?, shape, numbers, record),
        })
    }
}

/// A format that needs to know what a record is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Structured {
    Connect,
    Avro,
    Protobuf,
}

/// Writes records in a format.
#[derive(Debug)]
pub struct Encoder {
    format: Option<Structured>,
    headers: Option<HeaderMaker>,
    topic: String,
    /// The first is for meters that the configuration does not have.
    maps: Vec<Prepared>,
    /// The number of each meter's map.
    meters: HashMap<String, usize>,
    /// What records need beyond their map's shape.
    inferred: HashMap<(usize, Vec<(String, Kind)>), Prepared>,
}

impl Encoder {
    /// Flat JSON as it is stored, without headers.
    #[must_use]
    pub fn json() -> Self {
        Self {
            format: None,
            headers: None,
            topic: String::new(),
            maps: Vec::new(),
            meters: HashMap::new(),
            inferred: HashMap::new(),
        }
    }

    /// The format and the headers that a configuration asks for.
    #[must_use]
    pub fn new(config: &PollerConfig) -> Self {
        let format = match config.output.format {
            Format::Json => None,
            Format::ConnectJson => Some(Structured::Connect),
            Format::Avro => Some(Structured::Avro),
            Format::Protobuf => Some(Structured::Protobuf),
        };
        let topic = config.output.topic.clone();
        let (maps, meters) = match format {
            None => (Vec::new(), HashMap::new()),
            Some(format) => {
                let (shapes, meters) = shape::shapes(config);
                let prepare = |shape: Shape| Prepared {
                    schema: Schema::of(&shape, format, &topic),
                    shape,
                };
                (shapes.into_iter().map(prepare).collect(), meters)
            }
        };
        Self {
            format,
            headers: HeaderMaker::new(config),
            topic,
            maps,
            meters,
            inferred: HashMap::new(),
        }
    }

    /// Whether a schema registry is needed.
    #[must_use]
    pub fn needs_registry(&self) -> bool {
        matches!(self.format, Some(Structured::Avro | Structured::Protobuf))
    }

    /// Writes a stored record.
    ///
    /// # Errors
    /// [`EncodeError::Unregistered`] where the registry has to be asked first; the rest is for good.
    pub fn encode(&mut self, stored: &Arc<[u8]>) -> Result<Encoded, EncodeError> {
        let headers = match &self.headers {
            None => Headers::new(),
            Some(maker) => maker.make(stored)?,
        };
        let payload = match self.format {
            None => stored.clone(),
            Some(format) => self.structured(format, stored)?.into(),
        };
        Ok(Encoded { payload, headers })
    }

    fn structured(&mut self, format: Structured, stored: &[u8]) -> Result<Vec<u8>, EncodeError> {
        let record = Record::parse(stored)?;
        let complete = Complete::of(&record)?;
        let number = self.meters.get(&record.meter).copied().unwrap_or(0);
        let Some(map) = self.maps.get(number) else {
            // There is always the first.
            return Err(EncodeError::Incomplete("shape"));
        };
        let lacks = map.shape.lacks(&record.fields);
        if lacks.is_empty() {
            return map.schema.encode(&map.shape, &complete);
        }
        if self.inferred.len() >= MOST_INFERRED {
            self.inferred.clear();
        }
        let prepared = match self.inferred.entry((number, lacks)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let shape = map.shape.with(&new.key().1);
                let schema = Schema::of(&shape, format, &self.topic);
                new.insert(Prepared { shape, schema })
            }
        };
        prepared.schema.encode(&prepared.shape, &complete)
    }

    /// The registry has given the schema its number.
    pub fn registered(&mut self, request: &SchemaRequest, id: SchemaId) {
        let prepared = self.maps.iter_mut().chain(self.inferred.values_mut());
        for registered in prepared.filter_map(|prepared| prepared.schema.registered()) {
            if *registered.request == *request {
                registered.id = Some(id);
            }
        }
    }
}

/// What a message of a schema registry's formats begins with: a zero, and the schema's number in four bytes, the
/// highest first (Confluent's wire format).
fn framed(id: SchemaId) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    out.push(0);
    out.extend_from_slice(&id.0.to_be_bytes());
    out
}

#[cfg(test)]
mod tests;
