//! A shard's ConfigMap: its file, immutable, under a name that says what is in it.

use corrente_config::poller::FILE;
use k8s_openapi::api::core::v1::ConfigMap;

use crate::{
    pods,
    poller::validate::{ValidatedPoller, ValidatedShard},
};

/// Builds the ConfigMap of a shard.
#[must_use]
pub fn build(poller: &ValidatedPoller, shard: &ValidatedShard) -> ConfigMap {
    ConfigMap {
        metadata: pods::metadata(
            shard.revision.as_str(),
            &poller.key.namespace,
            super::shard_labels(poller, shard.index),
            &poller.owner,
        ),
        immutable: Some(true),
        data: Some([(FILE.to_owned(), shard.file.clone())].into()),
        ..Default::default()
    }
}
