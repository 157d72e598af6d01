//! Writes over HTTP to the endpoint of each version.
//!
//! | version | request | who we are |
//! | --- | --- | --- |
//! | 1 | `POST /write?db=&rp=&precision=ms` | HTTP Basic |
//! | 2 | `POST /api/v2/write?org=&bucket=&precision=ms` | `Authorization: Token` |
//! | 3 | `POST /api/v3/write_lp?db=&precision=millisecond&accept_partial=true` | `Authorization: Bearer` |

use std::{fs, io, path::Path, time::Duration};

use base64::Engine as _;
use corrente_config::secrets::{CA_FILE, PASSWORD_FILE, Secrets, TOKEN_FILE, USERNAME_FILE};
use corrente_crds::sinks::{InfluxdbSink, InfluxdbVersion};
use ureq::{
    Agent,
    tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem},
};

use super::answer::{self, Answer};
use crate::sink::tls::Trust;

/// How long a write may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connect may take.
const CONNECT: Duration = Duration::from_secs(5);

/// A connection with what it logs in with.
pub struct Client {
    agent: Agent,
    url: String,
    authorization: Option<String>,
    trust: Trust,
}

impl Client {
    /// Reads what is secret. Nothing is asked yet.
    ///
    /// # Errors
    /// Which file cannot be read, as a sentence.
    pub fn new(sink: &InfluxdbSink, secrets: &Secrets) -> Result<Self, String> {
        let (mut tls, mut trust) = (TlsConfig::builder(), Trust::default());
        if sink.ca_secret.is_some() {
            let file = secrets.sink_ca().join(CA_FILE);
            tls = tls.root_certs(RootCerts::from(authorities(&file)?));
            trust.authorities = Some(file);
        }
        let config = Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            .timeout_connect(Some(CONNECT))
            .http_status_as_error(false)
            .tls_config(tls.build())
            .user_agent(concat!("corrente-pipeline/", env!("CARGO_PKG_VERSION")));
        let authorization = match (&sink.credentials_secret, sink.version) {
            (None, _) => None,
            (Some(_), InfluxdbVersion::V1) => {
                let folder = secrets.sink_auth();
                let pair = format!(
                    "{}:{}",
                    read(&folder.join(USERNAME_FILE))?,
                    read(&folder.join(PASSWORD_FILE))?
                );
                let encoded = base64::engine::general_purpose::STANDARD.encode(pair);
                Some(format!("Basic {encoded}"))
            }
            (Some(_), version) => {
                let scheme = if version == InfluxdbVersion::V2 {
                    "Token"
                } else {
                    "Bearer"
                };
                Some(format!(
                    "{scheme} {}",
                    read(&secrets.sink_auth().join(TOKEN_FILE))?
                ))
            }
        };
        Ok(Self {
            agent: config.build().into(),
            url: address(sink),
            authorization,
            trust,
        })
    }

    /// Writes lines, and waits for the answer.
    #[must_use]
    pub fn write(&self, lines: &str) -> Answer {
        let mut post = self
            .agent
            .post(&self.url)
            .header("content-type", "text/plain; charset=utf-8");
        if let Some(authorization) = &self.authorization {
            post = post.header("authorization", authorization);
        }
        let away = |error: ureq::Error| {
            let of_tls = match &error {
                ureq::Error::Rustls(error) => self.trust.explain(error),
                ureq::Error::Io(error) => self.trust.explain(error),
                _ => None,
            };
            let reason = of_tls.unwrap_or_else(|| error.to_string());
            Answer::Failed(format!("InfluxDB cannot be reached: {reason}"))
        };
        match post.send(lines) {
            Err(error) => away(error),
            Ok(mut response) => {
                let status = response.status().as_u16();
                match response.body_mut().read_to_string() {
                    Ok(body) => answer::read(status, &body),
                    // The head has said it all where it is good.
                    Err(_) if (200..300).contains(&status) => Answer::Stored,
                    Err(error) => away(error),
                }
            }
        }
    }
}

/// Where a sink's lines are posted to.
fn address(sink: &InfluxdbSink) -> String {
    let base = sink.url.trim_end_matches('/');
    let database = escaped(&sink.database);
    match sink.version {
        InfluxdbVersion::V1 => {
            let policy = sink
                .retention_policy
                .as_deref()
                .map(|policy| format!("&rp={}", escaped(policy)));
            format!(
                "{base}/write?db={database}{}&precision=ms",
                policy.unwrap_or_default()
            )
        }
        InfluxdbVersion::V2 => {
            let organization = escaped(sink.organization.as_deref().unwrap_or_default());
            format!("{base}/api/v2/write?org={organization}&bucket={database}&precision=ms")
        }
        InfluxdbVersion::V3 => {
            format!("{base}/api/v3/write_lp?db={database}&precision=millisecond&accept_partial=true")
        }
    }
}

/// A value in a query: everything but the unreserved characters of RFC 3986 as %XX.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = std::fmt::Write::write_fmt(&mut out, format_args!("%{byte:02X}"));
        }
    }
    out
}

fn unreadable(path: &Path, error: &io::Error) -> String {
    format!("failed to read {}: {error}", path.display())
}

fn read(path: &Path) -> Result<String, String> {
    let text = fs::read_to_string(path).map_err(|error| unreadable(path, &error))?;
    // Editors and `echo` end a file with a newline.
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn authorities(path: &Path) -> Result<Vec<Certificate<'static>>, String> {
    let bytes = fs::read(path).map_err(|error| unreadable(path, &error))?;
    let certificates: Vec<_> = parse_pem(&bytes)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(format!("{} holds no certificate in PEM form", path.display()));
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_has_its_endpoint() {
        let sink = |version: &str| -> InfluxdbSink {
            serde_json::from_value(serde_json::json!({
                "url": "http://i:8086/", "version": version, "database": "plant/a b", "organization": "acme",
                "retentionPolicy": "year",
            }))
            .unwrap()
        };
        for (version, expected) in [
            ("v1", "http://i:8086/write?db=plant%2Fa%20b&rp=year&precision=ms"),
            (
                "v2",
                "http://i:8086/api/v2/write?org=acme&bucket=plant%2Fa%20b&precision=ms",
            ),
            (
                "v3",
                "http://i:8086/api/v3/write_lp?db=plant%2Fa%20b&precision=millisecond&accept_partial=true",
            ),
        ] {
            assert_eq!(address(&sink(version)), expected);
        }
    }
}
