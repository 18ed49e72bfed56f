//! The mechanisms of BPF that an acceleration rests on. A kernel may lack one, or refuse it: hardened kernels refuse some kinds of programs
//! and iterators with EPERM. Each optional one has a fallback; without one of the others the start is refused and names what is missing.

use std::collections::BTreeMap;
use std::fmt;
use std::mem::MaybeUninit;

use anyhow::{Context, Result};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{OpenObject, OpenProgramMut};
use sockpath_bpf::accel::{AccelSkel, AccelSkelBuilder};

use super::calls;
use crate::coded::Coded;

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mechanism {
    /// fentry at functions of TCP.
    Functions,
    /// An iterator over the open files of all tasks.
    OpenFiles,
    /// An iterator over the TCP sockets of a network namespace.
    OpenSockets,
    /// Programs of type tc that user space runs without a packet.
    WithoutPacket,
    /// Programs at control groups that see sockets being established.
    Established,
    /// Programs that decide on each message of a socket in a sockmap.
    Messages,
    /// Tracepoints with types.
    Tracepoints,
}

/// What is to be known of a mechanism.
struct Row {
    mechanism: Mechanism,
    /// As bpftool(8) and the kernel's documentation call it.
    name: &'static str,
    /// The sections of its programs begin with this.
    section: &'static str,
    purpose: &'static str,
    /// What takes its place.
    fallback: Option<&'static str>,
}

const fn required(mechanism: Mechanism, name: &'static str, section: &'static str, purpose: &'static str) -> Row {
    Row { mechanism, name, section, purpose, fallback: None }
}

const MECHANISMS: [Row; 7] = [
    Row {
        fallback: Some("the entry of all system calls (tp_btf/sys_enter)"),
        ..required(Mechanism::Functions, "fentry", "fentry", "calls that redirected bytes would break are observed")
    },
    Row {
        fallback: Some("/proc/PID/fd of all processes"),
        ..required(Mechanism::OpenFiles, "iter/task_file", "iter/task_file", "the holders of a socket are found")
    },
    required(Mechanism::OpenSockets, "iter/tcp", "iter/tcp", "open connections are found, and edge-triggered readers rearmed"),
    required(Mechanism::WithoutPacket, "BPF_PROG_TEST_RUN of tc programs", "tc", "sockets are looked at and inserted into the sockmap"),
    required(Mechanism::Established, "sockops", "sockops", "new connections are seen"),
    required(Mechanism::Messages, "sk_msg", "sk_msg", "messages are redirected"),
    required(Mechanism::Tracepoints, "tp_btf", "tp_btf", "what readers have taken is counted"),
];

/// Mechanisms that this kernel refuses, and why.
pub type Refused = BTreeMap<Mechanism, String>;

/// The optional ones and how each is had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mechanisms(Refused);

impl Mechanisms {
    /// Whether this one is used, and not its fallback.
    #[must_use]
    pub fn has(&self, mechanism: Mechanism) -> bool {
        !self.0.contains_key(&mechanism)
    }

    /// Why its fallback is used.
    #[must_use]
    pub fn why_not(&self, mechanism: Mechanism) -> Option<&str> {
        self.0.get(&mechanism).map(String::as_str)
    }

    /// All but these.
    pub fn without(absent: impl Iterator<Item = Mechanism>) -> Self {
        Self(absent.map(|m| (m, "the kernel refused it at the start".to_owned())).collect())
    }
}

impl fmt::Display for Mechanisms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let used = MECHANISMS.iter().filter(|row| self.has(row.mechanism)).map(|row| row.name);
        f.write_str(&used.collect::<Vec<_>>().join(", "))?;
        for row in &MECHANISMS {
            if let (Some(why), Some(fallback)) = (self.0.get(&row.mechanism), row.fallback) {
                write!(f, "; {fallback} instead of {}: {why}", row.name)?;
            }
        }
        Ok(())
    }
}

/// The programs, as they were loaded.
pub struct Loaded<'a> {
    /// The skeleton.
    pub skel: AccelSkel<'a>,
    /// What it does without.
    pub mechanisms: Mechanisms,
    /// The programs at functions.
    pub at_functions: calls::Choice,
}

/// Where loading is tried: once with everything, and again without each optional mechanism.
pub type Storage = [MaybeUninit<OpenObject>; 3];

