//! Meters to test against: they answer, refuse and stay silent as a test says, and note who asked what.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::panic)]

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use corrente_config::PollerConfig;
use corrente_record::Record;
use corrente_runtime::{
    broker::{Source, SourceEvent, Start},
    memory::MemorySource,
};
use tokio::net::TcpListener;
use tokio_modbus::{
    ExceptionCode, Request, Response, SlaveRequest,
    server::{Service, rtu_over_tcp, tcp},
};

#[derive(Default)]
pub struct Unit {
    pub holding: BTreeMap<u16, u16>,
    pub input: BTreeMap<u16, u16>,
    pub coils: BTreeMap<u16, bool>,
    pub refused: BTreeSet<u16>,
    pub silent: bool,
    /// Exceptions to answer the next requests with.
    pub exceptions: Vec<u8>,
    pub delay: Duration,
    /// Most registers in one read; 0 for no bound.
    pub most: u16,
}

/// Unit, function code, address, count.
pub type Asked = (u8, u8, u16, u16);

#[derive(Default)]
pub struct Plant {
    pub units: BTreeMap<u8, Unit>,
    pub asked: Vec<Asked>,
}

#[derive(Clone)]
pub struct Device {
    pub address: SocketAddr,
    pub plant: Arc<Mutex<Plant>>,
    pub connections: Arc<AtomicUsize>,
    task: Arc<Abort>,
}

struct Abort(tokio::task::JoinHandle<()>);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Device {
    pub async fn tcp() -> Self {
        Self::serve(TcpListener::bind("127.0.0.1:0").await.unwrap(), false)
    }

    pub async fn rtu() -> Self {
        Self::serve(TcpListener::bind("127.0.0.1:0").await.unwrap(), true)
    }

    pub fn serve(listener: TcpListener, rtu: bool) -> Self {
        let address = listener.local_addr().unwrap();
        let plant = Arc::new(Mutex::new(Plant::default()));
        let connections = Arc::new(AtomicUsize::new(0));
        let (served, counted) = (plant.clone(), connections.clone());
        let task = tokio::spawn(async move {
            let connected = move |stream: tokio::net::TcpStream, _| {
                counted.fetch_add(1, Ordering::Relaxed);
                let service = Units(served.clone());
                async move {
                    stream.set_nodelay(true)?;
                    Ok(Some((service, stream)))
                }
            };
            if rtu {
                let server = rtu_over_tcp::Server::new(listener);
                server.serve(&connected, |_| {}).await.unwrap();
            } else {
                let server = tcp::Server::new(listener);
                server.serve(&connected, |_| {}).await.unwrap();
            }
        });
        Self {
            address,
            plant,
            connections,
            task: Arc::new(Abort(task)),
        }
    }

    /// Changes a unit; makes it where there is none.
    pub fn unit(&self, unit: u8, change: impl FnOnce(&mut Unit)) {
        change(self.plant.lock().unwrap().units.entry(unit).or_default());
    }

    pub fn set(&self, unit: u8, first: u16, words: &[u16]) {
        self.unit(unit, |unit| {
            unit.holding.extend((first..).zip(words.iter().copied()))
        });
    }

    /// What was asked since the last call.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.plant.lock().unwrap().asked)
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

struct Units(Arc<Mutex<Plant>>);

impl Service for Units {
    type Request = SlaveRequest<'static>;
    type Response = Option<Response>;
    type Exception = ExceptionCode;
    type Future = Pin<Box<dyn Future<Output = Result<Option<Response>, ExceptionCode>> + Send>>;

