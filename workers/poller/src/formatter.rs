//! Between the publisher and the [`crate::encode`]r: asks the schema registry where the encoder does not know a
//! schema's number.
//!
//! One schema is asked for at a time, on a thread that may block, while the publisher goes on hearing deliveries.
//! Records whose schema has no number yet are not published, nor are those after them, because order counts; they
//! wait in the spool, and why is said as where the broker is away.

use std::sync::Arc;

use tokio::task::JoinHandle;

use crate::{
    encode::{EncodeError, Encoded, Encoder, SchemaId, SchemaRequest},
    registry::{Registry, RegistryError},
};

/// Writes records, with a registry at hand where the format needs one.
pub struct Formatter {
    encoder: Encoder,
    registry: Option<Arc<dyn Registry>>,
    asking: Option<Asking>,
}

struct Asking {
    request: Arc<SchemaRequest>,
    answer: JoinHandle<Result<SchemaId, RegistryError>>,
}

/// Why a record is not written.
#[derive(Debug, PartialEq, Eq)]
pub enum NotFormatted {
    /// The registry is being asked.
    Asking,
    /// There is no registry to ask; why, as a sentence.
    NoRegistry(String),
    /// It can never be; why, as a sentence.
    Never(String),
}

impl Formatter {
    /// A formatter. A registry is needed where [`Encoder::needs_registry`] says so.
    #[must_use]
    pub fn new(encoder: Encoder, registry: Option<Arc<dyn Registry>>) -> Self {
        Self {
            encoder,
            registry,
            asking: None,
        }
    }

    /// Writes a stored record. Where the registry has to be asked, that begins here, and [`Formatter::answered`]
    /// is to be waited for. Needs a tokio runtime.
    ///
    /// # Errors
    /// Where the record is not written, now or ever.
    pub fn format(&mut self, stored: &Arc<[u8]>) -> Result<Encoded, NotFormatted> {
        if self.asking.is_some() {
            return Err(NotFormatted::Asking);
        }
        match self.encoder.encode(stored) {
            Ok(encoded) => Ok(encoded),
            Err(EncodeError::Unregistered(request)) => {
                let Some(registry) = self.registry.clone() else {
                    return Err(NotFormatted::NoRegistry(
                        "the format needs a schema registry, and the configuration names none: give \
                         output.kafka.schemaRegistry"
                            .to_owned(),
                    ));
                };
                let asked = request.clone();
                let answer = tokio::task::spawn_blocking(move || registry.register(&asked));
                self.asking = Some(Asking { request, answer });
                Err(NotFormatted::Asking)
            }
            Err(error) => Err(NotFormatted::Never(error.to_string())),
        }
    }

    /// Waits for the registry's answer; for ever where it is not being asked. Safe to cancel.
    ///
    /// # Errors
    /// Why there is no number; asking again is [`Formatter::format`]'s.
    pub async fn answered(&mut self) -> Result<(), String> {
        let Some(asking) = &mut self.asking else {
            return std::future::pending().await;
        };
        let answer = (&mut asking.answer).await;
        let request = asking.request.clone();
        self.asking = None;
        match answer {
            Ok(Ok(id)) => {
                tracing::info!(subject = request.subject, id = id.0, "the schema is registered");
                self.encoder.registered(&request, id);
                Ok(())
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(format!("failed to ask the schema registry: {error}")),
        }
    }
}
