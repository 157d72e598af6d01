//! Against a real broker with TLS, client certificates and logins, which `e2e/stack.sh` makes.

use std::{fs, path::Path, time::Duration};

use corrente_config::Secrets;
use corrente_crds::{
    kafka::{KafkaSasl, KafkaTls, SaslMechanism},
    poller::KafkaOutput,
};
use tempfile::TempDir;

use crate::support::{consume, drained, fill, open, output, publish_with, stored_by_a_sink, var, with_topic};

/// A copy of the stack's secrets, to change at will.
fn secrets() -> TempDir {
    let (from, to) = (var("CORRENTE_TEST_SECRETS"), tempfile::tempdir().unwrap());
    for file in [
        "ca/ca.crt",
        "client/tls.crt",
        "client/tls.key",
        "sasl/username",
        "sasl/password",
    ] {
        let file = format!("kafka/{file}");
        let target = to.path().join(&file);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(Path::new(&from).join(&file), target).unwrap();
    }
    to
}

/// Puts a client certificate, and its key, in the place of another.
fn client_certificate(secrets: &TempDir, from: &Path) {
    for file in ["tls.crt", "tls.key"] {
        fs::copy(from.join(file), secrets.path().join("kafka/client").join(file)).unwrap();
    }
}

fn mutual(topic: &str) -> KafkaOutput {
    let mut output = output(&var("CORRENTE_TEST_KAFKA_TLS"), topic);
    output.cluster.tls = Some(KafkaTls {
        ca_secret: Some("authority".to_owned()),
        client_certificate_secret: Some("client".to_owned()),
    });
    output
}

