//! The usual site of a scenario: 20 meters of three models on 3 endpoints, read every second, stored in a
//! TimescaleDB table of its own.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, ensure};
use corrente_crds::MeterPoller;
use serde_json::json;

use crate::{
    audit::Table,
    meters::{Endpoint, LastRequest, Meters, Unit},
    site::Site,
    space::Space,
    wait::{seconds, until},
};

/// The name of the poller and of the pipeline.
pub const NAME: &str = "plant";
/// Selects the poller's pods.
pub const POLLER_PODS: &str = "corrente.dev/meterpoller=plant";
/// Selects the pipeline's pods.
pub const PIPELINE_PODS: &str = "corrente.dev/telemetrypipeline=plant";

/// A site under test.
pub struct Plant {
    /// Its namespace.
    pub space: Space,
    /// Its meters.
    pub meters: Meters,
    /// Its table.
    pub table: Table,
    /// Its topic.
    pub topic: String,
    /// What each meter's registers hold, by meter: voltage in V, power in W, energy in Wh.
    pub expected: BTreeMap<String, (f64, f64, f64)>,
}

fn words(bytes: &[u8]) -> Vec<u16> {
    bytes
        .chunks(2)
        .map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
        .collect()
}

/// Registers from 0 (or `from`) to `to`, all 0 but for the values given.
fn block(from: u16, to: u16, values: &[(u16, Vec<u16>)]) -> BTreeMap<u16, u16> {
    let mut block: BTreeMap<u16, u16> = (from..=to).map(|address| (address, 0)).collect();
    for (address, words) in values {
        block.extend((*address..).zip(words.iter().copied()));
    }
    block
}

/// An Eastron SDM630: single floats, most significant word first, in input registers.
fn sdm630(unit: u8) -> (Unit, (f64, f64, f64)) {
    let n = f32::from(unit);
    let (voltage, power, energy) = (230.1 + n, 1000.5 * n, 123.5 + n);
    let float = |value: f32| words(&value.to_be_bytes());
    let input = block(
        0,
        90,
        &[
            (0, float(voltage)),
            (6, float(1.25 * n)),
            (52, float(power)),
            (70, float(50.0)),
            (72, float(energy)),
        ],
    );
    // The value is what the meter shows: the shortest decimal of the single float.
    let shown = voltage.to_string().parse().unwrap_or(f64::NAN);
    (
        Unit::with_inputs(unit, input),
        (shown, f64::from(power), f64::from(energy) * 1000.0),
    )
}

/// A Carlo Gavazzi EM340: whole numbers with tenths, least significant word first, in input registers.
fn em340(unit: u8) -> (Unit, (f64, f64, f64)) {
    let n = i32::from(unit);
    let (voltage, power, energy) = (2301 + n, -5000 - n, 70_000 + n);
    let int = |value: i32| {
        let mut words = words(&value.to_be_bytes());
        words.reverse();
        words
    };
    let input = block(
        0,
        80,
        &[
            (0, int(voltage)),
            (40, int(power)),
            (49, vec![950]),
            (51, vec![500]),
            (52, int(energy)),
        ],
    );
    let expected = (
        f64::from(voltage) / 10.0,
        f64::from(power) / 10.0,
        f64::from(energy) * 100.0,
    );
    (Unit::with_inputs(unit, input), expected)
}

/// An ABB B23: 64-bit counters in tens of Wh, in holding registers.
fn b23(unit: u8) -> (Unit, (f64, f64, f64)) {
    let n = u64::from(unit);
    let (voltage, power, energy) = (2300 + u32::from(unit), -123_i32, 5_000_000_000 + n);
    let mut holding = block(20480, 20487, &[(20480, words(&energy.to_be_bytes()))]);
    holding.extend(block(
        23296,
        23345,
        &[
            (23296, words(&voltage.to_be_bytes())),
            (23316, words(&power.to_be_bytes())),
            (23340, vec![4998]),
        ],
    ));
    let expected = (f64::from(voltage) / 10.0, -1.23, energy as f64 * 10.0);
    (
        Unit {
            unit,
            registers: [("holding", holding)].into(),
            rising: BTreeMap::new(),
        },
        expected,
    )
}

