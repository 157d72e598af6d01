//! Modbus/TCP Security: both sides show certificates, which are looked at again when they change. The servers
//! are in this process, but for the last test, which reads pymodbus.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use corrente_config::EndpointAddress;
use corrente_crds::{poller::Transport, profile::Function};
use corrente_modbus::adu::{Request, mbap, pdu};
use corrente_poller::{
    client::{
        ConnectError, Connector, ModbusClient, ReadBlock, ReadError, Registers, TcpConnector, tls::TlsSource,
    },
    line::{Line, LineError},
};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};
use rustls::{
    RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
    version::{TLS12, TLS13},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

const BLOCK: ReadBlock = ReadBlock {
    unit: 1,
    function: Function::Holding,
    address: 10,
    count: 4,
};

/// A certificate and its key.
#[derive(Clone)]
struct Pair {
    certificate: String,
    key: String,
}

/// A certificate authority.
struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "the site's authority");
        Self {
            certificate: params.self_signed(&key).unwrap().pem(),
            issuer: Issuer::new(params, key),
        }
    }

    fn sign(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        // A certificate whose subject is its issuer's passes for one that has signed itself.
        params.distinguished_name.push(DnType::CommonName, name);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        Pair {
            certificate: params.signed_by(&key, &self.issuer).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }
}

/// A folder as a Secret is mounted.
fn secret(ca: &str, own: &Pair) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), ca, own);
    folder
}

fn write(folder: &Path, ca: &str, own: &Pair) {
    fs::write(folder.join("ca.crt"), ca).unwrap();
    fs::write(folder.join("tls.crt"), &own.certificate).unwrap();
    fs::write(folder.join("tls.key"), &own.key).unwrap();
}

/// A server: registers hold their own addresses; it remembers the certificates that it was shown.
struct Server {
    address: SocketAddr,
    shown: Arc<Mutex<Vec<Vec<u8>>>>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(own: &Pair, ca: &str, versions: &[&'static SupportedProtocolVersion]) -> Server {
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap())
        .unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(own.certificate.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap(),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shown: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let noted = shown.clone();
    let task = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (acceptor, noted) = (acceptor.clone(), noted.clone());
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    return;
                };
                let peer = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
                noted.lock().unwrap().push(peer);
                let mut request = [0; mbap::REQUEST];
                while stream.read_exact(&mut request).await.is_ok() {
                    let (frame, _) = mbap::decode(&request).unwrap().unwrap();
                    let question = Request::of(frame.pdu).unwrap().question().unwrap();
                    let words = question.address()..question.address() + question.count();
                    let mut out = Vec::new();
                    mbap::answer(&mut out, frame.transaction, frame.unit, |out| {
                        let words: Vec<u16> = words.collect();
                        pdu::registers(question.function(), words.into_iter(), out);
                    });
                    stream.write_all(&out).await.unwrap();
                    stream.flush().await.unwrap();
                }
            });
        }
    });
    Server { address, shown, task }
}

fn connector(address: impl ToString, folder: &Path, server_name: Option<&str>) -> TcpConnector {
    let address = EndpointAddress::normalise(&address.to_string()).unwrap();
    let source =
        TlsSource::new(folder, "gateway-3", server_name.map(str::to_owned)).looking_every(Duration::ZERO);
    TcpConnector::new(&address, Transport::Tls, Duration::from_secs(10)).with_tls(source)
}

async fn read(connector: &TcpConnector) -> Result<Registers, String> {
    let mut client = connector
        .connect(false)
        .await
        .map_err(|ConnectError { reason, .. }| reason)?;
    client.read(BLOCK).await.map_err(|error| error.to_string())
}

#[tokio::test]
async fn reads_over_both_versions_by_address_and_by_name() {
    let ca = Authority::new();
    let client = secret(&ca.certificate, &ca.sign("poller", |_| {}));
    for version in [&TLS12, &TLS13] {
        for (certified, server_name) in [("127.0.0.1", None), ("gateway-3.site", Some("gateway-3.site"))] {
            let server = serve(&ca.sign(certified, |_| {}), &ca.certificate, &[version]).await;
            let connector = connector(server.address, client.path(), server_name);
            assert_eq!(
                read(&connector).await,
                Ok(Registers::Words(vec![10, 11, 12, 13])),
                "{version:?} {certified}"
            );
        }
    }
}

