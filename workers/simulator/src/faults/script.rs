//! From an answer and the faults that it meets to what is done on the socket: bytes, pauses, an end.
//!
//! A [`Draft`] gathers what each fault wants, so that their order does not matter; [`Draft::finish`] then
//! makes a [`Script`] of it. Nothing here knows a socket or a clock.

use std::time::Duration;

use super::{Effect, Recipient, Then};
use crate::wire::{Answer, Asked, Framing};

/// One thing to do on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing, for so long.
    Wait(Duration),
    /// These bytes.
    Send(Vec<u8>),
    /// Close it.
    Close,
    /// Reset it.
    Reset,
}

/// What is done for one request.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Script {
    /// In this order; a request that comes meanwhile on the same connection waits.
    pub steps: Vec<Step>,
    /// What comes later, while other requests are answered.
    pub later: Option<Later>,
}

/// A late answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Later {
    /// How late; `None` for right before the next answer.
    pub after: Option<Duration>,
    /// To whom.
    pub to: Recipient,
    /// The answer, in its frame.
    pub bytes: Vec<u8>,
}

/// Numbers for what is left to chance: given one of its own for each use, each is from 0 to below 1.
pub type Chance<'a> = &'a dyn Fn(u64) -> f64;

/// What becomes of an answer.
#[derive(Debug)]
pub struct Draft<'a> {
    framing: Framing,
    asked: &'a Asked,
    answer: Option<Answer>,
    exception: Option<u8>,
    silent: bool,
    delay: Duration,
    drip: Option<(usize, Duration)>,
    torn: Option<(Option<usize>, Then)>,
    transaction: u16,
    unit: u8,
    function: Option<u8>,
    registers: i16,
    byte_count: i16,
    bad_crc: bool,
    garbage: Option<(usize, bool)>,
    late: Option<(Option<Duration>, Recipient)>,
}

impl<'a> Draft<'a> {
    /// The answer as it would be; `None` where there is none.
    #[must_use]
    pub fn new(framing: Framing, asked: &'a Asked, answer: Option<Answer>) -> Self {
        Self {
            framing,
            asked,
            silent: answer.is_none(),
            answer,
            exception: None,
            delay: Duration::ZERO,
            drip: None,
            torn: None,
            transaction: 0,
            unit: 0,
            function: None,
            registers: 0,
            byte_count: 0,
            bad_crc: false,
            garbage: None,
            late: None,
        }
    }

    /// Lets a fault do its work. Those of endpoints and of meters have none here.
    pub fn meet(&mut self, effect: &Effect, chance: Chance<'_>) {
        match *effect {
            Effect::Silence => self.silent = true,
            Effect::Delay(least, most) => {
                let more = most.saturating_sub(least).mul_f64(chance(1));
                self.delay = self.delay.saturating_add(least).saturating_add(more);
            }
            Effect::Drip { bytes, pause } => self.drip = Some((bytes.max(1), pause)),
            Effect::Torn { after, then } => self.torn = Some((after, then)),
            Effect::WrongTransaction(by) => self.transaction = self.transaction.wrapping_add(by),
            Effect::WrongUnit(by) => self.unit = self.unit.wrapping_add(by),
            Effect::WrongFunction(code) => self.function = Some(code.unwrap_or(mixed_up(self.asked.code))),
            Effect::WrongCount(by) => self.registers = by,
            Effect::WrongByteCount(by) => self.byte_count = by,
            Effect::BadCrc => self.bad_crc = true,
            Effect::Exception(code) => self.exception = Some(code),
            Effect::Garbage { bytes, then_answer } => self.garbage = Some((bytes, then_answer)),
            Effect::Late { after, to } => self.late = Some((after, to)),
            Effect::Gateway { .. }
            | Effect::Connections { .. }
            | Effect::RollOver { .. }
            | Effect::CounterReset { .. }
            | Effect::MeterSwap { .. } => {}
        }
    }

