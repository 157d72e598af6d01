//! A spool folder whose files hold anything: it opens, gives what is whole in order, and goes on.
//!
//! An input is the cursor file's 128 bytes and then the segments, each with a length of two bytes before it. A
//! fuzzer does not guess checksums, so that the first byte says whether they are made right.
#![no_main]

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use corrente_poller::spool::{Limits, Spool, frame};
use corrente_record::{Quality, Reading, Timestamp};
use libfuzzer_sys::fuzz_target;

const CURSOR: usize = 128;
/// Nothing counts this far; what pretends to ends within the numbers that are left.
const HIGHEST: u64 = u64::MAX / 2;

fuzz_target!(|data: &[u8]| {
    let Some((&flags, rest)) = data.split_first() else {
        return;
    };
    let (cursor, mut rest) = rest.split_at(rest.len().min(CURSOR));
    let dir = tempfile::tempdir().expect("there is room for a folder");
    let mut cursor = cursor.to_vec();
    if flags & 1 == 1 {
        cursor.chunks_exact_mut(64).for_each(|slot| {
            // The highest bytes of its five numbers: none of them ever gets so far.
            for at in [15, 23, 31, 39, 47] {
                slot[at] &= 0x3f;
            }
            let crc = crc32fast::hash(&slot[4..]);
            slot[..4].copy_from_slice(&crc.to_le_bytes());
        });
    }
    fs::write(dir.path().join("cursor"), cursor).expect("a file can be written");
    let mut first = 1;
    while let Some((length, more)) = rest.split_first_chunk() {
        let (segment, more) = more.split_at(more.len().min(usize::from(u16::from_le_bytes(*length))));
        let mut segment = segment.to_vec();
        if flags & 2 == 2 {
            mend(&mut segment);
        }
        let scan = frame::scan(&segment);
        assert!(scan.bytes <= segment.len() && scan.frames as usize <= segment.len());
        fs::write(dir.path().join(format!("{first:020}.seg")), &segment).expect("a file can be written");
        first = scan
            .last
            .unwrap_or(first)
            .saturating_add(1 + u64::from(flags >> 4));
        if first > HIGHEST {
            return;
        }
        rest = more;
    }
    let known = use_it(dir.path());
    let again = use_it(dir.path());
    assert!(again > known, "no seq is given twice: {again} after {known}");
});

/// Opens the spool, reads all there is, and writes a record: its seq.
fn use_it(dir: &Path) -> u64 {
    let mut spool = Spool::open(dir, Limits::new(1 << 20)).expect("damage is no reason not to open");
    let (mut after, mut seen) = (spool.acknowledged(), None);
    loop {
        let records = spool.read(after, 16, 1 << 16).expect("damage is passed over");
        let Some(last) = records.last() else { break };
        for record in &records {
            assert!(seen < Some(record.seq), "in order");
            seen = Some(record.seq);
        }
        after = last.seq;
    }
    let reading = Reading {
        ts: Timestamp(0),
        meter: "m".into(),
        slot: Timestamp(0),
        quality: Quality::Good,
        skipped: 0,
        labels: Arc::new(BTreeMap::new()),
        values: Vec::new(),
        bad: Vec::new(),
    };
    let seq = spool.append(&reading).expect("there is room for a record");
    assert!(seen < Some(seq), "it comes after all that is there");
    spool.acknowledge(after);
    seq
}

/// Makes the checksums of frames right, as far as their lengths go.
fn mend(mut bytes: &mut [u8]) {
    while bytes.len() >= 17 {
        let length = usize::from(u16::from_le_bytes([bytes[0], bytes[1]]) & 0x01ff).max(9);
        let Some((frame, rest)) = bytes.split_at_mut_checked(8 + length) else {
            return;
        };
        frame[..4].copy_from_slice(&(length as u32).to_le_bytes());
        frame[15] &= 0x3f;
        let mut crc = crc32fast::Hasher::new();
        crc.update(&frame[..4]);
        crc.update(&frame[8..]);
        frame[4..8].copy_from_slice(&crc.finalize().to_le_bytes());
        bytes = rest;
    }
}
