//! A client of schema registries with the API of Confluent's.
//!
//! Registering what is registered already is answered with the number it has, so that nothing else need be asked.
//! It is rare, once per schema and process, so that each time the files of the Secret are read anew: a password or
//! an authority that was changed counts from then on.

use std::{fs, io, path::Path, time::Duration};

use base64::Engine as _;
use corrente_config::secrets::{CA_FILE, PASSWORD_FILE, Secrets, USERNAME_FILE};
use corrente_crds::output::SchemaRegistry;
use serde::Deserialize;
use serde_json::json;
use ureq::{
    Agent,
    http::StatusCode,
    tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem},
};

use super::{Registry, RegistryError};
use crate::encode::{SchemaId, SchemaLanguage, SchemaRequest};

/// How long a registry may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The longest message of a registry that is passed on, in characters: some send the whole schema back.
const MESSAGE_LENGTH: usize = 400;
const CONTENT_TYPE: &str = "application/vnd.schemaregistry.v1+json";

/// A registry that is asked over HTTP.
#[derive(Debug)]
pub struct HttpRegistry {
    config: SchemaRegistry,
    secrets: Secrets,
}

#[derive(Deserialize)]
struct Answer {
    id: u32,
}

#[derive(Deserialize)]
struct Complaint {
    message: String,
}

impl HttpRegistry {
    /// The registry of a configuration. Nothing is asked yet.
    #[must_use]
    pub fn new(config: &SchemaRegistry, secrets: &Secrets) -> Self {
        Self {
            config: config.clone(),
            secrets: secrets.clone(),
        }
    }

    fn agent(&self) -> Result<Agent, RegistryError> {
        let mut tls = TlsConfig::builder();
        if self.config.ca_secret.is_some() {
            tls = tls.root_certs(RootCerts::from(authorities(
                &self.secrets.registry_ca().join(CA_FILE),
            )?));
        }
        let config = Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            .http_status_as_error(false)
            .tls_config(tls.build())
            .user_agent(concat!("corrente-poller/", env!("CARGO_PKG_VERSION")));
        Ok(config.build().into())
    }

    fn authorization(&self) -> Result<Option<String>, RegistryError> {
        if self.config.basic_auth_secret.is_none() {
            return Ok(None);
        }
        let folder = self.secrets.registry_auth();
        let read = |file: &str| {
            let path = folder.join(file);
            let text = fs::read_to_string(&path).map_err(|error| unreadable(&path, &error))?;
            // Editors and `echo` end a file with a newline.
            Ok::<_, RegistryError>(text.trim_end_matches(['\r', '\n']).to_owned())
        };
        let pair = format!("{}:{}", read(USERNAME_FILE)?, read(PASSWORD_FILE)?);
        let encoded = base64::engine::general_purpose::STANDARD.encode(pair);
        Ok(Some(format!("Basic {encoded}")))
    }
}

impl Registry for HttpRegistry {
    fn register(&self, request: &SchemaRequest) -> Result<SchemaId, RegistryError> {
        let url = self.config.url.trim_end_matches('/');
        let away = |error: ureq::Error| RegistryError::Away {
            url: url.to_owned(),
            reason: error.to_string(),
        };
        let mut body = json!({"schema": request.schema});
        // Without a type it is Avro, which older registries know alone.
        if request.language == SchemaLanguage::Protobuf {
            body["schemaType"] = "PROTOBUF".into();
        }
        let mut post = self
            .agent()?
            // A topic's and a map's names need no escaping in an address.
            .post(format!("{url}/subjects/{}/versions", request.subject))
            .header("content-type", CONTENT_TYPE)
            .header("accept", CONTENT_TYPE);
        if let Some(authorization) = self.authorization()? {
            post = post.header("authorization", authorization);
        }
        let mut response = post.send(body.to_string()).map_err(away)?;
        let status = response.status();
        let text = response.body_mut().read_to_string().map_err(away)?;
        if status.is_success()
            && let Ok(answer) = serde_json::from_str::<Answer>(&text)
        {
            return Ok(SchemaId(answer.id));
        }
        let complaint = serde_json::from_str::<Complaint>(&text).map(|complaint| complaint.message);
        let reason = complaint.unwrap_or(text).chars().take(MESSAGE_LENGTH).collect();
        let subject = request.subject.clone();
        match status {
            StatusCode::CONFLICT | StatusCode::UNPROCESSABLE_ENTITY => {
                Err(RegistryError::Refused { subject, reason })
            }
            _ => Err(RegistryError::Unexpected {
                url: url.to_owned(),
                status: status.as_u16(),
                subject,
                reason,
            }),
        }
    }
}

fn unreadable(path: &Path, error: &io::Error) -> RegistryError {
    RegistryError::Secret {
        path: path.display().to_string(),
        reason: error.to_string(),
    }
}

fn authorities(path: &Path) -> Result<Vec<Certificate<'static>>, RegistryError> {
    let bytes = fs::read(path).map_err(|error| unreadable(path, &error))?;
    let certificates: Vec<_> = parse_pem(&bytes)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(RegistryError::Secret {
            path: path.display().to_string(),
            reason: "there is no certificate in it".to_owned(),
        });
    }
    Ok(certificates)
}