/// Loads the programs with the mechanisms that the kernel has; `without` are not tried.
///
/// # Errors
/// [`Coded`] `kernel`, naming what is refused, when one that has no fallback is.
pub fn load<'a>(
    storage: &'a mut Storage,
    mut at_functions: calls::Choice,
    without: &[Mechanism],
    prepare: impl Fn(&mut sockpath_bpf::accel::OpenAccelSkel<'_>),
) -> Result<Loaded<'a>> {
    let mut refused: Refused = without.iter().map(|m| (*m, "not tried".to_owned())).collect();
    if let (Err(why), false) = (&at_functions.0, refused.contains_key(&Mechanism::Functions)) {
        refused.insert(Mechanism::Functions, why.clone());
    }
    let mut attempts = storage.iter_mut();
    loop {
        if let Some(why) = refused.get(&Mechanism::Functions) {
            at_functions = calls::Choice(Err(why.clone()));
        }
        let missing = MECHANISMS.iter().find(|row| row.fallback.is_none() && refused.contains_key(&row.mechanism));
        let attempt = attempts.next().filter(|_| missing.is_none());
        let error = match attempt.map(|storage| try_load(storage, &at_functions, &refused, &prepare)) {
            Some(Ok(skel)) => return Ok(Loaded { skel, mechanisms: Mechanisms(refused), at_functions }),
            Some(Err(e)) => e,
            None => return Err(refusal(&refused)),
        };
        let optional = MECHANISMS.iter().filter(|row| row.fallback.is_some() && !refused.contains_key(&row.mechanism));
        let found: Refused = optional.filter_map(|row| Some((row.mechanism, why_refused(row, &at_functions)?))).collect();
        if found.is_empty() {
            let required = MECHANISMS.iter().filter(|row| row.fallback.is_none());
            let found: Refused = required.filter_map(|row| Some((row.mechanism, why_refused(row, &at_functions)?))).collect();
            return Err(if found.is_empty() { error } else { refusal(&found) });
        }
        refused.extend(found);
    }
}

fn open(storage: &mut MaybeUninit<OpenObject>) -> Result<sockpath_bpf::accel::OpenAccelSkel<'_>> {
    AccelSkelBuilder::default().open(storage).context("cannot open the programs")
}

fn try_load<'a>(
    storage: &'a mut MaybeUninit<OpenObject>,
    at_functions: &calls::Choice,
    refused: &Refused,
    prepare: &impl Fn(&mut sockpath_bpf::accel::OpenAccelSkel<'_>),
) -> Result<AccelSkel<'a>> {
    let mut open = open(storage)?;
    prepare(&mut open);
    at_functions.apply(open.open_object_mut());
    for mut program in open.open_object_mut().progs_mut() {
        if MECHANISMS.iter().any(|row| refused.contains_key(&row.mechanism) && is_of(&program, row)) {
            program.set_autoload(false);
        }
    }
    open.load().context("the kernel refused the acceleration programs")
}

fn is_of(program: &OpenProgramMut<'_>, row: &Row) -> bool {
    let section = program.section().to_string_lossy();
    section == row.section || section.strip_prefix(row.section).is_some_and(|rest| rest.starts_with('/'))
}

/// Why the kernel refuses the programs of one mechanism when they are loaded alone; `None` when it does not.
fn why_refused(row: &Row, at_functions: &calls::Choice) -> Option<String> {
    let mut storage = MaybeUninit::uninit();
    let outcome = open(&mut storage).and_then(|mut open| {
        at_functions.apply(open.open_object_mut());
        for mut program in open.open_object_mut().progs_mut() {
            if !is_of(&program, row) {
                program.set_autoload(false);
            }
        }
        open.load().map(drop).context("the kernel refuses it")
    });
    outcome.err().map(|e| format!("{e:#}"))
}

fn refusal(refused: &Refused) -> anyhow::Error {
    let missing = MECHANISMS.iter().filter(|row| row.fallback.is_none());
    let missing: Vec<String> =
        missing.filter_map(|row| Some(format!("{} ({}): {}", row.name, row.purpose, refused.get(&row.mechanism)?))).collect();
    Coded::new("kernel", format!("acceleration needs what this kernel does not allow: {}", missing.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::super::instance::Instance;
    use super::super::private::on_this_kernel;
    use super::super::self_test;
    use super::super::start::Start;
    use super::*;

    fn start(without: &[Mechanism]) -> Start<'_> {
        Start { without, ..Start::sample(true) }
    }

    #[test]
    fn each_optional_mechanism_can_be_missing() {
        for row in MECHANISMS.iter().filter(|row| row.fallback.is_some()) {
            let name = format!("each_optional_mechanism_can_be_missing: {}", row.name);
            on_this_kernel(&name, |pins| {
                let instance = Instance::create(pins, &start(&[row.mechanism]))?;
                assert!(!instance.mechanisms().has(row.mechanism));
                let tried = self_test::run(&instance)?;
                let failed: Vec<_> = tried.iter().filter(|c| c.corruption_risk && !c.passed).collect();
                assert!(failed.is_empty(), "without {}: {failed:?}", row.name);
                Ok(())
            });
        }
    }

    #[test]
    fn a_missing_mechanism_without_fallback_is_named() {
        for row in MECHANISMS.iter().filter(|row| row.fallback.is_none()) {
            let name = format!("a_missing_mechanism_without_fallback_is_named: {}", row.name);
            on_this_kernel(&name, |pins| {
                let error = format!("{:#}", Instance::create(pins, &start(&[row.mechanism])).expect_err("it is needed"));
                assert!(error.contains(row.name) && error.contains(row.purpose), "{error}");
                Ok(())
            });
        }
    }

    #[test]
    fn each_program_belongs_to_one_mechanism() {
        let mut storage = MaybeUninit::uninit();
        let mut open = open(&mut storage).expect("the object");
        for program in open.open_object_mut().progs_mut() {
            let owners = MECHANISMS.iter().filter(|row| is_of(&program, row)).count();
            assert_eq!(owners, 1, "{:?}", program.name());
        }
    }
}
