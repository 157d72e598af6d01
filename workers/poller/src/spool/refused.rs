//! Records that the broker refused for good: one line of JSON each, with the reason, beside the spool.
//!
//! They stop nothing, and they are kept for a person to look at. Two files take turns, so that a broker that
//! refuses everything does not fill the disk.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::Path,
};

use super::Stored;

/// The file that is appended to.
pub const FILE: &str = "refused.jsonl";
/// What it is renamed to when it is full.
pub const BEFORE: &str = "refused.1.jsonl";

/// Appends a record; first makes room where the file has `max_bytes`.
///
/// # Errors
/// Where the file cannot be written.
pub(super) fn append(dir: &Path, max_bytes: u64, record: &Stored, reason: &str) -> io::Result<()> {
    let path = dir.join(FILE);
    if fs::metadata(&path).is_ok_and(|file| file.len() >= max_bytes) {
        fs::rename(&path, dir.join(BEFORE))?;
    }
    // The record is kept as text, so that the line is JSON whatever the record is.
    let mut line = serde_json::to_vec(&serde_json::json!({
        "seq": record.seq,
        "key": String::from_utf8_lossy(&record.key),
        "reason": reason,
        "record": String::from_utf8_lossy(&record.payload),
    }))?;
    line.push(b'\n');
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)?
        .write_all(&line)
}
