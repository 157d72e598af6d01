//! Instants as whole milliseconds since the Unix epoch, written as RFC 3339 in UTC.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// How long the usual form is.
pub(crate) const LENGTH: usize = 24;

/// An instant: milliseconds since 1970-01-01T00:00:00Z. Written as `2026-11-20T22:20:00.123Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub i64);

/// Why a text is not a [`Timestamp`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("\"{0}\" is not a time: write it as RFC 3339, such as 2026-11-20T22:20:00.123Z")]
pub struct NotATime(String);

impl Timestamp {
    /// The machine's clock, now.
    #[must_use]
    pub fn now() -> Self {
        Self(jiff::Timestamp::now().as_millisecond())
    }

    /// Reads the form that nearly every record has, `2026-11-20T22:20:00.123Z` with up to nine decimals or none;
    /// `None` for every other one, and for what is no time.
    pub(crate) fn parse_plain(text: &str) -> Option<Self> {
        let (date, rest) = text.as_bytes().split_at_checked(19)?;
        let number = |at: usize, digits: usize| {
            date.get(at..at + digits)?.iter().try_fold(0i64, |sum, byte| {
                let digit = byte.wrapping_sub(b'0');
                (digit <= 9).then(|| sum * 10 + i64::from(digit))
            })
        };
        let (year, month, day) = (number(0, 4)?, number(5, 2)?, number(8, 2)?);
        let (hour, minute, second) = (number(11, 2)?, number(14, 2)?, number(17, 2)?);
        let marks = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
        if !marks.iter().all(|(at, mark)| date.get(*at) == Some(mark))
            || hour > 23
            || minute > 59
            || second > 59
        {
            return None;
        }
        let (zone, rest) = rest.split_last()?;
        let millis = match rest.split_first() {
            None => 0,
            // Before 1970 it would matter what becomes of a part of a millisecond.
            Some((b'.', digits)) if (1..=9).contains(&digits.len()) && year >= 1970 => {
                if !digits.iter().all(u8::is_ascii_digit) {
                    return None;
                }
                let digit = |at: usize| digits.get(at).map_or(0, |digit| i64::from(digit - b'0'));
                digit(0) * 100 + digit(1) * 10 + digit(2)
            }
            Some(_) => return None,
        };
        let days = days_since_epoch(year, month, day)?;
        (*zone == b'Z').then_some(Self(
            (((days * 24 + hour) * 60 + minute) * 60 + second) * 1000 + millis,
        ))
    }

    /// How it is written, where its year has four digits. Two of them stand in every record: the digits are put in
    /// their places, with no formatting in between.
    pub(crate) fn text(self) -> Option<[u8; LENGTH]> {
        let time = jiff::Timestamp::from_millisecond(self.0).ok()?;
        let civil = jiff::tz::Offset::UTC.to_datetime(time);
        if !(0..=9999).contains(&civil.year()) {
            return None;
        }
        let mut text = *b"0000-00-00T00:00:00.000Z";
        for (at, digits, number) in [
            (0, 4, i32::from(civil.year())),
            (5, 2, i32::from(civil.month())),
            (8, 2, i32::from(civil.day())),
            (11, 2, i32::from(civil.hour())),
            (14, 2, i32::from(civil.minute())),
            (17, 2, i32::from(civil.second())),
            (20, 3, i32::from(civil.millisecond())),
        ] {
            let mut left = number.unsigned_abs();
            for place in text.iter_mut().skip(at).take(digits).rev() {
                *place += (left % 10) as u8;
                left /= 10;
            }
        }
        Some(text)
    }

    /// Microseconds since 2000-01-01T00:00:00Z: what PostgreSQL's binary format of `timestamptz` holds.
    #[must_use]
    pub fn as_postgres_micros(self) -> i64 {
        const POSTGRES_EPOCH_MILLIS: i64 = 946_684_800_000;
        (self.0 - POSTGRES_EPOCH_MILLIS).saturating_mul(1000)
    }
}

/// Days from 1970-01-01 to a day of the Gregorian calendar; `None` where there is no such day.
///
/// Years are counted from March, so that a leap day is the last of its year, and by eras of 400 years, which are
/// all of 146,097 days. 719,468 days lie between 0000-03-01 and 1970-01-01.
fn days_since_epoch(year: i64, month: i64, day: i64) -> Option<i64> {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = match month {
        4 | 6 | 9 | 11 => 30,
        2 => 28 + i64::from(leap),
        1..=12 => 31,
        _ => return None,
    };
    if !(1..=length).contains(&day) {
        return None;
    }
    let from_march = (month + 9) % 12;
    let year = year - i64::from(month <= 2);
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    // 153 days in each five months from March on: 31, 30, 31, 30, 31.
    let of_year = (153 * from_march + 2) / 5 + day - 1;
    Some(era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468)
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(text) = self.text() {
            return f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?);
        }
        // jiff's range is far wider than any clock's; beyond it the number itself is the best answer.
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(time) => write!(f, "{time:.3}"),
            Err(_) => write!(f, "{}", self.0),
        }
    }
}

impl FromStr for Timestamp {
    type Err = NotATime;

    fn from_str(text: &str) -> Result<Self, NotATime> {
        if let Some(timestamp) = Self::parse_plain(text) {
            return Ok(timestamp);
        }
        let parsed: jiff::Timestamp = text.parse().map_err(|_| NotATime(text.to_owned()))?;
        Ok(Self(parsed.as_millisecond()))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<'de, str>::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_three_decimals_always_and_reads_any() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (1_795_213_200_123, "2026-11-20T22:20:00.123Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (253_402_207_199_999, "9999-12-30T21:59:59.999Z"),
        ] {
            assert_eq!(Timestamp(millis).to_string(), text);
            assert_eq!(text.parse(), Ok(Timestamp(millis)));
        }
        assert_eq!(
            "2026-11-20T19:20:00.123-03:00".parse(),
            Ok(Timestamp(1_795_213_200_123))
        );
        assert!(
            "yesterday"
                .parse::<Timestamp>()
                .unwrap_err()
                .to_string()
                .contains("RFC 3339")
        );
    }

    proptest::proptest! {
        #[test]
        fn writes_what_jiff_writes(millis in -99_999_999_999_999i64..=253_402_207_199_999) {
            let jiff = jiff::Timestamp::from_millisecond(millis).unwrap();
            proptest::prop_assert_eq!(Timestamp(millis).to_string(), format!("{jiff:.3}"));
        }

        #[test]
        fn reads_what_jiff_reads(
            year in 0u32..=9999, month in 0u32..=13, day in 0u32..=32, hour in 0u32..=24, minute in 0u32..=60,
            second in 0u32..=60, decimals in "(\\.[0-9]{0,10})?", zone in "Z|z|\\+00:00|-03:00||x",
        ) {
            let text = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{decimals}{zone}");
            if let Some(plain) = Timestamp::parse_plain(&text) {
                let jiff: jiff::Timestamp = text.parse().unwrap();
                proptest::prop_assert_eq!(plain.0, jiff.as_millisecond());
            }
        }
    }

    #[test]
    fn counts_as_postgresql_does() {
        assert_eq!(
            "2000-01-01T00:00:00.001Z"
                .parse::<Timestamp>()
                .unwrap()
                .as_postgres_micros(),
            1000
        );
    }
}