    fn call(&self, asked: SlaveRequest<'static>) -> Self::Future {
        let (answer, delay) = {
            let mut plant = self.0.lock().unwrap();
            let (code, address, count) = match asked.request {
                Request::ReadCoils(address, count) => (1, address, count),
                Request::ReadDiscreteInputs(address, count) => (2, address, count),
                Request::ReadHoldingRegisters(address, count) => (3, address, count),
                Request::ReadInputRegisters(address, count) => (4, address, count),
                ref other => panic!("a poller never sends {other:?}"),
            };
            plant.asked.push((asked.slave, code, address, count));
            match plant.units.get_mut(&asked.slave) {
                None => (Err(ExceptionCode::GatewayTargetDevice), Duration::ZERO),
                Some(unit) => (answer(unit, code, address, count), unit.delay),
            }
        };
        Box::pin(async move {
            tokio::time::sleep(delay).await;
            answer
        })
    }
}

fn answer(unit: &mut Unit, code: u8, address: u16, count: u16) -> Result<Option<Response>, ExceptionCode> {
    if unit.silent {
        return Ok(None);
    }
    if !unit.exceptions.is_empty() {
        return Err(ExceptionCode::new(unit.exceptions.remove(0)));
    }
    let range = address..address + count;
    if unit.most > 0 && count > unit.most {
        return Err(ExceptionCode::IllegalDataValue);
    }
    if unit.refused.iter().any(|refused| range.contains(refused)) {
        return Err(ExceptionCode::IllegalDataAddress);
    }
    let words = |table: &BTreeMap<u16, u16>| range.clone().map(|at| table.get(&at).copied()).collect();
    let bits = |table: &BTreeMap<u16, bool>| range.clone().map(|at| table.get(&at).copied()).collect();
    let response = match code {
        1 => Option::map(bits(&unit.coils), Response::ReadCoils),
        2 => Option::map(bits(&unit.coils), Response::ReadDiscreteInputs),
        3 => Option::map(words(&unit.holding), Response::ReadHoldingRegisters),
        _ => Option::map(words(&unit.input), Response::ReadInputRegisters),
    };
    response.map(Some).ok_or(ExceptionCode::IllegalDataAddress)
}

/// A configuration with one map named `m`, and endpoints as in the resource.
pub fn config(registers: serde_json::Value, endpoints: serde_json::Value) -> PollerConfig {
    serde_json::from_value(serde_json::json!({
        "namespace": "plant", "name": "test", "shard": 0,
        "interval": "250ms", "timeout": "150ms", "retries": 0,
        "maps": {"map/m": registers},
        "endpoints": endpoints,
        "output": {"bootstrapServers": ["unused:9092"], "topic": "meters"},
        "buffer": {"maxBytes": 16_777_216, "syncInterval": "10ms"},
    }))
    .unwrap()
}

/// A map of four unsigned registers from address 10.
pub fn four() -> serde_json::Value {
    serde_json::json!({"registers": [
        {"name": "a", "address": 10, "function": "holding", "type": "u16"},
        {"name": "b", "address": 11, "function": "holding", "type": "u16"},
        {"name": "c", "address": 12, "function": "holding", "type": "u16"},
        {"name": "d", "address": 13, "function": "holding", "type": "u16"},
    ]})
}

pub fn meter(name: &str, unit: u8) -> serde_json::Value {
    serde_json::json!({"name": name, "unitId": unit, "registerMap": "m"})
}

/// Takes records off a broker as they come, which counts as storing them, and gives them one after the other.
pub struct Records {
    taken: tokio::sync::mpsc::UnboundedReceiver<Record>,
    _task: Abort,
}

impl Records {
    pub fn new(source: MemorySource) -> Self {
        let (sender, taken) = tokio::sync::mpsc::unbounded_channel();
        Self {
            taken,
            _task: Abort(tokio::spawn(take(source, sender))),
        }
    }

    pub async fn next(&mut self) -> Record {
        self.taken.recv().await.expect("the task that takes them ended")
    }

    /// The next record that fits.
    pub async fn find(&mut self, fits: impl Fn(&Record) -> bool) -> Record {
        loop {
            let record = self.next().await;
            if fits(&record) {
                return record;
            }
        }
    }
}

async fn take(mut source: MemorySource, sender: tokio::sync::mpsc::UnboundedSender<Record>) {
    loop {
        match source.next().await {
            SourceEvent::Assigned(all) => {
                let starts = all.into_iter().map(|place| (place, Start::Beginning)).collect();
                source.start(starts);
            }
            SourceEvent::Messages(place, messages) => {
                for message in messages.iter() {
                    let record = Record::parse(message.payload.unwrap()).unwrap();
                    // A test may have seen enough.
                    let _ = sender.send(record);
                }
                let next = messages.last().unwrap().offset + 1;
                source.commit(vec![(place, next)]);
            }
            other => panic!("{other:?}"),
        }
    }
}
