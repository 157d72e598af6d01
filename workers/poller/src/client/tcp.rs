//! The client over TCP, for Modbus TCP and for RTU frames over TCP: tokio-modbus, and around it what a library
//! cannot know: how long to wait, and when not to believe.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use corrente_config::EndpointAddress;
use corrente_crds::{poller::Transport, profile::Function};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use tokio_modbus::{
    ExceptionCode, Request, Response, Slave,
    client::{Client as _, rtu, tcp},
    slave::SlaveContext as _,
};

use super::{ConnectError, Connector, Exception, ModbusClient, ReadBlock, ReadError, Registers};

/// The longest that a fresh connection is listened to after a timeout, on a line without transaction ids.
const MAX_QUIET: Duration = Duration::from_secs(1);

/// Connects over TCP, for Modbus TCP and for RTU frames over TCP.
#[derive(Clone, Debug)]
pub struct TcpConnector {
    address: String,
    transport: Transport,
    timeout: Duration,
}

impl TcpConnector {
    /// Connections to `address`. `timeout` bounds the connecting and each request.
    #[must_use]
    pub fn new(address: &EndpointAddress, transport: Transport, timeout: Duration) -> Self {
        Self {
            address: address.to_string(),
            transport,
            timeout,
        }
    }
}

impl Connector for TcpConnector {
    type Client = TcpClient;

    async fn connect(&self, after_timeout: bool) -> Result<TcpClient, ConnectError> {
        let fail = |reason: String| ConnectError {
            address: self.address.clone(),
            reason,
        };
        if self.transport == Transport::Tls {
            return Err(fail("transport tls is not spoken by this version".to_owned()));
        }
        let stream = match timeout(self.timeout, TcpStream::connect(&self.address)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(fail(short(&error))),
            Err(_) => return Err(fail(format!("nothing within {} ms", self.timeout.as_millis()))),
        };
        stream.set_nodelay(true).map_err(|error| fail(short(&error)))?;
        let socket = Arc::new(stream);
        if after_timeout && self.transport == Transport::RtuOverTcp {
            // A serial server may deliver the late answer to whoever is connected when it comes.
            listen_and_discard(&socket, self.timeout.min(MAX_QUIET))
                .await
                .map_err(|error| fail(short(&error)))?;
        }
        let slave = Slave(0);
        let context = match self.transport {
            Transport::Tcp | Transport::Tls => tcp::attach_slave(Shared(socket.clone()), slave),
            Transport::RtuOverTcp => rtu::attach_slave(Shared(socket.clone()), slave),
        };
        Ok(TcpClient {
            context,
            socket,
            timeout: self.timeout,
        })
    }
}

