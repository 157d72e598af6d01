//! The authorities that are trusted where no Secret names others: Mozilla's, compiled in, because an image of
//! one binary has no folder of certificates.

use base64::{Engine as _, prelude::BASE64_STANDARD};

/// All of them in PEM form, about 250 kB.
pub(super) fn pem() -> String {
    let mut out = String::new();
    for certificate in webpki_root_certs::TLS_SERVER_ROOT_CERTS {
        out.push_str("-----BEGIN CERTIFICATE-----\n");
        let text = BASE64_STANDARD.encode(certificate.as_ref());
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let (line, after) = rest.split_at(rest.len().min(64));
            out.push_str(line);
            out.push('\n');
            rest = after;
        }
        out.push_str("-----END CERTIFICATE-----\n");
    }
    out
}
