//! Writing what stands in a record dozens of times: a metric's name and a whole number.
//!
//! Whole chunks are copied, and the next write begins where the text in them ends. That takes a third of the
//! instructions of appending piece by piece, where each has a length of its own. Text ends in [`Out::done`].

use std::fmt;

use crate::{Name, Value, name::CHUNK};

/// No whole number of 64 bits has more digits and signs.
const DIGITS: usize = 20;
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
        for (number, chunk) in chunks.iter().enumerate() {
            if let Some(place) = self.place(number * CHUNK) {
                *place = *chunk;
            }
        }
        self.at += length;
        match value {
            Value::Int(number) => self.whole(number.unsigned_abs(), *number < 0),
            Value::UInt(number) => self.whole(*number, false),
            _ => {
                // Writing here cannot fail.
                let _ = value.write_json(self);
            }
        }
    }

    fn whole(&mut self, number: u64, is_negative: bool) {
        // Twice as long as needed, so that the digits may be copied in one length wherever they begin.
        let mut digits = [b'-'; 2 * DIGITS];
        let (mut first, mut left) = (DIGITS, number);
        for place in digits[..DIGITS].iter_mut().rev() {
            *place = b'0' + (left % 10) as u8;
            left /= 10;
            first -= 1;
            if left == 0 {
                break;
            }
        }
        first -= usize::from(is_negative);
        self.room(DIGITS);
        let digits = digits
            .get(first..)
            .and_then(|digits| digits.first_chunk::<DIGITS>());
        if let (Some(digits), Some(place)) = (digits, self.place(0)) {
            *place = *digits;
            self.at += DIGITS - first;
        }
    }

    fn place<const LENGTH: usize>(&mut self, ahead: usize) -> Option<&mut [u8; LENGTH]> {
        self.bytes.get_mut(self.at + ahead..)?.first_chunk_mut()
    }

    fn room(&mut self, bytes: usize) {
        if self.bytes.len() - self.at < bytes {
            self.bytes.resize(self.at + bytes + GROWTH, 0);
        }
    }
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
