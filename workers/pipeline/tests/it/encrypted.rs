//! PostgreSQL in TLS, on a server of the test's own: what each mode looks at, who is let in, and what is said to those
//! who are not.

use std::{path::PathBuf, process::Command};

use corrente_config::pipeline::{PostgresConnection, SinkConfig};
use corrente_crds::tables::SslMode;
use corrente_pipeline::sink::postgres::{PostgresSink, care::Upkeep, letters};
use corrente_record::Timestamp;
use corrente_runtime::memory::MemoryBroker;
use tempfile::TempDir;
use tokio_postgres::Client;

use crate::{
    certificates::{Authority, Signed},
    servers,
    support::{Worker, config, producer, record, send, unique, wait},
};

/// Who may come in how. The test itself looks on as `postgres`.
const HBA: &str = "host all postgres 127.0.0.1/32 trust\n\
                   hostssl all encrypted 127.0.0.1/32 scram-sha-256\n\
                   hostnossl all plain 127.0.0.1/32 scram-sha-256\n\
                   hostssl all certified 127.0.0.1/32 cert\n\
                   hostssl all both 127.0.0.1/32 scram-sha-256 clientcert=verify-full\n";

struct Server {
    server: servers::Database,
    /// The authority of the server and of its users.
    authority: Authority,
    folder: TempDir,
    admin: Client,
}

