//! Which gated pods may go, and for whom the others wait.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use super::holder::Holder;

/// By how many seconds the clocks of several API servers may differ without a word.
const CLOCKS: i64 = 2;

/// What becomes of a gated pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// Nobody else can hold one of its endpoints: the gate may be removed.
    Release,
    /// It was made in this very second, in which an older one may still be made.
    Newborn,
    /// It was made in the API server's future, by so much: a clock was set back, or one is ahead.
    Ahead(Duration),
    /// These hold endpoints of its, or come first.
    Wait(Vec<&'a Holder>),
}

/// Judges every pod that waits, oldest first, by all poller pods of the cluster at one moment.
///
/// `now` is the API server's time when that moment was read. The rules:
/// - a pod that has finished holds nothing;
/// - a pod without the gate holds its endpoints until its object is gone, whatever its owner, its
///   revision, its namespace, and whether it was told to end;
/// - a pod with the gate holds nothing, but the older one goes first; one that was told to end never runs.
#[must_use]
pub fn decide(pods: &[Holder], now: Timestamp) -> Vec<(&Holder, Verdict<'_>)> {
    let mut waiting: Vec<&Holder> = pods.iter().filter(|pod| pod.waits()).collect();
    waiting.sort_by_key(|pod| pod.age());
    waiting
        .into_iter()
        .map(|pod| (pod, judge(pod, pods, now)))
        .collect()
}

fn judge<'a>(pod: &Holder, pods: &'a [Holder], now: Timestamp) -> Verdict<'a> {
    let blockers: Vec<&Holder> = pods.iter().filter(|other| blocks(other, pod)).collect();
    if !blockers.is_empty() {
        Verdict::Wait(blockers)
    } else {
        match pod.created.as_second() - now.as_second() {
            ..0 => Verdict::Release,
            0..=CLOCKS => Verdict::Newborn,
            ahead => Verdict::Ahead(Duration::from_secs(ahead.unsigned_abs())),
        }
    }
}

