//! Modbus/TCP Security: who the poller is, and whom it believes, from the files of a Secret.
//!
//! 1. At each connect the three files are read: `ca.crt` (who may have signed the server's certificate),
//!    `tls.crt` and `tls.key` (the poller's own). Both sides show a certificate, always: the protocol wants it.
//! 2. Where they have changed, they are tried. Good ones are used from now on; bad ones are complained about
//!    once, and the last good ones stay in use.
//! 3. A connection that was made with others than those is outdated, and made anew before its next request.
//!
//! TLS is 1.2 or 1.3. Source: Modbus/TCP Security Protocol Specification v21, 8. It wants version 1.2 or
//! better and mutual authentication; what role a client has is the server's to read from the certificate.

use std::{
    fmt, fs,
    hash::{BuildHasher, RandomState},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use corrente_config::{
    EndpointAddress,
    secrets::{CA_FILE, CERTIFICATE_FILE, KEY_FILE},
};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tokio::time::Instant;

mod explain;

pub use explain::explain;

/// How often a connection that is in use has the files looked at. The kubelet takes about a minute to bring a
/// changed Secret into a pod; a few seconds more are nothing to it.
const LOOK: Duration = Duration::from_secs(5);
/// The files, which are the keys of the Secret.
const FILES: [&str; 3] = [CA_FILE, CERTIFICATE_FILE, KEY_FILE];

/// The certificates of an endpoint, as they are on the disk.
pub struct TlsSource {
    dir: PathBuf,
    secret: String,
    server_name: Option<String>,
    look_every: Duration,
    /// Knows contents again without keeping them.
    hasher: RandomState,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The hash of the contents that were tried last.
    tried: Option<u64>,
    good: Option<Arc<ClientConfig>>,
    /// Rises with each good change.
    revision: u64,
    problem: Option<String>,
    looked: Option<Instant>,
}

/// What a connection was made with.
#[derive(Clone, Debug)]
pub struct Certified {
    source: Arc<TlsSource>,
    revision: u64,
}

impl Certified {
    /// Whether there are newer certificates by now.
    #[must_use]
    pub fn is_outdated(&self) -> bool {
        self.source.revision() != self.revision
    }
}

impl fmt::Debug for TlsSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsSource")
            .field("dir", &self.dir)
            .field("secret", &self.secret)
            .field("server_name", &self.server_name)
            .finish_non_exhaustive()
    }
}

impl TlsSource {
    /// The certificates in the folder `dir`, where the Secret `secret` is mounted. The server's certificate
    /// must be for `server_name`, or else for the host of the endpoint's address.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, secret: &str, server_name: Option<String>) -> Self {
        Self {
            dir: dir.into(),
            secret: secret.to_owned(),
            server_name,
            look_every: LOOK,
            hasher: RandomState::new(),
            state: Mutex::default(),
        }
    }

    /// The same, but the files are looked at this often for the sake of connections that are in use, rather
    /// than every five seconds.
    #[must_use]
    pub fn looking_every(self, look_every: Duration) -> Self {
        Self { look_every, ..self }
    }

    /// The name that the server's certificate must be for.
    ///
    /// # Errors
    /// Where it is neither a host name nor an IP address.
    pub fn name(&self, address: &EndpointAddress) -> Result<ServerName<'static>, String> {
        let host = address.host().trim_matches(['[', ']']);
        let given = self
            .server_name
            .as_deref()
            .map(|name| name.trim_matches(['[', ']']));
        let name = given.unwrap_or(host);
        ServerName::try_from(name.to_owned()).map_err(|_| {
            format!("\"{name}\" is neither a host name nor an IP address; correct tls.serverName")
        })
    }

    /// What to connect with now, and a mark of it.
    ///
    /// # Errors
    /// Where there are no certificates that can be used, and never were.
    pub fn current(self: &Arc<Self>) -> Result<(Arc<ClientConfig>, Certified), String> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.look(&mut state);
        match &state.good {
            Some(config) => {
                let source = Arc::clone(self);
                let revision = state.revision;
                Ok((Arc::clone(config), Certified { source, revision }))
            }
            None => Err(state.problem.clone().unwrap_or_default()),
        }
    }

    fn revision(&self) -> u64 {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state
            .looked
            .is_none_or(|looked| looked.elapsed() >= self.look_every)
        {
            self.look(&mut state);
        }
        state.revision
    }

    /// Looks at the files and takes them over where they have changed for the better. They are small and in
    /// memory, where a Secret is mounted, so that reading them holds nobody up.
    fn look(&self, state: &mut State) {
        state.looked = Some(Instant::now());
        let found = self.read().and_then(|files| {
            let hash = self.hasher.hash_one(&files);
            if state.tried == Some(hash) {
                return Ok(None);
            }
            // A volume is swapped as a whole, but not under a reader's feet: what was read must stand still.
            if self.read()? != files {
                return Ok(None);
            }
            state.tried = Some(hash);
            self.parse(&files).map(Some)
        });
        match found {
            Ok(Some(config)) => {
                state.revision += 1;
                state.problem = None;
                if state.good.replace(Arc::new(config)).is_some() {
                    tracing::info!(secret = self.secret, "new certificates are in use");
                }
            }
            Ok(None) if state.good.is_some() || state.problem.is_some() => {}
            Ok(None) => {
                state.problem = Some(format!("the files of {} are just being changed", self.place()));
            }
            Err(problem) => {
                if state.problem.as_ref() != Some(&problem) {
                    if state.good.is_some() {
                        tracing::warn!(
                            secret = self.secret,
                            problem,
                            "the new certificates cannot be used; the last good ones stay in use"
                        );
                    }
                    state.problem = Some(problem);
                }
            }
        }
    }

    fn place(&self) -> String {
        format!("Secret {} ({})", self.secret, self.dir.display())
    }

    fn read(&self) -> Result<[Vec<u8>; 3], String> {
        let mut contents = [const { Vec::new() }; 3];
        for (file, content) in FILES.iter().zip(&mut contents) {
            *content = fs::read(self.dir.join(file)).map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound if !self.dir.exists() => {
                    format!("{} is not there: make the Secret", self.place())
                }
                std::io::ErrorKind::NotFound => {
                    format!("{} has no {file}: add that key", self.place())
                }
                _ => format!("failed to read {file} of {}: {error}", self.place()),
            })?;
        }
        Ok(contents)
    }

    fn parse(&self, [ca, chain, key]: &[Vec<u8>; 3]) -> Result<ClientConfig, String> {
        let bad = |file: &str, why: &dyn fmt::Display| format!("{file} of {}: {why}", self.place());
        let certificates = |file: &str, pem: &[u8]| {
            let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
                .collect::<Result<_, _>>()
                .map_err(|error| bad(file, &error))?;
            if certificates.is_empty() {
                return Err(bad(file, &"there is no certificate in it; it must be PEM"));
            }
            Ok(certificates)
        };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(CA_FILE, ca)? {
            roots
                .add(certificate)
                .map_err(|error| bad(CA_FILE, &explain::in_words(&error)))?;
        }
        let chain = certificates(CERTIFICATE_FILE, chain)?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|_| bad(KEY_FILE, &"there is no private key in it; it must be PEM"))?;
        // Named rather than taken from the process, so that it cannot depend on what else is linked.
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(|error| bad("tls.crt and tls.key", &explain::in_words(&error)))?;
        Ok(config)
    }
}
