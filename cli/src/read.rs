//! `corrente read`: meters polled once, decoded values beside the raw registers they came from.
//!
//! It reads as the poller does (the same plan, the same client), so that what is right here is right there;
//! and it shows the registers, which is what tells a wrong word order from a wrong address.

use std::{fmt::Write as _, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail};
use corrente_config::{EndpointAddress, PollerConfig, poller::MapKey};
use corrente_crds::{
    poller::{Endpoint, Meter},
    profile::Function,
};
use corrente_modbus::{
    CompiledMap, ReadPlan, decode,
    map::is_bits,
    sunspec::{Step, Walk},
};
use corrente_poller::{
    client::{ReadBlock, ReadError, Registers, TcpConnector},
    line::{Line, LineError},
    setup::{connector, cost_model},
};
use corrente_record::Value;

use crate::site::{SecretsFolder, Site};

/// What `read` is told.
#[derive(clap::Args)]
pub struct Arguments {
    /// Manifests: files, or folders of them
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Only this meter; may be given several times
    #[arg(long, value_name = "NAME")]
    meter: Vec<String>,
    /// Read every endpoint at this address instead of its own, as a simulator's or a tunnel's
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
    #[command(flatten)]
    secrets: SecretsFolder,
}

/// Polls each meter once. Ends with 1 where one could not be read at all.
///
/// # Errors
/// Where the manifests are wrong or name no such meter.
pub async fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut site = Site::load(&arguments.paths)?;
    arguments.secrets.give_to(&mut site);
    let known: Vec<&str> = site
        .pollers
        .iter()
        .flat_map(|config| &config.endpoints)
        .flat_map(|endpoint| &endpoint.meters)
        .map(|meter| meter.name.as_str())
        .collect();
    for name in &arguments.meter {
        if !known.contains(&name.as_str()) {
            bail!("there is no meter {name:?}; there are: {}", known.join(", "));
        }
    }
    let mut failed = false;
    for config in &site.pollers {
        for endpoint in &config.endpoints {
            let wanted = |meter: &&Meter| arguments.meter.is_empty() || arguments.meter.contains(&meter.name);
            let meters: Vec<&Meter> = endpoint.meters.iter().filter(wanted).collect();
            if meters.is_empty() {
                continue;
            }
            let mut endpoint = endpoint.clone();
            if let Some(address) = &arguments.address {
                endpoint.address.clone_from(address);
            }
            let address = EndpointAddress::of(&endpoint)?;
            let mut line = connect(config, &endpoint, &address);
            for meter in meters {
                println!("{}: unit {} at {address}", meter.name, meter.unit_id);
                match one(config, &endpoint, meter, &mut line).await {
                    Ok(text) => println!("{text}"),
                    Err(error) => {
                        failed = true;
                        println!("  {error:#}\n");
                    }
                }
            }
        }
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

type TcpLine = Line<TcpConnector>;

fn connect(config: &PollerConfig, endpoint: &Endpoint, address: &EndpointAddress) -> TcpLine {
    let connector = connector(config, endpoint, address);
    let pause = endpoint
        .inter_request_delay
        .map_or(Duration::ZERO, |delay| delay.as_std());
    Line::new(connector, pause, ())
}

async fn one(
    config: &PollerConfig,
    endpoint: &Endpoint,
    meter: &Meter,
    line: &mut TcpLine,
) -> Result<String> {
    let key = MapKey::of(meter).context("it names no register map")?;
    let map = config
        .maps
        .get(&key)
        .with_context(|| format!("there is no register map {key}"))?;
    let map = CompiledMap::compile(map, &meter.metrics).map_err(|problems| {
        anyhow!(
            problems
                .iter()
                .map(|p| format!("{}: {}", p.register, p.message))
                .collect::<Vec<_>>()
                .join("; ")
        )
    })?;
    let unit = u8::try_from(meter.unit_id).context("its unit id is beyond 255")?;
    let mut plan = ReadPlan::build(&map, &cost_model(endpoint));
    if let Some(walk) = Walk::for_map(&map) {
        plan = plan.at(find(walk, unit, plan.pause, config.retries, line).await?)?;
    }
    // In the order of the map, whatever the requests' order: that is how a manual lists them.
    let mut rows: Vec<Option<(String, String)>> = vec![None; map.values.len()];
    for request in &plan.requests {
        let block = ReadBlock {
            unit,
            function: request.function,
            address: request.address,
            count: request.count,
        };
        match line.read_patiently(block, plan.pause, config.retries).await {
            Ok(registers) => decode(&map, request, registers.answer(), &mut |index, value| {
                if let (Some(row), Some(of)) = (rows.get_mut(index), map.values.get(index)) {
                    let start = usize::from(
                        of.address
                            .wrapping_sub(request.address.wrapping_sub(request.base)),
                    );
                    let raw = raw(&registers, start, usize::from(of.count));
                    let text =
                        value.map_or_else(|bad| bad.to_string(), |v| with_unit(&v, of.unit.as_deref()));
                    *row = Some((text, raw));
                }
            }),
            Err(error) => {
                for index in &request.values {
                    if let Some(row) = rows.get_mut(*index) {
                        *row = Some((error.to_string(), String::new()));
                    }
                }
            }
        }
    }
    if let Some((reason, _)) = rows.iter().flatten().next()
        && rows
            .iter()
            .flatten()
            .all(|(text, raw)| raw.is_empty() && text == reason)
    {
        bail!("{reason}");
    }
    Ok(table(&map, &plan, &rows))
}

/// Walks the chain of SunSpec models to the one that the map counts from.
async fn find(mut walk: Walk, unit: u8, pause: Duration, retries: u32, line: &mut TcpLine) -> Result<u16> {
    loop {
        match walk.step() {
            Step::Read { address, count } => {
                let block = ReadBlock {
                    unit,
                    function: Function::Holding,
                    address,
                    count,
                };
                match line.read_patiently(block, pause, retries).await {
                    Ok(Registers::Words(words)) => walk.words(&words),
                    Ok(Registers::Bits(_)) => walk.refused(),
                    Err(LineError::Read(ReadError::Exception(_))) => walk.refused(),
                    Err(error) => return Err(error.into()),
                }
            }
            Step::Found(base) => return Ok(base),
            Step::Failed(error) => return Err(error.into()),
        }
    }
}

fn raw(registers: &Registers, start: usize, count: usize) -> String {
    match registers {
        Registers::Words(words) => words
            .iter()
            .skip(start)
            .take(count)
            .map(|word| format!("{word:04X}"))
            .collect::<Vec<_>>()
            .join(" "),
        Registers::Bits(bits) => bits
            .get(start)
            .map_or_else(String::new, |bit| u8::from(*bit).to_string()),
    }
}

fn with_unit(value: &Value, unit: Option<&str>) -> String {
    match unit {
        None | Some("1") => value.to_string(),
        Some(unit) => format!("{value} {unit}"),
    }
}

fn table(map: &CompiledMap, plan: &ReadPlan, rows: &[Option<(String, String)>]) -> String {
    let base = plan.requests.first().map_or(0, |request| request.base);
    let name_width = map.values.iter().map(|value| value.name.len()).max().unwrap_or(0);
    let text_width = rows
        .iter()
        .flatten()
        .map(|(text, _)| text.chars().count())
        .max()
        .unwrap_or(0)
        .min(40);
    let mut out = String::new();
    for (value, row) in map.values.iter().zip(rows) {
        let Some((text, raw)) = row else { continue };
        let table = match value.function {
            Function::Coil => "coil",
            Function::Discrete => "discrete",
            Function::Holding => "holding",
            Function::Input => "input",
        };
        let address = u32::from(base) + u32::from(value.address);
        let kind = if is_bits(value.function) { "" } else { "0x" };
        let raw = if raw.is_empty() {
            String::new()
        } else {
            format!("{kind}{}", raw.replace(' ', " 0x"))
        };
        let line = format!(
            "  {:name_width$}  {text:text_width$}  {table} {address:<5} {raw}",
            value.name
        );
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}
