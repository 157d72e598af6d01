//! Where a worker finds what is secret: the files that the operator mounts into its pod, under one root.
//!
//! In a pod the root is [`SECRETS_PATH`]; `--secrets DIR` names another one, so that the same files serve a
//! worker outside of a pod. A file is there where the resource names its Secret, and changes when that changes.

use std::path::{Path, PathBuf};

/// The root in a pod.
pub const SECRETS_PATH: &str = "/etc/corrente";

/// A certificate authority's certificates, in a folder of a Secret.
pub const CA_FILE: &str = "ca.crt";
/// A certificate with what leads to its authority.
pub const CERTIFICATE_FILE: &str = "tls.crt";
/// A certificate's private key.
pub const KEY_FILE: &str = "tls.key";
/// A user's name.
pub const USERNAME_FILE: &str = "username";
/// A user's password.
pub const PASSWORD_FILE: &str = "password";
/// A token that stands for a user.
pub const TOKEN_FILE: &str = "token";

/// The folders of the Secrets under their root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secrets {
    root: PathBuf,
}

impl Default for Secrets {
    fn default() -> Self {
        Self::new(SECRETS_PATH)
    }
}

impl Secrets {
    /// The folders under this root.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The root.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of an endpoint's Secret: `ca.crt`, `tls.crt` and `tls.key`.
    #[must_use]
    pub fn endpoint(&self, secret_name: &str) -> PathBuf {
        self.root.join("tls").join(secret_name)
    }

    /// The folder of `tls.caSecret` of Kafka: `ca.crt`.
    #[must_use]
    pub fn kafka_ca(&self) -> PathBuf {
        self.root.join("kafka/ca")
    }

    /// The folder of `tls.clientCertificateSecret` of Kafka: `tls.crt` and `tls.key`.
    #[must_use]
    pub fn kafka_client(&self) -> PathBuf {
        self.root.join("kafka/client")
    }

    /// The folder of `sasl.secretName` of Kafka: `username` and `password`.
    #[must_use]
    pub fn kafka_sasl(&self) -> PathBuf {
        self.root.join("kafka/sasl")
    }

    /// The folder of `schemaRegistry.caSecret`: `ca.crt`.
    #[must_use]
    pub fn registry_ca(&self) -> PathBuf {
        self.root.join("registry/ca")
    }

    /// The folder of `schemaRegistry.basicAuthSecret`: `username` and `password`.
    #[must_use]
    pub fn registry_auth(&self) -> PathBuf {
        self.root.join("registry/auth")
    }

    /// The file with the sink's address, which holds the password: a key of `connectionSecret`.
    #[must_use]
    pub fn sink_url(&self) -> PathBuf {
        self.root.join("secret/url")
    }

    /// The folder of the sink's `caSecret`: `ca.crt`.
    #[must_use]
    pub fn sink_ca(&self) -> PathBuf {
        self.root.join("sink/ca")
    }

    /// The folder of the sink's `clientCertificateSecret`: `tls.crt` and `tls.key`.
    #[must_use]
    pub fn sink_client(&self) -> PathBuf {
        self.root.join("sink/client")
    }

    /// The folder of the sink's `credentialsSecret`: `username` and `password`, or `token`.
    #[must_use]
    pub fn sink_auth(&self) -> PathBuf {
        self.root.join("sink/auth")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_secret_has_its_folder() {
        let secrets = Secrets::default();
        let paths = [
            (secrets.endpoint("gateway-1"), "/etc/corrente/tls/gateway-1"),
            (secrets.kafka_ca(), "/etc/corrente/kafka/ca"),
            (secrets.kafka_client(), "/etc/corrente/kafka/client"),
            (secrets.kafka_sasl(), "/etc/corrente/kafka/sasl"),
            (secrets.registry_ca(), "/etc/corrente/registry/ca"),
            (secrets.registry_auth(), "/etc/corrente/registry/auth"),
            (secrets.sink_url(), crate::report::SINK_URL_PATH),
            (secrets.sink_ca(), "/etc/corrente/sink/ca"),
            (secrets.sink_client(), "/etc/corrente/sink/client"),
            (secrets.sink_auth(), "/etc/corrente/sink/auth"),
        ];
        for (path, expected) in paths {
            assert_eq!(path, Path::new(expected));
        }
        assert_eq!(Secrets::new("here").kafka_ca(), Path::new("here/kafka/ca"));
    }
}
