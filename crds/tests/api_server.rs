//! A real API server accepts the CRDs, and gives the verdicts of the table.
//!
//! It needs one, so it is not run by default: set `CORRENTE_TEST_KUBECONFIG` to the path of a kubeconfig.
//! Every document is created as a dry run. The CRDs stay: other tests may be at work with them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests may fail as loudly as the tests themselves"
)]

use std::time::Duration;

use corrente_crds::cases;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client, Config, Resource,
    api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams, Request},
    config::{KubeConfigOptions, Kubeconfig},
    core::GroupVersionKind,
    runtime::wait::{await_condition, conditions::is_crd_established},
};

async fn client() -> Client {
    let path = std::env::var("CORRENTE_TEST_KUBECONFIG").expect("CORRENTE_TEST_KUBECONFIG is not set");
    let kubeconfig = Kubeconfig::read_from(&path).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .unwrap();
    Client::try_from(config).unwrap()
}

#[tokio::test]
#[ignore = "needs an API server: set CORRENTE_TEST_KUBECONFIG"]
async fn the_api_server_gives_the_verdicts_of_the_table() {
    let client = client().await;
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    for crd in corrente_crds::all() {
        let name = crd.metadata.name.clone().unwrap();
        let params = PatchParams::apply("corrente-test").force();
        if let Err(error) = crds.patch(&name, &params, &Patch::Apply(&crd)).await {
            panic!("{name}: {error}");
        }
        let established = await_condition(crds.clone(), &name, is_crd_established());
        tokio::time::timeout(Duration::from_secs(60), established)
            .await
            .expect("the CRD was not established within a minute")
            .unwrap();
    }
    let wrong = verdicts(&client).await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The cases in which the API server does not say what the table says.
async fn verdicts(client: &Client) -> Vec<String> {
    let mut wrong = Vec::new();
    for case in cases::all().unwrap() {
        let object: DynamicObject = serde_json::from_value(case.document.clone()).unwrap();
        let types = object.types.as_ref().unwrap();
        let gvk = GroupVersionKind::try_from(types).unwrap();
        let resource = ApiResource::from_gvk(&gvk);
        let url = DynamicObject::url_path(&resource, object.metadata.namespace.as_deref());
        let params = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        let body = serde_json::to_vec(&case.document).unwrap();
        let mut request = Request::new(url).create(&params, body).unwrap();
        // kube's PostParams do not know it; without it the server drops unknown fields silently.
        let strict = format!("{}&fieldValidation=Strict", request.uri());
        *request.uri_mut() = strict.parse().unwrap();
        let answer = client.request::<DynamicObject>(request).await;
        match (&case.refused, answer) {
            (None, Ok(_)) => {}
            (None, Err(error)) => wrong.push(format!("{}: refused: {error}", case.name)),
            (Some(_), Ok(_)) => wrong.push(format!("{}: accepted", case.name)),
            (Some(refusal), Err(error)) => {
                let text = error.to_string();
                if !text.contains(&refusal.at) || !text.contains(&refusal.says) {
                    wrong.push(format!("{}: refused for another reason: {text}", case.name));
                }
            }
        }
    }
    wrong
}
