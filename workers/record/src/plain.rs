//! The quick way through a flat JSON record, in one pass over its bytes.
//!
//! It reads what is right, and gives up on everything else: what is wrong, Connect's envelope, a `null` in one of
//! the record's own fields. [`crate::parse`] then reads the record again in the general way, and has the sentences
//! for what is wrong. So nothing here needs to say *why*, and nothing is taken that the general way refuses.
//!
//! Numbers: whole ones are summed up digit by digit. A decimal of at most 2^53 with at most 22 places is the quotient
//! of two doubles that are both exact, so the division rounds once and rightly (W. D. Clinger, "How to Read Floating
//! Point Numbers Accurately", 1990); the standard library reads the rest.

use std::borrow::Cow;

use crate::{
    Quality, Timestamp, ValueRef, View,
    reader::{Key, Reader, What},
};

/// The powers of ten that a double holds exactly.
const TENS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18,
    1e19, 1e20, 1e21, 1e22,
];
/// The whole numbers up to this one are doubles.
const EXACT: u64 = 1 << 53;
/// So many digits always fit 64 bits.
const DIGITS: usize = 19;

/// Fills `view` with the record in `bytes`; `None` where this is not the way to read it.
pub(crate) fn read<'a>(bytes: &'a [u8], view: &mut View<'a>, reader: &mut Reader<'a>) -> Option<()> {
    let mut cursor = Cursor {
        text: std::str::from_utf8(bytes).ok()?,
        at: 0,
    };
    let (mut ts, mut meter) = (None, None);
    cursor.expect(b'{')?;
    cursor.space();
    for number in 0.. {
        let (what, key) = cursor.key(number, reader)?;
        cursor.space();
        match what {
            What::Ts => ts = Some(cursor.time(reader)?),
            What::Meter => meter = Some(cursor.string()?),
            What::Slot => view.slot = Some(cursor.time(reader)?),
            What::Stream => view.stream = Some(cursor.string()?),
            What::Seq => view.seq = Some(cursor.unsigned()?),
            What::Quality => view.quality = Some(quality(&cursor.string()?)?),
            What::Skipped => view.skipped = Some(u32::try_from(cursor.unsigned()?).ok()?),
            What::Bad => view.bad = Some(Cow::Borrowed(cursor.reasons()?)),
            What::Field => {
                if let Some(value) = cursor.value()? {
                    view.fields.push((key, value));
                }
            }
        }
        cursor.space();
        match cursor.next()? {
            b',' => cursor.space(),
            b'}' => break,
            _ => return None,
        }
    }
    cursor.space();
    if cursor.peek().is_some() {
        return None;
    }
    view.ts = ts?;
    view.meter = meter?;
    Some(())
}

fn quality(word: &str) -> Option<Quality> {
    [Quality::Good, Quality::Partial, Quality::Failed]
        .into_iter()
        .find(|quality| quality.as_str() == word)
}

struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.next()? == byte).then_some(())
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }

    /// The rest of a word whose first letter was seen.
    fn word(&mut self, word: &str) -> Option<()> {
        let rest = self.text.as_bytes().get(self.at..)?;
        rest.starts_with(word.as_bytes()).then(|| self.at += word.len())
    }

    /// The key in this place of the record, up to its colon: as in the record before, or as it is.
    fn key(&mut self, number: usize, reader: &mut Reader<'a>) -> Option<(What, Cow<'a, str>)> {
        let rest = self.text.as_bytes().get(self.at..)?;
        if let Some(key) = reader.key(number, rest) {
            self.at += key.text.len();
            return Some((key.what, key.name.clone()));
        }
        let begin = self.at;
        let name = self.string()?;
        self.space();
        self.expect(b':')?;
        let (text, what) = (self.text.as_bytes().get(begin..self.at)?, What::of(&name));
        reader.remember(
            number,
            Key {
                text,
                what,
                name: name.clone(),
            },
        );
        Some((what, name))
    }

    /// A time, with its quotes.
    fn time(&mut self, reader: &mut Reader<'a>) -> Option<Timestamp> {
        let rest = self.text.as_bytes().get(self.at..)?;
        if let Some(([b'"', text @ .., b'"'], _)) = rest.split_first_chunk::<26>()
            && let Some(time) = reader.of_the_minute(text)
        {
            self.at += 26;
            return Some(time);
        }
        let text = self.string()?;
        let time = Timestamp::parse_plain(&text)?;
        if let Cow::Borrowed(text) = text {
            reader.remember_minute(text, time);
        }
        Some(time)
    }

    /// A string with its quotes.
    fn string(&mut self) -> Option<Cow<'a, str>> {
        let (inner, escaped) = self.raw_string()?;
        if escaped {
            // With its quotes, which are one byte each.
            let quoted = self.text.get(self.at - inner.len() - 2..self.at)?;
            return serde_json::from_str(quoted).ok().map(Cow::Owned);
        }
        Some(Cow::Borrowed(inner))
    }

    /// What is between the quotes of a string, and whether there are escapes in it.
    fn raw_string(&mut self) -> Option<(&'a str, bool)> {
        self.expect(b'"')?;
        let begin = self.at;
        let mut escaped = false;
        loop {
            self.at += special(self.text.as_bytes().get(self.at..)?)?;
            match self.next()? {
                b'"' => return Some((self.text.get(begin..self.at - 1)?, escaped)),
                b'\\' => {
                    escaped = true;
                    self.next()?;
                }
                // JSON has no control characters in strings.
                _ => return None,
            }
        }
    }

    /// An object of strings without escapes, such as a poller writes the reasons in.
    fn reasons(&mut self) -> Option<&'a str> {
        let begin = self.at;
        self.expect(b'{')?;
        loop {
            for end in [b':', 0] {
                let (_, escaped) = self.raw_string()?;
                if escaped {
                    return None;
                }
                if end != 0 {
                    self.expect(end)?;
                }
            }
            match self.next()? {
                b',' => {}
                b'}' => return self.text.get(begin..self.at),
                _ => return None,
            }
        }
    }

    /// A value of a record; `Some(None)` is a null.
    fn value(&mut self) -> Option<Option<ValueRef<'a>>> {
        Some(Some(match self.peek()? {
            b'"' => ValueRef::Text(self.string()?),
            b't' => {
                self.word("true")?;
                ValueRef::Bool(true)
            }
            b'f' => {
                self.word("false")?;
                ValueRef::Bool(false)
            }
            b'n' => {
                self.word("null")?;
                return Some(None);
            }
            _ => self.number()?,
        }))
    }

    fn unsigned(&mut self) -> Option<u64> {
        match self.number()? {
            ValueRef::Int(number) => u64::try_from(number).ok(),
            ValueRef::UInt(number) => Some(number),
            _ => None,
        }
    }

    /// Adds the digits that come to `sum`; gives how many there are. The sum means nothing beyond 19 digits.
    fn digits(&mut self, sum: &mut u64) -> usize {
        let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
        let mut count = 0;
        for byte in rest {
            let digit = byte.wrapping_sub(b'0');
            if digit > 9 {
                break;
            }
            *sum = sum.wrapping_mul(10).wrapping_add(u64::from(digit));
            count += 1;
        }
        self.at += count;
        count
    }

    fn number(&mut self) -> Option<ValueRef<'a>> {
        let begin = self.at;
        let negative = self.peek()? == b'-';
        self.at += usize::from(negative);
        let zero = self.peek()? == b'0';
        let mut sum = 0;
        let whole = self.digits(&mut sum);
        if whole == 0 || zero && whole > 1 {
            return None;
        }
        let mut places = 0;
        if self.peek() == Some(b'.') {
            self.at += 1;
            places = self.digits(&mut sum);
            if places == 0 {
                return None;
            }
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            self.at += usize::from(matches!(self.peek(), Some(b'+' | b'-')));
            if self.digits(&mut 0) == 0 {
                return None;
            }
            return self.float(begin);
        }
        if whole + places > DIGITS {
            return if places == 0 && !negative {
                // Twenty digits may still be a whole number of 64 bits.
                let text = self.text.get(begin..self.at)?;
                text.parse()
                    .map(ValueRef::UInt)
                    .ok()
                    .or_else(|| self.float(begin))
            } else {
                self.float(begin)
            };
        }
        Some(match (places, negative) {
            (0, false) => i64::try_from(sum).map_or(ValueRef::UInt(sum), ValueRef::Int),
            // There is no whole number that says -0.
            (0, true) if sum == 0 => ValueRef::Float(-0.0),
            (0, true) => match 0i64.checked_sub_unsigned(sum) {
                Some(number) => ValueRef::Int(number),
                None => return self.float(begin),
            },
            _ => match TENS.get(places) {
                Some(ten) if sum <= EXACT => {
                    let number = sum as f64 / ten;
                    ValueRef::Float(if negative { -number } else { number })
                }
                _ => return self.float(begin),
            },
        })
    }

    fn float(&self, begin: usize) -> Option<ValueRef<'a>> {
        let number: f64 = self.text.get(begin..self.at)?.parse().ok()?;
        number.is_finite().then_some(ValueRef::Float(number))
    }
}

