//! A MeterPoller and the profiles it names to what a shard is told.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use corrente_crds::{
    Duration, MeterPollerSpec, MeterProfileSpec,
    poller::{Buffer, Endpoint, KafkaOutput, Meter},
    profile::RegisterMap,
};
use corrente_modbus::CompiledMap;

use crate::{
    PollerConfig, Problem, address::EndpointAddress, manifest::closest, poller::MapKey, secrets::Secrets,
};

/// A MeterPoller that can be polled: its maps are found and compile, its names are unique.
#[derive(Clone, Debug, PartialEq)]
pub struct ResolvedPoller {
    /// The MeterPoller's namespace.
    pub namespace: String,
    /// The MeterPoller's name.
    pub name: String,
    /// How often meters are read that say nothing else.
    pub interval: Duration,
    /// How long to wait for an answer.
    pub timeout: Duration,
    /// How often a request that timed out is sent again.
    pub retries: u32,
    /// The register maps that the meters name, under the keys of [`MapKey`].
    pub maps: BTreeMap<String, RegisterMap>,
    /// All endpoints, in the order of the resource.
    pub endpoints: Vec<Endpoint>,
    /// Where the records go.
    pub output: KafkaOutput,
    /// The spool.
    pub buffer: Buffer,
}

impl ResolvedPoller {
    /// The configuration of a shard that polls these of the endpoints: with the maps that they name, and
    /// no other, so that a change to a map concerns the shards that use it.
    pub fn config<'a>(&self, shard: i32, endpoints: impl Iterator<Item = &'a Endpoint>) -> PollerConfig {
        let endpoints: Vec<Endpoint> = endpoints.cloned().collect();
        let used: BTreeSet<String> = endpoints
            .iter()
            .flat_map(|endpoint| &endpoint.meters)
            .filter_map(MapKey::of)
            .collect();
        PollerConfig {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            shard,
            interval: self.interval,
            timeout: self.timeout,
            retries: self.retries,
            maps: self
                .maps
                .iter()
                .filter(|(key, _)| used.contains(*key))
                .map(|(key, map)| (key.clone(), map.clone()))
                .collect(),
            endpoints,
            output: self.output.clone(),
            buffer: self.buffer,
            secrets: Secrets::default(),
        }
    }

    /// How many meters there are.
    #[must_use]
    pub fn meters(&self) -> usize {
        self.endpoints.iter().map(|endpoint| endpoint.meters.len()).sum()
    }
}

/// Checks a MeterPoller together with the profiles it names, and gives what its shards are told.
///
/// # Errors
/// Everything that is wrong, each with its place in the MeterPoller; not only the first.
pub fn resolve_poller(
    namespace: &str,
    name: &str,
    spec: &MeterPollerSpec,
    profiles: &BTreeMap<String, MeterProfileSpec>,
) -> Result<ResolvedPoller, Vec<Problem>> {
    let mut problems = Vec::new();
    addresses(spec, &mut problems);
    meter_names(spec, &mut problems);
    let maps = maps(spec, profiles, &mut problems);
    metrics(spec, &maps, &mut problems);
    labels(spec, &maps, &mut problems);
    if !problems.is_empty() {
        return Err(problems);
    }
    Ok(ResolvedPoller {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        interval: spec.interval,
        timeout: spec.timeout,
        retries: u32::try_from(spec.retries).unwrap_or(0),
        maps,
        endpoints: spec.endpoints.clone(),
        output: spec.output.kafka.clone(),
        buffer: spec.buffer,
    })
}

/// Every meter with its place.
pub(crate) fn meters(spec: &MeterPollerSpec) -> impl Iterator<Item = (String, &Meter)> {
    spec.endpoints.iter().enumerate().flat_map(|(e, endpoint)| {
        endpoint
            .meters
            .iter()
            .enumerate()
            .map(move |(m, meter)| (format!("spec.endpoints[{e}].meters[{m}]"), meter))
    })
}

/// One gateway is one endpoint, or its requests would overlap.
fn addresses(spec: &MeterPollerSpec, problems: &mut Vec<Problem>) {
    let mut seen: HashMap<EndpointAddress, &str> = HashMap::new();
    for (e, endpoint) in spec.endpoints.iter().enumerate() {
        let path = format!("spec.endpoints[{e}].address");
        let address = match EndpointAddress::of(endpoint) {
            Ok(address) => address,
            Err(error) => {
                problems.push(Problem::new(path, error.to_string()));
                continue;
            }
        };
        if let Some(first) = seen.get(&address) {
            let message = format!(
                "{address} is the address of endpoint {first:?} already, and a gateway has one master: \
                 put the meters of both into one endpoint"
            );
            problems.push(Problem::new(path, message));
        } else {
            seen.insert(address, &endpoint.name);
        }
    }
}

