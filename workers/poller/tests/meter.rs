//! One meter on one line: what is asked, what comes of it, and what a fault costs.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use common::{Device, Unit, four};
use corrente_config::EndpointAddress;
use corrente_crds::{
    poller::Transport,
    profile::{Function, RegisterMap},
};
use corrente_modbus::{CompiledMap, CostModel};
use corrente_poller::{
    client::{Connector, ModbusClient, ReadBlock, ReadError, Registers, TcpConnector},
    line::Line,
    meter::{Meter, Poll, Verdict},
};
use corrente_record::{Quality, Reading, Timestamp, Value};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const SLOT: Timestamp = Timestamp(1_795_213_200_000);

fn connector(address: impl ToString, transport: Transport) -> TcpConnector {
    let address = EndpointAddress::normalise(&address.to_string()).unwrap();
    TcpConnector::new(&address, transport, Duration::from_millis(200))
}

fn line(device: &Device, transport: Transport) -> Line<TcpConnector> {
    Line::new(connector(device.address, transport), Duration::ZERO, ())
}

fn meter(unit: u8, map: serde_json::Value) -> Meter {
    let map: RegisterMap = serde_json::from_value(map).unwrap();
    let map = Arc::new(CompiledMap::compile(&map, &[]).unwrap());
    let labels = BTreeMap::from([("feeder".to_owned(), "f1".to_owned())]);
    Meter::new("m1", unit, labels, map, CostModel::default())
}

fn values(reading: &Reading) -> Vec<(&str, Value)> {
    let values = reading.values.iter();
    values.map(|(name, value)| (&**name, value.clone())).collect()
}

fn bad(reading: &Reading) -> Vec<(&str, &str)> {
    let bad = reading.bad.iter();
    bad.map(|(name, reason)| (&**name, reason.as_str())).collect()
}

#[tokio::test]
async fn reads_every_table_over_both_transports() {
    let map = serde_json::json!({"registers": [
        {"name": "power", "address": 100, "function": "holding", "type": "i32", "scale": 0.1},
        {"name": "energy", "address": 102, "function": "holding", "type": "u64"},
        {"name": "voltage", "address": 7, "function": "input", "type": "f32"},
        {"name": "closed", "address": 3, "function": "coil", "type": "bool"},
        {"name": "alarm", "address": 12, "function": "discrete", "type": "bool"},
    ]});
    for transport in [Transport::Tcp, Transport::RtuOverTcp] {
        let device = match transport {
            Transport::RtuOverTcp => Device::rtu().await,
            _ => Device::tcp().await,
        };
        device.set(5, 100, &[0xffff, 0xfffe, 0, 0, 1, 2]);
        device.unit(5, |unit: &mut Unit| {
            unit.input.extend([(7, 0x4366), (8, 0x0000)]);
            unit.coils.extend((0..20).map(|at| (at, at == 3)));
        });
        let mut line = line(&device, transport);
        let Poll {
            reading,
            verdict,
            reason,
            ..
        } = meter(5, map.clone()).poll(&mut line, SLOT, 0).await;
        assert_eq!((verdict, reason), (Verdict::Answered, None));
        assert_eq!((reading.quality, reading.slot), (Quality::Good, SLOT));
        assert_eq!(reading.labels["feeder"], "f1");
        assert_eq!(
            values(&reading),
            [
                ("power", Value::Float(-0.2)),
                ("energy", Value::UInt(65_538)),
                ("voltage", Value::Float(230.0)),
                ("closed", Value::Bool(true)),
                ("alarm", Value::Bool(false)),
            ],
            "{transport:?}"
        );
        assert_eq!(device.asked().len(), 4, "one request for each table");
    }
}

#[tokio::test]
async fn a_bad_register_costs_one_register() {
    let device = Device::tcp().await;
    device.set(1, 10, &[1, 2, 3, 4]);
    device.unit(1, |unit| unit.refused = [12].into());
    let (mut line, mut meter) = (line(&device, Transport::Tcp), meter(1, four()));
    let why = "exception 02: illegal data address";
    let first = meter.poll(&mut line, SLOT, 0).await;
    assert_eq!(first.reading.quality, Quality::Partial);
    assert_eq!(bad(&first.reading), [("c", why)]);
    assert_eq!(
        values(&first.reading),
        [("a", Value::Int(1)), ("b", Value::Int(2)), ("d", Value::Int(4))]
    );
    assert_eq!(
        first.reason.as_deref(),
        Some("c: exception 02: illegal data address")
    );
    // The block, its halves, and those of the bad one.
    assert_eq!(device.asked().len(), 5);
    let second = meter.poll(&mut line, SLOT, 0).await;
    assert_eq!(bad(&second.reading), [("c", why)]);
    assert_eq!(second.reading.values.len(), 3);
    // The refused register is asked for no more, not even as a gap between its neighbours.
    let asked = device.asked();
    assert_eq!(asked, [(1, 3, 10, 2), (1, 3, 13, 1)]);
}

