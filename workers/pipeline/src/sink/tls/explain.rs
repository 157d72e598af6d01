//! What is wrong between two that do not trust each other, in words that say which file to look at.

use std::{error::Error as StdError, io};

use rustls::{AlertDescription, CertificateError, Error};

use super::{Trust, verify::is_webpki};

/// The TLS error that is behind another; `None` where there is none.
pub(super) fn find<'a>(mut error: &'a (dyn StdError + 'static)) -> Option<&'a Error> {
    loop {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // An I/O error passes over the error that it was made of, and names that one's source as its own.
        error = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => inner,
            None => error.source()?,
        };
    }
}

/// See [`Trust::explain`].
pub(super) fn in_words(error: &Error, trust: &Trust) -> String {
    match error {
        Error::InvalidCertificate(_)
            if is_webpki(error, |error| {
                matches!(error, webpki::Error::UnsupportedCertVersion)
            }) =>
        {
            "the server's certificate is of X.509 version 1: have it issued anew, of version 3 and with its host as \
             subjectAltName"
                .to_owned()
        }
        Error::InvalidCertificate(error) => of_the_server(error, trust),
        Error::AlertReceived(alert) => alerted(*alert, trust),
        Error::InvalidMessage(_) => "the server does not speak TLS on this port".to_owned(),
        Error::PeerIncompatible(_) => {
            format!("the server offers no TLS that the worker accepts (1.2 or 1.3): {error}")
        }
        _ => format!("TLS: {error}"),
    }
}

/// See [`Trust::explain_text`].
pub(super) fn of_text(said: &str, trust: &Trust) -> Option<String> {
    if let Some((_, name)) = said.split_once("received fatal alert: ") {
        let is_named = |alert: &&AlertDescription| name.starts_with(&format!("{alert:?}"));
        return ALERTS.iter().find(is_named).map(|alert| alerted(*alert, trust));
    }
    let (_, said) = said.split_once("invalid peer certificate: ")?;
    let is = |words: &[&str]| words.iter().any(|word| said.starts_with(word));
    if is(&["UnknownIssuer", "BadSignature"]) {
        return Some(of_the_server(&CertificateError::UnknownIssuer, trust));
    }
    if is(&["Expired", "certificate expired"]) {
        return Some(of_the_server(&CertificateError::Expired, trust));
    }
    // What follows it in a list of servers.
    let end = said.find(", labels").unwrap_or(said.len());
    Some(format!("the server's certificate: {}", said.get(..end)?))
}

/// The alerts that a certificate of ours may bring about.
const ALERTS: [AlertDescription; 11] = [
    AlertDescription::CertificateRequired,
    AlertDescription::CertificateExpired,
    AlertDescription::CertificateRevoked,
    AlertDescription::CertificateUnknown,
    AlertDescription::UnknownCA,
    AlertDescription::AccessDenied,
    AlertDescription::BadCertificate,
    AlertDescription::UnsupportedCertificate,
    AlertDescription::DecryptError,
    AlertDescription::ProtocolVersion,
    AlertDescription::HandshakeFailure,
];

fn of_the_server(error: &CertificateError, trust: &Trust) -> String {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the server's certificate has expired: have it renewed".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the server's certificate is not valid yet: compare the clocks".to_owned()
        }
        // The latter is one of an authority of the same name, such as before it was renewed.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => match &trust.authorities {
            Some(path) => format!(
                "the server's certificate is signed by none of the certificates in {}: put its authority's there",
                path.display()
            ),
            None => "the server's certificate is signed by none of the authorities that are known everywhere: name \
                     its own in caSecret"
                .to_owned(),
        },
        CertificateError::NotValidForNameContext { expected, presented } if presented.is_empty() => format!(
            "the server's certificate is not for \"{}\": it names no host as subjectAltName, which alone counts",
            expected.to_str()
        ),
        CertificateError::NotValidForNameContext { expected, presented } => format!(
            "the server's certificate is not for \"{}\" but for {}: correct the host in the address, or have the \
             certificate issued for it",
            expected.to_str(),
            presented.join(", ")
        ),
        other => format!("the server's certificate: {other}"),
    }
}

fn alerted(alert: AlertDescription, trust: &Trust) -> String {
    let why = match alert {
        AlertDescription::CertificateRequired => {
            return "the server wants to be shown a certificate: name the Secret of one in clientCertificateSecret"
                .to_owned();
        }
        AlertDescription::CertificateExpired => "it has expired",
        AlertDescription::CertificateRevoked => "it has been revoked",
        AlertDescription::UnknownCA => "it does not know who signed it",
        AlertDescription::AccessDenied => "it grants no access",
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::DecryptError => "it gives no reason",
        // What servers of TLS 1.2 say for want of a certificate, too.
        AlertDescription::HandshakeFailure if trust.client.is_none() => {
            return "the server ended TLS: it wants to be shown a certificate (clientCertificateSecret), or accepts none \
                    of the ciphers of TLS 1.2 and 1.3 that the worker offers"
                .to_owned();
        }
        AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure => {
            return "the server accepts none of the versions and ciphers of TLS 1.2 and 1.3 that the worker offers"
                .to_owned();
        }
        other => return format!("the server ended TLS with the alert {other:?}"),
    };
    match &trust.client {
        Some(client) => format!(
            "the server does not accept the certificate in {}: {why}",
            client.certificate.display()
        ),
        None => format!(
            "the server ended TLS with the alert {alert:?}, as if for a certificate, and is shown none: if it wants \
             one, name its Secret in clientCertificateSecret"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(client: bool) -> impl Fn(&str) -> Option<String> {
        let trust = Trust {
            authorities: Some("ca.crt".into()),
            client: client.then(|| super::super::Identity::within("own".as_ref())),
        };
        move |said| trust.explain_text(said)
    }

    #[test]
    fn an_error_within_another_is_found() {
        let tls = Error::InvalidCertificate(CertificateError::Expired);
        let within = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, tls.clone()));
        assert_eq!(find(&within), Some(&tls));
        assert_eq!(find(&io::Error::other("something else")), None);
    }

    #[test]
    fn a_text_is_understood_as_the_error_that_it_was_made_of() {
        let errors = [
            Error::InvalidCertificate(CertificateError::UnknownIssuer),
            Error::InvalidCertificate(CertificateError::Expired),
        ];
        let alerts = ALERTS.map(Error::AlertReceived);
        for client in [false, true] {
            let trust = Trust {
                authorities: Some("ca.crt".into()),
                client: client.then(|| super::super::Identity::within("own".as_ref())),
            };
            for error in errors.iter().chain(&alerts) {
                let text = format!("IO: {error}, labels: {{}}");
                assert_eq!(trust.explain_text(&text), Some(in_words(error, &trust)), "{text}");
            }
        }
        let said = texts(false);
        assert_eq!(said("connection refused"), None);
        let name =
            said("I/O error: invalid peer certificate: certificate not valid for name \"a\", labels: {}");
        assert_eq!(
            name.as_deref(),
            Some("the server's certificate: certificate not valid for name \"a\"")
        );
        assert!(
            texts(true)("received fatal alert: UnknownCA").is_some_and(|said| said.contains("own/tls.crt"))
        );
    }
}
