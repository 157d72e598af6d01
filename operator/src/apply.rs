//! What was built becomes what the cluster has: ConfigMaps first, then the Deployments that name them.
//!
//! A request is made only where the cached object differs from the desired one ([`crate::difference`]), so
//! that an idle cluster sees none.

use std::time::{Duration, Instant};

use k8s_openapi::api::{apps::v1::Deployment, core::v1::ConfigMap};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams, PostParams},
    core::PartialObjectMeta,
};
use serde_json::{Value, json};

use crate::{
    difference::{LiveView, is_needed},
    events,
    memory::{Applied, Memory, ObjectKey},
    naming,
    vocabulary::{OPERATOR, annotations},
};

/// How long after an object was applied the same is not applied again over what somebody else made of it.
const TRUCE: Duration = Duration::from_secs(5);

/// Why something could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused it or did not answer.
    #[error("failed to {verb} {kind} {name}")]
    Send {
        /// What was tried.
        verb: &'static str,
        /// The object's kind.
        kind: &'static str,
        /// The object's name.
        name: String,
        /// Why.
        source: kube::Error,
    },
    /// The name belongs to an object that is not ours.
    #[error(
        "{kind} {name} is needed, but there is one of that name which does not belong to this resource; \
         delete it, or give this resource another name"
    )]
    NameTaken {
        /// The object's kind.
        kind: &'static str,
        /// The object's name.
        name: String,
    },
    /// Somebody else keeps changing the object.
    #[error(
        "{kind} {name} was changed by somebody else right after it was applied; should two operators run in this \
         cluster, give each a class of its own"
    )]
    Contested {
        /// The object's kind.
        kind: &'static str,
        /// The object's name.
        name: String,
    },
    /// The object cannot be written as JSON.
    #[error("failed to write {kind} {name} as JSON")]
    Encode {
        /// The object's kind.
        kind: &'static str,
        /// The object's name.
        name: String,
        /// Why.
        source: serde_json::Error,
    },
}

impl Error {
    /// The category for metrics.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            Self::Send { .. } => "apply",
            Self::NameTaken { .. } => "name_taken",
            Self::Contested { .. } => "contested",
            Self::Encode { .. } => "encode",
        }
    }

    /// Whether the API server understood the request and does not take it: a quota, a policy, a right that
    /// is missing, a value that is not allowed. The owner is to know, since trying again may not help.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Send {
                source: kube::Error::Api(status),
                ..
            } => matches!(status.code, 400 | 403 | 422) && !events::is_namespace_ending(self),
            _ => false,
        }
    }
}

/// Applies what belongs to one resource.
pub struct Applier<'a> {
    /// The client.
    pub client: &'a Client,
    /// What was applied before.
    pub memory: &'a Memory,
    /// The resource's namespace.
    pub namespace: &'a str,
    /// The resource's uid.
    pub owner: &'a str,
}

