//! The Corrente operator.

use clap::Parser;
use corrente_operator::cli::Cli;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // One TLS provider, chosen here and not by whichever dependency comes first. An error says that it
    // was chosen before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Cli::parse().execute().await
}
