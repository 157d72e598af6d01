//! `corrente validate`: every mistake of a set of manifests, a line each.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;

use crate::site::{Site, count};

/// What `validate` is told.
#[derive(clap::Args)]
pub struct Arguments {
    /// Manifests: files, or folders of them
    #[arg(required = true)]
    paths: Vec<PathBuf>,
}

/// Prints what is wrong, and ends with 1 where something is.
///
/// # Errors
/// Never; what is wrong with the manifests is no error of the program.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let checked = Site::check(&arguments.paths);
    for problem in &checked.problems {
        println!("{problem}");
    }
    if checked.problems.is_empty() {
        println!("all right: {}", checked.summary);
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "{} in {}",
        count(checked.problems.len(), "problem"),
        checked.summary
    );
    Ok(ExitCode::FAILURE)
}
