//! The verdict on a MeterPoller, for people: what its pods, its meters and its conflicts come to.
//!
//! A status is not a gauge. What changes the verdict is written at once; figures alone are written at most
//! every half minute, by [`crate::status`], which also keeps transition times.

use std::{collections::BTreeMap, sync::Arc};

use corrente_config::report::PollerReport;
use corrente_crds::{
    MeterPollerStatus,
    poller::{FailingMeter, MeterCounts, ShardStatus},
};
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Condition, jiff::Timestamp};
use kube::ResourceExt;

use super::validate::{ValidatedPoller, ValidatedShard};
use crate::{
    claims,
    conditions::{self, Verdict},
    naming, podstate,
    secrets::{self, Need},
    vocabulary::{annotations, conditions as types, labels, reasons},
};

/// Most failing meters that a status names.
const MOST_FAILING: usize = 20;
/// Most sentences of a kind in a condition.
const MOST_SENTENCES: usize = 3;

/// What the verdict follows from, beside the MeterPoller itself.
pub struct Seen<'a> {
    /// Its pods.
    pub pods: &'a [Arc<Pod>],
    /// What the workers said last, by the uid of their pod; `None` for one that has not been asked yet.
    pub reports: &'a BTreeMap<String, Option<PollerReport>>,
    /// For whom its pods wait at the gate, as sentences.
    pub waits: &'a [String],
    /// Why a change is not carried out yet, as a sentence.
    pub hold: Option<&'a str>,
}

/// The verdict on a MeterPoller that is carried out.
#[must_use]
pub fn of(
    poller: &ValidatedPoller,
    seen: &Seen<'_>,
    current: &MeterPollerStatus,
    generation: Option<i64>,
    now: Timestamp,
) -> MeterPollerStatus {
    let shards: Vec<ShardStatus> = poller
        .shards
        .iter()
        .map(|shard| ShardStatus {
            index: shard.index,
            revision: shard.revision.as_str().to_owned(),
            ready: seen
                .pods
                .iter()
                .any(|pod| runs(pod, shard.revision.as_str()) && podstate::is_ready(pod)),
            endpoints: count(shard.endpoints),
            meters: count(shard.meters),
        })
        .collect();
    let figures = figures(poller, seen, current);
    let verdicts = [
        ready(poller, &shards, seen),
        progressing(poller, &shards, seen),
        degraded(poller, seen, &figures),
    ];
    MeterPollerStatus {
        observed_generation: generation,
        conditions: conditions::merge(&current.conditions, &verdicts, generation, now),
        shard_count: count(shards.len()),
        selector: Some(selector(&poller.key.name)),
        shards,
        meters: figures.meters,
        failing_meters: figures.failing,
    }
}

/// The verdict on a MeterPoller that cannot be carried out: what runs is left as it is, and so is what was
/// said about it.
#[must_use]
pub fn refused(
    problem: &Refusal,
    current: &MeterPollerStatus,
    generation: Option<i64>,
    now: Timestamp,
) -> MeterPollerStatus {
    let mut status = MeterPollerStatus {
        observed_generation: generation,
        conditions: refused_conditions(problem, &current.conditions, generation, now),
        ..current.clone()
    };
    if problem.workers == Workers::Suspended {
        status.shards.iter_mut().for_each(|shard| shard.ready = false);
        (status.meters.healthy, status.meters.failing) = (0, 0);
        status.failing_meters.clear();
    }
    status
}

/// Why a resource is not carried out.
pub struct Refusal {
    /// The reason for the condition.
    pub reason: &'static str,
    /// What is wrong, as sentences.
    pub sentences: Vec<String>,
    /// What its workers do meanwhile.
    pub workers: Workers,
}

/// What the workers of a resource do that is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workers {
    /// They go on with an earlier configuration.
    GoOn,
    /// They were stopped: `suspend` holds whatever else is wrong.
    Suspended,
    /// There are none.
    None,
}

impl Workers {
    /// What they do where the resource is suspended or not, and has something in the cluster or not.
    #[must_use]
    pub fn of(suspend: bool, exist: bool) -> Self {
        match (suspend, exist) {
            (true, _) => Self::Suspended,
            (false, true) => Self::GoOn,
            (false, false) => Self::None,
        }
    }
}

