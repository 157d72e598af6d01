//! What makes a record be stored once, as the pipeline worker is told it.

use corrente_crds::Retention;
use serde::{Deserialize, Serialize};

/// The columns of a key where none are named: a meter has one reading at a time.
pub const DEFAULT_KEY: [&str; 2] = ["meter", "ts"];

/// How repeats are known, what becomes of what cannot be stored, and where to go on from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OnceConfig {
    /// The columns by which a repeat is known; `None` where it is known by stream and seq.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<Vec<String>>,
    /// The topic that dead letters are published to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_letter_topic: Option<String>,
    /// How long the table keeps dead letters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_letter_retention: Option<Retention>,
    /// The name, with its namespace, under which the pipeline stored before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renamed_from: Option<String>,
}

impl OnceConfig {
    /// Whether nothing is out of the ordinary.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
