//! The frames of Modbus, without IO: bytes to questions and answers, and back.
//!
//! From the inside out:
//! 1. [`pdu`]: the protocol data unit, the same on every transport. What a client may ask is a
//!    [`Question`], which names one of the four functions that read: no value of that type writes.
//! 2. [`mbap`]: the frame of Modbus TCP, with a transaction id and a length.
//! 3. [`rtu`]: the frame of a serial line, with a checksum and no length at all.
//!
//! Decoding is incremental. Every decoder looks at the front of a buffer and gives `Ok(None)` while the frame
//! there is not whole; what can no longer become a right frame is an error as soon as the bytes show it, so
//! that a client need not wait for its timeout to learn it. An answer is a view of the buffer, so that nothing
//! is copied before the values are decoded.

use crate::map::{MAX_BITS, MAX_REGISTERS, is_bits};

pub mod mbap;
pub mod pdu;
pub mod rtu;

pub use pdu::{BitView, Block, NotAQuestion, Question, RegisterView, Reply, Request};

/// The longest protocol data unit. Source: Modbus Application Protocol V1.1b3, 4.1.
pub const MAX_PDU: usize = 253;

/// Why bytes are not the frame that was waited for. The numbers are as they came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The protocol id of a Modbus TCP frame is 0.
    #[error("what came is not Modbus: its protocol id is {0} instead of 0")]
    NotModbus(u16),
    /// The length of a Modbus TCP frame counts the unit id and the protocol data unit: 2 to 254.
    #[error("what came is not Modbus: it says that {0} bytes follow, and 2 to 254 can")]
    Length(u16),
    /// The answer belongs to another request.
    #[error(
        "the answer has transaction id {came} and the request had {asked}; the device or a gateway before it \
         does not echo the id, or answers late"
    )]
    Transaction {
        /// Of the request.
        asked: u16,
        /// Of the answer.
        came: u16,
    },
    /// The answer comes from another unit.
    #[error("the answer is from unit {came} instead of {asked}")]
    Unit {
        /// Of the request.
        asked: u8,
        /// Of the answer.
        came: u8,
    },
    /// The answer is to another function.
    #[error("the answer is to function {came:02X} instead of {asked:02X}")]
    Function {
        /// Of the request.
        asked: u8,
        /// Of the answer.
        came: u8,
    },
    /// The answer announces more or fewer bytes than were asked for.
    #[error("the answer holds {came} bytes of data instead of {expected}")]
    ByteCount {
        /// What the request asks for.
        expected: u8,
        /// What the answer says.
        came: u8,
    },
    /// The frame is longer or shorter than what its protocol data unit says.
    #[error("the frame is {came} bytes long instead of {expected}")]
    Size {
        /// By the protocol data unit.
        expected: usize,
        /// By the frame.
        came: usize,
    },
    /// The checksum of an RTU frame is wrong.
    #[error(
        "the checksum is wrong: {came:04X} instead of {computed:04X}; the line is disturbed, or two speak at once"
    )]
    Crc {
        /// Of the bytes that came.
        computed: u16,
        /// What came.
        came: u16,
    },
    /// The length of an RTU request follows from its function alone, and this function is not known.
    #[error("function {0:02X} is not known, so that nobody can say where its frame ends")]
    UnknownFunction(u8),
}

/// The most that one question may ask for. Source: Modbus Application Protocol V1.1b3, 6.1 to 6.4.
fn most(function: corrente_crds::profile::Function) -> u16 {
    if is_bits(function) {
        MAX_BITS
    } else {
        MAX_REGISTERS
    }
}