#[tokio::test]
async fn a_gap_that_cannot_be_read_is_learned_about_once() {
    let map = serde_json::json!({"registers": [
        {"name": "a", "address": 10, "function": "holding", "type": "u16"},
        {"name": "b", "address": 11, "function": "holding", "type": "u16"},
        {"name": "c", "address": 20, "function": "holding", "type": "u16"},
    ]});
    let device = Device::tcp().await;
    device.set(1, 10, &[1, 2]);
    device.set(1, 20, &[3]);
    let (mut line, mut meter) = (line(&device, Transport::Tcp), meter(1, map));
    for asked in [
        // The block, its halves, and the gap between them.
        &[(1, 3, 10, 11), (1, 3, 10, 2), (1, 3, 20, 1), (1, 3, 11, 10)][..],
        &[(1, 3, 10, 2), (1, 3, 20, 1)],
        &[(1, 3, 10, 2), (1, 3, 20, 1)],
    ] {
        let poll = meter.poll(&mut line, SLOT, 0).await;
        assert_eq!((poll.reading.quality, poll.reason), (Quality::Good, None));
        assert_eq!(device.asked(), asked);
    }
}

#[tokio::test]
async fn a_block_that_is_too_long_for_the_meter_is_read_apart() {
    let device = Device::tcp().await;
    device.set(1, 10, &[1, 2, 3, 4]);
    device.unit(1, |unit| unit.most = 1);
    let (mut line, mut meter) = (line(&device, Transport::Tcp), meter(1, four()));
    // The block, its halves, and theirs; from then on it is known.
    for asked in [7, 4, 4, 4] {
        let poll = meter.poll(&mut line, SLOT, 0).await;
        assert_eq!((poll.reading.quality, poll.reason), (Quality::Good, None));
        assert_eq!(device.asked().len(), asked);
    }
}

#[tokio::test]
async fn a_meter_that_refuses_everything_is_asked_again_soon() {
    let device = Device::tcp().await;
    device.unit(1, |_| {});
    let (mut line, mut meter) = (line(&device, Transport::Tcp), meter(1, four()));
    let poll = meter.poll(&mut line, SLOT, 0).await;
    assert_eq!(
        (poll.verdict, poll.reading.quality),
        (Verdict::Answered, Quality::Failed)
    );
    assert_eq!(poll.reading.bad.len(), 4);
    assert_eq!(device.asked().len(), 7);
    // Within the minute it is not asked at all, and the reason stays.
    let poll = meter.poll(&mut line, SLOT, 0).await;
    assert_eq!(bad(&poll.reading)[3], ("d", "exception 02: illegal data address"));
    assert_eq!(device.asked(), []);
}

#[tokio::test]
async fn a_group_that_belongs_together_is_refused_together() {
    let map = serde_json::json!({"registers": [
        {"name": "a", "address": 10, "function": "holding", "type": "u16"},
        {"name": "b", "address": 11, "function": "holding", "type": "u16", "coherent": "g"},
        {"name": "c", "address": 12, "function": "holding", "type": "u16", "coherent": "g"},
    ]});
    let device = Device::tcp().await;
    device.set(1, 10, &[1, 2, 3]);
    device.unit(1, |unit| unit.refused = [12].into());
    let (mut line, mut meter) = (line(&device, Transport::Tcp), meter(1, map));
    let poll = meter.poll(&mut line, SLOT, 0).await;
    assert_eq!(values(&poll.reading), [("a", Value::Int(1))]);
    assert_eq!(poll.reading.bad.len(), 2);
    assert!(
        !device.asked().contains(&(1, 3, 11, 1)),
        "b alone would not be of one moment with c"
    );
}

#[tokio::test]
async fn a_silent_unit_is_named_and_its_connection_is_dropped() {
    let device = Device::tcp().await;
    device.set(1, 10, &[1, 2, 3, 4]);
    device.unit(1, |unit| unit.silent = true);
    let (mut line, mut meter) = (line(&device, Transport::Tcp), meter(1, four()));
    let poll = meter.poll(&mut line, SLOT, 2).await;
    assert_eq!(
        (poll.verdict, poll.reading.quality),
        (Verdict::Silent, Quality::Failed)
    );
    assert_eq!(poll.reason.as_deref(), Some("no answer within 200 ms"));
    assert_eq!(poll.reading.bad.len(), 4);
    assert_eq!(
        (device.asked().len(), device.connections()),
        (3, 3),
        "a try, and two more"
    );
    assert!(!line.is_connected());
    device.unit(1, |unit| unit.silent = false);
    let poll = meter.poll(&mut line, SLOT, 0).await;
    assert_eq!(
        (poll.verdict, poll.reading.quality),
        (Verdict::Answered, Quality::Good)
    );
}

