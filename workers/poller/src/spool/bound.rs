//! Keeping a spool within its bound: segments go when they are acknowledged, and, where that does not do,
//! the oldest go with what is in them, counted and said once per burst.

use std::fs;

use super::{Spool, segment};

impl Spool {
    /// Evicts the oldest segments until `more` bytes fit.
    pub(super) fn make_room(&mut self, more: u64) {
        while self.total_bytes() + more > self.limits.max_bytes && self.segments.len() > 1 {
            let Some(last) = self.segments.get(1).map(|next| next.first.saturating_sub(1)) else {
                break;
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
                    "the spool is full: the oldest records are evicted and lost until the broker takes records"
                );
            }
            self.burst += lost;
            self.cursor.evicted += lost;
            self.cursor.acknowledged = self.cursor.acknowledged.max(last);
            self.write_cursor();
            self.delete_oldest();
        }
    }

    pub(super) fn delete_acknowledged(&mut self) {
        while let (Some(_), Some(next)) = (self.segments.front(), self.segments.get(1)) {
            if next.first > self.cursor.acknowledged.saturating_add(1) || !next.durable {
                break;
            }
            self.delete_oldest();
            if self.burst > 0 {
                tracing::warn!(evicted = self.burst, "the spool has room again");
                self.burst = 0;
            }
        }
    }

    fn delete_oldest(&mut self) {
        if let Some(oldest) = self.segments.pop_front() {
            let path = segment::path(&self.dir, oldest.first);
            // Where it stays, the next open finds it behind the cursor and tries again.
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "failed to delete a segment of the spool");
            }
        }
    }
}