fn login(topic: &str) -> KafkaOutput {
    let mut output = output(&var("CORRENTE_TEST_KAFKA_SASL"), topic);
    output.cluster.tls = Some(KafkaTls {
        ca_secret: Some("authority".to_owned()),
        client_certificate_secret: None,
    });
    output.cluster.sasl = Some(KafkaSasl {
        mechanism: SaslMechanism::ScramSha512,
        secret_name: "login".to_owned(),
    });
    output
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka with TLS: set what e2e/stack.sh env gives"]
async fn a_client_certificate_or_a_login_lets_the_producer_in() {
    let plain = var("CORRENTE_TEST_KAFKA");
    let secrets = secrets();
    for make in [mutual, login] {
        let output = make(&with_topic(&plain, 3).await);
        let dir = tempfile::tempdir().unwrap();
        let spool = open(dir.path());
        fill(&spool, 200, 0).await;
        let publishing = publish_with(&spool, &output, 10_000, &Secrets::new(secrets.path()));
        drained(&spool).await;
        assert_eq!(publishing.trouble.get(), None);
        consume(&plain, &output.topic, 200).await;
        publishing.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka with TLS: set what e2e/stack.sh env gives"]
async fn what_keeps_the_producer_out_is_said_and_mending_it_is_enough() {
    let plain = var("CORRENTE_TEST_KAFKA");
    let topic = with_topic(&plain, 1).await;
    let stranger = var("CORRENTE_TEST_STRANGER");
    // What is wrong: with which output, what is done to the secrets, and what is said of it.
    type Wrong = (fn(&str) -> KafkaOutput, fn(&TempDir, &Path), &'static str);
    let wrong: [Wrong; 5] = [
        (
            login,
            |secrets, _| fs::write(secrets.path().join("kafka/sasl/password"), "guessed").unwrap(),
            "correct username and password in Secret \"login\"",
        ),
        (
            login,
            |secrets, stranger| {
                fs::copy(stranger.join("ca.crt"), secrets.path().join("kafka/ca/ca.crt")).unwrap();
            },
            "comes from no authority in key \"ca.crt\" of Secret \"authority\"",
        ),
        (
            mutual,
            |secrets, stranger| client_certificate(secrets, stranger),
            "renew tls.crt and tls.key in Secret \"client\"",
        ),
        (
            mutual,
            |secrets, _| fs::remove_file(secrets.path().join("kafka/client/tls.key")).unwrap(),
            "key \"tls.key\" of Secret \"client\"",
        ),
        (
            mutual,
            |secrets, stranger| {
                fs::copy(
                    stranger.join("tls.key"),
                    secrets.path().join("kafka/client/tls.key"),
                )
                .unwrap();
            },
            "are no certificate and its private key",
        ),
    ];
    for (make, spoil, says) in wrong {
        let secrets = secrets();
        spoil(&secrets, Path::new(&stranger));
        let dir = tempfile::tempdir().unwrap();
        let spool = open(dir.path());
        fill(&spool, 10, 0).await;
        let publishing = publish_with(&spool, &make(&topic), 10_000, &Secrets::new(secrets.path()));
        publishing.says(says).await;
        // The status keeps saying so, whatever else librdkafka says meanwhile.
        for _ in 0..30 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let trouble = publishing.trouble.get().unwrap();
            assert!(trouble.contains(says), "{trouble}");
        }
        assert_eq!(spool.lock().stats().pending, 10);
        let good = self::secrets();
        for file in ["ca/ca.crt", "client/tls.crt", "client/tls.key", "sasl/password"] {
            let file = format!("kafka/{file}");
            fs::copy(good.path().join(&file), secrets.path().join(&file)).unwrap();
        }
        drained(&spool).await;
        assert_eq!(publishing.trouble.get(), None);
        publishing.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka with TLS: set what e2e/stack.sh env gives"]
async fn the_wrong_kind_of_listener_is_told_from_a_broker_that_is_away() {
    let secrets = secrets();
    let plain_to_tls = output(&var("CORRENTE_TEST_KAFKA_TLS"), "meters");
    let mut tls_to_plain = mutual("meters");
    tls_to_plain.cluster.bootstrap_servers = vec![var("CORRENTE_TEST_KAFKA")];
    let mut nameless = mutual("meters");
    nameless.cluster.tls.as_mut().unwrap().client_certificate_secret = None;
    let mut no_login = login("meters");
    no_login.cluster.sasl = None;
    for (output, says) in [
        (plain_to_tls, "TLS or a login: add tls to kafka"),
        (tls_to_plain, "does not talk TLS"),
        (nameless, "kafka.tls.clientCertificateSecret"),
        (no_login, "a login: add sasl to kafka"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let spool = open(dir.path());
        let publishing = publish_with(&spool, &output, 10_000, &Secrets::new(secrets.path()));
        publishing.says(says).await;
        publishing.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka with TLS: set what e2e/stack.sh env gives"]
async fn certificates_that_change_lose_and_overtake_nothing() {
    let plain = var("CORRENTE_TEST_KAFKA");
    let output = mutual(&with_topic(&plain, 3).await);
    let (secrets, good) = (secrets(), self::secrets());
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    let publishing = publish_with(&spool, &output, 10_000, &Secrets::new(secrets.path()));
    let mut sent = 0;
    for from in [
        var("CORRENTE_TEST_STRANGER").into(),
        good.path().join("kafka/client"),
    ] {
        client_certificate(&secrets, &from);
        // Records come all the while; those with the stranger's certificate stay in the spool.
        let refused = from != good.path().join("kafka/client");
        loop {
            fill(&spool, 50, 0).await;
            sent += 50;
            tokio::time::sleep(Duration::from_millis(50)).await;
            let said = publishing
                .trouble
                .get()
                .is_some_and(|it| it.contains("renew tls.crt"));
            if said == refused && (refused || spool.lock().stats().pending == 0) {
                break;
            }
        }
    }
    let partitions = consume(&plain, &output.topic, sent).await;
    assert_eq!(
        stored_by_a_sink(&partitions),
        (1..=sent as u64).collect::<Vec<_>>()
    );
    publishing.end().await;
}
