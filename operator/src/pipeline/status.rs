//! The verdict on a TelemetryPipeline, for people: what its pods come to, and what they say stands in
//! their way.

use std::{collections::BTreeSet, sync::Arc};

use corrente_config::report::PipelineReport;
use corrente_crds::{TelemetryPipelineStatus, common::SecretKey};
use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::ResourceExt;

use super::validate::ValidatedPipeline;
use crate::{
    conditions::{self, Verdict},
    naming, podstate,
    poller::status::{Refusal, Workers, refused_conditions},
    secrets,
    vocabulary::{annotations, conditions as types, labels, reasons},
};

/// The verdict on a TelemetryPipeline that is carried out.
#[must_use]
pub fn of(
    pipeline: &ValidatedPipeline,
    pods: &[Arc<Pod>],
    reports: &[PipelineReport],
    current: &TelemetryPipelineStatus,
    generation: Option<i64>,
    now: Timestamp,
) -> TelemetryPipelineStatus {
    let exist = |pod: &&Arc<Pod>| pod.metadata.deletion_timestamp.is_none() && !podstate::is_finished(pod);
    let runs = |pod: &&Arc<Pod>| {
        pod.annotations()
            .get(annotations::REVISION)
            .is_some_and(|found| found == pipeline.revision.as_str())
    };
    let existing: Vec<&Arc<Pod>> = pods.iter().filter(exist).collect();
    let ready = existing.iter().filter(|pod| podstate::is_ready(pod)).count();
    let current_and_ready = existing
        .iter()
        .filter(|pod| runs(pod) && podstate::is_ready(pod))
        .count();
    let wanted = usize::try_from(pipeline.replicas).unwrap_or_default();
    let mut verdicts = vec![
        readiness(pipeline, &existing, ready, wanted),
        progress(pipeline, current_and_ready, existing.len(), wanted),
        degradation(reports),
    ];
    // Where no worker has looked yet, what was said last still stands; where there are no tables any more, nothing does.
    let mut before = current.conditions.clone();
    if pipeline.has_tables {
        verdicts.extend(tables(reports));
    } else {
        before.retain(|condition| condition.type_ != types::TABLES_AS_ASKED);
    }
    TelemetryPipelineStatus {
        observed_generation: generation,
        conditions: conditions::merge(&before, &verdicts, generation, now),
        replicas: count(existing.len()),
        ready_replicas: count(ready),
        selector: Some(format!(
            "{}={}",
            labels::TELEMETRY_PIPELINE,
            naming::label_value(&pipeline.key.name)
        )),
        revision: Some(pipeline.revision.as_str().to_owned()),
    }
}

/// The verdict on a TelemetryPipeline that cannot be carried out.
#[must_use]
pub fn refused(
    refusal: &Refusal,
    current: &TelemetryPipelineStatus,
    generation: Option<i64>,
    now: Timestamp,
) -> TelemetryPipelineStatus {
    let mut status = TelemetryPipelineStatus {
        observed_generation: generation,
        conditions: refused_conditions(refusal, &current.conditions, generation, now),
        ..current.clone()
    };
    if refusal.workers == Workers::Suspended {
        (status.replicas, status.ready_replicas) = (0, 0);
    }
    status
}

