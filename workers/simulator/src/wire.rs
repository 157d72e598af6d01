//! Frames as a server sees them: requests are taken off a stream of bytes, answers are put into frames.
//!
//! Of requests only as much is understood as answering needs: the four reads in full, of everything else the
//! function code, which is refused. A stream that cannot be followed ends, as it does with a device: over TCP
//! when a header makes no sense. Over RTU a frame whose checksum is wrong is passed over, a byte at a time,
//! until one fits.
//!
//! Sources: MODBUS Messaging on TCP/IP Implementation Guide V1.0b, 3.1.3 (the header); MODBUS over Serial Line
//! V1.02, 2.5.1 and 6.2.2 (RTU frames and their checksum); MODBUS Application Protocol V1.1b3, 4.1 (lengths).

use corrente_crds::{poller::Transport, profile::Function};

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
            _ => Self::Mbap,
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
    /// What is to be read; `None` where the request is no read.
    pub read: Option<Read>,
}

/// What a read asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// The table.
    pub function: Function,
    /// The first address.
    pub address: u16,
    /// How many registers or bits.
    pub count: u16,
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

/// The longest request or answer, function code included. Source: Application Protocol, 4.1.
const LONGEST_PDU: usize = 253;

/// The function code of a table's read.
#[must_use]
pub fn code(function: Function) -> u8 {
    match function {
        Function::Coil => 1,
        Function::Discrete => 2,
        Function::Holding => 3,
        Function::Input => 4,
    }
}

impl Framing {
    /// The first request in `bytes`, and how many bytes it took; `None` where more must come first.
    ///
    /// # Errors
    /// Where no request can follow any more.
    pub fn take(self, bytes: &[u8]) -> Result<(usize, Option<Asked>), NotModbus> {
        match self {
            Self::Mbap => take_mbap(bytes),
            Self::Rtu => Ok(take_rtu(bytes)),
        }
    }

    /// Puts an answer into a frame at the end of `out`.
    pub fn put(self, transaction: u16, answer: &Answer, out: &mut Vec<u8>) {
        match self {
            Self::Mbap => {
                out.extend(transaction.to_be_bytes());
                out.extend([0, 0]);
                let length = u16::try_from(answer.pdu.len() + 1).unwrap_or(u16::MAX);
                out.extend(length.to_be_bytes());
                out.push(answer.unit);
                out.extend(&answer.pdu);
            }
            Self::Rtu => {
                let start = out.len();
                out.push(answer.unit);
                out.extend(&answer.pdu);
                let checksum = crc(out.get(start..).unwrap_or_default());
                out.extend(checksum);
            }
        }
    }
}

fn take_mbap(bytes: &[u8]) -> Result<(usize, Option<Asked>), NotModbus> {
    let Some(&[t1, t2, p1, p2, l1, l2]) = bytes.first_chunk() else {
        return Ok((0, None));
    };
    let length = usize::from(u16::from_be_bytes([l1, l2]));
    if [p1, p2] != [0, 0] || !(2..=LONGEST_PDU + 1).contains(&length) {
        return Err(NotModbus);
    }
    let Some([unit, pdu @ ..]) = bytes.get(6..6 + length) else {
        return Ok((0, None));
    };
    let transaction = u16::from_be_bytes([t1, t2]);
    Ok((6 + length, asked(transaction, *unit, pdu)))
}

fn take_rtu(bytes: &[u8]) -> (usize, Option<Asked>) {
    let mut passed = 0;
    while let Some(rest @ [unit, code, ..]) = bytes.get(passed..) {
        // Writes of several registers say how long they are; what is unknown is passed over byte by byte.
        let length = match (code, rest.get(6)) {
            (1..=6 | 8, _) => 8,
            (7 | 11 | 12 | 17, _) => 4,
            (15 | 16, Some(count)) => 9 + usize::from(*count),
            (15 | 16, None) => return (passed, None),
            (22, _) => 10,
            _ => 2,
        };
        match rest.get(..length) {
            None => return (passed, None),
            Some(frame) if length > 2 && crc(&frame[..length - 2]) == frame[length - 2..] => {
                let pdu = frame.get(1..length - 2).unwrap_or_default();
                return (passed + length, asked(0, *unit, pdu));
            }
            Some(_) => passed += 1,
        }
    }
    (passed, None)
}

fn asked(transaction: u16, unit: u8, pdu: &[u8]) -> Option<Asked> {
    let code = *pdu.first()?;
    let function = match code {
        1 => Some(Function::Coil),
        2 => Some(Function::Discrete),
        3 => Some(Function::Holding),
        4 => Some(Function::Input),
        _ => None,
    };
    let read = match (function, pdu) {
        (Some(function), &[_, a1, a2, c1, c2]) => Some(Read {
            function,
            address: u16::from_be_bytes([a1, a2]),
            count: u16::from_be_bytes([c1, c2]),
        }),
        _ => None,
    };
    Some(Asked {
        transaction,
        unit,
        code,
        read,
    })
}

impl Answer {
    /// An exception.
    #[must_use]
    pub fn exception(asked: &Asked, exception: u8) -> Self {
        Self {
            unit: asked.unit,
            pdu: vec![asked.code | 0x80, exception],
        }
    }

    /// The registers of a read, or its bits as words of 0 and 1.
    #[must_use]
    pub fn values(asked: &Asked, function: Function, words: &[u16]) -> Self {
        let data: Vec<u8> = match function {
            Function::Coil | Function::Discrete => words
                .chunks(8)
                .map(|bits| {
                    let bit = |(at, word): (usize, &u16)| u8::from(*word != 0) << at;
                    bits.iter().enumerate().map(bit).sum()
                })
                .collect(),
            Function::Holding | Function::Input => words.iter().flat_map(|word| word.to_be_bytes()).collect(),
        };
        let mut pdu = Vec::with_capacity(2 + data.len());
        pdu.push(asked.code);
        pdu.push(u8::try_from(data.len()).unwrap_or(u8::MAX));
        pdu.extend(data);
        Self {
            unit: asked.unit,
            pdu,
        }
    }
}

/// The checksum of an RTU frame, low byte first.
#[must_use]
pub fn crc(frame: &[u8]) -> [u8; 2] {
    let mut crc = 0xffff_u16;
    for byte in frame {
        crc ^= u16::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xa001 } else { crc >> 1 };
        }
    }
    crc.to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rtu(frame: &[u8]) -> Vec<u8> {
        [frame, &crc(frame)].concat()
    }

    fn read(transaction: u16, unit: u8, function: Function, address: u16, count: u16) -> Option<Asked> {
        Some(Asked {
            transaction,
            unit,
            code: code(function),
            read: Some(Read {
                function,
                address,
                count,
            }),
        })
    }

    #[test]
    fn requests_are_taken_off_the_stream() {
        let other = |transaction, code| {
            Some(Asked {
                transaction,
                unit: 1,
                code,
                read: None,
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
            (&write, Ok((12, other(7, 6)))),
            // A read that is too short is no read, but still a request.
            (&[0, 7, 0, 0, 0, 4, 1, 3, 0, 1], Ok((10, other(7, 3)))),
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
            (&write, (11, other(0, 16))),
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

    #[test]
    fn the_checksum_is_the_specifications() {
        // The example of MODBUS over Serial Line V1.02, 6.2.2: the frame 02 07 has the CRC 1241, low byte first.
        assert_eq!(crc(&[2, 7]), [0x41, 0x12]);
    }
}
