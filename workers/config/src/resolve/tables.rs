//! How a TelemetryPipeline's tables are to be looked after, from what it says and the MeterPollers behind it.

use std::collections::{BTreeMap, BTreeSet};

use corrente_crds::{
    Duration, MeterPollerSpec, Retention,
    tables::{Layout, PostgresTable},
};

use crate::{
    Problem,
    derived::DerivedConfig,
    resolve::poller::meters,
    tables::{CompletenessConfig, RollupConfig, TablesConfig},
    transform::{Step, matches},
};

/// The longest name of a table.
const NAME_BYTES: usize = 63;
/// The views that a pipeline makes.
const VIEWS: [&str; 3] = ["latest", "completeness", "demand_15min"];

/// What the worker is told of its tables. `path` is the sink's place in the TelemetryPipeline; what is wrong is
/// added to `problems`.
pub(super) fn tables(
    table: &PostgresTable,
    behind: &[&MeterPollerSpec],
    path: &str,
    problems: &mut Vec<Problem>,
) -> TablesConfig {
    let labels = behind
        .iter()
        .flat_map(|poller| meters(poller))
        .flat_map(|(_, meter)| meter.labels.keys().cloned());
    TablesConfig {
        layout: table.layout,
        labels: match table.layout {
            Layout::Narrow => labels.collect(),
            Layout::Wide => [].into(),
        },
        partition_by: None,
        compress_after: None,
        retention: table.retention,
        slowest: (!table.rollups.is_empty()).then(|| slowest(behind)).flatten(),
        rollups: rollups(table, path, problems),
        completeness: table.completeness.map(|asked| {
            if let Some(kept) = asked.retention {
                long_enough(
                    kept,
                    asked.interval,
                    format!("{path}.completeness.retention"),
                    problems,
                );
            }
            CompletenessConfig {
                interval: asked.interval,
                retention: asked.retention,
                meters: intervals(behind),
            }
        }),
        views: table.views.clone().inspect(|views| {
            let taken = views.schema == table.schema && VIEWS.contains(&table.table.as_str());
            if taken {
                let message = format!(
                    "a view would have the name of the table {0}.{1}: give the views a schema of their own, \
                     or the table another name",
                    table.schema, table.table
                );
                problems.push(Problem::new(format!("{path}.views.schema"), message));
            }
        }),
    }
}

/// The roll-ups, each with a table that nothing else has.
fn rollups(table: &PostgresTable, path: &str, problems: &mut Vec<Problem>) -> Vec<RollupConfig> {
    let mut taken: BTreeMap<String, String> = BTreeMap::from([
        (table.table.clone(), "the readings'".to_owned()),
        (format!("{}_ledger", table.table), "the ledger's".to_owned()),
        (format!("{}_meters", table.table), "the ledger's".to_owned()),
    ]);
    let mut rollups = Vec::new();
    for (at, rollup) in table.rollups.iter().enumerate() {
        let place = format!("{path}.rollups[{at}]");
        let name = rollup
            .name
            .clone()
            .unwrap_or_else(|| format!("{}_{}", table.table, rollup.interval));
        if name.len() > NAME_BYTES {
            let message =
                format!("the table {name} would have a name of more than {NAME_BYTES} letters: write a name");
            problems.push(Problem::new(&place, message));
        }
        if let Some(whose) = taken.insert(name.clone(), format!("that of {place}")) {
            let message = format!("the table {name} is {whose} already: write another name");
            problems.push(Problem::new(format!("{place}.name"), message));
        }
        if let Some(kept) = table.retention {
            long_enough(kept, rollup.interval, format!("{path}.retention"), problems);
        }
        if let Some(kept) = rollup.retention {
            long_enough(kept, rollup.interval, format!("{place}.retention"), problems);
        }
        rollups.push(RollupConfig {
            table: name,
            interval: rollup.interval,
            retention: rollup.retention,
        });
    }
    rollups
}

/// Checks the tables together with the rest of the pipeline, and leaves out of the ledger the meters that a transform
/// leaves out.
pub(super) fn together(
    tables: &mut TablesConfig,
    transforms: &[Step],
    key: bool,
    derived: Option<&DerivedConfig>,
    path: &str,
    problems: &mut Vec<Problem>,
) {
    if key && tables.layout == Layout::Narrow {
        let message =
            "a key is of a record, which is a row of a wide table: write layout: wide, or remove this";
        problems.push(Problem::new("spec.dedupe", message));
    }
    for (at, rollup) in tables.rollups.iter().enumerate() {
        let windows = derived.into_iter().flat_map(|derived| &derived.windows);
        if windows.into_iter().any(|windows| windows.table == rollup.table) {
            let message = format!(
                "the table {} is one of spec.derived already: write another name",
                rollup.table
            );
            problems.push(Problem::new(format!("{path}.rollups[{at}].name"), message));
        }
    }
    for step in transforms {
        match step {
            Step::Rename { from, to } if tables.labels.remove(from) => {
                tables.labels.insert(to.clone());
            }
            Step::Meters(patterns) => {
                if let Some(ledger) = &mut tables.completeness {
                    for meters in ledger.meters.values_mut() {
                        meters.retain(|meter| patterns.iter().any(|pattern| matches(pattern, meter)));
                    }
                    ledger.meters.retain(|_, meters| !meters.is_empty());
                }
            }
            Step::Where(_) if tables.completeness.is_some() => {
                let message = "the ledger would take the records that a transform with where leaves out for missing: \
                               keep the ledger in a TelemetryPipeline without one";
                problems.push(Problem::new(format!("{path}.completeness"), message));
            }
            _ => {}
        }
    }
}

/// Rows that go before their interval is over cannot be rolled up.
fn long_enough(kept: Retention, interval: Duration, path: String, problems: &mut Vec<Problem>) {
    if kept.as_millis() < 2 * interval.as_millis() {
        let message = format!(
            "rows that are kept for {kept} may be gone before an interval of {interval} is reckoned up: keep \
             them for at least twice the interval"
        );
        problems.push(Problem::new(path, message));
    }
}

/// The longest interval at which a meter is polled.
fn slowest(behind: &[&MeterPollerSpec]) -> Option<Duration> {
    let of = |poller: &&MeterPollerSpec| {
        let interval = poller.interval;
        let meters = meters(poller).map(|(_, meter)| meter.interval.unwrap_or(interval));
        meters.max()
    };
    behind.iter().filter_map(of).max()
}

/// The meters that are polled, by how often.
fn intervals(behind: &[&MeterPollerSpec]) -> BTreeMap<String, BTreeSet<String>> {
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for poller in behind.iter().filter(|poller| !poller.suspend) {
        for (_, meter) in meters(poller) {
            let interval = meter.interval.unwrap_or(poller.interval);
            all.entry(interval.to_string())
                .or_default()
                .insert(meter.name.clone());
        }
    }
    all
}
