//! `corrente-pipeline`: the pipeline worker's process.

use std::process::ExitCode;

fn main() -> ExitCode {
    corrente_pipeline::app::main()
}
