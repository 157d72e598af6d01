//! Several requests in flight, over real sockets: answers in any order, a unit that is silent, and a device that takes
//! one request at a time whatever it was said to take.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use common::{Records, config, meter};
use corrente_poller::PollerState;
use corrente_record::{Quality, Record, Value};
use corrente_runtime::memory::MemoryBroker;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

const UNITS: [u8; 6] = [1, 2, 3, 4, 5, 6];
const IN_FLIGHT: usize = 4;
/// What comes after this was not in flight together with what came before.
const TOGETHER: Duration = Duration::from_millis(20);

/// What happens behind the server's address.
#[derive(Default)]
struct Plant {
    silent: BTreeSet<u8>,
    /// One request at a time is answered; what comes meanwhile is dropped.
    one_at_a_time: bool,
    /// Unit and address, and the connection it came on.
    asked: Vec<(u8, u16, usize)>,
    connections: usize,
    /// Most requests that were in flight together.
    together: usize,
}

type Shared = Arc<Mutex<Plant>>;

async fn serve(plant: Plant) -> (SocketAddr, Shared) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, plant) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(plant)));
    tokio::spawn({
        let plant = plant.clone();
        async move {
            while let Ok((stream, _)) = listener.accept().await {
                plant.lock().unwrap().connections += 1;
                tokio::spawn(connection(stream, plant.clone()));
            }
        }
    });
    (address, plant)
}

async fn requests(mut stream: OwnedReadHalf, sender: mpsc::UnboundedSender<[u8; 12]>) {
    let mut request = [0; 12];
    while stream.read_exact(&mut request).await.is_ok() && sender.send(request).is_ok() {}
}

async fn connection(stream: TcpStream, plant: Shared) {
    stream.set_nodelay(true).unwrap();
    let (read, mut write) = stream.into_split();
    let (sender, mut came) = mpsc::unbounded_channel();
    tokio::spawn(requests(read, sender));
    while let Some(first) = came.recv().await {
        let mut batch = vec![first];
        let end = tokio::time::sleep(TOGETHER);
        tokio::pin!(end);
        while batch.len() < IN_FLIGHT {
            tokio::select! {
                more = came.recv() => match more {
                    Some(request) => batch.push(request),
                    None => break,
                },
                () = &mut end => break,
            }
        }
        let answers: Vec<u8> = {
            let mut plant = plant.lock().unwrap();
            plant.together = plant.together.max(batch.len());
            let connection = plant.connections;
            for request in &batch {
                let address = u16::from_be_bytes([request[8], request[9]]);
                plant.asked.push((request[6], address, connection));
            }
            if plant.one_at_a_time {
                batch.truncate(1);
            }
            // The last that was asked for comes first.
            batch
                .iter()
                .rev()
                .filter(|request| !plant.silent.contains(&request[6]))
                .flat_map(answer)
                .collect()
        };
        if write.write_all(&answers).await.is_err() {
            return;
        }
    }
}

/// Each register holds its unit times 1000, and its address.
fn answer(request: &[u8; 12]) -> Vec<u8> {
    let [t0, t1, _, _, _, _, unit, function, a0, a1, c0, c1] = *request;
    let (address, count) = (u16::from_be_bytes([a0, a1]), u16::from_be_bytes([c0, c1]));
    let words = (address..address + count).map(|at| u16::from(unit) * 1000 + at);
    let length = 3 + 2 * count as u8;
    let mut answer = vec![t0, t1, 0, 0, 0, length, unit, function, 2 * count as u8];
    answer.extend(words.flat_map(u16::to_be_bytes));
    answer
}