/// The conditions of a resource that is not carried out.
#[must_use]
pub fn refused_conditions(
    refusal: &Refusal,
    current: &[Condition],
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let mut message = conditions::sentences(&refusal.sentences, 8);
    let progressing = match refusal.workers {
        Workers::GoOn if refusal.reason == reasons::REFUSED => {
            message += ". What was not refused is carried out, the rest goes on as it was.";
            "what was refused is tried again from time to time"
        }
        Workers::None if refusal.reason == reasons::REFUSED => {
            "what was refused is tried again from time to time"
        }
        Workers::GoOn => {
            message += ". The workers go on with the last good configuration.";
            "the workers go on with the last good configuration"
        }
        Workers::Suspended => {
            message += ". It is suspended: spec.suspend is true, and nothing runs.";
            "suspended: spec.suspend is true, and nothing runs"
        }
        Workers::None => "nothing runs until the resource is corrected",
    };
    let verdicts = [
        Verdict::new(types::READY, false, refusal.reason, message.clone()),
        Verdict::new(types::PROGRESSING, false, refusal.reason, progressing),
        Verdict::new(types::DEGRADED, true, refusal.reason, message),
    ];
    conditions::merge(current, &verdicts, generation, now)
}

/// A status without what changes from minute to minute: two that are alike in it need no hurry.
#[must_use]
pub fn without_figures(status: &MeterPollerStatus) -> MeterPollerStatus {
    let mut status = status.clone();
    status.meters = MeterCounts {
        total: status.meters.total,
        ..MeterCounts::default()
    };
    status.failing_meters.clear();
    for condition in &mut status.conditions {
        if condition.type_ == types::DEGRADED && is_of_figures(&condition.reason) {
            reasons::AS_EXPECTED.clone_into(&mut condition.reason);
            condition.status.clear();
            condition.message.clear();
            condition.last_transition_time.0 = Timestamp::UNIX_EPOCH;
        }
    }
    status
}

fn is_of_figures(reason: &str) -> bool {
    [
        reasons::AS_EXPECTED,
        reasons::METERS_FAILING,
        reasons::WORKER_TROUBLE,
    ]
    .contains(&reason)
}

/// What `kubectl scale` and autoscalers count by.
#[must_use]
pub fn selector(name: &str) -> String {
    format!("{}={}", labels::METER_POLLER, naming::label_value(name))
}

fn runs(pod: &Pod, revision: &str) -> bool {
    pod.annotations()
        .get(annotations::REVISION)
        .is_some_and(|found| found == revision)
}

fn ready(poller: &ValidatedPoller, shards: &[ShardStatus], seen: &Seen<'_>) -> Verdict {
    let verdict = |holds, reason, message: String| Verdict::new(types::READY, holds, reason, message);
    let ready = shards.iter().filter(|shard| shard.ready).count();
    if poller.suspended {
        verdict(
            false,
            reasons::SUSPENDED,
            "spec.suspend is true: nothing is polled".to_owned(),
        )
    } else if let Some(hold) = seen.hold {
        verdict(false, reasons::WAITING_FOR_SPOOL, hold.to_owned())
    } else if poller.meters == 0 {
        let reason = poller.conflicts.first().map_or(reasons::INVALID, claims::reason);
        verdict(
            false,
            reason,
            "nothing is polled: all that this MeterPoller names belongs to others".to_owned(),
        )
    } else if ready == shards.len() {
        verdict(
            true,
            reasons::RUNNING,
            format!("{ready} of {} shards run and are ready", shards.len()),
        )
    } else if seen.waits.is_empty() {
        let mut message = format!("{ready} of {} shards run and are ready", shards.len());
        let mut troubles: Vec<String> = seen
            .pods
            .iter()
            .filter_map(|pod| podstate::trouble(pod))
            .collect();
        troubles.extend(missing_secrets(poller, seen));
        if !troubles.is_empty() {
            message += &format!(": {}", conditions::sentences(&troubles, MOST_SENTENCES));
        }
        verdict(false, reasons::PODS_NOT_READY, message)
    } else {
        verdict(
            false,
            reasons::WAITING_FOR_HANDOVER,
            conditions::sentences(seen.waits, MOST_SENTENCES),
        )
    }
}

/// What pods that wait for their volumes need. Whether it is there is not looked up: the operator may not
/// read Secrets.
fn missing_secrets(poller: &ValidatedPoller, seen: &Seen<'_>) -> Option<String> {
    let waiting = |shard: &&ValidatedShard| {
        let its = |pod: &&Arc<Pod>| runs(pod, shard.revision.as_str()) && podstate::is_being_created(pod);
        seen.pods.iter().any(|pod| its(&pod))
    };
    let mut needs: Vec<Need> = poller
        .shards
        .iter()
        .filter(waiting)
        .flat_map(|shard| shard.secrets.iter().cloned())
        .collect();
    needs.sort();
    needs.dedup();
    let needed = secrets::sentences(&needs);
    let most = conditions::sentences(&needed, MOST_SENTENCES);
    (!needed.is_empty()).then(|| format!("pods wait for their volumes: {most}"))
}

