//! One dead meter and one bad register, on a cluster: the others lose no slot by it, and who reads the status
//! learns whom to look at.

use anyhow::{Result, ensure};
use corrente_config::report::PollerReport;
use corrente_crds::MeterPoller;
use corrente_e2e::{
    meters::{Endpoint, Meters, Unit},
    site::Site,
    wait::{seconds, until},
};
use serde_json::json;

const NAME: &str = "isolation";

/// Three meters that are well, one without a register that its map names, and one that is not there: its gateway
/// says nothing for it.
#[tokio::test]
async fn a_silent_unit_and_a_bad_register_cost_nobody_else_a_slot() -> Result<()> {
    let site = Site::create(NAME).await?;
    let (space, table) = (&site.space, &site.table);
    let stack = &space.stack;
    let unit = |unit: u8, last: u16| Unit::with_inputs(unit, (0..=last).map(|at| (at, at)));
    let units = vec![unit(1, 3), unit(2, 3), unit(3, 3), unit(4, 2)];
    let meters = Meters::serve(stack, &[Endpoint::tcp(stack, "gateway", units)]).await?;
    let registers: Vec<_> = (0..4)
        .map(|at| json!({"name": format!("r{at}"), "address": at, "function": "input", "type": "u16"}))
        .collect();
    let declared: Vec<_> = (1..=5)
        .map(|unit| json!({"name": format!("m{unit}"), "unitId": unit, "registerMap": "four"}))
        .collect();
    let address = format!("{}:{}", stack.host, meters.ports["gateway"]);
    site.poller(
        NAME,
        json!({
            "interval": "1s", "timeout": "300ms",
            "registerMaps": [{"name": "four", "registers": registers}],
            "endpoints": [{"name": "gateway", "address": address, "meters": declared}],
        }),
    )
    .await?;
    let sink = site.sink(json!({}));
    site.pipeline(NAME, json!({"sink": {"postgresql": sink}})).await?;

    let least = "SELECT CASE WHEN count(*) = 3 THEN min(n) ELSE 0 END FROM (SELECT count(*) AS n FROM @ \
                 WHERE quality = 'good' AND meter IN ('m1', 'm2', 'm3') GROUP BY meter) AS c";
    table
        .at_least("twenty slots of each meter that is well", seconds(120), least, 20)
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
