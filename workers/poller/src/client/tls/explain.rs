//! What is wrong between two that do not trust each other, in words that say which file to look at.

use std::io;

use rustls::{AlertDescription, CertificateError, Error};

/// What a TLS error means; `None` where the error is not one of TLS.
#[must_use]
pub fn explain(error: &io::Error) -> Option<String> {
    let error = error.get_ref()?.downcast_ref::<Error>()?;
    Some(in_words(error))
}

/// See [`explain`].
pub(super) fn in_words(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(error) => of_the_server(error),
        Error::AlertReceived(alert) => alerted(*alert),
        Error::InconsistentKeys(_) => "the key is not the certificate's".to_owned(),
        Error::InvalidMessage(_) => {
            "the server does not speak TLS on this port; Modbus/TCP Security has 802".to_owned()
        }
        Error::PeerIncompatible(_) => {
            format!("the server offers no TLS that the poller accepts (1.2 or 1.3): {error}")
        }
        _ => format!("TLS: {error}"),
    }
}

fn of_the_server(error: &CertificateError) -> String {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the server's certificate has expired".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the server's certificate is not valid yet; compare the clocks".to_owned()
        }
        // The latter is one of an authority of the same name, such as before it was renewed.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "the server's certificate is signed by none of the certificates in ca.crt".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("{error}; set tls.serverName to a name that the server's certificate is for")
        }
        other => format!("the server's certificate: {other}"),
    }
}

fn alerted(alert: AlertDescription) -> String {
    let why = match alert {
        AlertDescription::CertificateExpired => "it has expired",
        AlertDescription::CertificateRevoked => "it has been revoked",
        AlertDescription::UnknownCA => "it does not know who signed it",
        AlertDescription::CertificateRequired => "it wants another",
        AlertDescription::AccessDenied => "it grants no access",
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::DecryptError => "it gives no reason",
        AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure => {
            return "the server accepts none of the versions and ciphers of TLS 1.2 and 1.3 that the poller \
                    offers"
                .to_owned();
        }
        other => return format!("the server ended TLS with the alert {other:?}"),
    };
    format!("the server does not accept the poller's certificate in tls.crt: {why}")
}
