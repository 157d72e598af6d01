//! No pod is replaced over a spool that would go with it: whoever changes a MeterPoller while the broker is
//! away loses no record by that.
//!
//! A spool is on an `emptyDir`, which outlives the container and not the pod. A pod that is asked to end
//! sends what is in its spool, which a broker that is there takes within a second. So before a pod is replaced
//! or removed its worker is asked, then and there, and the change waits until all that the spool held when
//! the change was first seen has left it. A worker that does not answer holds nothing up: nobody knows whether
//! there is anything left to save, and the change may be what cures it.

use std::time::{Duration, Instant};

use corrente_config::report::SpoolReport;
use corrente_crds::MeterPoller;
use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::{
    context::{Context, SharedMap},
    observe, podstate,
    vocabulary::annotations,
};

/// How soon to ask again while a spool is on its way to the broker.
const SOON: Duration = Duration::from_secs(1);

/// The spools that a change waits for, by the uid of their pod.
#[derive(Default)]
pub struct Unsent(SharedMap<String, Mark>);

/// A spool when a change was first held up by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    /// Records written to it by then: these are to have left it.
    records: u64,
    since: Instant,
}

/// What keeps a change from being carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// When to look again.
    pub again: Duration,
    /// What a person should know; nothing while it is a matter of moments.
    pub sentence: Option<String>,
}

impl Unsent {
    /// Whether the pod may go whose spool this is; `None` where it may.
    fn judge(&self, uid: &str, spool: &SpoolReport, now: Instant) -> Option<Duration> {
        let mut marks = self.0.lock();
        let left = spool.records.saturating_sub(spool.pending);
        let fresh = Mark {
            records: spool.records,
            since: now,
        };
        let mark = *marks
            .entry(uid.to_owned())
            .and_modify(|mark| {
                // What was written since is as unsent as the rest while the broker takes nothing; and a spool
                // that holds less than it did is another one.
                if spool.trouble.is_some() || spool.records < mark.records {
                    mark.records = spool.records;
                }
            })
            .or_insert(fresh);
        if spool.pending == 0 || (spool.trouble.is_none() && left >= mark.records) {
            marks.remove(uid);
            return None;
        }
        Some(now.saturating_duration_since(mark.since))
    }

    /// Forgets the pods for which this does not hold.
    pub fn retain(&self, exists: impl Fn(&str) -> bool) {
        self.0.lock().retain(|uid, _| exists(uid));
    }
}

/// Whether the owner lets go of what is not sent: the annotation holds for one generation, so that the next
/// change is as careful as ever.
fn is_given_up(poller: &MeterPoller) -> bool {
    let generation = poller
        .metadata
        .generation
        .map(|generation| generation.to_string());
    poller.annotations().get(annotations::DISCARD_UNSENT) == generation.as_ref() && generation.is_some()
}

/// Asks the workers in these pods, each with its shard's number, and says what holds a change of them up.
pub async fn hold(poller: &MeterPoller, pods: &[(String, &Pod)], context: &Context) -> Option<Hold> {
    if poller.spec.suspend || is_given_up(poller) {
        return None;
    }
    let timing = &context.settings.timing;
    let asked = join_all(pods.iter().filter(|(_, pod)| podstate::has_started(pod)).map(
        |(shard, pod)| async move {
            let report = observe::ask_now(pod, context.settings.worker_port).await?;
            let uid = pod.metadata.uid.as_deref().unwrap_or_default();
            let waited = context.unsent.judge(uid, &report.spool, Instant::now())?;
            Some((shard, report.spool.trouble, waited))
        },
    ))
    .await;
    let mut held: Vec<_> = asked.into_iter().flatten().collect();
    // By number, or the sentence would change with the order in which pods are known.
    held.sort_by_key(|(shard, ..)| (shard.len(), *shard));
    let more = held.len().saturating_sub(1);
    let (shard, trouble, waited) = held.into_iter().next()?;
    if trouble.is_none() && waited < timing.patience {
        return Some(Hold {
            again: SOON,
            sentence: None,
        });
    }
    let others = match more {
        0 => String::new(),
        1 => ", and so does that of one more shard".to_owned(),
        more => format!(", and so do those of {more} more shards"),
    };
    let why = trouble.map_or_else(String::new, |trouble| format!(" ({trouble})"));
    let (namespace, name) = (poller.namespace().unwrap_or_default(), poller.name_any());
    let generation = poller.metadata.generation.unwrap_or_default();
    Some(Hold {
        again: timing.recheck,
        sentence: Some(format!(
            "the change waits: the spool of shard {shard} holds records that the broker has not taken{why}{others}, \
             and they would be lost with the pod. It goes on by itself once they are sent; to lose them instead: \
             kubectl annotate --overwrite meterpoller -n {namespace} {name} {}={generation}",
            annotations::DISCARD_UNSENT
        )),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    fn spool(records: u64, pending: u64, trouble: Option<&str>) -> SpoolReport {
        SpoolReport {
            records,
            pending,
            trouble: trouble.map(str::to_owned),
            ..SpoolReport::default()
        }
    }

    #[test]
    fn a_pod_may_go_when_what_its_spool_held_has_left_it() {
        let gone = Some("no broker answers");
        // Each row: what the worker says, one look after the other, and whether its pod may go then.
        type Case<'a> = (&'a str, Vec<(SpoolReport, bool)>);
        let table: Vec<Case<'_>> = vec![
            ("an empty spool", vec![(spool(0, 0, None), true)]),
            ("all is sent", vec![(spool(70, 0, None), true)]),
            (
                "all is sent, and the broker has gone since",
                vec![(spool(70, 0, gone), true)],
            ),
            (
                "a busy spool at a broker that takes it",
                vec![
                    (spool(70, 3, None), false),
                    (spool(72, 4, None), false),
                    (spool(75, 5, None), true),
                ],
            ),
            (
                "the broker is away, and comes back",
                vec![
                    (spool(70, 10, gone), false),
                    (spool(90, 30, gone), false),
                    (spool(95, 20, None), false),
                    (spool(99, 9, None), true),
                ],
            ),
            (
                "the bound evicts while the broker is away",
                vec![(spool(70, 50, gone), false), (spool(170, 50, gone), false)],
            ),
            (
                "the worker began anew",
                vec![
                    (spool(70, 10, None), false),
                    (spool(4, 2, None), false),
                    (spool(6, 1, None), true),
                ],
            ),
        ];
        for (what, looks) in table {
            let unsent = Unsent::default();
            for (at, (spool, may_go)) in looks.into_iter().enumerate() {
                let held = unsent.judge("u", &spool, Instant::now());
                assert_eq!(held.is_none(), may_go, "{what}, look {at}");
                assert_eq!(
                    unsent.0.lock().is_empty(),
                    may_go,
                    "{what}, look {at}: forgotten when it may go"
                );
            }
        }
    }

    #[test]
    fn what_is_given_up_holds_for_one_generation() {
        let mut poller = fixtures::poller("site", 1, &[]);
        assert!(!is_given_up(&poller));
        poller
            .annotations_mut()
            .insert(annotations::DISCARD_UNSENT.to_owned(), "1".to_owned());
        assert!(is_given_up(&poller));
        poller.metadata.generation = Some(2);
        assert!(!is_given_up(&poller));
        poller.annotations_mut().clear();
        poller.metadata.generation = None;
        assert!(!is_given_up(&poller));
    }
}
