//! The publisher between a spool on disk and a broker that behaves as a test says.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_in_result
)]

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use corrente_poller::{
    publish::{Publisher, Trouble},
    spool::{Limits, Spool, shared::SharedSpool},
    window::WindowLimits,
};
use corrente_record::{Quality, Reading, Record, Timestamp};
use corrente_runtime::{
    broker::{
        BrokerError, Delivery, DeliverySender, Outcome, Outgoing, Producer, SendError, Source, SourceEvent,
        Start,
    },
    memory::MemoryBroker,
};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

fn fill(spool: &SharedSpool, meters: usize, slots: i64) {
    for slot in 0..slots {
        for meter in 0..meters {
            let reading = Reading {
                ts: Timestamp(slot),
                meter: format!("m{meter}").as_str().into(),
                slot: Timestamp(slot),
                quality: Quality::Good,
                skipped: 0,
                labels: Arc::new(BTreeMap::new()),
                values: Vec::new(),
                bad: Vec::new(),
            };
            spool.append(&reading).unwrap();
        }
    }
    spool.lock().sync().unwrap();
}

fn spool(dir: &tempfile::TempDir) -> SharedSpool {
    SharedSpool::new(Spool::open(dir.path(), Limits::new(1 << 24)).unwrap())
}

/// What a scripted producer does with a message: by seq, what happens to it each time it is sent.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Act {
    Store,
    Again,
    Refuse,
    RefuseAtOnce,
    QueueFull,
    NotNow,
    /// The producer is made anew: everything it has said nothing about comes back, and this is not taken.
    Replaced,
}

#[derive(Default)]
struct Script {
    acts: BTreeMap<u64, VecDeque<Act>>,
    /// Every message that was taken: seq and partition.
    taken: Vec<(u64, i32)>,
    stored: Vec<u64>,
    unanswered: Vec<Delivery>,
    partitions: VecDeque<Result<i32, BrokerError>>,
}

#[derive(Clone)]
struct Scripted {
    script: Arc<Mutex<Script>>,
    deliveries: DeliverySender,
    /// Deliveries are given out in reverse, in batches of this size.
    batch: usize,
    asked: Arc<Notify>,
}

impl Scripted {
    fn new(deliveries: DeliverySender, batch: usize) -> Self {
        Self {
            script: Arc::default(),
            deliveries,
            batch,
            asked: Arc::new(Notify::new()),
        }
    }

    fn act(&self, seq: u64, acts: &[Act]) {
        self.script
            .lock()
            .unwrap()
            .acts
            .insert(seq, acts.iter().copied().collect());
    }

    fn give_out(&self) {
        for delivery in self.script.lock().unwrap().unanswered.drain(..).rev() {
            let _ = self.deliveries.send(delivery);
        }
    }
}

impl Producer for Scripted {
    async fn partitions(&self) -> Result<i32, BrokerError> {
        self.script
            .lock()
            .unwrap()
            .partitions
            .pop_front()
            .unwrap_or(Ok(3))
    }

    fn send(&self, message: Outgoing) -> Result<(), SendError> {
        let full = {
            let mut script = self.script.lock().unwrap();
            let act = script.acts.get_mut(&message.token).and_then(VecDeque::pop_front);
            let outcome = match act.unwrap_or(Act::Store) {
                Act::QueueFull => return Err(SendError::QueueFull),
                Act::NotNow => return Err(SendError::NotNow("the topic is not there".to_owned())),
                Act::Replaced => {
                    for mut delivery in std::mem::take(&mut script.unanswered) {
                        script.stored.retain(|seq| *seq != delivery.token);
                        delivery.outcome = Outcome::Again("given up".to_owned());
                        let _ = self.deliveries.send(delivery);
                    }
                    return Err(SendError::QueueFull);
                }
                Act::RefuseAtOnce => return Err(SendError::Refused("too large".to_owned())),
                Act::Refuse => Outcome::Refused("not a record".to_owned()),
                Act::Again => Outcome::Again("the leader moved".to_owned()),
                Act::Store => {
                    script.stored.push(message.token);
                    Outcome::Stored
                }
            };
            script.taken.push((message.token, message.partition));
            script.unanswered.push(Delivery {
                token: message.token,
                outcome,
            });
            script.unanswered.len() >= self.batch
        };
        if full {
            self.give_out();
        } else {
            self.asked.notify_one();
        }
        Ok(())
    }

    async fn flush(&self, _: Duration) {
        self.give_out();
    }
}

