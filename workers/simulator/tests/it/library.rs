//! Every meter of the library can be simulated, and what it then measures is plausible in its unit.

use std::{fs, path::Path};

use corrente_config::PollerConfig;
use corrente_crds::{
    MeterProfile,
    poller::{Endpoint, Meter},
    profile::Kind,
};
use corrente_modbus::CompiledMap;
use corrente_record::Value;
use corrente_simulator::{LoadSource, Ports, Simulation};
use tokio_modbus::{Slave, slave::SlaveContext as _};

use crate::support::{HERE, NOON, TestClock, connect, plant, read_all};

fn library() -> Vec<(String, MeterProfile)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests/profiles");
    let mut profiles: Vec<(String, MeterProfile)> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let text = fs::read_to_string(entry.unwrap().path()).unwrap();
            let profile: MeterProfile = serde_saphyr::from_str(&text).unwrap();
            (profile.metadata.name.clone().unwrap(), profile)
        })
        .collect();
    profiles.sort_by(|a, b| a.0.cmp(&b.0));
    profiles
}

/// What a metric of this unit may be, for meters of 0.2 to 40 kW in the mean.
fn plausible(unit: Option<&str>, value: f64) -> bool {
    match unit.unwrap_or("") {
        "V" => (220.0..420.0).contains(&value),
        "A" => (0.0..400.0).contains(&value),
        "W" | "var" | "VA" => (1.0..80_000.0).contains(&value),
        "Hz" => (49.9..50.1).contains(&value),
        "1" => (0.0..=1.0).contains(&value),
        "%" | "deg" => (0.0..=100.0).contains(&value),
        "Wh" | "varh" | "VAh" => (100.0..5e9).contains(&value),
        unit => panic!("a unit that this test does not know: {unit}"),
    }
}

#[tokio::test]
async fn every_meter_of_the_library_reads_well() {
    let library = library();
    assert!(library.len() >= 14, "{} profiles", library.len());
    let meter = |(i, (name, _)): (usize, &(String, MeterProfile))| Meter {
        name: format!("meter-{name}"),
        unit_id: i as i32 + 1,
        profile: Some(name.clone()),
        ..Meter::default()
    };
    let config = PollerConfig {
        maps: library
            .iter()
            .map(|(name, p)| (format!("profile/{name}"), p.spec.map.clone()))
            .collect(),
        endpoints: vec![Endpoint {
            name: "tcp".to_owned(),
            address: "192.0.2.1".to_owned(),
            meters: library.iter().enumerate().map(meter).collect(),
            ..Endpoint::default()
        }],
        ..plant()
    };
    let clock = TestClock::at(NOON);
    let simulation = Simulation::new(&[config], LoadSource::default(), clock.clock()).unwrap();
    let served = simulation.serve(HERE, Ports::Ephemeral).await.unwrap();
    let mut client = connect(&served, "tcp").await;
    for (i, (name, profile)) in library.iter().enumerate() {
        client.set_slave(Slave(i as u8 + 1));
        let map = CompiledMap::compile(&profile.spec.map, &[]).unwrap();
        let before = read_all(&mut client, &map).await;
        clock.advance(3_600_000);
        let after = read_all(&mut client, &map).await;
        for value in &map.values {
            let metric = &*value.name;
            let now = after[metric]
                .clone()
                .unwrap_or_else(|bad| panic!("{name} {metric}: {bad}"));
            if let Value::Text(_) | Value::Bool(_) = now {
                continue;
            }
            let (now, before) = (
                now.as_f64().unwrap(),
                before[metric].clone().unwrap().as_f64().unwrap(),
            );
            assert!(plausible(value.unit.as_deref(), now), "{name} {metric} is {now}");
            assert!(
                value.kind != Kind::Counter || now >= before,
                "{name} {metric} fell from {before} to {now}"
            );
            if &*value.name == "energy_active_import" {
                assert!(now > before, "{name} {metric} stood still in an hour");
            }
        }
    }
}
