//! A small plant, and a client that reads it as a poller would.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use corrente_config::{PollerConfig, secrets::Secrets};
use corrente_crds::{
    Duration,
    poller::{Buffer, Endpoint, KafkaOutput, Meter, Transport},
    profile::{Function, RegisterMap},
};
use corrente_modbus::{
    BadValue, CompiledMap, CostModel, ReadPlan, decode,
    sunspec::{Step, Walk},
};
use corrente_record::{Timestamp, Value};
use corrente_simulator::{Clock, LoadSource, Ports, Served, Simulation, UnknownUnit};
use tokio::net::TcpStream;
use tokio_modbus::{
    ExceptionCode, Slave,
    client::{Context, Reader as _, rtu, tcp},
};

/// Noon of a day in 2026.
pub const NOON: &str = "2026-06-15T12:00:00Z";
/// Where the tests listen.
pub const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A register map as a manifest writes it.
pub fn map(yaml: &str) -> RegisterMap {
    serde_saphyr::from_str(yaml).unwrap()
}

/// A map with every type, both orders, a small limit and a gap.
pub const PANEL: &str = "
limits: {maxRegistersPerRead: 60}
registers:
- {name: voltage_l1_n, address: 0, function: input, type: f32, unit: V}
- {name: voltage_l2_n, address: 2, function: input, type: i32, wordOrder: little, scale: 0.1, unit: V}
- {name: voltage_l1_l2, address: 4, function: input, type: u16, scale: 0.1, unit: V}
- {name: current_l1, address: 6, function: input, type: f64, byteOrder: little, unit: A}
- {name: active_power_l1, address: 20, function: input, type: f32, unit: kW}
- {name: active_power_total, address: 22, function: input, type: i32, unit: W}
- {name: power_factor_total, address: 24, function: input, type: i16, scale: 0.001, unit: '1'}
- {name: frequency, address: 25, function: input, type: u16, scale: 0.01, unit: Hz}
- {name: energy_active_import, address: 100, function: holding, type: u64, unit: Wh, kind: counter}
- {name: energy_reactive_import, address: 104, function: holding, type: u32, scale: 10, unit: varh, kind: counter}
- {name: tiny, address: 106, function: holding, type: u16, unit: Wh, kind: counter}
- {name: serial_number, address: 110, function: holding, type: string, length: 8, kind: text}
- {name: breaker_closed, address: 3, function: coil, type: bool, kind: state}
- {name: door_open, address: 120, function: holding, type: bool, bit: 5, kind: state}
";

/// A meter that answers for whole values only.
pub const STRICT: &str = "
limits: {wholeValueReads: true}
registers:
- {name: voltage_l1_n, address: 1, function: holding, type: f32, unit: V}
- {name: current_l1, address: 3, function: holding, type: f32, unit: A}
- {name: frequency, address: 55, function: holding, type: f32, unit: Hz}
";

/// A meter that wants even counts.
pub const EVEN: &str = "
limits: {evenRegisterCount: true}
registers:
- {name: frequency, address: 7, function: holding, type: u16, scale: 0.01, unit: Hz}
";

/// A SunSpec meter, a part of model 203.
pub const SUNSPEC: &str = "
base: {sunspecModel: 203}
invalid: [{type: i16, value: '0x8000'}, {type: u32, value: '0x00000000'}]
registers:
- {name: current_l1, address: 3, function: holding, type: i16, unit: A, scaleFrom: {address: 6}}
- {name: voltage_l1_n, address: 8, function: holding, type: i16, unit: V, scaleFrom: {address: 15}}
- {name: active_power_total, address: 18, function: holding, type: i16, unit: W, scaleFrom: {address: 22}}
- {name: power_factor_total, address: 33, function: holding, type: i16, unit: '%', scaleFrom: {address: 37}}
- {name: energy_active_export, address: 38, function: holding, type: u32, unit: Wh, kind: counter, scaleFrom: {address: 54}}
- {name: energy_active_import, address: 46, function: holding, type: u32, unit: Wh, kind: counter, scaleFrom: {address: 54}}
";

