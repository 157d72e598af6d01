//! Reading many records, one after the other.
//!
//! Records of one meter model have the same fields in the same order, and most are of the same minute as the one
//! before. So a [`Reader`] remembers how each key of the record before was written, and the minute of its time. Where
//! the next record has the same bytes in the same place, the key is neither searched for its end nor looked up, and the
//! calendar is not asked again; elsewhere they are read as if there were no record before. What is read is the same.

use std::borrow::Cow;

use crate::{ParseError, Timestamp, View, parse, plain};

/// As many bytes of a time written in full say its minute: `2026-11-20T22:20:`.
const MINUTE: usize = 17;

/// Reads records that live as long as `'a`.
#[derive(Clone, Debug, Default)]
pub struct Reader<'a> {
    keys: Vec<Key<'a>>,
    /// How a minute is written, and its first millisecond.
    minute: Option<(&'a [u8], i64)>,
    /// The stream of the record before.
    stream: Option<&'a str>,
    /// Whether there is no next record to remember anything for.
    is_last: bool,
}

/// A key of the record before.
#[derive(Clone, Debug)]
pub(crate) struct Key<'a> {
    /// How it is written, with all that is between the value before it and its own.
    pub text: &'a [u8],
    pub what: What,
    pub name: Cow<'a, str>,
}

/// What a key says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Ts,
    Meter,
    Slot,
    Stream,
    Seq,
    Quality,
    Skipped,
    Bad,
    /// A metric or a label.
    Field,
}

impl What {
    pub fn of(key: &str) -> Self {
        match key {
            "ts" => Self::Ts,
            "meter" => Self::Meter,
            "slot" => Self::Slot,
            "stream" => Self::Stream,
            "seq" => Self::Seq,
            "quality" => Self::Quality,
            "skipped" => Self::Skipped,
            "bad" => Self::Bad,
            _ => Self::Field,
        }
    }
}

/// Whether two names are the same bytes: by eights, the last of which may overlap the one before. For the few bytes that
/// names have, a call to compare them costs more than comparing them.
#[must_use]
#[inline]
pub fn same(one: &[u8], other: &[u8]) -> bool {
    match (one.last_chunk::<8>(), other.last_chunk::<8>()) {
        (Some(end), Some(other_end)) => {
            let eights = one.as_chunks().0.iter().zip(other.as_chunks::<8>().0);
            one.len() == other.len()
                && end == other_end
                && eights.into_iter().all(|(one, other): (&[u8; 8], _)| one == other)
        }
        _ => one == other,
    }
}

impl<'a> Reader<'a> {
    /// One for a single record.
    pub(crate) fn once() -> Self {
        Self {
            is_last: true,
            ..Self::default()
        }
    }

    /// Reads a record in place of the one that is in `view`, and so spares the allocations of a new view.
    ///
    /// # Errors
    /// As for [`View::parse`]; what the view says then means nothing.
    pub fn read(&mut self, bytes: &'a [u8], view: &mut View<'a>) -> Result<(), ParseError> {
        view.clear();
        if plain::read(bytes, view, self).is_some() {
            return Ok(());
        }
        view.clear();
        parse::read(bytes, view)
    }

