//! The spool as a whole, on a disk.

use std::{collections::BTreeMap, io::Write as _};

use corrente_record::{Quality, Reading, Record, Timestamp, Value};
use tempfile::TempDir;

use super::*;

fn reading(meter: &str, slot: i64) -> Reading {
    Reading {
        ts: Timestamp(slot + 12),
        meter: meter.into(),
        slot: Timestamp(slot),
        quality: Quality::Good,
        skipped: 0,
        labels: Arc::new(BTreeMap::new()),
        values: vec![("voltage_l1_n".into(), Value::Float(229.8))],
        bad: Vec::new(),
    }
}

fn limits(max_bytes: u64, segment_bytes: u64) -> Limits {
    Limits {
        max_bytes,
        segment_bytes,
    }
}

const ROOMY: u64 = 1 << 20;

fn open(dir: &TempDir) -> Spool {
    Spool::open(dir.path(), limits(ROOMY, 1000)).unwrap()
}

fn fill(spool: &mut Spool, records: i64) {
    for n in 0..records {
        spool.append(&reading("m", n)).unwrap();
    }
}

/// Everything after `after`, by many small reads.
fn drain(spool: &mut Spool, mut after: u64) -> Vec<Stored> {
    let mut all = Vec::new();
    loop {
        let some = spool.read(after, 3, usize::MAX).unwrap();
        match some.last() {
            Some(last) => after = last.seq,
            None => return all,
        }
        all.extend(some);
    }
}

fn seqs(records: &[Stored]) -> Vec<u64> {
    records.iter().map(|record| record.seq).collect()
}

fn segments(dir: &TempDir) -> usize {
    segment::list(dir.path()).unwrap().len()
}

#[test]
fn records_come_back_in_order_with_stream_and_seq() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(&dir);
    fill(&mut spool, 50);
    assert!(segments(&dir) > 5, "{}", segments(&dir));
    assert!(
        drain(&mut spool, 0).is_empty(),
        "what is not synced is not given out"
    );
    spool.sync().unwrap();
    let all = drain(&mut spool, 0);
    assert_eq!(seqs(&all), (1..=50).collect::<Vec<_>>());
    for record in &all {
        let parsed = Record::parse(&record.payload).unwrap();
        assert_eq!(parsed.seq, Some(record.seq));
        assert_eq!(parsed.stream.as_ref(), Some(&spool.stream().id));
        assert_eq!(&*record.key, b"m");
    }
    assert_eq!(seqs(&drain(&mut spool, 47)), [48, 49, 50]);
    assert_eq!(spool.read(10, usize::MAX, 1).unwrap().len(), 1);
}

/// Found by fuzzing: checksums are right in a copy, too.
#[test]
fn a_record_that_a_copied_segment_has_again_is_given_once() {
    let dir = tempfile::tempdir().unwrap();
    fill(&mut open(&dir), 2);
    let copy = segment::path(dir.path(), 3);
    std::fs::copy(segment::path(dir.path(), 1), copy).unwrap();
    let mut spool = open(&dir);
    assert_eq!(seqs(&spool.read(0, 16, usize::MAX).unwrap()), [1, 2]);
    spool.append(&reading("m", 3)).unwrap();
    spool.sync().unwrap();
    let rest = seqs(&drain(&mut spool, 2));
    assert!(rest.len() == 1 && rest[0] > 2, "{rest:?}");
}

#[test]
fn a_killed_process_loses_nothing_and_seq_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(&dir);
    let id = spool.stream().id.clone();
    fill(&mut spool, 20);
    spool.sync().unwrap();
    spool.acknowledge(7);
    fill(&mut spool, 5);
    // Without a flush, a sync or a goodbye.
    drop(spool);
    let mut spool = open(&dir);
    assert_eq!(spool.stream().id, id);
    assert_eq!(spool.acknowledged(), 7);
    assert_eq!(spool.stats().pending, 18);
    assert_eq!(seqs(&drain(&mut spool, 7)), (8..=25).collect::<Vec<_>>());
    assert_eq!(spool.append(&reading("m", 0)).unwrap(), 26);
}