#[tokio::test]
async fn exceptions_are_told_apart() {
    let device = Device::tcp().await;
    device.set(1, 10, &[1, 2, 3, 4]);
    let (mut line, mut meter) = (line(&device, Transport::Tcp), meter(1, four()));
    let mut poll = async |exceptions: &[u8]| {
        device.unit(1, |unit| unit.exceptions = exceptions.to_vec());
        let poll = meter.poll(&mut line, SLOT, 0).await;
        (
            poll.verdict,
            poll.reading.quality,
            device.asked().len(),
            poll.reason,
        )
    };
    // Busy is asked again; what it says after that counts.
    assert_eq!(poll(&[6, 6]).await, (Verdict::Answered, Quality::Good, 3, None));
    // A gateway speaks of the unit, not of the line.
    let (verdict, quality, asked, reason) = poll(&[0x0b]).await;
    assert_eq!(
        (verdict, quality, asked),
        (Verdict::Unreachable, Quality::Failed, 1)
    );
    assert!(
        reason
            .unwrap()
            .contains("gateway target device failed to respond")
    );
    // A failure of the device concerns this request alone.
    let (verdict, quality, asked, reason) = poll(&[4]).await;
    assert_eq!((verdict, quality, asked), (Verdict::Answered, Quality::Failed, 1));
    assert!(reason.unwrap().contains("exception 04"));
    assert_eq!(poll(&[]).await, (Verdict::Answered, Quality::Good, 1, None));
    assert_eq!(device.connections(), 1, "no exception cost the connection");
}

#[tokio::test]
async fn a_sunspec_model_is_found_once_per_connection() {
    let map = serde_json::json!({
        "base": {"sunspecModel": 203},
        "registers": [
            {"name": "current", "address": 2, "function": "holding", "type": "u16", "scaleFrom": {"address": 3}},
        ],
    });
    let device = Device::tcp().await;
    // The mark, model 1 with two registers, model 203 with two, the end.
    let chain = [0x5375, 0x6e53, 1, 2, 0, 0, 203, 2, 125, 0xffff, 0xffff, 0];
    device.set(1, 40_000, &chain);
    let (mut line, mut meter) = (line(&device, Transport::Tcp), meter(1, map));
    for requests in [4, 1, 1] {
        let poll = meter.poll(&mut line, SLOT, 0).await;
        assert_eq!(
            values(&poll.reading),
            [("current", Value::Float(12.5))],
            "{:?}",
            poll.reason
        );
        assert_eq!(device.asked().len(), requests);
    }
    // Another device in its place: the old address is given up at the first sign.
    device.unit(1, |unit| unit.holding.clear());
    let poll = meter.poll(&mut line, SLOT, 0).await;
    assert_eq!(
        (poll.verdict, poll.reading.quality),
        (Verdict::Answered, Quality::Failed)
    );
    let poll = meter.poll(&mut line, SLOT, 0).await;
    assert!(poll.reason.unwrap().contains("no \"SunS\""));
}

#[tokio::test]
async fn a_device_that_fails_is_not_taken_for_one_without_sunspec() {
    let map = serde_json::json!({
        "base": {"sunspecModel": 203},
        "registers": [{"name": "current", "address": 2, "function": "holding", "type": "u16"}],
    });
    let device = Device::tcp().await;
    device.set(1, 40_000, &[0x5375, 0x6e53, 203, 1, 125, 0xffff, 0]);
    device.unit(1, |unit| unit.exceptions = vec![4]);
    let (mut line, mut meter) = (line(&device, Transport::Tcp), meter(1, map));
    let poll = meter.poll(&mut line, SLOT, 0).await;
    assert_eq!(
        (poll.verdict, poll.reading.quality),
        (Verdict::Answered, Quality::Failed)
    );
    let reason = poll.reason.unwrap();
    assert!(reason.contains("exception 04"), "{reason}");
    assert_eq!(device.asked().len(), 1, "it is not asked elsewhere");
    let poll = meter.poll(&mut line, SLOT, 0).await;
    assert_eq!(values(&poll.reading), [("current", Value::Int(125))]);
}

