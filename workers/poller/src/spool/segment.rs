//! The segment files: their names, and what is found in them at open.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
};

use super::{SpoolError, frame, io_error};

/// A segment.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// The seq that comes first in it; its name.
    pub first: u64,
    /// How many bytes of frames it holds.
    pub bytes: u64,
    /// Whether its name survives a power loss.
    pub durable: bool,
}

impl Segment {
    pub(super) fn new(first: u64) -> Self {
        Self {
            first,
            bytes: 0,
            durable: false,
        }
    }
}

/// Twenty digits, so that names sort as numbers do.
pub(super) fn path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:020}.seg"))
}

/// The segments in a folder, oldest first. Other files are left alone, and what goes meanwhile is not among them.
pub(super) fn list(dir: &Path) -> io::Result<VecDeque<Segment>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let first = name
            .to_str()
            .and_then(|name| name.strip_suffix(".seg"))
            .and_then(|name| name.parse().ok());
        let Some(first) = first else {
            continue;
        };
        let bytes = match entry.metadata() {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        segments.push(Segment {
            first,
            bytes,
            durable: true,
        });
    }
    segments.sort_unstable_by_key(|segment| segment.first);
    Ok(segments.into())
}

/// Makes an empty segment and opens it for appending.
pub(super) fn create(dir: &Path, first: u64) -> Result<File, SpoolError> {
    let path = path(dir, first);
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(&path)
        .map_err(io_error("create", &path))
}

/// Opens a segment for reading.
pub(super) fn open(dir: &Path, first: u64) -> Result<File, SpoolError> {
    let path = path(dir, first);
    File::open(&path).map_err(io_error("open", &path))
}

/// Opens the newest segment for appending, without its torn tail, and says which seq is its last.
pub(super) fn recover(dir: &Path, newest: &mut Segment) -> Result<(File, Option<u64>), SpoolError> {
    let path = path(dir, newest.first);
    let bytes = fs::read(&path).map_err(io_error("read", &path))?;
    let scan = frame::scan(&bytes);
    let file = create(dir, newest.first)?;
    let whole = scan.bytes as u64;
    if whole < newest.bytes {
        tracing::warn!(
            path = %path.display(),
            bytes = newest.bytes - whole,
            "cut a torn tail off the spool: the last write before it stopped did not get through"
        );
        file.set_len(whole).map_err(io_error("cut", &path))?;
        newest.bytes = whole;
    }
    Ok((file, scan.last))
}

/// Syncs all segments and the folder. What a killed process wrote may be in memory alone, in any of them.
pub(super) fn sync_all(dir: &Path, segments: &VecDeque<Segment>) -> Result<(), SpoolError> {
    for segment in segments {
        open(dir, segment.first)?
            .sync_all()
            .map_err(io_error("sync", &path(dir, segment.first)))?;
    }
    File::open(dir)
        .and_then(|folder| folder.sync_all())
        .map_err(io_error("sync", dir))
}
