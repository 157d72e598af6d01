//! A length of time as people write it in a manifest: a whole number and one unit.
//!
//! The rules are written in CEL as well, so that the API server refuses with a sentence what [`FromStr`]
//! would refuse: a resource that the operator cannot read is never stored.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize, de};

/// A length of time: a whole number followed by `ms`, `s`, `m` or `h`, such as `500ms` or `15m`.
///
/// Whole milliseconds, at least 1 ms, at most 24 h.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration {
    millis: u64,
}

/// Why a text is not a [`Duration`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "\"{0}\" is not a duration: write a whole number and a unit, ms, s, m or h, from 1ms to 24h, as in 10s"
)]
pub struct NotADuration(String);

/// What a duration looks like, for the CEL rules.
macro_rules! looks_like_a_duration {
    () => {
        "self.matches('^[1-9][0-9]{0,7}(ms|s|m|h)$')"
    };
}

/// CEL: a duration from 1 ms to 24 h.
const IS_A_DURATION: &str = concat!(looks_like_a_duration!(), " && duration(self) <= duration('24h')");

/// CEL: a duration that divides a day. Written with whole numbers of the unit, since CEL has no remainder
/// of durations. What is no duration passes: it has been refused by [`IS_A_DURATION`] already.
pub(crate) const DIVIDES_A_DAY: &str = concat!(
    "!",
    looks_like_a_duration!(),
    " || (self.endsWith('ms') ? 86400000 % int(self.replace('ms', ''))",
    " : self.endsWith('s') ? 86400 % int(self.replace('s', ''))",
    " : self.endsWith('m') ? 1440 % int(self.replace('m', ''))",
    " : 24 % int(self.replace('h', ''))) == 0"
);

/// What to write instead of an interval that does not divide a day.
pub(crate) const DIVIDES_A_DAY_MESSAGE: &str =
    "the interval must divide a day into equal parts: write one such as 1s, 5s, 10s, 30s, 1m, 5m, 15m or 1h";

/// CEL: a duration of at most a minute. What is no duration passes, as above.
pub(crate) const AT_MOST_A_MINUTE: &str = concat!(
    "!",
    looks_like_a_duration!(),
    " || duration(self) <= duration('1m')"
);

/// Milliseconds of a day, the longest duration.
pub const DAY_MILLIS: u64 = 24 * 60 * 60 * 1000;

impl Duration {
    /// A duration of so many milliseconds, brought into the range of 1 ms to 24 h.
    #[must_use]
    pub fn from_millis(millis: u64) -> Self {
        Self {
            millis: millis.clamp(1, DAY_MILLIS),
        }
    }

    /// A duration of so many seconds, brought into the range of 1 ms to 24 h.
    #[must_use]
    pub fn from_secs(secs: u64) -> Self {
        Self::from_millis(secs.saturating_mul(1000))
    }

    /// The length in milliseconds.
    #[must_use]
    pub fn as_millis(self) -> u64 {
        self.millis
    }

    /// Whether a day is a whole number of such durations, as every interval must be.
    #[must_use]
    pub fn divides_a_day(self) -> bool {
        DAY_MILLIS.is_multiple_of(self.millis)
    }

    /// The length as the standard library's type.
    #[must_use]
    pub fn as_std(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.millis)
    }
}

/// A whole number that does not begin with 0 and one of the units, each with what it counts for: 1 to `most` in all.
fn count(text: &str, units: &[(&str, u64)], most: u64) -> Option<u64> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    if number.starts_with('0') {
        return None;
    }
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    let all = number.parse::<u64>().ok()?.checked_mul(*factor)?;
    (1..=most).contains(&all).then_some(all)
}

/// In logs and in documents a value is what people write.
macro_rules! is_its_text {
    ($type:ty) => {
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Cow::<'de, str>::deserialize(deserializer)?
                    .parse()
                    .map_err(de::Error::custom)
            }
        }
    };
}

impl FromStr for Duration {
    type Err = NotADuration;

    fn from_str(text: &str) -> Result<Self, NotADuration> {
        let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];
        match count(text, &units, DAY_MILLIS) {
            Some(millis) => Ok(Self { millis }),
            None => Err(NotADuration(text.to_owned())),
        }
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.millis;
        match ms {
            _ if ms.is_multiple_of(3_600_000) => write!(f, "{}h", ms / 3_600_000),
            _ if ms.is_multiple_of(60_000) => write!(f, "{}m", ms / 60_000),
            _ if ms.is_multiple_of(1000) => write!(f, "{}s", ms / 1000),
            _ => write!(f, "{ms}ms"),
        }
    }
}