    /// Whether there is no answer.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.silent
    }

    /// How long the answer takes.
    #[must_use]
    pub fn delay(&self) -> Duration {
        self.delay
    }

    /// What is done.
    #[must_use]
    pub fn finish(mut self, chance: Chance<'_>) -> Script {
        let mut script = Script::default();
        let answer = match self.answer.take() {
            Some(answer) if !self.silent => answer,
            _ => return script,
        };
        if !self.delay.is_zero() {
            script.steps.push(Step::Wait(self.delay));
        }
        let frame = self.frame(answer);
        if let Some((after, to)) = self.late {
            script.later = Some(Later {
                after,
                to,
                bytes: frame,
            });
            return script;
        }
        let bytes = match self.garbage {
            None => frame,
            Some((count, then_answer)) => {
                // Never a Modbus header by chance: a client must not be blamed for believing one.
                let noise = (0..count).map(|at| 0x80 | (chance(2 + at as u64) * 128.0) as u8);
                noise.chain(frame.into_iter().filter(|_| then_answer)).collect()
            }
        };
        let whole = bytes.len();
        let (part, then) = match self.torn {
            None => (whole, Then::Nothing),
            Some((after, then)) => (after.unwrap_or(whole / 2).min(whole), then),
        };
        let bytes = bytes.get(..part).unwrap_or_default();
        let (drop, pause) = self.drip.unwrap_or((part.max(1), Duration::ZERO));
        for (number, bytes) in bytes.chunks(drop).enumerate() {
            if number > 0 {
                script.steps.push(Step::Wait(pause));
            }
            script.steps.push(Step::Send(bytes.to_vec()));
        }
        match then {
            Then::Nothing => {}
            Then::Close => script.steps.push(Step::Close),
            Then::Reset => script.steps.push(Step::Reset),
        }
        script
    }

    fn frame(&self, answer: Answer) -> Vec<u8> {
        let mut answer = match self.exception {
            Some(code) => Answer::exception(self.asked, code),
            None => answer,
        };
        answer.unit = answer.unit.wrapping_add(self.unit);
        if let [code, count, ..] = answer.pdu[..]
            && code & 0x80 == 0
        {
            // Whole registers; of bits, whole bytes.
            let width = if matches!(code, 1 | 2) { 1 } else { 2 };
            let bytes = (i32::from(count) + width * i32::from(self.registers)).clamp(0, 250);
            let bytes = u8::try_from(bytes).unwrap_or(0);
            answer.pdu.resize(2 + usize::from(bytes), 0);
            let claimed = i32::from(bytes) + i32::from(self.byte_count);
            if let Some(count) = answer.pdu.get_mut(1) {
                *count = u8::try_from(claimed.clamp(0, 255)).unwrap_or(bytes);
            }
        }
        if let (Some(function), Some(code)) = (self.function, answer.pdu.first_mut()) {
            *code = (*code & 0x80) | function;
        }
        let mut frame = Vec::new();
        let transaction = self.asked.transaction.wrapping_add(self.transaction);
        self.framing.put(transaction, &answer, &mut frame);
        if self.bad_crc
            && self.framing == Framing::Rtu
            && let Some(last) = frame.last_mut()
        {
            *last ^= 0x55;
        }
        frame
    }
}

