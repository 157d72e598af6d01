//! MongoDB: exactly once, by a name of each record and a conditional update of the offset.
//!
//! 1. In a time-series collection, which has no unique keys, the batch is noted as begun ([`ledger::begin`]).
//! 2. The rows become documents ([`document`]) and are inserted ([`rows`]); one that is there already is left.
//! 3. What is refused is set aside.
//! 4. The marks are raised, and the offset moves on if the partition is still ours ([`ledger::advance`]).
//!
//! There is no transaction over it, since neither a lone server nor a time-series collection has one. A crash
//! between 2 and 4 leaves rows whose batch is stored again: a plain collection knows them by `_id`, and in a
//! time-series collection they are looked for, as `writing` says how far a batch was begun. One case is left there:
//! a worker that lost its partition and whose insert reaches the server after the next owner has looked.

use std::{sync::Arc, time::Duration};

use corrente_config::{PipelineConfig, Secrets, pipeline::SinkConfig, secrets::CA_FILE};
use corrente_crds::sinks::MongodbSink;
use mongodb::{
    Client, Database,
    bson::Document,
    error::{Error, ErrorKind},
    options::{Acknowledgment, ClientOptions, Tls, TlsOptions, WriteConcern},
};

use self::{ledger::Fence, rows::Shape};
use crate::{
    batch::{Batch, DeadLetter, Place, Refusal, Row},
    fault::{Fault, FaultKind},
    sink::{Claimed, Sink, SinkError, Stored, outside::SetAside, record_id::record_id, tls::Trust},
    transform::Chain,
};

mod document;
mod ledger;
mod rows;

/// How long a server that does its work may be waited for.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How long one may take to be found.
const CONNECT: Duration = Duration::from_secs(5);

/// The MongoDB sink.
pub struct MongoSink {
    shared: Arc<Shared>,
    session: Option<Session>,
}

struct Shared {
    sink: MongodbSink,
    secrets: Secrets,
    pipeline: String,
    declared: std::collections::BTreeMap<String, corrente_crds::pipeline::ColumnType>,
    chain: Chain,
    set_aside: Arc<dyn SetAside>,
}

#[derive(Clone)]
struct Session {
    database: Database,
    shape: Shape,
}

impl MongoSink {
    /// The sink of a pipeline; `None` where the configuration names another kind.
    pub fn new(config: &PipelineConfig, secrets: &Secrets, set_aside: impl SetAside) -> Option<Self> {
        let SinkConfig::Mongodb(sink) = &config.sink else {
            return None;
        };
        Some(Self {
            shared: Arc::new(Shared {
                sink: sink.clone(),
                secrets: secrets.clone(),
                pipeline: format!("{}/{}", config.namespace, config.name),
                declared: config.columns.clone(),
                chain: Chain::of(config),
                set_aside: Arc::new(set_aside),
            }),
            session: None,
        })
    }

    /// Does a job with the connection there is, or a new one; after a failure it is made anew, with the Secret as it
    /// is by then.
    async fn with<T>(
        &mut self,
        what: &str,
        job: impl AsyncFnOnce(&Shared, &Session) -> Result<T, Failure>,
    ) -> Result<T, SinkError> {
        let done = tokio::time::timeout(TIMEOUT, async {
            let session = match self.session.take() {
                Some(session) => session,
                None => connect(&self.shared).await?,
            };
            let done = job(&self.shared, &session).await?;
            self.session = Some(session);
            Ok(done)
        })
        .await;
        match done {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(Failure::Sink(error))) => Err(error),
            Ok(Err(Failure::Mongo(error))) => Err(fault(what, &error, &self.shared.trust())),
            Err(_) => Err(SinkError::unreachable(format!(
                "failed to {what}: MongoDB did not answer within {} s",
                TIMEOUT.as_secs()
            ))),
        }
    }
}

enum Failure {
    Mongo(Error),
    Sink(SinkError),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Mongo(error)
    }
}

fn fault(what: &str, error: &Error, trust: &Trust) -> SinkError {
    let kind = match &*error.kind {
        ErrorKind::Io(_) | ErrorKind::ServerSelection { .. } | ErrorKind::ConnectionPoolCleared { .. } => {
            FaultKind::Unreachable
        }
        _ => FaultKind::Other,
    };
    let said = error.to_string();
    // The driver hands on no error of TLS, but a text of all that it knows of the servers.
    let reason = trust.explain_text(&said).unwrap_or(said);
    SinkError::Fault(Fault {
        kind,
        reason: format!("failed to {what}: {reason}"),
    })
}

