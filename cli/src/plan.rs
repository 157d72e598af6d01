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

/// The cost with the round trips of the requests that are under way together: they overlap, while registers
/// and pauses come one after the other.
fn overlapping(cost: &CostModel, endpoint: &Endpoint) -> CostModel {
    let at_a_time = u64::try_from(endpoint.max_in_flight).unwrap_or(1).max(1);
    CostModel {
        round_trip_micros: cost.round_trip_micros.div_ceil(at_a_time),
        ..*cost
    }
}

/// What to do where the meters of an endpoint take longer than they have.
fn too_long(endpoint: &Endpoint) -> &'static str {
    if endpoint.transport == Transport::RtuOverTcp {
        ": DOES NOT FIT, slots will be skipped: lengthen the interval or read fewer values"
    } else if endpoint.max_in_flight == 1 {
        ": DOES NOT FIT, slots will be skipped: lengthen the interval, read fewer values, or set maxInFlight where \
         the device takes several requests at a time"
    } else {
        ": DOES NOT FIT, slots will be skipped: lengthen the interval, read fewer values, or raise maxInFlight"
    }
}

fn describe_endpoint(out: &mut String, config: &PollerConfig, endpoint: &Endpoint, cost: &CostModel) {
    let overlapping = overlapping(cost, endpoint);
    let (mut requests, mut micros, mut share) = (0, 0_u64, 0.0);
    let mut interval = config.interval;
    for meter in &endpoint.meters {
        let Some((_, plan)) = planned(config, meter, cost) else {
            continue;
        };
        let (predicted, every) = (
            plan.predicted_micros(&overlapping),
            meter.interval.unwrap_or(config.interval),
        );
        requests += plan.requests.len();
        micros = micros.saturating_add(predicted);
        // In percent of the line's time, whatever the intervals of the meters.
        share += predicted as f64 / (every.as_millis() as f64 * 10.0);
        interval = interval.min(every);
    }
    let transport = match endpoint.transport {
        Transport::Tcp => "tcp",
        Transport::RtuOverTcp => "rtu-over-tcp",
        Transport::Tls => "tls",
    };
    let verdict = if share > 100.0 { too_long(endpoint) } else { "" };
    let at_a_time = match endpoint.max_in_flight {
        1 => String::new(),
        most => format!(" up to {most} at a time"),
    };
    let _ = writeln!(
        out,
        "\n  endpoint {} ({transport} {}): {}, {}{at_a_time}, {} of {interval} ({share:.1}%){verdict}",
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn plan(endpoint: serde_json::Value) -> String {
        let mut endpoint: Endpoint = serde_json::from_value(endpoint).unwrap();
        endpoint.meters = (1..=10)
            .map(|unit| {
                serde_json::from_value(
                    json!({"name": format!("m{unit}"), "unitId": unit, "registerMap": "one"}),
                )
                .unwrap()
            })
            .collect();
        let map = json!({"registers": [{"name": "a", "address": 0, "function": "input", "type": "u16"}]});
        let config: PollerConfig = serde_json::from_value(json!({
            "namespace": "n", "name": "site", "shard": 0, "interval": "500ms", "timeout": "1s", "retries": 0,
            "maps": {"map/one": map}, "endpoints": [endpoint],
            "output": {"bootstrapServers": ["k:9092"], "topic": "t"},
            "buffer": {},
        }))
        .unwrap();
        describe(&config, Some(100.0)).lines().last().unwrap().to_owned()
    }

    #[test]
    fn round_trips_overlap_as_far_as_max_in_flight_allows() {
        // Ten requests of 100 ms and 0.02 ms for the register.
        let one = plan(json!({"name": "e", "address": "gw", "meters": []}));
        assert!(
            one.contains("10 requests, 1000.2 ms of 500ms (200.0%): DOES NOT FIT")
                && one.contains("set maxInFlight"),
            "{one}"
        );
        let four = plan(json!({"name": "e", "address": "gw", "maxInFlight": 4, "meters": []}));
        assert!(
            four.ends_with("10 requests up to 4 at a time, 250.2 ms of 500ms (50.0%)"),
            "{four}"
        );
        let serial = plan(json!({"name": "e", "address": "gw", "transport": "rtu-over-tcp", "meters": []}));
        assert!(
            serial.contains("DOES NOT FIT") && !serial.contains("maxInFlight"),
            "{serial}"
        );
    }
}
