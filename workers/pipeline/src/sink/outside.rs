//! What a sink leaves to others: where a partition's position is kept, and where refused records go.
//!
//! A sink with transactions, or with conditional updates, keeps both beside its rows. InfluxDB, MQTT and AMQP
//! can keep neither, so that their positions are the consumer group's own committed offsets ([`Offsets`]), with
//! the fingerprint of the last message as their metadata; and whatever is refused is published to the
//! dead-letter topic ([`SetAside`]) and acknowledged there before the position moves on. What is stored between
//! the two is stored again after a crash: a repeat must do no harm, which each sink says how it sees to.

use corrente_runtime::broker::TopicPartition;

use crate::{
    assignment::{Fingerprint, Position},
    batch::{Batch, DeadLetter, Place},
    sink::{Claimed, SinkError},
};

/// Where positions are kept. The calls block: they are made where that is allowed.
pub trait Offsets: Send + Sync + 'static {
    /// How far the partition is stored; `None` where nothing of it ever was.
    ///
    /// # Errors
    /// [`SinkError::Retry`].
    fn load(&self, partition: &TopicPartition) -> Result<Option<Position>, SinkError>;

    /// Moves the position on. It returns only when that will outlast this process.
    ///
    /// # Errors
    /// [`SinkError::Fenced`] where the partition is not ours any more, else [`SinkError::Retry`].
    fn save(&self, partition: &TopicPartition, position: &Position) -> Result<(), SinkError>;
}

/// Where refused records go. The calls block: they are made where that is allowed.
pub trait SetAside: Send + Sync + 'static {
    /// Sets records aside. It returns only when all of them will outlast this process; some may be there
    /// twice after a failure.
    ///
    /// # Errors
    /// [`SinkError::Retry`].
    fn set_aside(&self, place: &Place, letters: &[DeadLetter<'_>]) -> Result<(), SinkError>;
}

/// What is known of a partition at the time of its claim: how far it is stored. It blocks.
///
/// # Errors
/// As for [`Offsets::load`].
pub fn claim(offsets: &dyn Offsets, place: &Place) -> Result<Claimed, SinkError> {
    Ok(Claimed {
        position: offsets.load(&place.partition)?,
        ..Claimed::default()
    })
}

/// Ends a batch whose rows are stored: what was refused is set aside, and then the position moves on. It blocks.
///
/// # Errors
/// As for [`SetAside::set_aside`] and [`Offsets::save`].
pub fn settle(
    offsets: &dyn Offsets,
    set_aside: &dyn SetAside,
    batch: &Batch,
    letters: &[DeadLetter<'_>],
) -> Result<(), SinkError> {
    if !letters.is_empty() {
        set_aside.set_aside(&batch.place, letters)?;
    }
    let position = Position {
        next_offset: batch.next_offset,
        last: Some(batch.last),
    };
    offsets.save(&batch.place.partition, &position)
}

/// A fingerprint as the metadata of a committed offset.
#[must_use]
pub fn write_fingerprint(fingerprint: &Fingerprint) -> String {
    let number = |number: Option<i64>| number.map_or("-".to_owned(), |number| number.to_string());
    format!(
        "corrente/1 {} {} {}",
        number(fingerprint.timestamp),
        number(fingerprint.key_crc.map(i64::from)),
        number(fingerprint.payload_crc.map(i64::from)),
    )
}

/// The fingerprint in the metadata of a committed offset; `None` where another program committed it.
#[must_use]
pub fn read_fingerprint(metadata: &str) -> Option<Fingerprint> {
    let mut words = metadata.split(' ');
    if words.next()? != "corrente/1" {
        return None;
    }
    let mut number = || -> Option<Option<i64>> {
        match words.next()? {
            "-" => Some(None),
            digits => digits.parse().ok().map(Some),
        }
    };
    let crc = |number: Option<i64>| match number {
        None => Some(None),
        Some(number) => u32::try_from(number).ok().map(Some),
    };
    Some(Fingerprint {
        timestamp: number()?,
        key_crc: crc(number()?)?,
        payload_crc: crc(number()?)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_read_back() {
        for fingerprint in [
            Fingerprint {
                timestamp: Some(1_795_213_200_123),
                key_crc: Some(u32::MAX),
                payload_crc: Some(0),
            },
            Fingerprint {
                timestamp: None,
                key_crc: None,
                payload_crc: Some(7),
            },
        ] {
            assert_eq!(
                read_fingerprint(&write_fingerprint(&fingerprint)),
                Some(fingerprint)
            );
        }
        for other in [
            "",
            "corrente/1",
            "corrente/1 1 2",
            "corrente/1 1 2 x",
            "corrente/1 1 -2 3",
            "2 3 4",
        ] {
            assert_eq!(read_fingerprint(other), None, "{other:?}");
        }
    }
}
