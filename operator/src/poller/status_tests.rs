use corrente_config::conflict::{Claim, Conflict};
use serde_json::json;

use super::*;
use crate::{
    conditions::find,
    fixtures::{poller, profile},
    poller::{dereference::Dereferenced, validate::validate},
    profiles::Profiles,
};

fn validated(conflicts: Vec<Conflict>) -> ValidatedPoller {
    let mut poller = poller("site", 1, &[("a", "gw1", &["m1", "m2"]), ("b", "gw2", &["m3"])]);
    poller.spec.shards = 2;
    let profiles = Profiles {
        known: [("acme".to_owned(), profile())].into(),
        unreadable: BTreeMap::new(),
    };
    validate(&Dereferenced {
        poller: &poller,
        profiles,
        conflicts,
    })
    .unwrap()
}

fn pod(uid: &str, revision: &str, phase: &str, ready: bool) -> Arc<Pod> {
    let pod = json!({
        "metadata": {"name": uid, "uid": uid, "annotations": {"corrente.dev/revision": revision}},
        "status": {"phase": phase, "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
    });
    Arc::new(serde_json::from_value(pod).unwrap())
}

fn report(healthy: i32, failing: &[&str]) -> PollerReport {
    PollerReport {
        meters: MeterCounts {
            total: 3,
            healthy,
            failing: count(failing.len()),
        },
        failing_meters: failing
            .iter()
            .map(|name| FailingMeter {
                name: (*name).to_owned(),
                reason: "it does not answer".to_owned(),
            })
            .collect(),
        ..PollerReport::default()
    }
}

struct Case {
    poller: ValidatedPoller,
    pods: Vec<Arc<Pod>>,
    reports: BTreeMap<String, Option<PollerReport>>,
    waits: Vec<String>,
    hold: Option<&'static str>,
    current: MeterPollerStatus,
}

impl Case {
    /// Both shards run their revision and are ready.
    fn running() -> Self {
        let poller = validated(Vec::new());
        let pods = poller
            .shards
            .iter()
            .map(|s| pod(&format!("u{}", s.index), s.revision.as_str(), "Running", true));
        Self {
            pods: pods.collect(),
            poller,
            reports: [
                ("u0".into(), Some(report(2, &[]))),
                ("u1".into(), Some(report(1, &[]))),
            ]
            .into(),
            waits: vec![],
            hold: None,
            current: MeterPollerStatus::default(),
        }
    }

    fn status(&self) -> MeterPollerStatus {
        let seen = Seen {
            pods: &self.pods,
            reports: &self.reports,
            waits: &self.waits,
            hold: self.hold,
        };
        of(
            &self.poller,
            &seen,
            &self.current,
            Some(7),
            Timestamp::from_second(100).unwrap(),
        )
    }

    /// Ready, Progressing and Degraded, as `status/reason`.
    fn verdicts(&self) -> [String; 3] {
        let status = self.status();
        [types::READY, types::PROGRESSING, types::DEGRADED].map(|kind| {
            let condition = find(&status.conditions, kind).unwrap();
            format!("{}/{}", condition.status, condition.reason)
        })
    }
}

#[test]
fn a_pod_that_waits_for_its_volumes_says_which_secrets_it_needs() {
    let mut case = Case::running();
    case.poller.shards[0].secrets = secrets::of_kafka(
        &serde_json::from_value(json!({
            "bootstrapServers": ["k:9093"], "tls": {"caSecret": "kafka-ca"},
            "sasl": {"mechanism": "SCRAM-SHA-512", "secretName": "kafka-user"},
        }))
        .unwrap(),
    );
    let mut waiting = Pod::clone(&pod(
        "u0",
        case.poller.shards[0].revision.as_str(),
        "Pending",
        false,
    ));
    waiting.status.as_mut().unwrap().container_statuses = serde_json::from_value(json!([{
        "name": "poller", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"waiting": {"reason": "ContainerCreating"}},
    }]))
    .unwrap();
    case.pods[0] = Arc::new(waiting);
    let status = case.status();
    let message = &find(&status.conditions, types::READY).unwrap().message;
    assert_eq!(
        message,
        "1 of 2 shards run and are ready: pods wait for their volumes: the Secret kafka-ca must be there and have \
         the key ca.crt; the Secret kafka-user must be there and have the keys password, username"
    );
}

