//! Writes the CRD YAML and the chart's templates that are generated from the types.

use std::{fs, path::Path};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for file in corrente_crds::generate::files()? {
        let path = root.join(&file.path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&path, &file.content).map_err(|e| format!("failed to write {}: {e}", file.path))?;
        println!("{}", file.path);
    }
    Ok(())
}
