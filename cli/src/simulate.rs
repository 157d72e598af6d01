//! `corrente simulate`: the meters of manifests, served over Modbus for any client to read.

use std::{fs::File, net::IpAddr, path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::{Context as _, Result};
use corrente_config::PollerConfig;
use corrente_runtime::shutdown;
use corrente_simulator::{Grid, History, LoadSource, Ports, Simulation, UnknownUnit, system_clock};

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

/// What the simulated meters measure.
#[derive(clap::Args, Clone, Debug)]
pub struct Load {
    /// A history to replay (time,meter,<metric>,...) instead of a load curve
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Nominal voltage between a phase and neutral, in V
    #[arg(long, default_value_t = 230.0, value_name = "V")]
    voltage: f64,
    /// Nominal frequency, in Hz
    #[arg(long, default_value_t = 50.0, value_name = "HZ")]
    frequency: f64,
    /// Say nothing to requests for units that are not there, instead of exception 0x0B
    #[arg(long)]
    silent: bool,
}

impl Load {
    /// The meters of the configurations, simulated.
    ///
    /// # Errors
    /// Where the history cannot be read or a register map cannot be simulated.
    pub fn simulation(&self, configs: &[PollerConfig]) -> Result<Simulation> {
        let grid = Grid {
            voltage: self.voltage,
            frequency: self.frequency,
        };
        let source = match &self.csv {
            None => LoadSource::Curve(grid),
            Some(path) => {
                let context = || format!("failed to replay {}", path.display());
                let history = History::read(File::open(path).with_context(context)?).with_context(context)?;
                LoadSource::History(Arc::new(history), grid)
            }
        };
        let unknown = if self.silent {
            UnknownUnit::Silent
        } else {
            UnknownUnit::AsTransport
        };
        Ok(Simulation::new(configs, source, system_clock())?.with_unknown_units(unknown))
    }
}

/// Serves until it is asked to end.
///
/// # Errors
/// Where the manifests are wrong or a port cannot be listened on.
pub async fn run(arguments: &Arguments) -> Result<ExitCode> {
    let site = Site::load(&arguments.paths)?;
    let shutdown = shutdown::token()?;
    let served = arguments
        .load
        .simulation(&site.pollers)?
        .serve(arguments.listen, Ports::From(arguments.port_from))
        .await?;
    for (endpoint, address) in &served.addresses {
        println!("{endpoint} on {address}");
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
