//! `corrente local`: the whole chain of a folder of manifests in one process.
//!
//! 1. Manifests become configuration files, as on the cluster; with `--simulate` the meters are served here
//!    and the addresses replaced.
//! 2. Pipelines are started first, then pollers: the same code as in the pods, around a broker in memory and
//!    a SQLite file instead of PostgreSQL. A topic that no pipeline reads gets one.
//! 3. What comes is shown until the end; then the pollers end, the pipelines store what is left, and the
//!    summary says what became of every record. What could not be stored waits in the spools for the next run.

mod chain;
mod display;
mod figures;
mod pipelines;

use std::{
    io::{IsTerminal, Write},
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use corrente_crds::{Duration as Span, poller::Transport};
use corrente_runtime::{logging, shutdown};
use corrente_simulator::{Ports, Served, options::Load};
use tokio_util::sync::CancellationToken;

use self::{
    chain::{Chain, Latest},
    display::{Room, cut, line, summary, table},
};
use crate::site::{SecretsFolder, Site, count};

/// What `local` is told.
#[derive(clap::Args)]
pub struct Arguments {
    /// Manifests: files, or folders of them
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Serve the meters here, simulated, instead of asking the addresses of the manifests
    #[arg(long)]
    simulate: bool,
    /// Where the readings and the spools go
    #[arg(long, default_value = ".corrente", value_name = "FOLDER")]
    data: PathBuf,
    /// End by itself after this time, as in 30s
    #[arg(long, value_name = "TIME")]
    duration: Option<Span>,
    #[command(flatten)]
    secrets: SecretsFolder,
    #[command(flatten)]
    load: Load,
}

/// How often the picture is drawn in a terminal.
const DRAW: Duration = Duration::from_millis(500);
/// How often a line is printed elsewhere.
const PRINT: Duration = Duration::from_secs(5);

/// Runs the chain until it is asked to end. Ends with 1 where a record was lost.
///
/// # Errors
/// Where the manifests are wrong, or a part of the chain cannot be started.
pub async fn run(arguments: &Arguments) -> Result<ExitCode> {
    // What the workers have to say would tear the picture; it is in the table and in the summary.
    logging::init("error");
    let mut site = Site::load(&arguments.paths)?;
    arguments.secrets.give_to(&mut site);
    std::fs::create_dir_all(&arguments.data)
        .with_context(|| format!("failed to make the folder {}", arguments.data.display()))?;
    let served = if arguments.simulate {
        Some(simulated(&mut site, &arguments.load).await?)
    } else {
        None
    };
    let database = arguments.data.join("readings.sqlite");
    eprintln!("storing in {}; Ctrl-C ends it", database.display());
    for pipeline in &site.pipelines {
        for sentence in pipelines::left_out(pipeline) {
            eprintln!("{}/{}: {sentence}", pipeline.namespace, pipeline.name);
        }
    }

    let asked = shutdown::token()?;
    if let Some(after) = arguments.duration {
        let asked = asked.clone();
        tokio::spawn(async move {
            tokio::time::sleep(after.as_std()).await;
            asked.cancel();
        });
    }
    let began = Instant::now();
    let latest = Arc::new(Latest::of(&site));
    let mut chain = Chain::start(site, &arguments.data, &database, latest.clone())?;
    let broken = watch(&mut chain, &latest, began, &asked).await;
    let figures = chain.end().await;
    if let Some(served) = served {
        served.shutdown().await;
    }
    println!("{}", table(&latest.picture(), room()));
    println!("{}", line(began.elapsed(), &figures));
    println!(
        "{}; look at them with: sqlite3 {} 'select * from readings limit 5'",
        summary(&figures),
        database.display(),
    );
    broken?;
    Ok(if figures.lost == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Serves the meters of the site on this machine, and points the site at them.
async fn simulated(site: &mut Site, load: &Load) -> Result<Served> {
    // Nobody is to have certificates at hand only to see the chain run: within one process there is no wire.
    for endpoint in site.pollers.iter_mut().flat_map(|config| &mut config.endpoints) {
        if endpoint.transport == Transport::Tls {
            endpoint.transport = Transport::Tcp;
            endpoint.tls = None;
        }
    }
    let served = load
        .simulation(&site.pollers)?
        .serve(IpAddr::V4(Ipv4Addr::LOCALHOST), Ports::Ephemeral)
        .await
        .context("failed to serve the simulated meters")?;
    for config in &mut site.pollers {
        for endpoint in &mut config.endpoints {
            // Where two MeterPollers have an endpoint of one name, the second is under a longer one.
            let long = format!("{}/{}", config.name, endpoint.name);
            if let Some(address) = served
                .addresses
                .get(&long)
                .or_else(|| served.addresses.get(&endpoint.name))
            {
                endpoint.address = address.to_string();
            }
        }
    }
    eprintln!("simulating {}", count(served.addresses.len(), "endpoint"));
    Ok(served)
}

/// The room for a picture: the terminal's, or a page's where there is none.
fn room() -> Room {
    match terminal_size::terminal_size() {
        Some((width, height)) => Room {
            width: width.0.into(),
            height: height.0.into(),
        },
        None => Room {
            width: 120,
            height: 200,
        },
    }
}

/// Shows what comes, until asked to end or a part of the chain breaks.
async fn watch(chain: &mut Chain, latest: &Latest, began: Instant, asked: &CancellationToken) -> Result<()> {
    let terminal = std::io::stdout().is_terminal();
    let mut every = tokio::time::interval(if terminal { DRAW } else { PRINT });
    every.tick().await;
    let mut drawn = 0;
    let broken = loop {
        tokio::select! {
            () = asked.cancelled() => break Ok(()),
            broken = chain.broken() => break broken,
            _ = every.tick() => {}
        }
        let figures = line(began.elapsed(), &chain.figures());
        let mut out = std::io::stdout().lock();
        if terminal {
            // The figures, a blank line, the table; and the cursor's own line below.
            let Room { width, height } = room();
            let body = table(
                &latest.picture(),
                Room {
                    width,
                    height: height.saturating_sub(3),
                },
            );
            let text = format!("{}\n\n{body}", cut(&figures, width));
            let _ = write!(out, "{}{text}", clear(drawn));
            drawn = text.lines().count();
        } else {
            let _ = writeln!(out, "{figures}");
        }
        let _ = out.flush();
    };
    if terminal {
        print!("{}", clear(drawn));
    }
    broken
}

/// Up to where the last picture began, and everything below cleared.
fn clear(drawn: usize) -> String {
    if drawn > 0 {
        format!("\x1b[{drawn}A\x1b[J")
    } else {
        String::new()
    }
}
