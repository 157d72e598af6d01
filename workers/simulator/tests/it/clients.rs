//! Faults as clients see them on their sockets: who waits, who is cut off, who gets what late, and what becomes
//! of counters and meters.

use std::time::{Duration, Instant};

use corrente_modbus::CompiledMap;
use corrente_record::Value;
use corrente_simulator::{
    Effect, Fault, Faults, LoadSource, Ports, Served, Simulation,
    faults::{Beyond, Recipient, Rim},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{HERE, NOON, PANEL, TestClock, connect, map, plant, read_all};

const MS: Duration = Duration::from_millis(1);

async fn serve(clock: &TestClock, faults: Vec<Fault>) -> Served {
    let simulation = Simulation::new(&[plant()], LoadSource::default(), clock.clock()).unwrap();
    let faults = Faults {
        seed: 1,
        list: faults,
    };
    let simulation = simulation.with_faults(faults).unwrap();
    simulation.serve(HERE, Ports::Ephemeral).await.unwrap()
}

/// A read of the first register of a unit, with this transaction id.
fn question(transaction: u8, unit: u8) -> [u8; 12] {
    [0, transaction, 0, 0, 0, 6, unit, 3, 0, 100, 0, 1]
}

async fn open(served: &Served) -> TcpStream {
    TcpStream::connect(served.addresses["tcp"]).await.unwrap()
}

/// The transaction id and the unit of the next answer; `None` at the end of the connection.
async fn answer(stream: &mut TcpStream) -> Option<(u8, u8)> {
    let mut head = [0; 6];
    stream.read_exact(&mut head).await.ok()?;
    let mut body = vec![0; usize::from(head[5])];
    stream.read_exact(&mut body).await.ok()?;
    Some((head[1], body[0]))
}

async fn ask(stream: &mut TcpStream, transaction: u8, unit: u8) -> Option<(u8, u8)> {
    stream.write_all(&question(transaction, unit)).await.ok()?;
    answer(stream).await
}

#[tokio::test]
async fn connections_beyond_the_limit_are_not_served() {
    let limit = |beyond| vec![Fault::new(Effect::Connections { limit: 1, beyond })];
    let clock = TestClock::at(NOON);

    let served = serve(&clock, limit(Beyond::Refuse)).await;
    let mut first = open(&served).await;
    assert_eq!(ask(&mut first, 1, 1).await, Some((1, 1)));
    assert_eq!(ask(&mut open(&served).await, 2, 1).await, None);
    assert_eq!(ask(&mut first, 3, 1).await, Some((3, 1)));
    drop(first);
    // Its seat is free as soon as its end has been seen.
    while ask(&mut open(&served).await, 4, 1).await.is_none() {}

    let served = serve(&clock, limit(Beyond::CloseOldest)).await;
    let mut first = open(&served).await;
    assert_eq!(ask(&mut first, 1, 1).await, Some((1, 1)));
    let mut second = open(&served).await;
    assert_eq!(ask(&mut second, 2, 1).await, Some((2, 1)));
    assert_eq!(ask(&mut first, 3, 1).await, None);
    assert_eq!(ask(&mut second, 4, 1).await, Some((4, 1)));

    let served = serve(&clock, limit(Beyond::Ignore)).await;
    let mut first = open(&served).await;
    assert_eq!(ask(&mut first, 1, 1).await, Some((1, 1)));
    let mut second = open(&served).await;
    second.write_all(&question(2, 1)).await.unwrap();
    assert_eq!(ask(&mut first, 3, 1).await, Some((3, 1)));
    let nothing = tokio::time::timeout(100 * MS, answer(&mut second)).await;
    assert!(nothing.is_err(), "it is neither served nor closed: {nothing:?}");
}

#[tokio::test]
async fn a_late_answer_goes_to_whom_it_was_meant_for_or_to_the_newest() {
    let clock = TestClock::at(NOON);
    for (to, expected) in [(Recipient::Same, (1, 1)), (Recipient::Newest, (9, 2))] {
        let late = Effect::Late {
            after: Some(50 * MS),
            to,
        };
        let served = serve(&clock, vec![Fault::new(late).units([1])]).await;
        let (mut first, mut second) = (open(&served).await, open(&served).await);
        // Both are there before anything is asked.
        assert_eq!(ask(&mut first, 7, 2).await, Some((7, 2)));
        assert_eq!(ask(&mut second, 8, 2).await, Some((8, 2)));
        first.write_all(&question(1, 1)).await.unwrap();
        match to {
            // In time for another unit, then late for this one.
            Recipient::Same => {
                assert_eq!(ask(&mut first, 2, 2).await, Some((2, 2)));
                assert_eq!(answer(&mut first).await, Some(expected));
            }
            Recipient::Newest => {
                assert_eq!(answer(&mut second).await, Some((1, 1)));
                assert_eq!(ask(&mut second, 9, 2).await, Some(expected));
            }
        }
    }
}

#[tokio::test]
async fn a_gateway_lets_another_connection_wait_too() {
    let faults = vec![
        Fault::new(Effect::Gateway {
            timeout: 300 * MS,
            exception: Some(11),
        }),
        Fault::new(Effect::Silence).units([2]),
    ];
    let served = serve(&TestClock::at(NOON), faults).await;
    let (mut first, mut second) = (open(&served).await, open(&served).await);
    let began = Instant::now();
    first.write_all(&question(1, 2)).await.unwrap();
    assert_eq!(
        ask(&mut first, 2, 1).await,
        Some((1, 2)),
        "the exception comes first"
    );
    assert!(began.elapsed() >= 300 * MS);
    assert_eq!(answer(&mut first).await, Some((2, 1)));

    // Who asked is gone, and the line is held all the same.
    first.write_all(&question(3, 2)).await.unwrap();
    drop(first);
    let mut held = false;
    for _ in 0..10_000 {
        let began = Instant::now();
        assert_eq!(ask(&mut second, 4, 1).await, Some((4, 1)));
        held = began.elapsed() >= 100 * MS;
        if held {
            break;
        }
    }
    assert!(held, "nobody had to wait for the unit that is silent");
}

#[tokio::test]
async fn counters_roll_over_and_meters_are_swapped() {
    let clock = TestClock::at(NOON);
    let hour = Duration::from_secs(3600);
    let mut roll = Fault::new(Effect::RollOver {
        at: Rim::Value(1_000_000),
        after: Some(hour),
    });
    roll.place.metrics.push("energy_active_import".to_owned());
    let swap = Fault::new(Effect::MeterSwap { after: 3 * hour });
    let faults = vec![roll.endpoint("tcp").units([1]), swap.endpoint("rtu").units([1])];
    let served = serve(&clock, faults).await;
    let map = CompiledMap::compile(&map(PANEL), &[]).unwrap();
    let (mut rolled, mut swapped) = (connect(&served, "tcp").await, connect(&served, "rtu").await);
    let energy = |values: &std::collections::BTreeMap<String, Result<Value, corrente_modbus::BadValue>>| {
        values["energy_active_import"].clone().unwrap().as_f64().unwrap()
    };
    let mut before = Vec::new();
    for _ in 0..5 {
        let (rolled, swapped) = (
            read_all(&mut rolled, &map).await,
            read_all(&mut swapped, &map).await,
        );
        before.push((
            energy(&rolled),
            energy(&swapped),
            swapped["serial_number"].clone().unwrap(),
        ));
        clock.advance(3_600_000);
    }
    // Up to the rim, and on from 0, an hour after the start.
    assert!(before[0].0 > 950_000.0 && before[0].0 < 1_000_000.0, "{before:?}");
    assert!(before[1].0 < 1000.0 && before[1].0 < before[2].0, "{before:?}");
    // Another meter after three hours, almost new, which then counts on.
    assert!(
        before[1].1 < before[2].1 && before[2].1 > before[3].1 && before[3].1 < before[4].1,
        "{before:?}"
    );
    assert!(before[3].1 < 200.0, "{before:?}");
    assert_eq!(before[0].2, before[2].2);
    assert_ne!(before[2].2, before[3].2);
    assert_eq!(before[3].2, before[4].2);
}