#[test]
fn a_tail_torn_at_any_byte_costs_the_torn_record_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(dir.path(), limits(ROOMY, ROOMY)).unwrap();
    fill(&mut spool, 3);
    let path = segment::path(dir.path(), 1);
    let two = {
        let bytes = fs::read(&path).unwrap();
        frame::decode(&bytes).unwrap().unwrap().1 * 2
    };
    drop(spool);
    let whole = fs::read(&path).unwrap();
    for cut in two..whole.len() {
        fs::write(&path, &whole[..cut]).unwrap();
        let mut spool = Spool::open(dir.path(), limits(ROOMY, ROOMY)).unwrap();
        assert_eq!(seqs(&drain(&mut spool, 0)), [1, 2], "cut at {cut}");
        // What comes next is appended behind the cut and read back.
        spool.append(&reading("m", 9)).unwrap();
        spool.sync().unwrap();
        assert_eq!(seqs(&drain(&mut spool, 0)), [1, 2, 3], "cut at {cut}");
    }
}

#[test]
fn garbage_and_zeros_at_the_end_are_cut() {
    for tail in [
        &[0u8; 100][..],
        b"not a frame at all, but something else entirely",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(dir.path(), limits(ROOMY, ROOMY)).unwrap();
        fill(&mut spool, 2);
        drop(spool);
        let path = segment::path(dir.path(), 1);
        let mut bytes = fs::read(&path).unwrap();
        bytes.extend_from_slice(tail);
        fs::write(&path, bytes).unwrap();
        let mut spool = open(&dir);
        assert_eq!(seqs(&drain(&mut spool, 0)), [1, 2]);
        assert_eq!(spool.append(&reading("m", 9)).unwrap(), 3);
    }
}

#[test]
fn acknowledged_segments_go_and_seq_is_never_given_twice() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(&dir);
    fill(&mut spool, 50);
    spool.sync().unwrap();
    let before = segments(&dir);
    spool.acknowledge(50);
    // Who acknowledges does not wait for the disk.
    assert_eq!(segments(&dir), before);
    spool.sync().unwrap();
    assert_eq!(segments(&dir), 1);
    assert_eq!(spool.stats().pending, 0);
    for expected in 51..60 {
        drop(spool);
        spool = open(&dir);
        assert_eq!(spool.append(&reading("m", 0)).unwrap(), expected);
        spool.sync().unwrap();
        spool.acknowledge(expected);
    }
    // Not even where someone deleted every segment.
    drop(spool);
    for entry in segment::list(dir.path()).unwrap() {
        fs::remove_file(segment::path(dir.path(), entry.first)).unwrap();
    }
    assert_eq!(open(&dir).append(&reading("m", 0)).unwrap(), 60);
    // Nor where someone deleted the cursor: an empty segment's name says what comes first in it.
    for entry in segment::list(dir.path()).unwrap() {
        fs::write(segment::path(dir.path(), entry.first), b"").unwrap();
    }
    fs::remove_file(dir.path().join("cursor")).unwrap();
    assert_eq!(open(&dir).append(&reading("m", 0)).unwrap(), 60);
}

#[test]
fn a_full_spool_evicts_the_oldest_and_counts_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(dir.path(), limits(5000, 1000)).unwrap();
    fill(&mut spool, 100);
    spool.sync().unwrap();
    let left = drain(&mut spool, 0);
    let stats = spool.stats();
    assert!(stats.bytes <= 5000, "{stats:?}");
    assert_eq!(stats.evicted + left.len() as u64, 100);
    assert_eq!(stats.pending, left.len() as u64);
    assert_eq!(left.first().unwrap().seq, stats.evicted + 1);
    assert_eq!(left.last().unwrap().seq, 100);
    assert_eq!(spool.acknowledged(), stats.evicted);
    // The count outlives the process, and records that were acknowledged are not counted as lost.
    spool.acknowledge(100);
    drop(spool);
    let mut spool = Spool::open(dir.path(), limits(5000, 1000)).unwrap();
    assert_eq!(spool.stats().evicted, stats.evicted);
    for n in 0..100 {
        spool.append(&reading("m", n)).unwrap();
        spool.sync().unwrap();
        spool.acknowledge(spool.newest_seq());
    }
    assert_eq!(spool.stats().evicted, stats.evicted);
}

