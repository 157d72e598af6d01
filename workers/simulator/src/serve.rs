//! Meters on the network: one listener for each endpoint, which serves until the result is dropped.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use corrente_config::PollerConfig;
use corrente_crds::poller::Transport;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    time::Instant,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use crate::{
    connection::{self, End},
    hub::{Entry, Hub},
    line::Line,
    simulation::{LoadSource, SimulatedEndpoint, Simulation, SimulationError, system_clock},
};

/// Which ports to listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ports {
    /// Any that are free.
    Ephemeral,
    /// This one, and the next for each further endpoint, in the order of the configuration.
    From(u16),
    /// The port of each endpoint's address; 502 where it names none, 802 with TLS.
    AsConfigured,
}

/// Why the meters cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A port cannot be listened on.
    #[error("failed to listen on {address} for endpoint {endpoint}: {reason}")]
    Bind {
        /// The endpoint.
        endpoint: String,
        /// The address.
        address: SocketAddr,
        /// What the system says.
        reason: io::Error,
    },
    /// Two endpoints have one port, which on one address only one of them can have.
    #[error(
        "endpoints {first} and {second} both have port {port}, and here they share an address; serve them on \
         a range of ports instead (--port-from)"
    )]
    SamePort {
        /// One endpoint.
        first: String,
        /// The other.
        second: String,
        /// The port.
        port: u16,
    },
    /// The ports run out.
    #[error("{endpoints} endpoints do not fit in the ports from {from} to 65535; begin with a lower one")]
    PortsRunOut {
        /// How many endpoints there are.
        endpoints: usize,
        /// The first port.
        from: u16,
    },
    /// The endpoint's address names a port that is none.
    #[error("endpoint {endpoint}: \"{address}\" does not end in a port from 1 to 65535")]
    NoPort {
        /// The endpoint.
        endpoint: String,
        /// Its address.
        address: String,
    },
    /// An endpoint speaks TLS, and has no certificates.
    #[error(
        "endpoint {0} has transport tls: give a folder with ca.crt, tls.crt and tls.key to serve it with \
         (--certificates)"
    )]
    NoCertificates(String),
    /// The configuration cannot be simulated.
    #[error(transparent)]
    Simulation(#[from] SimulationError),
}

impl Simulation {
    /// Serves every endpoint on `listen`, each on a port of its own, until the result is dropped or shut
    /// down. It needs a tokio runtime.
    ///
    /// # Errors
    /// Where a port cannot be listened on; nothing is served then.
    pub async fn serve(&self, listen: IpAddr, ports: Ports) -> Result<Served, ServeError> {
        let mut listeners: Vec<(&SimulatedEndpoint, SocketAddr, TcpListener)> = Vec::new();
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            let port = self.port(index, endpoint, ports)?;
            let wanted = SocketAddr::new(listen, port);
            if let Some((first, ..)) = listeners.iter().find(|(_, address, _)| *address == wanted) {
                return Err(ServeError::SamePort {
                    first: first.name.clone(),
                    second: endpoint.name.clone(),
                    port,
                });
            }
            let bind = async {
                let listener = TcpListener::bind(wanted).await?;
                Ok((listener.local_addr()?, listener))
            };
            let (address, listener) = bind.await.map_err(|reason| ServeError::Bind {
                endpoint: endpoint.name.clone(),
                address: wanted,
                reason,
            })?;
            listeners.push((endpoint, address, listener));
        }
        let token = CancellationToken::new();
        let tasks = TaskTracker::new();
        let began = Instant::now();
        let mut addresses = BTreeMap::new();
        for (endpoint, address, listener) in listeners {
            let line = Line::new(
                endpoint.units.clone(),
                endpoint.transport,
                self.unknown,
                Arc::clone(&self.clock),
                self.engine(endpoint),
            );
            tracing::info!(
                endpoint = endpoint.name,
                %address,
                transport = ?endpoint.transport,
                meters = line.meters(),
                "serving"
            );
            addresses.insert(endpoint.name.clone(), address);
            let door = Door {
                hub: Hub::new(line, began, token.clone()),
                tls: self.tls(endpoint)?,
            };
            tasks.spawn(run(listener, door, tasks.clone(), token.clone()));
        }
        tasks.close();
        Ok(Served {
            addresses,
            tasks,
            guard: token.drop_guard(),
        })
    }

    fn tls(&self, endpoint: &SimulatedEndpoint) -> Result<Option<TlsAcceptor>, ServeError> {
        match (endpoint.transport, &self.certificates) {
            (Transport::Tls, None) => Err(ServeError::NoCertificates(endpoint.name.clone())),
            (Transport::Tls, Some(certificates)) => Ok(Some(certificates.clone())),
            (Transport::Tcp | Transport::RtuOverTcp, _) => Ok(None),
        }
    }

    fn port(&self, index: usize, endpoint: &SimulatedEndpoint, ports: Ports) -> Result<u16, ServeError> {
        match ports {
            Ports::Ephemeral => Ok(0),
            Ports::From(from) => {
                u16::try_from(usize::from(from) + index).map_err(|_| ServeError::PortsRunOut {
                    endpoints: self.endpoints.len(),
                    from,
                })
            }
            Ports::AsConfigured => match endpoint.address.rsplit_once(':') {
                // 502 is the port of Modbus TCP, also where RTU frames go over it.
                None if endpoint.transport == Transport::Tls => Ok(802),
                None => Ok(502),
                Some((_, port)) => {
                    let port = port.parse().ok().filter(|port| *port > 0);
                    port.ok_or_else(|| ServeError::NoPort {
                        endpoint: endpoint.name.clone(),
                        address: endpoint.address.clone(),
                    })
                }
            },
        }
    }
}

