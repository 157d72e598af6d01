//! What was built becomes what the cluster has: ConfigMaps first, then the Deployments that name them.
//!
//! A request is made only where the cached object differs from the desired one, so that an idle cluster
//! sees none. It differs where the hash in its annotation is another one, or where a field that we set is
//! not as we set it, which catches edits by hand. The API server writes quantities in another way than they
//! were sent (`1000m` of CPU as `1`), so these are compared by what they mean. Whatever else it rewrites is
//! known by the generation that the last request made.

use std::time::Instant;

use k8s_openapi::api::{apps::v1::Deployment, core::v1::ConfigMap};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams, PostParams},
    core::PartialObjectMeta,
};
use serde_json::Value;

use crate::{
    memory::{Applied, Memory, ObjectKey},
    naming, quantity,
    vocabulary::{OPERATOR, annotations},
};

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
            Self::Encode { .. } => "encode",
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
        let live_view = match live {
            Some(live) => Some(LiveView {
                hash: live.annotations().get(annotations::APPLIED).map(String::as_str),
                uid: live.metadata.uid.as_deref().unwrap_or_default(),
                generation: live.metadata.generation.unwrap_or_default(),
                object: serde_json::to_value(live).map_err(|source| encode(KIND, &name, source))?,
            }),
            None => None,
        };
        if !is_needed(&hash, &desired, live_view.as_ref(), remembered.as_ref()) {
            return Ok(false);
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

/// What the cache has of an object.
struct LiveView<'a> {
    hash: Option<&'a str>,
    uid: &'a str,
    generation: i64,
    object: Value,
}

fn is_needed(hash: &str, desired: &Value, live: Option<&LiveView<'_>>, last: Option<&Applied>) -> bool {
    let last = last.filter(|last| last.hash == hash);
    match (live, last) {
        // Applied a moment ago, and not in the cache yet.
        (None, Some(last)) => !last.is_recent(),
        (None, None) => true,
        // What the API server made of this very request, or the cache is still behind it.
        (Some(live), Some(last)) if live.uid == last.uid && live.generation <= last.generation => false,
        (Some(live), _) => live.hash != Some(hash) || !has(&live.object, desired),
    }
}

/// Whether every field of `desired` is in `live` with the same value; `live` may have more fields.
fn has(live: &Value, desired: &Value) -> bool {
    match (live, desired) {
        (Value::Object(live), Value::Object(desired)) => desired.iter().all(|(key, desired)| {
            live.get(key).is_some_and(|live| match key.as_str() {
                "requests" | "limits" => same_amounts(live, desired),
                _ => has(live, desired),
            })
        }),
        (Value::Array(live), Value::Array(desired)) => {
            live.len() == desired.len() && live.iter().zip(desired).all(|(live, desired)| has(live, desired))
        }
        (live, desired) => live == desired,
    }
}

/// Whether two lists of resources, by name, are the same amounts.
fn same_amounts(live: &Value, desired: &Value) -> bool {
    let (Value::Object(live), Value::Object(desired)) = (live, desired) else {
        return live == desired;
    };
    desired.iter().all(
        |(name, desired)| match (live.get(name).and_then(Value::as_str), desired.as_str()) {
            (Some(live), Some(desired)) => quantity::same(live, desired),
            _ => false,
        },
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn applied(hash: &str, generation: i64) -> Applied {
        Applied {
            hash: hash.into(),
            uid: "u".into(),
            generation,
            at: Instant::now(),
        }
    }

    fn live(hash: &str, generation: i64, object: Value) -> LiveView<'_> {
        LiveView {
            hash: Some(hash),
            uid: "u",
            generation,
            object,
        }
    }

    #[test]
    fn a_request_is_made_only_where_something_differs() {
        let desired = json!({"spec": {"replicas": 1, "list": [{"name": "a"}]}});
        let same = json!({"spec": {"replicas": 1, "list": [{"name": "a", "defaulted": true}], "more": 2}});
        let scaled = json!({"spec": {"replicas": 3, "list": [{"name": "a"}]}});
        let table = [
            ("nothing there", None, None, true),
            ("applied, and not seen yet", None, Some(applied("h", 1)), false),
            (
                "another one applied, none seen yet",
                None,
                Some(applied("other", 1)),
                true,
            ),
            (
                "as desired, after a restart",
                Some(live("h", 4, same.clone())),
                None,
                false,
            ),
            (
                "of another version",
                Some(live("old", 4, same.clone())),
                None,
                true,
            ),
            (
                "of another version, and the cache is behind",
                Some(live("old", 4, same.clone())),
                Some(applied("h", 5)),
                false,
            ),
            (
                "edited by hand",
                Some(live("h", 6, scaled.clone())),
                Some(applied("h", 5)),
                true,
            ),
            (
                "edited by hand, after a restart",
                Some(live("h", 6, scaled.clone())),
                None,
                true,
            ),
            (
                "written otherwise by the API server",
                Some(live("h", 5, scaled.clone())),
                Some(applied("h", 5)),
                false,
            ),
            (
                "edited where we say nothing",
                Some(live("h", 6, same)),
                Some(applied("h", 5)),
                false,
            ),
        ];
        for (what, live, last, needed) in table {
            assert_eq!(
                is_needed("h", &desired, live.as_ref(), last.as_ref()),
                needed,
                "{what}"
            );
        }
        let recreated = LiveView {
            hash: Some("h"),
            uid: "another",
            generation: 1,
            object: scaled,
        };
        assert!(
            is_needed("h", &desired, Some(&recreated), Some(&applied("h", 5))),
            "made anew by somebody"
        );
    }

    #[test]
    fn lists_are_compared_whole() {
        assert!(!has(&json!([1, 2]), &json!([1])));
        assert!(!has(
            &json!({"a": [{"n": 1}, {"n": 2}]}),
            &json!({"a": [{"n": 2}, {"n": 1}]})
        ));
        assert!(has(&json!({"a": {"b": 1, "c": 2}}), &json!({"a": {"b": 1}})));
        assert!(!has(&json!({}), &json!({"a": null})));
    }

    #[test]
    fn amounts_are_compared_by_what_they_mean() {
        let live = json!({"resources": {"requests": {"cpu": "1", "memory": "16Mi"}}, "text": "1"});
        assert!(has(
            &live,
            &json!({"resources": {"requests": {"cpu": "1000m", "memory": "16777216"}}})
        ));
        assert!(!has(&live, &json!({"resources": {"requests": {"cpu": "1001m"}}})));
        assert!(!has(&live, &json!({"resources": {"limits": {"cpu": "1"}}})));
        assert!(!has(&live, &json!({"text": "1000m"})));
    }
}
