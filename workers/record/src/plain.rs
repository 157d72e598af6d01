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
    let mut cursor = Cursor { bytes, at: 0 };
    let (mut ts, mut meter) = (None, None);
    for number in 0.. {
        let Some((what, new)) = cursor.key(number, reader)? else {
            break;
        };
        match what {
            What::Ts => ts = Some(cursor.time(reader)?),
            What::Meter => meter = Some(cursor.string()?),
            What::Slot => view.slot = Some(cursor.time(reader)?),
            What::Stream => view.stream = Some(cursor.stream(reader)?),
            What::Seq => view.seq = Some(cursor.unsigned()?),
            What::Quality => view.quality = Some(quality(cursor.raw_string()?.0)?),
            What::Skipped => view.skipped = Some(u32::try_from(cursor.unsigned()?).ok()?),
            What::Bad => view.bad = Some(Cow::Borrowed(cursor.reasons()?)),
            // As nearly always, and without a way around for the name: see Number.
            What::Field => match (new, reader.name(number)) {
                (None, Some(Cow::Borrowed(name))) => cursor.field(Cow::Borrowed(name), &mut view.fields)?,
                (None, name) => cursor.field(name?.clone(), &mut view.fields)?,
                (Some(name), _) => cursor.field(name, &mut view.fields)?,
            },
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

fn quality(word: &[u8]) -> Option<Quality> {
    [Quality::Good, Quality::Partial, Quality::Failed]
        .into_iter()
        .find(|quality| quality.as_str().as_bytes() == word)
}

/// What a number is, in registers: put into a value, handed on and moved to its place, it costs more than its digits do.
#[derive(Clone, Copy)]
struct Number {
    kind: Kind,
    bits: u64,
}

/// How the bits of a number are to be understood.
#[derive(Clone, Copy)]
enum Kind {
    Int,
    UInt,
    Float,
    /// It is to be read anew by [`Cursor::rare_number`]; the bits say whether it has decimal places.
    Rare,
}

/// A place in the bytes of a record. What JSON has outside of strings is ASCII, so that only what is within them has to
/// be looked at for whether it is UTF-8.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
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
        let rest = self.bytes.get(self.at..)?;
        rest.starts_with(word.as_bytes()).then(|| self.at += word.len())
    }

    fn slice(&self, begin: usize, end: usize) -> Option<&'a str> {
        std::str::from_utf8(self.bytes.get(begin..end)?).ok()
    }

    /// The key in this place of the record, from the end of the value before it to the beginning of its own: as in the
    /// record before, or as it is; the name comes along only where it is new. `Some(None)` is the end of the record.
    #[inline(always)]
    fn key(
        &mut self,
        number: usize,
        reader: &mut Reader<'a>,
    ) -> Option<Option<(What, Option<Cow<'a, str>>)>> {
        let rest = self.bytes.get(self.at..)?;
        if let Some(key) = reader.key(number, rest) {
            self.at += key.text.len();
            return Some(Some((key.what, None)));
        }
        self.new_key(number, reader)
    }

    fn new_key(
        &mut self,
        number: usize,
        reader: &mut Reader<'a>,
    ) -> Option<Option<(What, Option<Cow<'a, str>>)>> {
        let begin = self.at;
        if number == 0 {
            self.expect(b'{')?;
        } else {
            self.space();
            match self.next()? {
                b',' => {}
                b'}' => return Some(None),
                _ => return None,
            }
        }
        self.space();
        let name = self.string()?;
        self.space();
        self.expect(b':')?;
        self.space();
        let (text, what) = (self.bytes.get(begin..self.at)?, What::of(&name));
        reader.remember(
            number,
            Key {
                text,
                what,
                name: name.clone(),
            },
        );
        Some(Some((what, Some(name))))
    }

    /// A time, with its quotes.
    fn time(&mut self, reader: &mut Reader<'a>) -> Option<Timestamp> {
        let rest = self.bytes.get(self.at..)?;
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

    /// A stream's id, with its quotes: records come in runs of one stream.
    fn stream(&mut self, reader: &mut Reader<'a>) -> Option<Cow<'a, str>> {
        let rest = self.bytes.get(self.at..)?;
        if let Some(stream) = reader.stream_of(rest) {
            self.at += stream.len() + 2;
            return Some(Cow::Borrowed(stream));
        }
        let stream = self.string()?;
        if let Cow::Borrowed(stream) = stream {
            reader.remember_stream(stream);
        }
        Some(stream)
    }

    /// A string with its quotes.
    fn string(&mut self) -> Option<Cow<'a, str>> {
        let (inner, escaped) = self.raw_string()?;
        if escaped {
            // With its quotes, which are one byte each.
            let quoted = self.slice(self.at - inner.len() - 2, self.at)?;
            return serde_json::from_str(quoted).ok().map(Cow::Owned);
        }
        std::str::from_utf8(inner).ok().map(Cow::Borrowed)
    }

    /// What is between the quotes of a string, and whether there are escapes in it.
    fn raw_string(&mut self) -> Option<(&'a [u8], bool)> {
        self.expect(b'"')?;
        let begin = self.at;
        let mut escaped = false;
        loop {
            self.at += special(self.bytes.get(self.at..)?)?;
            match self.next()? {
                b'"' => return Some((self.bytes.get(begin..self.at - 1)?, escaped)),
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
                b'}' => return self.slice(begin, self.at),
                _ => return None,
            }
        }
    }

    /// The value of a metric or a label, which goes to `fields` unless it is null.
    #[inline(always)]
    fn field(&mut self, key: Cow<'a, str>, fields: &mut Vec<(Cow<'a, str>, ValueRef<'a>)>) -> Option<()> {
        match self.peek()? {
            b'"' => {
                let text = self.string()?;
                fields.push((key, ValueRef::Text(text)));
            }
            b't' => {
                self.word("true")?;
                fields.push((key, ValueRef::Bool(true)));
            }
            b'f' => {
                self.word("false")?;
                fields.push((key, ValueRef::Bool(false)));
            }
            b'n' => self.word("null")?,
            _ => {
                let (begin, Number { kind, bits }) = (self.at, self.number()?);
                match kind {
                    Kind::Int => fields.push((key, ValueRef::Int(bits.cast_signed()))),
                    Kind::Float => fields.push((key, ValueRef::Float(f64::from_bits(bits)))),
                    Kind::UInt => fields.push((key, ValueRef::UInt(bits))),
                    Kind::Rare => {
                        let number = self.rare_number(begin, bits > 0)?;
                        fields.push((key, number));
                    }
                }
            }
        }
        Some(())
    }

    fn unsigned(&mut self) -> Option<u64> {
        let (begin, Number { kind, bits }) = (self.at, self.number()?);
        match kind {
            Kind::Int => u64::try_from(bits.cast_signed()).ok(),
            Kind::UInt => Some(bits),
            Kind::Float => None,
            Kind::Rare => match self.rare_number(begin, bits > 0)? {
                ValueRef::Int(number) => u64::try_from(number).ok(),
                ValueRef::UInt(number) => Some(number),
                _ => None,
            },
        }
    }

    /// Adds the digits that come to `sum`; gives how many there are. The sum means nothing beyond 19 digits.
    fn digits(&mut self, sum: &mut u64) -> usize {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
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

    /// A number, up to an exponent.
    #[inline(always)]
    fn number(&mut self) -> Option<Number> {
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
        let number = |kind, bits| Some(Number { kind, bits });
        if !matches!(self.peek(), Some(b'e' | b'E')) && whole + places <= DIGITS {
            if places == 0 {
                match (negative, i64::try_from(sum)) {
                    (false, Ok(_)) => return number(Kind::Int, sum),
                    (false, Err(_)) => return number(Kind::UInt, sum),
                    // There is no whole number that says -0.
                    (true, Ok(1..)) => return number(Kind::Int, sum.wrapping_neg()),
                    (true, _) => {}
                }
            } else if let Some(ten) = TENS.get(places).filter(|_| sum <= EXACT) {
                let quotient = sum as f64 / ten;
                let quotient = if negative { -quotient } else { quotient };
                return number(Kind::Float, quotient.to_bits());
            }
        }
        number(Kind::Rare, u64::from(places > 0))
    }

    /// The number from `begin` on, of which all up to an exponent was read: one that is not put together from its digits.
    #[cold]
    fn rare_number(&mut self, begin: usize, has_places: bool) -> Option<ValueRef<'a>> {
        let has_exponent = matches!(self.peek(), Some(b'e' | b'E'));
        if has_exponent {
            self.at += 1;
            self.at += usize::from(matches!(self.peek(), Some(b'+' | b'-')));
            if self.digits(&mut 0) == 0 {
                return None;
            }
        }
        let text = self.slice(begin, self.at)?;
        if !has_exponent && !has_places && text != "-0" {
            // Also such as has more digits than 64 bits have in any case.
            if let Ok(number) = text.parse() {
                return Some(ValueRef::Int(number));
            }
            if let Ok(number) = text.parse() {
                return Some(ValueRef::UInt(number));
            }
        }
        let number: f64 = text.parse().ok()?;
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

    /// Without the last bits of numbers: serde_json, in the general way, rounds those of more than 15 digits wrongly now
    /// and then, by one.
    fn rounded(mut view: View<'_>) -> View<'_> {
        for (_, value) in &mut view.fields {
            if let ValueRef::Float(number) = value {
                *number = format!("{number:.14e}").parse().unwrap();
            }
        }
        view
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
                prop_assert_eq!(Some(rounded(view)), general(&bytes).map(rounded));
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
