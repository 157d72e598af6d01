//! Syncing a spool: in one step, or in three, so that the long one in the middle needs no access to the spool.

use std::{fs::File, io};

use super::{Spool, SpoolError, io_error, segment};

impl Spool {
    /// Makes everything that was written survive a power loss.
    ///
    /// # Errors
    /// Where the disk does not take it.
    pub fn sync(&mut self) -> Result<(), SpoolError> {
        if let Some(job) = self.begin_sync()? {
            let upto = job.run().map_err(io_error("sync", &self.dir))?;
            self.finish_sync(upto);
        }
        Ok(())
    }

    /// The first step of a sync: what is to be synced; `None` where nothing is.
    ///
    /// # Errors
    /// Where the process has no file handle left.
    pub fn begin_sync(&self) -> Result<Option<SyncJob>, SpoolError> {
        let upto = self.next.saturating_sub(1);
        if upto <= self.synced && self.segments.iter().all(|segment| segment.durable) {
            return Ok(None);
        }
        let mut files = vec![self.active.try_clone().map_err(io_error("open", &self.dir))?];
        // A segment that was closed since the last sync, and the folder that names its successor.
        for (segment, next) in self.segments.iter().zip(self.segments.iter().skip(1)) {
            if !next.durable {
                files.push(segment::open(&self.dir, segment.first)?);
            }
        }
        if self.segments.iter().any(|segment| !segment.durable) {
            files.push(File::open(&self.dir).map_err(io_error("open", &self.dir))?);
        }
        files.push(self.cursor_file.handle().map_err(io_error("open", &self.dir))?);
        Ok(Some(SyncJob { files, upto }))
    }

    /// The last step of a sync: everything up to `upto` is on disk.
    pub fn finish_sync(&mut self, upto: u64) {
        self.synced = self.synced.max(upto);
        for segment in &mut self.segments {
            segment.durable |= segment.first <= upto.saturating_add(1);
        }
        self.delete_acknowledged();
    }
}

/// What is to be synced. Running it needs no access to the spool, so that records can be appended meanwhile.
#[derive(Debug)]
pub struct SyncJob {
    files: Vec<File>,
    upto: u64,
}

impl SyncJob {
    /// Syncs, blocking, and returns the seq to give to [`Spool::finish_sync`].
    ///
    /// # Errors
    /// Where the disk does not take it.
    pub fn run(self) -> io::Result<u64> {
        for file in &self.files {
            file.sync_all()?;
        }
        Ok(self.upto)
    }
}
