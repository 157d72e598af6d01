//! The stream's identity: what is made with the spool and stays for its life.
//!
//! The **id** and a record's seq name the record for ever, and the sink recognises a record that comes
//! twice by (topic, partition, stream, seq). A record that a restarted poller sends again must therefore go
//! to the partition that it went to before. So the **number of partitions** is asked of the broker once, at
//! the first contact, and kept: when partitions are added to the topic later, this stream goes on with those
//! it knows, and a new one takes them all.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use rand::RngExt;
use serde::{Deserialize, Serialize};

/// The characters of an id: digits and letters without those that are mistaken for others.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// How many there are: 65 bits, so that no two spools of a plant share one by accident.
const ID_LENGTH: usize = 13;

/// The file in the spool's folder.
pub const FILE: &str = "stream.json";

/// The identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stream {
    /// The id.
    pub id: String,
    /// The topic's partitions, once they are known.
    #[serde(default)]
    pub partitions: Option<Partitions>,
}

/// How many partitions a topic had when the stream first met it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partitions {
    /// The topic.
    pub topic: String,
    /// The number.
    pub count: i32,
}

impl Stream {
    /// A new stream.
    #[must_use]
    pub fn new() -> Self {
        let mut rng = rand::rng();
        let id = (0..ID_LENGTH)
            .filter_map(|_| ALPHABET.get(rng.random_range(0..ALPHABET.len())).copied())
            .map(char::from)
            .collect();
        Self { id, partitions: None }
    }

    /// Reads the identity of the spool in `dir`. `None` where there is none, or none that can be read: then
    /// a new stream begins, which is always safe, since a record carries the id it was written with.
    ///
    /// # Errors
    /// Where the file is there and cannot be read.
    pub fn read(dir: &Path) -> io::Result<Option<Self>> {
        match fs::read(dir.join(FILE)) {
            Ok(bytes) => {
                let stream: Option<Self> = serde_json::from_slice(&bytes).ok();
                let stream = stream.filter(|stream| !stream.id.is_empty());
                if stream.is_none() {
                    tracing::warn!(
                        path = %dir.join(FILE).display(),
                        "the spool's identity is damaged: a new stream begins, and what is in the spool keeps the old one's name"
                    );
                }
                Ok(stream)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes the identity, whole or not at all.
    ///
    /// # Errors
    /// Where writing fails.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        let temporary = dir.join("stream.json.new");
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        fs::rename(&temporary, dir.join(FILE))?;
        File::open(dir)?.sync_all()
    }
}

impl Default for Stream {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_13_characters_and_differ() {
        let (a, b) = (Stream::new().id, Stream::new().id);
        assert_ne!(a, b);
        assert!(a.len() == 13 && a.bytes().all(|c| ALPHABET.contains(&c)), "{a}");
    }

    #[test]
    fn is_read_back_and_garbage_begins_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Stream::read(dir.path()).unwrap(), None);
        let stream = Stream {
            partitions: Some(Partitions {
                topic: "meters".to_owned(),
                count: 6,
            }),
            ..Stream::new()
        };
        stream.write(dir.path()).unwrap();
        assert_eq!(Stream::read(dir.path()).unwrap(), Some(stream));
        fs::write(dir.path().join(FILE), "{").unwrap();
        assert_eq!(Stream::read(dir.path()).unwrap(), None);
    }
}
