//! AMQP 0-9-1, for panels: at least once, each record a persistent message that the broker confirms.
//!
//! 1. The records become messages ([`crate::sink::message`]); one without a routing key is set aside.
//! 2. They are published to a durable topic exchange, and all are confirmed. A message that no queue is bound for
//!    is confirmed too, and gone: whom a panel shows nothing has not asked.
//! 3. The position moves on.
//!
//! A broker keeps no position: that is kept [`outside`](crate::sink::outside). A crash between 1 and 3 repeats
//! messages, whose `message_id` is the record's name ([`crate::sink::record_id`]).
//!
//! In TLS (`amqps://`) the driver gets a stream that is set up here, as those of the other sinks are.

use std::{io, sync::Arc, time::Duration};

use corrente_config::{PipelineConfig, Secrets, pipeline::SinkConfig};
use corrente_crds::sinks::AmqpSink as AmqpSpec;
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ErrorKind, ExchangeKind,
    options::{BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions},
    runtime::default_runtime,
    tcp::{AMQPUriTcpExt as _, RustlsConnector},
    types::FieldTable,
    uri::{AMQPScheme, AMQPUri},
};

use crate::{
    batch::{Batch, DeadLetter, Place, Row},
    sink::{
        Claimed, Sink, SinkError, Stored,
        message::{Template, write_json},
        outside::{self, Offsets, SetAside},
        record_id::record_id,
        tls::{Look, Trust},
    },
    transform::Chain,
};

/// The most bytes of a routing key (AMQP 0-9-1, 4.2.5.3: a short string).
const ROUTING_KEY: usize = 255;
/// How long the broker may take for a batch.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How long a connect may take.
const CONNECT: Duration = Duration::from_secs(10);
/// A message that outlasts the broker, in a queue that does.
const PERSISTENT: u8 = 2;

/// The AMQP sink.
pub struct AmqpSink {
    spec: AmqpSpec,
    secrets: Secrets,
    pipeline: String,
    template: Template,
    chain: Chain,
    outside: Arc<(Box<dyn Offsets>, Box<dyn SetAside>)>,
    session: Option<(Connection, Channel)>,
}

struct Message {
    key: String,
    id: String,
    payload: String,
}

impl AmqpSink {
    /// The sink of a pipeline; `None` where the configuration names another kind.
    pub fn new(
        config: &PipelineConfig,
        secrets: &Secrets,
        offsets: impl Offsets,
        set_aside: impl SetAside,
    ) -> Option<Self> {
        let SinkConfig::Amqp(spec) = &config.sink else {
            return None;
        };
        Some(Self {
            spec: spec.clone(),
            secrets: secrets.clone(),
            pipeline: format!("{}/{}", config.namespace, config.name),
            template: Template::new(&spec.routing_key, ROUTING_KEY),
            chain: Chain::of(config),
            outside: Arc::new((Box::new(offsets), Box::new(set_aside))),
            session: None,
        })
    }

    /// The connection there is, or a new one.
    async fn session(&mut self) -> Result<(Connection, Channel), SinkError> {
        if let Some(session) = self
            .session
            .take()
            .filter(|(connection, _)| connection.status().connected())
        {
            return Ok(session);
        }
        let connected = tokio::time::timeout(CONNECT, self.connect()).await;
        let late = || {
            Err(format!(
                "the AMQP broker does not answer within {} s",
                CONNECT.as_secs()
            ))
        };
        connected
            .unwrap_or_else(|_| late())
            .map_err(SinkError::unreachable)
    }

