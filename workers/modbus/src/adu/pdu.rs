//! The protocol data unit: a function code and what belongs to it, without unit id, id or checksum.
//!
//! Source of all layouts: Modbus Application Protocol V1.1b3, 4 and 6.1 to 6.4; every number is big-endian.
//! - A read is the function, the first address and the count, two bytes each.
//! - Its answer is the function, the number of bytes that follow, and the registers, or the bits from the
//!   least significant one of the first byte on, filled up to whole bytes.
//! - An exception is the function with its highest bit set, and a code.

use corrente_crds::profile::Function;

use super::{FrameError, is_bits, most};

/// The bit that makes a function code that of an exception.
const EXCEPTION: u8 = 0x80;

/// The function code that reads a table.
#[must_use]
pub const fn code(function: Function) -> u8 {
    match function {
        Function::Coil => 0x01,
        Function::Discrete => 0x02,
        Function::Holding => 0x03,
        Function::Input => 0x04,
    }
}

/// The table that a function code reads, if it is one of the four that read.
#[must_use]
pub const fn function(code: u8) -> Option<Function> {
    match code {
        0x01 => Some(Function::Coil),
        0x02 => Some(Function::Discrete),
        0x03 => Some(Function::Holding),
        0x04 => Some(Function::Input),
        _ => None,
    }
}

/// A read that no device may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAQuestion {
    /// Nothing, or more than one request can carry.
    #[error("a request reads 1 to {most} at once, not {count}")]
    Count {
        /// How many were asked for.
        count: u16,
        /// The most of this table.
        most: u16,
    },
    /// It goes on behind the last address.
    #[error("{count} from address {address} reach past the last address 65535")]
    BeyondAddressSpace {
        /// The first address.
        address: u16,
        /// How many were asked for.
        count: u16,
    },
}

/// What a client asks: so many registers or bits of one table. There is no question that writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    function: Function,
    address: u16,
    count: u16,
}

impl Question {
    /// The bytes of its protocol data unit.
    pub const SIZE: usize = 5;

    /// A question: 1 to 125 registers, or 1 to 2000 bits, none behind address 65535.
    ///
    /// # Errors
    /// Where it is not within these bounds.
    pub fn new(function: Function, address: u16, count: u16) -> Result<Self, NotAQuestion> {
        let most = most(function);
        if count == 0 || count > most {
            return Err(NotAQuestion::Count { count, most });
        }
        if u32::from(address) + u32::from(count) > 0x1_0000 {
            return Err(NotAQuestion::BeyondAddressSpace { address, count });
        }
        Ok(Self {
            function,
            address,
            count,
        })
    }

    /// The table.
    #[must_use]
    pub fn function(&self) -> Function {
        self.function
    }

    /// The first address.
    #[must_use]
    pub fn address(&self) -> u16 {
        self.address
    }

    /// How many registers or bits, at least 1.
    #[must_use]
    pub fn count(&self) -> u16 {
        self.count
    }

    /// The protocol data unit.
    #[must_use]
    pub fn bytes(&self) -> [u8; Self::SIZE] {
        let [address_high, address_low] = self.address.to_be_bytes();
        let [count_high, count_low] = self.count.to_be_bytes();
        [
            code(self.function),
            address_high,
            address_low,
            count_high,
            count_low,
        ]
    }

    /// The bytes of data in its answer: 1 to 250.
    #[must_use]
    pub fn byte_count(&self) -> u8 {
        let bytes = if is_bits(self.function) {
            self.count.div_ceil(8)
        } else {
            self.count * 2
        };
        // At most 250, by the bounds of a question.
        u8::try_from(bytes).unwrap_or(u8::MAX)
    }

    /// How long the answer's protocol data unit is that begins with these bytes; `None` while they are too
    /// few to say.
    ///
    /// # Errors
    /// Where they cannot become an answer to this question.
    pub fn reply_size(&self, pdu: &[u8]) -> Result<Option<usize>, FrameError> {
        let asked = code(self.function);
        match *pdu {
            [] => Ok(None),
            [came, ..] if came == asked | EXCEPTION => Ok(Some(2)),
            [came, ..] if came != asked => Err(FrameError::Function { asked, came }),
            [_] => Ok(None),
            [_, came, ..] => {
                let expected = self.byte_count();
                if came == expected {
                    Ok(Some(2 + usize::from(expected)))
                } else {
                    Err(FrameError::ByteCount { expected, came })
                }
            }
        }
    }