/// Counts what is logged, by the first words of the message.
#[derive(Clone, Default)]
struct Log(Arc<std::sync::Mutex<Vec<String>>>);

impl tracing::field::Visit for Log {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        if ["message", "evicted"].contains(&field.name()) {
            self.0.lock().unwrap().push(format!("{value:?}"));
        }
    }
}

impl tracing::Subscriber for Log {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        event.record(&mut self.clone());
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn evictions_are_logged_once_per_burst() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(dir.path(), limits(5000, 1000)).unwrap();
    let log = Log::default();
    tracing::subscriber::with_default(log.clone(), || {
        for _ in 0..2 {
            let before = spool.stats().evicted;
            fill(&mut spool, 200);
            let evicted = spool.stats().evicted - before;
            assert!(evicted > 100, "many segments go: {evicted}");
            let said = std::mem::take(&mut *log.0.lock().unwrap());
            assert_eq!(said.len(), 1, "{said:?}");
            assert!(said[0].starts_with("the spool is full"), "{said:?}");
            // The broker takes it all: there is room again, and what was lost is summed up.
            spool.sync().unwrap();
            spool.acknowledge(spool.newest_seq());
            spool.sync().unwrap();
            let said = std::mem::take(&mut *log.0.lock().unwrap());
            assert_eq!(said, ["the spool has room again".to_owned(), evicted.to_string()]);
        }
    });
}

#[test]
fn evictions_are_counted_though_a_power_loss_takes_the_count() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(dir.path(), limits(5000, 1000)).unwrap();
    fill(&mut spool, 20);
    spool.sync().unwrap();
    spool.acknowledge(3);
    spool.sync().unwrap();
    let cursor = fs::read(dir.path().join("cursor")).unwrap();
    fill(&mut spool, 100);
    let stats = spool.stats();
    assert!(stats.evicted > 0);
    spool.sync().unwrap();
    drop(spool);
    // The deletions reached the disk, the cursor did not.
    fs::write(dir.path().join("cursor"), cursor).unwrap();
    let spool = Spool::open(dir.path(), limits(5000, 1000)).unwrap();
    assert_eq!(spool.stats().evicted, stats.evicted);
    drop(spool);
    // Once.
    let spool = Spool::open(dir.path(), limits(5000, 1000)).unwrap();
    assert_eq!(spool.stats().evicted, stats.evicted);
}

#[test]
fn a_reader_goes_on_after_its_segment_was_evicted() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(dir.path(), limits(3000, 1000)).unwrap();
    fill(&mut spool, 10);
    spool.sync().unwrap();
    let first = spool.read(0, 2, usize::MAX).unwrap();
    assert_eq!(seqs(&first), [1, 2]);
    fill(&mut spool, 90);
    spool.sync().unwrap();
    let left = drain(&mut spool, 2);
    assert_eq!(left.first().unwrap().seq, spool.stats().evicted + 1);
    assert_eq!(left.last().unwrap().seq, 100);
}

#[test]
fn damage_costs_the_rest_of_its_segment_and_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(&dir);
    fill(&mut spool, 30);
    spool.sync().unwrap();
    let all = segment::list(dir.path()).unwrap();
    let (second, third) = (all[1].first, all[2].first);
    let path = segment::path(dir.path(), second);
    let mut bytes = fs::read(&path).unwrap();
    let length = bytes.len();
    bytes[length - 1] ^= 1;
    fs::write(&path, bytes).unwrap();
    let left = seqs(&drain(&mut spool, 0));
    let expected: Vec<u64> = (1..=30).filter(|seq| *seq != third - 1).collect();
    assert_eq!(left, expected);
    assert_eq!(spool.stats().damaged, 1);
    // Counted once, however often it is read from there on.
    assert_eq!(spool.append(&reading("m", 0)).unwrap(), 31);
    spool.sync().unwrap();
    assert_eq!(seqs(&drain(&mut spool, 30)), [31]);
    assert_eq!(spool.stats().damaged, 1);
}

