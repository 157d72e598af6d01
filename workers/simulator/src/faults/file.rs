//! Faults as YAML: a seed, and a list of entries, each with one effect, and where and when it comes.

use std::{collections::BTreeSet, path::Path, time::Duration};

use corrente_config::closest;
use corrente_crds::{Duration as Time, profile::Function};
use serde::{Deserialize, Deserializer};

use super::{Beyond, Effect, Fault, Faults, Place, Recipient, Rim, Then, When};

/// Why a file of faults cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("failed to read the faults in {path}: {reason}")]
    Unreadable {
        /// The file.
        path: String,
        /// What the system says.
        reason: std::io::Error,
    },
    /// It is not YAML, or not of this shape.
    #[error("{path}: {reason}")]
    Invalid {
        /// The file.
        path: String,
        /// Where and why.
        reason: String,
    },
}

/// Reads a file of faults.
///
/// # Errors
/// Where it cannot be read, or says something else.
pub fn read(path: &Path) -> Result<Faults, FileError> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|reason| FileError::Unreadable {
        path: name.clone(),
        reason,
    })?;
    parse(&text).map_err(|reason| FileError::Invalid { path: name, reason })
}

/// Reads faults from a text.
///
/// # Errors
/// What is wrong, where, and what to change.
pub fn parse(text: &str) -> Result<Faults, String> {
    let file: File = serde_saphyr::from_str(text).map_err(|error| sentence(&error.to_string()))?;
    let mut list = Vec::new();
    for (number, entry) in (1..).zip(file.faults) {
        list.push(
            entry
                .fault()
                .map_err(|message| format!("fault {number}: {message}"))?,
        );
    }
    Ok(Faults {
        seed: file.seed,
        list,
    })
}

