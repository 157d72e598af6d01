//! What the workers say of themselves: their `/status`, asked for now and then.
//!
//! Workers have no access to the API server, so the operator asks them. A worker that does not answer is
//! not thereby a worker that fails: what it said last stands, until its pod is gone.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::body::Body;
use corrente_config::report::{PipelineReport, PollerReport};
use futures::StreamExt;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::{
    context::{Context, Key, SharedMap},
    podstate,
    vocabulary::{annotations, labels},
};

/// How long a worker may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// Most bytes of an answer.
const MOST_BYTES: usize = 1 << 20;
/// How many are asked at the same time.
const AT_ONCE: usize = 16;
/// A period is looked at in so many steps: a worker that has much to tell is asked again after one of them.
const STEPS: u32 = 6;

/// For so many periods after its start a worker is asked at each step.
const YOUNG: u32 = 2;

/// Why a worker's figures are not known.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("failed to ask: {0} is no address")]
    Address(String),
    #[error("failed to ask")]
    Send(#[from] hyper_util::client::legacy::Error),
    #[error("failed to read the answer")]
    Read(#[from] axum::Error),
    #[error("failed to understand the answer")]
    Decode(#[from] serde_json::Error),
    #[error("failed to ask: it answers {0}")]
    Status(axum::http::StatusCode),
    #[error("failed to ask: it does not answer")]
    Timeout,
}

/// What is known of a worker.
#[derive(Clone, Debug)]
struct Known {
    asked: Instant,
    /// Its last answer; none of the tries may have had one.
    report: Option<Value>,
    /// Since when it is known.
    since: Instant,
    /// It has told all it will tell: a poller that has polled every meter.
    complete: bool,
}

/// What the workers say of themselves, by the uid of their pod.
#[derive(Default)]
pub struct Reports(SharedMap<String, Known>);

impl Reports {
    /// What pollers said last, for those of these pods that run; `None` for one that has not been asked.
    #[must_use]
    pub fn of_pollers(&self, pods: &[Arc<Pod>]) -> BTreeMap<String, Option<PollerReport>> {
        let known = self.0.lock();
        let mut reports = BTreeMap::new();
        for pod in pods.iter().filter(|pod| podstate::has_started(pod)) {
            let uid = pod.uid().unwrap_or_default();
            match known.get(&uid) {
                None => {
                    reports.insert(uid, None);
                }
                Some(known) => {
                    let report = known
                        .report
                        .clone()
                        .and_then(|report| serde_json::from_value(report).ok());
                    if let Some(report) = report {
                        reports.insert(uid, Some(report));
                    }
                }
            }
        }
        reports
    }

    /// What pipeline workers said last.
    #[must_use]
    pub fn of_pipelines(&self, pods: &[Arc<Pod>]) -> Vec<PipelineReport> {
        let known = self.0.lock();
        pods.iter()
            .filter(|pod| podstate::has_started(pod))
            .filter_map(|pod| known.get(pod.metadata.uid.as_deref()?)?.report.clone())
            .filter_map(|report| serde_json::from_value(report).ok())
            .collect()
    }

    /// Whether a worker is to be asked now.
    fn is_due(&self, uid: &str, period: Duration) -> bool {
        self.0.lock().get(uid).is_none_or(|known| {
            // One of several pipeline workers looks after the tables, once those before it have let go of them: what
            // it says of them comes in its first minute.
            let is_young = known.since.elapsed() < YOUNG * period;
            let period = if known.complete && !is_young {
                period
            } else {
                period / STEPS
            };
            // Half a step early, so that a step that comes a little early is not missed for a whole one.
            known.asked.elapsed() + period / (2 * STEPS) >= period
        })
    }

    /// Notes an answer, or that there was none. `true` where it says something new.
    fn note(&self, uid: &str, answer: Option<Value>) -> bool {
        let mut all = self.0.lock();
        let before = all.get(uid).map(|known| known.report.clone());
        let since = all.get(uid).map_or_else(Instant::now, |known| known.since);
        let last = before.clone().flatten();
        let complete = answer.as_ref().is_none_or(is_complete);
        let report = answer.or_else(|| last.clone());
        let is_new = before.is_none() || essence(report.as_ref()) != essence(last.as_ref());
        all.insert(
            uid.to_owned(),
            Known {
                asked: Instant::now(),
                report,
                since,
                complete,
            },
        );
        is_new
    }

    fn retain(&self, exists: impl Fn(&str) -> bool) {
        self.0.lock().retain(|uid, _| exists(uid));
    }
}

/// Whether all meters of a report have been polled.
fn is_complete(report: &Value) -> bool {
    serde_json::from_value::<PollerReport>(report.clone()).map_or(true, |report| {
        report.meters.healthy + report.meters.failing >= report.meters.total
    })
}

/// What of a report a status shows; the rest counts up all the time.
fn essence(report: Option<&Value>) -> Option<[Option<&Value>; 5]> {
    let report = report?;
    let trouble = report.get("spool").and_then(|spool| spool.get("trouble"));
    Some([
        report.get("meters"),
        report.get("failingMeters"),
        trouble,
        report.get("trouble"),
        report.get("tables"),
    ])
}

fn client() -> Client<HttpConnector, Body> {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(PATIENCE));
    Client::builder(TokioExecutor::new())
        .pool_max_idle_per_host(0)
        .build(connector)
}

/// What a poller says at this moment; `None` where it does not answer.
pub async fn ask_now(pod: &Pod, port: u16) -> Option<PollerReport> {
    let address = pod.status.as_ref()?.pod_ip.as_deref()?;
    let answer = tokio::time::timeout(PATIENCE, ask(&client(), address, port)).await;
    match answer.unwrap_or(Err(Error::Timeout)) {
        Ok(report) => serde_json::from_value(report).ok(),
        Err(error) => {
            tracing::debug!(pod = pod.name_any(), error = %crate::events::chain(&error), "no answer");
            None
        }
    }
}

/// Asks the workers in turn, until `shutdown`.
pub async fn run(context: Arc<Context>, shutdown: CancellationToken) {
    let client = client();
    let period = context.settings.timing.report;
    let mut steps = tokio::time::interval(period / STEPS);
    steps.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = steps.tick() => {}
        }
        let pods = context.stores.pods.state();
        context
            .reports
            .retain(|uid| pods.iter().any(|pod| pod.metadata.uid.as_deref() == Some(uid)));
        let due = pods.into_iter().filter(|pod| {
            podstate::has_started(pod)
                && context
                    .settings
                    .namespaces
                    .contain(pod.metadata.namespace.as_deref().unwrap_or_default())
                && context
                    .reports
                    .is_due(pod.metadata.uid.as_deref().unwrap_or_default(), period)
        });
        let asking = futures::stream::iter(due)
            .for_each_concurrent(AT_ONCE, |pod| ask_and_note(&context, &client, pod));
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = asking => {}
        }
    }
}

