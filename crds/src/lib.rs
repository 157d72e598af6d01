//! The custom resources of Corrente, `corrente.dev/v1alpha1`.
//!
//! Three kinds, in the order in which a site writes them:
//! 1. [`MeterProfile`](profile::MeterProfile): the register map of a meter model, written once.
//! 2. [`MeterPoller`](poller::MeterPoller): which meters to read, where, how often, and where to publish.
//! 3. [`TelemetryPipeline`](pipeline::TelemetryPipeline): which topics to store, and where.
//!
//! The types are the single source: the CRD YAML in `crds/yaml/` is generated from them by the
//! `crdgen` binary and checked against them by a test. What one document can say wrong by itself is
//! refused by the schema or by a CEL rule, with a sentence that says what to change; what needs a look
//! at several documents is checked by `corrente-config`.

#![allow(
    clippy::duplicated_attributes,
    reason = "printer columns share their type, and the lint takes the arguments of each for attributes"
)]

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

pub mod alerts;
#[cfg(feature = "cases")]
pub mod cases;
pub mod common;
pub mod derived;
pub mod duration;
pub mod generate;
pub mod kafka;
pub mod once;
pub mod output;
pub mod pipeline;
pub mod poller;
pub mod profile;
mod schema;
pub mod sinks;
pub mod tables;
pub mod transform;

pub use common::{GROUP, VERSION};
pub use duration::{Duration, Retention};
pub use pipeline::{TelemetryPipeline, TelemetryPipelineSpec, TelemetryPipelineStatus};
pub use poller::{MeterPoller, MeterPollerSpec, MeterPollerStatus};
pub use profile::{MeterProfile, MeterProfileSpec};

/// The three CRDs, in the order in which they should be applied.
///
/// These are the ones to apply and to validate against: `MeterProfile::crd()` and its like come from the
/// derive alone, without the last touches.
#[must_use]
pub fn all() -> Vec<CustomResourceDefinition> {
    [MeterProfile::crd(), MeterPoller::crd(), TelemetryPipeline::crd()]
        .into_iter()
        .map(schema::finish)
        .collect()
}
