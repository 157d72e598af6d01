//! The command line of `corrente-simulator`, and the part of it that `corrente` shares.

use std::{fs::File, net::IpAddr, path::PathBuf, sync::Arc};

use anyhow::{Context as _, bail};
use clap::Parser;
use corrente_config::PollerConfig;
use tokio_util::sync::CancellationToken;

use crate::{Grid, History, LoadSource, Ports, Simulation, UnknownUnit, faults, system_clock, tls};

/// Serves the meters of a poller's configuration, simulated.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Options {
    /// A poller's configuration (poller.json); may be given several times.
    #[arg(long, required = true, value_name = "FILE")]
    pub config: Vec<PathBuf>,
    /// The address to listen on.
    #[arg(long, default_value = "127.0.0.1", value_name = "IP")]
    pub listen: IpAddr,
    /// The first endpoint's port, the next for each further one; without it each endpoint's own.
    #[arg(long, value_name = "PORT")]
    pub port_from: Option<u16>,
    /// What the meters measure.
    #[command(flatten)]
    pub load: Load,
}

/// What the simulated meters measure.
#[derive(clap::Args, Clone, Debug)]
pub struct Load {
    /// A history to replay (time,meter,<metric>,...) instead of a load curve
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Nominal voltage between a phase and neutral, in V
    #[arg(long, default_value_t = 230.0, value_name = "V")]
    pub voltage: f64,
    /// Nominal frequency, in Hz
    #[arg(long, default_value_t = 50.0, value_name = "HZ")]
    pub frequency: f64,
    /// Say nothing to requests for units that are not there, instead of exception 0x0B
    #[arg(long)]
    pub silent: bool,
    /// What goes wrong: a YAML file of faults
    #[arg(long, value_name = "FILE")]
    pub faults: Option<PathBuf>,
    /// What endpoints with transport tls are served with: a folder with ca.crt, tls.crt and tls.key
    #[arg(long, value_name = "FOLDER")]
    pub certificates: Option<PathBuf>,
}

impl Load {
    /// The meters of the configurations, simulated.
    ///
    /// # Errors
    /// Where the history cannot be read, or a register map cannot be simulated.
    pub fn simulation(&self, configs: &[PollerConfig]) -> anyhow::Result<Simulation> {
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
        let mut simulation = Simulation::new(configs, source, system_clock())?.with_unknown_units(unknown);
        if let Some(folder) = &self.certificates {
            simulation = simulation.with_certificates(tls::load(folder)?);
        }
        let Some(path) = &self.faults else {
            return Ok(simulation);
        };
        simulation
            .with_faults(faults::file::read(path)?)
            .or_else(|problems| {
                let lines: Vec<String> = problems.iter().map(|problem| format!("\n  {problem}")).collect();
                bail!("{} cannot come about:{}", path.display(), lines.concat())
            })
    }
}

impl Options {
    /// Serves until `shutdown` is cancelled.
    ///
    /// # Errors
    /// Where a file cannot be read or understood, or a port cannot be listened on.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let configs = self
            .config
            .iter()
            .map(|path| {
                let text =
                    std::fs::read(path).with_context(|| format!("failed to read {}", path.display()))?;
                serde_json::from_slice(&text)
                    .with_context(|| format!("{} is not a poller's configuration", path.display()))
            })
            .collect::<anyhow::Result<Vec<PollerConfig>>>()?;
        let ports = self.port_from.map_or(Ports::AsConfigured, Ports::From);
        let simulation = self.load.simulation(&configs)?;
        for fault in simulation.faults() {
            tracing::info!(%fault, "in force");
        }
        let served = simulation.serve(self.listen, ports).await?;
        shutdown.cancelled().await;
        served.shutdown().await;
        Ok(())
    }
}
