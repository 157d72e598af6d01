//! The poller's configuration file: one shard's share of a MeterPoller, with the register maps it needs.
//!
//! It is JSON, under the key [`FILE`] of an immutable ConfigMap, and stands by itself: a worker needs no
//! API server to read it.

use std::collections::BTreeMap;

use corrente_crds::{
    Duration,
    poller::{Buffer, Endpoint, KafkaOutput},
    profile::RegisterMap,
};
use serde::{Deserialize, Serialize};

use crate::secrets::Secrets;

/// The file's name in the ConfigMap, and under the pod's configuration folder.
pub const FILE: &str = "poller.json";

/// One shard's configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PollerConfig {
    /// The MeterPoller's namespace.
    pub namespace: String,
    /// The MeterPoller's name.
    pub name: String,
    /// The shard's number, from 0.
    pub shard: i32,
    /// How often meters are read that say nothing else; it divides a day.
    pub interval: Duration,
    /// How long to wait for an answer.
    pub timeout: Duration,
    /// How often a request that timed out is sent again.
    pub retries: u32,
    /// The register maps that the meters name, under the keys of [`MapKey`].
    pub maps: BTreeMap<String, RegisterMap>,
    /// The endpoints of this shard. A meter names its map by `profile` or `registerMap`, as in the resource.
    pub endpoints: Vec<Endpoint>,
    /// Where the records go.
    pub output: KafkaOutput,
    /// The spool.
    pub buffer: Buffer,
    /// Where the Secrets are that it names. It is no part of the file: the worker is told by its arguments.
    #[serde(skip)]
    pub secrets: Secrets,
}

/// The key of a register map in [`PollerConfig::maps`]: profiles and inline maps have names of their own.
pub struct MapKey;

impl MapKey {
    /// The key of a MeterProfile's map.
    #[must_use]
    pub fn profile(name: &str) -> String {
        format!("profile/{name}")
    }

    /// The key of an entry of `registerMaps`.
    #[must_use]
    pub fn inline(name: &str) -> String {
        format!("map/{name}")
    }

    /// The key of the map that a meter names; `None` where it names none.
    #[must_use]
    pub fn of(meter: &corrente_crds::poller::Meter) -> Option<String> {
        match (&meter.profile, &meter.register_map) {
            (Some(profile), _) => Some(Self::profile(profile)),
            (None, Some(map)) => Some(Self::inline(map)),
            (None, None) => None,
        }
    }
}