/// Reads and drops whatever comes within `quiet`.
async fn listen_and_discard(socket: &TcpStream, quiet: Duration) -> io::Result<()> {
    let mut buffer = [0; 512];
    let discard = async {
        loop {
            socket.readable().await?;
            match socket.try_read(&mut buffer) {
                Ok(0) => return Err(closed()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    };
    timeout(quiet, discard).await.unwrap_or(Ok(()))
}

/// The client over TCP.
pub struct TcpClient {
    context: tokio_modbus::client::Context,
    socket: Arc<TcpStream>,
    timeout: Duration,
}

impl TcpClient {
    /// Waits until something can be read, or the other side has closed the connection.
    pub async fn readable(&self) {
        // An error shows itself when it is read.
        let _ = self.socket.readable().await;
    }

    /// Fails where something lies unread in the socket, or the other side has closed it.
    fn look(&self) -> Result<(), ReadError> {
        let mut buffer = [0; 64];
        match self.socket.try_read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(ReadError::Connection(short(&error))),
            Ok(0) => Err(ReadError::Connection(short(&closed()))),
            Ok(_) => Err(ReadError::Connection(
                "bytes came that nobody asked for; the connection is made anew".to_owned(),
            )),
        }
    }
}

impl ModbusClient for TcpClient {
    async fn read(&mut self, block: ReadBlock) -> Result<Registers, ReadError> {
        self.look()?;
        let (address, count) = (block.address, block.count);
        let request = match block.function {
            Function::Coil => Request::ReadCoils(address, count),
            Function::Discrete => Request::ReadDiscreteInputs(address, count),
            Function::Holding => Request::ReadHoldingRegisters(address, count),
            Function::Input => Request::ReadInputRegisters(address, count),
        };
        self.context.set_slave(Slave(block.unit));
        // The general call rather than the reading methods: those take the length of the answer on trust.
        match timeout(self.timeout, self.context.call(request)).await {
            Err(_) => Err(ReadError::Timeout(self.timeout)),
            Ok(Err(error)) => Err(ReadError::Connection(broken(&error))),
            Ok(Ok(Err(exception))) => Err(ReadError::Exception(code(exception))),
            Ok(Ok(Ok(response))) => registers(block, response),
        }
    }
}

/// The answer, if it is one to this request and of the right length.
fn registers(block: ReadBlock, response: Response) -> Result<Registers, ReadError> {
    let count = usize::from(block.count);
    let wrong =
        |came: usize| ReadError::Connection(format!("the answer holds {came} registers instead of {count}"));
    match (block.function, response) {
        (Function::Holding, Response::ReadHoldingRegisters(words))
        | (Function::Input, Response::ReadInputRegisters(words)) => {
            if words.len() == count {
                Ok(Registers::Words(words))
            } else {
                Err(wrong(words.len()))
            }
        }
        (Function::Coil, Response::ReadCoils(mut bits))
        | (Function::Discrete, Response::ReadDiscreteInputs(mut bits)) => {
            // Bits come in whole bytes; those behind the last one asked for are padding.
            if bits.len() == count.next_multiple_of(8) {
                bits.truncate(count);
                Ok(Registers::Bits(bits))
            } else {
                Err(wrong(bits.len()))
            }
        }
        _ => Err(ReadError::Connection(
            "the answer is to another function than the one asked for".to_owned(),
        )),
    }
}

fn code(exception: ExceptionCode) -> Exception {
    Exception(exception.into())
}

/// What broke, in a few words: the library's own messages carry whole frames.
fn broken(error: &tokio_modbus::Error) -> String {
    use tokio_modbus::{Error, ProtocolError};
    match error {
        Error::Transport(error) => short(error),
        Error::Protocol(ProtocolError::HeaderMismatch { .. }) => {
            "the answer is from another unit, or to another request, than the one asked".to_owned()
        }
        Error::Protocol(ProtocolError::FunctionCodeMismatch { .. }) => {
            "the answer is to another function than the one asked for".to_owned()
        }
    }
}

/// An IO error in a few words. At the end of a connection the library reports whatever error the operating
/// system had last, so the kind says nothing more than that the connection is gone.
fn short(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::InvalidData => "what came is not a Modbus answer".to_owned(),
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionAborted => "the other side closed the connection".to_owned(),
        _ if error.raw_os_error().is_some_and(is_progress) => {
            "the other side closed the connection".to_owned()
        }
        _ => {
            let text = error.to_string();
            text.chars().take(100).collect()
        }
    }
}

/// Success, "try again" and "in progress": errors that are none, left over from an earlier call.
fn is_progress(errno: i32) -> bool {
    matches!(errno, 0 | 11 | 115)
}

fn closed() -> io::Error {
    io::ErrorKind::UnexpectedEof.into()
}

/// A socket that the Modbus library reads and writes while the client looks at it.
#[derive(Debug)]
struct Shared(Arc<TcpStream>);

impl AsyncRead for Shared {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read(buffer.initialize_unfilled()) {
                Ok(n) => {
                    buffer.advance(n);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Shared {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// The connection ends when its last owner lets go of it.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_another_length_or_function_is_none() {
        let block = |function, count| ReadBlock {
            unit: 1,
            function,
            address: 0,
            count,
        };
        let words = |n: usize| Response::ReadHoldingRegisters(vec![7; n]);
        assert_eq!(
            registers(block(Function::Holding, 2), words(2)),
            Ok(Registers::Words(vec![7, 7]))
        );
        for n in [0, 1, 3] {
            assert!(registers(block(Function::Holding, 2), words(n)).is_err());
        }
        assert!(registers(block(Function::Input, 2), words(2)).is_err());
        assert_eq!(
            registers(block(Function::Coil, 3), Response::ReadCoils(vec![true; 8])),
            Ok(Registers::Bits(vec![true; 3]))
        );
        assert!(registers(block(Function::Coil, 9), Response::ReadCoils(vec![true; 8])).is_err());
    }
}