#[tokio::test]
async fn a_connection_that_was_closed_while_idle_costs_no_poll() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // Answers one request on each connection, and closes it.
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 12];
            stream.read_exact(&mut request).await.unwrap();
            let answer = [request[0], request[1], 0, 0, 0, 5, request[6], 3, 2, 0, 7];
            stream.write_all(&answer).await.unwrap();
        }
    });
    let map = serde_json::json!({"registers": [
        {"name": "a", "address": 10, "function": "holding", "type": "u16"},
    ]});
    let mut line = Line::new(connector(address, Transport::Tcp), Duration::ZERO, ());
    let mut meter = meter(1, map);
    for _ in 0..5 {
        let poll = meter.poll(&mut line, SLOT, 0).await;
        assert_eq!(values(&poll.reading), [("a", Value::Int(7))], "{:?}", poll.reason);
    }
}

#[tokio::test]
async fn an_unreachable_server_is_named_and_left_alone_for_a_while() {
    let gone = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let mut line = Line::new(connector(gone, Transport::Tcp), Duration::ZERO, ());
    let mut meter = meter(1, four());
    for _ in 0..3 {
        let poll = meter.poll(&mut line, SLOT, 5).await;
        assert_eq!(
            (poll.verdict, poll.reading.quality),
            (Verdict::Down, Quality::Failed)
        );
        assert_eq!(
            poll.reason.unwrap(),
            format!("no connection to {gone}: connection refused")
        );
    }
}

/// The CRC of RTU frames. Source: Modbus over Serial Line V1.02, 6.2.2.
fn crc(bytes: &[u8]) -> [u8; 2] {
    let crc = bytes.iter().fold(0xffff, |crc: u16, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| {
            if crc & 1 == 1 { crc >> 1 ^ 0xa001 } else { crc >> 1 }
        })
    });
    crc.to_le_bytes()
}

/// A serial device server with a slow meter: the answer to a request, which is the register's own address,
/// comes late, and goes to whoever is connected then.
async fn slow_serial_server() -> (std::net::SocketAddr, tokio::sync::watch::Sender<Duration>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (delay, delays) = tokio::sync::watch::channel(Duration::ZERO);
    let current: Arc<tokio::sync::Mutex<Option<tokio::net::tcp::OwnedWriteHalf>>> = Arc::default();
    tokio::spawn(async move {
        loop {
            let (stream, _): (TcpStream, _) = listener.accept().await.unwrap();
            let (mut reader, writer) = stream.into_split();
            *current.lock().await = Some(writer);
            let (current, delays) = (current.clone(), delays.clone());
            tokio::spawn(async move {
                let mut request = [0; 8];
                while reader.read_exact(&mut request).await.is_ok() {
                    let mut answer = vec![request[0], request[1], 2, request[2], request[3]];
                    answer.extend(crc(&answer));
                    let (current, delay) = (current.clone(), *delays.borrow());
                    tokio::spawn(async move {
                        tokio::time::sleep(delay).await;
                        if let Some(writer) = current.lock().await.as_mut() {
                            let _ = writer.write_all(&answer).await;
                        }
                    });
                }
            });
        }
    });
    (address, delay)
}

#[tokio::test]
async fn a_late_answer_is_never_taken_for_another() {
    let (address, delay) = slow_serial_server().await;
    let mut line = Line::new(connector(address, Transport::RtuOverTcp), Duration::ZERO, ());
    let mut ask = async |register| {
        let block = ReadBlock {
            unit: 1,
            function: Function::Holding,
            address: register,
            count: 1,
        };
        line.read(block, Duration::ZERO, 0).await
    };
    assert_eq!(ask(10).await, Ok(Registers::Words(vec![10])));
    // Later than the timeout of 200 ms, and within the time that is listened after it.
    delay.send(Duration::from_millis(300)).unwrap();
    assert!(ask(20).await.is_err());
    delay.send(Duration::ZERO).unwrap();
    for register in [30, 40, 50] {
        assert_eq!(ask(register).await, Ok(Registers::Words(vec![register])));
    }
}

#[tokio::test]
async fn unasked_bytes_spend_a_client() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connector = connector(listener.local_addr().unwrap(), Transport::RtuOverTcp);
    let (client, server) = tokio::join!(connector.connect(false), listener.accept());
    let (mut client, (mut server, _)) = (client.unwrap(), server.unwrap());
    // A whole answer with a right checksum, to a question of somebody else.
    let mut answer = vec![1, 3, 2, 0, 10];
    answer.extend(crc(&answer));
    server.write_all(&answer).await.unwrap();
    client.readable().await;
    let block = ReadBlock {
        unit: 1,
        function: Function::Holding,
        address: 30,
        count: 1,
    };
    let refused = client.read(block).await;
    assert!(
        matches!(&refused, Err(ReadError::Connection(why)) if why.contains("nobody asked")),
        "{refused:?}"
    );
}
