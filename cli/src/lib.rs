//! `corrente`, the command line: what a metering engineer does without a cluster.
//!
//! 1. [`validate`]: is it right? The rules of the API server and of the operator, offline.
//! 2. [`plan`]: how is it read, and how long does a cycle take?
//! 3. [`read`]: poll once and show the decoded values beside the raw registers.
//! 4. [`simulate`]: serve the meters of the manifests.
//! 5. [`local`]: the whole chain in one process.
//! 6. [`dead_letters`]: what a pipeline could not store: shown, replayed, removed. It needs the database alone.
//!
//! The others begin with [`site`]: manifests become the same configuration files that the operator hands
//! to the workers. [`library`] has the meter models that the program brings along.

pub mod dead_letters;
pub mod library;
pub mod local;
pub mod plan;
pub mod read;
pub mod simulate;
pub mod site;
pub mod validate;
