//! From a MeterPoller to one Deployment and one ConfigMap per shard.
//!
//! The stages, each of which knows nothing of the ones after it:
//! 1. [`dereference`]: what the MeterPoller refers to and has, from the caches.
//! 2. [`validate`]: whether it can be carried out, and if so as what; or what is wrong with it.
//! 3. [`build`]: the objects.
//! 4. [`crate::apply`]: ConfigMaps, then Deployments, where they differ.
//! 5. [`crate::prune`]: what is not wanted any more.
//! 6. [`status`]: the verdict, for people.
//!
//! [`reconcile`] runs them. Stages 2, 3 and the verdict have no client, and are tested as tables.

pub mod awaited;
pub mod build;
pub mod dereference;
pub mod lingering;
pub mod reconcile;
pub mod status;
pub mod unsent;
pub mod validate;
