//! What librdkafka says of a refused connection, as what to change. It knows the causes from OpenSSL's and the
//! broker's texts only, which it passes on; the words looked for here are those of librdkafka 2.12 with
//! OpenSSL 3 and of Apache Kafka 4.

use super::Access;

impl Access {
    /// What to change, where the reason is that the cluster does not let this client in, or is not believed to
    /// be the cluster. `None` for every other reason.
    #[must_use]
    pub fn explain(&self, reason: &str) -> Option<String> {
        let has = |words: &[&str]| words.iter().any(|word| reason.contains(word));
        if has(&["certificate verify failed", "Failed to verify broker certificate"]) {
            return Some(self.untrusted());
        }
        if has(&[
            "wrong version number",
            "connecting to a PLAINTEXT broker listener",
            "packet length too long",
        ]) {
            return Some(format!(
                "{} does not talk TLS: remove tls from kafka, or give the port of the listener that does",
                broker(reason)
            ));
        }
        if has(&["incorrect security.protocol configuration"]) {
            return Some(match (&self.cluster.tls, &self.cluster.sasl) {
                (None, _) => format!(
                    "{} ends the connection at once: where its listener talks TLS, add tls to kafka (tls: {{}} will do to begin with)",
                    broker(reason)
                ),
                (Some(_), None) => format!(
                    "{} ends the connection at once: where its listener asks for a login, add sasl to kafka",
                    broker(reason)
                ),
                (Some(_), Some(_)) => format!(
                    "{} ends the connection at once: see that this port is the one for TLS and a login",
                    broker(reason)
                ),
            });
        }
        if has(&[
            "SSL alert number",
            "tls alert",
            "alert bad certificate",
            "alert certificate",
            "alert unknown ca",
            "client SSL authentication might be required",
            "alert handshake failure",
        ]) {
            return Some(self.certificate_refused(reason));
        }
        let sasl = self.cluster.sasl.as_ref()?;
        if has(&["mechanism", "handshake failed"])
            && has(&[
                "not supported",
                "unsupported",
                "enabled mechanisms",
                "Unsupported",
            ])
        {
            return Some(format!(
                "{} does not offer {} on this port: choose a mechanism that it offers in kafka.sasl.mechanism, or another port",
                broker(reason),
                sasl.mechanism.name()
            ));
        }
        if has(&["SASL", "Authentication failed", "authentication"]) {
            return Some(format!(
                "the broker refuses the name or the password: correct username and password in Secret \"{}\", or make the user in the cluster with {} credentials",
                sasl.secret_name,
                sasl.mechanism.name()
            ));
        }
        None
    }

    /// What to change, where librdkafka makes no client of what the files hold.
    #[must_use]
    pub fn explain_unusable(&self, reason: &str) -> String {
        let tls = self.cluster.tls.as_ref();
        let client = tls.and_then(|tls| tls.client_certificate_secret.as_ref());
        if let Some(secret) = client
            && ["ssl.key", "ssl.certificate", "rivate key"]
                .iter()
                .any(|word| reason.contains(word))
        {
            return format!(
                "tls.crt and tls.key in Secret \"{secret}\" are no certificate and its private key without a password: correct them ({reason})"
            );
        }
        if let Some(secret) = tls.and_then(|tls| tls.ca_secret.as_ref())
            && reason.contains("ssl.ca")
        {
            return format!(
                "ca.crt in Secret \"{secret}\" holds no certificate that can be read: correct it ({reason})"
            );
        }
        format!("failed to make a Kafka client: {reason}")
    }

    /// That no broker can be reached. One that ends every connection at once, because its listener expects
    /// something else of a client, is not told from one that is away.
    #[must_use]
    pub fn unreachable(&self) -> String {
        let wants = match (&self.cluster.tls, &self.cluster.sasl) {
            (None, None) => "TLS or a login: add tls to kafka, or sasl, where it does",
            (None, Some(_)) => "TLS: add tls to kafka where it does",
            (Some(_), None) => "a login: add sasl to kafka where it does",
            (Some(_), Some(_)) => return "no broker can be reached".to_owned(),
        };
        format!("no broker can be reached, or its listener wants {wants}")
    }

    fn untrusted(&self) -> String {
        match self.cluster.tls.as_ref().and_then(|tls| tls.ca_secret.as_ref()) {
            Some(secret) => format!(
                "the broker's certificate is not trusted: it comes from no authority in key \"ca.crt\" of Secret \"{secret}\", has expired, or is for other names than those in bootstrapServers; put the authority that signed it into the Secret, or correct the names"
            ),
            None => "the broker's certificate is not trusted: it comes from no public authority, has expired, or is for other names than those in bootstrapServers; name a Secret with the cluster's own authority in kafka.tls.caSecret, or correct the names".to_owned(),
        }
    }

    fn certificate_refused(&self, reason: &str) -> String {
        let said = reason.split("alert ").nth(1).map_or("it was refused", |rest| {
            rest.split([':', '(']).next().unwrap_or(rest).trim()
        });
        match self
            .cluster
            .tls
            .as_ref()
            .and_then(|tls| tls.client_certificate_secret.as_ref())
        {
            Some(secret) => format!(
                "the broker refuses this client's certificate ({said}): renew tls.crt and tls.key in Secret \"{secret}\", signed by an authority that the brokers trust"
            ),
            None => format!(
                "the broker ends the TLS handshake ({said}): where it asks for a client certificate, name its Secret in kafka.tls.clientCertificateSecret"
            ),
        }
    }
}

/// The broker's address at the start of a reason, such as `sasl_ssl://kafka:9093/bootstrap: ...`.
fn broker(reason: &str) -> &str {
    reason
        .split_once("://")
        .and_then(|(_, rest)| rest.split(['/', ' ', ',']).next())
        .map_or("the broker", |address| address.trim_end_matches(':'))
}
