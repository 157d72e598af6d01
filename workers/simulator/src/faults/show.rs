//! Faults in words, for the log and the terminal.

use std::{fmt, time::Duration};

use super::{Beyond, Effect, Fault, Recipient, Rim, Then};

/// A length of time as it is written in YAML.
struct Time(Duration);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_millis() {
            millis if millis % 60_000 == 0 && millis > 0 => write!(f, "{}m", millis / 60_000),
            millis if millis % 1000 == 0 => write!(f, "{}s", millis / 1000),
            millis => write!(f, "{millis}ms"),
        }
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silence => f.write_str("silence"),
            Self::Delay(least, most) if least == most => write!(f, "answers {} late", Time(*least)),
            Self::Delay(least, most) => write!(f, "answers {} to {} late", Time(*least), Time(*most)),
            Self::Drip { bytes, pause } => {
                write!(
                    f,
                    "answers in drops of {}, {} apart",
                    count(*bytes, "byte"),
                    Time(*pause)
                )
            }
            Self::Torn { after, then } => {
                match after {
                    Some(bytes) => write!(f, "answers torn after {}", count(*bytes, "byte"))?,
                    None => f.write_str("answers torn in the middle")?,
                }
                f.write_str(match then {
                    Then::Nothing => "",
                    Then::Close => ", then a close",
                    Then::Reset => ", then a reset",
                })
            }
            Self::WrongTransaction(by) => write!(f, "a transaction id that is off by {by}"),
            Self::WrongUnit(by) => write!(f, "a unit id that is off by {by}"),
            Self::WrongFunction(None) => f.write_str("the wrong function code"),
            Self::WrongFunction(Some(code)) => write!(f, "function code {code}"),
            Self::WrongCount(by) => write!(f, "{by:+} registers"),
            Self::WrongByteCount(by) => write!(f, "a byte count that is off by {by}"),
            Self::BadCrc => f.write_str("a wrong checksum"),
            Self::Exception(code) => write!(f, "exception {code:02X}"),
            Self::Garbage { bytes, then_answer } => {
                let then = if *then_answer {
                    "before the answer"
                } else {
                    "instead of an answer"
                };
                write!(f, "{} of garbage {then}", count(*bytes, "byte"))
            }
            Self::Late { after, to } => {
                match after {
                    Some(after) => write!(f, "answers {} too late", Time(*after))?,
                    None => f.write_str("answers in front of the next")?,
                }
                f.write_str(match to {
                    Recipient::Same => "",
                    Recipient::Newest => ", to whoever is connected",
                })
            }
            Self::Gateway { timeout, exception } => {
                write!(f, "a gateway that waits {} for a silent unit", Time(*timeout))?;
                match exception {
                    Some(code) => write!(f, ", then exception {code:02X}"),
                    None => Ok(()),
                }
            }
            Self::Connections { limit, beyond } => {
                write!(f, "{} at most; one more is ", count(*limit, "connection"))?;
                f.write_str(match beyond {
                    Beyond::Refuse => "refused",
                    Beyond::Ignore => "never served",
                    Beyond::CloseOldest => "served, and the oldest closed",
                })
            }
            Self::RollOver { at, after } => {
                f.write_str("counters roll over at ")?;
                match at {
                    Rim::Type => f.write_str("the end of their type")?,
                    Rim::Bits(bits) => write!(f, "{bits} bits")?,
                    Rim::Value(value) => write!(f, "{value}")?,
                }
                after.map_or(Ok(()), |after| {
                    write!(f, ", first {} after the start", Time(after))
                })
            }
            Self::CounterReset { after } => write!(f, "counters at 0, {} after the start", Time(*after)),
            Self::MeterSwap { after } => write!(f, "another meter, {} after the start", Time(*after)),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.effect)?;
        let place = &self.place;
        let units: Vec<String> = place.units.iter().map(u8::to_string).collect();
        let meters = if place.meters.len() == 1 {
            "meter"
        } else {
            "meters"
        };
        let ids = if units.len() == 1 { "unit" } else { "units" };
        for (what, names) in [
            (meters, &place.meters),
            (ids, &units),
            ("metrics", &place.metrics),
            ("at", &place.endpoints),
        ] {
            if !names.is_empty() {
                write!(f, "; {what} {}", names.join(", "))?;
            }
        }
        if let Some(range) = &place.registers {
            write!(f, "; registers {} to {}", range.start(), range.end())?;
        }
        if let Some(function) = place.function {
            write!(f, "; function {:02}", corrente_modbus::adu::pdu::code(function))?;
        }
        if let Some(most) = place.longer_than {
            write!(f, "; reads of more than {most}")?;
        }
        let when = &self.when;
        if let Some(from) = when.from {
            write!(f, "; from {}", Time(from))?;
        }
        if let Some(until) = when.until {
            write!(f, "; until {}", Time(until))?;
        }
        if let Some(every) = when.every {
            write!(f, "; every {every}. request")?;
        }
        if let Some(times) = when.times {
            write!(f, "; {}", count(times, "time"))?;
        }
        if let Some(chance) = when.chance {
            write!(f, "; with a chance of {chance}")?;
        }
        Ok(())
    }
}

fn count(n: impl fmt::Display + PartialEq + From<u8>, noun: &str) -> String {
    let plural = if n == 1.into() { "" } else { "s" };
    format!("{n} {noun}{plural}")
}
