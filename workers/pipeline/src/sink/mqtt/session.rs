//! A connection to an MQTT 5 broker that publishes messages and hears what became of each.
//!
//! Acknowledgements name packets by number; which message a number stands for is learned from the order in which
//! the client says that it sent them. After any failure the connection is given up, and the batch begins anew.

use std::{
    collections::HashMap,
    fs, io,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use corrente_config::{
    Secrets,
    secrets::{CA_FILE, PASSWORD_FILE, USERNAME_FILE},
};
use corrente_crds::sinks::MqttSink as MqttSpec;
use rumqttc::{
    Outgoing, TlsConfiguration, Transport,
    v5::{
        AsyncClient, ClientError, Event, EventLoop, Incoming, MqttOptions,
        mqttbytes::{QoS, v5::PubAckReason},
    },
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};

/// Most messages that are on their way at a time.
const IN_FLIGHT: u16 = 100;
/// The most bytes of a packet that is taken: only acknowledgements come.
const INCOMING: u32 = 64 * 1024;
/// How long a connect may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long the broker hears nothing before it gives us up; and how long we count on it not to have.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
const FRESH: Duration = Duration::from_secs(30);

/// A message.
pub struct Message {
    /// The topic.
    pub topic: String,
    /// The payload.
    pub payload: String,
}

/// A connection.
pub struct Session {
    client: AsyncClient,
    events: EventLoop,
    used: Instant,
}

impl Session {
    /// Connects, with the Secrets as they are now.
    pub async fn connect(spec: &MqttSpec, secrets: &Secrets, pipeline: &str) -> Result<Self, String> {
        let (host, port) = spec.address.rsplit_once(':').unwrap_or((&spec.address, "1883"));
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let port = port
            .parse()
            .map_err(|_| format!("{} is no port of a broker", spec.address))?;
        // Two workers of a pipeline must not have one name: the broker would put one of them out.
        let id = format!("corrente-{pipeline}-{:08x}", rand::random::<u32>());
        let mut options = MqttOptions::new(id, host, port);
        options.set_keep_alive(KEEP_ALIVE);
        options.set_clean_start(true);
        options.set_connection_timeout(CONNECT.as_secs());
        options.set_outgoing_inflight_upper_limit(IN_FLIGHT);
        options.set_max_packet_size(Some(INCOMING));
        if spec.credentials_secret.is_some() {
            let folder = secrets.sink_auth();
            options.set_credentials(
                read(&folder.join(USERNAME_FILE))?,
                read(&folder.join(PASSWORD_FILE))?,
            );
        }
        if let Some(tls) = &spec.tls {
            let authorities = tls.ca_secret.as_ref().map(|_| secrets.sink_ca().join(CA_FILE));
            let config = client_config(authorities.as_deref())?;
            options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::new(
                config,
            ))));
        }
        let (client, events) = AsyncClient::new(options, usize::from(IN_FLIGHT));
        let mut session = Self {
            client,
            events,
            used: Instant::now(),
        };
        while !matches!(session.next().await?, Event::Incoming(Incoming::ConnAck(_))) {}
        Ok(session)
    }

    /// Whether the broker cannot have given us up for saying nothing.
    pub fn is_fresh(&self) -> bool {
        self.used.elapsed() < FRESH
    }

    async fn next(&mut self) -> Result<Event, String> {
        let event = self.events.poll().await;
        event.map_err(|error| format!("the MQTT broker cannot be reached: {error}"))
    }

    /// Publishes messages in their order. Gives those that the broker refuses for good, by their place.
    pub async fn publish(
        &mut self,
        messages: Vec<Message>,
        retain: bool,
    ) -> Result<Vec<(usize, String)>, String> {
        let count = messages.len();
        let mut waiting = messages.into_iter().peekable();
        let (mut sent, mut acknowledged) = (0, 0);
        let (mut numbers, mut refused) = (HashMap::new(), vec![]);
        while acknowledged < count {
            while let Some(Message { topic, payload }) = waiting.peek() {
                match self
                    .client
                    .try_publish(topic, QoS::AtLeastOnce, retain, payload.clone())
                {
                    Ok(()) => waiting.next(),
                    Err(ClientError::TryRequest(_)) => break,
                    Err(error) => return Err(format!("the MQTT client has ended: {error}")),
                };
            }
            match self.next().await? {
                Event::Outgoing(Outgoing::Publish(number)) => {
                    numbers.insert(number, sent);
                    sent += 1;
                }
                Event::Incoming(Incoming::PubAck(ack)) => {
                    let Some(at) = numbers.remove(&ack.pkid) else {
                        continue;
                    };
                    acknowledged += 1;
                    match ack.reason {
                        PubAckReason::Success | PubAckReason::NoMatchingSubscribers => {}
                        PubAckReason::TopicNameInvalid | PubAckReason::PayloadFormatInvalid => {
                            refused.push((at, format!("the MQTT broker refuses it: {:?}", ack.reason)));
                        }
                        // Rights and quotas are for a person to put right: nothing is given up for them.
                        reason => {
                            return Err(format!(
                                "the MQTT broker takes no messages of this topic: {reason:?}"
                            ));
                        }
                    }
                }
                Event::Incoming(Incoming::Disconnect(reason)) => {
                    return Err(format!(
                        "the MQTT broker ended the connection: {:?}",
                        reason.reason_code
                    ));
                }
                _ => {}
            }
        }
        self.used = Instant::now();
        Ok(refused)
    }
}

fn unreadable(path: &Path, error: &io::Error) -> String {
    format!("failed to read {}: {error}", path.display())
}

fn read(path: &Path) -> Result<String, String> {
    let text = fs::read_to_string(path).map_err(|error| unreadable(path, &error))?;
    // Editors and `echo` end a file with a newline.
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// TLS that trusts the authorities in a file, or Mozilla's.
fn client_config(authorities: Option<&Path>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    match authorities {
        None => {
            roots.add_parsable_certificates(webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().cloned());
        }
        Some(path) => {
            let pem = fs::read(path).map_err(|error| unreadable(path, &error))?;
            let certificates = CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok);
            if roots.add_parsable_certificates(certificates).0 == 0 {
                return Err(format!("{} holds no certificate in PEM form", path.display()));
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("failed to set up TLS: {error}"))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
