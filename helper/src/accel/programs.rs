//! Programs that may ask FIONREAD about a socket. Where the kernel does not count TCP bytes of a socket in a sockmap (self-test
//! `fionread-tcp`), such a program can take a readable socket for an empty one and wait for an edge that does not come. What a
//! connection did so far says nothing: nginx asks only after a read that filled its buffer exactly, the first time perhaps after
//! days. So the program decides. It also decides where only proven programs may use the socket path.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::Result;
use sockpath_bpf::accel::types::{accel_end, accel_flag};

use super::instance::Instance;
use super::proven::Proven;
use super::tracked::TrackedSocket;

/// How a program is recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// By the name of its file; a version or variant may follow (`ruby3.1`, `nginx-debug`).
    File(&'static str),
    /// By a library that it has mapped: runtimes that are embedded, or started under another name.
    Library(&'static str),
}

/// What is known to use FIONREAD on sockets, and where.
const ASKING: [(Mark, &str); 15] = [
    (Mark::File("nginx"), "ngx_unix_recv, after a read that filled its buffer (with epoll)"),
    (Mark::File("openresty"), "as nginx"),
    (Mark::File("angie"), "as nginx"),
    (Mark::File("freenginx"), "as nginx"),
    (Mark::File("lighttpd"), "fdevent_ioctl_fionread, before each read"),
    (Mark::File("java"), "InputStream.available of a socket"),
    (Mark::File("jsvc"), "as java"),
    (Mark::Library("libjvm.so"), "as java"),
    (Mark::File("dotnet"), "Socket.Available"),
    (Mark::Library("libcoreclr.so"), "as dotnet"),
    (Mark::Library("libSystem.Native.so"), "as dotnet"),
    (Mark::File("mono"), "Socket.Available"),
    (Mark::Library("libQt5Network.so"), "QNativeSocketEngine::bytesAvailable"),
    (Mark::Library("libQt6Network.so"), "QNativeSocketEngine::bytesAvailable"),
    (Mark::File("ruby"), "IO#nread and IO#ready? of io/wait"),
];

/// What was found out about programs, by the identity of their files.
#[derive(Debug)]
pub struct Programs {
    proven: Proven,
    known: HashMap<u64, bool>,
    /// `accel_control.programs` when it was looked at last.
    noted: u32,
}

/// Programs that are remembered at a time: more only come where files are made for it.
const REMEMBERED: usize = 4096;

impl Programs {
    /// Nothing is known yet; these are the programs whose sockets may go into the map where not all may.
    pub fn new(proven: Proven) -> Self {
        Self { proven, known: HashMap::new(), noted: 0 }
    }

    /// Judges the readers of `all` that were not judged yet, and marks the sockets whose program may ask, or is not proven.
    ///
    /// # Errors
    /// When the map of programs cannot be read.
    pub fn judge(&mut self, instance: &Instance, all: &mut [TrackedSocket]) -> Result<()> {
        let lies = instance.control().fionread_lies.get() == 1;
        let selective = instance.control().selective.get() == 1;
        if !lies && !selective {
            return Ok(());
        }
        let noted = instance.control().programs.get();
        let asked = if noted == self.noted { None } else { Some(instance.asking_programs()?) };
        self.noted = noted;
        if let Some(asked) = &asked {
            self.known.extend(asked.iter().map(|program| (*program, true)));
        }
        for k in all.iter_mut().filter(|k| k.end.reader != 0) {
            if k.end.judged == k.end.reader && asked.is_none() {
                continue;
            }
            let Some(end) = instance.end_of(k.socket()) else { continue };
            let unproven = selective && !self.proven.has(&program_name(&end));
            let flags = (if unproven { accel_flag::ACCEL_PROGRAM_UNPROVEN.0 } else { 0 })
                | (if lies && !unproven && self.asks(&end) { accel_flag::ACCEL_PROGRAM_ASKS.0 } else { 0 });
            if flags != 0 {
                instance.ends.note_flags(k.socket(), flags);
                k.end.flags |= flags;
            }
            instance.ends.note_judged(k.socket(), end.reader);
            k.end.judged = end.reader;
        }
        Ok(())
    }

    fn asks(&mut self, end: &accel_end) -> bool {
        if self.known.len() >= REMEMBERED {
            self.known.clear();
        }
        *self
            .known
            .entry(end.program)
            .or_insert_with(|| is_asking_file(&program_name(end)) || maps_asking_library(Path::new("/proc"), end.reader_tgid))
    }
}

/// The name of the file of the program that reads.
fn program_name(end: &accel_end) -> String {
    let name: Vec<u8> = end.program_name.iter().map(|c| *c as u8).take_while(|c| *c != 0).collect();
    String::from_utf8_lossy(&name).into_owned()
}

/// Whether a program with this file name is in the table.
fn is_asking_file(name: &str) -> bool {
    ASKING.iter().any(|(mark, _)| match mark {
        Mark::File(known) => {
            name.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with(|c: char| !c.is_ascii_alphabetic()))
        }
        Mark::Library(_) => false,
    })
}

/// Whether a process has mapped one of the libraries of the table. One that cannot be read has ended, or is out of reach: then its calls
/// are observed as those of each program are.
fn maps_asking_library(proc: &Path, tgid: u32) -> bool {
    let Ok(maps) = fs::read_to_string(proc.join(tgid.to_string()).join("maps")) else { return false };
    let files = maps.lines().filter_map(|line| line.rsplit('/').next());
    ASKING.iter().any(|(mark, _)| match mark {
        Mark::Library(known) => files.clone().any(|file| file.starts_with(known)),
        Mark::File(_) => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_recognised_by_their_files() {
        for name in ["nginx", "nginx-debug", "ruby3.1", "java", "mono-sgen", "dotnet", "lighttpd"] {
            assert!(is_asking_file(name), "{name}");
        }
        for name in ["redis-server", "javascript", "monospace", "rubyist", "", "postgres"] {
            assert!(!is_asking_file(name), "{name}");
        }
    }

    #[test]
    fn embedded_runtimes_are_recognised_by_their_libraries() {
        let proc = std::env::temp_dir().join(format!("sockpath-maps-{}", std::process::id()));
        let dir = proc.join("7");
        fs::create_dir_all(&dir).expect("a directory");
        let line = |file: &str| format!("7f0000000000-7f0000001000 r-xp 00000000 08:01 42    /usr/lib/{file}\n");
        for (file, asks) in [("jvm/lib/server/libjvm.so", true), ("libQt5Network.so.5.15.8", true), ("libc.so.6", false)] {
            fs::write(dir.join("maps"), line("libm.so.6") + &line(file)).expect("a file");
            assert_eq!(maps_asking_library(&proc, 7), asks, "{file}");
        }
        fs::remove_dir_all(&proc).expect("removable");
        assert!(!maps_asking_library(&proc, 7));
    }
}
