//! The schema registry: registers a schema, and tells its number.
//!
//! [`http`] is a client of registries with the API of Confluent's.

use crate::encode::{SchemaId, SchemaRequest};

#[cfg(feature = "kafka")]
pub mod http;

/// Why a schema has no number; in every case the records wait, and asking again may help.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// A file of the Secret cannot be used.
    #[error("failed to read {path} for the schema registry: {reason}")]
    Secret {
        /// The file.
        path: String,
        /// Why not.
        reason: String,
    },
    /// It cannot be reached or does not answer.
    #[error("the schema registry {url} does not answer: {reason}")]
    Away {
        /// Its address.
        url: String,
        /// Why not.
        reason: String,
    },
    /// It refuses the schema, as one that is not compatible with what is registered under the subject.
    #[error(
        "the schema registry refuses the schema of {subject}: {reason}; records wait until it takes it, for which the \
         subject's compatibility may be set to NONE, or another topic be named"
    )]
    Refused {
        /// The subject.
        subject: String,
        /// The registry's own words.
        reason: String,
    },
    /// It answers with something else.
    #[error("the schema registry {url} answers {status} for {subject}: {reason}")]
    Unexpected {
        /// Its address.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The subject.
        subject: String,
        /// What it says.
        reason: String,
    },
}

/// Gives schemas their numbers.
pub trait Registry: Send + Sync + 'static {
    /// Registers a schema, unless it is registered already. This blocks.
    ///
    /// # Errors
    /// Where there is no number to be had at the moment.
    fn register(&self, request: &SchemaRequest) -> Result<SchemaId, RegistryError>;
}
