//! Headers of messages, where they are asked for.
//!
//! **CloudEvents** in binary mode (Kafka Protocol Binding 1.0.2, section 3.2): the payload is the event's data as it
//! is, the attributes are headers. `ce_id` is the record's place in its stream, and `ce_source` its MeterPoller:
//! together they name the record for ever, however often it is sent.
//!
//! **`traceparent`** (W3C Trace Context, level 1): each record is a trace of its own, whose id is a hash of stream
//! and seq, so that a record that is sent again is in the same trace. The poller records no span, and says so: the
//! sampled flag is not set, and whether a trace is kept is for the consumer's sampler to decide, by the id for
//! instance, whose bits are evenly spread.

use corrente_config::PollerConfig;
use corrente_crds::output::Format;
use corrente_record::{ParseError, Timestamp};
use corrente_runtime::broker::Headers;
use serde::Deserialize;
use xxhash_rust::xxh3;

use super::EncodeError;

/// The type of every event.
const TYPE: &str = "dev.corrente.reading.v1";

/// Makes the headers of records.
#[derive(Debug)]
pub struct HeaderMaker {
    cloud_events: Option<CloudEvents>,
    traceparent: bool,
}

#[derive(Debug)]
struct CloudEvents {
    source: String,
    content_type: &'static str,
}

/// What the headers need of a record.
#[derive(Deserialize)]
struct Identity<'a> {
    ts: Timestamp,
    #[serde(borrow)]
    meter: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    stream: std::borrow::Cow<'a, str>,
    seq: u64,
}

impl HeaderMaker {
    /// What a configuration asks for; `None` where that is nothing.
    #[must_use]
    pub fn new(config: &PollerConfig) -> Option<Self> {
        let wanted = config.output.headers;
        let cloud_events = wanted.cloud_events.then(|| CloudEvents {
            source: format!("/corrente/{}/{}", config.namespace, config.name),
            content_type: match config.output.format {
                Format::Json | Format::ConnectJson => "application/json",
                Format::Avro => "application/avro",
                Format::Protobuf => "application/protobuf",
            },
        });
        (wanted.cloud_events || wanted.traceparent).then_some(Self {
            cloud_events,
            traceparent: wanted.traceparent,
        })
    }

    /// The headers of a stored record.
    ///
    /// # Errors
    /// Where the bytes are no record of the poller's.
    pub fn make(&self, stored: &[u8]) -> Result<Headers, EncodeError> {
        let identity: Identity<'_> = serde_json::from_slice(stored).map_err(ParseError::from)?;
        let id = format!("{}/{}", identity.stream, identity.seq);
        let mut headers = Headers::new();
        if self.traceparent {
            headers.push(("traceparent", traceparent(&id).into_bytes()));
        }
        if let Some(events) = &self.cloud_events {
            headers.extend([
                ("ce_specversion", b"1.0".to_vec()),
                ("ce_id", id.into_bytes()),
                ("ce_source", events.source.clone().into_bytes()),
                ("ce_type", TYPE.into()),
                ("ce_subject", identity.meter.into_owned().into_bytes()),
                ("ce_time", identity.ts.to_string().into_bytes()),
                ("content-type", events.content_type.into()),
            ]);
        }
        Ok(headers)
    }
}

/// Version 00, the trace's id, the parent's, no flags. Ids of zeros alone are invalid, so that a bit is set where
/// that should ever come out.
fn traceparent(id: &str) -> String {
    let trace = xxh3::xxh3_128(id.as_bytes()).max(1);
    let parent = xxh3::xxh3_64_with_seed(id.as_bytes(), 1).max(1);
    format!("00-{trace:032x}-{parent:016x}-00")
}
