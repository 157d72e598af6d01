//! What a record costs the processor on its way through the spool: `cargo run --release --example spool_cost`.
//! Not a test: figures of a machine are for people.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use corrente_poller::spool::{Limits, Spool};
use corrente_record::{Name, Quality, Reading, Timestamp, Value};

/// Seconds of processor time of this process, of 10 ms each (proc_pid_stat(5), fields 14 and 15).
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11..13]
        .iter()
        .map(|field| field.parse::<u64>().unwrap())
        .sum();
    ticks as f64 / 100.0
}

fn main() {
    const RECORDS: i64 = 300_000;
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(dir.path(), Limits::new(4 << 30)).unwrap();
    let names: Vec<Name> = (0..80).map(|n| format!("holding_register_{n}").into()).collect();
    let reading = |slot: i64| Reading {
        ts: Timestamp(1_795_213_200_000 + slot),
        meter: "meter-17".into(),
        slot: Timestamp(1_795_213_200_000 + slot),
        quality: Quality::Good,
        labels: Arc::new(BTreeMap::new()),
        values: names
            .iter()
            .enumerate()
            .map(|(n, name)| (name.clone(), Value::Int(slot % 1000 + n as i64)))
            .collect(),
        bad: Vec::new(),
        skipped: 0,
    };
    let (before, began) = (cpu(), Instant::now());
    for slot in 0..RECORDS {
        std::hint::black_box(reading(slot));
    }
    let made = cpu();
    for slot in 0..RECORDS {
        spool.append(&reading(slot)).unwrap();
        // As many as come together in a second of 27 meters at 100 ms.
        if slot % 270 == 269 {
            let job = spool.begin_sync().unwrap().unwrap();
            // The disk's time is not the processor's, and a test's disk need not keep anything.
            drop(job);
        }
    }
    let appended = cpu();
    spool.sync().unwrap();
    let synced = cpu();
    let (mut after, mut bytes) = (0, 0);
    loop {
        let some = spool.read(after, 270, usize::MAX).unwrap();
        let Some(last) = some.last() else { break };
        after = last.seq;
        bytes += some.iter().map(|record| record.payload.len()).sum::<usize>();
        spool.acknowledge(after);
    }
    let read = cpu();
    let each = |seconds: f64| seconds * 1e6 / RECORDS as f64;
    println!(
        "{} bytes a record; append {:.2} us, read back and acknowledge {:.2} us of processor time each; {:.1} s in all",
        bytes / RECORDS as usize,
        each((appended - made) - (made - before)),
        each(read - synced),
        began.elapsed().as_secs_f64()
    );
}
