//! `corrente plan`: how each meter is read, and how long a cycle takes.
//!
//! Meters of one model that read the same values share a plan, so it is printed once; then each endpoint
//! with the time its meters take together, beside the interval they have.

use std::{fmt::Write as _, path::PathBuf, process::ExitCode};

use anyhow::Result;
use corrente_config::{PollerConfig, poller::MapKey};
use corrente_crds::{
    poller::{Endpoint, Meter, Transport},
    profile::Function,
};
use corrente_modbus::{Base, CompiledMap, CostModel, ReadPlan};
use corrente_poller::setup::cost_model;

use crate::site::{Site, count};

/// What `plan` is told.
#[derive(clap::Args)]
pub struct Arguments {
    /// Manifests: files, or folders of them
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// The time of a request and its answer without their registers, in milliseconds, where it is known;
    /// by default what the poller assumes of the transport
    #[arg(long, value_name = "MS")]
    round_trip_ms: Option<f64>,
}

/// Prints the plan of every MeterPoller.
///
/// # Errors
/// Where the manifests are wrong.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let site = Site::load(&arguments.paths)?;
    for config in &site.pollers {
        print!("{}", describe(config, arguments.round_trip_ms));
    }
    Ok(ExitCode::SUCCESS)
}

/// What a request on an endpoint costs: what the poller takes for it, unless it was measured.
fn cost_of(endpoint: &Endpoint, round_trip_ms: Option<f64>) -> CostModel {
    let cost = cost_model(endpoint);
    match round_trip_ms {
        Some(ms) => CostModel {
            round_trip_micros: (ms.max(0.0) * 1000.0) as u64,
            ..cost
        },
        None => cost,
    }
}

/// A meter's map, compiled, and the requests that read it.
fn planned(config: &PollerConfig, meter: &Meter, cost: &CostModel) -> Option<(CompiledMap, ReadPlan)> {
    // Resolving has compiled every map already, so what is `None` here was refused there.
    let map = config.maps.get(&MapKey::of(meter)?)?;
    let map = CompiledMap::compile(map, &meter.metrics).ok()?;
    let plan = ReadPlan::build(&map, cost);
    Some((map, plan))
}

/// The plan of a MeterPoller as text.
#[must_use]
pub fn describe(config: &PollerConfig, round_trip_ms: Option<f64>) -> String {
    let mut out = format!("MeterPoller {}, every {}\n", config.name, config.interval);
    // Meters of one model that read the same values at the same cost have the same plan.
    let mut seen: Vec<(String, &[String], CostModel)> = Vec::new();
    for endpoint in &config.endpoints {
        let cost = cost_of(endpoint, round_trip_ms);
        for meter in &endpoint.meters {
            let key = (
                MapKey::of(meter).unwrap_or_default(),
                meter.metrics.as_slice(),
                cost,
            );
            if seen.contains(&key) {
                continue;
            }
            if let Some((map, plan)) = planned(config, meter, &cost) {
                describe_map(&mut out, &key.0, &map, &plan, &cost);
            }
            seen.push(key);
        }
    }
    for endpoint in &config.endpoints {
        describe_endpoint(&mut out, config, endpoint, &cost_of(endpoint, round_trip_ms));
    }
    out
}

fn describe_map(out: &mut String, key: &str, map: &CompiledMap, plan: &ReadPlan, cost: &CostModel) {
    let name = key.rsplit('/').next().unwrap_or(key);
    let carried: u32 = plan.requests.iter().map(|request| u32::from(request.count)).sum();
    let base = match map.base {
        Base::Absolute => String::new(),
        Base::SunspecModel(model) => format!(", counted from SunSpec model {model}"),
    };
    let _ = writeln!(
        out,
        "\n  {name}: {} in {}, {carried} registers, {}{base}",
        count(map.values.len(), "value"),
        count(plan.requests.len(), "request"),
        time(plan.predicted_micros(cost)),
    );
    for request in &plan.requests {
        let table = match request.function {
            Function::Coil => "coil",
            Function::Discrete => "discrete",
            Function::Holding => "holding",
            Function::Input => "input",
        };
        let names: Vec<&str> = request
            .values
            .iter()
            .filter_map(|index| Some(&*map.values.get(*index)?.name))
            .collect();
        let names = match names.as_slice() {
            [first, .., last] if names.len() > 4 => format!("{first} ... {last}"),
            _ => names.join(", "),
        };
        let last = u32::from(request.address) + u32::from(request.count).saturating_sub(1);
        let _ = writeln!(
            out,
            "    {table:8} {:>5}..{last:<5} {:>3} registers  {:>9}: {names}",
            request.address,
            request.count,
            count(request.values.len(), "value"),
        );
    }
}

fn describe_endpoint(out: &mut String, config: &PollerConfig, endpoint: &Endpoint, cost: &CostModel) {
    let plans: Vec<_> = endpoint
        .meters
        .iter()
        .filter_map(|meter| Some(planned(config, meter, cost)?.1))
        .collect();
    let requests: usize = plans.iter().map(|plan| plan.requests.len()).sum();
    let micros: u64 = plans.iter().map(|plan| plan.predicted_micros(cost)).sum();
    let interval = endpoint
        .meters
        .iter()
        .filter_map(|meter| meter.interval)
        .chain([config.interval])
        .min()
        .unwrap_or(config.interval);
    let transport = match endpoint.transport {
        Transport::Tcp => "tcp",
        Transport::RtuOverTcp => "rtu-over-tcp",
        Transport::Tls => "tls",
    };
    let share = micros as f64 / (interval.as_millis() as f64 * 10.0);
    let verdict = if share > 100.0 {
        ": DOES NOT FIT, lengthen the interval or read fewer values"
    } else {
        ""
    };
    let _ = writeln!(
        out,
        "\n  endpoint {} ({transport} {}): {}, {}, {} of {interval} ({share:.1}%){verdict}",
        endpoint.name,
        endpoint.address,
        count(endpoint.meters.len(), "meter"),
        count(requests, "request"),
        time(micros),
    );
}

fn time(micros: u64) -> String {
    format!("{:.1} ms", micros as f64 / 1000.0)
}
