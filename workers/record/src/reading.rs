//! What a poll gives, and how it becomes the flat JSON of a record.

use std::{collections::BTreeMap, fmt::Write as _, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{Timestamp, Value, value::write_json_string};

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
    pub values: Vec<(Arc<str>, Value)>,
    /// The metrics that were not, with the reason.
    pub bad: Vec<(Arc<str>, String)>,
}

impl Reading {
    /// Appends the record's JSON to `out`: one object, no newline. `stream` is the spool's id and `seq`
    /// the record's number in it, which together name the record for ever.
    pub fn write_json(&self, stream: &str, seq: u64, out: &mut String) {
        // Writing to a String cannot fail, so the results carry nothing.
        let _ = write!(out, "{{\"ts\":\"{}\",\"meter\":", self.ts);
        let _ = write_json_string(out, &self.meter);
        let _ = write!(out, ",\"slot\":\"{}\",\"stream\":", self.slot);
        let _ = write_json_string(out, stream);
        let _ = write!(out, ",\"seq\":{seq},\"quality\":\"{}\"", self.quality.as_str());
        if self.skipped > 0 {
            let _ = write!(out, ",\"skipped\":{}", self.skipped);
        }
        for (name, label) in self.labels.iter() {
            out.push(',');
            let _ = write_json_string(out, name);
            out.push(':');
            let _ = write_json_string(out, label);
        }
        for (name, value) in &self.values {
            out.push(',');
            let _ = write_json_string(out, name);
            out.push(':');
            value.write_json(out);
        }
        if !self.bad.is_empty() {
            out.push_str(",\"bad\":{");
            for (i, (name, reason)) in self.bad.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                let _ = write_json_string(out, name);
                out.push(':');
                let _ = write_json_string(out, reason);
            }
            out.push('}');
        }
        out.push('}');
    }
}
