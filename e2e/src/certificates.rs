//! Certificates for meters with Modbus/TCP Security: an authority, and what it signs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

/// An authority of a scenario's own.
pub struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A fresh one.
    ///
    /// # Errors
    /// Where no key can be made.
    pub fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self {
            certificate,
            issuer: Issuer::new(params, key),
        })
    }

    /// Writes a folder as a Secret of type `kubernetes.io/tls` is: this authority, and a certificate of its for
    /// a host or a client.
    ///
    /// # Errors
    /// Where it cannot be made or written.
    pub fn folder(&self, parent: &Path, subject: &str) -> Result<PathBuf> {
        let mut params = CertificateParams::new([subject.to_owned()])?;
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.distinguished_name.push(DnType::CommonName, subject);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        let folder = parent.join(subject);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("ca.crt"), &self.certificate)?;
        fs::write(folder.join("tls.crt"), certificate)?;
        fs::write(folder.join("tls.key"), key.serialize_pem())?;
        Ok(folder)
    }
}
