//! A topic that was deleted and made anew, and has grown past the stored offset between the fetch that did
//! not find it and the look at where the log ends.

use std::{collections::VecDeque, path::Path, sync::Arc};

use corrente_config::{PipelineConfig, pipeline::SinkConfig};
use corrente_pipeline::sink::sqlite::SqliteSink;
use corrente_runtime::broker::{BrokerError, Incoming, Messages, Source, SourceEvent, Start, TopicPartition};

use crate::support::{Worker, config, record, wait};

/// One partition with the log of a moment ago, which was empty, and that of now.
struct Remade {
    log: Messages,
    /// Whether the first start meets the log of a moment ago.
    outdated: bool,
    events: VecDeque<SourceEvent>,
}

impl Remade {
    /// A log of records of `stream`.
    fn new(stream: &str, count: u64, outdated: bool) -> Self {
        let mut log = Messages::default();
        for seq in 0..count {
            log.push(Incoming {
                offset: seq as i64,
                timestamp: Some(1000 + seq as i64),
                key: Some(stream.as_bytes()),
                payload: Some(record(stream, seq).as_bytes()),
            });
        }
        let place = TopicPartition {
            topic: "t".into(),
            partition: 0,
        };
        Self {
            log,
            outdated,
            events: VecDeque::from([SourceEvent::Assigned(vec![place])]),
        }
    }
}

impl Source for Remade {
    async fn next(&mut self) -> SourceEvent {
        match self.events.pop_front() {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }

    async fn cluster(&self) -> Result<Arc<str>, BrokerError> {
        Ok("c".into())
    }

    fn start(&mut self, starts: Vec<(TopicPartition, Start)>) {
        for (place, start) in starts {
            self.events.push_back(if std::mem::take(&mut self.outdated) {
                SourceEvent::OutOfRange(place)
            } else {
                let from = match start {
                    Start::Beginning => 0,
                    Start::Offset(offset) => offset,
                };
                let found = self.log.iter().filter(|message| message.offset >= from);
                SourceEvent::Messages(place, found.collect())
            });
        }
    }

    fn pause(&mut self, _: &TopicPartition, _: bool) {}

    async fn watermarks(&self, _: &TopicPartition) -> Result<(i64, i64), BrokerError> {
        Ok((0, self.log.len() as i64))
    }

    fn commit(&mut self, _: Vec<(TopicPartition, i64)>) {}
}

fn at(folder: &Path) -> PipelineConfig {
    let sink = SinkConfig::Sqlite {
        path: folder.join("readings.db"),
        table: "readings".to_owned(),
    };
    config("remade", &["t"], sink)
}

#[tokio::test]
async fn a_topic_made_anew_that_has_grown_meanwhile_is_not_gone_on_with() {
    let folder = tempfile::tempdir().unwrap();
    let config = at(folder.path());
    let start = |source| Worker::start(&config, source, SqliteSink::new(&config).unwrap());
    let worker = start(Remade::new("old", 10, false));
    wait("the old topic's rows", async || worker.report().rows == 10).await;
    worker.stop().await;
    let worker = start(Remade::new("new", 20, true));
    worker.trouble("made anew").await;
    assert_eq!((worker.report().rows, worker.report().gaps), (0, 0));
    worker.stop().await;
}

#[tokio::test]
async fn the_same_topic_is_gone_on_with_after_an_outdated_answer() {
    let folder = tempfile::tempdir().unwrap();
    let config = at(folder.path());
    let start = |source| Worker::start(&config, source, SqliteSink::new(&config).unwrap());
    let worker = start(Remade::new("s", 10, false));
    wait("the first rows", async || worker.report().rows == 10).await;
    worker.stop().await;
    let worker = start(Remade::new("s", 20, true));
    wait("the rest", async || worker.report().rows == 10).await;
    assert_eq!((worker.report().duplicates, worker.report().gaps), (0, 0));
    worker.stop().await;
}
