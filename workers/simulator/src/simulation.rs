//! A poller's configuration as listeners: the other end of what a poller would poll.
//!
//! 1. [`Simulation::new`] makes the meters: one layout for each register map, one device for each meter.
//! 2. [`Simulation::serve`] opens one listener for each endpoint, and serves until the result is dropped.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use corrente_config::{PollerConfig, poller::MapKey};
use corrente_crds::poller::{Endpoint, Transport};
use corrente_modbus::MapProblem;
use corrente_record::Timestamp;
use tokio::net::{TcpListener, TcpStream};
use tokio_modbus::server::{rtu_over_tcp, tcp};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use crate::{
    curve::Grid,
    device::{Device, Layout},
    history::History,
    line::{Line, UnknownUnit},
};

/// What time it is for the meters.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The machine's clock.
#[must_use]
pub fn system_clock() -> Clock {
    Arc::new(Timestamp::now)
}

/// Where the meters' values come from.
#[derive(Clone, Debug)]
pub enum LoadSource {
    /// A load curve of each meter's own.
    Curve(Grid),
    /// A history, and a load curve for what it does not name.
    History(Arc<History>, Grid),
}

impl Default for LoadSource {
    fn default() -> Self {
        Self::Curve(Grid::default())
    }
}

/// Which ports to listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ports {
    /// Any that are free.
    Ephemeral,
    /// This one, and the next for each further endpoint, in the order of the configuration.
    From(u16),
    /// The port of each endpoint's address, 502 where it names none.
    AsConfigured,
}

/// Why a configuration cannot be simulated.
#[derive(Debug, thiserror::Error)]
pub enum SimulationError {
    /// A meter names no map, or one that the configuration does not hold.
    #[error("meter {0} has no register map: the configuration holds none of the name it gives")]
    NoMap(String),
    /// A register map is wrong.
    #[error("the register map {map} is wrong: {}", sentences(.problems))]
    Map {
        /// Its key.
        map: String,
        /// What is wrong.
        problems: Vec<MapProblem>,
    },
    /// A unit id beyond 0 to 255.
    #[error("meter {meter}: the unit id is {unit}; unit ids are 0 to 255")]
    UnitId {
        /// The meter.
        meter: String,
        /// The id.
        unit: i32,
    },
    /// Two meters behind one endpoint with one unit id.
    #[error("endpoint {endpoint}: meters {first} and {second} both have unit id {unit}; give each its own")]
    SameUnitId {
        /// The endpoint.
        endpoint: String,
        /// One meter.
        first: String,
        /// The other.
        second: String,
        /// The id.
        unit: u8,
    },
}

fn sentences(problems: &[MapProblem]) -> String {
    let sentence = |problem: &MapProblem| match problem.register.as_str() {
        "" => problem.message.clone(),
        register => format!("{register}: {}", problem.message),
    };
    problems.iter().map(sentence).collect::<Vec<_>>().join("; ")
}

