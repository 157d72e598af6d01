//! Exactly once, whatever is cut off and when.

use std::{
    io::Write as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use corrente_config::{PipelineConfig, pipeline::Hypertable};

use crate::{
    database::{Database, connect, url},
    support::{Worker, source, unique, wait},
    topic::Topic,
};

const PARTITIONS: i32 = 4;

/// Streams that go on being sent while the test does its worst, now and then going back as a restarted
/// poller does. Ends with each stream whole.
fn feed(topic: &Arc<Topic>, each: u64) -> std::thread::JoinHandle<()> {
    let topic = topic.clone();
    std::thread::spawn(move || {
        let mut next = 0;
        while next < each {
            let from = next.saturating_sub(if next.is_multiple_of(900) { 70 } else { 0 });
            next = (next + 300).min(each);
            for partition in 0..PARTITIONS {
                topic.send_stream(partition, &format!("s{partition}"), from..next);
            }
            std::thread::sleep(Duration::from_millis(60));
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka and PostgreSQL"]
async fn two_workers_aborted_and_rebalanced_and_connections_cut() {
    const EACH: u64 = 30_000;
    let (db, topic) = (Database::new().await, Arc::new(Topic::new(PARTITIONS)));
    topic.create().await;
    let config = db.config(
        &topic.name,
        Some(Hypertable {
            chunk_interval_millis: None,
        }),
    );
    let start = || Worker::start(&config, source(&config), db.sink(&config));
    let feeder = feed(&topic, EACH);
    let mut workers = [start(), start()];
    let outside = connect(&url()).await;
    let cut = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE '%{}%'",
        &db.pipeline
    );
    let mut round = 0usize;
    while !feeder.is_finished() || round < 10 {
        tokio::time::sleep(Duration::from_millis(rand::random_range(50..900))).await;
        match round % 3 {
            0 | 1 => {
                let worker = std::mem::replace(&mut workers[round % 2], start());
                if rand::random() {
                    worker.abort().await
                } else {
                    worker.stop().await
                }
            }
            _ => outside.batch_execute(&cut).await.unwrap(),
        }
        round += 1;
    }
    feeder.join().unwrap();
    db.wait_for(EACH * PARTITIONS as u64).await;
    // Nothing is under way any more once both have read to the end.
    wait("the end of the topic", async || {
        workers.iter().all(|w| w.report().lag == 0)
    })
    .await;
    for worker in workers {
        worker.stop().await;
    }
    db.assert_exactly(PARTITIONS as u64, EACH).await;
    assert_eq!(db.dead_letters().await, "");
    topic.delete().await;
    db.drop().await;
}

struct Process(Child);

impl Process {
    fn start(config: &PipelineConfig, folder: &Path) -> Self {
        let path = folder.join("pipeline.json");
        std::fs::File::create(&path)
            .unwrap()
            .write_all(&serde_json::to_vec(config).unwrap())
            .unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_corrente-pipeline"))
            .args(["--listen", "0", "--config"])
            .arg(path)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka and PostgreSQL"]
async fn processes_killed_with_nine() {
    const EACH: u64 = 20_000;
    let (db, topic) = (Database::new().await, Arc::new(Topic::new(PARTITIONS)));
    let folder = tempfile::tempdir().unwrap();
    topic.create().await;
    let mut config = db.config(&topic.name, None);
    let feeder = feed(&topic, EACH);
    let mut rounds = 0;
    while !feeder.is_finished() || rounds < 10 {
        // A dead member keeps its partitions for the length of its session; a group of its own spares the
        // next process the wait, and makes two believe that a partition is theirs.
        config.group = unique("group");
        let process = Process::start(&config, folder.path());
        tokio::time::sleep(Duration::from_millis(rand::random_range(300..2500))).await;
        drop(process);
        rounds += 1;
    }
    feeder.join().unwrap();
    let last = Process::start(&config, folder.path());
    db.wait_for(EACH * PARTITIONS as u64).await;
    drop(last);
    db.assert_exactly(PARTITIONS as u64, EACH).await;
    topic.delete().await;
    db.drop().await;
}
