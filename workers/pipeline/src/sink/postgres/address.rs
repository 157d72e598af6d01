//! The way to a database: what its URL says, and what the resource says besides.
//!
//! 1. The URL's `sslmode`, `sslrootcert`, `sslcert` and `sslkey` mean what libpq means by them, `sslrootcert=system`
//!    included. They are taken out of it before the client reads it, which knows no such checks.
//! 2. The resource comes before the URL. Who names authorities means them to be looked at: without a mode, that is
//!    `verify-full`, and `require` is `verify-ca`, as libpq has it. Else the mode is libpq's own, `prefer`.
//!
//! Source: PostgreSQL's manual, 32.1.2 (parameters) and 32.19 (SSL support).

use std::path::PathBuf;

use corrente_config::pipeline::PostgresConnection;
use corrente_crds::tables::SslMode;
use tokio_postgres::{Config, config::SslMode as Ssl};

use crate::sink::tls::{Identity, Look, Trust};

/// The value of `sslrootcert` that means the authorities that everyone knows.
const SYSTEM: &str = "system";

/// The way to a database.
#[derive(Clone, Debug)]
pub struct Address {
    /// Who and where, and whether in TLS.
    pub config: Config,
    /// Whether in TLS, and what is looked at then.
    pub mode: SslMode,
    /// Whom to trust.
    pub trust: Trust,
}

/// Why there is none. None of them quotes the URL, which holds a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAddress {
    /// It is no URL.
    #[error(
        "cannot be read: write postgres://user:password@host:5432/database, with %-escapes for special characters of \
         the password"
    )]
    Url,
    /// Its mode is none.
    #[error("has an sslmode of \"{0}\": write disable, prefer, require, verify-ca or verify-full")]
    Mode(String),
    /// TLS is off, and authorities are named.
    #[error(
        "says sslmode=disable, and authorities are named to look at the server's certificate with: remove one of the two"
    )]
    Disabled,
    /// A certificate without a key, or a key without a certificate.
    #[error("has one of sslcert and sslkey without the other: name both")]
    HalfAnIdentity,
}

impl Address {
    /// What a URL and the resource's own word say together.
    ///
    /// # Errors
    /// As [`NoAddress`].
    pub fn read(url: &str, connection: &PostgresConnection) -> Result<Self, NoAddress> {
        let (rest, said) = take(url.trim());
        let mut config: Config = rest.parse().map_err(|_| NoAddress::Url)?;
        let of_url = match said.mode.as_deref() {
            // In the form of words, `host=... sslmode=...`, the client has read it.
            None => match config.get_ssl_mode() {
                Ssl::Disable => Some(SslMode::Disable),
                Ssl::Require => Some(SslMode::Require),
                _ => None,
            },
            Some("disable") => Some(SslMode::Disable),
            Some("prefer") => Some(SslMode::Prefer),
            Some("require") => Some(SslMode::Require),
            Some("verify-ca") => Some(SslMode::VerifyCa),
            Some("verify-full") => Some(SslMode::VerifyFull),
            Some(other) => return Err(NoAddress::Mode(other.to_owned())),
        };
        let everyones = said.authorities.as_deref() == Some(SYSTEM);
        let of_url_authorities = said.authorities.filter(|path| path != SYSTEM).map(PathBuf::from);
        let authorities = connection.ca_file.clone().or(of_url_authorities);
        let named = authorities.is_some() || everyones;
        let mode = match (connection.ssl_mode, of_url) {
            (Some(mode), _) => mode,
            (None, Some(SslMode::Disable)) if named => return Err(NoAddress::Disabled),
            (None, Some(SslMode::Require)) if named => SslMode::VerifyCa,
            (None, None | Some(SslMode::Prefer)) if named => SslMode::VerifyFull,
            (None, mode) => mode.unwrap_or(SslMode::Prefer),
        };
        let of_url = match (said.certificate, said.key) {
            (Some(certificate), Some(key)) => Some(Identity {
                certificate: certificate.into(),
                key: key.into(),
            }),
            (None, None) => None,
            _ => return Err(NoAddress::HalfAnIdentity),
        };
        let folder = connection.client_certificate.as_deref();
        let client = folder.map(Identity::within).or(of_url);
        config.ssl_mode(match mode {
            SslMode::Disable => Ssl::Disable,
            SslMode::Prefer => Ssl::Prefer,
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => Ssl::Require,
        });
        Ok(Self {
            config,
            mode,
            trust: Trust { authorities, client },
        })
    }

    /// How far the server's certificate is looked at.
    #[must_use]
    pub fn look(&self) -> Look {
        match self.mode {
            SslMode::Disable | SslMode::Prefer | SslMode::Require => Look::Nowhere,
            SslMode::VerifyCa => Look::Authority,
            SslMode::VerifyFull => Look::Name,
        }
    }
}

/// What a URL says of TLS.
#[derive(Default)]
struct Said {
    mode: Option<String>,
    authorities: Option<String>,
    certificate: Option<String>,
    key: Option<String>,
}