/// Where the first quote, backslash or control character is.
///
/// Eight bytes at a time, as Hacker's Delight finds a zero byte: subtracting one from each byte borrows into its top
/// bit only where the byte was zero, or one below it was. The lowest byte found is therefore always right.
fn special(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const TOPS: u64 = 0x8080_8080_8080_8080;
    let zero = |word: u64| word.wrapping_sub(ONES) & !word & TOPS;
    let mut at = 0;
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        let word = u64::from_le_bytes(chunk.try_into().unwrap_or_default());
        let found = zero(word ^ (ONES * u64::from(b'"')))
            | zero(word ^ (ONES * u64::from(b'\\')))
            | (word.wrapping_sub(ONES * 0x20) & !word & TOPS);
        if found != 0 {
            return Some(at + (found.trailing_zeros() / 8) as usize);
        }
        at += 8;
    }
    let rest = chunks.remainder().iter();
    let found = rest
        .clone()
        .position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20));
    found.map(|found| at + found)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn quick(bytes: &[u8]) -> Option<View<'_>> {
        let mut view = View::default();
        read(bytes, &mut view, &mut Reader::once()).map(|()| view)
    }

    fn general(bytes: &[u8]) -> Option<View<'_>> {
        let mut view = View::default();
        crate::parse::read(bytes, &mut view).ok().map(|()| view)
    }

    #[test]
    fn numbers_are_what_they_say() {
        for (text, expected) in [
            ("0", ValueRef::Int(0)),
            ("-12", ValueRef::Int(-12)),
            ("9223372036854775807", ValueRef::Int(i64::MAX)),
            ("-9223372036854775808", ValueRef::Int(i64::MIN)),
            ("9223372036854775808", ValueRef::UInt(1 << 63)),
            ("18446744073709551615", ValueRef::UInt(u64::MAX)),
            (
                "18446744073709551616",
                ValueRef::Float(18_446_744_073_709_551_616.0),
            ),
            (
                "-9223372036854775809",
                ValueRef::Float(-9_223_372_036_854_775_809.0),
            ),
            ("229.8", ValueRef::Float(229.8)),
            ("-0.5", ValueRef::Float(-0.5)),
            ("1.0", ValueRef::Float(1.0)),
            ("1e3", ValueRef::Float(1000.0)),
            ("0.1234567890123456789", ValueRef::Float(0.123_456_789_012_345_68)),
            ("9007199254740993.0", ValueRef::Float(9_007_199_254_740_992.0)),
        ] {
            let json = format!(r#"{{"ts":"2026-11-20T22:20:00Z","meter":"m","v":{text}}}"#);
            assert_eq!(quick(json.as_bytes()).unwrap().fields[0].1, expected, "{text}");
        }
        for text in ["01", "-", "+1", "1.", ".5", "1e", "1e999", "0x1", "NaN", "--1"] {
            let json = format!(r#"{{"ts":"2026-11-20T22:20:00Z","meter":"m","v":{text}}}"#);
            assert!(View::parse(json.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn reads_what_a_poller_writes_without_copying() {
        let json = br#"{"ts":"2026-11-20T22:20:00.123Z","meter":"m","slot":"2026-11-20T22:20:00.000Z","stream":"s","seq":7,
            "quality":"partial","skipped":2,"site":"north","v":1.5,"on":true,"gone":null,"bad":{"a":"NaN","b":"timeout"}}"#;
        let view = quick(json).unwrap();
        assert_eq!(view.bad.as_deref(), Some(r#"{"a":"NaN","b":"timeout"}"#));
        assert!(matches!(view.meter, Cow::Borrowed("m")));
        assert!(
            view.fields
                .iter()
                .all(|(name, _)| matches!(name, Cow::Borrowed(_)))
        );
        assert_eq!(Some(view), general(json));
    }

    fn json() -> impl Strategy<Value = String> {
        let text = prop_oneof![
            any::<String>(),
            Just("é \"quoted\" \\ \n\u{1f600}".to_owned()),
            "[a-z_]{1,20}"
        ];
        let value = prop_oneof![
            any::<i64>().prop_map(|v| v.to_string()),
            any::<u64>().prop_map(|v| v.to_string()),
            (-1_000_000i64..1_000_000, 0usize..6).prop_map(|(n, p)| format!("{:.p$}", n as f64 / 7.0)),
            text.clone().prop_map(|v| serde_json::to_string(&v).unwrap()),
            prop::sample::select(vec!["true", "false", "null", "[1]", "{}", "-0", "1.5", "tru"])
                .prop_map(str::to_owned),
        ];
        let key = prop_oneof![
            text,
            prop::sample::select(vec!["seq", "stream", "slot", "quality", "skipped", "bad"])
                .prop_map(str::to_owned)
        ];
        let space = prop::sample::select(vec!["", " ", "\n\t"]);
        prop::collection::vec((key, value, space), 0..8).prop_map(|fields| {
            let mut json = r#"{"ts":"2026-11-20T22:20:00Z","meter":"m""#.to_owned();
            for (key, value, space) in fields {
                json += &format!(
                    ",{space}{}{space}:{space}{value}{space}",
                    serde_json::to_string(&key).unwrap()
                );
            }
            json + "}"
        })
    }

    proptest! {
        #[test]
        fn what_is_read_quickly_is_what_the_general_way_reads(json in json()) {
            if let Some(view) = quick(json.as_bytes()) {
                prop_assert_eq!(Some(view), general(json.as_bytes()));
            }
        }

        #[test]
        fn bytes_that_were_damaged_are_read_as_the_general_way_does(
            json in json(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
        ) {
            let mut bytes = json.into_bytes();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Some(view) = quick(&bytes) {
                prop_assert_eq!(Some(view), general(&bytes));
            }
        }

        #[test]
        fn decimals_are_rounded_rightly(digits in any::<u64>(), places in 0usize..30) {
            let digits = digits.to_string();
            let padded = format!("{digits:0>width$}", width = places + 1);
            let (whole, fraction) = padded.split_at(padded.len() - places);
            let text = if places == 0 { format!("{whole}.0") } else { format!("{whole}.{fraction}") };
            let json = format!(r#"{{"ts":"2026-11-20T22:20:00Z","meter":"m","v":{text}}}"#);
            prop_assert_eq!(
                &quick(json.as_bytes()).unwrap().fields[0].1,
                &ValueRef::Float(text.parse().unwrap())
            );
        }

        #[test]
        fn the_first_special_byte_is_found(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_eq!(
                special(&bytes),
                bytes.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20))
            );
        }
    }
}
