//! Wiring of the command line.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use corrente::{dead_letters, local, plan, read, simulate, validate};

/// Meters to history: Modbus meters, Kafka and a database, as Kubernetes resources or in one process.
#[derive(Parser)]
#[command(name = "corrente", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check manifests as the API server and the operator would, offline
    Validate(validate::Arguments),
    /// Print how each meter is read and how long a cycle takes
    Plan(plan::Arguments),
    /// Poll meters once and print the decoded values beside the raw registers
    Read(read::Arguments),
    /// Serve the meters of manifests, simulated, over Modbus
    Simulate(simulate::Arguments),
    /// Run the whole chain of manifests in this process, into a SQLite file
    Local(local::Arguments),
    /// Show, replay and remove what pipelines could not store
    DeadLetters(dead_letters::Arguments),
}

#[tokio::main]
async fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Validate(arguments) => validate::run(&arguments),
        Command::Plan(arguments) => plan::run(&arguments),
        Command::Read(arguments) => read::run(&arguments).await,
        Command::Simulate(arguments) => simulate::run(&arguments).await,
        Command::Local(arguments) => local::run(&arguments).await,
        Command::DeadLetters(arguments) => dead_letters::run(&arguments).await,
    };
    result.unwrap_or_else(|error| {
        eprintln!("corrente: {error:#}");
        ExitCode::from(2)
    })
}