/// Why the meters cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A port cannot be listened on.
    #[error("failed to listen on {address} for endpoint {endpoint}: {source}")]
    Bind {
        /// The endpoint.
        endpoint: String,
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
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
    /// The configuration cannot be simulated.
    #[error(transparent)]
    Simulation(#[from] SimulationError),
}

/// Meters, ready to be served.
pub struct Simulation {
    endpoints: Vec<SimulatedEndpoint>,
    unknown: UnknownUnit,
    clock: Clock,
}

struct SimulatedEndpoint {
    /// Its name; with its MeterPoller's before it where two MeterPollers have endpoints of one name.
    name: String,
    address: String,
    transport: Transport,
    units: BTreeMap<u8, Device>,
}

impl Simulation {
    /// The meters of these configurations: of all shards of a MeterPoller, or of several MeterPollers.
    ///
    /// # Errors
    /// Where a meter's register map is missing or wrong, or its unit id is not its own.
    pub fn new(configs: &[PollerConfig], source: LoadSource, clock: Clock) -> Result<Self, SimulationError> {
        let (grid, history) = match source {
            LoadSource::Curve(grid) => (grid, None),
            LoadSource::History(history, grid) => (grid, Some(history)),
        };
        let mut endpoints: Vec<SimulatedEndpoint> = Vec::new();
        for config in configs {
            let mut layouts = BTreeMap::new();
            for (key, map) in &config.maps {
                let model = key.split_once('/').map_or(key.as_str(), |(_, model)| model);
                let layout = Layout::new(map, model).map_err(|problems| SimulationError::Map {
                    map: key.clone(),
                    problems,
                })?;
                layouts.insert(key.clone(), Arc::new(layout));
            }
            for endpoint in &config.endpoints {
                let taken = endpoints.iter().any(|other| other.name == endpoint.name);
                let name = if taken {
                    format!("{}/{}", config.name, endpoint.name)
                } else {
                    endpoint.name.clone()
                };
                endpoints.push(SimulatedEndpoint {
                    name,
                    address: endpoint.address.clone(),
                    transport: endpoint.transport,
                    units: units(endpoint, &layouts, grid, history.as_ref())?,
                });
            }
        }
        if let Some(history) = &history {
            warn_of_strangers(history, configs);
        }
        Ok(Self {
            endpoints,
            unknown: UnknownUnit::default(),
            clock,
        })
    }

    /// The same meters with another answer to requests for units that are not there.
    #[must_use]
    pub fn with_unknown_units(self, unknown: UnknownUnit) -> Self {
        Self { unknown, ..self }
    }

    /// Serves every endpoint on `listen`, each on a port of its own, until the result is dropped or shut
    /// down. It needs a tokio runtime.
    ///
    /// # Errors
    /// Where a port cannot be listened on; nothing is served then.
    pub async fn serve(&self, listen: IpAddr, ports: Ports) -> Result<Served, ServeError> {
        let mut listeners = Vec::new();
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            let address = SocketAddr::new(listen, self.port(index, endpoint, ports)?);
            let bind = async {
                let listener = TcpListener::bind(address).await?;
                Ok((listener.local_addr()?, listener))
            };
            let (address, listener) = bind.await.map_err(|source| ServeError::Bind {
                endpoint: endpoint.name.clone(),
                address,
                source,
            })?;
            listeners.push((endpoint, address, listener));
        }
        let token = CancellationToken::new();
        let tasks = TaskTracker::new();
        let mut addresses = BTreeMap::new();
        for (endpoint, address, listener) in listeners {
            let line = Line::new(
                endpoint.units.clone(),
                endpoint.transport,
                self.unknown,
                Arc::clone(&self.clock),
            );
            tracing::info!(
                endpoint = endpoint.name,
                %address,
                transport = ?endpoint.transport,
                meters = line.meters(),
                "serving"
            );
            addresses.insert(endpoint.name.clone(), address);
            tasks.spawn(run(listener, endpoint.transport, line, token.clone()));
        }
        tasks.close();
        Ok(Served {
            addresses,
            tasks,
            guard: token.drop_guard(),
        })
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

fn units(
    endpoint: &Endpoint,
    layouts: &BTreeMap<String, Arc<Layout>>,
    grid: Grid,
    history: Option<&Arc<History>>,
) -> Result<BTreeMap<u8, Device>, SimulationError> {
    let mut units = BTreeMap::new();
    let mut names: BTreeMap<u8, &str> = BTreeMap::new();
    for meter in &endpoint.meters {
        let unit = u8::try_from(meter.unit_id).map_err(|_| SimulationError::UnitId {
            meter: meter.name.clone(),
            unit: meter.unit_id,
        })?;
        let layout = MapKey::of(meter)
            .and_then(|key| layouts.get(&key))
            .ok_or_else(|| SimulationError::NoMap(meter.name.clone()))?;
        let device = Device::new(&meter.name, Arc::clone(layout), grid, history.cloned());
        if let Some(first) = names.insert(unit, &meter.name) {
            return Err(SimulationError::SameUnitId {
                endpoint: endpoint.name.clone(),
                first: first.to_owned(),
                second: meter.name.clone(),
                unit,
            });
        }
        units.insert(unit, device);
    }
    Ok(units)
}

/// A history may be of a whole plant, of which one shard is simulated; so a name that nothing here has is
/// worth a warning, not an end.
fn warn_of_strangers(history: &History, configs: &[PollerConfig]) {
    let registers = |config: &PollerConfig| -> Vec<String> {
        let maps = config.maps.values();
        maps.flat_map(|map| map.registers.iter().map(|register| register.name.clone()))
            .collect()
    };
    let known: Vec<String> = configs.iter().flat_map(registers).collect();
    for metric in history.metrics().iter().filter(|metric| !known.contains(metric)) {
        tracing::warn!(
            metric,
            "no simulated meter has this column of the history; check its spelling"
        );
    }
    let meters = || configs.iter().flat_map(|c| &c.endpoints).flat_map(|e| &e.meters);
    for meter in history
        .meters()
        .filter(|name| !meters().any(|meter| meter.name == *name))
    {
        tracing::warn!(
            meter,
            "no simulated meter has this name of the history; check its spelling"
        );
    }
}

/// Serves one listener until the token is cancelled. Its connections end with it.
async fn run(listener: TcpListener, transport: Transport, line: Line, token: CancellationToken) {
    let on_connected = |stream: TcpStream, peer: SocketAddr| {
        let line = line.clone();
        async move {
            // Answers are small and awaited: Nagle's algorithm would hold each back. A connection that
            // refuses the option is gone already.
            Ok(match stream.set_nodelay(true) {
                Ok(()) => Some((line, stream)),
                Err(error) => {
                    tracing::debug!(%peer, %error, "the connection is gone");
                    None
                }
            })
        }
    };
    let on_error = |error: io::Error| tracing::debug!(%error, "a connection ended with an error");
    let serve = async {
        match transport {
            Transport::Tcp => {
                let server = tcp::Server::new(listener);
                loop {
                    rest_after(server.serve(&on_connected, on_error).await).await;
                }
            }
            Transport::RtuOverTcp => {
                let server = rtu_over_tcp::Server::new(listener);
                loop {
                    rest_after(server.serve(&on_connected, on_error).await).await;
                }
            }
        }
    };
    token.run_until_cancelled(serve).await;
}

/// Accepting fails when the process is out of file descriptors, and works again when some are closed.
async fn rest_after(result: io::Result<()>) {
    if let Err(error) = result {
        tracing::warn!(%error, "failed to accept a connection; trying again");
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
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