/// Makes a unit of a model.
type Model = fn(u8) -> (Unit, (f64, f64, f64));

const ENDPOINTS: [(&str, &str, &str, &str, u8, Model); 3] = [
    ("gateway-a", "tcp", "socket", "eastron-sdm630", 8, sdm630),
    ("gateway-b", "rtu-over-tcp", "rtu", "carlogavazzi-em340", 8, em340),
    ("gateway-c", "tcp", "socket", "abb-b23-b24", 4, b23),
];

impl Plant {
    /// Builds the site: operator, namespace, meters, poller, pipeline; waits until rows arrive.
    ///
    /// # Errors
    /// Where any part does not come up.
    pub async fn build(scenario: &str) -> Result<Self> {
        let site = Site::create(scenario).await?;
        let stack = site.space.stack.clone();

        let mut expected = BTreeMap::new();
        let (mut served, mut declared) = (Vec::new(), Vec::new());
        for (endpoint, _, framer, profile, count, model) in ENDPOINTS {
            let mut units = Vec::new();
            let mut meters = Vec::new();
            for number in 1..=count {
                let (unit, values) = model(number);
                let name = format!("{endpoint}-{number:02}");
                meters.push(json!({
                    "name": name, "unitId": number, "profile": profile, "labels": {"line": endpoint},
                    "metrics": ["voltage_l1_n", "active_power_total", "frequency", "energy_active_import"],
                }));
                units.push(unit);
                expected.insert(name, values);
            }
            served.push(Endpoint {
                framer,
                ..Endpoint::tcp(&stack, endpoint, units)
            });
            declared.push(meters);
        }
        let meters = Meters::serve(&stack, &served).await?;
        let endpoints: Vec<_> = ENDPOINTS
            .iter()
            .zip(declared)
            .map(|((name, transport, ..), of)| {
                let address = format!("{}:{}", stack.host, meters.ports[*name]);
                json!({"name": name, "address": address, "transport": transport, "meters": of})
            })
            .collect();

        let poller = json!({"interval": "1s", "timeout": "500ms", "endpoints": endpoints});
        site.poller(NAME, poller).await?;
        let sink = site.sink(json!({"chunkInterval": "1h"}));
        site.pipeline(NAME, json!({"sink": {"timescaledb": sink}}))
            .await?;
        let Site {
            space, table, topic, ..
        } = site;
        let plant = Self {
            space,
            meters,
            table,
            topic,
            expected,
        };
        plant.every_meter_stores().await?;
        Ok(plant)
    }

    /// Connects to the database again, after it was away.
    ///
    /// # Errors
    /// Where it does not come back.
    pub async fn reconnect(&mut self) -> Result<()> {
        self.table.reconnect(&self.space.stack.postgres).await
    }

    /// Waits until every meter has a good row with a slot later than now.
    ///
    /// # Errors
    /// Where that does not come.
    pub async fn every_meter_stores(&self) -> Result<()> {
        let now = jiff::Timestamp::now();
        let stored = format!("SELECT count(DISTINCT meter) FROM @ WHERE quality = 'good' AND slot > '{now}'");
        self.table
            .at_least("a good row of every meter", seconds(90), &stored, 20)
            .await
    }

