//! Keeping a spool within its bound: segments go when they are acknowledged, and, where that does not do,
//! the oldest go with what is in them, counted and said once per burst.
//!
//! A disk that is full before the bound is reached is one more bound: what fitted so far is all that fits,
//! until the broker takes records again. So the newest readings are kept, and the disk is not asked in vain each time.
//!
//! An acknowledged segment goes only when the cursor that passes it is on disk. Otherwise a power loss could bring back
//! an earlier cursor without the segments it needs, and what the broker has long stored would count as lost. An
//! eviction does not wait for the disk: whoever reads a meter waits for it. Where a power loss takes its count, the
//! next open counts what is missing between the cursor and the oldest segment.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{Spool, segment};

impl Spool {
    /// Evicts the oldest segments until `more` bytes fit.
    pub(super) fn make_room(&mut self, more: u64) {
        let bound = self.full_at.unwrap_or(u64::MAX).min(self.limits.max_bytes);
        while self.total_bytes() + more > bound && self.evict_oldest("the spool is full") {}
    }

    /// The disk is full: makes room, once; whether there is any now.
    pub(super) fn make_room_on_disk(&mut self) -> bool {
        let fitted = self.total_bytes();
        let evicted = self.evict_oldest("the spool's disk is full");
        if evicted {
            self.full_at = Some(fitted);
        }
        evicted
    }

    /// Evicts the oldest segment; whether there was one besides the newest.
    fn evict_oldest(&mut self, why: &str) -> bool {
        let Some(last) = self.segments.get(1).map(|next| next.first.saturating_sub(1)) else {
            return false;
        };
        // The name of the newest segment must be on disk before an older one goes.
        if self.segments.get(1).is_some_and(|next| !next.durable)
            && let Err(error) = self.sync()
        {
            tracing::error!(%error, "failed to sync the spool before an eviction");
        }
        let lost = last.saturating_sub(self.cursor.acknowledged);
        if lost > 0 && self.burst == 0 {
            tracing::error!(
                max_bytes = self.limits.max_bytes,
                pending = self.stats().pending,
                "{why}: the oldest records are evicted and lost until the broker takes records"
            );
        }
        self.burst += lost;
        self.cursor.evicted += lost;
        self.cursor.acknowledged = self.cursor.acknowledged.max(last);
        self.write_cursor();
        if let Some(path) = self.let_go_of_oldest() {
            remove(&path);
        }
        true
    }

    /// Whether a segment is behind this seq, and may go once the cursor on disk has passed it.
    pub(super) fn may_go(&self, acknowledged: u64) -> bool {
        match (self.segments.front(), self.segments.get(1)) {
            (Some(_), Some(next)) => next.durable && next.first <= acknowledged.saturating_add(1),
            _ => false,
        }
    }

    /// Lets go of the segments that are behind a seq which the cursor on disk has passed; their files.
    pub(super) fn let_go(&mut self, acknowledged: u64) -> Vec<PathBuf> {
        let mut gone = Vec::new();
        while self.may_go(acknowledged) {
            gone.extend(self.let_go_of_oldest());
            self.full_at = None;
            if self.burst > 0 {
                tracing::warn!(evicted = self.burst, "the spool has room again");
                self.burst = 0;
            }
        }
        gone
    }

    fn let_go_of_oldest(&mut self) -> Option<PathBuf> {
        let oldest = self.segments.pop_front()?;
        Some(segment::path(&self.dir, oldest.first))
    }
}

/// Deletes a segment's file.
pub(super) fn remove(path: &Path) {
    // Where it stays, the next open finds it behind the cursor and tries again.
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "failed to delete a segment of the spool");
    }
}
