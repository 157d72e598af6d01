//! `corrente-simulator`: serves simulated meters until it is asked to end.

use std::process::ExitCode;

use clap::Parser as _;
use corrente_runtime::{logging, shutdown};
use corrente_simulator::options::Options;

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    logging::init("info");
    let result = match shutdown::token() {
        Ok(token) => options.run(token).await,
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("corrente-simulator: {error:#}");
            ExitCode::FAILURE
        }
    }
}