struct Running {
    records: Records,
    seen: BTreeMap<String, Vec<Record>>,
    shutdown: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Running {
    /// Two requests a meter, so that some of one meter are in flight with some of the next.
    fn start(address: SocketAddr) -> Self {
        let registers = serde_json::json!({"registers": [
            {"name": "r10", "address": 10, "function": "holding", "type": "u16"},
            {"name": "r11", "address": 11, "function": "holding", "type": "u16"},
            {"name": "r500", "address": 500, "function": "holding", "type": "u16"},
        ]});
        let meters = UNITS.map(|unit| meter(&unit.to_string(), unit));
        let mut endpoint = serde_json::json!([{
            "name": "e", "address": address.to_string(), "meters": meters.to_vec(), "maxInFlight": IN_FLIGHT,
        }]);
        endpoint[0]["transport"] = "tcp".into();
        let mut config = config(registers, endpoint);
        config.interval = "1s".parse().unwrap();
        config.timeout = "300ms".parse().unwrap();
        let (dir, broker) = (tempfile::tempdir().unwrap(), MemoryBroker::new(1));
        let records = Records::new(broker.source(&["meters".to_owned()]));
        let shutdown = CancellationToken::new();
        tokio::spawn({
            let (shutdown, dir) = (shutdown.clone(), dir.path().to_owned());
            async move {
                let producer = |deliveries| Ok(broker.producer("meters", deliveries));
                let state = Arc::new(PollerState::new(None));
                corrente_poller::run(config, &dir, producer, state, shutdown)
                    .await
                    .unwrap();
            }
        });
        Self {
            records,
            seen: BTreeMap::new(),
            shutdown,
            _dir: dir,
        }
    }

    /// Takes records until this is so; whatever they hold is right.
    async fn until(&mut self, enough: impl Fn(&BTreeMap<String, Vec<Record>>) -> bool) {
        while !enough(&self.seen) {
            let record = self.records.next().await;
            let unit: i64 = record.meter.parse().unwrap();
            for (name, value) in &record.fields {
                let address: i64 = name.trim_start_matches('r').parse().unwrap();
                assert_eq!(*value, Value::Int(unit * 1000 + address), "{name} of {unit}");
            }
            self.seen.entry(record.meter.clone()).or_default().push(record);
        }
    }

    /// Takes records until each meter has this many more.
    async fn more(&mut self, count: usize) -> BTreeMap<String, Vec<Record>> {
        self.seen.clear();
        self.until(|seen| {
            UNITS
                .iter()
                .all(|unit| seen.get(&unit.to_string()).is_some_and(|it| it.len() >= count))
        })
        .await;
        std::mem::take(&mut self.seen)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn is_good(record: &Record) -> bool {
    record.quality == Some(Quality::Good)
}

/// Every slot is there, and good.
fn assert_every_slot(meter: &str, records: &[Record]) {
    assert!(records.iter().all(is_good), "{meter}: {records:?}");
    for pair in records.windows(2) {
        assert_eq!(pair[1].slot.unwrap().0 - pair[0].slot.unwrap().0, 1000, "{meter}");
    }
}

async fn until_all_good(running: &mut Running) {
    running
        .until(|seen| {
            UNITS.iter().all(|unit| {
                seen.get(&unit.to_string())
                    .is_some_and(|it| it.last().is_some_and(is_good))
            })
        })
        .await;
}

#[tokio::test]
async fn answers_in_any_order_become_the_records_of_their_meters_and_a_silent_unit_costs_nobody_a_slot() {
    let (address, plant) = serve(Plant::default()).await;
    let mut running = Running::start(address);
    until_all_good(&mut running).await;
    for (meter, records) in running.more(3).await {
        assert_every_slot(&meter, &records);
    }
    {
        let mut plant = plant.lock().unwrap();
        assert_eq!((plant.together, plant.connections), (IN_FLIGHT, 1));
        plant.asked.clear();
        plant.silent.insert(3);
    }
    running.seen.clear();
    let failed = |seen: &BTreeMap<String, Vec<Record>>| {
        seen.get("3")
            .is_some_and(|records| records.iter().any(|record| !is_good(record)))
    };
    running.until(failed).await;
    // What was lost ahead of its turn is not asked for again in its turn, which would cost another timeout.
    let asked = plant.lock().unwrap().asked.clone();
    assert!(asked.iter().any(|it| it.0 == 3 && it.2 == 1), "{asked:?}");
    assert!(!asked.iter().any(|it| it.0 == 3 && it.2 > 1), "{asked:?}");
    for (meter, records) in running.more(5).await {
        if meter != "3" {
            assert_every_slot(&meter, &records);
        }
    }
    plant.lock().unwrap().silent.clear();
    running.seen.clear();
    until_all_good(&mut running).await;
}

#[tokio::test]
async fn a_device_that_takes_one_request_at_a_time_is_asked_one_at_a_time() {
    let (address, plant) = serve(Plant {
        one_at_a_time: true,
        ..Plant::default()
    })
    .await;
    let mut running = Running::start(address);
    until_all_good(&mut running).await;
    let before = plant.lock().unwrap().connections;
    for (meter, records) in running.more(5).await {
        assert_every_slot(&meter, &records);
    }
    // Each that is in vain costs a connection.
    let connections = plant.lock().unwrap().connections - before;
    assert!(
        connections <= 2,
        "{connections} connections were lost to it in five slots"
    );
}
