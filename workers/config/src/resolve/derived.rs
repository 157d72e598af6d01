//! Windows and thresholds, checked against what is known of the records after all transforms.

use std::collections::{BTreeMap, BTreeSet};

use corrente_crds::{
    MeterPollerSpec,
    alerts::Alerts,
    derived::{Derived, Swap},
};
use corrente_record::Timestamp;

use super::fields::Fields;
use crate::{
    Problem,
    alerts::{AlertsConfig, Side, ThresholdConfig},
    derived::{CounterConfig, DerivedConfig, PerMeter, SwapConfig, WindowsConfig},
    tables::TablesConfig,
};

/// The longest name of a table, in bytes.
const NAME_BYTES: usize = 63;
/// Most readings of a meter in a window: each batch reads them back.
const MOST_READINGS: u64 = 1000;
/// The longest gap whose energy counts, where nothing else is said: a day.
const LONGEST_GAP_MILLIS: u64 = 24 * 60 * 60 * 1000;

/// What the worker is told of windows. `readings` is the table that they are derived from, and what is looked after beside
/// it; `None` where the sink has no tables to derive from.
pub(super) fn derived(
    derived: &Derived,
    readings: Option<(&str, &TablesConfig)>,
    fields: &Fields,
    pollers: &[&MeterPollerSpec],
    problems: &mut Vec<Problem>,
) -> Option<DerivedConfig> {
    let Some((readings, beside)) = readings else {
        let message = "windows are derived from a table of readings in PostgreSQL or TimescaleDB: remove derived here, and \
                       put it into the TelemetryPipeline that stores there";
        problems.push(Problem::new("spec.derived", message));
        return None;
    };
    let mut tables = BTreeSet::from([readings.to_owned()]);
    tables.extend(["ledger", "meters"].map(|name| format!("{readings}_{name}")));
    tables.extend(beside.rollups.iter().map(|rollup| rollup.table.clone()));
    let every = intervals(pollers);
    let mut windows = vec![];
    for (at, window) in derived.windows.iter().enumerate() {
        let path = format!("spec.derived.windows[{at}]");
        let table = window
            .table
            .clone()
            .unwrap_or_else(|| format!("{readings}_{}", window.name));
        if table.len() > NAME_BYTES {
            let message = format!(
                "the table would be called {table}, and names have at most {NAME_BYTES} bytes: set table"
            );
            problems.push(Problem::new(&path, message));
        }
        if !tables.insert(table.clone()) {
            let message = format!("the table {table} is taken already: set table to another name");
            problems.push(Problem::new(&path, message));
        }
        let fastest = every.values().flatten().min().copied();
        let readings = fastest.map_or(0, |every| window.interval.as_millis() / every.max(1));
        if readings > MOST_READINGS {
            let message = format!(
                "a window of {} has up to {readings} readings of a meter, and each batch would read them all back: derive \
                 windows of at most {MOST_READINGS} readings, and add them up in a view",
                window.interval
            );
            problems.push(Problem::new(format!("{path}.interval"), message));
        }
        for (m, metric) in window.metrics.iter().enumerate() {
            fields.check_number(metric, &format!("{path}.metrics[{m}]"), problems);
        }
        windows.push(WindowsConfig {
            table,
            interval_millis: window.interval.as_millis(),
            metrics: window.metrics.clone(),
            expected_every_millis: window.expected_every.map(|every| every.as_millis()),
            retention: window.retention,
        });
    }
    let counters = counters(derived, fields, problems);
    let mut swaps = vec![];
    for (at, swap) in derived.swaps.iter().enumerate() {
        swaps.extend(self::swap(swap, at, &counters, problems));
    }
    Some(DerivedConfig {
        windows,
        counters,
        swaps,
        every: PerMeter::of(&every),
    })
}

/// How often each meter is read.
fn intervals(pollers: &[&MeterPollerSpec]) -> BTreeMap<String, Option<u64>> {
    let mut every = BTreeMap::new();
    for poller in pollers {
        for meter in poller.endpoints.iter().flat_map(|endpoint| &endpoint.meters) {
            let interval = meter.interval.unwrap_or(poller.interval);
            every.insert(meter.name.clone(), Some(interval.as_millis()));
        }
    }
    every
}