/// Where connections come in.
#[derive(Clone)]
struct Door {
    hub: Arc<Hub>,
    /// Where they are encrypted.
    tls: Option<TlsAcceptor>,
}

/// Serves one listener until the token is cancelled. Its connections end with it.
async fn run(listener: TcpListener, door: Door, tasks: TaskTracker, token: CancellationToken) {
    let serve = async {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    tasks.spawn(
                        token
                            .clone()
                            .run_until_cancelled_owned(welcome(stream, door.clone())),
                    );
                }
                // Accepting fails when the process is out of file descriptors, and works again when some are
                // closed.
                Err(error) => {
                    tracing::warn!(%error, "failed to accept a connection; trying again");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    token.run_until_cancelled(serve).await;
}

/// Serves a connection, or does with it what a fault wants.
async fn welcome(mut stream: TcpStream, Door { hub, tls }: Door) {
    let place = match hub.enter() {
        Entry::Serve(place) => place,
        Entry::Refuse => return reset(&stream),
        Entry::Ignore => return connection::ignore(&mut stream).await,
    };
    // Answers are small and awaited: Nagle's algorithm would hold each back. A connection that refuses the
    // option is gone already.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let close = place.close.clone();
    let serve = async {
        let Some(tls) = tls else {
            let end = connection::serve(&mut stream, place, &hub).await;
            return (end, stream);
        };
        match tls.accept(stream).into_fallible().await {
            Ok(mut secure) => {
                let end = connection::serve(&mut secure, place, &hub).await;
                if end == End::Close {
                    // Whoever does not wait for it is gone.
                    let _ = secure.shutdown().await;
                }
                (end, secure.into_inner().0)
            }
            Err((error, stream)) => {
                tracing::info!(%error, "a client was not let in");
                (End::Close, stream)
            }
        }
    };
    if let Some((End::Reset, stream)) = close.run_until_cancelled(serve).await {
        reset(&stream);
    }
}

/// Lets the end of a connection be a reset.
fn reset(stream: &TcpStream) {
    if let Err(error) = stream.set_zero_linger() {
        tracing::debug!(%error, "the connection is gone");
    }
}

/// Meters that are being served. Dropping it ends them.
pub struct Served {
    /// Where each endpoint is served, by its name; where two MeterPollers have an endpoint of one name, the
    /// second is under `<meterpoller>/<endpoint>`.
    pub addresses: BTreeMap<String, SocketAddr>,
    tasks: TaskTracker,
    guard: DropGuard,
}

impl Served {
    /// Stops serving and waits until every listener is closed.
    pub async fn shutdown(self) {
        drop(self.guard);
        self.tasks.wait().await;
    }
}

/// Serves the meters of one configuration with load curves, by the machine's clock.
///
/// # Errors
/// Where it cannot be simulated, or a port cannot be listened on.
pub async fn simulate_config(
    config: &PollerConfig,
    listen: IpAddr,
    ports: Ports,
) -> Result<Served, ServeError> {
    let configs = std::slice::from_ref(config);
    let simulation = Simulation::new(configs, LoadSource::default(), system_clock())?;
    simulation.serve(listen, ports).await
}
