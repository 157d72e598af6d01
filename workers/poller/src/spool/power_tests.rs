//! A power loss at any moment: what was synced is there, whatever became of the rest.
//!
//! The test knows what each sync really synced, from the handles that it holds, and keeps the contents of those
//! files and, for the folder, its names. A power loss then leaves of everything newer what chance will have: names
//! made or deleted since may be there or not, a file may have any length between the two, and each small piece of it
//! its old or its new content, in no order.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::AsRawFd,
    sync::Arc,
};

use corrente_record::{Quality, Reading, Timestamp};
use proptest::prelude::*;

use super::*;

/// What is safe: names in the folder, and contents of files.
#[derive(Default)]
struct Safe {
    names: BTreeSet<String>,
    contents: BTreeMap<String, Vec<u8>>,
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

impl Safe {
    /// After an open, everything is.
    fn all(dir: &Path) -> Self {
        let names = names(dir);
        let read = |name: &String| (name.clone(), fs::read(dir.join(name)).unwrap());
        Self {
            contents: names.iter().map(read).collect(),
            names,
        }
    }

    /// A sync that runs now covers these handles.
    fn covered(&mut self, dir: &Path, files: &[File]) {
        for file in files {
            let path = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
            if path == dir {
                self.names = names(dir);
            } else {
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                // A segment that was deleted meanwhile is gone either way.
                if let Ok(content) = fs::read(&path) {
                    self.contents.insert(name, content);
                }
            }
        }
    }

    /// The folder as a power loss leaves it.
    fn lose_power(&self, dir: &Path, into: &Path, mut chance: impl FnMut(usize) -> usize) {
        let now = names(dir);
        for name in now.union(&self.names) {
            let certain = now.contains(name) && self.names.contains(name);
            if !certain && chance(2) == 0 {
                continue;
            }
            let old = self.contents.get(name).cloned().unwrap_or_default();
            let new = fs::read(dir.join(name)).unwrap_or_else(|_| old.clone());
            let (low, high) = (old.len().min(new.len()), old.len().max(new.len()));
            let length = low + chance(high - low + 1);
            let mut content = vec![0; length];
            for (at, piece) in content.chunks_mut(32).enumerate() {
                let from = if chance(2) == 0 { &old } else { &new };
                // Where the old content ends, a piece that did not get through is zeros.
                for (place, byte) in piece.iter_mut().zip(from.iter().skip(at * 32)) {
                    *place = *byte;
                }
                if from.len() < old.len() {
                    // A file that was cut keeps what it had.
                    for (place, byte) in piece
                        .iter_mut()
                        .zip(old.iter().skip(at * 32))
                        .skip(from.len().saturating_sub(at * 32))
                    {
                        *place = *byte;
                    }
                }
            }
            fs::write(into.join(name), content).unwrap();
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// So many records.
    Append(u8),
    /// A sync, during which so many records are written.
    Sync(u8),
    /// The broker acknowledges so many parts of 8 of what is synced.
    Acknowledge(u8),
    /// The process is killed and started again.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1u8..12).prop_map(Step::Append),
        3 => (0u8..9).prop_map(Step::Sync),
        2 => (0u8..9).prop_map(Step::Acknowledge),
        1 => Just(Step::Restart),
    ]
}

fn append(spool: &mut Spool, count: u8, written: &mut BTreeMap<u64, Vec<u8>>, stamp: &mut i64) {
    for _ in 0..count {
        *stamp += 1;
        let reading = Reading {
            ts: Timestamp(*stamp),
            meter: "m".into(),
            slot: Timestamp(*stamp),
            quality: Quality::Good,
            labels: Arc::new(BTreeMap::new()),
            values: Vec::new(),
            bad: Vec::new(),
            skipped: 0,
        };
        let seq = spool.append(&reading).unwrap();
        written.insert(seq, spool.json.clone());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn what_was_synced_survives_a_power_loss(
        steps in prop::collection::vec(step(), 1..25), seed in any::<u64>(),
    ) {
        let limits = Limits { max_bytes: 1 << 20, segment_bytes: 700 };
        let (dir, after) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut spool = Spool::open(dir.path(), limits).unwrap();
        let mut safe = Safe::all(dir.path());
        let (mut written, mut stamp) = (BTreeMap::new(), 0);
        for step in steps {
            match step {
                Step::Append(count) => append(&mut spool, count, &mut written, &mut stamp),
                Step::Sync(meanwhile) => {
                    if let Some(job) = spool.begin_sync().unwrap() {
                        // The least it covers: what was there when it began.
                        safe.covered(dir.path(), &job.files);
                        append(&mut spool, meanwhile, &mut written, &mut stamp);
                        spool.finish_sync(job.run().unwrap()).remove();
                    }
                }
                Step::Acknowledge(parts) => {
                    let (from, to) = (spool.acknowledged(), spool.synced);
                    spool.acknowledge(from + (to - from) * u64::from(parts.min(8)) / 8);
                }
                Step::Restart => {
                    drop(spool);
                    spool = Spool::open(dir.path(), limits).unwrap();
                    safe = Safe::all(dir.path());
                }
            }
        }
        let (synced, acknowledged) = (spool.synced, spool.acknowledged());
        let unsynced = spool.newest_seq() - synced;
        let stream = spool.stream().id.clone();
        let mut state = seed | 1;
        safe.lose_power(dir.path(), after.path(), |below| {
            // xorshift64 (Marsaglia, 2003).
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below as u64) as usize
        });
        let mut spool = Spool::open(after.path(), limits).unwrap();
        prop_assert_eq!(&spool.stream().id, &stream);
        prop_assert!(spool.acknowledged() <= acknowledged);
        let mut left = Vec::new();
        let mut at = spool.acknowledged();
        loop {
            let some = spool.read(at, 7, usize::MAX).unwrap();
            let Some(last) = some.last() else { break };
            at = last.seq;
            left.extend(some);
        }
        prop_assert!(left.windows(2).all(|pair| pair[0].seq < pair[1].seq), "in order");
        for record in &left {
            prop_assert_eq!(Some(&record.payload.to_vec()), written.get(&record.seq), "what was written");
        }
        let there: BTreeSet<u64> = left.iter().map(|record| record.seq).collect();
        for seq in acknowledged + 1..=synced {
            prop_assert!(there.contains(&seq), "{seq} was synced and is gone");
        }
        // What might have been published keeps its seq for itself.
        prop_assert!(spool.newest_seq() >= synced, "{} < {synced}", spool.newest_seq());
        let stats = spool.stats();
        prop_assert!(stats.damaged <= unsynced, "{} damaged of {unsynced} unsynced", stats.damaged);
        prop_assert_eq!(stats.evicted, 0);
    }
}