is_its_text!(Duration);

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 10,
            "x-kubernetes-validations": [{
                "rule": IS_A_DURATION,
                "message": "write a whole number and a unit, ms, s, m or h, from 1ms to 24h, as in 10s",
            }],
        })
    }
}

/// How long a topic keeps records: a whole number followed by `m`, `h` or `d`, such as `168h` or `30d`.
///
/// Whole minutes, at least 1 minute, at most 3650 days.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Retention {
    minutes: u64,
}

/// Why a text is not a [`Retention`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "\"{0}\" is not a retention: write a whole number and a unit, m, h or d, from 1m to 3650d, as in 30d"
)]
pub struct NotARetention(String);

/// CEL: a retention from 1 minute to 3650 days. CEL's own durations know no days.
const IS_A_RETENTION: &str = concat!(
    "self.matches('^[1-9][0-9]{0,6}(m|h|d)$') && (",
    "self.endsWith('m') ? int(self.replace('m', '')) <= 5256000",
    " : self.endsWith('h') ? int(self.replace('h', '')) <= 87600",
    " : int(self.replace('d', '')) <= 3650)"
);

/// Minutes of 3650 days, the longest retention.
const MAX_MINUTES: u64 = 3650 * 24 * 60;

impl Retention {
    /// The length in milliseconds, as Kafka's `retention.ms` has it.
    #[must_use]
    pub fn as_millis(self) -> u64 {
        self.minutes * 60_000
    }
}

impl FromStr for Retention {
    type Err = NotARetention;

    fn from_str(text: &str) -> Result<Self, NotARetention> {
        let units = [("m", 1), ("h", 60), ("d", 24 * 60)];
        match count(text, &units, MAX_MINUTES) {
            Some(minutes) => Ok(Self { minutes }),
            None => Err(NotARetention(text.to_owned())),
        }
    }
}

impl fmt::Display for Retention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let minutes = self.minutes;
        match minutes {
            _ if minutes.is_multiple_of(24 * 60) => write!(f, "{}d", minutes / (24 * 60)),
            _ if minutes.is_multiple_of(60) => write!(f, "{}h", minutes / 60),
            _ => write!(f, "{minutes}m"),
        }
    }
}

is_its_text!(Retention);

impl JsonSchema for Retention {
    fn schema_name() -> Cow<'static, str> {
        "Retention".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 8,
            "x-kubernetes-validations": [{
                "rule": IS_A_RETENTION,
                "message": "write a whole number and a unit, m, h or d, from 1m to 3650d, as in 30d",
            }],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_what_people_write() {
        for (text, millis, canonical) in [
            ("1ms", 1, "1ms"),
            ("500ms", 500, "500ms"),
            ("1000ms", 1000, "1s"),
            ("10s", 10_000, "10s"),
            ("15m", 900_000, "15m"),
            ("90s", 90_000, "90s"),
            ("24h", DAY_MILLIS, "24h"),
        ] {
            let duration: Duration = text.parse().unwrap();
            assert_eq!(duration.as_millis(), millis, "{text}");
            assert_eq!(duration.to_string(), canonical);
        }
    }

    #[test]
    fn knows_what_divides_a_day() {
        for (text, divides) in [
            ("1ms", true),
            ("90s", true),
            ("7s", false),
            ("24h", true),
            ("5h", false),
        ] {
            assert_eq!(
                text.parse::<Duration>().unwrap().divides_a_day(),
                divides,
                "{text}"
            );
        }
    }

    #[test]
    fn refuses_the_rest_with_a_sentence() {
        for text in [
            "",
            "10",
            "s",
            "0s",
            "010s",
            "-1s",
            "1.5s",
            "10 s",
            "25h",
            "1d",
            "99999999999999999999s",
        ] {
            let error = text.parse::<Duration>().unwrap_err().to_string();
            assert!(error.contains("whole number and a unit"), "{text}: {error}");
        }
    }

    #[test]
    fn reads_and_writes_retentions() {
        for (text, millis, canonical) in [
            ("1m", 60_000, "1m"),
            ("90m", 5_400_000, "90m"),
            ("168h", 604_800_000, "7d"),
            ("30d", 2_592_000_000, "30d"),
            ("3650d", 315_360_000_000, "3650d"),
        ] {
            let retention: Retention = text.parse().unwrap();
            assert_eq!(retention.as_millis(), millis, "{text}");
            assert_eq!(retention.to_string(), canonical);
        }
        for text in ["", "7", "d", "0d", "07d", "10s", "1.5h", "3651d", "87601h", "1w"] {
            let error = text.parse::<Retention>().unwrap_err().to_string();
            assert!(error.contains("whole number and a unit"), "{text}: {error}");
        }
    }
}