#[tokio::test]
async fn what_does_not_fit_is_named() {
    let (ca, other) = (Authority::new(), Authority::new());
    let own = ca.sign("poller", |_| {});
    let good = secret(&ca.certificate, &own);
    let expired = |params: &mut CertificateParams| params.not_after = date_time_ymd(2001, 1, 1);
    let early = |params: &mut CertificateParams| params.not_before = date_time_ymd(3000, 1, 1);
    let here = "127.0.0.1";

    for (own, why) in [
        (ca.sign(here, expired), "the server's certificate has expired"),
        (ca.sign(here, early), "not valid yet"),
        (
            other.sign(here, |_| {}),
            "signed by none of the certificates in ca.crt",
        ),
        (ca.sign("gateway-4", |_| {}), "set tls.serverName"),
    ] {
        let server = serve(&own, &ca.certificate, &[&TLS13]).await;
        let said = read(&connector(server.address, good.path(), None))
            .await
            .unwrap_err();
        assert!(said.contains(why), "{said}");
    }

    for version in [&TLS12, &TLS13] {
        let server = serve(&ca.sign(here, |_| {}), &ca.certificate, &[version]).await;
        let client = secret(&ca.certificate, &other.sign("poller", |_| {}));
        let said = read(&connector(server.address, client.path(), None))
            .await
            .unwrap_err();
        assert!(
            said.contains("not accept the poller's certificate in tls.crt"),
            "{said}"
        );
    }

    // Nobody speaks TLS here.
    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = plain.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let (mut stream, _) = plain.accept().await.unwrap();
        stream.write_all(&[0, 1, 0, 0, 0, 3, 1, 0x83, 1]).await.unwrap();
        let _ = stream.read(&mut [0; 1024]).await;
    });
    let said = read(&connector(address, good.path(), None)).await.unwrap_err();
    assert!(said.contains("does not speak TLS on this port"), "{said}");
    task.await.unwrap();
}

#[tokio::test]
async fn what_is_wrong_with_the_secret_is_named() {
    let ca = Authority::new();
    let (own, another) = (ca.sign("poller", |_| {}), ca.sign("poller", |_| {}));
    let server = serve(&ca.sign("127.0.0.1", |_| {}), &ca.certificate, &[&TLS13]).await;
    let said = |folder: TempDir| {
        let connector = connector(server.address, folder.path(), None);
        async move {
            let said = read(&connector).await.unwrap_err();
            drop(folder);
            said
        }
    };
    for file in ["ca.crt", "tls.crt", "tls.key"] {
        let folder = secret(&ca.certificate, &own);
        fs::remove_file(folder.path().join(file)).unwrap();
        let said = said(folder).await;
        assert!(
            said.contains("Secret gateway-3") && said.contains(&format!("has no {file}: add that key")),
            "{said}"
        );
    }
    for (file, content, why) in [
        ("ca.crt", "", "there is no certificate in it"),
        ("tls.crt", "nothing", "there is no certificate in it"),
        ("tls.key", "nothing", "there is no private key in it"),
        ("tls.key", &*another.key, "the key is not the certificate's"),
    ] {
        let folder = secret(&ca.certificate, &own);
        fs::write(folder.path().join(file), content).unwrap();
        let said = said(folder).await;
        assert!(
            said.contains(file) && said.contains("Secret gateway-3") && said.contains(why),
            "{said}"
        );
    }
    let nowhere = connector(server.address, Path::new("/nowhere/at/all"), None);
    let said = read(&nowhere).await.unwrap_err();
    assert!(said.contains("is not there: make the Secret"), "{said}");
    let address = EndpointAddress::normalise(&server.address.to_string()).unwrap();
    let none = TcpConnector::new(&address, Transport::Tls, Duration::from_secs(10));
    let said = read(&none).await.unwrap_err();
    assert!(said.contains("tls.secretName"), "{said}");
}

