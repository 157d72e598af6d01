//! What a TelemetryPipeline can ask of its tables and of others, on a cluster: transforms, windows, alerts, the ledger,
//! views, roll-ups and retention; and a second TelemetryPipeline that stores the same topic elsewhere.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use corrente_crds::{MeterPoller, TelemetryPipeline};
use corrente_e2e::{
    influx::{self, Influx},
    meters::{Endpoint, Meters, Unit},
    site::{Site, with},
    topic,
    wait::{seconds, until},
};
use serde_json::json;

const NAME: &str = "tables";
/// Selects the pod of the TelemetryPipeline into TimescaleDB.
const PODS: &str = "corrente.dev/telemetrypipeline=tables";
/// A role of the database that is there, and one that is not.
const READER: &str = "e2e_tables_reader";
const ABSENT: &str = "e2e_tables_absent";

/// A meter whose energy rises by a Wh with each poll, one whose voltage is too high, and one that does not answer.
async fn meters(site: &Site) -> Result<Meters> {
    let stack = &site.space.stack;
    let unit = |number: u8, voltage: u16| Unit {
        rising: [("input", vec![2])].into(),
        ..Unit::with_inputs(number, [(0, voltage), (1, 1500), (2, 100)])
    };
    let served = Endpoint::tcp(stack, "gateway", vec![unit(1, 2300), unit(2, 2600)]);
    let meters = Meters::serve(stack, &[served]).await?;
    let declared: Vec<_> = (1..=3)
        .map(|unit| json!({"name": format!("m{unit}"), "unitId": unit, "registerMap": "feeder"}))
        .collect();
    let register = |at: u8, more| {
        let register = json!({"address": at, "function": "input", "type": "u16"});
        with(register, more)
    };
    let spec = json!({
        "interval": "1s", "timeout": "300ms",
        "registerMaps": [{"name": "feeder", "registers": [
            register(0, json!({"name": "voltage", "scale": 0.1, "unit": "V"})),
            register(1, json!({"name": "active_power", "unit": "W"})),
            register(2, json!({"name": "energy_active_import", "unit": "Wh", "kind": "counter"})),
        ]}],
        "endpoints": [{
            "name": "gateway", "address": format!("{}:{}", stack.host, meters.ports["gateway"]), "meters": declared,
        }],
    });
    site.poller(NAME, spec).await?;
    Ok(meters)
}

/// The TelemetryPipeline into TimescaleDB, with all there is.
async fn pipeline(site: &Site, alerts: &str) -> Result<()> {
    let sink = site.sink(json!({
        "chunkInterval": "1h",
        "compressAfter": "14d",
        "rollups": [{"interval": "1m"}],
        "completeness": {"interval": "1m"},
        "views": {"schema": format!("{}_bi", site.schema), "reader": {"role": ABSENT, "create": true}},
    }));
    let spec = json!({
        "sink": {"timescaledb": sink},
        "transforms": [
            {"rename": {"from": "energy_active_import", "to": "energy"}},
            {"convert": {"metric": "energy", "to": "kWh"}},
            {"derive": {"metric": "current", "expression": "active_power / voltage", "unit": "A"}},
        ],
        "derived": {"windows": [
            {"name": "5s", "interval": "5s", "metrics": ["energy", "active_power"]},
            {"name": "15min", "interval": "15m", "metrics": ["energy"]},
        ]},
        "alerts": {
            "thresholds": [{"name": "Overvoltage", "metric": "voltage", "above": 253, "clear": 250}],
            "kafka": {"topic": alerts},
        },
    });
    site.pipeline(NAME, spec).await
}

/// The same topic into an InfluxDB that asks for a login.
async fn second(site: &Site, influx: &Influx) -> Result<()> {
    let login = json!({"username": influx::USER, "password": influx::PASSWORD});
    site.secret("influx", login).await?;
    let sink = json!({
        "url": influx.url, "version": "v1", "database": influx::DATABASE, "credentialsSecret": "influx",
    });
    site.pipeline("influx", json!({"sink": {"influxdb": sink}})).await
}

