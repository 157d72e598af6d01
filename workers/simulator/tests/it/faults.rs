//! What a meter refuses, the simulated one refuses with the same exception.

use std::net::{Ipv4Addr, SocketAddr};

use corrente_crds::poller::Transport;
use corrente_simulator::{
    LoadSource, Ports, ServeError, Simulation, SimulationError, UnknownUnit, simulate_config,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_modbus::{
    ExceptionCode, Slave,
    client::{Reader as _, Writer as _},
    slave::SlaveContext as _,
};

use crate::support::{HERE, NOON, TestClock, connect, plant, refusal, serve};

#[tokio::test]
async fn reads_outside_of_the_map_and_its_limits_are_refused() {
    use ExceptionCode::{IllegalDataAddress, IllegalDataValue, IllegalFunction};
    let served = serve(&TestClock::at(NOON), UnknownUnit::default()).await;
    for endpoint in ["tcp", "rtu"] {
        let mut client = connect(&served, endpoint).await;
        for (unit, address, count, exception, why) in [
            (1, 100, 21, None, "all of the table, gaps included"),
            (1, 108, 2, None, "a gap alone"),
            (1, 99, 1, Some(IllegalDataAddress), "before the table"),
            (1, 120, 2, Some(IllegalDataAddress), "past the table"),
            (1, 65_535, 2, Some(IllegalDataAddress), "past the last address"),
            (1, 100, 61, Some(IllegalDataValue), "more than the meter allows"),
            (1, 100, 0, Some(IllegalDataValue), "nothing"),
            (2, 1, 4, None, "two whole values"),
            (2, 1, 3, Some(IllegalDataAddress), "half of a value"),
            (2, 2, 3, Some(IllegalDataAddress), "half of a value"),
            (2, 1, 56, Some(IllegalDataAddress), "a gap"),
            (3, 7, 2, None, "an even count"),
            (3, 6, 2, None, "an even count, from the other side"),
            (3, 7, 1, Some(IllegalDataValue), "an odd count"),
            (4, 40_000, 2, None, "the mark"),
            (4, 40_070, 107, None, "the model"),
            (4, 40_178, 1, None, "the end marker's length"),
            (4, 40_178, 2, Some(IllegalDataAddress), "past the chain"),
            (4, 0, 2, Some(IllegalDataAddress), "no mark here"),
        ] {
            client.set_slave(Slave(unit));
            assert_eq!(
                refusal(&mut client, address, count).await,
                exception,
                "{endpoint}, unit {unit}: {why}"
            );
        }
        client.set_slave(Slave(1));
        assert_eq!(
            client.read_input_registers(0, 26).await.unwrap().map(|w| w.len()),
            Ok(26)
        );
        assert_eq!(client.read_coils(3, 1).await.unwrap(), Ok(vec![true]));
        assert_eq!(client.read_coils(2, 1).await.unwrap(), Err(IllegalDataAddress));
        assert_eq!(
            client.read_discrete_inputs(3, 1).await.unwrap(),
            Err(IllegalDataAddress)
        );
        assert_eq!(
            client.write_single_register(100, 7).await.unwrap(),
            Err(IllegalFunction)
        );
    }
}

#[tokio::test]
async fn an_unknown_unit_is_refused_over_tcp_and_silent_over_rtu() {
    let clock = TestClock::at(NOON);
    let served = serve(&clock, UnknownUnit::default()).await;
    let mut client = connect(&served, "tcp").await;
    client.set_slave(Slave(99));
    assert_eq!(
        refusal(&mut client, 100, 1).await,
        Some(ExceptionCode::GatewayTargetDevice)
    );

    // Silence is shown by what comes next: the answer to the second request is the first to arrive.
    // Unit 99 and unit 1, one holding register from 100.
    let mut stream = TcpStream::connect(served.addresses["rtu"]).await.unwrap();
    for request in [[99, 3, 0, 100, 0, 1], [1, 3, 0, 100, 0, 1]] {
        stream.write_all(&request).await.unwrap();
        stream.write_all(&crc(&request)).await.unwrap();
    }
    let mut answer = [0; 7];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer[..3], [1, 3, 2]);

    let silent = serve(&clock, UnknownUnit::Silent).await;
    let mut stream = TcpStream::connect(silent.addresses["tcp"]).await.unwrap();
    stream
        .write_all(&[0, 1, 0, 0, 0, 6, 99, 3, 0, 100, 0, 1])
        .await
        .unwrap();
    stream
        .write_all(&[0, 2, 0, 0, 0, 6, 1, 3, 0, 100, 0, 1])
        .await
        .unwrap();
    let mut answer = [0; 11];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer[..9], [0, 2, 0, 0, 0, 5, 1, 3, 2]);
}

