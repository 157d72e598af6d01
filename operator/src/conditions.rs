//! Conditions as the API conventions want them: one per type, and a transition time that changes only
//! when the status does.

use corrente_crds::common::GROUP;
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

/// Most bytes of a condition's message; the API allows 32 KiB, people read a few lines.
const MESSAGE: usize = 2048;

/// What a condition is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The condition's type, of [`crate::vocabulary::conditions`].
    pub kind: &'static str,
    /// Whether it holds.
    pub holds: bool,
    /// Why, in one word of [`crate::vocabulary::reasons`].
    pub reason: &'static str,
    /// Why, in a sentence.
    pub message: String,
}

impl Verdict {
    /// A condition that holds or does not, and why.
    pub fn new(kind: &'static str, holds: bool, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            kind,
            holds,
            reason,
            message: message.into(),
        }
    }
}

/// The conditions that say `verdicts`, in their order. A condition keeps its transition time where its
/// status is the one it had; conditions of others are kept as they are, behind ours.
#[must_use]
pub fn merge(
    current: &[Condition],
    verdicts: &[Verdict],
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let ours = verdicts.iter().map(|verdict| {
        let status = if verdict.holds { "True" } else { "False" };
        let since = current
            .iter()
            .find(|condition| condition.type_ == verdict.kind && condition.status == status)
            .map_or_else(
                || Time(whole_seconds(now)),
                |condition| condition.last_transition_time.clone(),
            );
        Condition {
            type_: verdict.kind.to_owned(),
            status: status.to_owned(),
            reason: verdict.reason.to_owned(),
            message: shortened(&verdict.message, MESSAGE),
            observed_generation: generation,
            last_transition_time: since,
        }
    });
    let others = current
        .iter()
        .filter(|condition| verdicts.iter().all(|verdict| verdict.kind != condition.type_))
        .cloned();
    ours.chain(others).collect()
}

/// The condition of a type.
#[must_use]
pub fn find<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == kind)
}

/// The API keeps whole seconds; what is compared with it must not have more.
fn whole_seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

/// The beginning of a text, cut where a character begins, and marked where it was cut.
#[must_use]
pub fn shortened(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let mut end = most.saturating_sub(4);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{} ...", &text[..end])
}

/// The sentences of several problems as one text: the first of them, and how many more there are.
#[must_use]
pub fn sentences(problems: &[String], most: usize) -> String {
    let mut text = problems.iter().take(most).cloned().collect::<Vec<_>>().join("; ");
    if problems.len() > most {
        text += &format!("; and {} more", problems.len() - most);
    }
    text
}

/// The `apiVersion` of every kind.
#[must_use]
pub fn api_version() -> String {
    format!("{GROUP}/{}", corrente_crds::VERSION)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::{conditions::*, reasons};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        let ready = |holds, reason, message: &str| vec![Verdict::new(READY, holds, reason, message)];
        let first = merge(
            &[],
            &ready(false, reasons::PODS_NOT_READY, "0 of 2"),
            Some(1),
            at(100),
        );
        assert_eq!(first[0].last_transition_time, Time(at(100)));
        // (verdict, its time, whether the transition time is that time)
        let table = [
            (ready(false, reasons::PODS_NOT_READY, "1 of 2"), 200, 100),
            (ready(false, reasons::WAITING_FOR_HANDOVER, "waits"), 300, 100),
            (ready(true, reasons::RUNNING, "2 of 2"), 400, 400),
            (ready(true, reasons::RUNNING, "3 of 3"), 500, 400),
            (ready(false, reasons::SUSPENDED, "suspended"), 600, 600),
        ];
        let mut current = first;
        for (verdicts, now, since) in table {
            current = merge(&current, &verdicts, Some(2), at(now));
            assert_eq!(current.len(), 1);
            assert_eq!(current[0].last_transition_time, Time(at(since)), "{verdicts:?}");
            assert_eq!(
                (current[0].reason.as_str(), &current[0].message),
                (verdicts[0].reason, &verdicts[0].message)
            );
            assert_eq!(current[0].observed_generation, Some(2));
        }
    }

    #[test]
    fn the_time_has_whole_seconds_as_the_api_server_keeps_it() {
        let now = Timestamp::from_millisecond(1_500).unwrap();
        let made = merge(&[], &[Verdict::new(READY, true, reasons::RUNNING, "")], None, now);
        assert_eq!(made[0].last_transition_time, Time(at(1)));
    }

    #[test]
    fn conditions_of_others_stay() {
        let foreign = merge(&[], &[Verdict::new("Audited", true, "Signed", "")], None, at(1));
        let merged = merge(
            &foreign,
            &[Verdict::new(READY, true, reasons::RUNNING, "")],
            None,
            at(2),
        );
        assert_eq!(
            merged.iter().map(|c| c.type_.as_str()).collect::<Vec<_>>(),
            [READY, "Audited"]
        );
        assert_eq!(find(&merged, "Audited"), Some(&foreign[0]));
    }

    #[test]
    fn messages_are_bounded_without_breaking_a_character() {
        assert_eq!(shortened("short", 10), "short");
        assert_eq!(shortened("ßßßßßß", 9), "ßß ...");
        assert_eq!(
            sentences(&["a".into(), "b".into(), "c".into()], 2),
            "a; b; and 1 more"
        );
        let long = Verdict::new(READY, false, reasons::INVALID, "x".repeat(10_000));
        assert!(merge(&[], &[long], None, at(1))[0].message.len() <= MESSAGE);
    }
}
