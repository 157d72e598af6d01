//! A connection to an MQTT 5 broker that publishes messages and hears what became of each.
//!
//! Acknowledgements name packets by number; which message a number stands for is learned from the order in which
//! the client says that it sent them. After any failure the connection is given up, and what is not acknowledged begins
//! anew.
//!
//! A message may be larger than the broker takes. One that says so when it connects is not even sent it; another answers
//! with a reason that the client does not know, or ends the connection. None of these says which message it was, so it
//! was the largest of those that are not acknowledged.

use std::{
    collections::HashMap,
    fs, io,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use corrente_config::{
    Secrets,
    secrets::{PASSWORD_FILE, USERNAME_FILE},
};
use corrente_crds::sinks::MqttSink as MqttSpec;
use rumqttc::{
    Outgoing, TlsConfiguration, Transport,
    v5::{
        AsyncClient, ClientError, ConnectionError, Event, EventLoop, Incoming, MqttOptions, StateError,
        mqttbytes::{
            self, QoS,
            v5::{DisconnectReasonCode, PubAckReason},
        },
    },
};

use crate::sink::tls::{Look, Trust};

/// Most messages that are on their way at a time.
const IN_FLIGHT: u16 = 100;
/// The most bytes of a packet that is taken: only acknowledgements come.
const INCOMING: u32 = 64 * 1024;
/// How long a connect may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long the broker hears nothing before it gives us up; and how long we count on it not to have.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
const FRESH: Duration = Duration::from_secs(30);

/// The reason code of a packet that is too large (MQTT 5, 2.4), which the client does not know in an acknowledgement.
const PACKET_TOO_LARGE: u8 = 0x95;

/// A message.
pub struct Message {
    /// The topic.
    pub topic: String,
    /// The payload.
    pub payload: String,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing is known yet.
    Waiting,
    /// The broker has it.
    Told,
    /// The broker refuses it for good, for this reason.
    Refused(String),
}

/// Why messages were not published; the connection is of no use then.
#[derive(Debug)]
pub enum Failure {
    /// The connection was lost, or the broker ended it.
    Lost(String),
    /// The broker takes none of these messages; a person must put it right.
    Refusing(String),
    /// Some message is larger than the broker takes.
    TooLarge(String),
}

/// What an error of the client says of what was to be published.
fn failure(error: &ConnectionError) -> Failure {
    let is_size = match error {
        ConnectionError::MqttState(state) => matches!(
            state,
            StateError::OutgoingPacketTooLarge { .. }
                | StateError::Deserialization(
                    mqttbytes::Error::OutgoingPacketTooLarge { .. }
                        | mqttbytes::Error::InvalidConnectReturnCode(PACKET_TOO_LARGE)
                )
                | StateError::ServerDisconnect {
                    reason_code: DisconnectReasonCode::PacketTooLarge,
                    ..
                }
        ),
        _ => false,
    };
    if is_size {
        return Failure::TooLarge(error.to_string());
    }
    Failure::Lost(format!("the MQTT broker cannot be reached: {error}"))
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
        let trust = spec.tls.as_ref().map(|tls| Trust::of(tls, secrets));
        if let Some(trust) = &trust {
            let config = trust.client_config(Look::Name)?;
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
        loop {
            match session.events.poll().await {
                Ok(Event::Incoming(Incoming::ConnAck(_))) => return Ok(session),
                Ok(_) => {}
                Err(error) => {
                    let said = error.to_string();
                    // What comes after the handshake, such as an alert for want of a certificate, the client has as a text.
                    let of_tls = trust
                        .as_ref()
                        .and_then(|trust| trust.explain(&error).or_else(|| trust.explain_text(&said)));
                    let reason = of_tls.unwrap_or(said);
                    return Err(format!("the MQTT broker cannot be reached: {reason}"));
                }
            }
        }
    }

    /// Whether the broker cannot have given us up for saying nothing.
    pub fn is_fresh(&self) -> bool {
        self.used.elapsed() < FRESH
    }

    /// Publishes those messages in their order that wait, and says of each what became of it.
    pub async fn publish(&mut self, messages: &mut [Message], retain: bool) -> Result<(), Failure> {
        let places: Vec<usize> = (0..messages.len())
            .filter(|at| messages.get(*at).is_some_and(|m| m.outcome == Outcome::Waiting))
            .collect();
        let (mut given, mut sent, mut acknowledged) = (0, 0, 0);
        let mut numbers = HashMap::new();
        while acknowledged < places.len() {
            while let Some(message) = places.get(given).and_then(|at| messages.get(*at)) {
                let Message { topic, payload, .. } = message;
                match self
                    .client
                    .try_publish(topic, QoS::AtLeastOnce, retain, payload.clone())
                {
                    Ok(()) => given += 1,
                    Err(ClientError::TryRequest(_)) => break,
                    Err(error) => return Err(Failure::Lost(format!("the MQTT client has ended: {error}"))),
                };
            }
            match self.events.poll().await.map_err(|error| failure(&error))? {
                Event::Outgoing(Outgoing::Publish(number)) => {
                    numbers.insert(number, sent);
                    sent += 1;
                }
                Event::Incoming(Incoming::PubAck(ack)) => {
                    let place = numbers.remove(&ack.pkid).and_then(|sent: usize| places.get(sent));
                    let Some(message) = place.and_then(|at| messages.get_mut(*at)) else {
                        continue;
                    };
                    acknowledged += 1;
                    message.outcome = match ack.reason {
                        PubAckReason::Success | PubAckReason::NoMatchingSubscribers => Outcome::Told,
                        PubAckReason::TopicNameInvalid | PubAckReason::PayloadFormatInvalid => {
                            Outcome::Refused(format!("the MQTT broker refuses it: {:?}", ack.reason))
                        }
                        // Rights and quotas are for a person to put right: nothing is given up for them.
                        reason => {
                            return Err(Failure::Refusing(format!(
                                "the MQTT broker takes no messages of the topic {}: {reason:?}. Grant the right or raise the \
                                 quota there, or name another topic; the records wait",
                                message.topic
                            )));
                        }
                    };
                }
                Event::Incoming(Incoming::Disconnect(reason)) => {
                    let why = format!("the MQTT broker ended the connection: {:?}", reason.reason_code);
                    return Err(match reason.reason_code {
                        DisconnectReasonCode::PacketTooLarge => Failure::TooLarge(why),
                        _ => Failure::Lost(why),
                    });
                }
                _ => {}
            }
        }
        self.used = Instant::now();
        Ok(())
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
