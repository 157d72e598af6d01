//! Stands between a poller and its meters, and keeps every byte that the poller sends; what it sends over TLS, as
//! it was before.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

/// What one connection was sent, in order.
type Stream = Arc<Mutex<Vec<u8>>>;

/// A recorder in front of one endpoint.
pub struct Recorder {
    pub address: SocketAddr,
    streams: Arc<Mutex<Vec<Stream>>>,
    task: JoinHandle<()>,
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A request, as it was found in the recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub unit: u8,
    pub function: u8,
    pub address: u16,
    pub count: u16,
}

impl Recorder {
    /// Records what is sent to `target`, and passes everything on in both directions. With `tls`, it is spoken to
    /// over TLS, and passes it on without.
    pub async fn before(target: SocketAddr, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let streams: Arc<Mutex<Vec<Stream>>> = Arc::default();
        let task = tokio::spawn({
            let streams = streams.clone();
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    let stream = Stream::default();
                    streams.lock().unwrap().push(stream.clone());
                    let _ = client.set_nodelay(true);
                    match tls.clone() {
                        None => drop(tokio::spawn(pass(client, target, stream))),
                        Some(tls) => drop(tokio::spawn(async move {
                            if let Ok(client) = tls.accept(client).await {
                                pass(client, target, stream).await;
                            }
                        })),
                    }
                }
            }
        });
        Self {
            address,
            streams,
            task,
        }
    }

    /// Everything that was asked, by a reading of the bytes that knows no more than the specification: read
    /// requests are of one length. Whatever is none fails the test.
    pub fn requests(&self, rtu: bool) -> Vec<Request> {
        let streams = self.streams.lock().unwrap();
        let all = streams.iter().flat_map(|stream| {
            let bytes = stream.lock().unwrap().clone();
            let length = if rtu { 8 } else { 12 };
            bytes
                .chunks(length)
                .filter(|frame| frame.len() == length)
                .map(|frame| request(frame, rtu))
                .collect::<Vec<_>>()
        });
        all.collect()
    }
}

fn request(frame: &[u8], rtu: bool) -> Request {
    let body = if rtu {
        &frame[..6]
    } else {
        assert_eq!(
            frame[2..6],
            [0, 0, 0, 6],
            "not the header of a read: {frame:02x?}"
        );
        &frame[6..]
    };
    assert!(
        (1..=4).contains(&body[1]),
        "function code {:02X} is none of a read: {frame:02x?}",
        body[1]
    );
    Request {
        unit: body[0],
        function: body[1],
        address: u16::from_be_bytes([body[2], body[3]]),
        count: u16::from_be_bytes([body[4], body[5]]),
    }
}

async fn pass(mut client: impl AsyncRead + AsyncWrite + Unpin, target: SocketAddr, sent: Stream) {
    let Ok(mut server) = TcpStream::connect(target).await else {
        return;
    };
    let _ = server.set_nodelay(true);
    let (mut there, mut back) = ([0; 1024], [0; 1024]);
    loop {
        tokio::select! {
            read = client.read(&mut there) => match read {
                Ok(read) if read > 0 => {
                    sent.lock().unwrap().extend(&there[..read]);
                    if server.write_all(&there[..read]).await.is_err() {
                        return;
                    }
                }
                _ => return,
            },
            read = server.read(&mut back) => match read {
                Ok(read) if read > 0 => {
                    if client.write_all(&back[..read]).await.is_err() {
                        return;
                    }
                }
                _ => return,
            },
        }
    }
}