async fn ask_and_note(context: &Context, client: &Client<HttpConnector, Body>, pod: Arc<Pod>) {
    let Some(address) = pod.status.as_ref().and_then(|status| status.pod_ip.clone()) else {
        return;
    };
    let answer = tokio::time::timeout(PATIENCE, ask(client, &address, context.settings.worker_port))
        .await
        .unwrap_or(Err(Error::Timeout));
    let answer = match answer {
        Ok(answer) => Some(answer),
        Err(error) => {
            metrics::counter!("corrente_operator_report_errors_total").increment(1);
            tracing::debug!(pod = pod.name_any(), error = %crate::events::chain(&error), "no figures");
            None
        }
    };
    if context
        .reports
        .note(pod.metadata.uid.as_deref().unwrap_or_default(), answer)
        && let Some(name) = pod.annotations().get(annotations::RESOURCE)
    {
        let key = Key {
            namespace: pod.namespace().unwrap_or_default(),
            name: name.clone(),
        };
        if pod
            .labels()
            .get(labels::COMPONENT)
            .is_some_and(|component| component == labels::POLLER)
        {
            context.queues.poller(&key, "its worker reports something new");
        } else {
            context.queues.pipeline(&key, "its worker reports something new");
        }
    }
}

async fn ask(client: &Client<HttpConnector, Body>, address: &str, port: u16) -> Result<Value, Error> {
    let host = if address.contains(':') {
        format!("[{address}]")
    } else {
        address.to_owned()
    };
    let uri = format!("http://{host}:{port}/status");
    let uri = uri.parse().map_err(|_| Error::Address(address.to_owned()))?;
    let answer = client.get(uri).await?;
    if !answer.status().is_success() {
        return Err(Error::Status(answer.status()));
    }
    let body = axum::body::to_bytes(Body::new(answer.into_body()), MOST_BYTES).await?;
    Ok(serde_json::from_slice(&body)?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report(healthy: i32, polls: u64) -> Value {
        json!({
            "meters": {"total": 3, "healthy": healthy, "failing": 0}, "failingMeters": [], "polls": polls,
            "skipped": 0, "spool": {"stream": "s", "records": polls, "pending": 0, "bytes": 0, "evicted": 0, "refused": 0},
        })
    }

    #[test]
    fn only_what_a_status_shows_is_news() {
        let reports = Reports::default();
        assert!(reports.note("u", Some(report(0, 0))), "the first answer");
        assert!(!reports.note("u", Some(report(0, 9))), "more polls");
        assert!(reports.note("u", Some(report(3, 12))), "other meters");
        assert!(!reports.note("u", None), "no answer leaves what was said last");
        let tables = |notices: Value| Some(json!({"rows": 1, "tables": notices}));
        assert!(reports.note("w", tables(json!([]))), "the first answer");
        assert!(
            reports.note("w", tables(json!(["no compression"]))),
            "other tables"
        );
        assert!(reports.note("v", None), "asked for the first time, in vain");
        reports.retain(|uid| uid == "v");
        assert!(reports.0.lock().contains_key("v") && !reports.0.lock().contains_key("u"));
    }

    #[test]
    fn a_young_worker_is_asked_sooner() {
        let reports = Reports::default();
        let period = Duration::from_secs(6);
        for (age, due) in [(1, true), (11, true), (13, false)] {
            reports.note("u", Some(report(3, 0)));
            let ago = |seconds| Instant::now().checked_sub(Duration::from_secs(seconds)).unwrap();
            let mut all = reports.0.lock();
            let known = all.get_mut("u").unwrap();
            (known.asked, known.since) = (ago(1), ago(age));
            drop(all);
            assert_eq!(reports.is_due("u", period), due, "{age} s old");
        }
    }

    #[test]
    fn a_poller_that_has_not_polled_all_meters_is_asked_again_sooner() {
        let reports = Reports::default();
        let period = Duration::from_secs(3600);
        assert!(reports.is_due("u", period));
        reports.note("u", Some(report(1, 0)));
        assert!(!reports.0.lock()["u"].complete);
        reports.note("u", Some(report(3, 0)));
        assert!(reports.0.lock()["u"].complete);
        assert!(!reports.is_due("u", period));
    }
}
