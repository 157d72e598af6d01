//! How a worker is let in by a Kafka cluster: addresses, TLS and a login, as settings of a librdkafka client.
//!
//! 1. [`Access`] reads the files that the Secrets are mounted as, each time afresh, and says which key of which
//!    Secret is missing where one is.
//! 2. [`Settings`] are what was read. Two that differ mean that a Secret has changed: a client keeps what it was
//!    made with, so a new one has to be made. [`Access::changed`] waits for that.
//! 3. [`explain`](Access::explain) turns what librdkafka says of a refused connection into what to change.
//!
//! The contents are handed to librdkafka, not the paths: it would read the files a moment later, when they may
//! be others.

mod explain;
mod roots;

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use corrente_config::secrets::{CA_FILE, CERTIFICATE_FILE, KEY_FILE, PASSWORD_FILE, Secrets, USERNAME_FILE};
use corrente_crds::kafka::KafkaCluster;
use rdkafka::ClientConfig;

/// How often the files are looked at. A kubelet takes about a minute to bring a changed Secret into a pod.
const LOOK: Duration = Duration::from_secs(5);

/// The way into a cluster.
#[derive(Clone, Debug)]
pub struct Access {
    cluster: KafkaCluster,
    secrets: Secrets,
}

/// A file of a Secret that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// It cannot be read.
    #[error(
        "failed to read {}: {source}; it is key \"{key}\" of Secret \"{secret}\": see that the Secret is there and has this key",
        path.display()
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The Secret.
        secret: String,
        /// Its key.
        key: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// It holds something else.
    #[error(
        "{} holds no {what}: put one in PEM form into key \"{key}\" of Secret \"{secret}\"",
        path.display()
    )]
    NotPem {
        /// The file.
        path: PathBuf,
        /// The Secret.
        secret: String,
        /// Its key.
        key: &'static str,
        /// What is looked for.
        what: &'static str,
    },
    /// There is nothing in it.
    #[error("{} is empty: write the {key} into key \"{key}\" of Secret \"{secret}\"", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// The Secret.
        secret: String,
        /// Its key.
        key: &'static str,
    },
}

/// What a client is made with to be let in.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings(Vec<(&'static str, String)>);

impl Settings {
    /// The beginning of a client's configuration.
    #[must_use]
    pub fn client_config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        for (key, value) in &self.0 {
            config.set(*key, value);
        }
        config
    }
}

impl fmt::Debug for Settings {
    /// The names alone: keys and passwords belong into no log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(key, _)| key)).finish()
    }
}

impl Access {
    /// The way into `cluster`, with its Secrets mounted in `secrets`.
    #[must_use]
    pub fn new(cluster: &KafkaCluster, secrets: &Secrets) -> Self {
        Self {
            cluster: cluster.clone(),
            secrets: secrets.clone(),
        }
    }

    /// Reads the files.
    ///
    /// # Errors
    /// Where one is missing or holds something else.
    pub fn read(&self) -> Result<Settings, AccessError> {
        let mut all = vec![("bootstrap.servers", self.cluster.bootstrap_servers.join(","))];
        let protocol = match (&self.cluster.tls, &self.cluster.sasl) {
            (None, None) => "plaintext",
            (Some(_), None) => "ssl",
            (None, Some(_)) => "sasl_plaintext",
            (Some(_), Some(_)) => "sasl_ssl",
        };
        all.push(("security.protocol", protocol.to_owned()));
        if let Some(tls) = &self.cluster.tls {
            let authorities = match &tls.ca_secret {
                Some(secret) => self.pem(&self.secrets.kafka_ca(), secret, CA_FILE, "certificate")?,
                None => roots::pem(),
            };
            all.push(("ssl.ca.pem", authorities));
            if let Some(secret) = &tls.client_certificate_secret {
                let folder = self.secrets.kafka_client();
                let certificate = self.pem(&folder, secret, CERTIFICATE_FILE, "certificate")?;
                let key = self.pem(&folder, secret, KEY_FILE, "private key")?;
                all.extend([("ssl.certificate.pem", certificate), ("ssl.key.pem", key)]);
            }
        }
        if let Some(sasl) = &self.cluster.sasl {
            let (folder, secret) = (self.secrets.kafka_sasl(), &sasl.secret_name);
            all.push(("sasl.mechanisms", sasl.mechanism.name().to_owned()));
            all.push(("sasl.username", self.line(&folder, secret, USERNAME_FILE)?));
            all.push(("sasl.password", self.line(&folder, secret, PASSWORD_FILE)?));
        }
        Ok(Settings(all))
    }

    /// Waits until the files can be read and hold something else than `used`; gives what they hold.
    pub async fn changed(&self, used: Option<&Settings>) -> Settings {
        if self.cluster.tls.is_none() && self.cluster.sasl.is_none() && used.is_some() {
            std::future::pending::<()>().await;
        }
        loop {
            tokio::time::sleep(LOOK).await;
            // A kubelet swaps all files of a Secret at once, but Secrets one after another. What was read
            // half is seen to differ again the next time.
            let access = self.clone();
            // A folder may be on a disk or a network that keeps its reader waiting.
            if let Ok(Ok(now)) = tokio::task::spawn_blocking(move || access.read()).await
                && used != Some(&now)
            {
                return now;
            }
        }
    }

    fn file(&self, folder: &Path, secret: &str, key: &'static str) -> Result<(PathBuf, String), AccessError> {
        let path = folder.join(key);
        match fs::read_to_string(&path) {
            Ok(text) => Ok((path, text)),
            Err(source) => Err(AccessError::Unreadable {
                path,
                secret: secret.to_owned(),
                key,
                source,
            }),
        }
    }

    /// Something in PEM form. librdkafka's own complaint would not say which file it is about.
    fn pem(
        &self,
        folder: &Path,
        secret: &str,
        key: &'static str,
        what: &'static str,
    ) -> Result<String, AccessError> {
        let (path, text) = self.file(folder, secret, key)?;
        let label = if what == "certificate" {
            "CERTIFICATE-----"
        } else {
            "PRIVATE KEY-----"
        };
        if text
            .lines()
            .any(|line| line.starts_with("-----BEGIN ") && line.trim_end().ends_with(label))
        {
            return Ok(text);
        }
        Err(AccessError::NotPem {
            path,
            secret: secret.to_owned(),
            key,
            what,
        })
    }

    /// A name or a password; a line break at its end belongs to the file, not to it.
    fn line(&self, folder: &Path, secret: &str, key: &'static str) -> Result<String, AccessError> {
        let (path, text) = self.file(folder, secret, key)?;
        let line = text.trim_end_matches(['\r', '\n']);
        if line.is_empty() {
            return Err(AccessError::Empty {
                path,
                secret: secret.to_owned(),
                key,
            });
        }
        Ok(line.to_owned())
    }
}

#[cfg(test)]
mod tests;