    async fn connect(&self) -> Result<(Connection, Channel), String> {
        let file = self.secrets.sink_url();
        let url = tokio::fs::read_to_string(&file).await.map_err(|error| {
            format!(
                "failed to read the broker's address from {}: {error}",
                file.display()
            )
        })?;
        // What is wrong with it is not quoted: it holds a password.
        let uri: AMQPUri = url.trim().parse().map_err(|_| {
            format!(
                "the broker's address in {} cannot be used: write amqps://user:password@host:5671/vhost, or amqp:// \
                 without TLS, with %-escapes for special characters of the password",
                file.display()
            )
        })?;
        let trust = Trust::of(&self.spec.tls.clone().unwrap_or_default(), &self.secrets);
        let tls = match uri.scheme {
            AMQPScheme::AMQPS => Some(RustlsConnector::from(trust.client_config(Look::Name)?)),
            AMQPScheme::AMQP if self.spec.tls.is_some() => {
                return Err(format!(
                    "the broker's address in {} is one without TLS, and the sink names certificates: write amqps:// \
                     there, or remove tls",
                    file.display()
                ));
            }
            AMQPScheme::AMQP => None,
        };
        let is_tls = tls.is_some();
        let failed = |what: &str, error: lapin::Error| {
            let reason = match error.kind() {
                ErrorKind::IOError(io) if is_tls => of_tls(&trust, io),
                _ => error.to_string(),
            };
            format!("failed to {what}: {reason}")
        };
        let properties = ConnectionProperties::default()
            .with_connection_name(format!("corrente-pipeline {}", self.pipeline).into());
        let to_broker = |error| failed("connect to the AMQP broker", error);
        let runtime = default_runtime().map_err(to_broker)?;
        let connect = async move |mut uri: AMQPUri, runtime| {
            uri.scheme = AMQPScheme::AMQP;
            let plain = uri.connect_async(&runtime).await?;
            Ok(match &tls {
                None => plain,
                Some(tls) => {
                    let host = uri.authority.host.trim_matches(['[', ']']);
                    plain.into_rustls(tls, host).await?
                }
            })
        };
        let connection = Connection::connector(uri, runtime, connect, properties)
            .await
            .map_err(to_broker)?;
        let channel = connection
            .create_channel()
            .await
            .map_err(|error| failed("open a channel", error))?;
        let durable = ExchangeDeclareOptions {
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        let exchange = self.spec.exchange.as_str();
        channel
            .exchange_declare(
                exchange.into(),
                ExchangeKind::Topic,
                durable,
                FieldTable::default(),
            )
            .await
            .map_err(|error| failed("declare the exchange as a durable topic exchange", error))?;
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await
            .map_err(|error| failed("ask for confirmations", error))?;
        Ok((connection, channel))
    }

    /// Publishes messages in their order, and waits until all are confirmed.
    async fn publish(&self, channel: &Channel, messages: Vec<Message>) -> Result<(), String> {
        let failed = |error: lapin::Error| format!("failed to publish to the AMQP broker: {error}");
        let mut confirms = Vec::with_capacity(messages.len());
        for Message { key, id, payload } in messages {
            let properties = BasicProperties::default()
                .with_content_type("application/json".into())
                .with_delivery_mode(PERSISTENT)
                .with_message_id(id.into());
            let exchange = self.spec.exchange.as_str().into();
            let options = BasicPublishOptions::default();
            let confirm =
                channel.basic_publish(exchange, key.into(), options, payload.as_bytes(), properties);
            confirms.push(confirm.await.map_err(failed)?);
        }
        for confirm in confirms {
            if let Confirmation::Nack(_) = confirm.await.map_err(failed)? {
                return Err(
                    "the AMQP broker takes no messages now: a queue is full, or its node is away".to_owned(),
                );
            }
        }
        Ok(())
    }
}

/// What an I/O error within TLS means.
fn of_tls(trust: &Trust, error: &io::Error) -> String {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    let explained = trust
        .explain(error)
        .or_else(|| trust.explain_text(&error.to_string()));
    let ended = matches!(
        error.kind(),
        BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof
    );
    match (explained, &trust.client) {
        (Some(explained), _) => explained,
        // In TLS 1.3 a server judges our certificate after we have begun to speak, and may end the connection before its
        // reason has reached us.
        (None, None) if ended => format!(
            "the server ended the connection ({error}): if it wants to be shown a certificate, name its Secret in \
             clientCertificateSecret"
        ),
        (None, Some(client)) if ended => format!(
            "the server ended the connection ({error}): it may not accept the certificate in {}",
            client.certificate.display()
        ),
        (None, _) => error.to_string(),
    }
}

impl Sink for AmqpSink {
    async fn open(&mut self) -> Result<(), SinkError> {
        self.session = Some(self.session().await?);
        Ok(())
    }

    async fn claim(&mut self, place: &Place) -> Result<Claimed, SinkError> {
        tokio::task::block_in_place(|| outside::claim(&*self.outside.0, place))
    }

    async fn store(&mut self, batch: &Arc<Batch>) -> Result<Stored, SinkError> {
        let session = self.session().await?;
        let (mut messages, mut letters) = (vec![], vec![]);
        let mut pass = batch.rows(&self.chain);
        while let Some(Row { origin, record }) = pass.next() {
            match self.template.name(record) {
                Ok(key) => {
                    let mut payload = String::new();
                    write_json(record, &mut payload);
                    let id = record_id(&batch.place, &origin, record);
                    // A short string too: a longer name is left out, since the payload says it as well.
                    let id = if id.len() <= ROUTING_KEY {
                        id
                    } else {
                        String::new()
                    };
                    messages.push(Message { key, id, payload });
                }
                Err(refusal) => letters.push(DeadLetter { origin, refusal }),
            }
        }
        let mut sorted = pass.finish();
        letters.append(&mut sorted.dead);
        letters.sort_by_key(|letter| letter.origin.offset);
        let count = messages.len();
        tokio::time::timeout(TIMEOUT, self.publish(&session.1, messages))
            .await
            .unwrap_or_else(|_| Err(format!("the AMQP broker took more than {} s", TIMEOUT.as_secs())))
            .map_err(SinkError::unreachable)?;
        self.session = Some(session);
        tokio::task::block_in_place(|| outside::settle(&*self.outside.0, &*self.outside.1, batch, &letters))?;
        Ok(Stored::new(count as u64, letters.len() as u64, sorted))
    }
}