/// The library's first line says where and what; the field that was probably meant is more of a help than the
/// list of all.
fn sentence(error: &str) -> String {
    let line = error.lines().next().unwrap_or_default();
    let line = line.strip_prefix("error: ").unwrap_or(line);
    let Some((what, known)) = line.split_once(", expected one of ") else {
        return line.to_owned();
    };
    let word = what.split('`').nth(1).unwrap_or_default();
    let known: Vec<&str> = known.split(", ").map(|name| name.trim_matches('`')).collect();
    match closest(word, &known) {
        Some(meant) => format!("{what}; did you mean `{meant}`?"),
        None => format!("{what}: there are {}", known.join(", ")),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    #[serde(default)]
    seed: u64,
    faults: Vec<Entry>,
}

/// An effect that is written without its settings has them all at their defaults.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<Option<T>, D::Error> {
    Ok(Some(Option::deserialize(from)?.unwrap_or_default()))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    #[serde(default, deserialize_with = "given")]
    silence: Option<Nothing>,
    delay: Option<Delay>,
    drip: Option<Drip>,
    #[serde(default, deserialize_with = "given")]
    torn: Option<Torn>,
    #[serde(default, deserialize_with = "given")]
    wrong_transaction: Option<Off<u16>>,
    #[serde(default, deserialize_with = "given")]
    wrong_unit: Option<Off<u8>>,
    #[serde(default, deserialize_with = "given")]
    wrong_function: Option<WrongFunction>,
    wrong_length: Option<WrongLength>,
    #[serde(default, deserialize_with = "given")]
    bad_crc: Option<Nothing>,
    exception: Option<Exception>,
    #[serde(default, deserialize_with = "given")]
    garbage: Option<Garbage>,
    #[serde(default, deserialize_with = "given")]
    late: Option<Late>,
    gateway: Option<Gateway>,
    connections: Option<Connections>,
    #[serde(default, deserialize_with = "given")]
    roll_over: Option<RollOver>,
    counter_reset: Option<At>,
    meter_swap: Option<At>,

    #[serde(default)]
    endpoints: Vec<String>,
    #[serde(default)]
    meters: Vec<String>,
    #[serde(default)]
    units: BTreeSet<u8>,
    registers: Option<Span>,
    function: Option<Function>,
    longer_than: Option<u16>,
    #[serde(default)]
    metrics: Vec<String>,

    from: Option<Time>,
    until: Option<Time>,
    every: Option<u64>,
    times: Option<u64>,
    chance: Option<f64>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Delay {
    min: Time,
    max: Option<Time>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Drip {
    #[serde(default = "one")]
    bytes: usize,
    pause: Time,
}

fn one() -> usize {
    1
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Torn {
    after: Option<usize>,
    #[serde(default)]
    then: Then,
}

/// By how much a number is off.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, bound(deserialize = "T: Deserialize<'de> + From<u8>"))]
struct Off<T> {
    #[serde(default = "by_one")]
    by: T,
}

fn by_one<T: From<u8>>() -> T {
    1.into()
}

impl<T: From<u8>> Default for Off<T> {
    fn default() -> Self {
        Self { by: by_one() }
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct WrongFunction {
    code: Option<u8>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrongLength {
    registers: Option<i16>,
    byte_count: Option<i16>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Exception {
    code: u8,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Garbage {
    bytes: usize,
    then_answer: bool,
}

impl Default for Garbage {
    fn default() -> Self {
        Self {
            bytes: 16,
            then_answer: false,
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Late {
    after: Option<Time>,
    #[serde(default)]
    to: Recipient,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Gateway {
    timeout: Time,
    exception: Option<u8>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Connections {
    limit: usize,
    #[serde(default)]
    beyond: Beyond,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RollOver {
    width: Option<u8>,
    limit: Option<u64>,
    after: Option<Time>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct At {
    after: Time,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Span {
    from: u16,
    to: Option<u16>,
}

fn time(time: Time) -> Duration {
    time.as_std()
}

impl Entry {
    fn fault(self) -> Result<Fault, String> {
        let from = |at: At| time(at.after);
        let mut effects: Vec<(&str, Effect)> = Vec::new();
        let mut add = |name, effect: Option<Effect>| effects.extend(effect.map(|effect| (name, effect)));
        add("silence", self.silence.map(|_| Effect::Silence));
        add(
            "delay",
            self.delay
                .map(|delay| Effect::Delay(time(delay.min), time(delay.max.unwrap_or(delay.min)))),
        );
        add(
            "drip",
            self.drip.map(|drip| Effect::Drip {
                bytes: drip.bytes,
                pause: time(drip.pause),
            }),
        );
        add(
            "torn",
            self.torn.map(|torn| Effect::Torn {
                after: torn.after,
                then: torn.then,
            }),
        );
        add(
            "wrongTransaction",
            self.wrong_transaction.map(|off| Effect::WrongTransaction(off.by)),
        );
        add("wrongUnit", self.wrong_unit.map(|off| Effect::WrongUnit(off.by)));
        add(
            "wrongFunction",
            self.wrong_function.map(|wrong| Effect::WrongFunction(wrong.code)),
        );
        let length = self
            .wrong_length
            .map(|wrong| match (wrong.registers, wrong.byte_count) {
                (Some(by), None) => Ok(Effect::WrongCount(by)),
                (None, Some(by)) => Ok(Effect::WrongByteCount(by)),
                _ => Err("wrongLength: write either `registers` or `byteCount`, by how much it is off"),
            });
        add("wrongLength", length.transpose()?);
        add("badCrc", self.bad_crc.map(|_| Effect::BadCrc));
        add(
            "exception",
            self.exception.map(|exception| Effect::Exception(exception.code)),
        );
        add(
            "garbage",
            self.garbage.map(|garbage| Effect::Garbage {
                bytes: garbage.bytes,
                then_answer: garbage.then_answer,
            }),
        );
        add(
            "late",
            self.late.map(|late| Effect::Late {
                after: late.after.map(time),
                to: late.to,
            }),
        );
        add(
            "gateway",
            self.gateway.map(|gateway| Effect::Gateway {
                timeout: time(gateway.timeout),
                exception: gateway.exception,
            }),
        );
        add(
            "connections",
            self.connections.map(|connections| Effect::Connections {
                limit: connections.limit,
                beyond: connections.beyond,
            }),
        );
        let roll_over = self.roll_over.map(|roll| {
            let at = match (roll.width, roll.limit) {
                (None, None) => Ok(Rim::Type),
                (Some(bits), None) => Ok(Rim::Bits(bits)),
                (None, Some(value)) => Ok(Rim::Value(value)),
                (Some(_), Some(_)) => Err("rollOver: write either `width` or `limit`"),
            };
            at.map(|at| Effect::RollOver {
                at,
                after: roll.after.map(time),
            })
        });
        add("rollOver", roll_over.transpose()?);
        add(
            "counterReset",
            self.counter_reset
                .map(|at| Effect::CounterReset { after: from(at) }),
        );
        add(
            "meterSwap",
            self.meter_swap.map(|at| Effect::MeterSwap { after: from(at) }),
        );
        let effect = match effects.len() {
            1 => effects.remove(0).1,
            0 => return Err("it names no effect: write one, such as `silence: {}`".to_owned()),
            _ => {
                let names: Vec<&str> = effects.iter().map(|(name, _)| *name).collect();
                return Err(format!(
                    "it names {}: give each an entry of its own",
                    names.join(" and ")
                ));
            }
        };
        Ok(Fault {
            effect,
            place: Place {
                endpoints: self.endpoints,
                meters: self.meters,
                units: self.units,
                registers: self
                    .registers
                    .map(|span| span.from..=span.to.unwrap_or(span.from)),
                function: self.function,
                longer_than: self.longer_than,
                metrics: self.metrics,
            },
            when: When {
                from: self.from.map(time),
                until: self.until.map(time),
                every: self.every,
                times: self.times,
                chance: self.chance,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn one(yaml: &str) -> Fault {
        let mut faults =
            parse(&format!("faults: [{{{yaml}}}]")).unwrap_or_else(|error| panic!("{yaml}: {error}"));
        faults.list.remove(0)
    }

    #[test]
    fn every_effect_can_be_written() {
        for (yaml, effect) in [
            ("silence: {}", Effect::Silence),
            ("silence: ", Effect::Silence),
            ("delay: {min: 5ms}", Effect::Delay(5 * MS, 5 * MS)),
            ("delay: {min: 5ms, max: 7ms}", Effect::Delay(5 * MS, 7 * MS)),
            (
                "drip: {pause: 5ms}",
                Effect::Drip {
                    bytes: 1,
                    pause: 5 * MS,
                },
            ),
            (
                "drip: {pause: 5ms, bytes: 3}",
                Effect::Drip {
                    bytes: 3,
                    pause: 5 * MS,
                },
            ),
            (
                "torn: {}",
                Effect::Torn {
                    after: None,
                    then: Then::Nothing,
                },
            ),
            (
                "torn: {after: 4, then: close}",
                Effect::Torn {
                    after: Some(4),
                    then: Then::Close,
                },
            ),
            (
                "torn: {then: reset}",
                Effect::Torn {
                    after: None,
                    then: Then::Reset,
                },
            ),
            ("wrongTransaction: {}", Effect::WrongTransaction(1)),
            ("wrongTransaction: {by: 300}", Effect::WrongTransaction(300)),
            ("wrongUnit: {by: 2}", Effect::WrongUnit(2)),
            ("wrongFunction: {}", Effect::WrongFunction(None)),
            ("wrongFunction: {code: 4}", Effect::WrongFunction(Some(4))),
            ("wrongLength: {registers: -1}", Effect::WrongCount(-1)),
            ("wrongLength: {byteCount: 4}", Effect::WrongByteCount(4)),
            ("badCrc: {}", Effect::BadCrc),
            ("exception: {code: 0x0B}", Effect::Exception(11)),
            (
                "garbage: {}",
                Effect::Garbage {
                    bytes: 16,
                    then_answer: false,
                },
            ),
            (
                "garbage: {bytes: 3, thenAnswer: true}",
                Effect::Garbage {
                    bytes: 3,
                    then_answer: true,
                },
            ),
            (
                "late: {}",
                Effect::Late {
                    after: None,
                    to: Recipient::Same,
                },
            ),
            (
                "late: {after: 5ms, to: newest}",
                Effect::Late {
                    after: Some(5 * MS),
                    to: Recipient::Newest,
                },
            ),
            (
                "gateway: {timeout: 5ms, exception: 11}",
                Effect::Gateway {
                    timeout: 5 * MS,
                    exception: Some(11),
                },
            ),
            (
                "gateway: {timeout: 5ms}",
                Effect::Gateway {
                    timeout: 5 * MS,
                    exception: None,
                },
            ),
            (
                "connections: {limit: 4}",
                Effect::Connections {
                    limit: 4,
                    beyond: Beyond::Refuse,
                },
            ),
            (
                "connections: {limit: 1, beyond: closeOldest}",
                Effect::Connections {
                    limit: 1,
                    beyond: Beyond::CloseOldest,
                },
            ),
            (
                "rollOver: {}",
                Effect::RollOver {
                    at: Rim::Type,
                    after: None,
                },
            ),
            (
                "rollOver: {width: 24, after: 5ms}",
                Effect::RollOver {
                    at: Rim::Bits(24),
                    after: Some(5 * MS),
                },
            ),
            (
                "rollOver: {limit: 1000000}",
                Effect::RollOver {
                    at: Rim::Value(1_000_000),
                    after: None,
                },
            ),
            (
                "counterReset: {after: 5ms}",
                Effect::CounterReset { after: 5 * MS },
            ),
            ("meterSwap: {after: 5ms}", Effect::MeterSwap { after: 5 * MS }),
        ] {
            assert_eq!(one(yaml), Fault::new(effect), "{yaml}");
        }
    }

    #[test]
    fn places_and_times_can_be_written() {
        let fault = one(
            "silence: {}, endpoints: [east], meters: [a, b], units: [3, 4], registers: {from: 7, to: 9}, \
             function: holding, longerThan: 50, from: 1s, until: 1m, every: 3, times: 5, chance: 0.5",
        );
        let mut expected = Fault::new(Effect::Silence)
            .endpoint("east")
            .meter("a")
            .meter("b")
            .units([3, 4])
            .registers(7..=9)
            .longer_than(50)
            .from(1000 * MS)
            .until(60_000 * MS)
            .every(3)
            .times(5)
            .chance(0.5);
        expected.place.function = Some(Function::Holding);
        assert_eq!(fault, expected);
        assert_eq!(
            one("silence: {}, registers: {from: 7}").place.registers,
            Some(7..=7)
        );
        let roll = one("rollOver: {}, metrics: [energy]");
        assert_eq!(roll.place.metrics, ["energy"]);
        assert_eq!(parse("seed: 9\nfaults: []").unwrap(), Faults::new(9));
    }

    #[test]
    fn mistakes_are_explained() {
        for (yaml, says) in [
            ("faults: [{silense: {}}]", "did you mean `silence`?"),
            ("faults: [{silence: {}, meter: [a]}]", "did you mean `meters`?"),
            ("faults: [{delay: {mim: 5ms}}]", "did you mean `min`?"),
            ("faults: [{delay: {min: 5}}]", "5"),
            (
                "faults: [{delay: {min: soon}}]",
                "write a whole number and a unit",
            ),
            ("faults: [{meters: [a]}]", "fault 1: it names no effect"),
            (
                "faults: [{silence: {}}, {silence: {}, badCrc: {}}]",
                "fault 2: it names silence and badCrc: give each",
            ),
            ("faults: [{wrongLength: {}}]", "either `registers` or `byteCount`"),
            (
                "faults: [{rollOver: {width: 32, limit: 7}}]",
                "either `width` or `limit`",
            ),
            ("faults: [{torn: {then: cloze}}]", "cloze"),
            ("falts: []", "falts"),
        ] {
            let error = parse(yaml).unwrap_err();
            assert!(error.contains(says), "{yaml}: {error}");
        }
    }
}
