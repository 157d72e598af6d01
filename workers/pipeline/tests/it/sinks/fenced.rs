//! Sinks that keep positions themselves, outside of PostgreSQL: a worker that was frozen between rows and position, lost
//! its partition and goes on, and one that ended there.

use std::sync::{Arc, Mutex, mpsc};

use corrente_pipeline::{
    batch::{Batch, DeadLetter, Place},
    batcher::Run,
    dedupe::Marks,
    sink::{Claimed, Sink, SinkError, outside::SetAside},
};
use corrente_runtime::broker::{Incoming, Messages, TopicPartition};

/// Whoever sets letters aside stands here, between rows and position: until he may go on, or until he is ended.
pub struct Gate {
    reached: Mutex<mpsc::Sender<()>>,
    go: Mutex<mpsc::Receiver<()>>,
}

/// What holds a gate.
struct Keeper {
    reached: mpsc::Receiver<()>,
    go: mpsc::Sender<()>,
}

impl Gate {
    fn new() -> (Self, Keeper) {
        let ((reached, is_reached), (go, may_go)) = (mpsc::channel(), mpsc::channel());
        let gate = Self {
            reached: Mutex::new(reached),
            go: Mutex::new(may_go),
        };
        let keeper = Keeper {
            reached: is_reached,
            go,
        };
        (gate, keeper)
    }

    /// `None` where nobody will ever open it.
    fn pass(&self) -> Option<()> {
        let _ = self.reached.lock().ok()?.send(());
        self.go.lock().ok()?.recv().ok()
    }

    /// A gate that stands open.
    fn open() -> Self {
        let (gate, keeper) = Self::new();
        for _ in 0..100 {
            keeper.go.send(()).unwrap();
        }
        gate
    }
}

impl SetAside for Gate {
    fn set_aside(&self, _place: &Place, _letters: &[DeadLetter<'_>]) -> Result<(), SinkError> {
        self.pass()
            .ok_or_else(|| SinkError::Retry("the worker has ended".to_owned()))
    }
}

/// A worker: what it knows of the partition since its claim.
struct Holder<K> {
    sink: K,
    place: Place,
    claimed: Claimed,
}

/// The record at an offset. Some are numbered, some are not, and every hundredth one is none.
fn payload(offset: i64) -> String {
    let (minute, second) = (offset / 60 % 60, offset % 60);
    let read = format!(r#""ts":"2026-11-20T22:{minute:02}:{second:02}Z","meter":"m","v":{offset}"#);
    match offset % 100 {
        50 => "noise".to_owned(),
        rest if rest < 30 => format!("{{{read}}}"),
        _ => format!(r#"{{{read},"stream":"s","seq":{offset}}}"#),
    }
}

/// How many records there are up to an offset.
fn records(offset: i64) -> u64 {
    u64::try_from(offset - (offset + 49) / 100).unwrap()
}

impl<K: Sink> Holder<K> {
    async fn claim(mut sink: K, topic: &str) -> Self {
        let place = Place {
            cluster: "c".into(),
            partition: TopicPartition {
                topic: topic.into(),
                partition: 0,
            },
        };
        let claimed = sink.claim(&place).await.unwrap();
        Self { sink, place, claimed }
    }

    fn next(&self) -> Option<i64> {
        self.claimed.position.map(|position| position.next_offset)
    }

    /// Stores what is between two offsets, as the batch after `previous`.
    async fn store(&mut self, previous: Option<i64>, to: i64) -> Result<(), SinkError> {
        let messages: Messages = (previous.unwrap_or(0)..to)
            .map(|offset| (offset, payload(offset)))
            .collect::<Vec<_>>()
            .iter()
            .map(|(offset, payload)| Incoming {
                offset: *offset,
                timestamp: Some(1),
                key: None,
                payload: Some(payload.as_bytes()),
            })
            .collect();
        let run = Run {
            range: 0..messages.len(),
            messages: Arc::new(messages),
        };
        let marks = Arc::new(Marks::new(self.claimed.marks.clone()));
        let batch = Batch::build(self.place.clone(), self.claimed.epoch, previous, vec![run], marks);
        self.sink.store(&Arc::new(batch.unwrap())).await.map(|_| ())
    }
}

fn is_fenced(outcome: Result<(), SinkError>) {
    assert!(
        matches!(&outcome, Err(SinkError::Fenced(why)) if why.contains("another worker")),
        "{outcome:?}"
    );
}

/// Nothing is stored twice, and no position is moved back, by `sink`s of one pipeline; `count` is how many rows there are.
pub async fn whoever_lost_a_partition_stores_nothing_twice<K: Sink>(
    topic: &str,
    sink: impl Fn(Gate) -> K,
    count: impl AsyncFn() -> u64,
) {
    // Frozen when its rows are there, and its position is not.
    let (gate, keeper) = Gate::new();
    let mut frozen = Holder::claim(sink(gate), topic).await;
    assert_eq!((frozen.claimed.epoch, frozen.next()), (1, None));
    frozen.store(None, 40).await.unwrap();
    let frozen = tokio::spawn(async move {
        let outcome = frozen.store(Some(40), 240).await;
        (frozen, outcome)
    });
    let keeper = tokio::task::spawn_blocking(move || {
        keeper.reached.recv().unwrap();
        keeper
    });
    let keeper = keeper.await.unwrap();
    assert_eq!(count().await, records(240));
    // Its successor cuts the batches otherwise, and is further by the time that it is thawed.
    let mut second = Holder::claim(sink(Gate::open()), topic).await;
    assert_eq!((second.claimed.epoch, second.next()), (2, Some(40)));
    second.store(Some(40), 120).await.unwrap();
    second.store(Some(120), 300).await.unwrap();
    keeper.go.send(()).unwrap();
    let (mut thawed, outcome) = frozen.await.unwrap();
    is_fenced(outcome);
    assert_eq!(count().await, records(300));
    // It does not believe it: what it stored, what the successor stored, and what is still to come.
    for (previous, to) in [(Some(40), 100), (Some(240), 300), (Some(300), 345)] {
        keeper.go.send(()).unwrap();
        is_fenced(thawed.store(previous, to).await);
    }
    assert_eq!(count().await, records(345), "ahead of its turn, but once");
    second.store(Some(300), 400).await.unwrap();
    assert_eq!(count().await, records(400));
    // Ended between rows and position.
    let (gate, keeper) = Gate::new();
    drop(keeper);
    let mut ended = Holder::claim(sink(gate), topic).await;
    assert_eq!((ended.claimed.epoch, ended.next()), (3, Some(400)));
    let outcome = ended.store(Some(400), 480).await;
    assert!(matches!(outcome, Err(SinkError::Retry(_))), "{outcome:?}");
    assert_eq!(count().await, records(480));
    let mut last = Holder::claim(sink(Gate::open()), topic).await;
    assert_eq!((last.claimed.epoch, last.next()), (4, Some(400)));
    last.store(Some(400), 470).await.unwrap();
    last.store(Some(470), 500).await.unwrap();
    // A batch whose answer was lost is known.
    last.store(Some(470), 500).await.unwrap();
    assert_eq!(count().await, records(500));
    is_fenced(second.store(Some(400), 500).await);
    assert_eq!(Holder::claim(sink(Gate::open()), topic).await.next(), Some(500));
    assert_eq!(count().await, records(500));
}
