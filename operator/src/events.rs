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
    if let Err(error) = recorder.publish(&event, about).await {
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

/// An error with its causes, each after a colon, without saying twice what a cause repeats.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text += ": ";
            text += &next;
        }
        cause = error.source();
    }
    text
}
