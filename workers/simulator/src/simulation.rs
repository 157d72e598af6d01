//! A poller's configuration as meters: one layout for each register map, one device for each meter, and the
//! endpoints that they are behind.

use std::{collections::BTreeMap, sync::Arc};

use corrente_config::{PollerConfig, poller::MapKey};
use corrente_crds::{
    poller::{Endpoint, Transport},
    profile::Kind,
};
use corrente_modbus::MapProblem;
use corrente_record::Timestamp;
use tokio_rustls::TlsAcceptor;

use crate::{
    curve::Grid,
    device::{Device, Layout},
    faults::{
        Fault, Faults,
        check::{self, FaultProblem, Scene},
        engine::Engine,
        meter::Changes,
    },
    history::History,
    line::UnknownUnit,
    wire::Framing,
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

/// Meters, ready to be served.
pub struct Simulation {
    pub(crate) endpoints: Vec<SimulatedEndpoint>,
    pub(crate) unknown: UnknownUnit,
    pub(crate) clock: Clock,
    pub(crate) certificates: Option<TlsAcceptor>,
    faults: Faults,
}

/// An endpoint with its meters.
pub(crate) struct SimulatedEndpoint {
    /// Its name; with its MeterPoller's before it where two MeterPollers have endpoints of one name.
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) transport: Transport,
    pub(crate) units: BTreeMap<u8, Device>,
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
                if endpoint.transport == Transport::Tls {
                    tracing::warn!(
                        endpoint = name,
                        "TLS is not simulated: the endpoint is served without it"
                    );
                }
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
            certificates: None,
            faults: Faults::default(),
        })
    }

    /// The same meters with another answer to requests for units that are not there.
    #[must_use]
    pub fn with_unknown_units(self, unknown: UnknownUnit) -> Self {
        Self { unknown, ..self }
    }

    /// The same meters, whose endpoints with transport `tls` have these certificates; see [`crate::tls::load`].
    #[must_use]
    pub fn with_certificates(self, certificates: TlsAcceptor) -> Self {
        Self {
            certificates: Some(certificates),
            ..self
        }
    }

    /// The same meters with faults. Those of counters and meters count their time from now on, the others from
    /// when the meters are served.
    ///
    /// # Errors
    /// Faults that cannot come about.
    pub fn with_faults(mut self, faults: Faults) -> Result<Self, Vec<FaultProblem>> {
        let scenes: Vec<Scene> = self.endpoints.iter().map(SimulatedEndpoint::scene).collect();
        check::check(&faults, &scenes)?;
        let start = (self.clock)();
        for endpoint in &mut self.endpoints {
            for (unit, device) in &mut endpoint.units {
                let changes = Changes::of(&faults.list, &endpoint.name, device.name(), *unit, start);
                device.change(changes);
            }
        }
        Ok(Self { faults, ..self })
    }

    /// The faults that are in force.
    #[must_use]
    pub fn faults(&self) -> &[Fault] {
        &self.faults.list
    }

    pub(crate) fn engine(&self, endpoint: &SimulatedEndpoint) -> Engine {
        let Scene {
            name,
            framing,
            meters,
            ..
        } = endpoint.scene();
        Engine::new(&self.faults, &name, &meters, framing)
    }
}

impl SimulatedEndpoint {
    /// What faults can be about here.
    fn scene(&self) -> Scene {
        let mut counters: Vec<String> = self
            .units
            .values()
            .flat_map(|device| &device.map().values)
            .filter(|value| value.kind == Kind::Counter)
            .map(|value| value.name.to_string())
            .collect();
        counters.sort_unstable();
        counters.dedup();
        Scene {
            name: self.name.clone(),
            framing: Framing::from(self.transport),
            meters: self
                .units
                .iter()
                .map(|(unit, device)| (device.name().to_owned(), *unit))
                .collect(),
            counters,
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
