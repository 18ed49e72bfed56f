//! The krew manifest: its fields by krew's own rules (internal/index/validation, cmd/validate-krew-manifest), and an installation from a
//! local archive in krew's steps.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Map, Value};

use super::{read, root};

/// Systems that krew knows (cmd/validate-krew-manifest).
const KNOWN: [(&str, &[&str]); 3] = [
    ("linux", &["386", "amd64", "arm", "arm64", "ppc64le"]),
    ("darwin", &["386", "amd64", "arm64"]),
    ("windows", &["386", "amd64", "arm64"]),
];

fn parsed(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// The keys of an object are these, with those of `may` at will: krew ignores what it does not know, so a typing error is silent there.
fn keys(object: &Value, must: &[&str], may: &[&str]) -> Result<(), String> {
    let object: &Map<String, Value> = object.as_object().ok_or("not an object")?;
    if let Some(unknown) = object.keys().find(|k| !must.contains(&k.as_str()) && !may.contains(&k.as_str())) {
        return Err(format!("unknown key {unknown}"));
    }
    match must.iter().find(|k| !object.contains_key(**k)) {
        Some(missing) => Err(format!("no {missing}")),
        None => Ok(()),
    }
}

/// Semantic version with a leading v.
fn is_version(text: &str) -> bool {
    let Some(rest) = text.strip_prefix('v') else { return false };
    let core = rest.split(['-', '+']).next().unwrap_or_default();
    let numbers: Vec<&str> = core.split('.').collect();
    numbers.len() == 3 && numbers.iter().all(|n| n.parse::<u32>().is_ok_and(|v| v.to_string() == *n))
}

/// What krew would refuse.
fn validate(manifest: &Value, name: &str) -> Result<(), String> {
    keys(manifest, &["apiVersion", "kind", "metadata", "spec"], &[])?;
    if manifest["apiVersion"] != "krew.googlecontainertools.github.com/v1alpha2" || manifest["kind"] != "Plugin" {
        return Err("not a Plugin of v1alpha2".to_owned());
    }
    let named = manifest["metadata"]["name"].as_str().ok_or("no name")?;
    if named != name || !named.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-') {
        return Err(format!("the file is {name}.yaml, the name {named}"));
    }
    let spec = &manifest["spec"];
    keys(spec, &["version", "shortDescription", "platforms"], &["homepage", "description", "caveats"])?;
    let short = spec["shortDescription"].as_str().ok_or("no shortDescription")?;
    if short.is_empty() || short.contains(['\n', '\r']) || short.chars().count() > 50 {
        return Err(format!("shortDescription `{short}`"));
    }
    let version = spec["version"].as_str().ok_or("no version")?;
    if !is_version(version) {
        return Err(format!("version `{version}`"));
    }
    let platforms = spec["platforms"].as_array().filter(|all| !all.is_empty()).ok_or("no platforms")?;
    let mut seen = BTreeSet::new();
    for platform in platforms {
        let selected = validate_platform(platform, version)?;
        if !seen.insert(selected.clone()) {
            return Err(format!("two platforms for {selected}"));
        }
    }
    Ok(())
}

fn validate_platform(platform: &Value, version: &str) -> Result<String, String> {
    // `files` is best left out: LICENSE and the binary are at the root of the archive.
    keys(platform, &["uri", "sha256", "bin", "selector"], &[])?;
    keys(&platform["selector"], &["matchLabels"], &[])?;
    keys(&platform["selector"]["matchLabels"], &["os", "arch"], &[])?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (os, arch) = (text(&platform["selector"]["matchLabels"]["os"]), text(&platform["selector"]["matchLabels"]["arch"]));
    if !KNOWN.iter().any(|(known, archs)| *known == os && archs.contains(&arch.as_str())) {
        return Err(format!("krew does not know {os}/{arch}"));
    }
    let sum = text(&platform["sha256"]);
    if sum.len() != 64 || !sum.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return Err(format!("sha256 `{sum}` of {os}/{arch}"));
    }
    let uri = text(&platform["uri"]);
    if !uri.starts_with("https://") || !uri.ends_with(&format!("/{version}/kubectl-sockpath-{os}-{arch}.tar.gz")) {
        return Err(format!("uri `{uri}` of {os}/{arch}, version {version}"));
    }
    let bin = if os == "windows" { "kubectl-sockpath.exe" } else { "kubectl-sockpath" };
    if platform["bin"] != bin {
        return Err(format!("bin `{}` of {os}/{arch}", platform["bin"]));
    }
    Ok(format!("{os}/{arch}"))
}

