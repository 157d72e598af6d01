//! What writes into the topic, each with its own account of what it acknowledged.
//!
//! - A [`Poller`] is the real one, as a process: it reads simulated meters and keeps its spool through all of its
//!   lives. Its account is the spool's newest seq.
//! - The [`Feeder`] sends streams of its own, one for each partition, without a pause for what is away. Its
//!   account is how far each stream went. Some of its records are bad on purpose.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use corrente_config::PollerConfig;
use corrente_poller::spool::{Limits, Spool};
use corrente_simulator::{Ports, Served, simulate_config};
use rdkafka::{
    ClientConfig, ClientContext, Message as _,
    message::DeliveryResult,
    producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer},
};
use serde_json::json;

use crate::servers::Process;

/// The poller's own program, which is built beside the worker's.
fn program() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_corrente-pipeline")).with_file_name("corrente-poller");
    assert!(
        program.exists(),
        "{} is not there: run cargo build -p corrente-poller",
        program.display()
    );
    program
}

/// A poller, its meters and its spool.
pub struct Poller {
    folder: PathBuf,
    process: Option<Process>,
    _meters: Served,
}

impl Poller {
    pub async fn start(folder: PathBuf, name: &str, kafka: &str, topic: &str) -> Self {
        fs::create_dir_all(&folder).unwrap();
        let registers: Vec<_> = (0..4)
            .map(|at| json!({"name": format!("r{at}"), "address": at, "function": "holding", "type": "u16"}))
            .collect();
        let meters: Vec<_> = (1..=20)
            .map(|unit| json!({"name": format!("{name}-{unit}"), "unitId": unit, "registerMap": "m"}))
            .collect();
        let mut config: PollerConfig = serde_json::from_value(json!({
            "namespace": "chaos", "name": name, "shard": 0,
            "interval": "200ms", "timeout": "1s", "retries": 0,
            "maps": {"map/m": {"registers": registers}},
            "endpoints": [{"name": "line", "address": "127.0.0.1:1", "transport": "tcp", "meters": meters}],
            "output": {"bootstrapServers": [kafka], "topic": topic},
            "buffer": {"maxBytes": 268_435_456, "syncInterval": "50ms"},
        }))
        .unwrap();
        let served = simulate_config(&config, [127, 0, 0, 1].into(), Ports::Ephemeral)
            .await
            .unwrap();
        config.endpoints[0].address = served.addresses["line"].to_string();
        fs::write(folder.join("poller.json"), serde_json::to_vec(&config).unwrap()).unwrap();
        let mut poller = Self {
            folder,
            process: None,
            _meters: served,
        };
        poller.run();
        poller
    }

    fn run(&mut self) {
        let mut command = Command::new(program());
        command
            .args(["--listen", "0", "--config"])
            .arg(self.folder.join("poller.json"))
            .arg("--spool")
            .arg(self.spool());
        self.process = Some(Process::start(&mut command, &self.folder.join("poller.log")));
    }

    fn spool(&self) -> PathBuf {
        self.folder.join("spool")
    }

    /// Kills it with -9 and starts it again.
    pub fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.end("-9");
        }
        self.run();
    }

    /// Ends it once its spool is drained; gives the stream and its newest seq, which begins with 1.
    pub fn settle(mut self) -> (String, u64) {
        loop {
            if let Some(process) = self.process.take() {
                process.end("-TERM");
            }
            let spool = Spool::open(&self.spool(), Limits::new(1 << 28)).unwrap();
            let stats = spool.stats();
            assert_eq!(
                (stats.evicted, stats.refused, stats.damaged),
                (0, 0, 0),
                "nothing is lost on the way"
            );
            if stats.pending == 0 {
                return (stats.stream, spool.newest_seq());
            }
            drop(spool);
            // What the broker did not take within the poller's farewell.
            self.run();
            std::thread::sleep(Duration::from_secs(2));
        }
    }
}

/// Whether the worker itself sees that the record of this seq is bad.
pub fn is_misfit(seq: u64) -> bool {
    seq.is_multiple_of(211)
}

/// Whether only the database sees it, by a rule of the table.
pub fn is_forbidden(seq: u64) -> bool {
    seq.is_multiple_of(307)
}

/// After which seqs something follows that is no record.
pub fn precedes_noise(seq: u64) -> bool {
    seq.is_multiple_of(401)
}

fn payload(stream: &str, seq: u64) -> String {
    let (second, milli) = (seq / 1000, seq % 1000);
    let value = match seq {
        seq if is_misfit(seq) => json!("high"),
        seq if is_forbidden(seq) => json!(-1),
        seq => json!(seq as f64 + 0.5),
    };
    let ts = time(second, milli);
    json!({"ts": ts, "meter": stream, "slot": ts, "stream": stream, "seq": seq, "quality": "good", "voltage": value})
        .to_string()
}

