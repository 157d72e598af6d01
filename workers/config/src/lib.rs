//! What the workers are told: their configuration files, and how they follow from the resources.
//!
//! 1. [`poller`] and [`pipeline`] with [`tables`]: the files, which are the contract between the operator and the workers.
//!    The operator writes them into ConfigMaps; `corrente local` hands them over in memory.
//!    Parts of the latter are [`transform`], [`derived`] and [`alerts`].
//! 2. [`problem`]: what is wrong with a resource, as a path and a sentence.
//! 3. [`resolve`]: resources to files, with every check that needs a look at several documents; and
//!    [`conflict`], those that need a look at all MeterPollers.
//! 4. [`manifest`]: a folder of YAML to resources, with every check of the API server, offline.
//! 5. [`report`]: what the workers say of themselves, and the paths they find things under; [`secrets`], those
//!    of what is secret.
//! 6. [`expression`] and [`units`]: what transforms calculate with.
//! 7. [`address`] and [`mod@hash`]: one form for an endpoint's address, and a name for a configuration.

pub mod address;
pub mod alerts;
pub mod conflict;
pub mod derived;
pub mod expression;
pub mod hash;
pub mod manifest;
pub mod once;
pub mod pipeline;
pub mod poller;
pub mod problem;
pub mod report;
pub mod resolve;
pub mod secrets;
pub mod tables;
pub mod transform;
pub mod units;

pub use address::EndpointAddress;
pub use manifest::closest;
pub use pipeline::PipelineConfig;
pub use poller::PollerConfig;
pub use problem::Problem;
pub use resolve::{ResolvedPoller, resolve_pipeline, resolve_poller};
pub use secrets::Secrets;
