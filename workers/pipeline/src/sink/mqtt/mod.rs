//! MQTT 5, for panels: at least once, each record a message of quality of service 1.
//!
//! 1. The records become messages ([`crate::sink::message`]); one without a topic is set aside.
//! 2. They are published, some at a time, and each is acknowledged ([`session`]); what the broker refuses for
//!    its topic, its payload or its size is set aside. What it may not publish waits for a person.
//! 3. The position moves on.
//!
//! A broker keeps no position: that is kept [`outside`](crate::sink::outside). A crash between 1 and 3 repeats
//! messages, which carry the same `stream` and `seq` in their JSON.

use std::{sync::Arc, time::Duration};

use corrente_config::{PipelineConfig, Secrets, pipeline::SinkConfig};
use corrente_crds::sinks::MqttSink as MqttSpec;

use self::session::{Failure, Message, Outcome, Session};
use crate::{
    batch::{Batch, DeadLetter, Place, Refusal, Row},
    sink::{
        Claimed, Sink, SinkError, Stored,
        message::{Template, write_json},
        outside::{self, Offsets, SetAside},
    },
    transform::Chain,
};

mod session;

/// The most bytes of a topic (MQTT 5, 1.5.4).
const TOPIC: usize = 65_535;
/// How long the broker may take for a batch.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The MQTT sink.
pub struct MqttSink {
    spec: MqttSpec,
    secrets: Secrets,
    pipeline: String,
    template: Template,
    chain: Chain,
    outside: Arc<(Box<dyn Offsets>, Box<dyn SetAside>)>,
    session: Option<Session>,
}

impl MqttSink {
    /// The sink of a pipeline; `None` where the configuration names another kind.
    pub fn new(
        config: &PipelineConfig,
        secrets: &Secrets,
        offsets: impl Offsets,
        set_aside: impl SetAside,
    ) -> Option<Self> {
        let SinkConfig::Mqtt(spec) = &config.sink else {
            return None;
        };
        Some(Self {
            spec: spec.clone(),
            secrets: secrets.clone(),
            pipeline: format!("{}-{}", config.namespace, config.name),
            template: Template::new(&spec.topic, TOPIC),
            chain: Chain::of(config),
            outside: Arc::new((Box::new(offsets), Box::new(set_aside))),
            session: None,
        })
    }

    /// The connection there is, or a new one.
    async fn session(&mut self) -> Result<Session, SinkError> {
        match self.session.take().filter(Session::is_fresh) {
            Some(session) => Ok(session),
            None => connect(&self.spec, &self.secrets, &self.pipeline).await,
        }
    }
}

async fn connect(spec: &MqttSpec, secrets: &Secrets, pipeline: &str) -> Result<Session, SinkError> {
    let session = Session::connect(spec, secrets, pipeline).await;
    session.map_err(SinkError::unreachable)
}

impl Sink for MqttSink {
    async fn open(&mut self) -> Result<(), SinkError> {
        self.session = Some(self.session().await?);
        Ok(())
    }

    async fn claim(&mut self, place: &Place) -> Result<Claimed, SinkError> {
        tokio::task::block_in_place(|| outside::claim(&*self.outside.0, place))
    }

    async fn store(&mut self, batch: &Arc<Batch>) -> Result<Stored, SinkError> {
        let mut session = self.session().await?;
        let (mut messages, mut origins, mut letters) = (vec![], vec![], vec![]);
        let mut pass = batch.rows(&self.chain);
        while let Some(Row { origin, record }) = pass.next() {
            match self.template.name(record) {
                Ok(topic) => {
                    let mut payload = String::new();
                    write_json(record, &mut payload);
                    messages.push(Message {
                        topic,
                        payload,
                        outcome: Outcome::Waiting,
                    });
                    origins.push(origin);
                }
                Err(refusal) => letters.push(DeadLetter { origin, refusal }),
            }
        }
        let mut sorted = pass.finish();
        letters.append(&mut sorted.dead);
        loop {
            let published = session.publish(&mut messages, self.spec.retain);
            let published = tokio::time::timeout(TIMEOUT, published).await;
            let failure = match published {
                Ok(Ok(())) => break,
                Ok(Err(failure)) => failure,
                Err(_) => Failure::Lost(format!("the MQTT broker took more than {} s", TIMEOUT.as_secs())),
            };
            match failure {
                Failure::Lost(reason) => return Err(SinkError::unreachable(reason)),
                Failure::Refusing(reason) => return Err(SinkError::Retry(reason)),
                Failure::TooLarge(reason) => {
                    let waiting = messages.iter_mut().filter(|m| m.outcome == Outcome::Waiting);
                    let Some(largest) = waiting.max_by_key(|message| message.payload.len()) else {
                        return Err(SinkError::unreachable(reason));
                    };
                    largest.outcome = Outcome::Refused(format!(
                        "the message has {} bytes, and is larger than the MQTT broker takes: {reason}",
                        largest.payload.len()
                    ));
                    session = connect(&self.spec, &self.secrets, &self.pipeline).await?;
                }
            }
        }
        self.session = Some(session);
        let mut stored = 0;
        for (message, origin) in messages.into_iter().zip(origins) {
            match message.outcome {
                Outcome::Refused(reason) => letters.push(DeadLetter {
                    origin,
                    refusal: Refusal {
                        sqlstate: None,
                        column: None,
                        reason,
                    },
                }),
                Outcome::Told | Outcome::Waiting => stored += 1,
            }
        }
        letters.sort_by_key(|letter| letter.origin.offset);
        tokio::task::block_in_place(|| outside::settle(&*self.outside.0, &*self.outside.1, batch, &letters))?;
        Ok(Stored::new(stored, letters.len() as u64, sorted))
    }
}