/// A configuration with one endpoint of each transport, the same meters behind both: units 1 to 4.
pub fn plant() -> PollerConfig {
    let meters = |suffix: &str| {
        let one = |(i, profile): (usize, &str)| Meter {
            name: format!("{profile}-{suffix}"),
            unit_id: i as i32 + 1,
            profile: Some(profile.to_owned()),
            ..Meter::default()
        };
        ["panel", "strict", "even", "sunspec"]
            .into_iter()
            .enumerate()
            .map(one)
            .collect()
    };
    let endpoint = |name: &str, transport| Endpoint {
        name: name.to_owned(),
        address: "192.0.2.1:1502".to_owned(),
        transport,
        meters: meters(name),
        ..Endpoint::default()
    };
    PollerConfig {
        namespace: "test".to_owned(),
        name: "plant".to_owned(),
        shard: 0,
        interval: Duration::from_secs(1),
        timeout: Duration::from_secs(1),
        retries: 0,
        maps: BTreeMap::from(
            [
                ("panel", PANEL),
                ("strict", STRICT),
                ("even", EVEN),
                ("sunspec", SUNSPEC),
            ]
            .map(|(name, yaml)| (format!("profile/{name}"), map(yaml))),
        ),
        endpoints: vec![
            endpoint("tcp", Transport::Tcp),
            endpoint("rtu", Transport::RtuOverTcp),
        ],
        output: KafkaOutput::default(),
        buffer: Buffer::default(),
        secrets: Secrets::default(),
    }
}

/// A clock that the test sets.
#[derive(Clone)]
pub struct TestClock(Arc<AtomicI64>);

impl TestClock {
    pub fn at(text: &str) -> Self {
        let time: Timestamp = text.parse().unwrap();
        Self(Arc::new(AtomicI64::new(time.0)))
    }

    pub fn advance(&self, millis: i64) {
        self.0.fetch_add(millis, Ordering::SeqCst);
    }

    pub fn clock(&self) -> Clock {
        let time = Arc::clone(&self.0);
        Arc::new(move || Timestamp(time.load(Ordering::SeqCst)))
    }
}

/// Serves the plant with load curves.
pub async fn serve(clock: &TestClock, unknown: UnknownUnit) -> Served {
    Simulation::new(&[plant()], LoadSource::default(), clock.clock())
        .unwrap()
        .with_unknown_units(unknown)
        .serve(HERE, Ports::Ephemeral)
        .await
        .unwrap()
}

/// A connection to an endpoint of the plant.
pub async fn connect(served: &Served, endpoint: &str) -> Context {
    let address: SocketAddr = served.addresses[endpoint];
    let stream = TcpStream::connect(address).await.unwrap();
    match endpoint {
        "rtu" => rtu::attach_slave(stream, Slave(1)),
        _ => tcp::attach_slave(stream, Slave(1)),
    }
}

/// Reads every value of a map from the unit that is selected.
pub async fn read_all(client: &mut Context, map: &CompiledMap) -> BTreeMap<String, Result<Value, BadValue>> {
    let mut plan = ReadPlan::build(map, &CostModel::default());
    if let Some(mut walk) = Walk::for_map(map) {
        let base = loop {
            match walk.step() {
                Step::Read { address, count } => {
                    match client.read_holding_registers(address, count).await.unwrap() {
                        Ok(words) => walk.words(&words),
                        Err(_) => walk.refused(),
                    }
                }
                Step::Found(base) => break base,
                Step::Failed(error) => panic!("{error}"),
            }
        };
        plan = plan.at(base).unwrap();
    }
    let mut values = BTreeMap::new();
    for request in &plan.requests {
        let (at, n) = (request.address, request.count);
        let mut out = |i: usize, value| {
            values.insert(map.values[i].name.to_string(), value);
        };
        match request.function {
            Function::Coil => decode(
                map,
                request,
                &client.read_coils(at, n).await.unwrap().unwrap(),
                &mut out,
            ),
            Function::Discrete => {
                decode(
                    map,
                    request,
                    &client.read_discrete_inputs(at, n).await.unwrap().unwrap(),
                    &mut out,
                );
            }
            Function::Holding => {
                decode(
                    map,
                    request,
                    &client.read_holding_registers(at, n).await.unwrap().unwrap(),
                    &mut out,
                );
            }
            Function::Input => {
                decode(
                    map,
                    request,
                    &client.read_input_registers(at, n).await.unwrap().unwrap(),
                    &mut out,
                );
            }
        }
    }
    values
}

/// The exception that a read of holding registers is refused with.
pub async fn refusal(client: &mut Context, address: u16, count: u16) -> Option<ExceptionCode> {
    client.read_holding_registers(address, count).await.unwrap().err()
}