fn blocks(other: &Holder, pod: &Holder) -> bool {
    let before = if other.gate.is_some() {
        other.waits() && other.age() < pod.age()
    } else {
        !other.finished
    };
    before && other.uid != pod.uid && !other.endpoints.is_disjoint(&pod.endpoints)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// A gated pod, called after its uid.
    fn gated(uid: &str, created: i64, endpoints: &str) -> Holder {
        Holder {
            namespace: "plant".into(),
            name: format!("pod-{uid}"),
            uid: uid.into(),
            resource_version: "1".into(),
            created: at(created),
            gate: Some(0),
            deleting: false,
            finished: false,
            node: None,
            resource: Some("site".into()),
            endpoints: endpoints
                .split(',')
                .filter(|e| !e.is_empty())
                .map(str::to_owned)
                .collect(),
        }
    }

    fn running(uid: &str, created: i64, endpoints: &str) -> Holder {
        Holder {
            gate: None,
            node: Some("node-1".into()),
            ..gated(uid, created, endpoints)
        }
    }

    /// The verdicts as text: `new`, `go`, or for whom the pod waits.
    fn verdicts(pods: &[Holder], now: i64) -> BTreeMap<String, String> {
        decide(pods, at(now))
            .into_iter()
            .map(|(pod, verdict)| {
                let text = match verdict {
                    Verdict::Release => "go".to_owned(),
                    Verdict::Newborn => "new".to_owned(),
                    Verdict::Ahead(by) => format!("ahead {}", by.as_secs()),
                    Verdict::Wait(blockers) => blockers
                        .iter()
                        .map(|b| b.uid.as_str())
                        .collect::<Vec<_>>()
                        .join(" "),
                };
                (pod.uid.clone(), text)
            })
            .collect()
    }

    #[test]
    fn the_table() {
        let deleting = |holder: Holder| Holder {
            deleting: true,
            ..holder
        };
        let finished = |holder: Holder| Holder {
            finished: true,
            ..holder
        };
        let elsewhere = |holder: Holder| Holder {
            namespace: "other".into(),
            resource: None,
            ..holder
        };
        type Case<'a> = (&'a str, Vec<Holder>, Vec<(&'a str, &'a str)>);
        let table: Vec<Case<'_>> = vec![
            ("nobody else", vec![gated("a", 1, "g1")], vec![("a", "go")]),
            (
                "another endpoint",
                vec![gated("a", 1, "g1"), running("b", 0, "g2")],
                vec![("a", "go")],
            ),
            (
                "a running pod",
                vec![gated("a", 1, "g1,g2"), running("b", 0, "g2,g3")],
                vec![("a", "b")],
            ),
            (
                "a younger running pod",
                vec![gated("a", 1, "g1"), running("b", 5, "g1")],
                vec![("a", "b")],
            ),
            (
                "a pod told to end still runs",
                vec![gated("a", 1, "g1"), deleting(running("b", 0, "g1"))],
                vec![("a", "b")],
            ),
            (
                "a finished pod holds nothing",
                vec![gated("a", 1, "g1"), finished(running("b", 0, "g1"))],
                vec![("a", "go")],
            ),
            (
                "another namespace and no owner",
                vec![gated("a", 1, "g1"), elsewhere(running("b", 0, "g1"))],
                vec![("a", "b")],
            ),
            (
                "both gated: the older",
                vec![gated("a", 2, "g1"), gated("b", 1, "g1")],
                vec![("a", "b"), ("b", "go")],
            ),
            (
                "both gated, one second: the lower uid",
                vec![gated("b", 1, "g1"), gated("a", 1, "g1")],
                vec![("a", "go"), ("b", "a")],
            ),
            (
                "an older gated pod that never runs",
                vec![gated("a", 2, "g1"), deleting(gated("b", 1, "g1"))],
                vec![("a", "go")],
            ),
            (
                "two shards take the endpoints of one",
                vec![
                    gated("a", 5, "g1"),
                    gated("b", 5, "g2"),
                    running("old", 0, "g1,g2"),
                ],
                vec![("a", "old"), ("b", "old")],
            ),
            (
                "the older gated pod waits for another endpoint, and yet comes first",
                vec![
                    gated("a", 5, "g1,g2"),
                    gated("b", 6, "g1"),
                    running("old", 0, "g2"),
                ],
                vec![("a", "old"), ("b", "a")],
            ),
            (
                "no endpoint at all",
                vec![gated("a", 1, ""), running("b", 0, "")],
                vec![("a", "go")],
            ),
            (
                "made in this second",
                vec![gated("a", 10, "g1")],
                vec![("a", "new")],
            ),
            (
                "made in the future of a clock that is a little ahead",
                vec![gated("a", 12, "g1")],
                vec![("a", "new")],
            ),
            (
                "made in the future of a set-back clock",
                vec![gated("a", 13, "g1")],
                vec![("a", "ahead 3")],
            ),
            (
                "made in the future, and another one holds its endpoint",
                vec![gated("a", 13, "g1"), running("b", 0, "g1")],
                vec![("a", "b")],
            ),
            ("told to end itself", vec![deleting(gated("a", 1, "g1"))], vec![]),
        ];
        for (what, pods, expected) in table {
            let expected: BTreeMap<String, String> = expected
                .into_iter()
                .map(|(uid, verdict)| (uid.to_owned(), verdict.to_owned()))
                .collect();
            assert_eq!(verdicts(&pods, 10), expected, "{what}");
        }
    }

    fn pods() -> impl Strategy<Value = Vec<Holder>> {
        let pod = (
            0..4_i64,
            prop::collection::btree_set(0..5_u8, 0..4),
            any::<(bool, bool, bool)>(),
        );
        prop::collection::vec(pod, 0..10).prop_map(|pods| {
            pods.into_iter()
                .enumerate()
                .map(|(at, (created, endpoints, (waits, deleting, finished)))| {
                    let endpoints: Vec<String> = endpoints.iter().map(|e| format!("g{e}")).collect();
                    let pod = gated(&format!("u{at}"), created, &endpoints.join(","));
                    Holder {
                        gate: waits.then_some(0),
                        deleting,
                        finished: finished && !waits,
                        ..pod
                    }
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn whoever_goes_shares_nothing_with_a_holder_or_with_another_who_goes(pods in pods()) {
            let released: Vec<&Holder> = decide(&pods, at(100))
                .into_iter()
                .filter(|(_, verdict)| *verdict == Verdict::Release)
                .map(|(pod, _)| pod)
                .collect();
            for pod in &released {
                for other in &pods {
                    let holds = (other.gate.is_none() && !other.finished)
                        || released.iter().any(|released| released.uid == other.uid);
                    if holds && other.uid != pod.uid {
                        prop_assert!(pod.endpoints.is_disjoint(&other.endpoints), "{} and {}", pod.uid, other.uid);
                    }
                }
            }
        }

        #[test]
        fn two_operators_that_see_different_moments_never_release_two_masters(
            pods in pods(), later in pods(), seen in any::<prop::sample::Index>(),
        ) {
            // The first sees the cluster at second 3, when only pods of seconds 0 to 3 exist, and not even
            // all of second 3. The second one sees all of them, and more that were made after that.
            let now = at(3);
            let (early, late): (Vec<Holder>, Vec<Holder>) = pods.into_iter().partition(|pod| pod.created < now);
            let mut first = early.clone();
            first.extend(late.iter().take(seen.index(late.len() + 1)).cloned());
            let mut second = early;
            second.extend(late);
            second.extend(later.into_iter().enumerate().map(|(at_, pod)| Holder {
                uid: format!("a{at_}"), // lower than all others: the uid alone would put it first
                created: at(4 + pod.created.as_second()),
                ..pod
            }).filter(|pod| pod.gate.is_some())); // nothing is born without the gate
            let go = |pods: &[Holder], now| -> Vec<Holder> {
                decide(pods, now)
                    .into_iter()
                    .filter(|(_, verdict)| *verdict == Verdict::Release)
                    .map(|(pod, _)| pod.clone())
                    .collect()
            };
            for one in go(&first, now) {
                for other in go(&second, at(100)) {
                    prop_assert!(one.uid == other.uid || one.endpoints.is_disjoint(&other.endpoints));
                }
            }
        }

        #[test]
        fn when_all_holders_are_gone_somebody_goes(pods in pods()) {
            let waiting: Vec<Holder> = pods.into_iter().filter(Holder::waits).collect();
            let verdicts = decide(&waiting, at(100));
            if let Some((_, verdict)) = verdicts.first() {
                prop_assert_eq!(verdict, &Verdict::Release);
            }
        }
    }
}
