//! Syncing a spool: in one step, or in three, so that the long one in the middle needs no access to the spool.

use std::{
    fs::File,
    io::{self, ErrorKind},
    path::PathBuf,
};

use super::{Spool, SpoolError, bound, io_error, segment};

impl Spool {
    /// Makes everything that was written survive a power loss.
    ///
    /// # Errors
    /// Where the disk does not take it.
    pub fn sync(&mut self) -> Result<(), SpoolError> {
        if let Some(job) = self.begin_sync()? {
            let done = job.run().map_err(io_error("sync", &self.dir))?;
            self.finish_sync(done).remove();
        }
        Ok(())
    }

    /// The first step of a sync: what is to be synced; `None` where nothing is.
    ///
    /// # Errors
    /// Where the process has no file handle left.
    pub fn begin_sync(&self) -> Result<Option<SyncJob>, SpoolError> {
        let upto = self.next.saturating_sub(1);
        if upto <= self.synced
            && self.segments.iter().all(|segment| segment.durable)
            && !self.may_go(self.written)
        {
            return Ok(None);
        }
        let mut files = vec![self.active.try_clone().map_err(io_error("open", &self.dir))?];
        // A segment that was closed since the last sync, and the folder that names its successor.
        for (segment, next) in self.segments.iter().zip(self.segments.iter().skip(1)) {
            if !next.durable {
                match segment::open(&self.dir, segment.first) {
                    Ok(file) => files.push(file),
                    // What is gone is missed, and counted, when it is read; what comes after it is synced.
                    Err(SpoolError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        if self.segments.iter().any(|segment| !segment.durable) {
            files.push(File::open(&self.dir).map_err(io_error("open", &self.dir))?);
        }
        files.push(self.cursor_file.handle().map_err(io_error("open", &self.dir))?);
        Ok(Some(SyncJob {
            files,
            synced: self.all_there_is(),
        }))
    }

    /// What a sync that begins now covers.
    pub(super) fn all_there_is(&self) -> Synced {
        Synced {
            upto: self.newest_seq(),
            newest: self.newest().map_or(0, |newest| newest.first),
            acknowledged: self.written,
        }
    }

    /// The last step of a sync: what it covered is on disk. What need not be kept any more is to be removed, which
    /// may take the disk a while and needs no access to the spool.
    pub fn finish_sync(&mut self, synced: Synced) -> Removable {
        self.synced = self.synced.max(synced.upto);
        for segment in &mut self.segments {
            segment.durable |= segment.first <= synced.newest;
        }
        Removable(self.let_go(synced.acknowledged))
    }
}

/// Files that the spool has let go of.
#[derive(Debug)]
#[must_use = "the files stay until the spool is opened again"]
pub struct Removable(Vec<PathBuf>);

impl Removable {
    /// Removes them.
    pub fn remove(self) {
        self.0.iter().for_each(|path| bound::remove(path));
    }
}

/// What is to be synced. Running it needs no access to the spool, so that records can be appended meanwhile.
#[derive(Debug)]
pub struct SyncJob {
    pub(super) files: Vec<File>,
    synced: Synced,
}

/// What a sync covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Synced {
    /// Every record up to this seq.
    upto: u64,
    /// The name of every segment up to this one. One that began while the sync ran may have the very next
    /// seq as its name, and the folder may have been synced before.
    newest: u64,
    /// The cursor has passed every record up to this seq.
    acknowledged: u64,
}

impl SyncJob {
    /// Syncs, blocking, and returns what to give to [`Spool::finish_sync`].
    ///
    /// # Errors
    /// Where the disk does not take it.
    pub fn run(self) -> io::Result<Synced> {
        for file in &self.files {
            file.sync_all()?;
        }
        Ok(self.synced)
    }
}