fn readiness(pipeline: &ValidatedPipeline, pods: &[&Arc<Pod>], ready: usize, wanted: usize) -> Verdict {
    if pipeline.suspended {
        return Verdict::new(
            types::READY,
            false,
            reasons::SUSPENDED,
            "spec.suspend is true: nothing is stored",
        );
    }
    if wanted == 0 {
        return Verdict::new(
            types::READY,
            false,
            reasons::SCALED_TO_ZERO,
            "scaled to zero: nothing is stored",
        );
    }
    let mut message = format!("{ready} of {wanted} pods are ready");
    if ready >= wanted {
        return Verdict::new(types::READY, true, reasons::RUNNING, message);
    }
    let mut troubles: Vec<String> = pods.iter().filter_map(|pod| podstate::trouble(pod)).collect();
    if pods.iter().any(|pod| podstate::is_being_created(pod)) {
        // Whether the Secret is there is not looked up: the operator may not read Secrets.
        let connection = pipeline.secret.iter();
        let mut needed: Vec<String> = connection
            .map(|SecretKey { name, key }| format!("the Secret {name} must be there and have the key {key}"))
            .collect();
        needed.extend(secrets::sentences(&pipeline.secrets));
        troubles.push(format!("pods wait for their volumes: {}", needed.join(", ")));
    }
    if !troubles.is_empty() {
        message += &format!(": {}", conditions::sentences(&troubles, 3));
    }
    Verdict::new(types::READY, false, reasons::PODS_NOT_READY, message)
}

fn progress(pipeline: &ValidatedPipeline, current: usize, existing: usize, wanted: usize) -> Verdict {
    if pipeline.suspended {
        return Verdict::new(
            types::PROGRESSING,
            false,
            reasons::SUSPENDED,
            "spec.suspend is true",
        );
    }
    if current == wanted && existing == wanted {
        return Verdict::new(
            types::PROGRESSING,
            false,
            reasons::SETTLED,
            "every pod runs the current revision",
        );
    }
    let message = format!("{current} of {wanted} pods run the current revision");
    Verdict::new(types::PROGRESSING, true, reasons::ROLLING_OUT, message)
}

fn degradation(reports: &[PipelineReport]) -> Verdict {
    let troubles: BTreeSet<&str> = reports
        .iter()
        .filter_map(|report| report.trouble.as_ref())
        .map(|trouble| trouble.reason.as_str())
        .collect();
    if troubles.is_empty() {
        return Verdict::new(types::DEGRADED, false, reasons::AS_EXPECTED, "nothing to look at");
    }
    let troubles: Vec<String> = troubles.into_iter().map(str::to_owned).collect();
    Verdict::new(
        types::DEGRADED,
        true,
        reasons::WORKER_TROUBLE,
        conditions::sentences(&troubles, 3),
    )
}

