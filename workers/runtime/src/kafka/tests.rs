use corrente_crds::kafka::{KafkaSasl, KafkaTls, SaslMechanism};
use rdkafka::producer::{BaseProducer, DefaultProducerContext};

use super::*;

fn cluster(tls: Option<KafkaTls>, sasl: Option<SaslMechanism>) -> KafkaCluster {
    KafkaCluster {
        bootstrap_servers: vec!["a:9092".to_owned(), "b:9092".to_owned()],
        tls,
        sasl: sasl.map(|mechanism| KafkaSasl {
            mechanism,
            secret_name: "login".to_owned(),
        }),
    }
}

fn own() -> KafkaTls {
    KafkaTls {
        ca_secret: Some("authority".to_owned()),
        client_certificate_secret: Some("client".to_owned()),
    }
}

fn write(dir: &Path, path: &str, text: &str) {
    let path = dir.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn get<'a>(settings: &'a Settings, key: &str) -> Option<&'a str> {
    settings
        .0
        .iter()
        .find(|(name, _)| *name == key)
        .map(|(_, value)| value.as_str())
}

const PEM: &str = "# a comment\n-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n";
const KEY: &str = "-----BEGIN EC PRIVATE KEY-----\nAA==\n-----END EC PRIVATE KEY-----\n";

#[test]
fn the_protocol_follows_from_tls_and_sasl() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "kafka/sasl/username", "meter\n");
    write(dir.path(), "kafka/sasl/password", " p w \r\n");
    let scram = Some(SaslMechanism::ScramSha512);
    for (tls, sasl, protocol) in [
        (None, None, "plaintext"),
        (Some(KafkaTls::default()), None, "ssl"),
        (None, scram, "sasl_plaintext"),
        (Some(KafkaTls::default()), scram, "sasl_ssl"),
    ] {
        let settings = Access::new(&cluster(tls, sasl), &Secrets::new(dir.path()))
            .read()
            .unwrap();
        assert_eq!(get(&settings, "security.protocol"), Some(protocol));
        assert_eq!(get(&settings, "bootstrap.servers"), Some("a:9092,b:9092"));
        assert_eq!(get(&settings, "sasl.username"), sasl.map(|_| "meter"));
        assert_eq!(get(&settings, "sasl.password"), sasl.map(|_| " p w "));
        assert!(!format!("{settings:?}").contains("p w"));
        // librdkafka takes them all, Mozilla's authorities included.
        let client = settings.client_config();
        client
            .create_with_context::<_, BaseProducer<_>>(DefaultProducerContext)
            .unwrap();
    }
}

#[test]
fn a_missing_key_of_a_secret_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let access = Access::new(
        &cluster(Some(own()), Some(SaslMechanism::Plain)),
        &Secrets::new(dir.path()),
    );
    for (path, text, says) in [
        (
            "kafka/ca/ca.crt",
            "nonsense",
            &[
                "kafka/ca/ca.crt: No such file",
                "key \"ca.crt\" of Secret \"authority\"",
            ][..],
        ),
        (
            "kafka/ca/ca.crt",
            PEM,
            &["ca.crt holds no certificate", "Secret \"authority\""],
        ),
        (
            "kafka/client/tls.crt",
            PEM,
            &["kafka/client/tls.crt", "key \"tls.crt\" of Secret \"client\""],
        ),
        (
            "kafka/client/tls.key",
            PEM,
            &["kafka/client/tls.key: No such file"],
        ),
        (
            "kafka/client/tls.key",
            KEY,
            &["tls.key holds no private key", "Secret \"client\""],
        ),
        (
            "kafka/sasl/username",
            "me",
            &["key \"username\" of Secret \"login\""],
        ),
        (
            "kafka/sasl/password",
            "\n",
            &["key \"password\" of Secret \"login\""],
        ),
        (
            "kafka/sasl/password",
            "secret",
            &["password is empty: write the password into key \"password\""],
        ),
    ] {
        let error = access.read().unwrap_err().to_string();
        for part in says {
            assert!(error.contains(part), "{error}: {part}");
        }
        write(dir.path(), path, text);
    }
    access.read().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_change_is_seen_once_it_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let access = Access::new(
        &cluster(None, Some(SaslMechanism::ScramSha256)),
        &Secrets::new(dir.path()),
    );
    write(dir.path(), "kafka/sasl/username", "me");
    write(dir.path(), "kafka/sasl/password", "old");
    let used = access.read().unwrap();
    let calm = tokio::time::timeout(LOOK * 10, access.changed(Some(&used))).await;
    assert!(calm.is_err(), "nothing has changed");
    fs::remove_file(dir.path().join("kafka/sasl/password")).unwrap();
    let gone = tokio::time::timeout(LOOK * 10, access.changed(Some(&used))).await;
    assert!(gone.is_err(), "a missing file is no change");
    write(dir.path(), "kafka/sasl/password", "new");
    let now = access.changed(Some(&used)).await;
    assert_eq!(get(&now, "sasl.password"), Some("new"));
    // Where nothing is used yet, whatever can be read is news.
    assert_eq!(access.changed(None).await, now);
}

#[test]
fn what_librdkafka_says_becomes_what_to_change() {
    let dir = &Secrets::new("/nowhere");
    let mutual = Access::new(&cluster(Some(own()), None), dir);
    let login = Access::new(
        &cluster(Some(KafkaTls::default()), Some(SaslMechanism::ScramSha512)),
        dir,
    );
    let plain = Access::new(&cluster(None, None), dir);
    for (access, reason, says) in [
        (
            &mutual,
            "ssl://k:9095/bootstrap: SSL handshake failed: error:0A000086:SSL routines::certificate verify failed: broker certificate could not be verified, verify that ssl.ca.location is correctly configured",
            "Secret \"authority\"",
        ),
        (
            &login,
            "sasl_ssl://k:9095/1: SSL handshake failed: error:0A000086:SSL routines::certificate verify failed",
            "kafka.tls.caSecret",
        ),
        (
            &mutual,
            "ssl://k:9095/bootstrap: Receive failed: error:0A00045C:SSL routines::tlsv13 alert certificate required: SSL alert number 116",
            "(certificate required): renew tls.crt and tls.key in Secret \"client\"",
        ),
        (
            &login,
            "sasl_ssl://k:9095/1: Receive failed: error:0A00045C:SSL routines::tlsv13 alert certificate required: SSL alert number 116",
            "kafka.tls.clientCertificateSecret",
        ),
        (
            &login,
            "sasl_ssl://k:9095/bootstrap: SASL authentication error: Authentication failed during authentication due to invalid credentials with SASL mechanism SCRAM-SHA-512 (after 20ms in state AUTH_REQ)",
            "username and password in Secret \"login\"",
        ),
        (
            &mutual,
            "ssl://k:9095/bootstrap: SSL handshake failed: error:0A00010B:SSL routines::wrong version number",
            "k:9095 does not talk TLS",
        ),
        (
            &plain,
            "k:9095/bootstrap: Disconnected: requesting ApiVersion: might be caused by incorrect security.protocol configuration (connecting to a SSL listener?)",
            "add tls to kafka",
        ),
    ] {
        let explained = access.explain(reason).unwrap();
        assert!(explained.contains(says), "{reason}\n{explained}\n{says}");
    }
    for reason in [
        "k:9095/bootstrap: Connect to ipv4#10.0.0.1:9095 failed: Connection refused (after 0ms in state CONNECT)",
        "1/1 brokers are down",
    ] {
        assert_eq!(login.explain(reason), None);
    }
}