/// The name is the key of a meter's records: within an endpoint the API server keeps it unique.
fn meter_names(spec: &MeterPollerSpec, problems: &mut Vec<Problem>) {
    let mut seen: HashMap<&str, String> = HashMap::new();
    for (path, meter) in meters(spec) {
        if let Some(first) = seen.get(meter.name.as_str()) {
            let message = format!(
                "meter {:?} is there already, at {first}: give one of the two another name",
                meter.name
            );
            problems.push(Problem::new(format!("{path}.name"), message));
        } else {
            seen.insert(&meter.name, path);
        }
    }
}

/// The maps that meters name, found and compiled once each.
fn maps(
    spec: &MeterPollerSpec,
    profiles: &BTreeMap<String, MeterProfileSpec>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<String, RegisterMap> {
    for (i, inline) in spec.register_maps.iter().enumerate() {
        let path = format!("spec.registerMaps[{i}]");
        problems.extend(compile(&inline.map, "").into_iter().map(|(register, message)| {
            let place = inline.map.registers.iter().position(|r| r.name == register);
            let path = place.map_or(path.clone(), |r| format!("{path}.registers[{r}]"));
            Problem::new(path, message)
        }));
    }
    let mut maps = BTreeMap::new();
    let mut asked = BTreeSet::new();
    for (path, meter) in meters(spec) {
        let Some(key) = MapKey::of(meter) else {
            let message = "names no map: write profile or registerMap";
            problems.push(Problem::new(path, message));
            continue;
        };
        // A profile that is missing or wrong is told once, at the first meter that names it.
        if !asked.insert(key.clone()) {
            continue;
        }
        match (&meter.profile, &meter.register_map) {
            (Some(name), _) => match profiles.get(name) {
                Some(profile) => {
                    let found = compile(&profile.map, &format!("MeterProfile {name:?}: "));
                    problems.extend(
                        found
                            .into_iter()
                            .map(|(_, message)| Problem::new(format!("{path}.profile"), message)),
                    );
                    maps.insert(key, profile.map.clone());
                }
                None => {
                    let known: Vec<&str> = profiles.keys().map(String::as_str).collect();
                    let message = unknown("MeterProfile", name, &known, "apply it, or correct the name");
                    problems.push(Problem::new(format!("{path}.profile"), message));
                }
            },
            (None, Some(name)) => match spec.register_maps.iter().find(|map| map.name == *name) {
                Some(inline) => {
                    maps.insert(key, inline.map.clone());
                }
                None => {
                    let known: Vec<&str> = spec.register_maps.iter().map(|m| m.name.as_str()).collect();
                    let hint = "add it to spec.registerMaps, or correct the name";
                    let message = unknown("register map", name, &known, hint);
                    problems.push(Problem::new(format!("{path}.registerMap"), message));
                }
            },
            (None, None) => {}
        }
    }
    maps
}

/// What is wrong with a map: the register, and a sentence that begins with `whose` and names it.
fn compile(map: &RegisterMap, whose: &str) -> Vec<(String, String)> {
    let found = CompiledMap::compile(map, &[]).err().unwrap_or_default();
    found
        .into_iter()
        .map(|problem| {
            let message = if problem.register.is_empty() {
                format!("{whose}{}", problem.message)
            } else {
                format!("{whose}register {:?}: {}", problem.register, problem.message)
            };
            (problem.register, message)
        })
        .collect()
}

fn unknown(what: &str, name: &str, known: &[&str], hint: &str) -> String {
    match closest(name, known) {
        Some(meant) => format!("there is no {what} {name:?}; did you mean {meant:?}?"),
        None => format!("there is no {what} {name:?}: {hint}"),
    }
}

/// Every metric that a meter asks for is in its map.
fn metrics(spec: &MeterPollerSpec, maps: &BTreeMap<String, RegisterMap>, problems: &mut Vec<Problem>) {
    for (path, meter) in meters(spec) {
        let Some(map) = MapKey::of(meter).and_then(|key| maps.get(&key)) else {
            continue;
        };
        let known: Vec<&str> = map.registers.iter().map(|r| r.name.as_str()).collect();
        for (i, metric) in meter.metrics.iter().enumerate() {
            if !known.contains(&metric.as_str()) {
                let message = unknown("metric", metric, &known, "its map has no register of that name");
                problems.push(Problem::new(format!("{path}.metrics[{i}]"), message));
            }
        }
    }
}

/// Labels and metrics are fields of one record and columns of one table.
fn labels(spec: &MeterPollerSpec, maps: &BTreeMap<String, RegisterMap>, problems: &mut Vec<Problem>) {
    let metrics: BTreeSet<&str> = meters(spec)
        .filter_map(|(_, meter)| Some((meter, maps.get(&MapKey::of(meter)?)?)))
        .flat_map(|(meter, map)| {
            map.registers
                .iter()
                .map(|register| register.name.as_str())
                .filter(|name| meter.metrics.is_empty() || meter.metrics.iter().any(|m| m == name))
        })
        .collect();
    for (path, meter) in meters(spec) {
        for label in meter
            .labels
            .keys()
            .filter(|label| metrics.contains(label.as_str()))
        {
            let message = "a metric of this MeterPoller has this name, and both are columns of one table: \
                           give the label another name";
            problems.push(Problem::new(format!("{path}.labels.{label}"), message));
        }
    }
}