    /// Checks that every stored value is what the registers hold.
    ///
    /// # Errors
    /// Where one is not.
    pub async fn values_are_right(&self) -> Result<()> {
        let rows = self
            .table
            .query(
                "SELECT meter, min(voltage_l1_n), max(voltage_l1_n), min(active_power_total), \
                 max(active_power_total), min(energy_active_import)::float8, \
                 max(energy_active_import)::float8, min(line), max(line) \
                 FROM @ WHERE quality = 'good' GROUP BY 1",
            )
            .await?;
        ensure!(
            rows.len() == self.expected.len(),
            "{} meters have rows",
            rows.len()
        );
        for row in rows {
            let meter: String = row.get(0);
            let (voltage, power, energy) = self.expected.get(&meter).context("a meter of another name")?;
            for (column, want) in [
                (1, voltage),
                (2, voltage),
                (3, power),
                (4, power),
                (5, energy),
                (6, energy),
            ] {
                let is: f64 = row.get(column);
                ensure!(
                    is.to_bits() == want.to_bits(),
                    "{meter}: column {column} is {is}, not {want}"
                );
            }
            for column in [7, 8] {
                let line: String = row.get(column);
                ensure!(meter.starts_with(&line), "{meter}: its label says {line}");
            }
        }
        Ok(())
    }

    /// Stops polling, waits until everything on its way is stored, and audits: nothing lost, nothing
    /// doubled, never two masters. The site is gone afterwards, and nothing of it is left.
    ///
    /// # Errors
    /// Where one of these does not hold.
    pub async fn audit(self) -> Result<()> {
        self.audit_forgiving(0).await
    }

    /// The same where something was done that may cost polls in progress: at most `forgiven` of the last
    /// polls of a connection may have no row.
    ///
    /// # Errors
    /// Where one of these does not hold.
    pub async fn audit_forgiving(self, forgiven: usize) -> Result<()> {
        self.space
            .change::<MeterPoller>(NAME, json!({"suspend": true}))
            .await?;
        self.space.no_pods(POLLER_PODS).await?;
        let stack = &self.space.stack;
        self.table.is_as_far_as(stack, &self.topic).await?;
        self.table.nothing_lost_nothing_doubled().await?;
        let lost = self.last_polls_without_a_row().await?;
        ensure!(lost.len() <= forgiven, "polls that have no row: {lost:?}");
        self.meters.never_two_masters()?;
        self.values_are_right().await?;
        self.leaves_nothing().await
    }

    /// The last poll of each connection and unit, as the meters saw it, that has no row. A poller that
    /// ended may have lost what it read last: neither gaps in a stream nor lag would show that.
    async fn last_polls_without_a_row(&self) -> Result<Vec<LastRequest>> {
        // A poll ends at most two timeouts after its last request, and the next one begins a second later.
        const BEFORE: Duration = Duration::from_millis(100);
        const AFTER: Duration = Duration::from_millis(1200);
        let mut lost = Vec::new();
        for last in self.meters.last_requests()? {
            let query = format!(
                "SELECT count(*) FROM @ WHERE meter = '{}-{:02}' AND ts BETWEEN to_timestamp({}) AND to_timestamp({})",
                last.endpoint,
                last.unit,
                last.t - BEFORE.as_secs_f64(),
                last.t + AFTER.as_secs_f64(),
            );
            if self.table.one::<i64>(&query).await? == 0 {
                lost.push(last);
            }
        }
        Ok(lost)
    }

    /// Deletes the resources and checks that nothing the operator made is left.
    async fn leaves_nothing(&self) -> Result<()> {
        let ns = self.space.name.as_str();
        for kind in ["meterpoller", "telemetrypipeline"] {
            self.space
                .stack
                .kubectl(&["-n", ns, "delete", kind, NAME, "--wait=true", "--timeout=60s"])
                .await?;
        }
        until("everything the operator made to go", seconds(60), || async {
            let kinds =
                "deployments,replicasets,pods,configmaps,services,secrets,leases,persistentvolumeclaims";
            let list = ["-n", ns, "get", kinds, "-o", "name"];
            match self.space.stack.kubectl(&list).await {
                Ok(text) => {
                    let left: Vec<_> = text
                        .lines()
                        .filter(|name| !["configmap/kube-root-ca.crt", "secret/history"].contains(name))
                        .map(str::to_owned)
                        .collect();
                    if left.is_empty() { Ok(()) } else { Err(left) }
                }
                Err(error) => Err(vec![error.to_string()]),
            }
        })
        .await?;
        self.space.delete().await
    }
}
