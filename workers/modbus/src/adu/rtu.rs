//! The frame of a serial line, which some gateways carry over TCP as it is: the unit id, the protocol data
//! unit, and a checksum, the less significant byte first. Source: Modbus over Serial Line V1.02, 2.3 and 2.5.1.
//!
//! On the line a frame ends with silence, which TCP does not carry. So the end is computed: of an answer from
//! the question that it answers, of a request from its function code. There is no transaction id either: an
//! answer is recognised by its unit, function and length alone, which is why a client asks one at a time and
//! never reads on after a timeout.

use super::{FrameError, MAX_PDU, Question, Reply};

/// The bytes of a read request.
pub const REQUEST: usize = 1 + Question::SIZE + CRC;
/// The longest frame.
pub const MAX_FRAME: usize = 1 + MAX_PDU + CRC;
/// The bytes of the checksum.
const CRC: usize = 2;
/// The most stray bytes before an answer that are passed over.
const STRAY: usize = 4;

/// The checksum of a frame: the reflected CRC-16 with the polynomial 0x8005, begun with 0xFFFF.
/// Source: Modbus over Serial Line V1.02, 6.2.2.
#[must_use]
pub fn crc(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0xffff, |crc: u16, byte| {
        let [_, low] = (crc ^ u16::from(*byte)).to_be_bytes();
        crc >> 8 ^ TABLE.get(usize::from(low)).copied().unwrap_or(0)
    })
}

/// What each value of a byte does to the checksum.
const TABLE: [u16; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u16;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xa001 } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

/// The frame of a client's question.
#[must_use]
pub fn request(unit: u8, question: &Question) -> [u8; REQUEST] {
    let [function, a, b, c, d] = question.bytes();
    let frame = [unit, function, a, b, c, d];
    let [low, high] = crc(&frame).to_le_bytes();
    [unit, function, a, b, c, d, low, high]
}

/// The answer at the front of `buffer` to a question, and how many bytes it takes up; `None` while it is not
/// whole.
///
/// A few bytes 00 or FF before it are passed over: a line without bias resistors gives them when its driver is
/// switched, and no serial unit has these addresses (00 is the broadcast, which is never answered).
///
/// # Errors
/// Where the bytes cannot become an answer to this question.
pub fn reply<'a>(
    buffer: &'a [u8],
    unit: u8,
    question: &Question,
) -> Result<Option<(Reply<'a>, usize)>, FrameError> {
    let stray = buffer
        .iter()
        .take(STRAY)
        .take_while(|byte| matches!(byte, 0x00 | 0xff) && **byte != unit)
        .count();
    let frame = buffer.get(stray..).unwrap_or_default();
    let Some((&came, pdu)) = frame.split_first() else {
        return Ok(None);
    };
    if came != unit {
        return Err(FrameError::Unit { asked: unit, came });
    }
    let Some(size) = question.reply_size(pdu)? else {
        return Ok(None);
    };
    match whole(frame, 1 + size)? {
        Some(pdu) => Ok(Some((question.reply(pdu)?, stray + 1 + size + CRC))),
        None => Ok(None),
    }
}

/// A whole request, over the bytes that it came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The unit on the line.
    pub unit: u8,
    /// The protocol data unit, of 1 to 253 bytes.
    pub pdu: &'a [u8],
}

/// The request at the front of `buffer`, and how many bytes it takes up; `None` while it is not whole.
///
/// # Errors
/// Where the checksum is wrong, the frame would be too long, or the function is not one whose length the
/// specification fixes.
pub fn decode_request(buffer: &[u8]) -> Result<Option<(Frame<'_>, usize)>, FrameError> {
    let &[unit, function, ..] = buffer else {
        return Ok(None);
    };
    let Some(size) = request_size(function, buffer)? else {
        return Ok(None);
    };
    if 1 + size + CRC > MAX_FRAME {
        let (expected, came) = (MAX_FRAME, 1 + size + CRC);
        return Err(FrameError::Size { expected, came });
    }
    Ok(whole(buffer, 1 + size)?.map(|pdu| (Frame { unit, pdu }, 1 + size + CRC)))
}

/// The bytes of the protocol data unit of a request; `None` while too little has come to say.
/// Source: Modbus Application Protocol V1.1b3, 6.
fn request_size(function: u8, frame: &[u8]) -> Result<Option<usize>, FrameError> {
    let counted = |at: usize| Ok(frame.get(at).map(|count| at + usize::from(*count)));
    match function {
        // Function, two numbers of two bytes.
        0x01..=0x06 | 0x08 => Ok(Some(5)),
        0x07 | 0x0b | 0x0c | 0x11 => Ok(Some(1)),
        // Function, address, count, and a count of bytes.
        0x0f | 0x10 => counted(6),
        0x14 | 0x15 => counted(2),
        0x16 => Ok(Some(7)),
        // Function, two pairs of address and count, and a count of bytes.
        0x17 => counted(10),
        0x18 => Ok(Some(3)),
        // Read device identification, the only one of the encapsulated requests with a fixed length.
        0x2b => match frame.get(2) {
            None => Ok(None),
            Some(0x0e) => Ok(Some(4)),
            Some(_) => Err(FrameError::UnknownFunction(function)),
        },
        _ => Err(FrameError::UnknownFunction(function)),
    }
}

/// The protocol data unit of the frame whose checksum begins at `end`; `None` while it is not whole.
fn whole(frame: &[u8], end: usize) -> Result<Option<&[u8]>, FrameError> {
    let (Some(body), Some(&[low, high])) = (frame.get(..end), frame.get(end..end + CRC)) else {
        return Ok(None);
    };
    let (computed, came) = (crc(body), u16::from_le_bytes([low, high]));
    if computed != came {
        return Err(FrameError::Crc { computed, came });
    }
    Ok(body.get(1..))
}

/// Appends the frame of a server's answer, whose protocol data unit `pdu` appends.
pub fn answer(out: &mut Vec<u8>, unit: u8, pdu: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.push(unit);
    pdu(out);
    let crc = crc(out.get(start..).unwrap_or_default());
    out.extend(crc.to_le_bytes());
}
