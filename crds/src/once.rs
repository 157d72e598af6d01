//! What makes a record be stored once: how one that comes twice is known, what becomes of one that cannot be
//! stored, and where a pipeline goes on that had another name.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Retention;

/// How a record that comes twice is known.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[serde(rename_all = "lowercase")]
pub enum Dedupe {
    /// By its stream and seq, which every poller writes: what is at or below the highest seq of its stream is a
    /// repeat. Records without them are told apart by their offsets alone.
    #[default]
    Stream,
    /// By its key, for producers that repeat and number nothing: the table has a unique index over `dedupeKey`.
    /// The first record of a key is kept, whatever a later one says.
    Key,
}

impl Dedupe {
    /// Whether it is the one that is used where none is named.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What becomes of records that cannot be stored. In PostgreSQL they are in `corrente.dead_letters` in any case, each
/// with the reason.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetter {
    /// A topic of the source's cluster that each of them is published to as well, at least once, with headers that
    /// say where it came from and what is wrong. It must be there, or the brokers make it. Sinks without a table for
    /// them always have one: `corrente.<namespace>.<name>.dead-letters` where none is named, made by the worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 249), regex(pattern = r"^[a-zA-Z0-9._-]+$"))]
    pub topic: Option<String>,
    /// How long the table keeps them; until somebody removes them where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
}