#[test]
fn damage_in_the_newest_segment_does_not_stop_what_comes_after() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(dir.path(), limits(ROOMY, ROOMY)).unwrap();
    fill(&mut spool, 4);
    spool.sync().unwrap();
    let path = segment::path(dir.path(), 1);
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert_eq!(seqs(&drain(&mut spool, 0)), [1, 2, 3]);
    assert_eq!(spool.append(&reading("m", 0)).unwrap(), 5);
    spool.sync().unwrap();
    assert_eq!(seqs(&drain(&mut spool, 3)), [5]);
    assert_eq!(spool.stats().damaged, 1);
}

#[test]
fn a_segment_that_is_gone_or_cut_is_passed_over_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(&dir);
    fill(&mut spool, 60);
    spool.sync().unwrap();
    let names: Vec<u64> = spool.segments.iter().map(|segment| segment.first).collect();
    assert!(names.len() > 6, "{names:?}");
    let path = |at: usize| segment::path(dir.path(), names[at]);
    // The first and two in a row are gone, one has lost its last byte, and the newest is gone as well.
    for at in [0, 2, 3, names.len() - 1] {
        fs::remove_file(path(at)).unwrap();
    }
    let cut = fs::OpenOptions::new().write(true).open(path(5)).unwrap();
    cut.set_len(cut.metadata().unwrap().len() - 1).unwrap();
    let left = seqs(&drain(&mut spool, 0));
    let expected: Vec<u64> = (1..=60)
        .filter(|&seq| {
            let at = names.partition_point(|first| *first <= seq) - 1;
            ![0, 2, 3, names.len() - 1].contains(&at) && seq != names[6] - 1
        })
        .collect();
    assert_eq!(left, expected);
    assert_eq!(spool.stats().damaged, 60 - expected.len() as u64);
    // What comes next is written where it can be read.
    assert_eq!(spool.append(&reading("m", 0)).unwrap(), 61);
    spool.sync().unwrap();
    assert_eq!(seqs(&drain(&mut spool, *left.last().unwrap())), [61]);
    assert_eq!(spool.stats().damaged, 60 - expected.len() as u64);
}

#[test]
fn refused_records_are_kept_with_the_reason_within_bounds() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(&dir);
    fill(&mut spool, 20);
    spool.sync().unwrap();
    for record in drain(&mut spool, 0) {
        spool.set_aside(&record, "the message is too large");
        spool.acknowledge(record.seq);
    }
    assert_eq!(spool.stats().refused, 20);
    let text = fs::read_to_string(dir.path().join(refused::FILE)).unwrap();
    let line: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!((&line["seq"], &line["key"]), (&20.into(), &"m".into()));
    assert_eq!(line["reason"], "the message is too large");
    assert_eq!(
        Record::parse(line["record"].as_str().unwrap().as_bytes())
            .unwrap()
            .seq,
        Some(20)
    );
    assert!(text.len() < 2500 && dir.path().join(refused::BEFORE).exists());
}

#[test]
fn a_segment_that_begins_during_a_sync_is_not_taken_for_synced() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(&dir);
    let durable = |spool: &Spool| spool.segments.iter().filter(|segment| segment.durable).count();
    // The first segment's name is on disk since the spool was opened. It is full; nothing is synced.
    while spool.newest().unwrap().bytes < 800 {
        fill(&mut spool, 1);
    }
    let job = spool.begin_sync().unwrap().unwrap();
    let upto = spool.newest_seq();
    while spool.segments.len() < 2 {
        spool.rotate().unwrap();
    }
    assert_eq!(spool.newest().unwrap().first, upto + 1);
    let done = job.run().unwrap();
    spool.finish_sync(done).remove();
    assert_eq!((spool.synced, durable(&spool)), (upto, 1));
    fill(&mut spool, 1);
    spool.sync().unwrap();
    assert_eq!((spool.synced, durable(&spool)), (upto + 1, 2));
}

