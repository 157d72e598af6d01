//! Certificates for both ends of an endpoint with TLS: one authority, and one certificate that both of them show.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

/// The Secret's name.
pub const SECRET: &str = "field";

/// Where Secrets are mounted: the folder of [`SECRET`] lies within.
pub fn root() -> &'static Path {
    static ROOT: OnceLock<TempDir> = OnceLock::new();
    ROOT.get_or_init(make).path()
}

/// The folder of the Secret.
pub fn folder() -> PathBuf {
    root().join("tls").join(SECRET)
}

fn make() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("tls").join(SECRET);
    fs::create_dir_all(&folder).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(DnType::CommonName, "the site's authority");
    fs::write(folder.join("ca.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(params, key);
    let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    params
        .distinguished_name
        .push(DnType::CommonName, "one of the site");
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let key = KeyPair::generate().unwrap();
    fs::write(
        folder.join("tls.crt"),
        params.signed_by(&key, &issuer).unwrap().pem(),
    )
    .unwrap();
    fs::write(folder.join("tls.key"), key.serialize_pem()).unwrap();
    root
}