/// Publishes everything in the spool, and ends.
async fn publish(spool: &SharedSpool, script: impl Fn(&Scripted), batch: usize) -> Arc<Mutex<Script>> {
    let (sender, deliveries) = mpsc::unbounded_channel();
    let producer = Scripted::new(sender, batch);
    script(&producer);
    let (kept, trouble) = (producer.clone(), Trouble::default());
    let drain = CancellationToken::new();
    let limits = WindowLimits {
        records: 20,
        ..WindowLimits::default()
    };
    let publisher = Publisher::new(spool.clone(), producer, deliveries, "meters", &trouble, limits);
    // The rest of a batch that never fills is given out when nothing else happens.
    let stragglers = async {
        loop {
            kept.asked.notified().await;
            tokio::time::sleep(Duration::from_millis(5)).await;
            kept.give_out();
        }
    };
    let finish = async {
        let all = spool.lock().newest_seq();
        while spool.lock().acknowledged() < all {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drain.cancel();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = publisher.run(drain.clone()) => {}
        () = stragglers => {}
        () = finish => {}
    }
    assert_eq!(spool.lock().stats().pending, 0);
    assert_eq!(trouble.get(), None);
    kept.script.clone()
}

#[tokio::test]
async fn everything_is_sent_once_in_order_though_deliveries_come_backwards() {
    let dir = tempfile::tempdir().unwrap();
    let spool = spool(&dir);
    fill(&spool, 4, 50);
    let script = publish(&spool, |_| {}, 7).await;
    let stored = script.lock().unwrap().stored.clone();
    assert_eq!(stored, (1..=200).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_comes_back_is_sent_again_before_anything_later() {
    let dir = tempfile::tempdir().unwrap();
    let spool = spool(&dir);
    fill(&spool, 1, 60);
    let script = publish(
        &spool,
        |producer| {
            // An idempotent producer gives back everything behind the first that failed.
            (15..=20).for_each(|seq| producer.act(seq, &[Act::Again, Act::Store]));
            producer.act(40, &[Act::Again, Act::Again, Act::Store]);
            producer.act(41, &[Act::QueueFull, Act::Store]);
        },
        1,
    )
    .await;
    let script = script.lock().unwrap();
    let mut once = script.stored.clone();
    once.sort_unstable();
    assert_eq!(
        once,
        (1..=60).collect::<Vec<_>>(),
        "each is stored, and none twice"
    );
    let place = |seq| script.stored.iter().position(|stored| *stored == seq).unwrap();
    assert!(
        (15..60).all(|seq| seq == 40 || place(seq) < place(seq + 1)),
        "{:?}",
        script.stored
    );
    assert_eq!(script.taken.iter().filter(|(seq, _)| *seq == 40).count(), 3);
}

#[tokio::test]
async fn nothing_overtakes_what_a_producer_gives_back_or_does_not_take() {
    let dir = tempfile::tempdir().unwrap();
    let spool = spool(&dir);
    fill(&spool, 1, 60);
    let script = publish(
        &spool,
        |producer| {
            producer.act(10, &[Act::Replaced, Act::Replaced, Act::NotNow, Act::Store]);
            producer.act(33, &[Act::NotNow, Act::Replaced]);
        },
        usize::MAX,
    )
    .await;
    let script = script.lock().unwrap();
    assert_eq!(script.stored, (1..=60).collect::<Vec<_>>());
    assert!(script.taken.iter().filter(|(seq, _)| *seq == 5).count() >= 2);
}

#[tokio::test]
async fn what_is_refused_for_good_is_set_aside_and_stops_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let spool = spool(&dir);
    fill(&spool, 1, 10);
    let script = publish(
        &spool,
        |producer| {
            producer.act(3, &[Act::Refuse]);
            producer.act(7, &[Act::RefuseAtOnce]);
        },
        4,
    )
    .await;
    assert_eq!(script.lock().unwrap().stored, [1, 2, 4, 5, 6, 8, 9, 10]);
    assert_eq!(spool.lock().stats().refused, 2);
    let refused = std::fs::read_to_string(dir.path().join("refused.jsonl")).unwrap();
    assert_eq!(refused.lines().count(), 2);
}

#[tokio::test]
async fn a_record_that_is_sent_again_after_a_restart_goes_to_the_same_partition() {
    let dir = tempfile::tempdir().unwrap();
    let mut partitions = Vec::new();
    for there_are in [3, 12] {
        // The first producer takes everything and says nothing.
        let spool = spool(&dir);
        if partitions.is_empty() {
            fill(&spool, 20, 1);
        }
        let (sender, deliveries) = mpsc::unbounded_channel();
        let producer = Scripted::new(sender, usize::MAX);
        let not_yet = Err(BrokerError("away".to_owned()));
        producer.script.lock().unwrap().partitions = [not_yet, Ok(there_are)].into();
        let (script, trouble) = (producer.script.clone(), Trouble::default());
        let publisher = Publisher::new(
            spool,
            producer,
            deliveries,
            "meters",
            &trouble,
            WindowLimits::default(),
        );
        let all_taken = async {
            while script.lock().unwrap().taken.len() < 20 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            () = publisher.run(CancellationToken::new()) => panic!("it gave up"),
            () = all_taken => {}
        }
        partitions.push(script.lock().unwrap().taken.clone());
    }
    assert_eq!(partitions[0], partitions[1]);
    let used: std::collections::BTreeSet<i32> =
        partitions[0].iter().map(|(_, partition)| *partition).collect();
    assert_eq!(used, [0, 1, 2].into());
}

#[tokio::test]
async fn a_broker_in_the_process_gets_every_record() {
    let dir = tempfile::tempdir().unwrap();
    let spool = spool(&dir);
    fill(&spool, 3, 100);
    let broker = MemoryBroker::new(2);
    let (sender, deliveries) = mpsc::unbounded_channel();
    let trouble = Trouble::default();
    let producer = broker.producer("meters", sender);
    Publisher::new(
        spool.clone(),
        producer,
        deliveries,
        "meters",
        &trouble,
        WindowLimits::default(),
    )
    .run(CancellationToken::new())
    .await_until(|| spool.lock().stats().pending == 0)
    .await;
    // Only now: a consumer that stores nothing would keep the publisher waiting.
    let mut source = broker.source(&["meters".to_owned()]);
    let mut seqs = Vec::new();
    while seqs.len() < 300 {
        match source.next().await {
            SourceEvent::Assigned(all) => {
                source.start(all.into_iter().map(|place| (place, Start::Beginning)).collect());
            }
            SourceEvent::Messages(_, messages) => seqs.extend(messages.iter().map(|message| {
                Record::parse(message.payload.as_ref().unwrap())
                    .unwrap()
                    .seq
                    .unwrap()
            })),
            other => panic!("{other:?}"),
        }
    }
    seqs.sort_unstable();
    assert_eq!(seqs, (1..=300).collect::<Vec<_>>());
}

/// Stores everything at once, and notes at which count of another task's turns each record was sent.
struct Watching {
    turns: Arc<AtomicUsize>,
    sent_at: Arc<Mutex<BTreeMap<usize, usize>>>,
    deliveries: DeliverySender,
}

impl Producer for Watching {
    async fn partitions(&self) -> Result<i32, BrokerError> {
        Ok(3)
    }

    fn send(&self, message: Outgoing) -> Result<(), SendError> {
        let turn = self.turns.load(Ordering::Relaxed);
        *self.sent_at.lock().unwrap().entry(turn).or_default() += 1;
        let outcome = Outcome::Stored;
        let token = message.token;
        self.deliveries.send(Delivery { token, outcome }).unwrap();
        Ok(())
    }

    async fn flush(&self, _: Duration) {}
}

#[tokio::test]
async fn the_tasks_beside_it_have_their_turns_while_a_backlog_goes_out() {
    let dir = tempfile::tempdir().unwrap();
    let spool = spool(&dir);
    fill(&spool, 50, 100);
    let (turns, sent_at) = (Arc::new(AtomicUsize::new(0)), Arc::default());
    let beside = tokio::spawn({
        let turns = turns.clone();
        async move {
            loop {
                turns.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        }
    });
    let (sender, deliveries) = mpsc::unbounded_channel();
    let producer = Watching {
        turns,
        sent_at: Arc::clone(&sent_at),
        deliveries: sender,
    };
    let trouble = Trouble::default();
    let limits = WindowLimits::default();
    Publisher::new(spool.clone(), producer, deliveries, "meters", &trouble, limits)
        .run(CancellationToken::new())
        .await_until(|| spool.lock().stats().pending == 0)
        .await;
    beside.abort();
    let sent_at = sent_at.lock().unwrap();
    assert_eq!(sent_at.values().sum::<usize>(), 5_000);
    assert!(sent_at.values().all(|sent| *sent <= 256), "{sent_at:?}");
}

/// Runs a future that does not end until a condition holds.
trait AwaitUntil: Future<Output = ()> + Sized {
    async fn await_until(self, holds: impl Fn() -> bool) {
        let waiting = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            () = self => panic!("it ended by itself"),
            () = waiting => {}
        }
    }
}

impl<F: Future<Output = ()>> AwaitUntil for F {}
