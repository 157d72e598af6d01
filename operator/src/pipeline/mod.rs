//! From a TelemetryPipeline to a Deployment and a ConfigMap.
//!
//! The stages are those of [`crate::poller`]: [`dereference`], [`validate`], [`build`], apply, prune,
//! [`status`]; [`reconcile`] runs them. Pipeline pods need no handover: the database decides which of them
//! may store what, so they are replaced one by one.

pub mod build;
pub mod dereference;
pub mod reconcile;
pub mod status;
pub mod validate;
