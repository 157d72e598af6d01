//! MQTT 5, for panels: at least once, each record a message of quality of service 1.
//!
//! 1. The records become messages ([`crate::sink::message`]); one without a topic is set aside.
//! 2. They are published, some at a time, and each is acknowledged ([`session`]); what the broker refuses for
//!    its topic or its payload is set aside.
//! 3. The position moves on.
//!
//! A broker keeps no position: that is kept [`outside`](crate::sink::outside). A crash between 1 and 3 repeats
//! messages, which carry the same `stream` and `seq` in their JSON.

use std::{sync::Arc, time::Duration};

use corrente_config::{PipelineConfig, Secrets, pipeline::SinkConfig};
use corrente_crds::sinks::MqttSink as MqttSpec;

use self::session::{Message, Session};
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
            None => Session::connect(&self.spec, &self.secrets, &self.pipeline)
                .await
                .map_err(SinkError::unreachable),
        }
    }
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
                    messages.push(Message { topic, payload });
                    origins.push(origin);
                }
                Err(refusal) => letters.push(DeadLetter { origin, refusal }),
            }
        }
        let mut sorted = pass.finish();
        letters.append(&mut sorted.dead);
        let count = messages.len();
        let published = tokio::time::timeout(TIMEOUT, session.publish(messages, self.spec.retain)).await;
        let refused = published
            .unwrap_or_else(|_| Err(format!("the MQTT broker took more than {} s", TIMEOUT.as_secs())))
            .map_err(SinkError::unreachable)?;
        self.session = Some(session);
        let stored = count - refused.len();
        for (at, reason) in refused {
            letters.extend(origins.get(at).map(|origin| DeadLetter {
                origin: *origin,
                refusal: Refusal {
                    sqlstate: None,
                    column: None,
                    reason,
                },
            }));
        }
        letters.sort_by_key(|letter| letter.origin.offset);
        tokio::task::block_in_place(|| outside::settle(&*self.outside.0, &*self.outside.1, batch, &letters))?;
        Ok(Stored::new(stored as u64, letters.len() as u64, sorted))
    }
}