/// The checksum of an RTU frame, low byte first. Source: Modbus over Serial Line V1.02, 6.2.2.
fn crc(frame: &[u8]) -> [u8; 2] {
    let crc = frame.iter().fold(0xffff_u16, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| {
            if crc & 1 == 1 { crc >> 1 ^ 0xa001 } else { crc >> 1 }
        })
    });
    crc.to_le_bytes()
}

#[tokio::test]
async fn shutting_down_ends_connections() {
    let served = serve(&TestClock::at(NOON), UnknownUnit::default()).await;
    let address = served.addresses["tcp"];
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream
        .write_all(&[0, 1, 0, 0, 0, 6, 1, 3, 0, 100, 0, 1])
        .await
        .unwrap();
    stream.read_exact(&mut [0; 11]).await.unwrap();
    served.shutdown().await;
    // The connection ends, by a close or a reset.
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn ports_are_those_asked_for() {
    // A port that is free now, and most likely its neighbour too; if not, another is tried.
    for _ in 0..20 {
        let probe = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
            .await
            .unwrap();
        let port = probe.local_addr().unwrap().port();
        drop(probe);
        match simulate_config(&plant(), HERE, Ports::From(port)).await {
            Ok(served) => {
                assert_eq!(served.addresses["tcp"].port(), port);
                assert_eq!(served.addresses["rtu"].port(), port + 1);
                return;
            }
            Err(ServeError::Bind { .. } | ServeError::PortsRunOut { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    panic!("no two free ports in a row");
}

#[tokio::test]
async fn what_cannot_be_served_is_said() {
    let run_out = simulate_config(&plant(), HERE, Ports::From(65_535))
        .await
        .err()
        .unwrap();
    assert!(
        run_out
            .to_string()
            .contains("2 endpoints do not fit in the ports from 65535"),
        "{run_out}"
    );

    let taken = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
        .await
        .unwrap();
    let port = taken.local_addr().unwrap().port();
    let error = simulate_config(&plant(), HERE, Ports::From(port))
        .await
        .err()
        .unwrap();
    assert!(
        error.to_string().starts_with(&format!(
            "failed to listen on 127.0.0.1:{port} for endpoint tcp: "
        )),
        "{error}"
    );
    drop(taken);

    // Two hosts of one port in the field are one host here.
    let mut config = plant();
    config.endpoints[0].address = format!("192.0.2.1:{port}");
    config.endpoints[1].address = format!("192.0.2.2:{port}");
    let same = simulate_config(&config, HERE, Ports::AsConfigured)
        .await
        .err()
        .unwrap();
    assert!(
        same.to_string()
            .starts_with(&format!("endpoints tcp and rtu both have port {port}")),
        "{same}"
    );
    config.endpoints[0].address = "192.0.2.1:99999".to_owned();
    let no_port = simulate_config(&config, HERE, Ports::AsConfigured)
        .await
        .err()
        .unwrap();
    assert!(
        no_port.to_string().contains("does not end in a port"),
        "{no_port}"
    );
}

#[test]
fn a_configuration_that_cannot_be_simulated_is_refused() {
    let refused = |change: fn(&mut corrente_config::PollerConfig)| {
        let mut config = plant();
        change(&mut config);
        let clock = TestClock::at(NOON).clock();
        let error: SimulationError = Simulation::new(&[config], LoadSource::default(), clock)
            .err()
            .unwrap();
        error.to_string()
    };
    for (error, says) in [
        (
            refused(|c| c.endpoints[0].meters[1].unit_id = 1),
            "panel-tcp and strict-tcp both have unit id 1",
        ),
        (
            refused(|c| c.endpoints[0].meters[0].unit_id = 256),
            "the unit id is 256",
        ),
        (
            refused(|c| c.endpoints[0].meters[0].profile = None),
            "meter panel-tcp has no register map",
        ),
        (
            refused(|c| c.maps.get_mut("profile/even").unwrap().registers[0].address = -1),
            "the register map profile/even is wrong: frequency: address is -1",
        ),
    ] {
        assert!(error.contains(says), "{error}");
    }
}

#[tokio::test]
async fn endpoints_of_one_name_are_told_apart() {
    let (mut one, mut other) = (plant(), plant());
    (one.name, other.name) = ("east".to_owned(), "west".to_owned());
    let clock = TestClock::at(NOON).clock();
    let simulation = Simulation::new(&[one, other], LoadSource::default(), clock).unwrap();
    let served = simulation.serve(HERE, Ports::Ephemeral).await.unwrap();
    let names: Vec<_> = served.addresses.keys().map(String::as_str).collect();
    assert_eq!(names, ["rtu", "tcp", "west/rtu", "west/tcp"]);
    assert_eq!(plant().endpoints[1].transport, Transport::RtuOverTcp);
}