/// The counters among the metrics of the windows.
fn counters(derived: &Derived, fields: &Fields, problems: &mut Vec<Problem>) -> Vec<CounterConfig> {
    let used: BTreeSet<&String> = derived
        .windows
        .iter()
        .flat_map(|window| &window.metrics)
        .collect();
    for (at, counter) in derived.counters.iter().enumerate() {
        let path = format!("spec.derived.counters[{at}]");
        if !used.contains(&counter.metric) {
            let message = format!(
                "no window has the metric \"{}\": add it to the metrics of one",
                counter.metric
            );
            problems.push(Problem::new(format!("{path}.metric"), message));
        }
        if let Some(serial) = &counter.serial {
            fields.check(serial, &format!("{path}.serial"), problems);
        }
    }
    let mut counters = vec![];
    for metric in used {
        let said = derived.counters.iter().find(|counter| counter.metric == *metric);
        let field = fields.known.get(metric);
        if said.is_none() && !field.is_some_and(|field| field.counter) {
            continue;
        }
        let rollover = match (said.and_then(|said| said.rollover), field) {
            (Some(rollover), _) => PerMeter::all(rollover),
            (None, Some(field)) => PerMeter::of(&field.rollover),
            (None, None) => PerMeter::default(),
        };
        counters.push(CounterConfig {
            metric: metric.clone(),
            rollover,
            most_per_hour: said.and_then(|said| said.most_per_hour),
            serial: said.and_then(|said| said.serial.clone()),
            longest_gap_millis: said
                .and_then(|said| said.longest_gap)
                .map_or(LONGEST_GAP_MILLIS, |gap| gap.as_millis()),
        });
    }
    counters
}

fn swap(
    swap: &Swap,
    at: usize,
    counters: &[CounterConfig],
    problems: &mut Vec<Problem>,
) -> Option<SwapConfig> {
    let path = format!("spec.derived.swaps[{at}]");
    let time = match swap.at.parse::<Timestamp>() {
        Ok(time) => time,
        Err(error) => {
            problems.push(Problem::new(format!("{path}.at"), error.to_string()));
            return None;
        }
    };
    if let Some(metric) = &swap.metric
        && counters.iter().all(|counter| counter.metric != *metric)
    {
        let message = format!("\"{metric}\" is no counter of a window: name one that is");
        problems.push(Problem::new(format!("{path}.metric"), message));
    }
    if swap.metric.is_none() && counters.len() > 1 && (swap.last.is_some() || swap.first.is_some()) {
        let message = "there are several counters: say with metric which one last and first are of, in an entry for each";
        problems.push(Problem::new(path, message));
        return None;
    }
    Some(SwapConfig {
        meter: swap.meter.clone(),
        at: time,
        metric: swap.metric.clone(),
        last: swap.last,
        first: swap.first,
    })
}

/// What the worker is told of thresholds.
pub(super) fn alerts(
    alerts: &Alerts,
    readings: Option<(&str, &TablesConfig)>,
    fields: &Fields,
    problems: &mut Vec<Problem>,
) -> Option<AlertsConfig> {
    if readings.is_none() {
        let message = "what alerts have begun is kept in PostgreSQL or TimescaleDB: remove alerts here, and put them into the \
                       TelemetryPipeline that stores there";
        problems.push(Problem::new("spec.alerts", message));
        return None;
    }
    let mut thresholds = vec![];
    for (at, threshold) in alerts.thresholds.iter().enumerate() {
        let path = format!("spec.alerts.thresholds[{at}]");
        fields.check_number(&threshold.metric, &format!("{path}.metric"), problems);
        let (side, bound) = match (threshold.above, threshold.below) {
            (Some(bound), None) => (Side::Above, bound),
            (None, Some(bound)) => (Side::Below, bound),
            _ => {
                problems.push(Problem::new(path, "a threshold has one side: set above or below"));
                continue;
            }
        };
        thresholds.push(ThresholdConfig {
            name: threshold.name.clone(),
            metric: threshold.metric.clone(),
            side,
            bound,
            clear: threshold.clear.unwrap_or(bound),
            hold_millis: threshold.hold.map_or(0, |hold| hold.as_millis()),
            labels: threshold.labels.clone(),
            summary: threshold.summary.clone(),
        });
    }
    Some(AlertsConfig {
        thresholds,
        topic: alerts.kafka.as_ref().map(|kafka| kafka.topic.clone()),
        alertmanager: alerts
            .alertmanager
            .as_ref()
            .map(|alertmanager| alertmanager.url.clone()),
    })
}
