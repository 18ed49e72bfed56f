//! Writes the helper's image as an OCI archive, without a daemon and the same bytes each time.
//!
//! `oci-image [--name REF] [ARCH=]BINARY... OUT.tar`: one architecture gives a plain image, several an index. What is
//! printed is the digest to pin. The result is what `docker build -f Containerfile .` gives, minus timestamps:
//! one layer with one file. `ctr -n k8s.io images import`, `docker load`, `podman load` and `skopeo copy oci-archive:` take it.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const DEFAULT_NAME: &str = concat!("ghcr.io/sockpath/helper:v", env!("CARGO_PKG_VERSION"));
const BLOCK: usize = 512;

fn main() -> ExitCode {
    match run(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: impl Iterator<Item = String>) -> Result<()> {
    let mut args = args.peekable();
    let mut name = DEFAULT_NAME.to_owned();
    if args.next_if(|a| a == "--name").is_some() {
        name = args.next().context("--name needs an image reference")?;
    }
    let mut rest: Vec<String> = args.collect();
    let out = PathBuf::from(rest.pop().context("usage: oci-image [--name REF] [ARCH=]BINARY... OUT.tar")?);
    if rest.is_empty() {
        bail!("usage: oci-image [--name REF] [ARCH=]BINARY... OUT.tar");
    }
    let mut binaries = Vec::new();
    for arg in &rest {
        let path = arg.split_once('=').map_or(arg.as_str(), |(_, path)| path);
        let bytes = fs::read(path).with_context(|| format!("cannot read {path}"))?;
        let found = architecture(&bytes).with_context(|| format!("{path} cannot be the helper"))?;
        if let Some((wanted, _)) = arg.split_once('=')
            && wanted != found
        {
            bail!("{path} is built for {found}, not for {wanted}");
        }
        binaries.push((found, bytes));
    }
    let (archive, digest) = image(&name, &binaries);
    fs::write(&out, &archive).with_context(|| format!("cannot write {}", out.display()))?;
    println!("{name}@{digest}");
    eprintln!("{}: {:.1} MiB", out.display(), archive.len() as f64 / f64::from(1 << 20));
    Ok(())
}

/// The architecture as OCI calls it, of an ELF executable that needs no loader: an image from scratch has none.
fn architecture(elf: &[u8]) -> Result<&'static str> {
    if elf.get(..6) != Some(b"\x7fELF\x02\x01") {
        bail!("it is not a 64-bit little-endian ELF file");
    }
    let u16_at = |at: usize| elf.get(at..at + 2).map(|b| u16::from_le_bytes([b[0], b[1]])).context("its header is cut off");
    let u64_at = |at: usize| -> Result<u64> {
        let bytes: [u8; 8] = elf.get(at..at + 8).context("its header is cut off")?.try_into()?;
        Ok(u64::from_le_bytes(bytes))
    };
    const PT_INTERP: u32 = 3;
    let (table, entry, count) = (usize::try_from(u64_at(32)?)?, usize::from(u16_at(54)?), usize::from(u16_at(56)?));
    for i in 0..count {
        let at = table + i * entry;
        let kind: [u8; 4] = elf.get(at..at + 4).context("its program headers are cut off")?.try_into()?;
        if u32::from_le_bytes(kind) == PT_INTERP {
            bail!("it is linked dynamically; build it with make, which sets crt-static");
        }
    }
    match u16_at(18)? {
        62 => Ok("amd64"),
        183 => Ok("arm64"),
        machine => bail!("there is no image for ELF machine {machine}"),
    }
}

/// The archive, and the digest under which a registry will know the image.
fn image(name: &str, binaries: &[(&str, Vec<u8>)]) -> (Vec<u8>, String) {
    let mut archive = Tar::default();
    archive.directory("blobs/");
    archive.directory("blobs/sha256/");
    let mut manifests = Vec::new();
    for (arch, binary) in binaries {
        let mut layer = Tar::default();
        layer.file("sockpath-helper", 0o755, binary);
        let layer = layer.finish();
        let config = json!({
            "architecture": arch, "os": "linux",
            "config": {"Entrypoint": ["/sockpath-helper"], "Cmd": ["session"], "User": "0:0", "WorkingDir": "/", "Labels": {
                "org.opencontainers.image.title": "sockpath-helper",
                "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
                "org.opencontainers.image.licenses": "Apache-2.0"}},
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
            "history": [{"created_by": "COPY sockpath-helper /sockpath-helper"}]
        });
        let config = archive.blob("application/vnd.oci.image.config.v1+json", config.to_string().into_bytes());
        let layer = archive.blob("application/vnd.oci.image.layer.v1.tar", layer);
        let manifest =
            json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": [layer]});
        let mut manifest = archive.blob("application/vnd.oci.image.manifest.v1+json", manifest.to_string().into_bytes());
        manifest["platform"] = json!({"architecture": arch, "os": "linux"});
        manifests.push(manifest);
    }
    let mut top = match <[Value; 1]>::try_from(manifests) {
        Ok([single]) => single,
        Err(manifests) => {
            let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests});
            archive.blob("application/vnd.oci.image.index.v1+json", index.to_string().into_bytes())
        }
    };
    let pinned = top["digest"].as_str().unwrap_or_default().to_owned();
    let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    // containerd and docker read the full name from the first annotation, the specification knows only the tag.
    top["annotations"] = json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag});
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [top]});
    archive.file("index.json", 0o644, index.to_string().as_bytes());
    archive.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#);
    (archive.finish(), pinned)
}

