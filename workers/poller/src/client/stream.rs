//! The client over a stream of bytes, plain or under TLS.
//!
//! A read costs one write and one read of the socket, and the look before it none where nothing has come: the
//! runtime knows that the socket is empty. What a client works with is made once, with the connection.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::client::TlsStream;

use super::{
    ModbusClient, OnRead, ReadBlock, ReadError,
    tls::{self, Certified},
    window::{Framing, Window},
};

/// What most ends of connections come down to.
const CLOSED: &str = "the other side closed the connection";

/// What a client talks over.
#[derive(Debug)]
pub(super) enum Stream {
    /// TCP as it is.
    Plain(TcpStream),
    /// TLS over TCP, and what it was made with.
    Tls(Box<TlsStream<TcpStream>>, Certified),
}

impl Stream {
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream, _) => stream.get_ref().0,
        }
    }
}

/// The client over TCP.
#[derive(Debug)]
pub struct TcpClient {
    stream: Stream,
    window: Window,
    /// The requests to be written.
    out: Vec<u8>,
    timeout: Duration,
    /// Shared with the connections before and after, so that no id comes again soon: there are gateways that
    /// deliver a late answer to whoever is connected when it comes.
    transactions: Arc<AtomicU16>,
    spent: bool,
    /// Whether anything came on this connection.
    heard: bool,
}

impl TcpClient {
    pub(super) fn new(
        stream: Stream,
        framing: Framing,
        max_in_flight: usize,
        timeout: Duration,
        transactions: Arc<AtomicU16>,
    ) -> Self {
        Self {
            stream,
            window: Window::new(framing, max_in_flight),
            out: Vec::new(),
            timeout,
            transactions,
            spent: false,
            heard: false,
        }
    }

    /// Waits until something can be read, or the other side has closed the connection.
    pub async fn readable(&self) {
        // An error shows itself when it is read.
        let _ = self.stream.tcp().readable().await;
    }

    /// Reads and drops whatever comes within `quiet`.
    pub(super) async fn listen_and_discard(&mut self, quiet: Duration) -> io::Result<()> {
        let mut buffer = [0; 512];
        let discard = async {
            loop {
                if self.stream.read(&mut buffer).await? == 0 {
                    return Err(closed());
                }
            }
        };
        timeout(quiet, discard).await.unwrap_or(Ok(()))
    }

    /// Fails where something lies unread, the other side has closed the connection, or the client is spent.
    fn look(&mut self) -> Result<(), ReadError> {
        if self.spent || !self.window.is_empty() {
            return Err(broken("the connection was given up with an answer outstanding"));
        }
        let mut bytes = [0; 64];
        let mut buffer = ReadBuf::new(&mut bytes);
        let mut context = Context::from_waker(Waker::noop());
        let unasked = match Pin::new(&mut self.stream).poll_read(&mut context, &mut buffer) {
            Poll::Pending => self.window.has_leftovers(),
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => return Err(broken(&short(&closed()))),
            Poll::Ready(Ok(())) => true,
            Poll::Ready(Err(error)) => return Err(broken(&short(&error))),
        };
        if unasked {
            return Err(broken(
                "bytes came that nobody asked for; the connection is made anew",
            ));
        }
        Ok(())
    }

    /// Asks for as many of the blocks from `next` on as there is room for.
    async fn ask(&mut self, blocks: &[ReadBlock], next: &mut usize) -> Result<(), (usize, ReadError)> {
        self.out.clear();
        let first = *next;
        let deadline = Instant::now() + self.timeout;
        while self.window.has_room()
            && let Some(block) = blocks.get(*next)
        {
            let transaction = self.transactions.fetch_add(1, Ordering::Relaxed);
            let asked = self
                .window
                .ask(*next, *block, transaction, deadline, &mut self.out);
            asked.map_err(|error| (*next, broken(&error.to_string())))?;
            *next += 1;
        }
        if self.out.is_empty() {
            return Ok(());
        }
        let write = async {
            self.stream.write_all(&self.out).await?;
            self.stream.flush().await
        };
        match timeout_at(deadline, write).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err((first, broken(&short(&error)))),
            Err(_) => Err((first, ReadError::Timeout(self.timeout))),
        }
    }

    /// Why a connection ended while it was listened to. With TLS 1.3 a server looks at the client's certificate
    /// when the client is done, and some hang up without a word.
    fn lost(&self, error: &io::Error) -> ReadError {
        let why = short(error);
        if why == CLOSED && !self.heard && matches!(self.stream, Stream::Tls(..)) {
            return broken(
                "the other side closed the connection before its first answer, as servers do that do not accept \
                 the poller's certificate in tls.crt",
            );
        }
        broken(&why)
    }

    async fn run(&mut self, blocks: &[ReadBlock], on: &mut OnRead<'_>) -> Result<(), (usize, ReadError)> {
        if blocks.is_empty() {
            return Ok(());
        }
        self.look().map_err(|error| (0, error))?;
        let mut next = 0;
        loop {
            self.ask(blocks, &mut next).await?;
            let Some((index, deadline)) = self.window.oldest() else {
                return Ok(());
            };
            let came = match timeout_at(deadline, self.stream.read(self.window.spare())).await {
                Err(_) => return Err((index, ReadError::Timeout(self.timeout))),
                Ok(Err(error)) => return Err((index, self.lost(&error))),
                Ok(Ok(0)) => return Err((index, self.lost(&closed()))),
                Ok(Ok(came)) => came,
            };
            self.heard = true;
            let taken = self.window.take(came, on);
            taken.map_err(|broke| (broke.index, broken(&broke.error.to_string())))?;
        }
    }
}

impl ModbusClient for TcpClient {
    async fn read_many(&mut self, blocks: &[ReadBlock], on: &mut OnRead<'_>) {
        if let Err((index, error)) = self.run(blocks, on).await {
            self.spent = true;
            on(index, Err(error));
        }
    }

    fn is_outdated(&self) -> bool {
        match &self.stream {
            Stream::Plain(_) => false,
            Stream::Tls(_, certified) => certified.is_outdated(),
        }
    }
}

fn broken(why: &str) -> ReadError {
    ReadError::Connection(why.to_owned())
}

fn closed() -> io::Error {
    io::ErrorKind::UnexpectedEof.into()
}

/// An IO error in a few words.
pub(super) fn short(error: &io::Error) -> String {
    if let Some(explained) = tls::explain(error) {
        return explained;
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionAborted => CLOSED.to_owned(),
        _ => error.to_string().chars().take(100).collect(),
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream, _) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream, _) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream, _) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream, _) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
