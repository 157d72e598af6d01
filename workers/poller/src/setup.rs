//! From the configuration file to what is polled.
//!
//! A meter whose register map cannot be used is left out and reported as failing, with the reason; the others
//! are polled. The operator and `corrente validate` refuse such a map before it gets here.

use std::{
    collections::{HashMap, hash_map::Entry},
    fs,
    path::Path,
    sync::Arc,
    time::Duration,
};

use corrente_config::{EndpointAddress, PollerConfig, poller::MapKey};
use corrente_crds::poller::{Endpoint, Transport};
use corrente_modbus::{
    CompiledMap, CostModel,
    schedule::{Slots, Spread},
};

use crate::{
    client::{TcpConnector, tls::TlsSource},
    learned::Learned,
    meter::Meter,
    state::{EndpointState, MeterState},
};

/// A serial line behind a gateway, until it is measured: the commonest speed, and a usual meter's time to
/// turn around.
const SERIAL_BAUD: u32 = 9600;
const SERIAL_TURNAROUND: Duration = Duration::from_millis(20);

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("failed to read the configuration {path}: {reason}; give another with --config")]
    Unreadable {
        /// The file.
        path: String,
        /// Why not.
        reason: String,
    },
    /// It is no configuration.
    #[error("the configuration {path} is not one for a poller: {reason}")]
    Invalid {
        /// The file.
        path: String,
        /// Where and why.
        reason: String,
    },
}

/// Reads a configuration file.
///
/// # Errors
/// Where it cannot be read, or is not one.
pub fn load(path: &Path) -> Result<PollerConfig, ConfigError> {
    let name = || path.display().to_string();
    let bytes = fs::read(path).map_err(|error| ConfigError::Unreadable {
        path: name(),
        reason: error.to_string(),
    })?;
    serde_json::from_slice(&bytes).map_err(|error| ConfigError::Invalid {
        path: name(),
        reason: error.to_string(),
    })
}

/// What a request on an endpoint is assumed to cost, for the read plans.
#[must_use]
pub fn cost_model(endpoint: &Endpoint) -> CostModel {
    let pause = endpoint
        .inter_request_delay
        .map_or(Duration::ZERO, |delay| delay.as_std());
    match endpoint.transport {
        Transport::Tcp | Transport::Tls => CostModel::default(),
        Transport::RtuOverTcp => CostModel::serial(SERIAL_BAUD, SERIAL_TURNAROUND),
    }
    .with_pause(pause)
}

/// An endpoint, ready to be polled.
#[derive(Debug)]
pub struct EndpointSetup<C = TcpConnector> {
    /// Its name.
    pub name: Arc<str>,
    /// How to connect to it; `None` where its address is none, and it has no meters that can be polled.
    pub connector: Option<C>,
    /// The pause between an answer and the next request.
    pub pause: Duration,
    /// How often a request that timed out is sent again.
    pub retries: u32,
    /// How long a request may take.
    pub timeout: Duration,
    /// How many requests may be under way at once.
    pub max_in_flight: usize,
    /// What a request is assumed to cost until it is measured.
    pub cost: CostModel,
    /// The meters that can be polled.
    pub meters: Vec<MeterSetup>,
}

/// A meter, ready to be polled.
#[derive(Debug)]
pub struct MeterSetup {
    /// Its place in the endpoint's list, unusable meters included.
    pub index: usize,
    /// The meter.
    pub meter: Meter,
    /// When it is due.
    pub slots: Slots,
}

/// Sets up the endpoints of a configuration, and how the status shows them before the first poll.
#[must_use]
pub fn endpoints(config: &PollerConfig) -> Vec<(EndpointSetup, EndpointState)> {
    let mut models = Models::default();
    let process = format!("{}/{}/{}", config.namespace, config.name, config.shard);
    let spread = Spread::new(&process, config.endpoints.len());
    config
        .endpoints
        .iter()
        .map(|endpoint| set_up(config, endpoint, spread, &mut models))
        .collect()
}

