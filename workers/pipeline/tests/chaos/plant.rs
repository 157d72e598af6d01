//! Everything that runs, and what is done to it.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use corrente_config::PipelineConfig;
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication},
    client::DefaultClientContext,
};
use serde_json::json;
use tempfile::TempDir;

use crate::{
    plan::{Disturbance, MOST_PARTITIONS, POLLERS, WORKERS},
    producers::{Feeder, Poller},
    servers::{Broker, Database, Process, wait},
};

/// The topic.
pub const TOPIC: &str = "meters";
/// Where dead letters are published.
pub const LETTERS: &str = "meters.dead";
/// The pipeline, as the database knows it.
pub const PIPELINE: &str = "chaos/store";
/// Partitions at the beginning.
const PARTITIONS: i32 = 4;
/// Longer than a worker's session with the broker.
const FREEZE: Duration = Duration::from_secs(12);

/// A worker's place.
#[derive(Default)]
struct Worker {
    process: Option<Process>,
    /// When it is let go on, where it stands still.
    thaw: Option<Instant>,
}

/// Everything that runs.
pub struct Plant {
    began: Instant,
    folder: TempDir,
    broker: Broker,
    database: Database,
    pollers: Vec<Poller>,
    feeder: Feeder,
    workers: [Worker; WORKERS],
    partitions: i32,
    /// What every writer acknowledged, by stream, once they have ended.
    pub account: BTreeMap<String, u64>,
    /// The feeder's streams among them.
    pub fed: BTreeMap<String, u64>,
}

impl Plant {
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        println!("logs in {}", folder.path().display());
        let (broker, database) = tokio::join!(Broker::start(folder.path()), Database::start(folder.path()));
        let kafka = broker.address();
        let topics = [(TOPIC, PARTITIONS), (LETTERS, 1)]
            .map(|(name, partitions)| NewTopic::new(name, partitions, TopicReplication::Fixed(1)));
        let made = admin(&kafka)
            .create_topics(&topics, &AdminOptions::new())
            .await
            .unwrap();
        assert!(made.iter().all(Result::is_ok), "{made:?}");
        fs::write(folder.path().join("url"), database.url()).unwrap();
        (0..WORKERS).for_each(|number| write_config(folder.path(), number, &kafka));
        let mut workers: [Worker; WORKERS] = Default::default();
        workers[0].process = Some(run(folder.path(), 0));
        let feeder = Feeder::start(&kafka, TOPIC, PARTITIONS);
        let mut pollers = vec![];
        for number in 0..POLLERS {
            let (name, folder) = (
                format!("p{number}"),
                folder.path().join(format!("poller-{number}")),
            );
            pollers.push(Poller::start(folder, &name, &kafka, TOPIC).await);
        }
        // A rule that only the database knows, once there is a table for it.
        let client = database.connect().await.unwrap();
        wait("the table", async || {
            let rule = "ALTER TABLE readings ADD CHECK (voltage >= 0) NOT VALID";
            client.batch_execute(rule).await.is_ok()
        })
        .await;
        Self {
            began: Instant::now(),
            folder,
            broker,
            database,
            pollers,
            feeder,
            workers,
            partitions: PARTITIONS,
            account: BTreeMap::new(),
            fed: BTreeMap::new(),
        }
    }

    pub fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    pub fn kafka(&self) -> String {
        self.broker.address()
    }

    pub fn database(&self) -> &Database {
        &self.database
    }

    /// Keeps the logs of a test that is about to fail.
    pub fn keep_logs(&mut self) {
        self.folder.disable_cleanup(true);
        println!("the logs are kept in {}", self.folder.path().display());
    }

    pub async fn suffer(&mut self, disturbance: Disturbance) {
        self.thaw(false);
        match disturbance {
            Disturbance::KillWorker(number) => self.end_or_start(number, "-9"),
            Disturbance::StopWorker(number) => self.end_or_start(number, "-TERM"),
            Disturbance::FreezeWorker(number) => {
                let worker = &mut self.workers[number];
                if let (Some(process), None) = (&worker.process, worker.thaw) {
                    process.signal("-STOP");
                    worker.thaw = Some(Instant::now() + FREEZE);
                }
            }
            Disturbance::KillPoller(number) => self.pollers[number].kill(),
            Disturbance::RestartFeeder => self.feeder.restart(),
            Disturbance::KillBroker(down) => self.break_broker("-9", down).await,
            Disturbance::StopBroker(down) => self.break_broker("-TERM", down).await,
            Disturbance::KillDatabase(down) => {
                self.database.kill();
                tokio::time::sleep(down).await;
                self.database.back().await;
            }
            Disturbance::StopDatabase(down) => {
                self.database.stop();
                tokio::time::sleep(down).await;
                self.database.back().await;
            }
            Disturbance::CutConnections => {
                let client = self.database.connect().await.unwrap();
                let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                           WHERE application_name LIKE 'corrente-pipeline%'";
                client.batch_execute(cut).await.unwrap();
            }
            Disturbance::AddPartition => self.add_partition().await,
        }
    }

    fn end_or_start(&mut self, number: usize, signal: &str) {
        let worker = &mut self.workers[number];
        match worker.process.take() {
            Some(process) => {
                // What stands still does not hear that it is to end.
                if worker.thaw.take().is_some() {
                    process.signal("-CONT");
                }
                process.end(signal);
            }
            None => worker.process = Some(run(self.folder.path(), number)),
        }
        if self.workers.iter().all(|worker| worker.process.is_none()) {
            self.workers[number].process = Some(run(self.folder.path(), number));
        }
    }

    fn thaw(&mut self, all: bool) {
        for worker in &mut self.workers {
            if worker.thaw.is_some_and(|at| all || at <= Instant::now()) {
                worker.thaw = None;
                if let Some(process) = &worker.process {
                    process.signal("-CONT");
                }
            }
        }
    }

    async fn break_broker(&mut self, signal: &str, down: Duration) {
        self.broker.end(signal);
        tokio::time::sleep(down).await;
        self.broker.back().await;
    }

    async fn add_partition(&mut self) {
        if self.partitions == MOST_PARTITIONS {
            return;
        }
        let more = self.partitions + 1;
        let admin = admin(&self.broker.address());
        wait("one more partition", async || {
            let new = NewPartitions::new(TOPIC, usize::try_from(more).unwrap());
            // Asked again after an answer that came too late, the broker says that it has so many already.
            let grown = admin.create_partitions([&new], &AdminOptions::new()).await;
            grown.is_ok_and(|all| {
                all.iter().all(|one| match one {
                    Ok(_) => true,
                    Err((_, code)) => *code == rdkafka::types::RDKafkaErrorCode::InvalidPartitions,
                })
            })
        })
        .await;
        self.partitions = more;
        self.feeder.grow(more);
    }

    /// Ends the writers when all they hold is published, with at least one worker left.
    pub async fn settle(&mut self) {
        self.thaw(true);
        let idle = Feeder::start(&self.broker.address(), TOPIC, 0);
        let (feeder, pollers) = (
            std::mem::replace(&mut self.feeder, idle),
            std::mem::take(&mut self.pollers),
        );
        println!("{:7.1} s  the end; what is written is drained", self.seconds());
        let ended = tokio::task::spawn_blocking(move || {
            let fed = feeder.settle();
            (fed, pollers.into_iter().map(Poller::settle).collect::<Vec<_>>())
        });
        let (fed, polled) = ended.await.unwrap();
        self.fed = fed
            .into_iter()
            .map(|(partition, seq)| (crate::producers::stream(partition), seq))
            .collect();
        self.account = self.fed.clone();
        self.account.extend(polled);
    }
}

