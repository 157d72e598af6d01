//! The sinks in TLS, each against the real server: the right authority, another one, a name that the certificate is not
//! for, and certificates of the worker where the server asks for one.
//!
//! Every server is `localhost` by its certificate, so that `127.0.0.1` is the wrong name.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use corrente_config::{PipelineConfig, Secrets, pipeline::SinkConfig};
use corrente_pipeline::sink::{Sink, amqp::AmqpSink, influx::InfluxSink, mongo::MongoSink, mqtt::MqttSink};
use corrente_runtime::memory::MemoryBroker;
use serde_json::json;
use tempfile::TempDir;

use super::{
    contract::Outside,
    server::{Server, cache, free_port},
};
use crate::{
    certificates::Authority,
    support::{Worker, config, producer, record, send, unique, wait},
};

/// What the server and the workers are given.
struct Site {
    folder: TempDir,
    authority: Authority,
    /// `tls.crt`, `tls.key` and `ca.crt` of the server.
    server: PathBuf,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new("the site's authority");
        let server = authority.sign("localhost").write(&folder.path().join("server"));
        authority.write(&server);
        Self {
            folder,
            authority,
            server,
        }
    }

    /// The Secrets of a worker that trusts `authority`.
    fn secrets(&self, authority: &Authority) -> Secrets {
        let secrets = Secrets::new(self.folder.path().join(unique("secrets")));
        authority.write(&secrets.sink_ca());
        secrets
    }

    fn right(&self) -> Secrets {
        self.secrets(&self.authority)
    }

    fn wrong(&self) -> Secrets {
        self.secrets(&Authority::new("another"))
    }
}

/// With the address of the sink in a Secret.
fn with_url(secrets: Secrets, url: &str) -> Secrets {
    fs::create_dir_all(secrets.sink_url().parent().unwrap()).unwrap();
    fs::write(secrets.sink_url(), url).unwrap();
    secrets
}

fn worker<K: Sink>(sink: SinkConfig, made: impl Fn(&PipelineConfig) -> K) -> Worker {
    let config = config(&unique("tls"), &["t"], sink);
    let broker = MemoryBroker::new(1);
    send(&producer(&broker, "t"), 0, &record("s", 0));
    Worker::start(&config, broker.source(&config.topics), made(&config))
}

async fn stores<K: Sink>(sink: SinkConfig, made: impl Fn(&PipelineConfig) -> K) {
    let worker = worker(sink, made);
    wait("the row", async || {
        if let Some(trouble) = worker.report().trouble {
            panic!("{}", trouble.reason);
        }
        worker.report().rows == 1
    })
    .await;
    worker.stop().await;
}

async fn refuses<K: Sink>(sink: SinkConfig, made: impl Fn(&PipelineConfig) -> K, says: &str) {
    let worker = worker(sink, made);
    let mut said = String::new();
    wait("a trouble", async || {
        said = worker
            .report()
            .trouble
            .map(|trouble| trouble.reason)
            .unwrap_or_default();
        !said.is_empty()
    })
    .await;
    assert!(said.contains(says), "{said}");
    worker.stop().await;
}

const UNTRUSTED: &str = "signed by none of the certificates in";
const MISNAMED: &str = "is not for \"127.0.0.1\" but for";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs InfluxDB"]
async fn influxdb() {
    let site = Site::new();
    let certificates = site.server.clone();
    let server = Server::start(move |folder, port| influxd(folder, port, &certificates)).await;
    let root = fs::read(site.server.join("ca.crt")).unwrap();
    let root = ureq::tls::Certificate::from_pem(&root).unwrap();
    let tls = ureq::tls::TlsConfig::builder().root_certs(ureq::tls::RootCerts::from([root]));
    let agent = ureq::Agent::config_builder().tls_config(tls.build()).build();
    ureq::Agent::new_with_config(agent)
        .post(format!("https://localhost:{}/query", server.port))
        .query("q", "CREATE DATABASE metering")
        .send_empty()
        .unwrap();
    let sink = |host: &str| {
        let url = format!("https://{host}:{}", server.port);
        let sink = json!({"url": url, "version": "v1", "database": "metering", "caSecret": "ca"});
        SinkConfig::Influxdb(serde_json::from_value(sink).unwrap())
    };
    let made = |secrets: Secrets| {
        move |config: &PipelineConfig| {
            InfluxSink::new(config, &secrets, Outside::default(), Outside::default()).unwrap()
        }
    };
    stores(sink("localhost"), made(site.right())).await;
    refuses(sink("localhost"), made(site.wrong()), UNTRUSTED).await;
    refuses(sink("127.0.0.1"), made(site.right()), MISNAMED).await;
}