/// How to connect to an endpoint, which is at `address`.
#[must_use]
pub fn connector(config: &PollerConfig, endpoint: &Endpoint, address: &EndpointAddress) -> TcpConnector {
    let connector = TcpConnector::new(address, endpoint.transport, config.timeout.as_std())
        .with_max_in_flight(usize::try_from(endpoint.max_in_flight).unwrap_or(1));
    match &endpoint.tls {
        Some(tls) => {
            let dir = config.secrets.endpoint(&tls.secret_name);
            connector.with_tls(TlsSource::new(dir, &tls.secret_name, tls.server_name.clone()))
        }
        None => connector,
    }
}

/// What meters share that have a map, the choice of its metrics and an endpoint's costs in common. A plant has many
/// meters and few models.
#[derive(Default)]
struct Models<'a>(HashMap<(String, &'a [String], CostModel), Learned>);

impl<'a> Models<'a> {
    fn get(
        &mut self,
        config: &'a PollerConfig,
        meter: &'a corrente_crds::poller::Meter,
        cost: CostModel,
    ) -> Result<&Learned, String> {
        let key = MapKey::of(meter).ok_or("the meter names neither a profile nor a registerMap")?;
        match self.0.entry((key, &meter.metrics, cost)) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(new) => {
                let (key, ..) = new.key();
                let map = config
                    .maps
                    .get(key)
                    .ok_or_else(|| format!("the configuration has no register map \"{key}\""))?;
                let map = CompiledMap::compile(map, &meter.metrics).map_err(|problems| {
                    let first = problems.first();
                    first.map_or_else(String::new, |problem| {
                        format!(
                            "register map \"{key}\", {}: {}",
                            problem.register, problem.message
                        )
                    })
                })?;
                Ok(new.insert(Learned::new("", Arc::new(map), cost)))
            }
        }
    }
}

fn set_up<'a>(
    config: &'a PollerConfig,
    endpoint: &'a Endpoint,
    spread: Spread,
    models: &mut Models<'a>,
) -> (EndpointSetup, EndpointState) {
    let address = EndpointAddress::of(endpoint);
    let (mut meters, mut states) = (Vec::new(), Vec::new());
    for (index, meter) in endpoint.meters.iter().enumerate() {
        let mut state = MeterState {
            name: meter.name.clone(),
            ..MeterState::default()
        };
        let usable = match &address {
            Ok(address) => self::meter(config, endpoint, meter, models).map(|(meter, interval)| {
                // The meters of a line share its phase: they are read one after the other anyway.
                let phase = spread.phase(&address.to_string(), interval);
                (meter, Slots::new(interval, phase))
            }),
            Err(error) => Err(error.to_string()),
        };
        match usable {
            Ok((meter, slots)) => meters.push(MeterSetup { index, meter, slots }),
            Err(reason) => {
                tracing::error!(meter = meter.name, reason, "a meter cannot be polled");
                state.reason = Some(reason);
            }
        }
        states.push(state);
    }
    let setup = EndpointSetup {
        name: endpoint.name.as_str().into(),
        connector: address.ok().map(|address| connector(config, endpoint, &address)),
        pause: endpoint
            .inter_request_delay
            .map_or(Duration::ZERO, |delay| delay.as_std()),
        retries: config.retries,
        timeout: config.timeout.as_std(),
        max_in_flight: usize::try_from(endpoint.max_in_flight).unwrap_or(1),
        cost: cost_model(endpoint),
        meters,
    };
    let state = EndpointState {
        name: endpoint.name.clone(),
        address: endpoint.address.clone(),
        meters: states,
        ..EndpointState::default()
    };
    (setup, state)
}

/// The meter, and its interval in milliseconds.
fn meter<'a>(
    config: &'a PollerConfig,
    endpoint: &Endpoint,
    meter: &'a corrente_crds::poller::Meter,
    models: &mut Models<'a>,
) -> Result<(Meter, u64), String> {
    let model = models.get(config, meter, cost_model(endpoint))?;
    let unit = u8::try_from(meter.unit_id)
        .map_err(|_| format!("the unit id is {}; unit ids are 0 to 255", meter.unit_id))?;
    let interval = meter.interval.unwrap_or(config.interval).as_millis();
    let meter = Meter::of(&meter.name, unit, meter.labels.clone(), model);
    Ok((meter, interval))
}
