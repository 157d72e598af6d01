//! The Modbus client: one connection, reads only, one request at a time or a window of them.
//!
//! [`ModbusClient`] reads, and its requests name a table and so one of the four read functions (0x01 to 0x04):
//! there is no way to say "write" to it. The frames are those of [`corrente_modbus::adu`].
//!
//! - `window` (without IO): what is outstanding, and which answer belongs to what.
//! - `stream`: the client itself: it writes questions, waits for answers, and knows when not to believe them.
//! - `tcp`: makes connections.
//! - [`tls`]: the certificates of Modbus/TCP Security, and what to say when they do not fit.
//!
//! A client whose request failed with anything but an exception is spent: the caller drops it and connects
//! anew, so that a late answer can never be taken for the answer to a later question. That is a matter of
//! correctness, not of tidiness: RTU frames carry no transaction id, and an answer that comes late has the
//! unit, the function and often the length of the one that is waited for. For the same reason a client looks
//! before each request whether something lies unread in the socket, and refuses to ask if it does. The look
//! also finds a connection that the other side has closed while it was idle, before a request is lost to it.

use std::{fmt, future::Future, time::Duration};

use corrente_crds::profile::Function;
use corrente_modbus::Answer;

mod stream;
mod tcp;
pub mod tls;
mod window;

pub use stream::TcpClient;
pub use tcp::TcpConnector;

/// One read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadBlock {
    /// The unit that is asked.
    pub unit: u8,
    /// The table, which fixes the function code.
    pub function: Function,
    /// The first address.
    pub address: u16,
    /// How many registers or bits.
    pub count: u16,
}

/// What a read was answered with: exactly as many as were asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Registers {
    /// Holding or input registers.
    Words(Vec<u16>),
    /// Coils or discrete inputs.
    Bits(Vec<bool>),
}

impl Registers {
    /// The same, as decoding wants it.
    #[must_use]
    pub fn answer(&self) -> Answer<'_> {
        match self {
            Self::Words(words) => Answer::Words(words),
            Self::Bits(bits) => Answer::Bits(bits),
        }
    }
}

/// An exception code and what it is called.
/// Source: Modbus Application Protocol V1.1b3, 7 ("MODBUS Exception Responses").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception(pub u8);

impl Exception {
    /// The block holds a register that cannot be read, or not in this combination: 02 and 03.
    #[must_use]
    pub fn is_about_registers(self) -> bool {
        matches!(self.0, 2 | 3)
    }

    /// There is nothing to read at this place: 01, 02 and 03. Any other exception says nothing about what is
    /// there.
    #[must_use]
    pub fn says_not_here(self) -> bool {
        matches!(self.0, 1..=3)
    }

    /// The unit is busy and wants to be asked again: 06.
    #[must_use]
    pub fn is_busy(self) -> bool {
        self.0 == 6
    }

    /// A gateway says that it does not reach the unit, or that the unit does not answer it: 0A and 0B.
    #[must_use]
    pub fn is_from_gateway(self) -> bool {
        matches!(self.0, 0x0a | 0x0b)
    }
}

impl fmt::Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let meaning = match self.0 {
            0x01 => "illegal function",
            0x02 => "illegal data address",
            0x03 => "illegal data value",
            0x04 => "server device failure",
            0x05 => "acknowledge",
            0x06 => "server device busy",
            0x08 => "memory parity error",
            0x0a => "gateway path unavailable",
            0x0b => "gateway target device failed to respond",
            _ => "not a standard exception",
        };
        write!(f, "exception {:02X}: {meaning}", self.0)
    }
}

/// Why a read gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The unit answered with an exception. The connection is as good as before.
    #[error("{0}")]
    Exception(Exception),
    /// No answer in time. The client is spent.
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The connection broke, or what came was no answer to what was asked. The client is spent.
    #[error("{0}")]
    Connection(String),
}

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no connection to {address}: {reason}")]
pub struct ConnectError {
    /// Where to.
    pub address: String,
    /// Why not.
    pub reason: String,
}

/// Takes what became of a block, by its place in the list that was asked for.
pub type OnRead<'a> = dyn FnMut(usize, Result<Registers, ReadError>) + Send + 'a;

/// A connection to a Modbus server. It can read, and nothing else.
pub trait ModbusClient: Send {
    /// Reads blocks, as many at a time as the connection was made for, and calls `on` with what became of each
    /// as it comes, in any order. Each block has the whole timeout from the moment that it is asked for.
    ///
    /// An exception is reported, and the others go on. At the first thing that spends the client, that is
    /// reported of the block it befell, or of the one that was asked for first where that cannot be said; what
    /// became of the others is not known then, `on` is not called for them, and this returns.
    fn read_many(&mut self, blocks: &[ReadBlock], on: &mut OnRead<'_>) -> impl Future<Output = ()> + Send;

    /// Reads a block.
    ///
    /// # Errors
    /// Where nothing is read. After anything but an exception the client must be dropped.
    fn read(&mut self, block: ReadBlock) -> impl Future<Output = Result<Registers, ReadError>> + Send {
        async move {
            let mut result = None;
            self.read_many(&[block], &mut |_, read| result = Some(read)).await;
            result.unwrap_or_else(|| Err(ReadError::Connection("there was no answer".to_owned())))
        }
    }

    /// Whether the connection should be made anew before the next request, though nothing is wrong with it:
    /// its certificate has been replaced.
    fn is_outdated(&self) -> bool {
        false
    }
}

/// Makes connections to one server.
pub trait Connector: Send + Sync {
    /// What it makes.
    type Client: ModbusClient;

    /// Connects. `after_timeout` says that the connection before this one was dropped with an answer
    /// outstanding, which may still come.
    ///
    /// # Errors
    /// Where there is no connection.
    fn connect(&self, after_timeout: bool)
    -> impl Future<Output = Result<Self::Client, ConnectError>> + Send;
}
