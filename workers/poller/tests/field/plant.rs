//! Plants of simulated meters whose values say where they are from, and a poller that reads them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use corrente_config::{PollerConfig, Secrets};
use corrente_poller::PollerState;
use corrente_record::{Quality, Record, Value};
use corrente_runtime::memory::MemoryBroker;
use corrente_simulator::{Faults, Grid, History, LoadSource, Ports, Served, Simulation, system_clock, tls};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{certificates, common::Records};

/// Two blocks too far apart for one request, of one length, so that the answer to one fits the other.
pub const ADDRESSES: [u16; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 500, 501, 502, 503, 504, 505, 506, 507];
pub const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// An endpoint: its name, how it is spoken to, and its units.
#[derive(Clone)]
pub struct Line(pub &'static str, pub &'static str, pub Vec<u8>);

/// What the register at this address of this unit holds, in every table.
pub fn truth(unit: u8, address: u16) -> i64 {
    i64::from(unit) * 1000 % 64_000 + i64::from(address)
}

/// The lines as a poller is told of them, with addresses that nobody has yet.
pub fn config(lines: &[Line], interval: &str, timeout: &str) -> PollerConfig {
    let registers: Vec<_> = ADDRESSES
        .iter()
        .map(|at| json!({"name": format!("r{at}"), "address": at, "function": "holding", "type": "u16"}))
        .collect();
    let endpoints: Vec<_> = lines
        .iter()
        .map(|Line(name, transport, units)| {
            let meter =
                |unit: &u8| json!({"name": format!("{name}-{unit}"), "unitId": unit, "registerMap": "m"});
            let meters: Vec<_> = units.iter().map(meter).collect();
            let mut endpoint =
                json!({"name": name, "address": "127.0.0.1:1", "transport": transport, "meters": meters});
            if *transport == "tls" {
                endpoint["tls"] = json!({"secretName": certificates::SECRET});
            }
            endpoint
        })
        .collect();
    let config: PollerConfig = serde_json::from_value(json!({
        "namespace": "plant", "name": "field", "shard": 0,
        "interval": interval, "timeout": timeout, "retries": 0,
        "maps": {"map/m": {"registers": registers}},
        "endpoints": endpoints,
        "output": {"bootstrapServers": ["unused:9092"], "topic": "meters"},
        "buffer": {"maxBytes": 16_777_216, "syncInterval": "100ms"},
    }))
    .unwrap();
    PollerConfig {
        secrets: Secrets::new(certificates::root()),
        ..config
    }
}

/// A history in which every register holds its truth.
fn truths(config: &PollerConfig) -> History {
    let mut csv = "time,meter".to_owned();
    for at in ADDRESSES {
        csv += &format!(",r{at}");
    }
    for meter in config.endpoints.iter().flat_map(|endpoint| &endpoint.meters) {
        csv += &format!("\n2026-01-01T00:00:00Z,{}", meter.name);
        for at in ADDRESSES {
            csv += &format!(",{}", truth(u8::try_from(meter.unit_id).unwrap(), at));
        }
    }
    History::read(csv.as_bytes()).unwrap()
}

/// Serves the configuration's meters, and tells it where they are.
pub async fn serve(config: &mut PollerConfig, faults: Faults) -> Served {
    let source = LoadSource::History(Arc::new(truths(config)), Grid::default());
    let simulation = Simulation::new(std::slice::from_ref(config), source, system_clock())
        .unwrap()
        .with_faults(faults)
        .unwrap_or_else(|problems| panic!("{problems:?}"))
        .with_certificates(tls::load(&certificates::folder()).unwrap());
    let served = simulation.serve(HERE, Ports::Ephemeral).await.unwrap();
    for endpoint in &mut config.endpoints {
        endpoint.address = served.addresses[&endpoint.name].to_string();
    }
    served
}

/// A poller at work, and what it has published.
pub struct Polling {
    records: Records,
    /// The records of each meter, in the order in which they came.
    pub seen: BTreeMap<String, Vec<Record>>,
    shutdown: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
    _spool: tempfile::TempDir,
}

impl Polling {
    pub fn start(config: PollerConfig) -> Self {
        let (spool, broker) = (tempfile::tempdir().unwrap(), MemoryBroker::new(1));
        let records = Records::new(broker.source(&["meters".to_owned()]));
        let (state, shutdown) = (Arc::new(PollerState::new(None)), CancellationToken::new());
        let task = tokio::spawn({
            let (shutdown, dir) = (shutdown.clone(), spool.path().to_owned());
            async move {
                let producer = |deliveries| Ok(broker.producer("meters", deliveries));
                corrente_poller::run(config, &dir, producer, state, shutdown).await
            }
        });
        Self {
            records,
            seen: BTreeMap::new(),
            shutdown,
            task,
            _spool: spool,
        }
    }

    /// Takes records until enough was seen. No value is another register's or another unit's, ever.
    pub async fn until(&mut self, enough: impl Fn(&BTreeMap<String, Vec<Record>>) -> bool) {
        while !enough(&self.seen) {
            let record = self.records.next().await;
            check_values(&record);
            self.seen.entry(record.meter.clone()).or_default().push(record);
        }
    }

    /// Takes records until this meter has so many.
    pub async fn until_count(&mut self, meter: &str, count: usize) {
        self.until(|seen| seen.get(meter).is_some_and(|records| records.len() >= count))
            .await;
    }

    pub fn of(&self, meter: &str) -> &[Record] {
        self.seen.get(meter).map_or(&[], Vec::as_slice)
    }

    pub async fn end(self) {
        self.shutdown.cancel();
        // The promise is five seconds; hanging is what this catches.
        let ended = tokio::time::timeout(Duration::from_secs(10), self.task).await;
        ended.expect("it did not end in time").unwrap().unwrap();
    }
}

fn check_values(record: &Record) {
    let unit: u8 = record.meter.rsplit_once('-').unwrap().1.parse().unwrap();
    for (name, value) in &record.fields {
        let address = name.strip_prefix('r').and_then(|at| at.parse().ok());
        if let Some(address) = address {
            assert_eq!(
                *value,
                Value::Int(truth(unit, address)),
                "{name} of {}: a value from elsewhere",
                record.meter
            );
        }
    }
}

/// Asserts that these are all slots in a row, each read well.
pub fn assert_every_slot(what: &str, records: &[Record], interval: i64) {
    for record in records {
        assert_eq!(record.quality, Some(Quality::Good), "{what}: {}", show(records));
    }
    for pair in records.windows(2) {
        let gap = pair[1].slot.unwrap().0 - pair[0].slot.unwrap().0;
        assert_eq!(gap, interval, "{what}: a slot is missing: {}", show(records));
    }
}

/// Records in a line each: the slot, the quality, and why a value is missing.
pub fn show(records: &[Record]) -> String {
    let line = |record: &Record| {
        let reason = bad(record).into_iter().next().unwrap_or_default();
        format!("\n  {} {:?} {reason:?}", record.slot.unwrap().0, record.quality)
    };
    records.iter().map(line).collect()
}

/// The records from the first good one on.
pub fn since_good(records: &[Record]) -> &[Record] {
    let first = records
        .iter()
        .position(|record| record.quality == Some(Quality::Good));
    &records[first.unwrap_or(records.len())..]
}

/// What is named in `bad`, with the reasons.
pub fn bad(record: &Record) -> BTreeMap<String, String> {
    let json = record.bad.as_deref().unwrap_or("{}");
    serde_json::from_str(json).unwrap()
}
