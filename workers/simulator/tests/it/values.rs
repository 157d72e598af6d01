//! What simulated meters measure is plausible, agrees with itself, and its counters only rise.

use std::sync::Arc;

use corrente_modbus::{CompiledMap, sunspec::Walk};
use corrente_record::Value;
use corrente_simulator::{Grid, History, LoadSource, Ports, Simulation, UnknownUnit};
use tokio_modbus::{Slave, client::Client as _, slave::SlaveContext as _};

use crate::support::{HERE, NOON, PANEL, SUNSPEC, TestClock, connect, map, plant, read_all, serve};

const DAY: i64 = 86_400_000;

#[tokio::test]
async fn both_transports_serve_every_type_in_range() {
    let clock = TestClock::at(NOON);
    let served = serve(&clock, UnknownUnit::default()).await;
    let map = CompiledMap::compile(&map(PANEL), &[]).unwrap();
    for endpoint in ["tcp", "rtu"] {
        let mut client = connect(&served, endpoint).await;
        for _ in 0..24 {
            clock.advance(DAY / 24);
            let values = read_all(&mut client, &map).await;
            assert_eq!(values.len(), map.values.len());
            let number = |name: &str| values[name].clone().unwrap().as_f64().unwrap();
            for (name, range) in [
                ("voltage_l1_n", 220.0..240.0),
                ("voltage_l2_n", 220.0..240.0),
                ("voltage_l1_l2", 385.0..415.0),
                ("current_l1", 0.1..150.0),
                ("active_power_l1", 0.03..40.0),
                ("active_power_total", 100.0..80_000.0),
                ("power_factor_total", 0.92..0.98),
                ("frequency", 49.9..50.1),
            ] {
                assert!(range.contains(&number(name)), "{name} is {}", number(name));
            }
            let watts = number("voltage_l1_n") * number("current_l1") * number("power_factor_total");
            assert!((watts / 1000.0 / number("active_power_l1") - 1.0).abs() < 0.002);
            assert_eq!(values["breaker_closed"], Ok(Value::Bool(true)));
            assert_eq!(values["door_open"], Ok(Value::Bool(true)));
            // Beyond 16 bits for years, it stays at their end rather than wrap.
            assert_eq!(values["tiny"], Ok(Value::Int(65_535)));
            let Ok(Value::Text(serial)) = &values["serial_number"] else {
                panic!("no serial number");
            };
            assert!(
                serial.len() == 8 && serial.bytes().all(|b| b.is_ascii_digit()),
                "{serial}"
            );
        }
        client.disconnect().await.unwrap();
    }
}

#[tokio::test]
async fn counters_only_rise_and_go_on_after_a_restart() {
    let clock = TestClock::at(NOON);
    let map = CompiledMap::compile(&map(PANEL), &[]).unwrap();
    let mut last = [0.0, 0.0];
    for step in [1_000, 60_000, 10_000, DAY, 1_000, 30 * DAY, 1_000] {
        let served = serve(&clock, UnknownUnit::default()).await;
        let mut client = connect(&served, "tcp").await;
        for _ in 0..20 {
            clock.advance(step);
            let values = read_all(&mut client, &map).await;
            let counters = ["energy_active_import", "energy_reactive_import"]
                .map(|name| values[name].clone().unwrap().as_f64().unwrap());
            assert!(
                counters[0] >= last[0] && counters[1] >= last[1],
                "{counters:?} after {last:?}"
            );
            assert!(step < 60_000 || counters[0] > last[0]);
            last = counters;
        }
        served.shutdown().await;
    }
}

#[tokio::test]
async fn a_sunspec_meter_is_found_by_its_chain_and_scaled_by_its_factors() {
    let clock = TestClock::at(NOON);
    let served = serve(&clock, UnknownUnit::default()).await;
    let map = CompiledMap::compile(&map(SUNSPEC), &[]).unwrap();
    assert!(Walk::for_map(&map).is_some());
    for endpoint in ["tcp", "rtu"] {
        let mut client = connect(&served, endpoint).await;
        client.set_slave(Slave(4));
        let values = read_all(&mut client, &map).await;
        let number = |name: &str| values[name].clone().unwrap().as_f64().unwrap();
        assert!((220.0..240.0).contains(&number("voltage_l1_n")));
        assert!((0.1..200.0).contains(&number("current_l1")));
        assert!((100.0..80_000.0).contains(&number("active_power_total")));
        assert!((92.0..98.0).contains(&number("power_factor_total")));
        assert_eq!(values["energy_active_export"], Ok(Value::Float(1_000.0)));
        assert!(number("energy_active_import") > 1_000.0);
    }
}

#[tokio::test]
async fn a_history_goes_before_the_curve() {
    let text = "time,meter,voltage_l1_n,energy_active_import,breaker_closed,serial_number\n\
        2026-06-15T00:00:00Z,panel-tcp,231.5,1000,false,A-1\n\
        2026-06-15T12:00:00Z,panel-tcp,229,1500,true,\n";
    let history = Arc::new(History::read(text.as_bytes()).unwrap());
    let clock = TestClock::at("2026-06-15T11:59:59Z");
    let source = LoadSource::History(
        history,
        Grid {
            voltage: 127.0,
            frequency: 60.0,
        },
    );
    let simulation = Simulation::new(&[plant()], source, clock.clock()).unwrap();
    let served = simulation.serve(HERE, Ports::Ephemeral).await.unwrap();
    let map = CompiledMap::compile(&map(PANEL), &[]).unwrap();
    let mut client = connect(&served, "tcp").await;
    let values = read_all(&mut client, &map).await;
    assert_eq!(values["voltage_l1_n"], Ok(Value::Float(231.5)));
    assert_eq!(values["energy_active_import"], Ok(Value::UInt(1000)));
    assert_eq!(values["breaker_closed"], Ok(Value::Bool(false)));
    assert_eq!(values["serial_number"], Ok(Value::Text("A-1".to_owned())));
    // What the history does not name follows the curve, on the grid that was asked for.
    let frequency = values["frequency"].clone().unwrap().as_f64().unwrap();
    assert!((59.8..60.2).contains(&frequency), "{frequency}");
    clock.advance(1_000);
    let values = read_all(&mut client, &map).await;
    assert_eq!(values["voltage_l1_n"], Ok(Value::Float(229.0)));
    assert_eq!(values["energy_active_import"], Ok(Value::UInt(1500)));
    // The next day the same again, the counter lifted by what a day gains.
    clock.advance(DAY);
    assert_eq!(
        read_all(&mut client, &map).await["energy_active_import"],
        Ok(Value::UInt(2000))
    );
}

#[tokio::test]
async fn meters_differ_by_name_alone() {
    let clock = TestClock::at(NOON);
    let (one, other) = (
        serve(&clock, UnknownUnit::default()).await,
        serve(&clock, UnknownUnit::default()).await,
    );
    let map = CompiledMap::compile(&map(PANEL), &[]).unwrap();
    let tcp = read_all(&mut connect(&one, "tcp").await, &map).await;
    assert_eq!(tcp, read_all(&mut connect(&other, "tcp").await, &map).await);
    assert_ne!(tcp, read_all(&mut connect(&one, "rtu").await, &map).await);
}