fn progressing(poller: &ValidatedPoller, shards: &[ShardStatus], seen: &Seen<'_>) -> Verdict {
    let verdict = |holds, reason, message: String| Verdict::new(types::PROGRESSING, holds, reason, message);
    if poller.suspended {
        return verdict(false, reasons::SUSPENDED, "spec.suspend is true".to_owned());
    }
    if let Some(hold) = seen.hold {
        return verdict(true, reasons::WAITING_FOR_SPOOL, hold.to_owned());
    }
    if !seen.waits.is_empty() {
        return verdict(
            true,
            reasons::WAITING_FOR_HANDOVER,
            conditions::sentences(seen.waits, MOST_SENTENCES),
        );
    }
    let current = |shard: &&ShardStatus| {
        seen.pods
            .iter()
            .any(|pod| runs(pod, &shard.revision) && podstate::has_started(pod))
    };
    let settled = shards.iter().filter(current).count();
    if settled == shards.len() {
        verdict(
            false,
            reasons::SETTLED,
            "every shard runs its current revision".to_owned(),
        )
    } else {
        verdict(
            true,
            reasons::ROLLING_OUT,
            format!("{settled} of {} shards run their current revision", shards.len()),
        )
    }
}

fn degraded(poller: &ValidatedPoller, seen: &Seen<'_>, figures: &Figures) -> Verdict {
    let mut found: Vec<(&'static str, String)> = Vec::new();
    let conflicts: Vec<String> = poller
        .conflicts
        .iter()
        .map(|conflict| conflict.problem().to_string())
        .collect();
    if let Some(first) = poller.conflicts.first() {
        let message = format!(
            "not polled: {}",
            conditions::sentences(&conflicts, MOST_SENTENCES)
        );
        found.push((claims::reason(first), message));
    }
    if !poller.suspended {
        let troubles: Vec<String> = seen
            .reports
            .values()
            .flatten()
            .filter_map(|report| report.spool.trouble.clone())
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect();
        if !troubles.is_empty() {
            found.push((
                reasons::WORKER_TROUBLE,
                conditions::sentences(&troubles, MOST_SENTENCES),
            ));
        }
        if figures.meters.failing > 0 {
            let names: Vec<String> = figures
                .failing
                .iter()
                .map(|meter| format!("{} ({})", meter.name, meter.reason))
                .collect();
            let message = format!(
                "{} of {} meters fail: {}",
                figures.meters.failing,
                figures.meters.total,
                conditions::sentences(&names, MOST_SENTENCES)
            );
            found.push((reasons::METERS_FAILING, message));
        }
    }
    match found.first() {
        Some((reason, _)) => {
            let message: Vec<&str> = found.iter().map(|(_, message)| message.as_str()).collect();
            Verdict::new(types::DEGRADED, true, reason, message.join(". "))
        }
        None => Verdict::new(types::DEGRADED, false, reasons::AS_EXPECTED, "nothing to look at"),
    }
}

/// How the meters are.
struct Figures {
    meters: MeterCounts,
    failing: Vec<FailingMeter>,
}

/// Adds up what the workers say. While one that runs has not been asked yet, after a start of the operator
/// or of the pod, the last figures stand.
fn figures(poller: &ValidatedPoller, seen: &Seen<'_>, current: &MeterPollerStatus) -> Figures {
    let total = count(poller.meters);
    if poller.suspended {
        return Figures {
            meters: MeterCounts {
                total,
                ..MeterCounts::default()
            },
            failing: vec![],
        };
    }
    let unasked = seen.reports.is_empty() || seen.reports.values().any(Option::is_none);
    if unasked && current.meters.total == total {
        return Figures {
            meters: current.meters,
            failing: current.failing_meters.clone(),
        };
    }
    let reports = || seen.reports.values().flatten();
    let mut failing: Vec<FailingMeter> = reports()
        .flat_map(|report| report.failing_meters.clone())
        .collect();
    failing.sort_by(|a, b| a.name.cmp(&b.name));
    failing.dedup_by(|a, b| a.name == b.name);
    failing.truncate(MOST_FAILING);
    for meter in &mut failing {
        meter.reason = conditions::shortened(&meter.reason, 256);
    }
    let failing_count: i32 = reports().map(|report| report.meters.failing).sum();
    let healthy: i32 = reports().map(|report| report.meters.healthy).sum();
    Figures {
        meters: MeterCounts {
            total,
            healthy: healthy.min(total),
            failing: failing_count.min(total),
        },
        failing,
    }
}

/// Counts here are far below the range of the API's integers.
fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
