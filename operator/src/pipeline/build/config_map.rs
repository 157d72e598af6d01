//! The pipeline's ConfigMap: its file, immutable, under a name that says what is in it.

use corrente_config::pipeline::FILE;
use k8s_openapi::api::core::v1::ConfigMap;

use crate::{pipeline::validate::ValidatedPipeline, pods};

/// Builds the ConfigMap.
#[must_use]
pub fn build(pipeline: &ValidatedPipeline) -> ConfigMap {
    ConfigMap {
        metadata: pods::metadata(
            pipeline.revision.as_str(),
            &pipeline.key.namespace,
            super::all_labels(pipeline),
            &pipeline.owner,
        ),
        immutable: Some(true),
        data: Some([(FILE.to_owned(), pipeline.file.clone())].into()),
        ..Default::default()
    }
}