#[test]
fn a_spool_has_one_owner() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(&dir);
    let error = Spool::open(dir.path(), limits(ROOMY, 1000)).unwrap_err();
    assert!(error.to_string().contains("in use by another process"), "{error}");
    drop(spool);
    open(&dir);
}

#[test]
fn partitions_are_settled_once_and_only_a_smaller_topic_unsettles_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(&dir);
    assert_eq!(spool.settle_partitions("meters", 3).unwrap(), 3);
    drop(spool);
    let mut spool = open(&dir);
    assert_eq!(
        spool.settle_partitions("meters", 6).unwrap(),
        3,
        "partitions were added"
    );
    assert_eq!(spool.settle_partitions("other", 6).unwrap(), 6);
    assert_eq!(
        spool.settle_partitions("other", 2).unwrap(),
        2,
        "the topic was made anew"
    );
    drop(spool);
    assert_eq!(open(&dir).settle_partitions("other", 9).unwrap(), 2);
}

#[test]
fn an_unknown_file_is_left_alone_and_a_bad_folder_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("lost+found.seg"), "x").unwrap();
    let mut spool = open(&dir);
    assert_eq!(spool.append(&reading("m", 0)).unwrap(), 1);
    let file = dir.path().join("lost+found.seg");
    let error = Spool::open(&file, limits(ROOMY, 1000)).unwrap_err().to_string();
    assert!(
        error.contains("failed to create the folder") && error.contains("lost+found.seg"),
        "{error}"
    );
}

#[tokio::test]
async fn a_shared_spool_is_synced_soon_after_a_record_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let shared = shared::SharedSpool::new(open(&dir));
    let keeper = shared.clone();
    let task = tokio::spawn(async move {
        keeper
            .keep_synced(std::time::Duration::from_millis(50), |result| result.unwrap())
            .await;
    });
    for n in 0..3 {
        shared.append(&reading("m", n)).unwrap();
        shared.readable().await;
    }
    let read = shared.lock().read(0, 10, usize::MAX).unwrap();
    assert!(!read.is_empty());
    task.abort();
}

#[tokio::test]
async fn what_a_shared_spool_need_not_keep_goes_though_nothing_new_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(&dir);
    fill(&mut spool, 50);
    spool.sync().unwrap();
    let shared = shared::SharedSpool::new(spool);
    let keeper = shared.clone();
    let task = tokio::spawn(async move {
        keeper
            .keep_synced(std::time::Duration::from_millis(1), |result| result.unwrap())
            .await;
    });
    shared.acknowledge(50);
    while segments(&dir) > 1 {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    task.abort();
}

#[test]
#[ignore = "needs root, to mount a small file system"]
fn a_full_disk_costs_the_oldest_records_and_no_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let mount = |command: &mut std::process::Command| assert!(command.status().unwrap().success());
    mount(
        std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"])
            .arg(dir.path()),
    );
    // The spool would take a mebibyte; the disk holds a quarter of that.
    let mut spool = Spool::open(dir.path(), limits(ROOMY, 16 * 1024)).unwrap();
    fill(&mut spool, 3000);
    let stats = spool.stats();
    assert!(stats.evicted > 0 && stats.bytes < 256 * 1024, "{stats:?}");
    spool.sync().unwrap();
    let after = spool.acknowledged();
    let left = seqs(&drain(&mut spool, after));
    assert_eq!(after, stats.evicted);
    assert_eq!(left, (stats.evicted + 1..=3000).collect::<Vec<_>>());
    // It settled below what is there: the disk is not asked in vain each time.
    assert!(spool.full_at.is_some());
    spool.acknowledge(3000);
    spool.sync().unwrap();
    assert_eq!(spool.full_at, None, "there is room again");
    // Where nothing of the spool can make room, the reading is refused, and the next one is not.
    let mut hog = File::create(dir.path().join("hog")).unwrap();
    while hog.write_all(&[0; 4096]).is_ok() {}
    let refused = (0..200)
        .find_map(|n| spool.append(&reading("m", n)).err())
        .unwrap();
    assert!(refused.to_string().contains("No space left"), "{refused}");
    fs::remove_file(dir.path().join("hog")).unwrap();
    drop(hog);
    let next = spool.newest_seq() + 1;
    assert_eq!(spool.append(&reading("m", 0)).unwrap(), next);
    spool.sync().unwrap();
    assert_eq!(seqs(&drain(&mut spool, next - 1)), [next]);
    drop(spool);
    mount(std::process::Command::new("umount").arg(dir.path()));
}