#[test]
fn a_change_that_waits_for_a_spool_says_so() {
    let mut case = Case::running();
    case.hold = Some("the change waits: the spool of shard 0 holds records");
    assert_eq!(
        case.verdicts(),
        [
            "False/WaitingForSpool",
            "True/WaitingForSpool",
            "False/AsExpected"
        ]
    );
    case.poller.suspended = true;
    assert_eq!(
        case.verdicts()[0],
        "False/Suspended",
        "suspending waits for nothing"
    );
}

#[test]
fn all_is_well() {
    let case = Case::running();
    assert_eq!(
        case.verdicts(),
        ["True/Running", "False/Settled", "False/AsExpected"]
    );
    let status = case.status();
    assert_eq!((status.shard_count, status.observed_generation), (2, Some(7)));
    assert_eq!(status.selector.as_deref(), Some("corrente.dev/meterpoller=site"));
    assert_eq!(
        status.meters,
        MeterCounts {
            total: 3,
            healthy: 3,
            failing: 0
        }
    );
    assert!(status.shards.iter().all(|shard| shard.ready));
}

#[test]
fn a_pod_of_another_revision_does_not_count() {
    let mut case = Case::running();
    case.pods[1] = pod("u1", "site-1-older", "Running", true);
    assert_eq!(
        case.verdicts(),
        ["False/PodsNotReady", "True/RollingOut", "False/AsExpected"]
    );
    assert_eq!(case.status().shards.iter().filter(|shard| shard.ready).count(), 1);
}

#[test]
fn a_pod_that_ends_does_not_count() {
    let mut case = Case::running();
    let mut ending = Pod::clone(&case.pods[0]);
    ending.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
        Timestamp::UNIX_EPOCH,
    ));
    case.pods[0] = Arc::new(ending);
    assert_eq!(case.verdicts()[0], "False/PodsNotReady");
}

#[test]
fn a_pod_that_is_not_ready_is_not_on_its_way() {
    let mut case = Case::running();
    case.pods[0] = pod("u0", case.poller.shards[0].revision.as_str(), "Running", false);
    assert_eq!(
        case.verdicts(),
        ["False/PodsNotReady", "False/Settled", "False/AsExpected"]
    );
}

#[test]
fn a_wait_at_the_gate_is_told_with_its_cause() {
    let mut case = Case::running();
    case.pods.remove(0);
    case.waits = vec!["pod site-0-y waits for pod plant/site-0-x".into()];
    assert_eq!(
        case.verdicts(),
        [
            "False/WaitingForHandover",
            "True/WaitingForHandover",
            "False/AsExpected"
        ]
    );
    assert!(
        find(&case.status().conditions, types::READY)
            .unwrap()
            .message
            .contains("plant/site-0-x")
    );
}

#[test]
fn suspended_is_not_ready_and_not_degraded() {
    let mut case = Case::running();
    case.poller.suspended = true;
    case.pods.clear();
    case.reports.clear();
    assert_eq!(
        case.verdicts(),
        ["False/Suspended", "False/Suspended", "False/AsExpected"]
    );
    assert_eq!(
        case.status().meters,
        MeterCounts {
            total: 3,
            healthy: 0,
            failing: 0
        }
    );
}

#[test]
fn failing_meters_are_named() {
    let mut case = Case::running();
    case.reports.insert("u1".into(), Some(report(0, &["m3"])));
    assert_eq!(
        case.verdicts(),
        ["True/Running", "False/Settled", "True/MetersFailing"]
    );
    let status = case.status();
    assert_eq!(status.failing_meters[0].name, "m3");
    let message = &find(&status.conditions, types::DEGRADED).unwrap().message;
    assert_eq!(message, "1 of 3 meters fail: m3 (it does not answer)");
}