/// The function that a code is most easily taken for: the other table of registers, or of bits.
fn mixed_up(code: u8) -> u8 {
    match code {
        1 => 2,
        2 => 1,
        3 => 4,
        4 => 3,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use corrente_crds::profile::Function;
    use corrente_modbus::adu::{Question, rtu::crc};

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn is_whole_rtu(frame: &[u8]) -> bool {
        frame
            .split_last_chunk::<2>()
            .is_some_and(|(body, sum)| crc(body).to_le_bytes() == *sum)
    }

    fn script(framing: Framing, effects: &[Effect]) -> Script {
        let asked = Asked {
            transaction: 7,
            unit: 9,
            code: 3,
            read: Ok(Question::new(Function::Holding, 0, 2).unwrap()),
        };
        let answer = Answer::values(&asked, Function::Holding, &[0x0102, 0x0304]);
        let mut draft = Draft::new(framing, &asked, Some(answer));
        for effect in effects {
            draft.meet(effect, &|_| 0.5);
        }
        draft.finish(&|_| 0.5)
    }

    #[test]
    fn each_fault_does_what_it_says() {
        use Step::{Close, Reset, Send, Wait};
        let whole = vec![0, 7, 0, 0, 0, 7, 9, 3, 4, 1, 2, 3, 4];
        let changed = |change: fn(&mut Vec<u8>)| {
            let mut frame = whole.clone();
            change(&mut frame);
            vec![Send(frame)]
        };
        let torn = |then| Effect::Torn { after: Some(4), then };
        let half = || Send(vec![0, 7, 0, 0]);
        for (effects, steps) in [
            (vec![], vec![Send(whole.clone())]),
            (vec![Effect::Silence], vec![]),
            (vec![Effect::Silence, Effect::Delay(MS, MS)], vec![]),
            (
                vec![Effect::Delay(10 * MS, 30 * MS)],
                vec![Wait(20 * MS), Send(whole.clone())],
            ),
            (
                vec![Effect::Delay(MS, MS), Effect::Delay(MS, MS)],
                vec![Wait(2 * MS), Send(whole.clone())],
            ),
            (
                vec![Effect::Drip { bytes: 9, pause: MS }],
                vec![Send(whole[..9].to_vec()), Wait(MS), Send(whole[9..].to_vec())],
            ),
            (vec![torn(Then::Nothing)], vec![half()]),
            (vec![torn(Then::Close)], vec![half(), Close]),
            (vec![torn(Then::Reset)], vec![half(), Reset]),
            (
                vec![Effect::Torn {
                    after: None,
                    then: Then::Nothing,
                }],
                vec![Send(whole[..6].to_vec())],
            ),
            (
                vec![Effect::Torn {
                    after: Some(0),
                    then: Then::Reset,
                }],
                vec![Reset],
            ),
            (vec![Effect::WrongTransaction(1)], changed(|frame| frame[1] = 8)),
            (vec![Effect::WrongUnit(1)], changed(|frame| frame[6] = 10)),
            (vec![Effect::WrongFunction(None)], changed(|frame| frame[7] = 4)),
            (
                vec![Effect::WrongFunction(Some(1))],
                changed(|frame| frame[7] = 1),
            ),
            (
                vec![Effect::WrongCount(1)],
                changed(|frame| {
                    (frame[5], frame[8]) = (9, 6);
                    frame.extend([0, 0]);
                }),
            ),
            (
                vec![Effect::WrongCount(-1)],
                changed(|frame| {
                    (frame[5], frame[8]) = (5, 2);
                    frame.truncate(11);
                }),
            ),
            (vec![Effect::WrongByteCount(-2)], changed(|frame| frame[8] = 2)),
            (vec![Effect::BadCrc], vec![Send(whole.clone())]),
            (
                vec![Effect::Exception(4)],
                vec![Send(vec![0, 7, 0, 0, 0, 3, 9, 0x83, 4])],
            ),
            // An exception of another unit, of another function, to another request.
            (
                vec![
                    Effect::WrongFunction(Some(1)),
                    Effect::WrongUnit(2),
                    Effect::WrongTransaction(1),
                    Effect::WrongCount(3),
                    Effect::Exception(4),
                ],
                vec![Send(vec![0, 8, 0, 0, 0, 3, 11, 0x81, 4])],
            ),
            (
                vec![Effect::Garbage {
                    bytes: 2,
                    then_answer: false,
                }],
                vec![Send(vec![0xc0, 0xc0])],
            ),
            (
                vec![Effect::Garbage {
                    bytes: 1,
                    then_answer: true,
                }],
                vec![Send([&[0xc0][..], &whole].concat())],
            ),
        ] {
            assert_eq!(script(Framing::Mbap, &effects).steps, steps, "{effects:?}");
        }
    }

    #[test]
    fn checksums_are_wrong_only_where_asked_for() {
        for (effects, right) in [
            (vec![], true),
            (vec![Effect::WrongUnit(1), Effect::WrongCount(1)], true),
            (vec![Effect::WrongByteCount(2)], true),
            (vec![Effect::BadCrc], false),
        ] {
            let steps = script(Framing::Rtu, &effects).steps;
            let [Step::Send(frame)] = &steps[..] else {
                panic!("{steps:?}")
            };
            assert_eq!(is_whole_rtu(frame), right, "{effects:?}");
        }
    }

    #[test]
    fn a_late_answer_is_whole_and_holds_nothing_up() {
        let late = Effect::Late {
            after: Some(MS),
            to: Recipient::Newest,
        };
        let script = script(Framing::Mbap, &[late, Effect::WrongUnit(1)]);
        assert_eq!(script.steps, []);
        assert_eq!(
            script.later,
            Some(Later {
                after: Some(MS),
                to: Recipient::Newest,
                bytes: vec![0, 7, 0, 0, 0, 7, 10, 3, 4, 1, 2, 3, 4],
            })
        );
    }

    #[test]
    fn where_nothing_would_be_answered_nothing_is() {
        let asked = Asked {
            transaction: 7,
            unit: 9,
            code: 3,
            read: Err(1),
        };
        let mut draft = Draft::new(Framing::Rtu, &asked, None);
        draft.meet(&Effect::Exception(2), &|_| 0.0);
        draft.meet(
            &Effect::Garbage {
                bytes: 2,
                then_answer: false,
            },
            &|_| 0.0,
        );
        assert!(draft.is_silent());
        assert_eq!(draft.finish(&|_| 0.0), Script::default());
    }
}
