//! Writing what stands in a record dozens of times: a metric's name and a whole number.
//!
//! Whole chunks are copied, and the next write begins where the text in them ends. That takes a third of the
//! instructions of appending piece by piece, where each has a length of its own. Text ends in [`Out::done`].

use std::fmt::{self, Write as _};

use crate::{Name, Timestamp, Value, name::CHUNK, time};

/// The first number that has more than eight digits.
const EIGHT_DIGITS: u64 = 100_000_000;
/// By so much the buffer grows at once.
const GROWTH: usize = 1024;

/// What is written to.
pub(crate) struct Out<'a> {
    bytes: &'a mut Vec<u8>,
    /// How far it is written; what lies beyond has no meaning.
    at: usize,
}

impl<'a> Out<'a> {
    /// Goes on after what `bytes` hold.
    pub fn after(bytes: &'a mut Vec<u8>) -> Self {
        Self {
            at: bytes.len(),
            bytes,
        }
    }

    /// Cuts off what has no meaning.
    pub fn done(self) {
        self.bytes.truncate(self.at);
    }

    /// Writes a member of an object that is not its first.
    pub fn member(&mut self, name: &Name, value: &Value) {
        let (chunks, length) = name.chunks();
        self.room(chunks.len() * CHUNK);
        let room = self.bytes.get_mut(self.at..).unwrap_or_default();
        for (place, chunk) in room.as_chunks_mut().0.iter_mut().zip(chunks) {
            *place = *chunk;
        }
        self.at += length;
        match value {
            Value::UInt(number) => self.whole(*number),
            Value::Int(number) if *number >= 0 => self.whole(number.unsigned_abs()),
            Value::Int(number) => {
                // Writing here cannot fail.
                let _ = self.write_char('-');
                self.whole(number.unsigned_abs());
            }
            _ => drop(value.write_json(self)),
        }
    }

    /// Writes a time, without quotes.
    pub fn time(&mut self, time: Timestamp) {
        self.room(time::LENGTH);
        match (time.text(), self.place()) {
            (Some(text), Some(place)) => {
                *place = text;
                self.at += time::LENGTH;
            }
            // A year that has not four digits. Writing here cannot fail.
            _ => drop(write!(self, "{time}")),
        }
    }

    /// Writes a whole number, eight digits at a time.
    pub fn whole(&mut self, number: u64) {
        let (front, rest) = (number / EIGHT_DIGITS, digits((number % EIGHT_DIGITS) as u32));
        let zeros = if front > 0 {
            self.whole(front);
            0
        } else {
            // The first digit is the lowest byte. A zero has one too.
            (rest.trailing_zeros() / 8).min(7)
        };
        let text = (rest | 0x3030_3030_3030_3030) >> (8 * zeros);
        self.room(8);
        if let Some(place) = self.place() {
            *place = text.to_le_bytes();
            self.at += 8 - zeros as usize;
        }
    }

    fn place<const LENGTH: usize>(&mut self) -> Option<&mut [u8; LENGTH]> {
        self.bytes.get_mut(self.at..)?.first_chunk_mut()
    }

    fn room(&mut self, bytes: usize) {
        if self.bytes.len() - self.at < bytes {
            self.bytes.resize(self.at + bytes + GROWTH, 0);
        }
    }
}

/// The eight digits of a number below [`EIGHT_DIGITS`], zeros before it included, each in a byte and the first in the
/// lowest.
///
/// All are found at once: the halves of the number, then their hundreds and the rest, then tens and ones. Dividing is
/// multiplying by the inverse, which is exact for numbers as small as these (P. Khuong, "How to print integers really
/// fast", 2017).
fn digits(number: u32) -> u64 {
    let halves = u64::from(number / 10_000) | u64::from(number % 10_000) << 32;
    let hundreds = ((halves * 10_486) >> 20) & 0x0000_007f_0000_007f;
    let pairs = hundreds | (halves - 100 * hundreds) << 16;
    let tens = ((pairs * 103) >> 10) & 0x000f_000f_000f_000f;
    tens | (pairs - 10 * tens) << 8
}

impl fmt::Write for Out<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.room(text.len());
        let place = self.bytes.get_mut(self.at..self.at + text.len());
        place.ok_or(fmt::Error)?.copy_from_slice(text.as_bytes());
        self.at += text.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn value() -> impl Strategy<Value = Value> {
        prop_oneof![
            any::<i64>().prop_map(Value::Int),
            (-9i64..100_000).prop_map(Value::Int),
            Just(Value::Int(i64::MIN)),
            any::<u64>().prop_map(Value::UInt),
            Just(Value::UInt(u64::MAX)),
            any::<bool>().prop_map(Value::Bool),
            (-1e9..1e9).prop_map(Value::Float),
            "\\PC{0,40}".prop_map(Value::Text),
        ]
    }

    proptest! {
        #[test]
        fn whole_numbers_are_written_as_they_are_displayed(number in 0..EIGHT_DIGITS, fewer in 0u32..9, any in any::<u64>()) {
            let fewer = 10u64.pow(fewer);
            for number in [number, number / fewer, EIGHT_DIGITS - 1, EIGHT_DIGITS, any, any / fewer, u64::MAX] {
                let mut bytes = vec![];
                let mut out = Out::after(&mut bytes);
                out.whole(number);
                out.done();
                prop_assert_eq!(String::from_utf8(bytes).unwrap(), number.to_string());
            }
        }

        #[test]
        fn times_are_written_as_they_are_displayed(near in 0i64..4_102_444_800_000, any in any::<i64>()) {
            for time in [Timestamp(near), Timestamp(any)] {
                let mut bytes = vec![];
                let mut out = Out::after(&mut bytes);
                out.time(time);
                out.done();
                prop_assert_eq!(String::from_utf8(bytes).unwrap(), time.to_string());
            }
        }

        /// The same as piece by piece, after whatever was there.
        #[test]
        fn members_are_written_one_after_the_other(
            before in vec(any::<u8>(), 0..40),
            members in vec(("\\PC{0,40}", value()), 0..300),
        ) {
            let (mut bytes, mut expected) = (before.clone(), before);
            let mut out = Out::after(&mut bytes);
            for (name, value) in &members {
                let name = Name::from(name.as_str());
                out.member(&name, value);
                expected.extend_from_slice(name.as_member().as_bytes());
                let mut text = String::new();
                value.write_json(&mut text).unwrap();
                expected.extend_from_slice(text.as_bytes());
            }
            out.done();
            prop_assert_eq!(bytes, expected);
        }
    }
}