    /// The answer in a whole protocol data unit.
    ///
    /// # Errors
    /// Where it is none to this question.
    pub fn reply<'a>(&self, pdu: &'a [u8]) -> Result<Reply<'a>, FrameError> {
        // Without a byte count, what is missing is the byte count.
        let expected = self
            .reply_size(pdu)?
            .unwrap_or(2 + usize::from(self.byte_count()));
        if pdu.len() != expected {
            let came = pdu.len();
            return Err(FrameError::Size { expected, came });
        }
        Ok(match *pdu {
            [came, code] if came & EXCEPTION != 0 => Reply::Exception(code),
            [_, _, ref data @ ..] if is_bits(self.function) => Reply::Read(Block::Bits(BitView {
                bytes: data,
                count: usize::from(self.count),
            })),
            [_, _, ref data @ ..] => Reply::Read(Block::Registers(RegisterView { bytes: data })),
            // Every expected size is 2 or more.
            _ => return Err(FrameError::Size { expected, came: 0 }),
        })
    }
}

/// An answer, over the bytes that it came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// As many registers or bits as were asked for.
    Read(Block<'a>),
    /// An exception code.
    Exception(u8),
}

/// Registers or bits, over the bytes that they came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block<'a> {
    /// Holding or input registers.
    Registers(RegisterView<'a>),
    /// Coils or discrete inputs.
    Bits(BitView<'a>),
}

/// Registers, two bytes each, the more significant one first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegisterView<'a> {
    bytes: &'a [u8],
}

impl<'a> RegisterView<'a> {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len() / 2
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The register at `index`.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<u16> {
        let at = index.checked_mul(2)?;
        let pair = self.bytes.get(at..at.checked_add(2)?)?;
        Some(u16::from_be_bytes(pair.try_into().ok()?))
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = u16> + use<'a> {
        let (pairs, _) = self.bytes.as_chunks();
        pairs.iter().map(|pair| u16::from_be_bytes(*pair))
    }
}

/// Bits, packed from the least significant one of each byte on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitView<'a> {
    bytes: &'a [u8],
    count: usize,
}

impl<'a> BitView<'a> {
    /// How many there are, without those that fill up the last byte.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The bit at `index`.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<bool> {
        let byte = self.bytes.get(index / 8).filter(|_| index < self.count)?;
        Some(byte >> (index % 8) & 1 == 1)
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = bool> + use<'a> {
        let view = *self;
        (0..self.count).map(move |index| view.get(index).unwrap_or(false))
    }
}

/// What a server was asked, whatever it is: a function code and its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// The function code.
    pub function: u8,
    /// What follows it.
    pub data: &'a [u8],
}

impl<'a> Request<'a> {
    /// The request in a protocol data unit; `None` where that is empty.
    #[must_use]
    pub fn of(pdu: &'a [u8]) -> Option<Self> {
        let (&function, data) = pdu.split_first()?;
        Some(Self { function, data })
    }

    /// The read that it asks for.
    ///
    /// # Errors
    /// The exception code that a server without anything but reads answers it with: 01 for any other
    /// function, 02 for addresses that do not exist, 03 for a wrong count or wrong data.
    /// Source: Modbus Application Protocol V1.1b3, 6.1 to 6.4 (state diagrams) and 7.
    pub fn question(&self) -> Result<Question, u8> {
        let function = function(self.function).ok_or(0x01)?;
        let &[a, b, c, d] = self.data else {
            return Err(0x03);
        };
        let (address, count) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        Question::new(function, address, count).map_err(|error| match error {
            NotAQuestion::Count { .. } => 0x03,
            NotAQuestion::BeyondAddressSpace { .. } => 0x02,
        })
    }
}

/// Appends the answer of a server: registers. There must be 125 of them at most, or the byte count lies.
pub fn registers(function: Function, words: impl ExactSizeIterator<Item = u16>, out: &mut Vec<u8>) {
    let bytes = words.len().saturating_mul(2);
    out.extend([code(function), u8::try_from(bytes).unwrap_or(u8::MAX)]);
    out.extend(words.flat_map(u16::to_be_bytes));
}

/// Appends the answer of a server: bits. There must be 2000 of them at most, or the byte count lies.
pub fn bits(function: Function, bits: impl ExactSizeIterator<Item = bool>, out: &mut Vec<u8>) {
    let bytes = bits.len().div_ceil(8);
    out.extend([code(function), u8::try_from(bytes).unwrap_or(u8::MAX)]);
    for (index, bit) in bits.enumerate() {
        if index % 8 == 0 {
            out.push(0);
        }
        if let Some(last) = out.last_mut() {
            *last |= u8::from(bit) << (index % 8);
        }
    }
}

/// Appends the answer of a server: an exception to the function that was asked for.
pub fn exception(function: u8, code: u8, out: &mut Vec<u8>) {
    out.extend([function | EXCEPTION, code]);
}
