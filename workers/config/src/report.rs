//! What the workers report at `/status`: the contract with the operator and with `corrente`.
//!
//! A worker may add fields for people; these are the ones others rely on.

use corrente_crds::poller::{FailingMeter, MeterCounts};
use serde::{Deserialize, Serialize};

pub use crate::secrets::{SECRETS_PATH, Secrets};

/// The path of the poller's configuration file in its pod.
pub const POLLER_CONFIG_PATH: &str = "/etc/corrente/config/poller.json";
/// The path of the pipeline worker's configuration file in its pod.
pub const PIPELINE_CONFIG_PATH: &str = "/etc/corrente/config/pipeline.json";
/// The folder of the spool in the poller's pod.
pub const SPOOL_PATH: &str = "/var/lib/corrente/spool";
/// The file that holds the sink's connection URL in the pipeline worker's pod.
pub const SINK_URL_PATH: &str = "/etc/corrente/secret/url";

/// What a poller says of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PollerReport {
    /// The meters of this shard. A meter that has not been polled yet counts in `total` alone.
    pub meters: MeterCounts,
    /// Every failing meter, by name.
    #[serde(default)]
    pub failing_meters: Vec<FailingMeter>,
    /// Polls done, failed ones included.
    pub polls: u64,
    /// Slots that were due and could not be polled in time.
    pub skipped: u64,
    /// The spool.
    pub spool: SpoolReport,
}

/// How the spool is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SpoolReport {
    /// The stream's id.
    pub stream: String,
    /// Records written to it.
    pub records: u64,
    /// Records that the broker has not acknowledged yet.
    pub pending: u64,
    /// Bytes on disk.
    pub bytes: u64,
    /// Records evicted by the bound; they are lost.
    pub evicted: u64,
    /// Records that the broker refused for good; they are set aside beside the spool.
    pub refused: u64,
    /// Records that could not be read back: a disk has lost or changed them, and they are lost.
    #[serde(default)]
    pub damaged: u64,
    /// Why the broker does not take records at the moment, where it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// What a pipeline worker says of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PipelineReport {
    /// Partitions that are its own.
    pub partitions: u32,
    /// Messages in them that are not stored yet.
    pub lag: u64,
    /// Rows stored since it started.
    pub rows: u64,
    /// Records dropped because the table has them already.
    pub duplicates: u64,
    /// Records set aside because they are no records or the database refuses them.
    pub dead_lettered: u64,
    /// Records that were no longer in the topic when they were to be read.
    pub gaps: u64,
    /// What stands in the way at the moment, and since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<Trouble>,
    /// In what the tables are not as they were asked for, as sentences: of the one worker that looks after them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tables: Option<Vec<String>>,
}

/// What stands in the way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trouble {
    /// Since when.
    pub since: corrente_record::Timestamp,
    /// What it is, as a sentence.
    pub reason: String,
}
