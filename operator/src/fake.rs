//! An API server for tests: it answers by a function, notes what it was asked, and keeps nothing.

use std::sync::{Arc, Mutex};

use axum::http::{Request, Response, header};
use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    Client, Resource,
    client::Body,
    core::DeserializeGuard,
    runtime::{
        events::Recorder,
        reflector::store::Writer,
        watcher::Event::{Apply, Init, InitDone},
    },
};
use serde_json::{Value, json};

use crate::{
    context::{Context, GuardedProfile, Queues},
    fixtures, golden, watches,
};

/// What was asked, as method and path with query, and the body.
pub type Asked = Arc<Mutex<Vec<(String, Value)>>>;

/// A refusal of the API server.
pub fn refusal(code: u16, message: &str) -> (u16, Value) {
    let reason = match code {
        403 => "Forbidden",
        404 => "NotFound",
        422 => "Invalid",
        _ => "Other",
    };
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code,
        "message": message,
    });
    (code, status)
}

/// A client of an API server that answers by `answer`. Where that says nothing, there is no object to
/// read, and everything that is written is taken as it is.
pub fn client(answer: impl Fn(&str) -> Option<(u16, Value)> + Send + Sync + 'static) -> (Client, Asked) {
    let asked = Asked::default();
    let (answer, notes) = (Arc::new(answer), asked.clone());
    let service = tower::service_fn(move |request: Request<Body>| {
        let (answer, notes) = (answer.clone(), notes.clone());
        async move {
            let line = format!("{} {}", request.method(), request.uri());
            let body = request.into_body().collect_bytes().await?;
            let body: Value = serde_json::from_slice(&body).unwrap_or_default();
            notes.lock().unwrap().push((line.clone(), body.clone()));
            let (code, said) = answer(&line).unwrap_or_else(|| usual(&line, body));
            let said = Response::builder()
                .status(code)
                .header(header::DATE, "Thu, 01 Jan 2026 00:01:00 GMT")
                .body(Body::from(said.to_string().into_bytes()));
            Ok::<_, kube::Error>(said.unwrap())
        }
    });
    (Client::new(service, "plant"), asked)
}

fn usual(line: &str, body: Value) -> (u16, Value) {
    if line.starts_with("GET") {
        refusal(404, "not found")
    } else if line.starts_with("DELETE") {
        (
            200,
            json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}),
        )
    } else if line.contains("/meterpollers/") {
        (
            200,
            serde_json::to_value(fixtures::poller("site", 1, &[])).unwrap(),
        )
    } else if line.contains("/telemetrypipelines/") {
        (200, serde_json::to_value(fixtures::pipeline("store")).unwrap())
    } else if body.is_object() {
        (200, body)
    } else {
        (200, json!({}))
    }
}

/// The operator's context with that client, where the cluster has the profile `acme` and these Deployments.
pub fn context(client: Client, deployments: Vec<Deployment>) -> Context {
    let settings = golden::settings();
    let (mut stores, _) = watches::caches(&settings.namespaces);
    let mut profile = corrente_crds::MeterProfile::new("acme", fixtures::profile());
    profile.metadata.uid = Some("uid-acme".to_owned());
    stores.profiles = filled::<GuardedProfile>(vec![DeserializeGuard(Ok(profile))]).as_reader();
    stores.deployments = [(String::new(), filled(deployments).as_reader())].into();
    Context {
        recorder: Recorder::new(client.clone(), "corrente-operator".into()),
        client,
        settings,
        stores,
        queues: Queues::new().0,
        claims: Default::default(),
        memory: Default::default(),
        reports: Default::default(),
        waits: Default::default(),
        unsent: Default::default(),
        backoffs: Default::default(),
    }
}

/// A cache of these objects.
pub fn filled<K>(objects: Vec<K>) -> Writer<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let mut writer = Writer::default();
    writer.apply_watcher_event(&Init);
    writer.apply_watcher_event(&InitDone);
    for object in objects {
        writer.apply_watcher_event(&Apply(object));
    }
    writer
}

/// A Deployment of that name with one replica, which belongs to the owner of this uid.
pub fn deployment(name: &str, owner: &str, replicas: i32) -> Deployment {
    let deployment = json!({
        "metadata": {
            "namespace": "plant", "name": name, "uid": format!("uid-{name}"), "generation": 1,
            "ownerReferences": [{"apiVersion": "x/v1", "kind": "X", "name": "x", "uid": owner, "controller": true}],
        },
        "spec": {"replicas": replicas, "selector": {}, "template": {}},
    });
    serde_json::from_value(deployment).unwrap()
}

/// What was asked that begins so, as method and path without the query.
pub fn asked(asked: &Asked, beginning: &str) -> Vec<String> {
    let asked = asked.lock().unwrap();
    let lines = asked
        .iter()
        .map(|(line, _)| line.split('?').next().unwrap_or_default().to_owned());
    lines.filter(|line| line.starts_with(beginning)).collect()
}

/// The condition Ready of the status that was written last, as reason and message.
pub fn ready(asked: &Asked) -> (String, String) {
    let asked = asked.lock().unwrap();
    let (_, body) = asked
        .iter()
        .rev()
        .find(|(line, _)| line.contains("/status?"))
        .unwrap();
    let ready = &body["status"]["conditions"][0];
    assert_eq!(ready["type"], "Ready");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (text(&ready["reason"]), text(&ready["message"]))
}
