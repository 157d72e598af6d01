//! `corrente local` when something goes wrong: it is killed, or its database does not take rows.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test may fail loudly, its helpers too"
)]

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::Arc,
};

use corrente_poller::spool::{Limits, Spool};
use corrente_record::{Quality, Reading, Timestamp, Value};
use rusqlite::Connection;

/// Meters that are read so often that some reading is always on its way.
const SITE: &str = "
apiVersion: corrente.dev/v1alpha1
kind: MeterPoller
metadata:
  name: site
  namespace: plant
spec:
  interval: 250ms
  timeout: 100ms
  endpoints:
    - {name: a, address: 192.168.10.1, meters: [{name: m1, unitId: 1, profile: eastron-sdm120}]}
    - {name: b, address: 192.168.10.2, meters: [{name: m2, unitId: 1, profile: eastron-sdm120}]}
    - {name: c, address: 192.168.10.3, meters: [{name: m3, unitId: 1, profile: eastron-sdm120}]}
    - {name: d, address: 192.168.10.4, transport: tls, tls: {secretName: d}, meters: [{name: m4, unitId: 1, profile: eastron-sdm120}]}
  output:
    kafka:
      bootstrapServers: [kafka:9092]
      topic: readings
";

struct Folder(tempfile::TempDir);

impl Folder {
    fn with_site() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("site.yaml"), SITE).unwrap();
        Self(folder)
    }

    fn data(&self) -> PathBuf {
        self.0.path().join(".corrente")
    }

    fn local(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_corrente"));
        command
            .args(["local", "--simulate", "site.yaml"])
            .current_dir(self.0.path());
        command
    }

    /// Runs it for a while; gives the exit code and the summary.
    fn run(&self, duration: &str) -> (Option<i32>, String) {
        let output: Output = self.local().args(["--duration", duration]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let summary = text.lines().find(|line| line.starts_with("ended: "));
        let errors = String::from_utf8_lossy(&output.stderr);
        (
            output.status.code(),
            summary.unwrap_or_else(|| panic!("{text}{errors}")).to_owned(),
        )
    }

    fn database(&self) -> Connection {
        fs::create_dir_all(self.data()).unwrap();
        Connection::open(self.data().join("readings.sqlite")).unwrap()
    }

    /// Each stream's lowest and highest seq, how many it has, and how many different ones.
    fn streams(&self) -> Vec<[i64; 4]> {
        let database = self.database();
        let mut query = database
            .prepare(
                "SELECT min(seq), max(seq), count(seq), count(DISTINCT seq) FROM readings GROUP BY stream",
            )
            .unwrap();
        let row = |row: &rusqlite::Row<'_>| Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?]);
        query
            .query_map([], row)
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap()
    }

    /// One stream that has every seq from 1 on exactly once; gives how many.
    fn assert_complete(&self) -> i64 {
        let streams = self.streams();
        let [[first, last, all, different]] = streams[..] else {
            panic!("not one stream: {streams:?}")
        };
        assert_eq!((first, all, different), (1, last, last), "{streams:?}");
        last
    }
}

/// The number before a noun or after a word and a colon.
fn number(summary: &str, noun: &str) -> i64 {
    let after = summary.split(&format!("{noun}: ")).nth(1);
    let figure = match after {
        Some(after) => after.split([',', ';']).next(),
        None => summary
            .split(&format!(" {noun}"))
            .next()
            .and_then(|before| before.rsplit(' ').next()),
    };
    figure.unwrap().parse().unwrap()
}

#[test]
fn killed_it_loses_and_doubles_nothing() {
    let folder = Folder::with_site();
    let mut child = folder
        .local()
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let figure = |line: &str, name: &str| -> Option<i64> {
        let after = line.split(&format!(" {name} ")).nth(1)?;
        after.split(',').next()?.parse().ok()
    };
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .take(12)
        .map_while(Result::ok);
    let stored = lines.find(|line| figure(line, "rows").is_some_and(|rows| rows > 0));
    // From here on nothing more is stored, so that much is on its way when it is killed.
    let lock = folder.database();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    let last = lines.next();
    child.kill().unwrap();
    child.wait().unwrap();
    lock.execute_batch("ROLLBACK").unwrap();
    let rows: i64 = lock
        .query_row("SELECT count(*) FROM readings", [], |row| row.get(0))
        .unwrap();
    drop(lock);
    assert!(rows >= figure(&stored.unwrap(), "rows").unwrap());
    let records = figure(&last.unwrap(), "records").unwrap();
    assert!(records > rows, "{records} records, {rows} rows");

    let (code, summary) = folder.run("3s");
    assert_eq!((code, number(&summary, "lost")), (Some(0), 0), "{summary}");
    assert!(!summary.contains("waiting"), "{summary}");
    let stored = folder.assert_complete();
    // What the first run left in its spool is stored as well: rows without a record of this run.
    assert!(
        stored >= records + number(&summary, "record"),
        "{stored}; {summary}"
    );
    assert_eq!(stored, rows + number(&summary, "row"), "{summary}");
}

#[test]
fn what_the_database_does_not_take_waits_for_the_next_run() {
    let folder = Folder::with_site();
    let lock = folder.database();
    lock.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let (code, summary) = folder.run("3s");
    assert_eq!((code, number(&summary, "lost")), (Some(0), 0), "{summary}");
    let records = number(&summary, "record");
    assert!(records > 0 && number(&summary, "row") == 0, "{summary}");
    assert_eq!(number(&summary, "waiting"), records, "{summary}");
    lock.execute_batch("ROLLBACK").unwrap();
    drop(lock);

    let (code, summary) = folder.run("3s");
    assert_eq!((code, number(&summary, "lost")), (Some(0), 0), "{summary}");
    assert!(!summary.contains("waiting"), "{summary}");
    assert_eq!(
        number(&summary, "row"),
        records + number(&summary, "record"),
        "{summary}"
    );
    assert_eq!(folder.assert_complete(), number(&summary, "row"));
}

#[test]
fn what_an_earlier_run_lost_is_not_lost_again() {
    let folder = Folder::with_site();
    let left = earlier_run(&folder.data().join("spool/plant.site"));
    let (code, summary) = folder.run("2s");
    assert_eq!((code, number(&summary, "lost")), (Some(0), 0), "{summary}");
    assert_eq!(
        number(&summary, "row"),
        left + number(&summary, "record"),
        "{summary}"
    );
}

/// A spool in which records were evicted and others wait; gives how many wait.
fn earlier_run(dir: &Path) -> i64 {
    let limits = Limits {
        max_bytes: 5000,
        segment_bytes: 1000,
    };
    let mut spool = Spool::open(dir, limits).unwrap();
    for n in 0..100 {
        let reading = Reading {
            ts: Timestamp(1_795_213_200_000 + n),
            meter: "m1".into(),
            slot: Timestamp(1_795_213_200_000 + n),
            quality: Quality::Good,
            skipped: 0,
            labels: Arc::new(BTreeMap::new()),
            values: vec![("voltage_l1_n".into(), Value::Float(229.8))],
            bad: Vec::new(),
        };
        spool.append(&reading).unwrap();
    }
    spool.sync().unwrap();
    let stats = spool.stats();
    assert!(stats.evicted > 0 && stats.pending > 0, "{stats:?}");
    i64::try_from(stats.pending).unwrap()
}
