//! Modbus/TCP Security: the certificates of the simulated devices, and whom they let in.
//!
//! A folder holds `ca.crt`, `tls.crt` and `tls.key`, as the Secret of an endpoint does. Whoever connects must show
//! a certificate that `ca.crt` has signed. Source: Modbus/TCP Security Protocol Specification v21, 8 (TLS 1.2 or
//! better, mutual).

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use corrente_config::secrets::{CA_FILE, CERTIFICATE_FILE, KEY_FILE};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use tokio_rustls::TlsAcceptor;

/// Certificates that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failed to use {path} for TLS: {reason}")]
pub struct CertificateError {
    path: PathBuf,
    reason: String,
}

/// The certificates in a folder, ready to accept connections with.
///
/// # Errors
/// Where a file is missing, is not PEM, or does not fit the others.
pub fn load(folder: &Path) -> Result<TlsAcceptor, CertificateError> {
    let read = |file: &str| {
        let path = folder.join(file);
        fs::read(&path).map_err(|error| wrong(&path, &error))
    };
    let certificates = |file: &str| {
        let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(file)?).collect();
        match all {
            Ok(all) if all.is_empty() => Err(wrong(&folder.join(file), &"there is no certificate in it")),
            Ok(all) => Ok(all),
            Err(error) => Err(wrong(&folder.join(file), &error)),
        }
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(CA_FILE)? {
        roots
            .add(certificate)
            .map_err(|error| wrong(&folder.join(CA_FILE), &error))?;
    }
    let key = PrivateKeyDer::from_pem_slice(&read(KEY_FILE)?)
        .map_err(|error| wrong(&folder.join(KEY_FILE), &error))?;
    let provider = Arc::new(ring::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|error| wrong(&folder.join(CA_FILE), &error))?;
    let own = certificates(CERTIFICATE_FILE)?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .with_client_cert_verifier(clients)
                .with_single_cert(own, key)
        })
        .map_err(|error| wrong(&folder.join(CERTIFICATE_FILE), &error))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn wrong(path: &Path, reason: &dyn fmt::Display) -> CertificateError {
    CertificateError {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}
