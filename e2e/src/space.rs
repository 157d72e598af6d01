//! A namespace of a scenario's own.

use std::{fmt::Debug, time::Duration};

use anyhow::{Context, Result};
use k8s_openapi::{
    api::core::v1::{Namespace, Pod},
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

use crate::{
    stack::Stack,
    wait::{seconds, until},
};

/// Who applies, to the API server.
const MANAGER: &str = "scenario";

/// A namespace, and what a scenario does in it.
pub struct Space {
    /// The stack it is on.
    pub stack: Stack,
    /// The namespace's name.
    pub name: String,
}

impl Space {
    /// A fresh namespace; one that an earlier run left behind is removed first.
    ///
    /// # Errors
    /// Where the API server refuses.
    pub async fn create(stack: &Stack, scenario: &str) -> Result<Self> {
        let space = Self {
            stack: stack.clone(),
            name: format!("e2e-{scenario}"),
        };
        space.delete().await?;
        let namespace = Namespace {
            metadata: ObjectMeta {
                name: Some(space.name.clone()),
                // What the platform team of a careful site demands of every pod.
                labels: Some(
                    [(
                        "pod-security.kubernetes.io/enforce".to_owned(),
                        "restricted".to_owned(),
                    )]
                    .into(),
                ),
                ..ObjectMeta::default()
            },
            ..Namespace::default()
        };
        Api::all(stack.client.clone())
            .create(&PostParams::default(), &namespace)
            .await?;
        Ok(space)
    }

    /// Deletes the namespace and waits until it and all in it are gone.
    ///
    /// # Errors
    /// Where it does not go.
    pub async fn delete(&self) -> Result<()> {
        let api: Api<Namespace> = Api::all(self.stack.client.clone());
        if api.get_opt(&self.name).await?.is_some() {
            api.delete(&self.name, &DeleteParams::default()).await?;
        }
        until("the namespace to go", seconds(90), || async {
            match api.get_opt(&self.name).await {
                Ok(None) => Ok(()),
                Ok(Some(left)) => Err(format!("{:?}", left.status)),
                Err(error) => Err(error.to_string()),
            }
        })
        .await
    }

    /// The namespace's objects of a kind.
    #[must_use]
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.stack.client.clone(), &self.name)
    }

    /// Creates or changes an object, as `kubectl apply` does.
    ///
    /// # Errors
    /// Where the API server refuses.
    pub async fn apply<K>(&self, object: &K) -> Result<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Serialize
            + DeserializeOwned
            + Clone
            + Debug,
    {
        let params = PatchParams::apply(MANAGER).force().validation_strict();
        self.api::<K>()
            .patch(&object.name_any(), &params, &Patch::Apply(object))
            .await
            .with_context(|| format!("failed to apply {} {}", K::kind(&()), object.name_any()))
    }

    /// Changes a part of an object's spec.
    ///
    /// # Errors
    /// Where the API server refuses.
    pub async fn change<K>(&self, name: &str, spec: serde_json::Value) -> Result<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + DeserializeOwned
            + Clone
            + Debug,
    {
        let patch = Patch::Merge(json!({"spec": spec}));
        Ok(self
            .api::<K>()
            .patch(name, &PatchParams::default(), &patch)
            .await?)
    }

    /// Scales a resource with `kubectl scale`.
    ///
    /// # Errors
    /// Where kubectl fails.
    pub async fn scale(&self, resource: &str, replicas: u32) -> Result<()> {
        let replicas = format!("--replicas={replicas}");
        self.stack
            .kubectl(&["-n", &self.name, "scale", resource, &replicas])
            .await
            .map(drop)
    }

    /// Waits until the condition of a type of an object is as wanted, and returns it.
    ///
    /// # Errors
    /// Where that does not come within `limit`.
    pub async fn condition<K>(
        &self,
        name: &str,
        kind: &str,
        limit: Duration,
        wanted: impl Fn(&Condition) -> bool,
    ) -> Result<Condition>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Serialize
            + DeserializeOwned
            + Clone
            + Debug,
    {
        let api = self.api::<K>();
        let what = format!("the condition {kind} of {} {name}", K::kind(&()));
        until(&what, limit, || async {
            let object = api.get(name).await.map_err(|error| error.to_string())?;
            let object = serde_json::to_value(&object).map_err(|error| error.to_string())?;
            let conditions = &object["status"]["conditions"];
            serde_json::from_value::<Vec<Condition>>(conditions.clone())
                .unwrap_or_default()
                .into_iter()
                .find(|condition| condition.type_ == kind && wanted(condition))
                .ok_or_else(|| conditions.to_string())
        })
        .await
    }

    /// The pods that a selector names.
    ///
    /// # Errors
    /// Where the API server does not answer.
    pub async fn pods(&self, selector: &str) -> Result<Vec<Pod>> {
        Ok(self
            .api::<Pod>()
            .list(&ListParams::default().labels(selector))
            .await?
            .items)
    }

    /// The pods that a selector names, once there are exactly `count` and all are ready.
    ///
    /// # Errors
    /// Where that does not come.
    pub async fn ready_pods(&self, selector: &str, count: usize) -> Result<Vec<Pod>> {
        until(
            &format!("{count} ready pods of {selector}"),
            seconds(90),
            || async {
                let pods = self.pods(selector).await.map_err(|error| error.to_string())?;
                if pods.len() == count && pods.iter().all(is_ready) {
                    Ok(pods)
                } else {
                    Err(format!("{:?}", pods.iter().map(describe).collect::<Vec<_>>()))
                }
            },
        )
        .await
    }

    /// Waits until there is no pod that a selector names.
    ///
    /// # Errors
    /// Where one stays.
    pub async fn no_pods(&self, selector: &str) -> Result<()> {
        until(&format!("the pods of {selector} to end"), seconds(60), || async {
            match self.pods(selector).await {
                Ok(pods) if pods.is_empty() => Ok(()),
                Ok(pods) => Err(pods.iter().map(describe).collect()),
                Err(error) => Err(vec![error.to_string()]),
            }
        })
        .await
    }

    /// Ends the only pod of a selector with SIGKILL, and waits until it was restarted and is ready.
    ///
    /// # Errors
    /// Where it does not come back.
    pub async fn crash(&self, selector: &str) -> Result<()> {
        let before = self.ready_pods(selector, 1).await?;
        self.stack.kill_9(&before[0]).await?;
        until(&format!("{selector} to be restarted"), seconds(60), || async {
            let pods = self.pods(selector).await.map_err(|error| error.to_string())?;
            match pods.iter().find(|pod| pod.name_any() == before[0].name_any()) {
                Some(pod) if restarts(pod) > restarts(&before[0]) => Ok(()),
                pod => Err(format!("{:?}", pod.map(restarts))),
            }
        })
        .await?;
        self.ready_pods(selector, 1).await.map(drop)
    }
}

/// How often the containers of a pod were restarted.
fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_ref());
    statuses.into_iter().flatten().map(|c| c.restart_count).sum()
}

/// Whether a pod is ready and stays.
#[must_use]
pub fn is_ready(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none()
        && pod
            .status
            .iter()
            .flat_map(|s| s.conditions.iter().flatten())
            .any(|c| c.type_ == "Ready" && c.status == "True")
}

/// A pod in a few words, for an error.
#[must_use]
pub fn describe(pod: &Pod) -> String {
    let status = pod.status.as_ref();
    let not: Vec<_> = status
        .into_iter()
        .flat_map(|s| s.conditions.iter().flatten())
        .filter(|c| c.status != "True")
        .map(|c| format!("not {}: {}", c.type_, c.reason.as_deref().unwrap_or_default()))
        .collect();
    format!(
        "{} {} on {} {}{not:?}",
        pod.name_any(),
        status.and_then(|s| s.phase.as_deref()).unwrap_or("unknown"),
        pod.spec
            .as_ref()
            .and_then(|s| s.node_name.as_deref())
            .unwrap_or("no node"),
        if pod.metadata.deletion_timestamp.is_some() {
            "terminating "
        } else {
            ""
        },
    )
}