/// A time of its own for each seq.
fn time(second: u64, milli: u64) -> String {
    let (hour, minute) = (second / 3600 % 24, second / 60 % 60);
    format!("2026-11-20T{hour:02}:{minute:02}:{:02}.{milli:03}Z", second % 60)
}

/// The highest acknowledged seq of each partition.
type Acknowledged = Arc<Mutex<BTreeMap<i32, u64>>>;

struct Account(Acknowledged);

impl ClientContext for Account {}

impl ProducerContext for Account {
    type DeliveryOpaque = Box<u64>;

    fn delivery(&self, result: &DeliveryResult<'_>, seq: Self::DeliveryOpaque) {
        if let Ok(message) = result {
            let mut all = self.0.lock().unwrap();
            let acknowledged = all.entry(message.partition()).or_default();
            // An idempotent producer's messages are stored in order, so all before it are as well.
            *acknowledged = (*acknowledged).max(*seq);
        }
    }
}

/// The producer of known streams.
pub struct Feeder {
    partitions: Arc<Mutex<i32>>,
    restart: Arc<AtomicBool>,
    end: Arc<AtomicBool>,
    thread: JoinHandle<BTreeMap<i32, u64>>,
}

/// The feeder's stream in a partition.
pub fn stream(partition: i32) -> String {
    format!("feeder-{partition}")
}

impl Feeder {
    pub fn start(kafka: &str, topic: &str, partitions: i32) -> Self {
        let (kafka, topic) = (kafka.to_owned(), topic.to_owned());
        let partitions = Arc::new(Mutex::new(partitions));
        let (restart, end) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (known, again, ended) = (partitions.clone(), restart.clone(), end.clone());
        let thread = std::thread::spawn(move || feed(&kafka, &topic, &known, &again, &ended));
        Self {
            partitions,
            restart,
            end,
            thread,
        }
    }

    /// Loses the producer with what it holds; another one sends again what was not acknowledged.
    pub fn restart(&self) {
        self.restart.store(true, Ordering::Relaxed);
    }

    /// Sends to so many partitions from now on.
    pub fn grow(&self, partitions: i32) {
        *self.partitions.lock().unwrap() = partitions;
    }

    /// Ends once everything is acknowledged; gives how far each partition's stream went, from 1.
    pub fn settle(self) -> BTreeMap<i32, u64> {
        self.end.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn feed(
    kafka: &str,
    topic: &str,
    partitions: &Mutex<i32>,
    restart: &AtomicBool,
    end: &AtomicBool,
) -> BTreeMap<i32, u64> {
    let acknowledged = Acknowledged::default();
    let make = || -> ThreadedProducer<Account> {
        ClientConfig::new()
            .set("bootstrap.servers", kafka)
            .set("enable.idempotence", "true")
            .set("message.timeout.ms", "0")
            .set("linger.ms", "5")
            .set("topic.metadata.refresh.interval.ms", "1000")
            .create_with_context(Account(acknowledged.clone()))
            .unwrap()
    };
    let mut producer = make();
    let mut sent: BTreeMap<i32, u64> = BTreeMap::new();
    loop {
        let ending = end.load(Ordering::Relaxed);
        if restart.swap(false, Ordering::Relaxed) || producer.client().fatal_error().is_some() {
            // What is in flight goes with it: the broker may have it or not.
            drop(producer);
            producer = make();
            sent.clone_from(&acknowledged.lock().unwrap());
        }
        for partition in 0..*partitions.lock().unwrap() {
            let stream = stream(partition);
            let sent = sent.entry(partition).or_default();
            let next = if ending { *sent } else { *sent + 10 };
            while *sent < next {
                let seq = *sent + 1;
                let mut payloads = vec![payload(&stream, seq)];
                if precedes_noise(seq) {
                    payloads.push(format!("noise after {stream} {seq}"));
                }
                let whole = payloads.iter().all(|payload| {
                    let message = BaseRecord::with_opaque_to(topic, Box::new(seq))
                        .partition(partition)
                        .key(&stream)
                        .payload(payload);
                    producer.send(message).is_ok()
                });
                if !whole {
                    // The queue is full; or the new partition is not known yet.
                    break;
                }
                *sent = seq;
            }
        }
        if ending {
            // A partition that was made last may not have been known in time for a record.
            sent.retain(|_, seq| *seq > 0);
            if *acknowledged.lock().unwrap() == sent && producer.in_flight_count() == 0 {
                return sent;
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
