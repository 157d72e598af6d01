//! The cursor file: how far the broker has acknowledged the stream, and what was counted on the way.
//!
//! It is written for every batch of delivery reports, so it is written in place, without a sync: two slots
//! take turns, each with a generation and a checksum, and the newest whole one counts. A cursor that a power
//! loss set back only means that records are sent again, which the sink recognises by (stream, seq).
//!
//! ```text
//! offset  size  field of a slot of 64 bytes, all little endian
//!      0     4  CRC-32 of the rest
//!      4     4  zero
//!      8     8  generation
//!     16     8  acknowledged: every record up to this seq is dealt with
//!     24     8  evicted: records dropped by the bound
//!     32     8  refused: records that the broker refused for good
//!     40     8  damaged: records that could not be read back
//!     48    16  zero
//! ```

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::Path,
};

const SLOT: usize = 64;

/// What the cursor file holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Every record up to this seq is stored in the broker, set aside, or evicted.
    pub acknowledged: u64,
    /// Records dropped by the bound.
    pub evicted: u64,
    /// Records that the broker refused for good.
    pub refused: u64,
    /// Records that could not be read back.
    pub damaged: u64,
}

/// The file.
#[derive(Debug)]
pub struct CursorFile {
    file: File,
    generation: u64,
}

impl CursorFile {
    /// Opens or creates the file and reads it.
    ///
    /// # Errors
    /// Where the file cannot be opened or read.
    pub fn open(path: &Path) -> io::Result<(Self, Cursor)> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let mut bytes = [0; SLOT * 2];
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match file.read_at(rest, filled as u64)? {
                0 => break,
                n => filled += n,
            }
        }
        let newest = bytes
            .chunks_exact(SLOT)
            .filter_map(decode)
            .max_by_key(|slot| slot.0);
        if newest.is_none() && bytes.iter().any(|byte| *byte != 0) {
            tracing::warn!(
                path = %path.display(),
                "the spool's cursor is damaged: what is in the spool is sent again, and the counts begin anew"
            );
        }
        let (generation, cursor) = newest.unwrap_or_default();
        Ok((Self { file, generation }, cursor))
    }

    /// Whether nothing was ever written to it, as far as it can be read.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.generation == 0
    }

    /// Writes the cursor.
    ///
    /// # Errors
    /// Where writing fails; what was there before stays valid.
    pub fn write(&mut self, cursor: Cursor) -> io::Result<()> {
        let generation = self.generation + 1;
        let at = (generation % 2) * SLOT as u64;
        self.file.write_all_at(&encode(generation, cursor), at)?;
        self.generation = generation;
        Ok(())
    }

    /// Makes what was written survive a power loss. Waits for the disk.
    ///
    /// # Errors
    /// Where the disk does not take it.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// A handle to sync the file with.
    ///
    /// # Errors
    /// Where the process has no file handle left.
    pub fn handle(&self) -> io::Result<File> {
        self.file.try_clone()
    }
}

fn encode(generation: u64, cursor: Cursor) -> [u8; SLOT] {
    let mut slot = [0; SLOT];
    let fields = [
        generation,
        cursor.acknowledged,
        cursor.evicted,
        cursor.refused,
        cursor.damaged,
    ];
    for (place, field) in slot
        .iter_mut()
        .skip(8)
        .zip(fields.iter().flat_map(|field| field.to_le_bytes()))
    {
        *place = field;
    }
    let crc = crc32fast::hash(slot.get(4..).unwrap_or_default()).to_le_bytes();
    for (place, byte) in slot.iter_mut().zip(crc) {
        *place = byte;
    }
    slot
}

fn decode(slot: &[u8]) -> Option<(u64, Cursor)> {
    let (crc, rest) = slot.split_first_chunk::<4>()?;
    if crc32fast::hash(rest) != u32::from_le_bytes(*crc) {
        return None;
    }
    let mut fields = rest.get(4..)?.chunks_exact(8).map(|field| {
        field
            .iter()
            .rev()
            .fold(0, |value: u64, byte| value << 8 | u64::from(*byte))
    });
    let generation = fields.next()?;
    let cursor = Cursor {
        acknowledged: fields.next()?,
        evicted: fields.next()?,
        refused: fields.next()?,
        damaged: fields.next()?,
    };
    // A slot of zeros has the checksum of zeros only by accident, but generation 0 is never written.
    (generation > 0).then_some((generation, cursor))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor(acknowledged: u64) -> Cursor {
        Cursor {
            acknowledged,
            evicted: 1,
            refused: 2,
            damaged: 3,
        }
    }

    #[test]
    fn the_last_write_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cursor");
        assert_eq!(CursorFile::open(&path).unwrap().1, Cursor::default());
        for n in 1..=5 {
            let (mut file, _) = CursorFile::open(&path).unwrap();
            file.write(cursor(n)).unwrap();
            assert_eq!(CursorFile::open(&path).unwrap().1, cursor(n));
        }
    }

    #[test]
    fn a_torn_write_costs_that_write_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cursor");
        let (mut file, _) = CursorFile::open(&path).unwrap();
        file.write(cursor(1)).unwrap();
        let before = std::fs::read(&path).unwrap();
        file.write(cursor(2)).unwrap();
        let after = std::fs::read(&path).unwrap();
        assert_eq!(after.len(), SLOT * 2);
        // The second write changed the first slot alone. Torn, at any byte, the first write still counts.
        for torn in 0..SLOT {
            let mut bytes = before.clone();
            bytes.resize(SLOT * 2, 0);
            bytes[..torn].copy_from_slice(&after[..torn]);
            std::fs::write(&path, &bytes).unwrap();
            let read = CursorFile::open(&path).unwrap().1.acknowledged;
            // A slot ends in zeros, so a tear near its end may have missed nothing.
            assert!(read == 1 || bytes == after, "torn at {torn}: {read}");
        }
    }
}
