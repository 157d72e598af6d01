//! The spool: a bounded, checksummed, segmented log that every record passes through on its way to the
//! broker. A record that is in it survives the death of the process.
//!
//! 1. [`Spool::open`] finds the segments, cuts a torn tail off the newest one, and goes on where it ended.
//! 2. [`Spool::append`] gives a record its seq and writes it; [`Spool::append_all`] does so with several at once. When
//!    the bound is reached, the oldest segment goes, and what it held is counted.
//! 3. [`Spool::sync`] (or its three steps, without the lock held in the middle one) makes what was written
//!    survive a power loss.
//! 4. [`Spool::read`] gives records in order, **synced ones only**. A record that was published and then
//!    lost by a power loss would have its seq given to another record, which the sink would take for a
//!    repeat and drop. So nothing is published that is not on disk.
//! 5. [`Spool::acknowledge`] moves the cursor. The next sync brings it to the disk and deletes the segments behind it,
//!    so that neither appending nor acknowledging waits for the disk.
//!
//! In the folder: `stream.json` ([`stream`]), `cursor` ([`cursor`]), `<first seq>.seg` (frames, see
//! [`frame`]), `refused.jsonl` ([`refused`]) and `lock`. The newest segment is never deleted, and its name
//! is the seq that comes first in it: a drained spool still knows which seq comes next.

mod append;
mod bound;
pub mod cursor;
pub mod frame;
mod read;
pub mod refused;
mod segment;
pub mod shared;
pub mod stream;
mod sync;

use std::{
    collections::VecDeque,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

pub use self::sync::{Removable, SyncJob, Synced};
use self::{
    cursor::{Cursor, CursorFile},
    read::Position,
    segment::Segment,
    stream::{Partitions, Stream},
};

/// How large a spool gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of all segments together; the newest segment is kept whatever it holds.
    pub max_bytes: u64,
    /// The size at which a new segment begins: what is evicted at once.
    pub segment_bytes: u64,
}

impl Limits {
    /// Limits for so many bytes, in about 16 segments of 64 KiB to 64 MiB.
    #[must_use]
    pub fn new(max_bytes: u64) -> Self {
        Self {
            max_bytes,
            segment_bytes: (max_bytes / 16).clamp(64 * 1024, 64 * 1024 * 1024),
        }
    }
}

/// What can go wrong with a spool.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The folder or a file in it does not do what was asked.
    #[error("failed to {what} {}: {source}", path.display())]
    Io {
        /// What was asked, such as "write".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another process has the spool.
    #[error("the spool {} is in use by another process: stop that one, or use another folder", .0.display())]
    InUse(PathBuf),
    /// The record is too long.
    #[error(transparent)]
    TooLong(#[from] frame::TooLong),
}

/// A record as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its number in the stream.
    pub seq: u64,
    /// Its key: the meter's name.
    pub key: Arc<[u8]>,
    /// The record's JSON, stream and seq included.
    pub payload: Arc<[u8]>,
}

/// Figures about a spool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// The stream's id.
    pub stream: String,
    /// Records written since it was opened.
    pub appended: u64,
    /// Records that the broker has not acknowledged.
    pub pending: u64,
    /// Bytes of all segments.
    pub bytes: u64,
    /// Records dropped by the bound, in the spool's life.
    pub evicted: u64,
    /// Records that the broker refused for good, in the spool's life.
    pub refused: u64,
    /// Records that could not be read back, in the spool's life.
    pub damaged: u64,
}

/// The spool. See the module.
#[derive(Debug)]
pub struct Spool {
    dir: PathBuf,
    limits: Limits,
    stream: Stream,
    cursor: Cursor,
    cursor_file: CursorFile,
    /// How far the cursor in the file has got; behind [`Spool::cursor`] where it could not be written.
    written: u64,
    /// Oldest first; never empty; the last is the one that is written to.
    segments: VecDeque<Segment>,
    active: File,
    /// The seq of the next record.
    next: u64,
    /// Every record up to this seq survives a power loss.
    synced: u64,
    appended: u64,
    position: Option<Position>,
    /// Records evicted since the spool last had room.
    burst: u64,
    /// How many bytes fit on the disk, where it was full before the bound was reached.
    full_at: Option<u64>,
    json: Vec<u8>,
    bytes: Vec<u8>,
    /// Held for as long as the spool is open.
    _lock: File,
}

