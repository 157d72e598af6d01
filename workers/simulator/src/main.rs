//! `corrente-simulator`: serves simulated meters until it is asked to end.

use clap::Parser as _;
use corrente_runtime::{logging, shutdown};
use corrente_simulator::options::Options;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    logging::init("info");
    options.run(shutdown::token()?).await
}
