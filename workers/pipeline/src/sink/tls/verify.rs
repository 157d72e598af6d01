//! How far a server's certificate is looked at.
//!
//! The handshake's own signature is checked always: who shows a certificate has its key. What a proof of a password is
//! bound to (RFC 5929, tls-server-end-point) is that certificate, so that binding holds even where nothing else is
//! looked at.

use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};

/// What is looked at in a server's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Nothing: it may be anyone's.
    Nowhere,
    /// Who signed it, and when it is valid.
    Authority,
    /// The same, and whether it is for the server's name.
    Name,
}

/// Checks certificates.
#[derive(Debug)]
pub(super) struct Verifier {
    look: Look,
    roots: RootCertStore,
    /// The same as they are.
    trusted: Vec<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    pub(super) fn new(
        look: Look,
        roots: RootCertStore,
        trusted: Vec<CertificateDer<'static>>,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Self {
        Self {
            look,
            roots,
            trusted,
            algorithms,
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.look == Look::Nowhere {
            return Ok(ServerCertVerified::assertion());
        }
        let parsed = ParsedCertificate::try_from(certificate)?;
        let signed = verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        );
        match signed {
            // A server that signed its own certificate, and is named as an authority for it. Such certificates say that
            // they are authorities where nobody told the tool that made them otherwise. Their time was looked at by then.
            Err(error) if is_authority(&error) && self.trusted.iter().any(|one| one == certificate) => {}
            signed => signed?,
        }
        if self.look == Look::Name {
            verify_server_name(&parsed, name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Whether what is wrong is that a server shows an authority's certificate as its own.
pub(super) fn is_authority(error: &Error) -> bool {
    is_webpki(error, |error| matches!(error, webpki::Error::CaUsedAsEndEntity))
}

/// Whether rustls hands on an error of webpki that it has no word of its own for.
pub(super) fn is_webpki(error: &Error, is: impl FnOnce(&webpki::Error) -> bool) -> bool {
    let Error::InvalidCertificate(CertificateError::Other(other)) = error else {
        return false;
    };
    other.0.downcast_ref::<webpki::Error>().is_some_and(is)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{BasicConstraints, Certificate, CertificateParams, IsCa, KeyPair, date_time_ymd};
    use rustls::crypto::ring;

    use super::*;

    fn self_signed(is_ca: IsCa) -> Certificate {
        let mut params = CertificateParams::new(["db".to_owned()]).unwrap();
        params.is_ca = is_ca;
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2030, 1, 1);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap()
    }

    fn check(look: Look, trusted: &Certificate, shown: &Certificate, name: &str, year: u64) -> bool {
        let mut roots = RootCertStore::empty();
        roots.add(trusted.der().clone()).unwrap();
        let algorithms = ring::default_provider().signature_verification_algorithms;
        let verifier = Verifier::new(look, roots, vec![trusted.der().clone()], algorithms);
        let now = UnixTime::since_unix_epoch(Duration::from_secs((year - 1970) * 31_557_600));
        let name = ServerName::try_from(name.to_owned()).unwrap();
        verifier
            .verify_server_cert(shown.der(), &[], &name, &[], now)
            .is_ok()
    }

    #[test]
    fn what_is_looked_at_counts_and_nothing_else() {
        for is_ca in [
            IsCa::NoCa,
            IsCa::ExplicitNoCa,
            IsCa::Ca(BasicConstraints::Unconstrained),
        ] {
            let (one, other) = (self_signed(is_ca), self_signed(is_ca));
            for (look, trusted, name, year, good) in [
                (Look::Name, &one, "db", 2026, true),
                (Look::Name, &one, "another", 2026, false),
                (Look::Name, &one, "db", 2032, false),
                (Look::Name, &other, "db", 2026, false),
                (Look::Authority, &one, "another", 2026, true),
                (Look::Authority, &one, "db", 2032, false),
                (Look::Authority, &one, "db", 2015, false),
                (Look::Authority, &other, "db", 2026, false),
                (Look::Nowhere, &other, "another", 2032, true),
            ] {
                assert_eq!(
                    check(look, trusted, &one, name, year),
                    good,
                    "{look:?} {name} {year}"
                );
            }
        }
    }
}
