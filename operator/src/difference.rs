//! Whether an object has to be applied: it does where the cached one differs from the desired one.
//!
//! It differs where the hash in its annotation is another one, or where a field that we set is not as we set
//! it, which catches edits by hand. The API server writes quantities in another way than they were sent
//! (`1000m` of CPU as `1`), so these are compared by what they mean. Whatever else it rewrites is known by
//! the generation that the last request made.

use serde_json::Value;

use crate::{memory::Applied, quantity};

/// What the cache has of an object.
pub struct LiveView<'a> {
    /// The hash in its annotation.
    pub hash: Option<&'a str>,
    /// Its identity.
    pub uid: &'a str,
    /// Its generation.
    pub generation: i64,
    /// All of it, as JSON.
    pub object: Value,
}

/// Whether to apply `desired`, whose hash is `hash`, where the cache has `live` and `last` is remembered.
#[must_use]
pub fn is_needed(hash: &str, desired: &Value, live: Option<&LiveView<'_>>, last: Option<&Applied>) -> bool {
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
    use std::time::Instant;

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
