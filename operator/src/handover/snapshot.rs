//! All poller pods of the cluster at one moment, and the API server's time at that moment.
//!
//! The list asks for no resource version, so that the answer is as new as the request: a cache, this
//! process's or the API server's, may not yet know of a pod that runs. The time is the `Date` of an answer
//! of the API server, so that no other clock is compared with creation times; and of an answer that was
//! there before the list was asked for, so that whatever the list misses was made at that time or later.

use axum::http::{Request, StatusCode, header};
use k8s_openapi::{
    api::core::v1::Pod,
    jiff::{Timestamp, fmt::rfc2822},
};
use kube::{
    Client, Resource,
    api::{ListParams, ObjectList},
    client::Body,
    core::{Status, request},
};

use super::holder::Holder;
use crate::vocabulary::labels;

/// Why the pods could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request could not be made or answered.
    #[error("failed to list the poller pods")]
    List(#[from] kube::Error),
    /// The request could not be put together.
    #[error("failed to put together the request for the poller pods")]
    Request(#[from] request::Error),
    /// The API server refused.
    #[error("failed to list the poller pods: the API server answers {0}: {1}")]
    Refused(StatusCode, String),
    /// The answer is not a list of pods.
    #[error("failed to read the list of poller pods")]
    Decode(#[from] serde_json::Error),
    /// The answer has no readable date.
    #[error("failed to read the API server's time: its answer carries no date")]
    Date,
}

/// The poller pods of all namespaces, and the API server's time.
#[derive(Debug)]
pub struct Snapshot {
    /// The pods.
    pub pods: Vec<Holder>,
    /// A moment shortly before they were so, by the API server's clock, in whole seconds.
    pub now: Timestamp,
}

/// Reads the poller pods of all namespaces.
///
/// # Errors
/// Where the API server does not answer as it should; nothing may be released then.
pub async fn read(client: &Client) -> Result<Snapshot, Error> {
    let now = server_time(client).await?;
    let selector = format!("{}={}", labels::COMPONENT, labels::POLLER);
    let list =
        request::Request::new(Pod::url_path(&(), None)).list(&ListParams::default().labels(&selector))?;
    let answer = client.send(Request::map(list, Body::from)).await?;
    let status = answer.status();
    let body = answer.into_body().collect_bytes().await?;
    if !status.is_success() {
        let message = serde_json::from_slice::<Status>(&body)
            .map(|status| status.message)
            .unwrap_or_default();
        return Err(Error::Refused(status, message));
    }
    let list: ObjectList<Pod> = serde_json::from_slice(&body)?;
    Ok(Snapshot {
        pods: list.items.iter().filter_map(Holder::of).collect(),
        now,
    })
}

/// Whatever it answers, and whether it allows the question or not: its clock is in the header.
async fn server_time(client: &Client) -> Result<Timestamp, Error> {
    let question = Request::get("/version")
        .body(Body::empty())
        .map_err(request::Error::BuildRequest)?;
    let answer = client.send(question).await?;
    let date = answer
        .headers()
        .get(header::DATE)
        .and_then(|date| date.to_str().ok());
    date.and_then(time_of).ok_or(Error::Date)
}

fn time_of(date: &str) -> Option<Timestamp> {
    rfc2822::DateTimeParser::new().parse_timestamp(date).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_date_of_an_answer() {
        let time = time_of("Sat, 21 Nov 2026 09:05:59 GMT").unwrap();
        assert_eq!(time.to_string(), "2026-11-21T09:05:59Z");
        assert_eq!(time_of("yesterday"), None);
    }
}