async fn connect(shared: &Shared) -> Result<Session, Failure> {
    let file = shared.secrets.sink_url();
    let retry = |reason: String| Failure::Sink(SinkError::Retry(reason));
    let url = tokio::fs::read_to_string(&file).await.map_err(|error| {
        retry(format!(
            "failed to read MongoDB's address from {}: {error}",
            file.display()
        ))
    })?;
    // The driver's own complaint may quote the address, which holds a password.
    let mut options = ClientOptions::parse(url.trim()).await.map_err(|_| {
        retry(format!(
            "MongoDB's address in {} cannot be read: write mongodb://user:password@host:27017/?options, with \
             %-escapes for special characters of the password",
            file.display()
        ))
    })?;
    options.app_name = Some(format!("corrente-pipeline {}", shared.pipeline));
    options.server_selection_timeout.get_or_insert(CONNECT);
    options.connect_timeout.get_or_insert(CONNECT);
    options.write_concern.get_or_insert_with(|| {
        WriteConcern::builder()
            .w(Acknowledgment::Majority)
            .journal(true)
            .build()
    });
    if let Some(authorities) = shared.trust().authorities {
        // Besides what the address says of a certificate of ours; and whoever names authorities wants them looked at.
        let mut tls = match options.tls.take() {
            Some(Tls::Enabled(tls)) => tls,
            _ => TlsOptions::default(),
        };
        tls.ca_file_path = Some(authorities);
        tls.allow_invalid_certificates = Some(false);
        options.tls = Some(Tls::Enabled(tls));
    }
    let database = Client::with_options(options)?.database(&shared.sink.database);
    let shape = rows::ensure(&database, &shared.sink.collection, shared.sink.time_series).await?;
    Ok(Session { database, shape })
}

impl Shared {
    fn trust(&self) -> Trust {
        let authorities = self.sink.ca_secret.as_ref();
        Trust {
            authorities: authorities.map(|_| self.secrets.sink_ca().join(CA_FILE)),
            client: None,
        }
    }

    async fn store(&self, session: &Session, batch: &Batch) -> Result<Stored, Failure> {
        let fenced = |reason| Failure::Sink(SinkError::Fenced(reason));
        let mut doubtful = false;
        if session.shape == Shape::TimeSeries {
            match ledger::begin(&session.database, &self.pipeline, batch).await? {
                Fence::Open(writing) => {
                    doubtful = writing.is_some_and(|until| until > batch.previous.unwrap_or(0))
                }
                Fence::Stored => doubtful = true,
                Fence::Closed(reason) => return Err(fenced(reason)),
            }
        }
        let mut pass = batch.rows(&self.chain);
        let (mut documents, mut origins, mut letters) = (vec![], vec![], vec![]);
        while let Some(Row { origin, record }) = pass.next() {
            match document::document(record_id(&batch.place, &origin, record), record, &self.declared) {
                Ok(document) => {
                    documents.push(document);
                    origins.push(origin);
                }
                Err(refusal) => letters.push(DeadLetter { origin, refusal }),
            }
        }
        let mut sorted = pass.finish();
        letters.append(&mut sorted.dead);
        let collection = session.database.collection::<Document>(&self.sink.collection);
        let inserted = rows::insert(&collection, session.shape, doubtful, &documents).await?;
        let stored = documents.len() - inserted.refused.len();
        for (at, reason) in inserted.refused {
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
        if !letters.is_empty() {
            // Few, and seldom: the thread may be kept for it.
            tokio::task::block_in_place(|| self.set_aside.set_aside(&batch.place, &letters))
                .map_err(Failure::Sink)?;
        }
        match ledger::advance(&session.database, &self.pipeline, batch, &sorted.marks).await? {
            Fence::Open(_) | Fence::Stored => Ok(Stored::new(stored as u64, letters.len() as u64, sorted)),
            Fence::Closed(reason) => Err(fenced(reason)),
        }
    }
}

impl Sink for MongoSink {
    async fn open(&mut self) -> Result<(), SinkError> {
        self.with("open the collection", async |_, _| Ok(())).await
    }

    async fn claim(&mut self, place: &Place) -> Result<Claimed, SinkError> {
        self.with("claim a partition", async |shared, session| {
            Ok(ledger::claim(&session.database, &shared.pipeline, place).await?)
        })
        .await
    }

    async fn store(&mut self, batch: &Arc<Batch>) -> Result<Stored, SinkError> {
        self.with("store a batch", async |shared, session| {
            shared.store(session, batch).await
        })
        .await
    }

    fn another(&self) -> Option<Self> {
        Some(Self {
            shared: self.shared.clone(),
            session: self.session.clone(),
        })
    }
}
