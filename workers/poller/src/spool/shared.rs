//! One spool for many tasks: the endpoints append, the publisher reads, and one task syncs.
//!
//! Appends, reads and acknowledgements hold a lock for the few microseconds of a write into memory; a sync and the
//! deletion of what was acknowledged, which can take as long as the disk likes, run on a thread of their own and
//! without the lock.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use corrente_record::Reading;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::{Spool, SpoolError};

/// How long a sync waits for the records of one moment to come together.
const GATHER: Duration = Duration::from_millis(20);

/// A spool that tasks share.
#[derive(Clone, Debug)]
pub struct SharedSpool {
    spool: Arc<Mutex<Spool>>,
    written: Arc<Notify>,
    synced: Arc<Notify>,
}

impl SharedSpool {
    /// Shares a spool.
    #[must_use]
    pub fn new(spool: Spool) -> Self {
        Self {
            spool: Arc::new(Mutex::new(spool)),
            written: Arc::new(Notify::new()),
            synced: Arc::new(Notify::new()),
        }
    }

    /// The spool, to oneself, for a moment.
    pub fn lock(&self) -> MutexGuard<'_, Spool> {
        // Every method leaves the spool consistent at each step, so a panic elsewhere leaves nothing half done.
        self.spool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a record; see [`Spool::append`].
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn append(&self, reading: &Reading) -> Result<u64, SpoolError> {
        let seq = self.lock().append(reading)?;
        self.written.notify_one();
        Ok(seq)
    }

    /// Writes records; see [`Spool::append_all`].
    pub fn append_all<'r>(
        &self,
        readings: impl Iterator<Item = &'r Reading> + Clone,
        failed: &mut dyn FnMut(&Reading, SpoolError),
    ) {
        self.lock().append_all(readings, failed);
        self.written.notify_one();
    }

    /// Says that every record up to `seq` is dealt with; see [`Spool::acknowledge`].
    pub fn acknowledge(&self, seq: u64) {
        let may_go = {
            let mut spool = self.lock();
            spool.acknowledge(seq);
            spool.may_go(seq)
        };
        if may_go {
            self.written.notify_one();
        }
    }

    /// Waits until more records may be read. For one waiter.
    pub async fn readable(&self) {
        self.synced.notified().await;
    }

    /// Syncs now, without blocking other tasks.
    ///
    /// # Errors
    /// Where the disk does not take it.
    pub async fn sync(&self) -> Result<(), SpoolError> {
        let spool = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            let job = spool.lock().begin_sync()?;
            if let Some(job) = job {
                let dir = spool.lock().dir.clone();
                let done = job.run().map_err(super::io_error("sync", &dir))?;
                let removable = spool.lock().finish_sync(done);
                removable.remove();
            }
            Ok(())
        });
        // The task does not panic, and nobody aborts it.
        let result = done.await.unwrap_or(Ok(()));
        self.synced.notify_one();
        result
    }

    /// Keeps the spool synced until dropped: soon after a record is written, or a segment was acknowledged, and at most once per
    /// `interval`. What came of each sync is given to `report`; one that failed is tried again.
    pub async fn keep_synced(&self, interval: Duration, report: impl Fn(Result<(), &SpoolError>)) {
        let mut next = Instant::now();
        loop {
            self.written.notified().await;
            // One sleep for both, since to be woken costs more than most of what is done then.
            sleep_until(next.max(Instant::now() + GATHER.min(interval))).await;
            next = Instant::now() + interval;
            let result = self.sync().await;
            report(result.as_ref().copied());
            if result.is_err() {
                self.written.notify_one();
            }
        }
    }
}
