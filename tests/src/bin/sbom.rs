//! sbom PACKAGE TARGET FILE: writes what a program is made of, as CycloneDX.

use std::path::Path;

use anyhow::{Context, Result, bail};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [package, target, file] = args.as_slice() else { bail!("usage: sbom PACKAGE TARGET FILE") };
    let bom = sockpath_tests::sbom::of(Path::new("."), package, target)?;
    std::fs::write(file, serde_json::to_string_pretty(&bom)? + "\n").with_context(|| format!("cannot write {file}"))
}