impl Applier<'_> {
    /// Makes a ConfigMap where there is none of its name; its name says its content, which never changes.
    /// `true` where it was made.
    ///
    /// # Errors
    /// Where the API server refuses, or the name is taken.
    pub async fn config_map(
        &self,
        desired: &ConfigMap,
        live: &[std::sync::Arc<PartialObjectMeta<ConfigMap>>],
    ) -> Result<bool, Error> {
        const KIND: &str = "ConfigMap";
        let name = desired.name_any();
        let key = self.key(KIND, &name);
        if live.iter().any(|live| live.name_any() == name) || self.was_just_applied(&key, "") {
            return Ok(false);
        }
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), self.namespace);
        let params = PostParams {
            field_manager: Some(OPERATOR.to_owned()),
            ..PostParams::default()
        };
        crate::telemetry::write(KIND, "create");
        let made = match api.create(&params, desired).await {
            Ok(made) => made.metadata,
            Err(kube::Error::Api(status)) if status.code == 409 => {
                // Made by us, and not in the cache yet; or by somebody else.
                let found = api
                    .get_metadata(&name)
                    .await
                    .map_err(|source| send("read", KIND, &name, source))?;
                if !self.is_ours(&found) {
                    return Err(Error::NameTaken { kind: KIND, name });
                }
                found.metadata
            }
            Err(source) => return Err(send("create", KIND, &name, source)),
        };
        self.remember(key, String::new(), made.uid, made.generation);
        Ok(true)
    }

    /// Whether [`Self::deployment`] would change what is there; `false` where there is none.
    ///
    /// # Errors
    /// Where the Deployment cannot be written as JSON.
    pub fn would_change(&self, desired: &Deployment, live: Option<&Deployment>) -> Result<bool, Error> {
        const KIND: &str = "Deployment";
        let Some(live) = live else { return Ok(false) };
        let name = desired.name_any();
        let (desired, hash) = stamped(desired.clone(), KIND)?;
        let remembered = self.memory.applied.lock().get(&self.key(KIND, &name)).cloned();
        let live = view(live, KIND)?;
        Ok(is_needed(&hash, &desired, Some(&live), remembered.as_ref()))
    }

    /// Applies a Deployment where the cached one differs. `true` where that changed it.
    ///
    /// # Errors
    /// Where the API server refuses, or the name is taken.
    pub async fn deployment(&self, desired: Deployment, live: Option<&Deployment>) -> Result<bool, Error> {
        const KIND: &str = "Deployment";
        let name = desired.name_any();
        let (desired, hash) = stamped(desired, KIND)?;
        let key = self.key(KIND, &name);
        let remembered = self.memory.applied.lock().get(&key).cloned();
        let live_view = live.map(|live| view(live, KIND)).transpose()?;
        if !is_needed(&hash, &desired, live_view.as_ref(), remembered.as_ref()) {
            return Ok(false);
        }
        // Whoever undoes an edit at once may be undone at once, for ever: the second time can wait.
        if live.is_some() && remembered.is_some_and(|last| last.hash == hash && last.at.elapsed() < TRUCE) {
            return Err(Error::Contested { kind: KIND, name });
        }
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), self.namespace);
        if live.is_none() {
            // Applying would take a stranger's object over without a word.
            let found = api
                .get_metadata_opt(&name)
                .await
                .map_err(|source| send("read", KIND, &name, source))?;
            if found.is_some_and(|found| !self.is_ours(&found)) {
                return Err(Error::NameTaken { kind: KIND, name });
            }
        }
        crate::telemetry::write(KIND, "apply");
        let params = PatchParams::apply(OPERATOR).force();
        let applied = api.patch(&name, &params, &Patch::Apply(&desired)).await;
        let applied = applied
            .map_err(|source| send("apply", KIND, &name, source))?
            .metadata;
        let changed = live.is_none_or(|live| live.metadata.generation != applied.generation);
        self.remember(key, hash, applied.uid, applied.generation);
        Ok(changed)
    }

    fn key(&self, kind: &'static str, name: &str) -> ObjectKey {
        (kind, self.namespace.to_owned(), name.to_owned())
    }

    fn is_ours(&self, object: &impl Resource) -> bool {
        object
            .owner_references()
            .iter()
            .any(|reference| reference.uid == self.owner)
    }

    fn was_just_applied(&self, key: &ObjectKey, hash: &str) -> bool {
        self.memory
            .applied
            .lock()
            .get(key)
            .is_some_and(|applied| applied.hash == hash && applied.is_recent())
    }

    fn remember(&self, key: ObjectKey, hash: String, uid: Option<String>, generation: Option<i64>) {
        let applied = Applied {
            hash,
            uid: uid.unwrap_or_default(),
            generation: generation.unwrap_or_default(),
            at: Instant::now(),
        };
        self.memory.applied.lock().insert(key, applied);
    }
}

/// Scales Deployments to nothing as they are, without a look at what else their resource says.
///
/// # Errors
/// Where the API server refuses; the others are scaled all the same.
pub async fn suspend(
    client: &Client,
    memory: &Memory,
    namespace: &str,
    deployments: &[std::sync::Arc<Deployment>],
) -> Result<(), Error> {
    const KIND: &str = "Deployment";
    let api: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let params = PatchParams {
        field_manager: Some(OPERATOR.to_owned()),
        ..PatchParams::default()
    };
    let none = Patch::Merge(json!({"spec": {"replicas": 0}}));
    let mut failed = None;
    for live in deployments {
        if live.spec.as_ref().and_then(|spec| spec.replicas) == Some(0) {
            continue;
        }
        let name = live.name_any();
        crate::telemetry::write(KIND, "patch");
        match api.patch(&name, &params, &none).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(source) => failed = failed.or(Some(send("scale", KIND, &name, source))),
        }
        // It is no longer what was applied, and may be applied again at once.
        let key = (KIND, namespace.to_owned(), name);
        memory.applied.lock().remove(&key);
    }
    failed.map_or(Ok(()), Err)
}

fn send(verb: &'static str, kind: &'static str, name: &str, source: kube::Error) -> Error {
    Error::Send {
        verb,
        kind,
        name: name.to_owned(),
        source,
    }
}

fn encode(kind: &'static str, name: &str, source: serde_json::Error) -> Error {
    Error::Encode {
        kind,
        name: name.to_owned(),
        source,
    }
}

fn view<'a>(live: &'a Deployment, kind: &'static str) -> Result<LiveView<'a>, Error> {
    Ok(LiveView {
        hash: live.annotations().get(annotations::APPLIED).map(String::as_str),
        uid: live.metadata.uid.as_deref().unwrap_or_default(),
        generation: live.metadata.generation.unwrap_or_default(),
        object: serde_json::to_value(live).map_err(|source| encode(kind, &live.name_any(), source))?,
    })
}

/// The object as JSON, with the hash of itself as an annotation, and that hash.
fn stamped(desired: Deployment, kind: &'static str) -> Result<(Value, String), Error> {
    let name = desired.name_any();
    let mut value = serde_json::to_value(&desired).map_err(|source| encode(kind, &name, source))?;
    let hash = naming::content_hash(&value.to_string());
    if let Some(Value::Object(metadata)) = value.get_mut("metadata") {
        let annotations = metadata
            .entry("annotations")
            .or_insert_with(|| Value::Object(serde_json::Map::new()));
        if let Value::Object(annotations) = annotations {
            annotations.insert(annotations::APPLIED.to_owned(), Value::String(hash.clone()));
        }
    }
    Ok((value, hash))
}