/// Whether the tables are as they are asked for; `None` where no worker says.
fn tables(reports: &[PipelineReport]) -> Option<Verdict> {
    let mut said = reports
        .iter()
        .filter_map(|report| report.tables.as_ref())
        .peekable();
    said.peek()?;
    let notices: BTreeSet<&String> = said.flatten().collect();
    if notices.is_empty() {
        let message = "the tables are as they are asked for";
        return Some(Verdict::new(
            types::TABLES_AS_ASKED,
            true,
            reasons::AS_EXPECTED,
            message,
        ));
    }
    let notices: Vec<String> = notices.into_iter().cloned().collect();
    Some(Verdict::new(
        types::TABLES_AS_ASKED,
        false,
        reasons::TABLES_DIFFER,
        conditions::sentences(&notices, 3),
    ))
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        conditions::find,
        fixtures::pipeline,
        pipeline::{dereference::Dereferenced, validate::validate},
        profiles::Profiles,
    };

    fn validated() -> ValidatedPipeline {
        let pipeline = pipeline("store");
        validate(&Dereferenced {
            pipeline: &pipeline,
            pollers: vec![],
            profiles: Profiles::default(),
        })
        .unwrap()
    }

    fn pod(revision: &str, ready: &str) -> Arc<Pod> {
        let pod = json!({
            "metadata": {"annotations": {"corrente.dev/revision": revision}},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]},
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn the_verdicts_follow_from_the_pods() {
        let mut valid = validated();
        let now = valid.revision.as_str().to_owned();
        let trouble: PipelineReport = serde_json::from_value(json!({
            "partitions": 1, "lag": 0, "rows": 0, "duplicates": 0, "deadLettered": 0, "gaps": 0,
            "trouble": {"since": "2026-01-01T00:00:00Z", "reason": "the database does not answer"},
        }))
        .unwrap();
        type Case<'a> = (&'a str, Vec<Arc<Pod>>, Vec<PipelineReport>, [&'a str; 3]);
        let table: Vec<Case<'_>> = vec![
            (
                "no pod yet",
                vec![],
                vec![],
                ["False/PodsNotReady", "True/RollingOut", "False/AsExpected"],
            ),
            (
                "both run",
                vec![pod(&now, "True"), pod(&now, "True")],
                vec![],
                ["True/Running", "False/Settled", "False/AsExpected"],
            ),
            (
                "one is old",
                vec![pod(&now, "True"), pod("old", "True")],
                vec![],
                ["True/Running", "True/RollingOut", "False/AsExpected"],
            ),
            (
                "one is not ready",
                vec![pod(&now, "True"), pod(&now, "False")],
                vec![],
                ["False/PodsNotReady", "True/RollingOut", "False/AsExpected"],
            ),
            (
                "one too many",
                vec![pod(&now, "True"), pod(&now, "True"), pod(&now, "True")],
                vec![],
                ["True/Running", "True/RollingOut", "False/AsExpected"],
            ),
            (
                "trouble",
                vec![pod(&now, "True"), pod(&now, "True")],
                vec![trouble],
                ["True/Running", "False/Settled", "True/WorkerTrouble"],
            ),
        ];
        let verdicts = |valid: &ValidatedPipeline, pods: &[Arc<Pod>], reports: &[PipelineReport]| {
            let status = of(
                valid,
                pods,
                reports,
                &TelemetryPipelineStatus::default(),
                Some(1),
                Timestamp::UNIX_EPOCH,
            );
            [types::READY, types::PROGRESSING, types::DEGRADED].map(|kind| {
                let condition = find(&status.conditions, kind).unwrap();
                format!("{}/{}", condition.status, condition.reason)
            })
        };
        for (what, pods, reports, expected) in table {
            assert_eq!(verdicts(&valid, &pods, &reports), expected, "{what}");
        }
        let told = |notices: &[&str]| PipelineReport {
            tables: Some(notices.iter().map(|&notice| notice.to_owned()).collect()),
            ..PipelineReport::default()
        };
        let asked = |reports: &[PipelineReport]| {
            let current = TelemetryPipelineStatus::default();
            let status = of(&valid, &[], reports, &current, Some(1), Timestamp::UNIX_EPOCH);
            let condition = find(&status.conditions, types::TABLES_AS_ASKED);
            condition.map(|c| format!("{}/{}: {}", c.status, c.reason, c.message))
        };
        assert_eq!(asked(&[PipelineReport::default()]), None);
        assert!(asked(&[told(&[])]).unwrap().starts_with("True/AsExpected"));
        assert_eq!(
            asked(&[told(&["no compression"]), PipelineReport::default()]).unwrap(),
            "False/TablesDiffer: no compression"
        );
        let current = of(
            &valid,
            &[],
            &[told(&[])],
            &TelemetryPipelineStatus::default(),
            Some(1),
            Timestamp::UNIX_EPOCH,
        );
        for (has_tables, stands) in [(true, true), (false, false)] {
            valid.has_tables = has_tables;
            let next = of(&valid, &[], &[], &current, Some(1), Timestamp::UNIX_EPOCH);
            assert_eq!(find(&next.conditions, types::TABLES_AS_ASKED).is_some(), stands);
        }
        valid.replicas = 0;
        assert_eq!(
            verdicts(&valid, &[], &[]),
            ["False/ScaledToZero", "False/Settled", "False/AsExpected"]
        );
        (valid.suspended, valid.replicas) = (true, 0);
        assert_eq!(
            verdicts(&valid, &[], &[]),
            ["False/Suspended", "False/Suspended", "False/AsExpected"]
        );
    }
}
