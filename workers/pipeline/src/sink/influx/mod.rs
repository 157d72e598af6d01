//! InfluxDB, versions 1 to 3: at least once, and a repeat is the same point.
//!
//! 1. The rows become lines ([`line`]), written some megabytes at a time.
//! 2. What the server refuses is found ([`find`]), by the lines it names or by halving.
//! 3. Refused records are set aside.
//! 4. The position moves on.
//!
//! InfluxDB has no transactions and no place for a position: that is kept [`outside`](crate::sink::outside). A
//! crash between 1 and 4 repeats rows, which have the same measurement, tags and time, and so are no new points.

use std::sync::{Arc, Mutex, PoisonError};

use corrente_config::{PipelineConfig, Secrets, pipeline::SinkConfig};
use corrente_crds::sinks::InfluxdbSink;

use self::{client::Client, find::Found, line::Lines};
use crate::{
    batch::{Batch, DeadLetter, Place, Refusal, Row},
    fault::{Fault, FaultKind},
    sink::{
        Claimed, Sink, SinkError, Stored,
        outside::{self, Offsets, SetAside},
    },
    transform::Chain,
};

mod answer;
mod client;
mod find;
pub mod line;

/// Most bytes of lines in one write: the smallest limit among the versions is 10 MB.
const WRITE: usize = 2 * 1024 * 1024;

/// The InfluxDB sink.
pub struct InfluxSink(Arc<Inner>);

struct Inner {
    sink: InfluxdbSink,
    secrets: Secrets,
    lines: Lines,
    chain: Chain,
    offsets: Box<dyn Offsets>,
    set_aside: Box<dyn SetAside>,
    /// Made anew after each failure, since a Secret may have changed.
    client: Mutex<Option<Client>>,
}

impl InfluxSink {
    /// The sink of a pipeline; `None` where the configuration names another kind.
    pub fn new(
        config: &PipelineConfig,
        secrets: &Secrets,
        offsets: impl Offsets,
        set_aside: impl SetAside,
    ) -> Option<Self> {
        let SinkConfig::Influxdb(sink) = &config.sink else {
            return None;
        };
        Some(Self(Arc::new(Inner {
            sink: sink.clone(),
            secrets: secrets.clone(),
            lines: Lines {
                measurement: sink.measurement.clone(),
                tags: sink.tags.clone(),
                declared: config.columns.clone(),
                version: sink.version,
            },
            chain: Chain::of(config),
            offsets: Box::new(offsets),
            set_aside: Box::new(set_aside),
            client: Mutex::new(None),
        })))
    }

    /// Does a job on a thread that may block.
    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Inner) -> Result<T, SinkError> + Send + 'static,
    ) -> Result<T, SinkError> {
        let inner = self.0.clone();
        let done = tokio::task::spawn_blocking(move || job(&inner)).await;
        done.unwrap_or_else(|error| Err(SinkError::Retry(format!("failed to write to InfluxDB: {error}"))))
    }
}

impl Inner {
    fn with_client<T>(&self, job: impl FnOnce(&Client) -> Result<T, String>) -> Result<T, SinkError> {
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        let current = match client.take() {
            Some(client) => client,
            None => Client::new(&self.sink, &self.secrets).map_err(SinkError::Retry)?,
        };
        let done = job(&current).map_err(|reason| {
            SinkError::Fault(Fault {
                kind: FaultKind::Other,
                reason,
            })
        })?;
        *client = Some(current);
        Ok(done)
    }

    fn store(&self, batch: &Batch) -> Result<Stored, SinkError> {
        let (mut text, mut rows, mut letters) = (String::new(), vec![], vec![]);
        let mut pass = batch.rows(&self.chain);
        while let Some(Row { origin, record }) = pass.next() {
            let begin = text.len();
            match self.lines.write(record, &mut text) {
                Ok(()) => rows.push((origin, begin..text.len())),
                Err(refusal) => letters.push(DeadLetter { origin, refusal }),
            }
        }
        let mut sorted = pass.finish();
        letters.append(&mut sorted.dead);
        let ranges: Vec<_> = rows.iter().map(|(_, range)| range.clone()).collect();
        let Found { refused } =
            self.with_client(|client| find::write(&text, &ranges, WRITE, &mut |lines| client.write(lines)))?;
        let stored = rows.len() - refused.len();
        for (at, reason) in refused {
            letters.extend(rows.get(at).map(|(origin, _)| DeadLetter {
                origin: *origin,
                refusal: Refusal {
                    sqlstate: None,
                    column: find::field_of(&reason),
                    reason,
                },
            }));
        }
        letters.sort_by_key(|letter| letter.origin.offset);
        outside::settle(&*self.offsets, &*self.set_aside, batch, &letters)?;
        Ok(Stored::new(stored as u64, letters.len() as u64, sorted))
    }
}

impl Sink for InfluxSink {
    async fn open(&mut self) -> Result<(), SinkError> {
        // A write of nothing is answered as one of something would be: it finds a wrong address, token or database.
        self.run(|inner| inner.with_client(find::nothing)).await
    }

    async fn claim(&mut self, place: &Place) -> Result<Claimed, SinkError> {
        let place = place.clone();
        self.run(move |inner| outside::claim(&*inner.offsets, &place))
            .await
    }

    async fn store(&mut self, batch: &Arc<Batch>) -> Result<Stored, SinkError> {
        let batch = batch.clone();
        self.run(move |inner| inner.store(&batch)).await
    }
}
