//! Connects over TCP: for Modbus TCP, for RTU frames over TCP, and for Modbus/TCP Security.

use std::{
    sync::{Arc, atomic::AtomicU16},
    time::Duration,
};

use corrente_config::EndpointAddress;
use corrente_crds::poller::Transport;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use super::{
    ConnectError, Connector,
    stream::{Stream, TcpClient, short},
    tls::TlsSource,
    window::Framing,
};

/// The longest that a fresh connection is listened to after a timeout, on a line without transaction ids.
const MAX_QUIET: Duration = Duration::from_secs(1);

/// Connects over TCP, with or without TLS.
#[derive(Clone, Debug)]
pub struct TcpConnector {
    address: EndpointAddress,
    framing: Framing,
    secured: bool,
    timeout: Duration,
    max_in_flight: usize,
    tls: Option<Arc<TlsSource>>,
    transactions: Arc<AtomicU16>,
}

impl TcpConnector {
    /// Connections to `address`, of which each has one request outstanding at a time. `timeout` bounds the
    /// connecting and each request. Transport `tls` wants [`TcpConnector::with_tls`] besides.
    #[must_use]
    pub fn new(address: &EndpointAddress, transport: Transport, timeout: Duration) -> Self {
        let framing = match transport {
            Transport::RtuOverTcp => Framing::Rtu,
            Transport::Tcp | Transport::Tls => Framing::Mbap,
        };
        Self {
            address: address.clone(),
            framing,
            secured: transport == Transport::Tls,
            timeout,
            max_in_flight: 1,
            tls: None,
            transactions: Arc::default(),
        }
    }

    /// The same with up to `requests` outstanding at a time. RTU frames have no transaction id, so that there
    /// it stays one.
    #[must_use]
    pub fn with_max_in_flight(self, requests: usize) -> Self {
        Self {
            max_in_flight: requests,
            ..self
        }
    }

    /// The same under TLS, with these certificates.
    #[must_use]
    pub fn with_tls(self, tls: TlsSource) -> Self {
        Self {
            tls: Some(Arc::new(tls)),
            ..self
        }
    }

    async fn stream(&self) -> Result<Stream, String> {
        if self.secured && self.tls.is_none() {
            return Err("transport tls needs certificates: name their Secret in tls.secretName".to_owned());
        }
        let address = (self.address.host().trim_matches(['[', ']']), self.address.port());
        let stream = TcpStream::connect(address).await.map_err(|error| short(&error))?;
        // Requests are small and awaited: Nagle's algorithm would hold each back.
        stream.set_nodelay(true).map_err(|error| short(&error))?;
        let Some(tls) = &self.tls else {
            return Ok(Stream::Plain(stream));
        };
        let name = tls.name(&self.address)?;
        let (config, certified) = tls.current()?;
        let stream = TlsConnector::from(config)
            .connect(name, stream)
            .await
            .map_err(|error| short(&error))?;
        Ok(Stream::Tls(Box::new(stream), certified))
    }
}

impl Connector for TcpConnector {
    type Client = TcpClient;

    async fn connect(&self, after_timeout: bool) -> Result<TcpClient, ConnectError> {
        let fail = |reason: String| ConnectError {
            address: self.address.to_string(),
            reason,
        };
        let stream = match timeout(self.timeout, self.stream()).await {
            Ok(stream) => stream.map_err(fail)?,
            Err(_) => return Err(fail(format!("nothing within {} ms", self.timeout.as_millis()))),
        };
        let mut client = TcpClient::new(
            stream,
            self.framing,
            self.max_in_flight,
            self.timeout,
            Arc::clone(&self.transactions),
        );
        if after_timeout && self.framing == Framing::Rtu {
            // A serial server may deliver the late answer to whoever is connected when it comes.
            client
                .listen_and_discard(self.timeout.min(MAX_QUIET))
                .await
                .map_err(|error| fail(short(&error)))?;
        }
        Ok(client)
    }
}
