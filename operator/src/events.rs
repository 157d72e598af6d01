//! Events: what a person should know, beside the resource it concerns.
//!
//! An event that cannot be written is no reason to fail: conditions say the same, and stay.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder};

use crate::{conditions::shortened, naming};

/// Most bytes of an event's note.
pub const NOTE: usize = 1024;

/// Publishes an event.
pub async fn publish(recorder: &Recorder, mut event: Event, about: &ObjectReference) {
    // The recorder counts events of one action up and keeps the words of the first. Other words are
    // another event: what they are a part of tells them apart.
    let note = event.note.as_deref().unwrap_or_default();
    event.action = format!("{}-{}", event.action, naming::content_hash(note));
    crate::telemetry::write("Event", "create");
    if let Err(error) = recorder.publish(&event, about).await
        && !is_namespace_ending(&error)
    {
        tracing::warn!(
            reason = event.reason,
            about = about.name,
            error = %chain(&error),
            "failed to publish an event"
        );
    }
}

/// Tells a resource's owner something that is well.
pub async fn normal(recorder: &Recorder, about: &ObjectReference, reason: &str, note: &str) {
    publish(recorder, event(EventType::Normal, reason, note), about).await;
}

/// Tells a resource's owner something to look at.
pub async fn warning(recorder: &Recorder, about: &ObjectReference, reason: &str, note: &str) {
    publish(recorder, event(EventType::Warning, reason, note), about).await;
}

fn event(type_: EventType, reason: &str, note: &str) -> Event {
    Event {
        type_,
        reason: reason.to_owned(),
        note: Some(shortened(note, NOTE)),
        action: "Reconcile".to_owned(),
        secondary: None,
    }
}

/// Whether a request failed because its namespace is being deleted: nothing new may be made there, and what
/// is there goes by itself.
#[must_use]
pub fn is_namespace_ending(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(kube::Error::Api(status)) = error.downcast_ref::<kube::Error>()
            && let Some(details) = &status.details
        {
            return details
                .causes
                .iter()
                .any(|cause| cause.reason == "NamespaceTerminating");
        }
        cause = error.source();
    }
    false
}

/// An error with its causes, each after a colon. What the API server says is told in its own words, without
/// the whole of its answer.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    let mut cause = Some(error);
    while let Some(error) = cause {
        let refused = match error.downcast_ref::<kube::Error>() {
            Some(kube::Error::Api(status)) => {
                Some(format!("the API server says {}: {}", status.code, status.message))
            }
            _ => None,
        };
        cause = if refused.is_some() { None } else { error.source() };
        let next = refused.unwrap_or_else(|| error.to_string());
        if !text.contains(&next) {
            text += if text.is_empty() { "" } else { ": " };
            text += &next;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("failed to create ConfigMap x")]
    struct Outer(#[source] kube::Error);

    fn refused(reason: &str) -> Outer {
        let status = json!({
            "code": 403, "message": "forbidden: unable to create new content", "reason": "Forbidden",
            "details": {"name": "x", "kind": "configmaps", "causes": [{"reason": reason, "message": "", "field": ""}]},
        });
        Outer(kube::Error::Api(serde_json::from_value(status).unwrap()))
    }

    #[test]
    fn knows_a_namespace_that_is_being_deleted() {
        assert!(is_namespace_ending(&refused("NamespaceTerminating")));
        assert!(!is_namespace_ending(&refused("FieldValueInvalid")));
        assert!(!is_namespace_ending(&std::io::Error::other("x")));
    }

    #[test]
    fn an_error_is_told_with_its_causes_and_nothing_twice() {
        let text = chain(&refused("x"));
        assert_eq!(
            text,
            "failed to create ConfigMap x: the API server says 403: forbidden: unable to create new content"
        );
    }
}