pub fn admin(kafka: &str) -> AdminClient<DefaultClientContext> {
    ClientConfig::new()
        .set("bootstrap.servers", kafka)
        .create()
        .unwrap()
}

/// The last worker is in a group of its own: it believes that every partition is its, as a worker does that was cut off
/// and does not know it, and there is always one that need not wait for a dead one's session to end.
fn write_config(folder: &Path, number: usize, kafka: &str) {
    let group = if number + 1 == WORKERS { "alone" } else { "chaos" };
    let config = json!({
        "namespace": "chaos", "name": "store", "group": group,
        "once": {"deadLetterTopic": LETTERS},
        "kafka": {"bootstrapServers": [kafka]},
        "topics": [TOPIC],
        "sink": {"postgres": {
            "urlFile": folder.join("url"), "schema": "public", "table": "readings",
            "hypertable": {"chunkIntervalMillis": null},
        }},
        "columns": {"voltage": "float8"},
        "batch": {"maxRows": 500, "maxBytes": 262_144, "maxAge": "100ms"},
    });
    let config: PipelineConfig = serde_json::from_value(config).unwrap();
    fs::write(
        folder.join(format!("pipeline-{number}.json")),
        serde_json::to_vec(&config).unwrap(),
    )
    .unwrap();
}

fn run(folder: &Path, number: usize) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_corrente-pipeline"));
    command
        .args(["--listen", "0", "--config"])
        .arg(folder.join(format!("pipeline-{number}.json")));
    Process::start(&mut command, &folder.join(format!("worker-{number}.log")))
}
