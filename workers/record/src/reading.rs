//! What a poll gives, and how it becomes the flat JSON of a record.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{Name, Timestamp, Value, json::Out, value::write_json_string};

/// How much of a poll succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quality {
    /// Every value was read.
    Good,
    /// Some values were read; the others are named in `bad`.
    Partial,
    /// No value was read. The record is made all the same, so that the history tells *not read* from *not arrived*.
    Failed,
}

impl Quality {
    /// The word in the record.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Partial => "partial",
            Self::Failed => "failed",
        }
    }
}

/// One poll of one meter, before it has its place in a stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// When the last value was read.
    pub ts: Timestamp,
    /// The meter's name; the key of the record.
    pub meter: Arc<str>,
    /// When the poll was due: a multiple of the interval since the epoch.
    pub slot: Timestamp,
    /// How much of it succeeded.
    pub quality: Quality,
    /// How many slots right before this one were skipped, because an earlier poll was not over or its turn
    /// never came: they have no records of their own, and with this every slot is accounted for.
    pub skipped: u32,
    /// The meter's labels.
    pub labels: Arc<BTreeMap<String, String>>,
    /// The metrics that were read, in the order of the map.
    pub values: Vec<(Name, Value)>,
    /// The metrics that were not, with the reason.
    pub bad: Vec<(Name, String)>,
}

impl Reading {
    /// Appends the record's JSON to `out`: one object, no newline. `stream` is the spool's id and `seq`
    /// the record's number in it, which together name the record for ever.
    pub fn write_json(&self, stream: &str, seq: u64, out: &mut Vec<u8>) {
        let mut out = Out::after(out);
        // Writing to memory cannot fail.
        let _ = self.write(stream, seq, &mut out);
        out.done();
    }

    fn write(&self, stream: &str, seq: u64, out: &mut Out<'_>) -> fmt::Result {
        out.write_str("{\"ts\":\"")?;
        out.time(self.ts);
        out.write_str("\",\"meter\":")?;
        write_json_string(out, &self.meter)?;
        out.write_str(",\"slot\":\"")?;
        out.time(self.slot);
        out.write_str("\",\"stream\":")?;
        write_json_string(out, stream)?;
        out.write_str(",\"seq\":")?;
        out.whole(seq);
        out.write_str(",\"quality\":\"")?;
        out.write_str(self.quality.as_str())?;
        out.write_char('"')?;
        if self.skipped > 0 {
            out.write_str(",\"skipped\":")?;
            out.whole(self.skipped.into());
        }
        for (name, label) in self.labels.iter() {
            out.write_char(',')?;
            write_json_string(out, name)?;
            out.write_char(':')?;
            write_json_string(out, label)?;
        }
        for (name, value) in &self.values {
            out.member(name, value);
        }
        if !self.bad.is_empty() {
            out.write_str(",\"bad\":{")?;
            for (i, (name, reason)) in self.bad.iter().enumerate() {
                // The first has no comma before it.
                out.write_str(name.as_member().get(usize::from(i == 0)..).unwrap_or_default())?;
                write_json_string(out, reason)?;
            }
            out.write_char('}')?;
        }
        out.write_char('}')
    }
}
