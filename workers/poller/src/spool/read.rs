//! Reading a spool in order, in chunks, from where the last read ended.

use std::{
    fs::File,
    io::{self, ErrorKind},
    os::unix::fs::FileExt,
};

use super::{Spool, SpoolError, Stored, frame, io_error, segment};

/// How much is read from a segment at once, unless one frame is longer.
const CHUNK: u64 = 256 * 1024;

/// Where the last read ended.
#[derive(Debug)]
pub(super) struct Position {
    /// The `after` that the next read will ask for, if it goes on from here.
    key: u64,
    /// The segment, by its first seq.
    first: u64,
    /// The offset in it.
    offset: u64,
    file: File,
}

/// See [`Spool::read`].
pub(super) fn read(
    spool: &mut Spool,
    after: u64,
    max_records: usize,
    max_bytes: usize,
) -> Result<Vec<Stored>, SpoolError> {
    let mut out = Vec::new();
    if spool.synced <= after {
        return Ok(out);
    }
    let mut at = match spool.position.take() {
        Some(at) if at.key == after && spool.segments.iter().any(|s| s.first == at.first) => at,
        _ => locate(spool, after)?,
    };
    let (mut bytes, mut want) = (0, CHUNK);
    let mut buffer = Vec::new();
    'segments: loop {
        let index = spool.segments.partition_point(|s| s.first < at.first);
        let Some(here) = spool.segments.get(index) else {
            break;
        };
        // A file that has become shorter is read as far as it goes.
        let there = at.file.metadata().map_or(here.bytes, |there| there.len());
        let left = here.bytes.min(there).saturating_sub(at.offset);
        if left == 0 && there < here.bytes {
            at = pass_over(spool, index, at.key)?;
            continue;
        }
        if left == 0 {
            match spool.segments.get(index + 1) {
                Some(next) => {
                    at = start_of(spool, next.first, at.key)?;
                    continue;
                }
                None => break,
            }
        }
        let length = left.min(want);
        buffer.resize(length as usize, 0);
        if let Err(error) = at.file.read_exact_at(&mut buffer, at.offset) {
            if !is_lost(&error) {
                return Err(io_error("read", &segment::path(&spool.dir, at.first))(error));
            }
            at = pass_over(spool, index, at.key)?;
            continue;
        }
        let mut rest = &buffer[..];
        loop {
            match frame::decode(rest) {
                Ok(Some((frame, length))) => {
                    let enough = out.len() >= max_records || bytes >= max_bytes;
                    // Also where a segment holds what the one before it had, as after a hand's mistake.
                    let is_next = frame.seq > after.max(at.key);
                    if frame.seq > spool.synced || (is_next && enough) {
                        break 'segments;
                    }
                    if is_next {
                        bytes += frame.payload.len();
                        at.key = frame.seq;
                        out.push(Stored {
                            seq: frame.seq,
                            key: frame.key.into(),
                            payload: frame.payload.into(),
                        });
                    }
                    at.offset += length as u64;
                    rest = rest.get(length..).unwrap_or_default();
                    want = CHUNK;
                }
                // The chunk ends within a frame; the segment does not.
                Ok(None) if length < left => {
                    if rest.len() as u64 == length {
                        want *= 2;
                    }
                    break;
                }
                Ok(None) if rest.is_empty() => break,
                Ok(None) | Err(frame::Damaged) => {
                    at = pass_over(spool, index, at.key)?;
                    break;
                }
            }
        }
    }
    spool.position = Some(at);
    Ok(out)
}

/// The segment that holds what comes after `after`; frames before that are read and passed over.
fn locate(spool: &mut Spool, after: u64) -> Result<Position, SpoolError> {
    let wanted = after.saturating_add(1);
    let index = spool.segments.partition_point(|s| s.first <= wanted);
    let first = spool
        .segments
        .get(index.saturating_sub(1))
        .map_or(wanted, |segment| segment.first);
    start_of(spool, first, after)
}

/// The start of a segment, or of the next one that is there.
fn start_of(spool: &mut Spool, first: u64, key: u64) -> Result<Position, SpoolError> {
    match segment::open(&spool.dir, first) {
        Ok(file) => Ok(Position {
            key,
            first,
            offset: 0,
            file,
        }),
        // One that is empty has nothing to lose, and nothing comes after it.
        Err(SpoolError::Io { source, .. }) if is_lost(&source) && first < spool.next => {
            let index = spool.segments.partition_point(|s| s.first < first);
            pass_over(spool, index, key)
        }
        Err(error) => Err(error),
    }
}

/// Whether an error says that a segment, or a part of it, is gone: trying again would not bring it back, and
/// what comes after it would wait for ever. Others pass, such as having too many files open.
fn is_lost(error: &io::Error) -> bool {
    /// The number of "input/output error": the disk cannot read a block.
    const EIO: i32 = 5;
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof)
        || error.raw_os_error() == Some(EIO)
}

/// Goes on with the next segment, and counts what the damage in this one costs.
fn pass_over(spool: &mut Spool, index: usize, key: u64) -> Result<Position, SpoolError> {
    if index + 1 >= spool.segments.len() {
        spool.rotate()?;
    }
    let here = spool.segments.get(index).map_or(1, |segment| segment.first);
    let next = spool
        .segments
        .get(index + 1)
        .map_or(here, |segment| segment.first);
    let lost = next - 1 - key.max(here - 1).min(next - 1);
    spool.cursor.damaged += lost;
    spool.write_cursor();
    tracing::error!(
        path = %segment::path(&spool.dir, here).display(),
        records = lost,
        "a segment of the spool is damaged: the rest of it is lost"
    );
    start_of(spool, next, key)
}
