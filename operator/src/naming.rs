//! Names: what is made for a resource is called after it, within the lengths that Kubernetes allows.
//!
//! A resource's name may have 253 characters, a label's value 63. Where a name has to be cut, a hash of
//! the whole takes the place of the rest, so that two long names never meet.

use corrente_config::hash;

/// Most characters of a label's value, and of a Deployment's name here: its pods' names are cut to this.
pub const LABEL: usize = 63;
/// Most characters of an object's name.
pub const OBJECT: usize = 253;
/// Characters of a hash that stands for the cut part of a name.
const CUT_HASH: usize = 8;

/// A ConfigMap's name, which says which revision of its content it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(String);

impl Revision {
    /// The name of a shard's ConfigMap with this content: `<name>-<shard>-<hash>`.
    #[must_use]
    pub fn of_shard(name: &str, shard: i32, content: &str) -> Self {
        Self(bounded(
            name,
            &format!("-{shard}-{}", content_hash(content)),
            OBJECT,
        ))
    }

    /// The name of a pipeline's ConfigMap with this content: `<name>-pipeline-<hash>`.
    #[must_use]
    pub fn of_pipeline(name: &str, content: &str) -> Self {
        Self(bounded(
            name,
            &format!("-pipeline-{}", content_hash(content)),
            OBJECT,
        ))
    }

    /// The ConfigMap's name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name of a shard's Deployment: `<name>-<shard>`.
#[must_use]
pub fn shard_deployment(name: &str, shard: i32) -> String {
    bounded(name, &format!("-{shard}"), LABEL)
}

/// The name of a pipeline's Deployment: `<name>-pipeline`, which no shard's name can be.
#[must_use]
pub fn pipeline_deployment(name: &str) -> String {
    bounded(name, "-pipeline", LABEL)
}

/// A resource's name as a label's value.
#[must_use]
pub fn label_value(name: &str) -> String {
    bounded(name, "", LABEL)
}

/// `name` and `suffix`, in at most `most` characters: a name that does not fit is cut, and a hash of all
/// of it put where it was cut. Names are ASCII: the API server allows nothing else.
fn bounded(name: &str, suffix: &str, most: usize) -> String {
    if name.len() + suffix.len() <= most {
        return format!("{name}{suffix}");
    }
    let room = most.saturating_sub(suffix.len() + CUT_HASH + 1);
    let kept: String = name.chars().take(room).collect();
    // A cut may leave a dot at the end, which may not stand before a dash.
    let kept = kept.trim_end_matches(['.', '-']);
    format!("{kept}-{}{suffix}", &content_hash(name)[..CUT_HASH])
}

/// The hash of a text: the one of configurations everywhere in Corrente.
#[must_use]
pub fn content_hash(text: &str) -> String {
    hash::of_bytes(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn short_names_stay_readable() {
        assert_eq!(shard_deployment("site-a", 3), "site-a-3");
        assert_eq!(pipeline_deployment("store"), "store-pipeline");
        assert_eq!(label_value("site-a"), "site-a");
        let revision = Revision::of_shard("site-a", 0, "{}");
        assert_eq!(revision.as_str(), format!("site-a-0-{}", content_hash("{}")));
        let revision = Revision::of_pipeline("store", "{}");
        assert_eq!(
            revision.as_str(),
            format!("store-pipeline-{}", content_hash("{}"))
        );
    }

    #[test]
    fn long_names_are_cut_and_stay_apart() {
        let one = "a".repeat(252) + "1";
        let two = "a".repeat(252) + "2";
        assert_ne!(label_value(&one), label_value(&two));
        assert_ne!(shard_deployment(&one, 0), shard_deployment(&two, 0));
        assert_ne!(shard_deployment(&one, 0), shard_deployment(&one, 1));
        let dotted = "a".repeat(51) + ".b" + &"c".repeat(100);
        assert!(
            !shard_deployment(&dotted, 0).contains(".-"),
            "{}",
            shard_deployment(&dotted, 0)
        );
    }

    #[test]
    fn other_content_is_another_revision() {
        assert_ne!(Revision::of_shard("a", 0, "x"), Revision::of_shard("a", 0, "y"));
        assert_eq!(Revision::of_shard("a", 0, "x"), Revision::of_shard("a", 0, "x"));
    }

    proptest! {
        #[test]
        fn every_name_is_one_the_api_server_takes(
            name in "[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?",
            shard in 0..64i32,
        ) {
            let names = [
                (shard_deployment(&name, shard), LABEL),
                (pipeline_deployment(&name), LABEL),
                (label_value(&name), LABEL),
                (Revision::of_shard(&name, shard, "x").0, OBJECT),
                (Revision::of_pipeline(&name, "x").0, OBJECT),
            ];
            for (made, most) in names {
                prop_assert!(made.len() <= most, "{made}");
                let alphanumeric = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
                prop_assert!(alphanumeric(made.chars().next()) && alphanumeric(made.chars().last()), "{made}");
                prop_assert!(!made.contains(".-") || name.contains(".-"), "{made}");
            }
        }
    }
}