impl Spool {
    /// Opens the spool in `dir`, or makes one.
    ///
    /// # Errors
    /// Where the folder cannot be used, or another process uses it.
    pub fn open(dir: &Path, limits: Limits) -> Result<Self, SpoolError> {
        fs::create_dir_all(dir).map_err(io_error("create the folder", dir))?;
        let lock = lock(dir)?;
        let stream = match Stream::read(dir).map_err(io_error("read", &dir.join(stream::FILE)))? {
            Some(stream) => stream,
            None => {
                let stream = Stream::new();
                stream
                    .write(dir)
                    .map_err(io_error("write", &dir.join(stream::FILE)))?;
                stream
            }
        };
        let cursor_path = dir.join("cursor");
        let (cursor_file, mut cursor) =
            CursorFile::open(&cursor_path).map_err(io_error("open", &cursor_path))?;
        let mut segments = segment::list(dir).map_err(io_error("list", dir))?;
        let after_cursor = cursor.acknowledged.saturating_add(1);
        let (active, last) = match segments.back_mut() {
            Some(newest) => segment::recover(dir, newest)?,
            None => {
                segments.push_back(Segment::new(after_cursor));
                (segment::create(dir, after_cursor)?, None)
            }
        };
        let named = segments.back().map_or(1, |newest| newest.first);
        let next = last
            .map_or(named, |last| last.saturating_add(1))
            .max(after_cursor);
        let written = cursor.acknowledged;
        if let Some(oldest) = segments.front() {
            let before = oldest.first.saturating_sub(1);
            // What is acknowledged is deleted behind a cursor that is on disk; what is evicted does not wait for it.
            if !cursor_file.is_new() {
                let missing = before.saturating_sub(cursor.acknowledged);
                cursor.evicted = cursor.evicted.saturating_add(missing);
            }
            cursor.acknowledged = cursor.acknowledged.max(before);
        }
        let mut spool = Self {
            dir: dir.to_owned(),
            limits,
            stream,
            cursor,
            cursor_file,
            written,
            segments,
            active,
            next,
            synced: 0,
            appended: 0,
            position: None,
            burst: 0,
            full_at: None,
            json: Vec::new(),
            bytes: Vec::new(),
            _lock: lock,
        };
        // What a killed process had written may still be in memory only.
        segment::sync_all(dir, &spool.segments)?;
        spool.cursor_file.sync().map_err(io_error("sync", &cursor_path))?;
        spool.finish_sync(spool.all_there_is()).remove();
        Ok(spool)
    }

    /// Records after `after`, in order: at most `max_records`, and no further one once `max_bytes` are
    /// reached. Empty where there is none that is synced.
    ///
    /// # Errors
    /// Where a segment cannot be read. What is damaged in it is passed over and counted.
    pub fn read(
        &mut self,
        after: u64,
        max_records: usize,
        max_bytes: usize,
    ) -> Result<Vec<Stored>, SpoolError> {
        read::read(self, after, max_records, max_bytes)
    }

    /// Says that every record up to `seq` is dealt with. What need not be kept any more goes with the next sync.
    pub fn acknowledge(&mut self, seq: u64) {
        let seq = seq.min(self.next.saturating_sub(1));
        if seq > self.cursor.acknowledged {
            self.cursor.acknowledged = seq;
            self.write_cursor();
        }
    }

    /// Sets a record aside that the broker refused for good, with the reason. The caller acknowledges it.
    pub fn set_aside(&mut self, record: &Stored, reason: &str) {
        self.cursor.refused += 1;
        if let Err(error) = refused::append(&self.dir, self.limits.segment_bytes, record, reason) {
            tracing::error!(seq = record.seq, %error, "failed to keep a refused record; it is lost");
        }
        self.write_cursor();
    }

    /// The stream's identity.
    #[must_use]
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Settles how many partitions of `topic` this stream uses, given how many there are now. See
    /// [`stream`]. Where the topic has fewer than the stream knows, it was made anew, nothing of the stream
    /// is in it, and the stream starts over with what is there.
    ///
    /// # Errors
    /// Where it cannot be written down.
    pub fn settle_partitions(&mut self, topic: &str, there_are: i32) -> Result<i32, SpoolError> {
        if let Some(known) = &self.stream.partitions
            && known.topic == topic
            && known.count <= there_are
        {
            return Ok(known.count);
        }
        let mut stream = self.stream.clone();
        stream.partitions = Some(Partitions {
            topic: topic.to_owned(),
            count: there_are,
        });
        stream
            .write(&self.dir)
            .map_err(io_error("write", &self.dir.join(stream::FILE)))?;
        if let Some(before) = self.stream.partitions.take() {
            tracing::warn!(?before, topic, there_are, "the topic is another one than before");
        }
        self.stream = stream;
        Ok(there_are)
    }

    /// Every record up to this seq is dealt with.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.cursor.acknowledged
    }

    /// The seq of the newest record; 0 where there never was one.
    #[must_use]
    pub fn newest_seq(&self) -> u64 {
        self.next.saturating_sub(1)
    }

    /// The figures.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            stream: self.stream.id.clone(),
            appended: self.appended,
            pending: self.newest_seq().saturating_sub(self.cursor.acknowledged),
            bytes: self.total_bytes(),
            evicted: self.cursor.evicted,
            refused: self.cursor.refused,
            damaged: self.cursor.damaged,
        }
    }

    fn newest(&self) -> Option<&Segment> {
        self.segments.back()
    }

    fn newest_path(&self) -> PathBuf {
        segment::path(&self.dir, self.newest().map_or(0, |newest| newest.first))
    }

    fn total_bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Begins a new segment.
    fn rotate(&mut self) -> Result<(), SpoolError> {
        if self.newest().is_some_and(|newest| newest.first == self.next) {
            return Ok(());
        }
        self.active = segment::create(&self.dir, self.next)?;
        self.segments.push_back(Segment::new(self.next));
        Ok(())
    }

    /// A cursor that cannot be written is only a cursor that is behind: records are sent again.
    fn write_cursor(&mut self) {
        match self.cursor_file.write(self.cursor) {
            Ok(()) => self.written = self.cursor.acknowledged,
            Err(error) => tracing::warn!(%error, "failed to write the spool's cursor"),
        }
    }
}

fn lock(dir: &Path) -> Result<File, SpoolError> {
    let path = dir.join("lock");
    let file = File::create(&path).map_err(io_error("create", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(SpoolError::InUse(dir.to_owned())),
        Err(TryLockError::Error(source)) => Err(io_error("lock", &path)(source)),
    }
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SpoolError {
    let path = path.to_owned();
    move |source| SpoolError::Io { what, path, source }
}

#[cfg(test)]
mod power_tests;
#[cfg(test)]
mod tests;
