//! The Corrente operator.

use std::process::ExitCode;

use clap::Parser;
use corrente_operator::cli::Cli;

fn main() -> ExitCode {
    // One TLS provider, chosen here and not by whichever dependency comes first. An error says that it
    // was chosen before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("failed to start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(Cli::parse().execute()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
