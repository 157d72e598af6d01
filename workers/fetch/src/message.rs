//! A message in librdkafka's memory.

use std::{
    borrow::Cow,
    ffi::{CStr, c_void},
    fmt, slice,
};

use rdkafka::{
    bindings::{self, rd_kafka_timestamp_type_t as TimestampType},
    types::{RDKafkaErrorCode, RDKafkaRespErr},
};

/// A message, or an error that came in its place.
pub struct Message<'a> {
    message: &'a bindings::rd_kafka_message_t,
}

impl<'a> Message<'a> {
    /// `message` must be one that librdkafka has given.
    pub(crate) fn new(message: &'a bindings::rd_kafka_message_t) -> Self {
        Self { message }
    }

    /// What went wrong, where this is no message.
    #[must_use]
    pub fn error(&self) -> Option<RDKafkaErrorCode> {
        let error = self.message.err;
        (error != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR).then(|| error.into())
    }

    /// The same in a sentence of librdkafka's; empty where this is a message.
    #[must_use]
    pub fn reason(&self) -> Cow<'a, str> {
        // It stands where a message has its payload.
        let reason = self.error().and_then(|_| self.payload());
        reason.map(String::from_utf8_lossy).unwrap_or_default()
    }

    /// What tells its topic from others while the consumer reads it: quicker to compare than the name.
    #[must_use]
    pub fn topic_id(&self) -> *const () {
        self.message.rkt.cast_const().cast()
    }

    /// Its topic; empty where the error is of none.
    #[must_use]
    pub fn topic(&self) -> &'a str {
        if self.message.rkt.is_null() {
            return "";
        }
        // SAFETY: the message holds its topic.
        let name = unsafe { bindings::rd_kafka_topic_name(self.message.rkt) };
        // SAFETY: a topic's name ends in a zero, and lives as long as the topic.
        unsafe { CStr::from_ptr(name) }.to_str().unwrap_or_default()
    }

    /// Its partition.
    #[must_use]
    pub fn partition(&self) -> i32 {
        self.message.partition
    }

    /// Its place in the partition.
    #[must_use]
    pub fn offset(&self) -> i64 {
        self.message.offset
    }

    /// When it was made, or written to the log, in milliseconds since the Unix epoch, where the broker says so.
    #[must_use]
    pub fn timestamp(&self) -> Option<i64> {
        let mut kind = TimestampType::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: librdkafka only reads the message, and writes the kind.
        let at = unsafe { bindings::rd_kafka_message_timestamp(self.message, &raw mut kind) };
        (at >= 0 && kind != TimestampType::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE).then_some(at)
    }

    /// Its key; `None` where it has none.
    #[must_use]
    pub fn key(&self) -> Option<&'a [u8]> {
        // SAFETY: librdkafka keeps that many bytes there for as long as the message lives.
        unsafe { bytes(self.message.key, self.message.key_len) }
    }

    /// Its payload; `None` where it has none.
    #[must_use]
    pub fn payload(&self) -> Option<&'a [u8]> {
        // SAFETY: librdkafka keeps that many bytes there for as long as the message lives.
        unsafe { bytes(self.message.payload, self.message.len) }
    }
}

impl fmt::Debug for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("topic", &self.topic())
            .field("partition", &self.partition())
            .field("offset", &self.offset())
            .field("error", &self.error())
            .finish_non_exhaustive()
    }
}

/// # Safety
/// Where `begin` is not null, `length` bytes from it must stay as they are for `'a`.
unsafe fn bytes<'a>(begin: *mut c_void, length: usize) -> Option<&'a [u8]> {
    // SAFETY: as this function asks for.
    (!begin.is_null()).then(|| unsafe { slice::from_raw_parts(begin.cast_const().cast(), length) })
}