#[test]
fn at_most_twenty_failing_meters_are_named() {
    let mut case = Case::running();
    let names: Vec<String> = (0..30).map(|at| format!("m{at:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    case.reports.insert("u1".into(), Some(report(0, &names)));
    let status = case.status();
    assert_eq!(
        (
            status.failing_meters.len(),
            status.failing_meters[19].name.as_str()
        ),
        (20, "m19")
    );
}

#[test]
fn a_conflict_is_told_and_the_rest_is_ready() {
    let conflict = Conflict {
        claim: Claim::Endpoint("gw2".parse().unwrap()),
        path: "spec.endpoints[1].address".into(),
        owner: ("plant".into(), "old".into()),
    };
    let mut case = Case::running();
    case.poller = validated(vec![conflict]);
    case.pods = case
        .poller
        .shards
        .iter()
        .map(|s| pod("u", s.revision.as_str(), "Running", true))
        .collect();
    assert_eq!(
        case.verdicts(),
        ["True/Running", "False/Settled", "True/EndpointConflict"]
    );
    assert!(
        find(&case.status().conditions, types::DEGRADED)
            .unwrap()
            .message
            .contains("plant/old")
    );
}

#[test]
fn a_worker_in_trouble_is_heard() {
    let mut case = Case::running();
    let mut troubled = report(2, &[]);
    troubled.spool.trouble = Some("the broker does not answer".into());
    case.reports.insert("u0".into(), Some(troubled));
    assert_eq!(case.verdicts()[2], "True/WorkerTrouble");
}

#[test]
fn figures_stand_until_every_worker_was_asked() {
    let mut case = Case::running();
    case.reports.insert("u1".into(), Some(report(0, &["m3"])));
    case.current = case.status();
    case.reports.insert("u1".into(), None);
    let status = case.status();
    assert_eq!(
        (status.meters, status.failing_meters),
        (case.current.meters, case.current.failing_meters.clone())
    );
    assert_eq!(
        status.conditions, case.current.conditions,
        "nor does the verdict change"
    );
}

#[test]
fn what_cannot_be_carried_out_says_why_and_leaves_the_rest() {
    let current = Case::running().status();
    let refusal = Refusal {
        reason: reasons::INVALID,
        sentences: vec!["spec.x: no; change it".into()],
        workers: Workers::GoOn,
    };
    let status = refused(&refusal, &current, Some(8), Timestamp::from_second(200).unwrap());
    let ready = find(&status.conditions, types::READY).unwrap();
    assert_eq!(
        (ready.status.as_str(), ready.reason.as_str()),
        ("False", "Invalid")
    );
    assert!(
        ready
            .message
            .starts_with("spec.x: no; change it. The workers go on"),
        "{}",
        ready.message
    );
    assert_eq!((status.shards, status.meters), (current.shards, current.meters));
    assert_eq!(status.observed_generation, Some(8));
}

#[test]
fn figures_alone_need_no_hurry() {
    let well = Case::running();
    let mut failing = Case::running();
    failing.reports.insert("u1".into(), Some(report(0, &["m3"])));
    failing.current = well.status();
    let mut waiting = Case::running();
    waiting.pods.remove(0);
    waiting.current = well.status();
    assert_ne!(well.status(), failing.status());
    assert_eq!(
        without_figures(&well.status()),
        without_figures(&failing.status())
    );
    assert_ne!(
        without_figures(&well.status()),
        without_figures(&waiting.status())
    );
}

#[test]
fn what_is_suspended_and_cannot_be_carried_out_says_both() {
    let current = Case::running().status();
    let refusal = Refusal {
        reason: reasons::INVALID,
        sentences: vec!["spec.x: no; change it".into()],
        workers: Workers::of(true, true),
    };
    let status = refused(&refusal, &current, Some(8), Timestamp::from_second(200).unwrap());
    let ready = find(&status.conditions, types::READY).unwrap();
    assert!(
        ready
            .message
            .starts_with("spec.x: no; change it. It is suspended")
            && !ready.message.contains("go on"),
        "{}",
        ready.message
    );
    assert!(status.shards.len() == 2 && status.shards.iter().all(|shard| !shard.ready));
    assert_eq!((status.meters.total, status.meters.healthy), (3, 0));
}
