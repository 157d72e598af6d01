//! The Corrente operator: from MeterPollers and TelemetryPipelines to running workers.
//!
//! From the outside in:
//! 1. [`cli`] and [`manager`]: the process, and the parts that run in it.
//! 2. [`watches`] and [`context`]: the caches, and what is looked at when they change.
//! 3. [`poller`] and [`pipeline`]: a reconciler per kind, along dereference, validate, build, apply,
//!    prune, status.
//! 4. [`handover`]: the gate that lets a poller pod run when nobody else holds its gateways.
//! 5. [`sharding`], [`claims`], [`naming`], [`conditions`], [`difference`]: what is decided without a cluster.
//! 6. [`mod@apply`], [`mod@prune`], [`status`], [`events`], [`observe`]: what touches it.
//!
//! Nothing that matters is kept in this process: it can be killed at any moment and started anew. While it
//! is away, pollers and pipelines go on; what waits at the handover gate waits longer.

pub mod apply;
pub mod backoff;
pub mod claims;
pub mod cli;
pub mod conditions;
pub mod context;
pub mod crds;
pub mod difference;
pub mod events;
pub mod handover;
pub mod health;
pub mod manager;
pub mod memory;
pub mod naming;
pub mod nodes;
pub mod observe;
pub mod pipeline;
pub mod pods;
pub mod podstate;
pub mod poller;
pub mod profiles;
pub mod prune;
pub mod quantity;
pub mod secrets;
pub mod sharding;
pub mod status;
pub mod telemetry;
pub mod vocabulary;
pub mod watches;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod golden;
