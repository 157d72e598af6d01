//! Writing to a spool: a frame at a time, or those of several records in one piece.
//!
//! A write costs the same whether it carries one record or a dozen. So what was read in one burst is written at
//! once, where it fits into the segment; where it does not, and where that fails, each record finds its own place, so
//! that only what cannot be written at all is lost.

use std::io::{ErrorKind, Write as _};

use corrente_record::Reading;

use super::{
    Spool, SpoolError,
    frame::{self, Frame},
    io_error,
};

impl Spool {
    /// Writes a record and gives it its seq. It survives the death of the process from here on.
    ///
    /// # Errors
    /// Where it cannot be written; the spool is then as it was, and the record is not in it.
    pub fn append(&mut self, reading: &Reading) -> Result<u64, SpoolError> {
        let seq = self.next;
        self.bytes.clear();
        self.frame(reading, seq)?;
        let length = self.bytes.len() as u64;
        if self
            .newest()
            .is_some_and(|newest| newest.bytes > 0 && newest.bytes + length > self.limits.segment_bytes)
        {
            self.unless_full(Self::rotate)?;
        }
        self.make_room(length);
        self.unless_full(Self::write_frames)?;
        self.wrote(length, 1);
        Ok(seq)
    }

    /// Writes records in their order, as [`Spool::append`] does with one; what cannot be written is given to `failed`.
    pub fn append_all<'r>(
        &mut self,
        readings: impl Iterator<Item = &'r Reading> + Clone,
        failed: &mut dyn FnMut(&Reading, SpoolError),
    ) {
        if self.append_at_once(readings.clone()) {
            return;
        }
        for reading in readings {
            if let Err(error) = self.append(reading) {
                failed(reading, error);
            }
        }
    }

    /// Writes records in one piece; `false` where nothing was written, because they do not fit or for another reason.
    fn append_at_once<'r>(&mut self, readings: impl Iterator<Item = &'r Reading>) -> bool {
        self.bytes.clear();
        let mut records = 0;
        for reading in readings {
            if self.frame(reading, self.next + records).is_err() {
                return false;
            }
            records += 1;
        }
        let length = self.bytes.len() as u64;
        let fits = self
            .newest()
            .is_some_and(|newest| newest.bytes + length <= self.limits.segment_bytes);
        if !fits {
            return false;
        }
        self.make_room(length);
        if self.write_frames().is_err() {
            return false;
        }
        self.wrote(length, records);
        true
    }

    /// Appends a record's frame to `bytes`.
    fn frame(&mut self, reading: &Reading, seq: u64) -> Result<(), frame::TooLong> {
        self.json.clear();
        reading.write_json(&self.stream.id, seq, &mut self.json);
        let frame = Frame {
            seq,
            key: reading.meter.as_bytes(),
            payload: &self.json,
        };
        frame::encode(frame, &mut self.bytes)
    }

    fn wrote(&mut self, length: u64, records: u64) {
        if let Some(newest) = self.segments.back_mut() {
            newest.bytes += length;
        }
        self.next += records;
        self.appended += records;
    }

    /// Does something that needs room on the disk; where there is none, the oldest records make it, for the newest
    /// reading is worth more than the oldest.
    fn unless_full(&mut self, act: fn(&mut Self) -> Result<(), SpoolError>) -> Result<(), SpoolError> {
        loop {
            match act(self) {
                Err(SpoolError::Io { source, .. })
                    if source.kind() == ErrorKind::StorageFull && self.make_room_on_disk() => {}
                done => return done,
            }
        }
    }

    /// Writes the frames in `bytes`, whole or not at all.
    fn write_frames(&mut self) -> Result<(), SpoolError> {
        let before = self.newest().map_or(0, |newest| newest.bytes);
        self.active.write_all(&self.bytes).map_err(|source| {
            // A part may be there. Where it cannot be cut off, the next open does.
            let _ = self.active.set_len(before);
            io_error("write", &self.newest_path())(source)
        })
    }
}