#[test]
fn the_manifest_is_valid_for_every_laptop() {
    let manifest = parsed(&read("krew.yaml"));
    validate(&manifest, "sockpath").unwrap();
    assert_eq!(manifest["spec"]["version"], concat!("v", env!("CARGO_PKG_VERSION")));
    let platforms = manifest["spec"]["platforms"].as_array().unwrap();
    for os in ["linux", "darwin", "windows"] {
        for arch in ["amd64", "arm64"] {
            let labels = serde_json::json!({"os": os, "arch": arch});
            assert!(platforms.iter().any(|p| p["selector"]["matchLabels"] == labels), "no platform for {os}/{arch}");
        }
    }
}

#[test]
fn the_validation_notices() {
    let good = parsed(&read("krew.yaml"));
    let changes: [(&str, Value); 9] = [
        ("/kind", "Plug".into()),
        ("/metadata/name", "other".into()),
        ("/spec/version", "0.1.0".into()),
        ("/spec/shortDescription", "two\nlines".into()),
        ("/spec/platforms/0/sha256", "ABC".into()),
        ("/spec/platforms/0/uri", "http://x/kubectl-sockpath-linux-amd64.tar.gz".into()),
        ("/spec/platforms/0/bin", "sockpath".into()),
        ("/spec/platforms/0/selector/matchLabels/arch", "amd128".into()),
        ("/spec/platforms/1/selector/matchLabels/arch", "amd64".into()),
    ];
    for (at, value) in changes {
        let mut wrong = good.clone();
        *wrong.pointer_mut(at).unwrap() = value;
        assert!(validate(&wrong, "sockpath").is_err(), "{at} is not checked");
    }
    let mut wrong = good;
    wrong["spec"]["platform"] = Value::Null;
    assert_eq!(validate(&wrong, "sockpath"), Err("unknown key platform".to_owned()));
}

/// A directory that is removed at the end.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("krew-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn run(command: &mut Command) -> Output {
    let out = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    out
}

/// `kubectl krew install --manifest=... --archive=...`: selects the platform, compares the checksum, unpacks, looks for LICENSE, links the
/// binary as kubectl-NAME, and the plugin runs by that link.
#[test]
#[cfg(target_os = "linux")]
fn it_installs_from_the_archive_of_a_release() {
    use std::os::unix::fs::symlink;

    let dir = Dir::new("install");
    let (archives, store, bin) = (dir.0.join("archives"), dir.0.join("store"), dir.0.join("bin"));
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let script = |name: &str| Command::new(root().join(".ci").join(name));
    run(script("archive").env("ARCHIVE_LEVEL", "1").args(["linux", arch]).arg(&archives).arg(env!("CARGO_BIN_EXE_kubectl-sockpath")));
    let out = run(script("krew-manifest").arg(&archives).arg("9.8.7-rc.1"));
    let omitted = String::from_utf8(out.stderr).unwrap();
    assert!(omitted.contains("omitted: kubectl-sockpath-windows-arm64.tar.gz"), "{omitted}");

    let manifest = parsed(&String::from_utf8(out.stdout).unwrap());
    validate(&manifest, "sockpath").unwrap();
    let [platform] = &manifest["spec"]["platforms"].as_array().unwrap()[..] else { panic!("one platform was built: {manifest:#}") };
    assert_eq!(platform["selector"]["matchLabels"], serde_json::json!({"os": "linux", "arch": arch}));
    let archive = archives.join(platform["uri"].as_str().unwrap().rsplit('/').next().unwrap());
    let sum = String::from_utf8(run(Command::new("sha256sum").arg(&archive)).stdout).unwrap();
    assert_eq!(sum.split(' ').next(), platform["sha256"].as_str());

    fs::create_dir_all(&store).unwrap();
    fs::create_dir_all(&bin).unwrap();
    run(Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(&store));
    assert!(store.join("LICENSE").is_file(), "krew-index refuses plugins without a licence");
    let link = bin.join(format!("kubectl-{}", manifest["metadata"]["name"].as_str().unwrap().replace('-', "_")));
    symlink(store.join(platform["bin"].as_str().unwrap()), &link).unwrap();
    let version = run(Command::new(&link).arg("version"));
    assert!(String::from_utf8_lossy(&version.stdout).starts_with("kubectl-sockpath "), "{version:?}");
    let help = run(Command::new(&link).args(["trace", "--help"]));
    assert!(String::from_utf8_lossy(&help.stdout).contains("Usage: kubectl sockpath trace"));
}
