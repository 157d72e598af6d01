//! Instants as whole milliseconds since the Unix epoch, written as RFC 3339 in UTC.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

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

    /// Microseconds since 2000-01-01T00:00:00Z: what PostgreSQL's binary format of `timestamptz` holds.
    #[must_use]
    pub fn as_postgres_micros(self) -> i64 {
        const POSTGRES_EPOCH_MILLIS: i64 = 946_684_800_000;
        (self.0 - POSTGRES_EPOCH_MILLIS).saturating_mul(1000)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // jiff's range is far wider than any clock's; beyond it the number itself is the best answer.
        let Ok(t) = jiff::Timestamp::from_millisecond(self.0) else {
            return write!(f, "{}", self.0);
        };
        let civil = jiff::tz::Offset::UTC.to_datetime(t);
        if !(0..=9999).contains(&civil.year()) {
            return write!(f, "{t:.3}");
        }
        // Two of them stand in every record: the digits are put in their places, with no formatting in between.
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
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl FromStr for Timestamp {
    type Err = NotATime;

    fn from_str(text: &str) -> Result<Self, NotATime> {
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