/// Takes out of a URL what it says of TLS. What is no URL is left as it is.
fn take(url: &str) -> (String, Said) {
    let mut said = Said::default();
    let is_url = ["postgres://", "postgresql://"]
        .iter()
        .any(|scheme| url.starts_with(scheme));
    // A password may have a question mark, and ends at the first @, as the client reads it.
    let credentials = url.find('@').unwrap_or(0);
    let Some(at) = url[credentials..]
        .find('?')
        .map(|at| credentials + at)
        .filter(|_| is_url)
    else {
        return (url.to_owned(), said);
    };
    let mut rest = Vec::new();
    for parameter in url[at + 1..].split('&') {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let field = match name {
            "sslmode" => &mut said.mode,
            "sslrootcert" => &mut said.authorities,
            "sslcert" => &mut said.certificate,
            "sslkey" => &mut said.key,
            _ => {
                rest.push(parameter);
                continue;
            }
        };
        *field = Some(unescaped(value));
    }
    let mut left = url[..at].to_owned();
    if !rest.is_empty() {
        left.push('?');
        left.push_str(&rest.join("&"));
    }
    (left, said)
}

/// A value without its %XX (RFC 3986, 2.1).
fn unescaped(value: &str) -> String {
    let mut out = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let [first, after @ ..] = rest {
        let code = after
            .get(..2)
            .filter(|_| *first == b'%')
            .and_then(|code| u8::from_str_radix(str::from_utf8(code).ok()?, 16).ok());
        out.push(code.unwrap_or(*first));
        rest = after
            .get(if code.is_some() { 2 } else { 0 }..)
            .unwrap_or_default();
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str, mode: Option<SslMode>, ca: Option<&str>) -> Result<Address, NoAddress> {
        let connection = PostgresConnection {
            ssl_mode: mode,
            ca_file: ca.map(PathBuf::from),
            ..PostgresConnection::default()
        };
        Address::read(url, &connection)
    }

    #[test]
    fn the_resource_comes_before_the_url_and_authorities_are_looked_at() {
        use SslMode::{Disable, Prefer, Require, VerifyCa, VerifyFull};
        for (parameters, mode, ca, expected) in [
            ("", None, None, Prefer),
            ("", None, Some("ca"), VerifyFull),
            ("", Some(VerifyCa), Some("ca"), VerifyCa),
            ("", Some(Require), None, Require),
            ("?sslmode=disable", None, None, Disable),
            ("?sslmode=disable", Some(VerifyFull), Some("ca"), VerifyFull),
            ("?sslmode=prefer", None, None, Prefer),
            ("?sslmode=prefer", None, Some("ca"), VerifyFull),
            ("?sslmode=require", None, None, Require),
            ("?sslmode=require", None, Some("ca"), VerifyCa),
            ("?sslmode=require&sslrootcert=ca", None, None, VerifyCa),
            ("?sslmode=verify-ca", None, None, VerifyCa),
            ("?sslmode=verify-full", None, None, VerifyFull),
            ("?sslmode=verify-full", Some(Disable), None, Disable),
            ("?sslrootcert=system", None, None, VerifyFull),
        ] {
            let url = format!("postgres://u:p@db:5432/x{parameters}");
            let address = read(&url, mode, ca).unwrap();
            assert_eq!(address.mode, expected, "{parameters} {mode:?} {ca:?}");
            let ssl = match expected {
                Disable => Ssl::Disable,
                Prefer => Ssl::Prefer,
                _ => Ssl::Require,
            };
            assert_eq!(address.config.get_ssl_mode(), ssl);
        }
    }

    #[test]
    fn what_the_url_says_of_tls_is_taken_out_of_it() {
        let url = "postgresql://u:a?b%40c@db/x?application_name=n&sslmode=verify-full&sslrootcert=/etc/a%20b%2Fca\
                   &sslcert=c&sslkey=k&connect_timeout=7";
        let address = read(url, None, None).unwrap();
        assert_eq!(address.config.get_password(), Some(b"a?b@c".as_slice()));
        assert_eq!(address.config.get_application_name(), Some("n"));
        assert_eq!(
            address.config.get_connect_timeout(),
            Some(&std::time::Duration::from_secs(7))
        );
        let trust = Trust {
            authorities: Some("/etc/a b/ca".into()),
            client: Some(Identity {
                certificate: "c".into(),
                key: "k".into(),
            }),
        };
        assert_eq!(address.trust, trust);
        // The resource's own come before them.
        let connection = PostgresConnection {
            ca_file: Some("ours".into()),
            client_certificate: Some("folder".into()),
            ..PostgresConnection::default()
        };
        let address = Address::read(url, &connection).unwrap();
        let trust = Trust {
            authorities: Some("ours".into()),
            client: Some(Identity::within("folder".as_ref())),
        };
        assert_eq!(address.trust, trust);
    }

    #[test]
    fn the_form_of_words_is_read_as_far_as_the_client_does() {
        for (words, mode) in [
            ("host=db user=u", SslMode::Prefer),
            ("host=db user=u sslmode=require", SslMode::Require),
            ("host=db user=u sslmode=disable", SslMode::Disable),
        ] {
            assert_eq!(read(words, None, None).unwrap().mode, mode);
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_without_the_password() {
        for (url, ca, expected) in [
            ("postgres://u:secret@:x/", None, NoAddress::Url),
            (
                "host=db password=secret sslmode=verify-full",
                None,
                NoAddress::Url,
            ),
            (
                "postgres://u:secret@db/x?sslmode=allow",
                None,
                NoAddress::Mode("allow".to_owned()),
            ),
            (
                "postgres://u:secret@db/x?sslmode=disable",
                Some("ca"),
                NoAddress::Disabled,
            ),
            (
                "postgres://u:secret@db/x?sslcert=c",
                None,
                NoAddress::HalfAnIdentity,
            ),
        ] {
            let error = read(url, None, ca).unwrap_err();
            assert!(!error.to_string().contains("secret"));
            assert_eq!(error, expected);
        }
    }
}