/// Has the database forget the alerts of a run before: one that goes on is not told anew.
async fn forget(site: &Site) -> Result<()> {
    for table in ["corrente.alerts", "corrente.alert_standings"] {
        let there: bool = site
            .table
            .one(&format!("SELECT to_regclass('{table}') IS NOT NULL"))
            .await?;
        if there {
            let delete = format!(
                "DELETE FROM {table} WHERE pipeline = '{}/{NAME}'",
                site.space.name
            );
            site.table.query(&delete).await?;
        }
    }
    Ok(())
}

/// What is asked for arrives in the tables, what the database cannot give is said, a change arrives too, and a crash
/// in between loses and repeats nothing.
#[tokio::test]
async fn all_that_a_pipeline_can_ask_for_is_there() -> Result<()> {
    let site = Site::create(NAME).await?;
    let (space, table) = (&site.space, &site.table);
    let stack = &space.stack;
    let (schema, views) = (&site.schema, format!("{}_bi", site.schema));
    table
        .query(&format!("DROP SCHEMA IF EXISTS {views} CASCADE"))
        .await?;
    forget(&site).await?;
    let psql = |sql: String| async move { stack.switch(&["psql", "-q", "-d", "corrente", "-c", &sql]).await };
    psql(format!(
        "DO 'BEGIN CREATE ROLE {READER}; EXCEPTION WHEN duplicate_object THEN NULL; END'"
    ))
    .await?;
    let influx = Influx::start(stack).await?;
    let _meters = meters(&site).await?;
    let alerts = format!("{}-alerts", site.topic);
    pipeline(&site, &alerts).await?;
    second(&site, &influx).await?;

    let derived = "SELECT count(*) FROM @ WHERE meter = 'm1' AND quality = 'good' AND voltage = 230 \
                   AND current = 1500 / 230.0::float8 AND energy BETWEEN 0.1 AND 1";
    table
        .at_least("rows as the transforms make them", seconds(120), derived, 5)
        .await?;
    // What an instrument of the past measured is stored, rolled up, and dropped once a retention is asked for.
    let past = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(72);
    let record = format!(r#"{{"ts":"{past}","meter":"past","voltage":231.5}}"#);
    topic::publish(stack, &site.topic, "past", record.as_bytes()).await?;

    // A window's energy is what the readings at its two ends say.
    let windows = format!(
        "SELECT count(*) FROM {schema}.readings_5s w JOIN @ a ON a.meter = w.meter AND a.slot = w.window_start \
         JOIN @ b ON b.meter = w.meter AND b.slot = w.window_end \
         WHERE w.meter = 'm1' AND w.metric = 'energy' AND w.quality = 'good' \
         AND abs(w.energy - (b.energy - a.energy)) < 1e-9 AND abs(w.demand - w.energy * 720) < 1e-9 AND w.energy > 0.003"
    );
    table.at_least("windows of 5 s", seconds(30), &windows, 2).await?;
    let means = format!(
        "SELECT count(*) FROM {schema}.readings_5s WHERE metric = 'active_power' AND quality = 'good' \
         AND (demand, readings, expected) = (1500, 5, 5)"
    );
    table
        .at_least("means over 5 s, of all readings", seconds(30), &means, 2)
        .await?;
    let told = until("the alert in its topic", seconds(30), || async {
        match topic::read(stack, &alerts).await {
            Ok(told) if !told.is_empty() => Ok(told),
            Ok(_) => Err("none".to_owned()),
            Err(error) => Err(format!("{error:#}")),
        }
    })
    .await?;
    // At least once, and each time under the same name.
    let ids: BTreeSet<&str> = told.iter().filter_map(|alert| alert["id"].as_str()).collect();
    ensure!(
        ids.len() == 1
            && told[0]["meter"] == "m2"
            && told[0]["status"] == "firing"
            && told[0]["value"] == 260.0,
        "{told:?}"
    );

    // Of the two things that this database cannot give, both are said; all the rest is there.
    let said = space
        .condition::<TelemetryPipeline>(NAME, "TablesAsAsked", seconds(60), |said| {
            said.status == "False" && said.message.contains("CREATEROLE")
        })
        .await?;
    ensure!(
        said.message
            .contains("compressAfter needs TimescaleDB's community edition"),
        "{}",
        said.message
    );
    let ledger = format!(
        "SELECT count(*) FROM (SELECT meter, sum(expected) AS expected, sum(stored) AS stored, sum(failed) AS failed \
         FROM {views}.completeness GROUP BY 1) c \
         WHERE expected > 0 AND CASE meter WHEN 'm3' THEN stored = 0 AND failed > 5 ELSE stored > 5 AND failed = 0 END"
    );
    table
        .at_least("the ledger of three meters", seconds(30), &ledger, 3)
        .await?;
    let latest = format!("SELECT count(*) FROM {views}.latest WHERE meter IN ('m1', 'm2', 'm3', 'past')");
    table
        .at_least("the newest row of each meter", seconds(30), &latest, 4)
        .await?;
    let demand = format!(
        "SELECT count(*) FROM {views}.demand_15min WHERE metric = 'energy' AND energy > 0 AND readings > 5"
    );
    table
        .at_least("the demand of two meters", seconds(30), &demand, 2)
        .await?;
    let rolled = format!(
        "SELECT count(DISTINCT meter) FROM {schema}.readings_1m WHERE voltage_max IN (230, 260, 231.5)"
    );
    table.at_least("the roll-up", seconds(30), &rolled, 3).await?;

    space.crash(PODS).await?;

    // Everything that is not possible is taken back, and more is asked for.
    let changed: TelemetryPipeline = space
        .change(
            NAME,
            json!({
                "sink": {"timescaledb": {
                    "chunkInterval": "2h", "compressAfter": null, "retention": "1d",
                    "views": {"reader": {"role": READER, "create": false}},
                }},
                "derived": {"windows": [
                    {"name": "5s", "interval": "5s", "metrics": ["energy", "active_power"]},
                    {"name": "10s", "interval": "10s", "metrics": ["voltage"]},
                    {"name": "15min", "interval": "15m", "metrics": ["energy"]},
                ]},
            }),
        )
        .await?;
    let generation = changed.metadata.generation;
    space
        .condition::<TelemetryPipeline>(NAME, "TablesAsAsked", seconds(90), |said| {
            said.status == "True" && said.observed_generation == generation
        })
        .await?;
    let chunks = format!(
        "SELECT count(*) FROM timescaledb_information.dimensions WHERE hypertable_schema = '{schema}' \
         AND hypertable_name = 'readings' AND time_interval = INTERVAL '2 hours'"
    );
    table
        .at_least("the length of new chunks", seconds(30), &chunks, 1)
        .await?;
    let gone = "SELECT count(*) FROM (SELECT count(*) AS n FROM @ WHERE meter = 'past') c WHERE n = 0";
    table
        .at_least("the retention to drop the past", seconds(30), gone, 1)
        .await?;
    let kept =
        format!("SELECT count(*) FROM {schema}.readings_1m WHERE meter = 'past' AND voltage_avg = 231.5");
    table
        .at_least("the past in the roll-up still", seconds(30), &kept, 1)
        .await?;
    let added = format!("SELECT count(*) FROM {schema}.readings_10s WHERE metric = 'voltage' AND mean = 260");
    table
        .at_least("the windows that were added", seconds(60), &added, 1)
        .await?;
    psql(format!(
        "SET ROLE {READER}; SELECT count(*) FROM {views}.latest, {schema}.readings_10s"
    ))
    .await?;
    let refused = psql(format!(
        "SET ROLE {READER}; SELECT count(*) FROM corrente.offsets"
    ))
    .await;
    ensure!(
        refused.is_err_and(|error| error.to_string().contains("permission denied")),
        "the reader reads too much"
    );

    // Nothing is lost and nothing is doubled, neither here nor there.
    space
        .change::<MeterPoller>(NAME, json!({"suspend": true}))
        .await?;
    space.no_pods("corrente.dev/meterpoller=tables").await?;
    table.is_as_far_as(stack, &site.topic).await?;
    table.nothing_lost_nothing_doubled().await?;
    let rows: i64 = table
        .one("SELECT count(*) FROM @ WHERE quality = 'good' AND meter = 'm1'")
        .await?;
    until("InfluxDB to have the same rows", seconds(30), || async {
        let query = "SELECT count(voltage) FROM readings WHERE meter = 'm1' AND voltage = 230";
        match influx.number(query).await {
            Ok(points) if points == rows => Ok(()),
            Ok(points) => Err(format!("{points} of {rows}")),
            Err(error) => Err(format!("{error:#}")),
        }
    })
    .await?;
    table.query(&format!("DROP SCHEMA {views} CASCADE")).await?;
    space.delete().await
}
