//! Manifests become what the workers are told: the same checks and the same files as on the cluster.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use corrente_config::{
    PipelineConfig, PollerConfig, Secrets,
    manifest::{self, Loaded},
    secrets::SECRETS_PATH,
};

use crate::library;

/// What a set of manifests describes.
pub struct Site {
    /// Each MeterPoller, all of its endpoints in one shard.
    pub pollers: Vec<PollerConfig>,
    /// Each TelemetryPipeline.
    pub pipelines: Vec<PipelineConfig>,
}

/// What was found in manifests.
pub struct Checked {
    /// What is right.
    pub site: Site,
    /// What is wrong, a line each.
    pub problems: Vec<String>,
    /// How many resources there are, as a sentence.
    pub summary: String,
}

impl Site {
    /// Checks manifests; the models of the library stand in for MeterProfiles that they do not hold.
    #[must_use]
    pub fn check(paths: &[PathBuf]) -> Checked {
        let mut loaded = manifest::load(paths);
        let given = loaded.profiles.len();
        let lent = lend(&mut loaded);
        let resolved = loaded.resolve();
        let problems = loaded
            .problems
            .iter()
            .chain(&resolved.problems)
            .map(ToString::to_string)
            .collect();
        let meters: usize = resolved
            .pollers
            .iter()
            .flat_map(|p| &p.endpoints)
            .map(|e| e.meters.len())
            .sum();
        let mut summary = format!(
            "{}, {} ({}), {}",
            count(given, "MeterProfile"),
            count(loaded.pollers.len(), "MeterPoller"),
            count(meters, "meter"),
            count(loaded.pipelines.len(), "TelemetryPipeline"),
        );
        if !lent.is_empty() {
            summary += &format!("; from the library: {}", lent.join(", "));
        }
        if loaded.others > 0 {
            summary += &format!("; {} of other kinds left alone", count(loaded.others, "resource"));
        }
        let pollers = resolved
            .pollers
            .iter()
            .map(|poller| poller.config(0, poller.endpoints.iter()))
            .collect();
        Checked {
            site: Self {
                pollers,
                pipelines: resolved.pipelines,
            },
            problems,
            summary,
        }
    }

    /// The site of manifests that are right and poll something.
    ///
    /// # Errors
    /// Where they are not: every problem has been printed, a line each.
    pub fn load(paths: &[PathBuf]) -> Result<Self> {
        let Checked {
            site,
            problems,
            summary,
        } = Self::check(paths);
        for problem in &problems {
            eprintln!("{problem}");
        }
        if !problems.is_empty() {
            bail!("{} to mend first", count(problems.len(), "problem"));
        }
        if site.pollers.is_empty() {
            bail!("there is no MeterPoller to read by: found {summary}");
        }
        eprintln!("{summary}");
        Ok(site)
    }
}

/// Where what is secret is, for commands that connect to meters.
#[derive(clap::Args)]
pub struct SecretsFolder {
    /// The folder that stands in for the Secrets of the cluster: the files of the Secret NAME of an endpoint with
    /// transport tls are DIR/tls/NAME/ca.crt, tls.crt and tls.key
    #[arg(long, env = "CORRENTE_SECRETS", value_name = "DIR", default_value = SECRETS_PATH)]
    secrets: PathBuf,
}

impl SecretsFolder {
    /// Tells every poller of the site where they are.
    pub fn give_to(&self, site: &mut Site) {
        for config in &mut site.pollers {
            config.secrets = Secrets::new(&self.secrets);
        }
    }
}

/// Adds the library's models that meters name and the manifests do not hold.
fn lend(loaded: &mut Loaded) -> Vec<String> {
    let mut wanted: Vec<String> = loaded
        .pollers
        .iter()
        .flat_map(|poller| &poller.spec.endpoints)
        .flat_map(|endpoint| &endpoint.meters)
        .filter_map(|meter| meter.profile.clone())
        .filter(|profile| !loaded.profiles.contains_key(profile))
        .collect();
    wanted.sort();
    wanted.dedup();
    wanted.retain(|name| library::manifest(name).is_some());
    let file = |name: &String| Path::new("library").join(format!("{name}.yaml"));
    loaded.add(
        wanted
            .iter()
            .filter_map(|name| Some((file(name), library::manifest(name)?))),
    );
    wanted
}

/// A number and a noun.
#[must_use]
pub fn count(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}
