//! TLS of the sinks: the files that Secrets are mounted as, to what a connection is made with.
//!
//! 1. [`Trust`] names the files. [`Trust::client_config`] reads them, each time afresh and once per connect, so that
//!    certificates that were changed count from the next connect on.
//! 2. The server's certificate is looked at as far as [`Look`] says.
//! 3. What rustls says of a connection that did not come about becomes a sentence ([`Trust::explain`]).
//!
//! The provider is named rather than taken from the process, so that it cannot depend on what else is linked.

mod explain;
mod verify;

use std::{
    error::Error,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use corrente_config::{
    Secrets,
    secrets::{CA_FILE, CERTIFICATE_FILE, KEY_FILE},
};
use corrente_crds::sinks::SinkTls;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

pub use self::verify::Look;

/// Whom a connection trusts, and who it says it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// The file with the authorities that a server's certificate must come from; Mozilla's where none is named.
    pub authorities: Option<PathBuf>,
    /// The certificate that is shown to the server, where one is.
    pub client: Option<Identity>,
}

/// A certificate and its key, as files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, with what leads to its authority.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Identity {
    /// Those of a Secret of type `kubernetes.io/tls`, mounted as `folder`.
    #[must_use]
    pub fn within(folder: &Path) -> Self {
        Self {
            certificate: folder.join(CERTIFICATE_FILE),
            key: folder.join(KEY_FILE),
        }
    }
}

impl Trust {
    /// That of a sink whose resource names Secrets.
    #[must_use]
    pub fn of(tls: &SinkTls, secrets: &Secrets) -> Self {
        let client = tls.client_certificate_secret.as_ref();
        Self {
            authorities: tls.ca_secret.as_ref().map(|_| secrets.sink_ca().join(CA_FILE)),
            client: client.map(|_| Identity::within(&secrets.sink_client())),
        }
    }

    /// Reads the files.
    ///
    /// # Errors
    /// A sentence that says what is wrong with which file.
    pub fn client_config(&self, look: Look) -> Result<ClientConfig, String> {
        let provider = ring::default_provider();
        let algorithms = provider.signature_verification_algorithms;
        let builder = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("failed to set up TLS: {error}"))?;
        let verifier = match (&self.authorities, look) {
            (_, Look::Nowhere) => verify::Verifier::new(look, RootCertStore::empty(), vec![], algorithms),
            (None, _) => {
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().cloned());
                verify::Verifier::new(look, roots, vec![], algorithms)
            }
            (Some(path), _) => {
                let trusted = certificates(path)?;
                let mut roots = RootCertStore::empty();
                for certificate in &trusted {
                    roots.add(certificate.clone()).map_err(|error| {
                        format!("a certificate in {} cannot be used: {error}", path.display())
                    })?;
                }
                verify::Verifier::new(look, roots, trusted, algorithms)
            }
        };
        let builder = builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let Some(Identity { certificate, key }) = &self.client else {
            return Ok(builder.with_no_client_auth());
        };
        let chain = certificates(certificate)?;
        let pem = fs::read(key).map_err(|error| unreadable(key, &error))?;
        let private = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| {
            format!(
                "{} holds no private key in PEM form, or one with a passphrase",
                key.display()
            )
        })?;
        builder.with_client_auth_cert(chain, private).map_err(|error| {
            let (certificate, key) = (certificate.display(), key.display());
            match error {
                rustls::Error::InconsistentKeys(_) => {
                    format!("the key in {key} is not that of the certificate in {certificate}")
                }
                error => format!("the certificate in {certificate} and the key in {key}: {error}"),
            }
        })
    }

    /// What a TLS error within `error` means; `None` where there is none.
    #[must_use]
    pub fn explain(&self, error: &(dyn Error + 'static)) -> Option<String> {
        explain::find(error).map(|error| explain::in_words(error, self))
    }

    /// The same of a text that an error of TLS was put into.
    #[must_use]
    pub fn explain_text(&self, said: &str) -> Option<String> {
        explain::of_text(said, self)
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = fs::read(path).map_err(|error| unreadable(path, &error))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(format!("{} holds no certificate in PEM form", path.display())),
    }
}

fn unreadable(path: &Path, error: &io::Error) -> String {
    format!("failed to read {}: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_used_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let made = || rcgen::generate_simple_self_signed(["db".to_owned()]).unwrap();
        let (one, other) = (made(), made());
        let ca = file("ca.crt", &one.cert.pem());
        let key = file("tls.key", &one.signing_key.serialize_pem());
        let identity = |certificate: &PathBuf, key: &PathBuf| {
            Some(Identity {
                certificate: certificate.clone(),
                key: key.clone(),
            })
        };
        let good = Trust {
            authorities: Some(ca.clone()),
            client: identity(&ca, &key),
        };
        assert!(good.client_config(Look::Name).is_ok());
        let text = file("text", "hello");
        let (missing, foreign) = (
            folder.path().join("missing"),
            file("other.key", &other.signing_key.serialize_pem()),
        );
        for (authorities, client, says) in [
            (Some(missing.clone()), None, "failed to read"),
            (Some(text.clone()), None, "text holds no certificate"),
            (None, identity(&missing, &key), "failed to read"),
            (None, identity(&text, &key), "text holds no certificate"),
            (None, identity(&ca, &text), "text holds no private key"),
            (
                None,
                identity(&ca, &foreign),
                "other.key is not that of the certificate",
            ),
        ] {
            let trust = Trust { authorities, client };
            let said = trust.client_config(Look::Name).unwrap_err();
            assert!(said.contains(says), "{said}");
        }
        // What is not looked at is not read.
        let careless = Trust {
            authorities: Some(missing),
            client: None,
        };
        assert!(careless.client_config(Look::Nowhere).is_ok());
    }
}