/// As the kubelet does it: the files are links into a folder that is swapped as a whole.
#[tokio::test]
async fn new_certificates_are_taken_up_and_bad_ones_are_not() {
    let ca = Authority::new();
    let [first, second, third] = [1, 2, 3].map(|_| ca.sign("poller", |_| {}));
    let server = serve(&ca.sign("127.0.0.1", |_| {}), &ca.certificate, &[&TLS13]).await;
    let volume = tempfile::tempdir().unwrap();
    let swap = |name: &str, ca: &str, own: &Pair| {
        let folder = volume.path().join(name);
        fs::create_dir(&folder).unwrap();
        write(&folder, ca, own);
        std::os::unix::fs::symlink(name, volume.path().join("..new")).unwrap();
        fs::rename(volume.path().join("..new"), volume.path().join("..data")).unwrap();
    };
    swap("1", &ca.certificate, &first);
    for file in ["ca.crt", "tls.crt", "tls.key"] {
        std::os::unix::fs::symlink(Path::new("..data").join(file), volume.path().join(file)).unwrap();
    }
    let connector = connector(server.address, volume.path(), None);
    let mut line = Line::new(connector, Duration::ZERO, ());
    let mut ask = async || -> Result<(), LineError> {
        let words = line.read(BLOCK, Duration::ZERO, 0).await?;
        assert_eq!(words, Registers::Words(vec![10, 11, 12, 13]));
        Ok(())
    };
    let der = |pair: &Pair| {
        CertificateDer::from_pem_slice(pair.certificate.as_bytes())
            .unwrap()
            .to_vec()
    };
    let shown = || server.shown.lock().unwrap().clone();
    ask().await.unwrap();
    ask().await.unwrap();
    assert_eq!(shown(), [der(&first)], "one connection for both");
    swap("2", &ca.certificate, &second);
    ask().await.unwrap();
    assert_eq!(shown(), [der(&first), der(&second)]);
    // A key that is not the certificate's: the connection stays, and goes on.
    let wrong = Pair {
        key: first.key.clone(),
        ..third.clone()
    };
    swap("3", &ca.certificate, &wrong);
    ask().await.unwrap();
    assert_eq!(shown().len(), 2);
    swap("4", &ca.certificate, &third);
    ask().await.unwrap();
    assert_eq!(shown()[2..], [der(&third)]);
}

/// A server that we did not write.
#[tokio::test]
#[ignore = "needs pymodbus: set CORRENTE_PYTHON to a Python that has it"]
async fn pymodbus_is_read_and_refuses_strangers() {
    let (ca, other) = (Authority::new(), Authority::new());
    let folder = secret(&ca.certificate, &ca.sign("127.0.0.1", |_| {}));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../e2e/pymodbus/secure.py");
    // It ends when this test does, since that closes its input.
    let mut child = Command::new(std::env::var("CORRENTE_PYTHON").unwrap())
        .arg(script)
        .arg(folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let port: u16 = line.trim().strip_prefix("READY ").unwrap().parse().unwrap();
    let address = format!("127.0.0.1:{port}");
    let friend = secret(&ca.certificate, &ca.sign("poller", |_| {}));
    let connector_of = |folder: &TempDir| connector(&address, folder.path(), None);
    let mut client = connector_of(&friend).connect(false).await.unwrap();
    for _ in 0..3 {
        let words = client.read(BLOCK).await;
        assert_eq!(words, Ok(Registers::Words(vec![1, 2, 3, 4])));
    }
    let nothing = client
        .read(ReadBlock {
            address: 900,
            ..BLOCK
        })
        .await;
    assert!(matches!(nothing, Err(ReadError::Exception(_))), "{nothing:?}");
    let stranger = secret(&ca.certificate, &other.sign("poller", |_| {}));
    let said = read(&connector_of(&stranger)).await.unwrap_err();
    assert!(
        said.contains("not accept the poller's certificate in tls.crt"),
        "{said}"
    );
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}
