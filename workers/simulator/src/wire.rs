//! Requests and answers as a server sees them, over the frame codecs of `corrente_modbus::adu`.
//!
//! A stream that cannot be followed ends, as it does with a device: over TCP when a header makes no sense. Over
//! RTU, what is no frame is passed over byte by byte, until there is one.

use corrente_crds::{poller::Transport, profile::Function};
use corrente_modbus::adu::{Question, Request, mbap, pdu, rtu};

/// How frames are put around requests and answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// A header with a transaction id and a length.
    Mbap,
    /// The unit, and a checksum at the end.
    Rtu,
}

impl From<Transport> for Framing {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::RtuOverTcp => Self::Rtu,
            Transport::Tcp | Transport::Tls => Self::Mbap,
        }
    }
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The transaction id; 0 where frames have none.
    pub transaction: u16,
    /// The unit.
    pub unit: u8,
    /// The function code.
    pub code: u8,
    /// What is to be read, or the exception that refuses it.
    pub read: Result<Question, u8>,
}

/// An answer without its frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The unit it is from.
    pub unit: u8,
    /// Function code and data.
    pub pdu: Vec<u8>,
}

/// A stream that cannot be followed any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what came is no Modbus request")]
pub struct NotModbus;

impl Framing {
    /// The first request in `bytes`, and how many bytes it took; `None` where more must come first.
    ///
    /// # Errors
    /// Where no request can follow any more.
    pub fn take(self, bytes: &[u8]) -> Result<(usize, Option<Asked>), NotModbus> {
        match self {
            Self::Mbap => match mbap::decode(bytes) {
                Ok(None) => Ok((0, None)),
                Ok(Some((frame, length))) => Ok((length, asked(frame.transaction, frame.unit, frame.pdu))),
                Err(_) => Err(NotModbus),
            },
            Self::Rtu => Ok(take_rtu(bytes)),
        }
    }

    /// Puts an answer into a frame at the end of `out`.
    pub fn put(self, transaction: u16, answer: &Answer, out: &mut Vec<u8>) {
        let pdu = |out: &mut Vec<u8>| out.extend(&answer.pdu);
        match self {
            Self::Mbap => mbap::answer(out, transaction, answer.unit, pdu),
            Self::Rtu => rtu::answer(out, answer.unit, pdu),
        }
    }
}

fn take_rtu(bytes: &[u8]) -> (usize, Option<Asked>) {
    let mut passed = 0;
    while let Some(rest) = bytes.get(passed..) {
        match rtu::decode_request(rest) {
            Ok(None) => break,
            Ok(Some((frame, length))) => return (passed + length, asked(0, frame.unit, frame.pdu)),
            Err(_) => passed += 1,
        }
    }
    (passed, None)
}

fn asked(transaction: u16, unit: u8, pdu: &[u8]) -> Option<Asked> {
    let request = Request::of(pdu)?;
    Some(Asked {
        transaction,
        unit,
        code: request.function,
        read: request.question(),
    })
}

impl Answer {
    /// An exception.
    #[must_use]
    pub fn exception(asked: &Asked, exception: u8) -> Self {
        let mut pdu = Vec::with_capacity(2);
        pdu::exception(asked.code, exception, &mut pdu);
        Self {
            unit: asked.unit,
            pdu,
        }
    }

    /// The registers of a read, or its bits as words of 0 and 1.
    #[must_use]
    pub fn values(asked: &Asked, function: Function, words: &[u16]) -> Self {
        let mut pdu = Vec::with_capacity(2 + 2 * words.len());
        match function {
            Function::Coil | Function::Discrete => {
                pdu::bits(function, words.iter().map(|word| *word != 0), &mut pdu);
            }
            Function::Holding | Function::Input => {
                pdu::registers(function, words.iter().copied(), &mut pdu);
            }
        }
        Self {
            unit: asked.unit,
            pdu,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rtu(frame: &[u8]) -> Vec<u8> {
        [frame, &rtu::crc(frame).to_le_bytes()].concat()
    }

    fn read(transaction: u16, unit: u8, function: Function, address: u16, count: u16) -> Option<Asked> {
        Some(Asked {
            transaction,
            unit,
            code: pdu::code(function),
            read: Ok(Question::new(function, address, count).unwrap()),
        })
    }

    #[test]
    fn requests_are_taken_off_the_stream() {
        let other = |transaction, code, refused| {
            Some(Asked {
                transaction,
                unit: 1,
                code,
                read: Err(refused),
            })
        };
        let write = [0, 7, 0, 0, 0, 6, 1, 6, 0, 1, 0, 2];
        for (bytes, taken) in [
            (
                &[0, 7, 0, 0, 0, 6, 9, 3, 1, 0, 0, 5][..],
                Ok((12, read(7, 9, Function::Holding, 256, 5))),
            ),
            (&[0, 7, 0, 0, 0, 6, 9, 3, 1, 0, 0], Ok((0, None))),
            (&[0, 7, 0], Ok((0, None))),
            (&write, Ok((12, other(7, 6, 1)))),
            // A read that is too short is refused as one.
            (&[0, 7, 0, 0, 0, 4, 1, 3, 0, 1], Ok((10, other(7, 3, 3)))),
            (&[0, 7, 0, 1, 0, 6, 9, 3, 1, 0, 0, 5], Err(NotModbus)),
            (&[0, 7, 0, 0, 0, 1, 9, 3], Err(NotModbus)),
            (&[0, 7, 0, 0, 1, 0, 9, 3], Err(NotModbus)),
        ] {
            assert_eq!(Framing::Mbap.take(bytes), taken, "{bytes:?}");
        }
        let one = rtu(&[9, 4, 1, 0, 0, 5]);
        let write = rtu(&[1, 16, 0, 1, 0, 1, 2, 0, 9]);
        let noise = [&[0xff, 9][..], &one].concat();
        for (bytes, taken) in [
            (&one[..], (8, read(0, 9, Function::Input, 256, 5))),
            (&one[..7], (0, None)),
            (&[1], (0, None)),
            (&write, (11, other(0, 16, 1))),
            (&write[..6], (0, None)),
            (&noise, (10, read(0, 9, Function::Input, 256, 5))),
        ] {
            assert_eq!(Framing::Rtu.take(bytes), Ok(taken), "{bytes:?}");
        }
    }

    #[test]
    fn answers_are_put_into_frames() {
        let asked = read(0x0102, 9, Function::Holding, 0, 2).unwrap();
        let answer = Answer::values(&asked, Function::Holding, &[1, 0x0203]);
        let mut out = Vec::new();
        Framing::Mbap.put(0x0102, &answer, &mut out);
        assert_eq!(out, [1, 2, 0, 0, 0, 7, 9, 3, 4, 0, 1, 2, 3]);
        out.clear();
        Framing::Rtu.put(0, &answer, &mut out);
        assert_eq!(out, rtu(&[9, 3, 4, 0, 1, 2, 3]));
        let bits = read(0, 9, Function::Coil, 0, 10).unwrap();
        let answer = Answer::values(&bits, Function::Coil, &[1, 0, 1, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(answer.pdu, [1, 2, 0b101, 0b10]);
        assert_eq!(Answer::exception(&asked, 11).pdu, [0x83, 11]);
    }
}
