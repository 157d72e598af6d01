//! `corrente simulate`: the meters of manifests, served over Modbus for any client to read.

use std::{net::IpAddr, path::PathBuf, process::ExitCode};

use anyhow::Result;
use corrente_runtime::shutdown;
use corrente_simulator::{Ports, options::Load};

use crate::site::{Site, count};

/// What `simulate` is told.
#[derive(clap::Args)]
pub struct Arguments {
    /// Manifests: files, or folders of them
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// The address to listen on
    #[arg(long, default_value = "127.0.0.1", value_name = "IP")]
    listen: IpAddr,
    /// The first endpoint's port, the next for each further one
    #[arg(long, default_value_t = 15020, value_name = "PORT")]
    port_from: u16,
    #[command(flatten)]
    load: Load,
}

/// Serves until it is asked to end.
///
/// # Errors
/// Where the manifests are wrong or a port cannot be listened on.
pub async fn run(arguments: &Arguments) -> Result<ExitCode> {
    let site = Site::load(&arguments.paths)?;
    let shutdown = shutdown::token()?;
    let simulation = arguments.load.simulation(&site.pollers)?;
    let served = simulation
        .serve(arguments.listen, Ports::From(arguments.port_from))
        .await?;
    for (endpoint, address) in &served.addresses {
        println!("{endpoint} on {address}");
    }
    for (number, fault) in (1..).zip(simulation.faults()) {
        println!("fault {number}: {fault}");
    }
    let meters: usize = site
        .pollers
        .iter()
        .flat_map(|p| &p.endpoints)
        .map(|e| e.meters.len())
        .sum();
    println!(
        "serving {} on {}; Ctrl-C ends it",
        count(meters, "meter"),
        count(served.addresses.len(), "port")
    );
    shutdown.cancelled().await;
    served.shutdown().await;
    Ok(ExitCode::SUCCESS)
}
