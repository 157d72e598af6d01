//! Golden files: what was built, as YAML, beside what is expected of it.

use std::path::Path;

use serde::Serialize;

use crate::context::{Namespaces, Settings, Timing};

/// Settings whose values are easily found in a golden file.
pub fn settings() -> Settings {
    Settings {
        poller_image: "registry.example/corrente-poller:1".to_owned(),
        pipeline_image: "registry.example/corrente-pipeline:1".to_owned(),
        image_pull_policy: "IfNotPresent".to_owned(),
        namespaces: Namespaces::All,
        class: String::new(),
        worker_port: corrente_runtime::http::PORT,
        timing: Timing::default(),
    }
}

/// Compares objects with `tests/golden/<name>.yaml`. With `CORRENTE_GOLDEN=write` the file is written
/// instead, to be looked at and committed.
pub fn check<T: Serialize>(name: &str, objects: &[T]) {
    let documents: Vec<String> = objects
        .iter()
        .map(|object| serde_saphyr::to_string(object).unwrap())
        .collect();
    let built = documents.join("---\n");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.yaml"));
    if std::env::var("CORRENTE_GOLDEN").is_ok_and(|mode| mode == "write") {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, &built).unwrap();
    }
    let expected = std::fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(
        built, expected,
        "{name} differs; look at it, then write it with CORRENTE_GOLDEN=write"
    );
}