impl Server {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut server = servers::Database::made(folder.path());
        let authority = Authority::new("the site's authority");
        server.write("pg_hba.conf", HBA);
        server.write("root.crt", &authority.certificate);
        show(&server, &authority.sign("localhost"));
        server.write(
            "postgresql.auto.conf",
            "ssl = on\nssl_cert_file = 'server.crt'\nssl_key_file = 'server.key'\nssl_ca_file = 'root.crt'\n",
        );
        server.back().await;
        let admin = server.connect().await.unwrap();
        for user in ["encrypted", "plain", "certified", "both"] {
            let make = format!("CREATE ROLE \"{user}\" LOGIN SUPERUSER PASSWORD 'secret'");
            admin.batch_execute(&make).await.unwrap();
        }
        Self {
            server,
            authority,
            folder,
            admin,
        }
    }

    fn url(&self, user: &str, host: &str, parameters: &str) -> String {
        format!(
            "postgres://{user}:secret@{host}:{}/postgres?{parameters}",
            self.server.port()
        )
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// Has the server show a certificate.
fn show(server: &servers::Database, signed: &Signed) {
    server.write("server.crt", &signed.certificate);
    server.write("server.key", &signed.key);
}

/// Whether one came in, and in TLS.
async fn is_encrypted(url: &str) -> Result<bool, String> {
    let client = letters::connect(url).await?;
    let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    Ok(client.query_one(sql, &[]).await.unwrap().get(0))
}

async fn assert_says(url: &str, says: &str) {
    let said = is_encrypted(url).await.unwrap_err();
    assert!(said.contains(says) && !said.contains("secret"), "{url}: {said}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the installed PostgreSQL"]
async fn each_mode_looks_at_what_it_says_and_each_refusal_has_its_sentence() {
    let site = Server::start().await;
    let ca = site.authority.write(&site.path("ca")).display().to_string();
    let other = Authority::new("another").write(&site.path("other"));
    let other = other.display().to_string();
    let user = |name: &str| {
        let folder = site.authority.sign(name).write(&site.path(name));
        let folder = folder.display();
        format!("sslcert={folder}/tls.crt&sslkey={folder}/tls.key")
    };
    let full = format!("sslmode=verify-full&sslrootcert={ca}");

    for (who, host, parameters, encrypted) in [
        ("encrypted", "localhost", full.clone(), true),
        // With a proof of the password that is bound to the server's certificate.
        (
            "encrypted",
            "localhost",
            format!("{full}&channel_binding=require"),
            true,
        ),
        (
            "encrypted",
            "localhost",
            format!("{full}&sslnegotiation=direct"),
            true,
        ),
        (
            "encrypted",
            "127.0.0.1",
            format!("sslmode=verify-ca&sslrootcert={ca}"),
            true,
        ),
        ("encrypted", "127.0.0.1", "sslmode=require".to_owned(), true),
        (
            "encrypted",
            "127.0.0.1",
            "sslmode=require&channel_binding=require".to_owned(),
            true,
        ),
        ("encrypted", "127.0.0.1", String::new(), true),
        // `prefer` does without where the server lets nobody in with it.
        ("plain", "127.0.0.1", String::new(), false),
        ("plain", "127.0.0.1", "sslmode=disable".to_owned(), false),
        (
            "certified",
            "localhost",
            format!("{full}&{}", user("certified")),
            true,
        ),
        ("both", "localhost", format!("{full}&{}", user("both")), true),
    ] {
        let url = site.url(who, host, &parameters);
        assert_eq!(is_encrypted(&url).await, Ok(encrypted), "{url}");
    }

    for (who, host, parameters, says) in [
        (
            "encrypted",
            "127.0.0.1",
            full.clone(),
            "is not for \"127.0.0.1\" but for",
        ),
        (
            "encrypted",
            "localhost",
            format!("sslmode=verify-full&sslrootcert={other}"),
            "signed by none of the certificates in",
        ),
        (
            "encrypted",
            "localhost",
            format!("sslmode=verify-ca&sslrootcert={other}"),
            "signed by none of the certificates in",
        ),
        (
            "encrypted",
            "localhost",
            "sslmode=verify-full".to_owned(),
            "name its own in caSecret",
        ),
        (
            "encrypted",
            "localhost",
            "sslmode=disable".to_owned(),
            "in TLS only: write sslMode",
        ),
        (
            "plain",
            "localhost",
            full.clone(),
            "without TLS only: add a line of hostssl",
        ),
        (
            "certified",
            "localhost",
            full.clone(),
            "name its Secret in clientCertificateSecret",
        ),
        (
            "both",
            "localhost",
            full.clone(),
            "name its Secret in clientCertificateSecret",
        ),
        (
            "certified",
            "localhost",
            format!("{full}&{}", user("somebody")),
            "failed to connect to the database",
        ),
    ] {
        assert_says(&site.url(who, host, &parameters), says).await;
    }

    // A user's certificate that the server knows nothing of.
    let stranger = Authority::new("another")
        .sign("certified")
        .write(&site.path("stranger"));
    let stranger = stranger.display();
    let parameters = format!("{full}&sslcert={stranger}/tls.crt&sslkey={stranger}/tls.key");
    assert_says(
        &site.url("certified", "localhost", &parameters),
        "does not accept the certificate in",
    )
    .await;

    // What the server shows is out of date.
    show(&site.server, &site.authority.sign_until("localhost", 2020));
    site.server.reload();
    let url = site.url("encrypted", "localhost", &full);
    wait("the expired certificate", async || {
        is_encrypted(&url)
            .await
            .is_err_and(|said| said.contains("has expired"))
    })
    .await;

    // It shows a certificate that it signed itself, and that is trusted as such.
    show_self_signed(&site).await;

    site.admin
        .batch_execute("ALTER SYSTEM SET ssl = off")
        .await
        .unwrap();
    site.server.reload();
    wait("the server without TLS", async || {
        is_encrypted(&url)
            .await
            .is_err_and(|said| said.contains("turn ssl on there"))
    })
    .await;
    assert_says(
        &site.url("encrypted", "127.0.0.1", "sslmode=require"),
        "turn ssl on there",
    )
    .await;
    let prefers = site.url("plain", "127.0.0.1", "sslmode=prefer");
    assert_eq!(is_encrypted(&prefers).await, Ok(false));
}

/// Certificates as PostgreSQL's manual has them made: a server's, that says of itself that it is an authority.
async fn show_self_signed(site: &Server) {
    let (key, certificate) = (site.path("own.key"), site.path("own.crt"));
    let made = Command::new("openssl")
        .args([
            "req", "-new", "-x509", "-days", "2", "-nodes", "-newkey", "rsa:2048",
        ])
        .args([
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost",
        ])
        .arg("-out")
        .arg(&certificate)
        .arg("-keyout")
        .arg(&key)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let read = |path| std::fs::read_to_string(path).unwrap();
    let signed = Signed {
        certificate: read(&certificate),
        key: read(&key),
    };
    show(&site.server, &signed);
    site.server.reload();
    let parameters = format!("sslmode=verify-full&sslrootcert={}", certificate.display());
    let (right, wrong) = (
        site.url(
            "encrypted",
            "localhost",
            &format!("{parameters}&channel_binding=require"),
        ),
        site.url("encrypted", "127.0.0.1", &parameters),
    );
    wait("the certificate of its own", async || {
        is_encrypted(&right).await == Ok(true)
    })
    .await;
    assert_says(&wrong, "is not for \"127.0.0.1\"").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the installed PostgreSQL"]
async fn a_worker_speaks_tls_throughout_and_takes_up_certificates_that_change() {
    let site = Server::start().await;
    let url_file = site.path("url");
    std::fs::write(&url_file, site.url("both", "localhost", "")).unwrap();
    let sink = SinkConfig::Postgres {
        connection: PostgresConnection {
            url_file,
            ssl_mode: Some(SslMode::VerifyFull),
            ca_file: Some(site.authority.write(&site.path("ca"))),
            client_certificate: Some(site.authority.sign("both").write(&site.path("client"))),
        },
        schema: "public".to_owned(),
        table: "readings".to_owned(),
        hypertable: None,
        tables: Box::default(),
    };
    let config = config(&unique("tls"), &["t"], sink);
    let broker = MemoryBroker::new(1);
    let producer = producer(&broker, "t");
    let worker = Worker::start(
        &config,
        broker.source(&config.topics),
        PostgresSink::new(&config).unwrap(),
    );
    let mut upkeep = Upkeep::new(&config).unwrap();
    let stored = async |rows: u64| {
        send(&producer, 0, &record("s", rows - 1));
        wait(&format!("{rows} rows"), async || worker.report().rows == rows).await;
    };
    stored(1).await;
    assert_eq!(
        upkeep.round(Timestamp::now()).await.unwrap().notices,
        Vec::<String>::new()
    );
    let sessions = "SELECT count(*) FILTER (WHERE ssl), count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                    WHERE application_name LIKE 'corrente-%'";
    let row = site.admin.query_one(sessions, &[]).await.unwrap();
    let (encrypted, all): (i64, i64) = (row.get(0), row.get(1));
    assert!(encrypted == all && all >= 2, "{encrypted} of {all} are in TLS");

    // Another authority, of the server first.
    let renewed = Authority::new("the site's next authority");
    let both = format!("{}{}", site.authority.certificate, renewed.certificate);
    site.server.write("root.crt", &both);
    show(&site.server, &renewed.sign("localhost"));
    site.server.reload();
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE 'corrente-%'";
    let port = site.server.port();
    let old = format!(
        "postgres://encrypted:secret@localhost:{port}/postgres?sslmode=verify-full&sslrootcert={}",
        site.path("ca/ca.crt").display()
    );
    wait("the server's new certificate", async || {
        is_encrypted(&old).await.is_err()
    })
    .await;
    site.admin.query_one(end, &[]).await.unwrap();
    send(&producer, 0, &record("s", 1));
    worker.trouble("signed by none of the certificates in").await;
    renewed.write(&site.path("ca"));
    wait("the row that waited", async || worker.report().rows == 2).await;
    wait("no trouble", async || worker.report().trouble.is_none()).await;

    // Then of the worker.
    renewed.sign("both").write(&site.path("client"));
    site.server.write("root.crt", &renewed.certificate);
    site.server.reload();
    site.admin.query_one(end, &[]).await.unwrap();
    stored(3).await;
    worker.stop().await;
    let count = site
        .admin
        .query_one("SELECT count(*) FROM readings", &[])
        .await
        .unwrap();
    assert_eq!(count.get::<_, i64>(0), 3);
}