fn digest(bytes: &[u8]) -> String {
    let mut text = "sha256:".to_owned();
    for byte in Sha256::digest(bytes) {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// A ustar archive: everything belongs to root and dates from 1970, so that equal contents are equal bytes.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn directory(&mut self, name: &str) {
        self.header(name, 0o755, 0, b'5');
    }

    fn file(&mut self, name: &str, mode: u32, contents: &[u8]) {
        self.header(name, mode, contents.len(), b'0');
        self.0.extend_from_slice(contents);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
    }

    /// A file under its digest, as manifests refer to it.
    fn blob(&mut self, media_type: &str, contents: Vec<u8>) -> Value {
        let digest = digest(&contents);
        self.file(&format!("blobs/sha256/{}", digest.trim_start_matches("sha256:")), 0o644, &contents);
        json!({"mediaType": media_type, "digest": digest, "size": contents.len()})
    }

    fn header(&mut self, name: &str, mode: u32, size: usize, kind: u8) {
        let mut header = [0u8; BLOCK];
        let mut put = |at: usize, text: &str| {
            let _ = (&mut header[at..]).write_all(text.as_bytes());
        };
        put(0, name);
        put(100, &format!("{mode:07o}\0{:07o}\0{:07o}\0{size:011o}\0{:011o}\0", 0, 0, 0));
        put(148, "        ");
        put(257, "ustar\x0000");
        header[156] = kind;
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        let _ = (&mut header[148..]).write_all(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&header);
    }

    fn finish(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 2 * BLOCK]);
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The smallest ELF header that says what matters, with one program header of the given type.
    fn elf(machine: u16, program_header: u32) -> Vec<u8> {
        let mut elf = vec![0u8; 64 + 56];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[18..20].copy_from_slice(&machine.to_le_bytes());
        elf[32..40].copy_from_slice(&64u64.to_le_bytes());
        elf[54..56].copy_from_slice(&56u16.to_le_bytes());
        elf[56..58].copy_from_slice(&1u16.to_le_bytes());
        elf[64..68].copy_from_slice(&program_header.to_le_bytes());
        elf
    }

    #[test]
    fn the_same_binary_gives_the_same_archive_which_tar_reads() {
        let binaries = [("amd64", elf(62, 1))];
        let (archive, pinned) = image("r.test/helper:v1", &binaries);
        assert_eq!((archive.clone(), pinned.clone()), image("r.test/helper:v1", &binaries));
        let mut tar = std::process::Command::new("tar")
            .arg("-tvf-")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        tar.stdin.take().unwrap().write_all(&archive).unwrap();
        let out = tar.wait_with_output().unwrap();
        let listing = String::from_utf8(out.stdout).unwrap();
        assert!(
            out.status.success() && listing.contains("index.json") && listing.contains(pinned.trim_start_matches("sha256:")),
            "{listing}"
        );
    }

    #[test]
    fn several_architectures_make_an_index() {
        let (archive, pinned) = image("r.test/helper:v1", &[("amd64", elf(62, 1)), ("arm64", elf(183, 1))]);
        let text = String::from_utf8_lossy(&archive);
        assert!(text.contains("vnd.oci.image.index.v1+json") && text.contains("\"architecture\":\"arm64\""));
        assert_eq!(text.matches(pinned.trim_start_matches("sha256:")).count(), 2, "as a blob and in the index");
    }

    #[test]
    fn only_static_binaries_of_known_machines() {
        assert_eq!(architecture(&elf(62, 1)).unwrap(), "amd64");
        assert_eq!(architecture(&elf(183, 1)).unwrap(), "arm64");
        assert!(architecture(&elf(62, 3)).unwrap_err().to_string().contains("crt-static"));
        assert!(architecture(&elf(8, 1)).is_err());
        assert!(architecture(b"#!/bin/sh").is_err());
    }
}
