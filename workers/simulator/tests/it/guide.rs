//! Every fault that the guide shows can be used as it stands there, with the meters of the quickstart.

use std::{fs, path::Path};

use corrente_config::manifest;
use corrente_simulator::{LoadSource, Simulation, faults::file, system_clock};

fn text(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)).unwrap()
}

#[test]
fn the_faults_of_the_guide_can_be_used() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests");
    let loaded = manifest::load(&[root.join("profiles"), root.join("quickstart")]);
    let config = loaded.resolve().pollers[0].clone();
    let config = config.config(0, config.endpoints.iter());
    let guide = text("docs/guides/simulator.md");
    let blocks: Vec<&str> = guide
        .split("```yaml\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
        .collect();
    assert!(blocks.len() >= 6, "{} blocks", blocks.len());
    let mut effects = 0;
    for block in blocks {
        let faults = file::parse(block).unwrap_or_else(|error| panic!("{error}\n{block}"));
        effects += faults.list.len();
        let simulation = Simulation::new(
            std::slice::from_ref(&config),
            LoadSource::default(),
            system_clock(),
        )
        .unwrap();
        let simulation = simulation
            .with_faults(faults.clone())
            .unwrap_or_else(|problems| panic!("{problems:?}\n{block}"));
        assert_eq!(simulation.faults(), faults.list);
    }
    assert!(effects >= 30, "{effects} effects");
}
