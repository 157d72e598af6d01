//! One dead meter and one bad register, on a cluster: the others lose no slot by it, and who reads the status
//! learns whom to look at.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use corrente_config::report::PollerReport;
use corrente_crds::{MeterPoller, TelemetryPipeline};
use corrente_e2e::{
    audit::Table,
    meters::{Endpoint, Meters, Unit},
    release,
    space::Space,
    stack::Stack,
    wait::{seconds, until},
};
use k8s_openapi::api::core::v1::Secret;
use serde_json::json;

const NAME: &str = "isolation";

/// Three meters that are well, one without a register that its map names, and one that is not there: its gateway
/// says nothing for it.
#[tokio::test]
async fn a_silent_unit_and_a_bad_register_cost_nobody_else_a_slot() -> Result<()> {
    let stack = Stack::connect().await?;
    release::install(&stack).await?;
    let space = Space::create(&stack, NAME).await?;
    let schema = space.name.replace('-', "_");
    let table = Table::fresh(&stack.postgres, &schema, "readings").await?;
    let unit = |unit: u8, last: u16| Unit {
        unit,
        registers: [(
            "input",
            (0..=last).map(|at| (at, at)).collect::<BTreeMap<u16, u16>>(),
        )]
        .into(),
    };
    let served = Endpoint {
        name: "gateway".into(),
        host: stack.host.clone(),
        port: 0,
        framer: "socket",
        units: vec![unit(1, 3), unit(2, 3), unit(3, 3), unit(4, 2)],
        tls: None,
    };
    let meters = Meters::serve(&stack, &[served]).await?;
    let topic = format!("{NAME}-{}", jiff::Timestamp::now().as_millisecond());
    let registers: Vec<_> = (0..4)
        .map(|at| json!({"name": format!("r{at}"), "address": at, "function": "input", "type": "u16"}))
        .collect();
    let declared: Vec<_> = (1..=5)
        .map(|unit| json!({"name": format!("m{unit}"), "unitId": unit, "registerMap": "four"}))
        .collect();
    space
        .apply(&serde_json::from_value::<Secret>(json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "history"},
            "stringData": {"url": stack.pod_postgres},
        }))?)
        .await?;
    space
        .apply(&serde_json::from_value::<MeterPoller>(json!({
            "apiVersion": "corrente.dev/v1alpha1", "kind": "MeterPoller", "metadata": {"name": NAME},
            "spec": {
                "interval": "1s", "timeout": "300ms",
                "registerMaps": [{"name": "four", "registers": registers}],
                "endpoints": [{
                    "name": "gateway", "address": format!("{}:{}", stack.host, meters.ports["gateway"]),
                    "meters": declared,
                }],
                "output": {"kafka": {"bootstrapServers": [stack.pod_kafka], "topic": topic}},
            },
        }))?)
        .await?;
    space
        .apply(&serde_json::from_value::<TelemetryPipeline>(json!({
            "apiVersion": "corrente.dev/v1alpha1", "kind": "TelemetryPipeline", "metadata": {"name": NAME},
            "spec": {
                "source": {"kafka": {"bootstrapServers": [stack.pod_kafka], "topics": [topic]}},
                "sink": {"postgresql": {
                    "connectionSecret": {"name": "history", "key": "url"}, "schema": schema, "table": "readings",
                }},
                "batch": {"maxAge": "200ms"},
            },
        }))?)
        .await?;

    until("twenty slots of each meter that is well", seconds(120), || async {
        match table.rows().await {
            Ok(0) => return Err("no row".to_owned()),
            Ok(_) => {}
            Err(error) => return Err(error.to_string()),
        }
        let least = "SELECT CASE WHEN count(*) = 3 THEN min(n) ELSE 0 END FROM (SELECT count(*) AS n FROM @ \
                     WHERE quality = 'good' AND meter IN ('m1', 'm2', 'm3') GROUP BY meter) AS c";
        match table.one::<i64>(least).await {
            Ok(rows) if rows >= 20 => Ok(()),
            Ok(rows) => Err(format!("{rows} rows")),
            Err(error) => Err(error.to_string()),
        }
    })
    .await?;
    // From its first slot to its last, a meter that is well has each, and each is good.
    let rows = table
        .query(
            "SELECT meter, count(*), count(*) FILTER (WHERE quality = 'good'), \
             round(extract(epoch FROM max(slot) - min(slot)))::bigint + 1 \
             FROM @ WHERE meter IN ('m1', 'm2', 'm3') GROUP BY 1 ORDER BY 1",
        )
        .await?;
    ensure!(rows.len() == 3, "{} meters are well", rows.len());
    for row in rows {
        let (meter, all, good, slots): (String, i64, i64, i64) =
            (row.get(0), row.get(1), row.get(2), row.get(3));
        ensure!(
            all == slots && good == slots,
            "{meter}: {slots} slots, {all} rows, {good} good"
        );
    }
    // The bad register costs itself alone, and the record names it.
    let partial: i64 = table
        .one(
            "SELECT count(*) FROM @ WHERE meter = 'm4' AND quality = 'partial' AND r2 = 2 AND r3 IS NULL \
             AND bad::text LIKE '%r3%'",
        )
        .await?;
    ensure!(partial > 0, "no record of m4 names its bad register");

    until("the status to name the silent meter", seconds(90), || async {
        let poller: MeterPoller = space.api().get(NAME).await.map_err(|error| error.to_string())?;
        let status = poller.status.unwrap_or_default();
        let names: Vec<&str> = status
            .failing_meters
            .iter()
            .map(|meter| meter.name.as_str())
            .collect();
        let reasoned = status.failing_meters.iter().all(|meter| !meter.reason.is_empty());
        if names == ["m5"] && reasoned && status.meters.healthy == 4 {
            Ok(())
        } else {
            Err(format!("{:?} {:?}", status.meters, status.failing_meters))
        }
    })
    .await?;
    let pods = space.ready_pods("corrente.dev/meterpoller=isolation", 1).await?;
    let pod = pods[0].metadata.name.clone().unwrap_or_default();
    let path = format!("/api/v1/namespaces/{}/pods/{pod}:8080/proxy/status", space.name);
    let status = stack.kubectl(&["get", "--raw", &path]).await?;
    let report: PollerReport = serde_json::from_str(&status)?;
    ensure!(
        report.failing_meters.iter().any(|meter| meter.name == "m5"),
        "{status}"
    );
    space.delete().await
}
