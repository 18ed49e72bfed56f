//! Compiles each BPF object and generates its skeleton.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use libbpf_cargo::SkeletonBuilder;

mod shipping;

/// The objects: one for each mode, made of one small file for each subject.
const OBJECTS: &[&str] = &["trace", "accel", "short"];

fn main() -> Result<()> {
    let out = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set")?);
    let test_switches = env::var_os("CARGO_FEATURE_TEST_SWITCHES").is_some();
    if test_switches && let Some(why) = shipping::refusal(&out) {
        bail!("{why}");
    }
    println!("cargo:rerun-if-changed=src");
    println!("cargo:rerun-if-changed=include");
    println!("cargo:rerun-if-env-changed=CLANG");
    let mut builder_args: Vec<&OsStr> = vec![OsStr::new("-I"), OsStr::new("include"), OsStr::new("-I"), OsStr::new("src")];
    builder_args.extend(["-Wall", "-Werror", "-Wno-unused-function", "-std=gnu11", "-mcpu=v3"].map(OsStr::new));
    // Lines of BTF name their source; its absolute path would make each build different.
    let mut prefix = OsString::from("-ffile-prefix-map=");
    prefix.push(env::var_os("CARGO_MANIFEST_DIR").context("CARGO_MANIFEST_DIR is not set")?);
    prefix.push("=bpf");
    builder_args.push(&prefix);
    if test_switches {
        builder_args.push(OsStr::new("-DSOCKPATH_TEST_SWITCHES"));
    }
    for name in OBJECTS {
        let mut builder = SkeletonBuilder::new();
        if let Some(clang) = clang() {
            builder.clang(clang);
        }
        builder
            .source(format!("src/{name}.bpf.c"))
            .clang_args(&builder_args)
            .reference_obj(true)
            .build_and_generate(out.join(format!("{name}.skel.rs")))
            .with_context(|| format!("cannot build the BPF object {name}"))?;
    }
    Ok(())
}

/// Debian names its compilers by version; `CLANG` overrides.
fn clang() -> Option<PathBuf> {
    if let Some(c) = env::var_os("CLANG") {
        return Some(c.into());
    }
    ["/usr/bin/clang-19", "/usr/bin/clang-16", "/usr/bin/clang"].into_iter().map(PathBuf::from).find(|p| p.exists())
}
