//! How calls are observed that redirected bytes would break: at the functions of the kernel that carry them out, by fentry, or, where
//! that is refused, at the entry of all system calls of the machine.

use std::collections::HashMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::time::Duration;

use libbpf_rs::OpenObject;
use libbpf_rs::btf::types::{Func, FuncProto};
use libbpf_rs::btf::{Btf, ReferencesType};

use crate::trace::functions;

/// What the names of programs at functions begin with.
const PREFIX: &str = "fentry_";

/// The program at the entry of system calls.
pub const SYSTEM_CALL: &str = "system_call";

/// How long a program stays at a tracepoint when it is no longer needed: attaching that of system calls costs a walk over all tasks.
pub const TRACEPOINT_LINGER: Duration = Duration::from_millis(10);

/// A function, and how its arguments have to begin for its program to read them rightly.
struct Function {
    name: &'static str,
    arguments: &'static [&'static str],
    /// Whether calls would be missed without it.
    needed: bool,
}

const fn needed(name: &'static str, arguments: &'static [&'static str]) -> Function {
    Function { name, arguments, needed: true }
}

/// A program `fentry_NAME` (`observe.bpf.h`) for each.
const FUNCTIONS: [Function; 7] = [
    needed("tcp_splice_read", &["sock"]),
    needed("tcp_ioctl", &["sk", "cmd"]),
    // Came with the fix of FIONREAD; before, sockets in a sockmap kept TCP's function.
    Function { needed: false, ..needed("tcp_bpf_ioctl", &["sk", "cmd"]) },
    needed("tcp_recvmsg", &["sk", "msg", "len", "flags"]),
    needed("tcp_bpf_recvmsg", &["sk", "msg", "len", "flags"]),
    needed("tcp_sendmsg", &["sk", "msg"]),
    needed("tcp_bpf_sendmsg", &["sk", "msg"]),
];

/// The names of all programs at functions.
pub fn programs() -> impl Iterator<Item = String> {
    FUNCTIONS.iter().map(|f| format!("{PREFIX}{}", f.name))
}

/// Where calls are observed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observed {
    /// At so many functions.
    AtFunctions(usize),
    /// At the entry of all system calls, and why not at functions.
    AtSystemCalls(String),
}

impl fmt::Display for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtFunctions(count) => write!(f, "observed by fentry at {count} functions of TCP"),
            Self::AtSystemCalls(why) => write!(f, "observed at the entry of all system calls; fentry: {why}"),
        }
    }
}

/// The programs at functions that this kernel can have, or why it shall have none.
#[derive(Debug, Clone)]
pub struct Choice(pub Result<Vec<String>, String>);

impl Choice {
    /// Asks the kernel.
    pub fn make(btf: &Btf<'_>) -> Self {
        Self(functions::allows_fentry(btf).and_then(|()| choose(&arguments(btf))))
    }

    /// Whether this program is one of them.
    pub fn has(&self, program: &str) -> bool {
        self.0.as_ref().is_ok_and(|chosen| chosen.iter().any(|c| c == program))
    }

    /// Keeps the others from being loaded.
    pub fn apply(&self, open: &mut OpenObject) {
        for mut program in open.progs_mut() {
            let name = program.name().to_string_lossy().into_owned();
            if name.starts_with(PREFIX) {
                program.set_autoload(self.has(&name));
            }
        }
    }
}

/// The names of the arguments of each function that the kernel has of the table.
fn arguments(btf: &Btf<'_>) -> HashMap<String, Vec<String>> {
    let text = |name: Option<&std::ffi::OsStr>| name.map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    FUNCTIONS
        .iter()
        .filter_map(|f| {
            let prototype = FuncProto::try_from(btf.type_by_name::<Func<'_>>(f.name)?.referenced_type()).ok()?;
            Some((f.name.to_owned(), prototype.iter().map(|p| text(p.name)).collect()))
        })
        .collect()
}

fn choose(arguments: &HashMap<String, Vec<String>>) -> Result<Vec<String>, String> {
    let mut chosen = Vec::new();
    for f in &FUNCTIONS {
        let fits = |has: &Vec<String>| has.len() >= f.arguments.len() && has.iter().zip(f.arguments).all(|(a, b)| a == b);
        match arguments.get(f.name) {
            Some(has) if fits(has) => chosen.push(format!("{PREFIX}{}", f.name)),
            Some(_) => return Err(format!("the arguments of {} are others in this kernel", f.name)),
            None if f.needed => return Err(format!("this kernel has no function {}", f.name)),
            None => {}
        }
    }
    Ok(chosen)
}

/// Observers of calls, until this is dropped.
#[derive(Debug)]
pub struct Attachment {
    links: Vec<OwnedFd>,
    /// Where they are.
    pub observed: Observed,
}

impl Attachment {
    /// One link at the entry of system calls, because of that.
    pub fn at_system_calls(link: OwnedFd, why: String) -> Self {
        Self { links: vec![link], observed: Observed::AtSystemCalls(why) }
    }

    /// One link for each function.
    pub fn at_functions(links: Vec<OwnedFd>) -> Self {
        Self { observed: Observed::AtFunctions(links.len()), links }
    }

    /// How long they stay when they are no longer needed: functions are released slowly, and cost only their callers.
    pub fn linger(&self) -> Duration {
        match self.observed {
            Observed::AtFunctions(_) => Duration::from_secs(3),
            Observed::AtSystemCalls(_) => TRACEPOINT_LINGER,
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if matches!(self.observed, Observed::AtFunctions(_)) {
            let links = std::mem::take(&mut self.links);
            // The kernel waits for all tasks to leave each function: not at our expense. Without a thread they are closed here.
            let _ = std::thread::Builder::new().name("detach".to_owned()).spawn(move || drop(links));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel() -> HashMap<String, Vec<String>> {
        let all = ["sk", "msg", "len", "flags", "addr_len"];
        let of = |f: &Function| if f.arguments.len() == 4 { all.iter() } else { f.arguments.iter() };
        FUNCTIONS.iter().map(|f| (f.name.to_owned(), of(f).map(|a| (*a).to_owned()).collect())).collect()
    }

    #[test]
    fn functions_are_chosen_all_or_none() {
        let mut kernel = kernel();
        assert_eq!(choose(&kernel).map(|chosen| chosen.len()), Ok(7));
        kernel.remove("tcp_bpf_ioctl");
        assert_eq!(choose(&kernel).map(|chosen| chosen.len()), Ok(6));
        kernel.insert("tcp_recvmsg".to_owned(), ["sk", "msg", "flags"].map(str::to_owned).to_vec());
        assert_eq!(choose(&kernel), Err("the arguments of tcp_recvmsg are others in this kernel".to_owned()));
        kernel.remove("tcp_recvmsg");
        assert_eq!(choose(&kernel), Err("this kernel has no function tcp_recvmsg".to_owned()));
    }
}