#[test]
fn a_damaged_identity_begins_a_new_stream_and_a_damaged_cursor_sends_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(&dir);
    fill(&mut spool, 30);
    spool.sync().unwrap();
    spool.acknowledge(4);
    let id = spool.stream().id.clone();
    drop(spool);
    // Both slots of the cursor: what was acknowledged is forgotten, so that it is sent again, and nothing is lost.
    fs::write(dir.path().join("cursor"), [0xff; 128]).unwrap();
    let mut spool = open(&dir);
    assert_eq!(seqs(&drain(&mut spool, 0)), (1..=30).collect::<Vec<_>>());
    assert_eq!(
        (spool.stream().id.as_str(), spool.stats().damaged),
        (id.as_str(), 0)
    );
    drop(spool);
    // The identity: records keep the one they were written with, and new ones get a new one.
    fs::write(dir.path().join(stream::FILE), "{").unwrap();
    let mut spool = open(&dir);
    assert_ne!(spool.stream().id, id);
    assert_eq!(spool.append(&reading("m", 0)).unwrap(), 31);
    spool.sync().unwrap();
    let all = drain(&mut spool, 0);
    assert_eq!(seqs(&all), (1..=31).collect::<Vec<_>>());
    let streams: Vec<_> = all
        .iter()
        .map(|record| Record::parse(&record.payload).unwrap().stream.unwrap())
        .collect();
    assert!(streams.iter().take(30).all(|stream| **stream == *id));
    assert_eq!(*streams[30], *spool.stream().id);
}

#[test]
fn a_burst_is_written_as_its_records_would_be_one_by_one() {
    let (dir, twin) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut spool, mut one_by_one) = (open(&dir), open(&twin));
    let readings: Vec<Reading> = (0..60).map(|n| reading("m", n)).collect();
    let mut refused = Vec::new();
    // Bursts that fit into a segment, that do not fit into the rest of it, and one longer than any.
    for burst in [0..1, 1..4, 4..4, 4..9, 9..60] {
        spool.append_all(readings[burst].iter(), &mut |reading, error| {
            refused.push((reading.slot, error.to_string()));
        });
    }
    for reading in &readings {
        one_by_one.append(reading).unwrap();
    }
    assert_eq!(refused, []);
    assert_eq!(spool.stats().appended, 60);
    spool.sync().unwrap();
    one_by_one.sync().unwrap();
    let (all, expected) = (drain(&mut spool, 0), drain(&mut one_by_one, 0));
    assert_eq!(seqs(&all), (1..=60).collect::<Vec<_>>());
    for (record, expected) in all.iter().zip(&expected) {
        let slot = |stored: &Stored| Record::parse(&stored.payload).unwrap().slot;
        assert_eq!(slot(record), slot(expected));
    }
    drop(spool);
    assert_eq!(
        seqs(&drain(&mut open(&dir), 0)).len(),
        60,
        "and so it lies on the disk"
    );
}

#[test]
fn what_cannot_be_written_costs_a_burst_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(&dir);
    let readings = [reading("a", 0), reading(&"x".repeat(300), 1), reading("b", 2)];
    let mut refused = Vec::new();
    spool.append_all(readings.iter(), &mut |reading, error| {
        refused.push((reading.slot, error.to_string()));
    });
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].0, Timestamp(1));
    assert!(refused[0].1.contains("at most 255 bytes"), "{}", refused[0].1);
    spool.sync().unwrap();
    let stored = drain(&mut spool, 0);
    assert_eq!(seqs(&stored), [1, 2]);
    assert_eq!((&*stored[0].key, &*stored[1].key), (&b"a"[..], &b"b"[..]));
}