    /// The key in this place of the record before, where `rest` begins with it.
    pub(crate) fn key(&self, number: usize, rest: &[u8]) -> Option<&Key<'a>> {
        self.keys.get(number).filter(|key| {
            rest.get(..key.text.len())
                .is_some_and(|begin| same(begin, key.text))
        })
    }

    /// The name of the key in this place.
    pub(crate) fn name(&self, number: usize) -> Option<&Cow<'a, str>> {
        self.keys.get(number).map(|key| &key.name)
    }

    /// This is the key in this place.
    pub(crate) fn remember(&mut self, number: usize, key: Key<'a>) {
        match self.keys.get_mut(number) {
            _ if self.is_last => {}
            Some(known) => *known = key,
            None => self.keys.push(key),
        }
    }

    /// The stream of the record before, where `rest` begins with it in its quotes.
    pub(crate) fn stream_of(&self, rest: &[u8]) -> Option<&'a str> {
        let stream = self.stream?;
        let quoted = rest.get(..stream.len() + 2)?;
        let [b'"', inner @ .., b'"'] = quoted else {
            return None;
        };
        same(inner, stream.as_bytes()).then_some(stream)
    }

    /// This is a stream that was read, and is written as it is.
    pub(crate) fn remember_stream(&mut self, stream: &'a str) {
        self.stream = Some(stream);
    }

    /// The time in the 24 bytes of its full form, where it is of the minute that is remembered.
    pub(crate) fn of_the_minute(&self, text: &[u8]) -> Option<Timestamp> {
        let (minute, begin) = self.minute?;
        let (head, rest) = text.split_at_checked(MINUTE)?;
        let [tens, ones, b'.', a, b, c, b'Z'] = *rest else {
            return None;
        };
        if !same(head, minute) {
            return None;
        }
        let mut number = 0;
        for digit in [tens, ones, a, b, c].map(|byte| byte.wrapping_sub(b'0')) {
            if digit > 9 {
                return None;
            }
            number = number * 10 + i64::from(digit);
        }
        (number < 60_000).then_some(Timestamp(begin + number))
    }

    /// This is how a time is written that was read.
    pub(crate) fn remember_minute(&mut self, text: &'a str, time: Timestamp) {
        if let Some(minute) = text.as_bytes().get(..MINUTE) {
            self.minute = Some((minute, time.0.div_euclid(60_000) * 60_000));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn json(time: &str, fields: &[(String, String)], space: &str) -> String {
        let mut json = format!(r#"{{"ts":"{time}","meter":"m""#);
        for (name, value) in fields {
            json += &format!(
                ",{space}{}{space}:{space}{value}",
                serde_json::to_string(name).unwrap()
            );
        }
        json + "}"
    }

    fn record() -> impl Strategy<Value = String> {
        let name = prop::sample::select(vec![
            "seq", "stream", "slot", "quality", "skipped", "bad", "a", "b", "voltage", "é\"",
        ]);
        let value = prop::sample::select(vec![
            "1",
            "-2.5",
            "null",
            "true",
            "\"s\"",
            "\"good\"",
            "{\"a\":\"NaN\"}",
            "\"2026-11-20T22:20:59.001Z\"",
            "\"2026-11-20T22:20:60.001Z\"",
            "\"2026-11-20T22:20:0x.001Z\"",
            "[]",
        ]);
        let time = prop::sample::select(vec![
            "2026-11-20T22:20:00.000Z",
            "2026-11-20T22:20:59.999Z",
            "2026-11-20T22:21:00.5Z",
            "2026-11-20T22:20:00Z",
            "1969-12-31T23:59:59Z",
            "2026-11-20T23:20:00+01:00",
            "2026-11-20T22:20:61.000Z",
            "2026-11-20T22:20:1:.000Z",
        ]);
        let fields = prop::collection::vec(
            (name.prop_map(str::to_owned), value.prop_map(str::to_owned)),
            0..6,
        );
        (time, fields, prop::sample::select(vec!["", " "]))
            .prop_map(|(time, fields, space)| json(time, &fields, space))
    }

    proptest! {
        /// Whatever came before, a record is read as it is read alone.
        #[test]
        fn the_records_before_change_nothing(records in prop::collection::vec(record(), 0..12)) {
            let (mut reader, mut view) = (Reader::default(), View::default());
            for json in &records {
                let read = reader.read(json.as_bytes(), &mut view).map(|()| view.clone());
                let alone = View::parse(json.as_bytes());
                prop_assert_eq!(
                    read.map_err(|error| error.to_string()),
                    alone.map_err(|error| error.to_string()),
                    "{}", json
                );
            }
        }
    }

    proptest! {
        #[test]
        fn the_same_bytes_are_the_same(one in "[ab]{0,20}", other in "[ab]{0,20}", at in 0..20_usize) {
            prop_assert_eq!(same(one.as_bytes(), other.as_bytes()), one == other);
            let mut changed = one.clone().into_bytes();
            prop_assert!(same(one.as_bytes(), &changed));
            if let Some(byte) = changed.get_mut(at) {
                *byte = b'c';
                prop_assert!(!same(one.as_bytes(), &changed));
            }
        }
    }

    #[test]
    fn what_is_remembered_is_found_again() {
        let (first, second) = (
            r#"{"ts":"2026-11-20T22:20:00.123Z","meter":"m","v":1}"#,
            r#"{"ts":"2026-11-20T22:20:07.500Z","meter":"n","v":2}"#,
        );
        let (mut reader, mut view) = (Reader::default(), View::default());
        reader.read(first.as_bytes(), &mut view).unwrap();
        assert!(
            reader
                .key(2, br#","v":2}"#)
                .is_some_and(|key| key.what == What::Field && key.name == "v")
        );
        assert!(reader.key(2, br#","w":2}"#).is_none());
        let time = Timestamp(1_795_213_207_500);
        assert_eq!(reader.of_the_minute(b"2026-11-20T22:20:07.500Z"), Some(time));
        reader.read(second.as_bytes(), &mut view).unwrap();
        assert_eq!((view.ts, &*view.meter, reader.keys.len()), (time, "n", 3));
    }
}
