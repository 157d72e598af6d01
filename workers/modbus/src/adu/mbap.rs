//! The frame of Modbus TCP: a header of seven bytes before the protocol data unit.
//!
//! The header is the transaction id, the protocol id 0, the number of bytes that follow, and the unit id; each
//! but the last is two bytes long. Source: Modbus Messaging on TCP/IP Implementation Guide V1.0b, 3.1.3.

use super::{FrameError, MAX_PDU, Question, Reply};

/// The bytes before the protocol data unit.
pub const HEADER: usize = 7;
/// The bytes of a read request.
pub const REQUEST: usize = HEADER + Question::SIZE;
/// The longest frame. Source: Modbus Application Protocol V1.1b3, 4.1.
pub const MAX_FRAME: usize = HEADER + MAX_PDU;

/// A whole frame, over the bytes that it came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What ties an answer to its request.
    pub transaction: u16,
    /// The unit behind the address.
    pub unit: u8,
    /// The protocol data unit, of 1 to 253 bytes.
    pub pdu: &'a [u8],
}

/// The frame at the front of `buffer`, and how many bytes it takes up; `None` while it is not whole.
///
/// # Errors
/// Where the bytes cannot become a frame. There is no way to find the next one then.
pub fn decode(buffer: &[u8]) -> Result<Option<(Frame<'_>, usize)>, FrameError> {
    let number = |at: usize| {
        let pair = buffer.get(at..at + 2)?;
        Some(u16::from_be_bytes(pair.try_into().ok()?))
    };
    if let Some(protocol) = number(2)
        && protocol != 0
    {
        return Err(FrameError::NotModbus(protocol));
    }
    let (Some(transaction), Some(length)) = (number(0), number(4)) else {
        return Ok(None);
    };
    // The unit id and at least a function code.
    let end = 6 + usize::from(length);
    if length < 2 || end > MAX_FRAME {
        return Err(FrameError::Length(length));
    }
    let (Some(&unit), Some(pdu)) = (buffer.get(6), buffer.get(HEADER..end)) else {
        return Ok(None);
    };
    let frame = Frame {
        transaction,
        unit,
        pdu,
    };
    Ok(Some((frame, end)))
}

/// The frame of a client's question.
#[must_use]
pub fn request(transaction: u16, unit: u8, question: &Question) -> [u8; REQUEST] {
    let [high, low] = transaction.to_be_bytes();
    let [function, a, b, c, d] = question.bytes();
    // The unit id and the protocol data unit, which is 6 in the lower byte of the length.
    [high, low, 0, 0, 0, 6, unit, function, a, b, c, d]
}

impl<'a> Frame<'a> {
    /// The answer to a question in this frame. Whether the transaction is the question's own is for the
    /// caller to say, since only it knows which ones are outstanding; see [`Frame::belongs_to`].
    ///
    /// # Errors
    /// Where it is from another unit, or no answer to the question.
    pub fn reply(&self, unit: u8, question: &Question) -> Result<Reply<'a>, FrameError> {
        if self.unit != unit {
            let (asked, came) = (unit, self.unit);
            return Err(FrameError::Unit { asked, came });
        }
        question.reply(self.pdu)
    }

    /// Checks that the frame has the transaction id of a request.
    ///
    /// # Errors
    /// Where it has another.
    pub fn belongs_to(&self, transaction: u16) -> Result<(), FrameError> {
        if self.transaction == transaction {
            return Ok(());
        }
        let (asked, came) = (transaction, self.transaction);
        Err(FrameError::Transaction { asked, came })
    }
}

/// Appends the frame of a server's answer, whose protocol data unit `pdu` appends; it must be at most
/// [`MAX_PDU`] bytes long, or the length lies.
pub fn answer(out: &mut Vec<u8>, transaction: u16, unit: u8, pdu: impl FnOnce(&mut Vec<u8>)) {
    out.extend(transaction.to_be_bytes());
    out.extend([0, 0]);
    let length = out.len();
    out.extend([0, 0, unit]);
    let start = out.len();
    pdu(out);
    let follow = u16::try_from(out.len() - start + 1).unwrap_or(u16::MAX);
    if let Some(place) = out.get_mut(length..length + 2) {
        place.copy_from_slice(&follow.to_be_bytes());
    }
}
