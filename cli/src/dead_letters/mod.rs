//! `corrente dead-letters`: what pipelines could not store.
//!
//! 1. `list`: which ones, and why.
//! 2. `replay`: asks the pipeline's workers to store them after all, once the cause is mended, and waits for what
//!    comes of it. A letter is stored once, whoever asks and how often.
//! 3. `prune`: removes them.
//!
//! All three speak with the pipeline's database alone; [`filter`] says which letters are meant.

mod filter;
mod show;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};
use corrente_pipeline::sink::postgres::letters;
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;

use self::filter::Which;

/// How often a replay is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// The arguments of `corrente dead-letters`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
    /// A file that holds the URL of the pipeline's database, postgres://user:password@host:5432/database; without it
    /// the environment's CORRENTE_DATABASE holds the URL
    #[arg(long, value_name = "FILE", global = true)]
    database: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print them, the oldest first
    List {
        #[command(flatten)]
        which: Which,
        /// Those too that were replayed
        #[arg(long)]
        all: bool,
        /// The records as well, as they came
        #[arg(long)]
        payload: bool,
        /// Most letters to print
        #[arg(long, value_name = "NUMBER", default_value_t = 50)]
        limit: u32,
    },
    /// Have them stored after all, once what was wrong is mended
    Replay {
        #[command(flatten)]
        which: Which,
        /// How many seconds to wait for the pipeline's workers
        #[arg(long, value_name = "SECONDS", default_value_t = 30)]
        wait: u64,
        /// All letters of the database, where nothing else says which
        #[arg(long)]
        everything: bool,
    },
    /// Remove them from the table; what was published stays in the topic
    Prune {
        #[command(flatten)]
        which: Which,
        /// Those too that were replayed
        #[arg(long)]
        all: bool,
        /// All letters of the database, where nothing else says which
        #[arg(long)]
        everything: bool,
    },
}

/// Runs `corrente dead-letters`.
///
/// # Errors
/// Where the database cannot be used, or nothing says which letters are meant.
pub async fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let client = connect(arguments).await?;
    ensure!(
        letters::exist(&client)
            .await
            .context("failed to look for the table corrente.dead_letters")?,
        "the database has no table corrente.dead_letters: no pipeline has stored in it yet, or it is another database"
    );
    match &arguments.action {
        Action::List {
            which,
            all,
            payload,
            limit,
        } => {
            let mut filter = which.filter()?;
            filter.replayed = *all;
            let (found, count) = letters::list(&client, &filter, *limit)
                .await
                .context("failed to read the dead letters")?;
            print!("{}", show::letters(&found, count, *payload));
            Ok(ExitCode::SUCCESS)
        }
        Action::Replay {
            which,
            wait,
            everything,
        } => {
            which.or_everything(*everything, "replay")?;
            replay(&client, which, Duration::from_secs(*wait)).await
        }
        Action::Prune {
            which,
            all,
            everything,
        } => {
            which.or_everything(*everything, "prune")?;
            let mut filter = which.filter()?;
            filter.replayed = *all;
            let removed = letters::prune(&client, &filter)
                .await
                .context("failed to remove dead letters")?;
            println!("{} removed", show::count(removed));
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn replay(client: &Client, which: &Which, patience: Duration) -> anyhow::Result<ExitCode> {
    let ids = letters::ask(client, &which.filter()?)
        .await
        .context("failed to ask for the replay")?;
    if ids.is_empty() {
        println!("no letter to replay: none of them is open");
        return Ok(ExitCode::SUCCESS);
    }
    let until = Instant::now() + patience;
    loop {
        let outcome = letters::outcome(client, &ids)
            .await
            .context("failed to look what came of the replay")?;
        if outcome.waiting == 0 || Instant::now() >= until {
            print!("{}", show::outcome(&outcome, patience));
            let whole = outcome.waiting == 0 && outcome.refused.is_empty();
            return Ok(if whole {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
        sleep(LOOK).await;
    }
}

async fn connect(arguments: &Arguments) -> anyhow::Result<Client> {
    let url = match &arguments.database {
        Some(path) => std::fs::read_to_string(path)
            .with_context(|| format!("failed to read the database's URL from {}", path.display()))?,
        None => match std::env::var("CORRENTE_DATABASE") {
            Ok(url) => url,
            Err(_) => bail!(
                "nothing says which database: name a file that holds its URL with --database, or set CORRENTE_DATABASE"
            ),
        },
    };
    letters::connect(&url).await.map_err(anyhow::Error::msg)
}