fn influxd(folder: &Path, port: u16, certificates: &Path) -> Command {
    let file = folder.join("influxdb.conf");
    let at = |folder: &Path, name: &str| folder.join(name).display().to_string();
    let text = format!(
        "reporting-disabled = true\nbind-address = \"127.0.0.1:0\"\n[meta]\ndir = {:?}\n[data]\ndir = {:?}\nwal-dir = {:?}\n\
         [monitor]\nstore-enabled = false\n[http]\nbind-address = \"127.0.0.1:{port}\"\nlog-enabled = false\n\
         https-enabled = true\nhttps-certificate = {:?}\nhttps-private-key = {:?}\n",
        at(folder, "meta"),
        at(folder, "data"),
        at(folder, "wal"),
        at(certificates, "tls.crt"),
        at(certificates, "tls.key"),
    );
    fs::write(&file, text).unwrap();
    let mut command = Command::new("influxd");
    command.arg("-config").arg(file);
    command
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs FerretDB"]
async fn mongodb() {
    let site = Site::new();
    let certificates = site.server.clone();
    let server = Server::start(move |folder, port| ferretdb(folder, port, &certificates)).await;
    let sink = || {
        let sink = json!({"connectionSecret": {"name": "s", "key": "url"}, "database": "metering", "caSecret": "ca"});
        SinkConfig::Mongodb(serde_json::from_value(sink).unwrap())
    };
    // What the address says against TLS does not count beside an authority.
    let url = |host: &str| {
        format!(
            "mongodb://{host}:{}/?tls=true&tlsInsecure=true&serverSelectionTimeoutMS=700",
            server.port
        )
    };
    let made = |secrets: Secrets| {
        move |config: &PipelineConfig| MongoSink::new(config, &secrets, Outside::default()).unwrap()
    };
    stores(sink(), made(with_url(site.right(), &url("localhost")))).await;
    refuses(sink(), made(with_url(site.wrong(), &url("localhost"))), UNTRUSTED).await;
    refuses(
        sink(),
        made(with_url(site.right(), &url("127.0.0.1"))),
        "not valid for name",
    )
    .await;
}

fn ferretdb(folder: &Path, port: u16, certificates: &Path) -> Command {
    let data = folder.join("data");
    fs::create_dir_all(&data).unwrap();
    let mut command = Command::new(cache().join("bin/ferretdb"));
    command
        .arg(format!("127.0.0.1:{port}"))
        .arg(data)
        .arg(certificates);
    command
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Mosquitto"]
async fn mqtt() {
    let site = Site::new();
    let certificates = site.server.clone();
    let server = Server::start(move |folder, port| mosquitto(folder, port, &certificates)).await;
    let sink = |host: &str, client: Option<&str>| {
        let tls = json!({"caSecret": "ca", "clientCertificateSecret": client});
        let sink = json!({"address": format!("{host}:{}", server.port), "tls": tls});
        SinkConfig::Mqtt(serde_json::from_value(sink).unwrap())
    };
    let made = |secrets: Secrets| {
        move |config: &PipelineConfig| {
            MqttSink::new(config, &secrets, Outside::default(), Outside::default()).unwrap()
        }
    };
    let showing = |authority: &Authority| {
        let secrets = site.right();
        authority.sign("corrente").write(&secrets.sink_client());
        secrets
    };
    stores(sink("localhost", Some("c")), made(showing(&site.authority))).await;
    refuses(sink("localhost", None), made(site.wrong()), UNTRUSTED).await;
    refuses(sink("127.0.0.1", None), made(site.right()), MISNAMED).await;
    refuses(
        sink("localhost", None),
        made(site.right()),
        "clientCertificateSecret",
    )
    .await;
    let stranger = showing(&Authority::new("another"));
    refuses(
        sink("localhost", Some("c")),
        made(stranger),
        "does not accept the certificate in",
    )
    .await;
}

fn mosquitto(folder: &Path, port: u16, certificates: &Path) -> Command {
    let file = folder.join("mosquitto.conf");
    let at = certificates.display();
    let text = format!(
        "listener {port} 127.0.0.1\nallow_anonymous true\nuser root\ncafile {at}/ca.crt\ncertfile {at}/tls.crt\n\
         keyfile {at}/tls.key\nrequire_certificate true\nuse_identity_as_username true\n"
    );
    fs::write(&file, text).unwrap();
    let mut command = Command::new("/usr/sbin/mosquitto");
    command.arg("-c").arg(file);
    command
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ"]
async fn amqp() {
    let site = Site::new();
    let certificates = site.server.clone();
    let server = Server::start(move |folder, port| rabbitmq(folder, port, &certificates)).await;
    let sink = |client: Option<&str>| {
        let tls = json!({"caSecret": "ca", "clientCertificateSecret": client});
        let sink = json!({"connectionSecret": {"name": "s", "key": "url"}, "tls": tls});
        SinkConfig::Amqp(serde_json::from_value(sink).unwrap())
    };
    let url = |scheme: &str, host: &str| format!("{scheme}://guest:guest@{host}:{}/%2f", server.port);
    let made = |secrets: Secrets| {
        move |config: &PipelineConfig| {
            AmqpSink::new(config, &secrets, Outside::default(), Outside::default()).unwrap()
        }
    };
    let showing = |authority: &Authority| {
        let secrets = with_url(site.right(), &url("amqps", "localhost"));
        authority.sign("corrente").write(&secrets.sink_client());
        secrets
    };
    // The port is open a moment before anybody is let in.
    let first = worker(sink(Some("c")), made(showing(&site.authority)));
    wait("the first message", async || first.report().rows == 1).await;
    first.stop().await;
    let wrong = with_url(site.wrong(), &url("amqps", "localhost"));
    refuses(sink(None), made(wrong), UNTRUSTED).await;
    let misnamed = with_url(site.right(), &url("amqps", "127.0.0.1"));
    refuses(sink(None), made(misnamed), MISNAMED).await;
    let silent = with_url(site.right(), &url("amqps", "localhost"));
    refuses(sink(None), made(silent), "clientCertificateSecret").await;
    let stranger = showing(&Authority::new("another"));
    refuses(sink(Some("c")), made(stranger), "accept the certificate in").await;
    let plain = with_url(site.right(), &url("amqp", "localhost"));
    refuses(sink(None), made(plain), "write amqps://").await;
}

fn rabbitmq(folder: &Path, port: u16, certificates: &Path) -> Command {
    let home = fs::read_dir("/usr/lib/rabbitmq/lib").unwrap().next().unwrap();
    let at = certificates.display();
    let text = format!(
        "listeners.tcp = none\nlisteners.ssl.1 = 127.0.0.1:{port}\nssl_options.cacertfile = {at}/ca.crt\n\
         ssl_options.certfile = {at}/tls.crt\nssl_options.keyfile = {at}/tls.key\nssl_options.verify = verify_peer\n\
         ssl_options.fail_if_no_peer_cert = true\n"
    );
    fs::write(folder.join("rabbitmq.conf"), text).unwrap();
    fs::write(folder.join("plugins"), "[].\n").unwrap();
    let mut command = Command::new(home.unwrap().path().join("sbin/rabbitmq-server"));
    command
        .env("HOME", folder)
        .env("RABBITMQ_NODENAME", format!("corrente{port}@localhost"))
        .env("RABBITMQ_DIST_PORT", free_port().to_string())
        .env("RABBITMQ_CONFIG_FILE", folder.join("rabbitmq.conf"))
        .env("RABBITMQ_MNESIA_BASE", folder.join("mnesia"))
        .env("RABBITMQ_LOG_BASE", folder.join("logs"))
        .env("RABBITMQ_ENABLED_PLUGINS_FILE", folder.join("plugins"))
        .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
        .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "+S 2:2");
    command
}
