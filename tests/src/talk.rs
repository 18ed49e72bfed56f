//! Traffic between pods that checks every byte (tests/cluster/talk.c), and plugins that run beside it.

use std::env;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cluster::{Cluster, Held, NAMESPACE, run, text};

/// Where the server listens.
pub const PORT: u16 = 9000;

/// Puts the program into these pods' file systems. No image is needed for it, so it works on any cluster.
///
/// # Panics
/// When it cannot be compiled or copied.
pub fn install(cluster: &Cluster, pods: &[&str]) {
    let program = env::temp_dir().join(format!("sockpath-talk-{}", std::process::id()));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster/talk.c");
    run(Command::new("cc").args(["-O2", "-static", "-o"]).arg(&program).arg(source));
    for pod in pods {
        // Another name first: a program that runs cannot be written to.
        let into = "cat > /tmp/talk.new && chmod 755 /tmp/talk.new && mv /tmp/talk.new /tmp/talk";
        let mut copy = cluster.kubectl();
        copy.args(["-n", NAMESPACE, "exec", "-i", pod, "-c", "app", "--", "sh", "-c", into]);
        run(copy.stdin(File::open(&program).unwrap_or_else(|e| panic!("{}: {e}", program.display()))));
    }
    let _ = std::fs::remove_file(program);
}

/// A pod's address.
#[must_use]
pub fn pod_ip(cluster: &Cluster, pod: &str) -> String {
    run(cluster.kubectl().args(["-n", NAMESPACE, "get", "pod", pod, "-o", "jsonpath={.status.podIP}"]))
}

/// Starts the server in a pod, once.
///
/// # Panics
/// When it does not listen.
pub fn serve(cluster: &Cluster, pod: &str) {
    let start = format!("grep -q ready /tmp/serve.log 2>/dev/null || (setsid /tmp/talk server {PORT} </dev/null >/tmp/serve.log 2>&1 &)");
    run(&mut cluster.exec(pod, &["sh", "-c", &start]));
    cluster.eventually("the server listens", Duration::from_secs(10), |c| {
        text(&crate::cluster::output(&mut c.exec(pod, &["cat", "/tmp/serve.log"])).stdout).contains("ready")
    });
}

/// The cluster with the program in all pods and servers on both nodes.
///
/// # Panics
/// When the program cannot be installed, or a server does not listen.
#[must_use]
pub fn with_servers(cluster: Held) -> Held {
    install(&cluster, &["client", "client-1", "web", "web-1"]);
    serve(&cluster, "web");
    serve(&cluster, "web-1");
    cluster
}

/// Connections from a pod. They go on when the test's own connection to the cluster is gone.
#[derive(Debug)]
pub struct Talk<'a> {
    cluster: &'a Cluster,
    pod: String,
    log: String,
    over: bool,
}

impl<'a> Talk<'a> {
    /// Opens connections and waits until messages are exchanged.
    ///
    /// # Panics
    /// When none are.
    #[must_use]
    pub fn start(cluster: &'a Cluster, pod: &str, address: &str, port: u16, connections: usize) -> Self {
        let log = format!("/tmp/talk-{}-{connections}.log", address.replace('.', "-"));
        let start =
            format!("rm -f {log}; setsid /tmp/talk client {address} {port} {connections} </dev/null >{log} 2>&1 & echo $! >{log}.pid");
        run(&mut cluster.exec(pod, &["sh", "-c", &start]));
        let talk = Self { cluster, pod: pod.to_owned(), log, over: false };
        talk.goes_on();
        talk
    }

    fn read(&self) -> String {
        text(&crate::cluster::output(&mut self.cluster.exec(&self.pod, &["cat", &self.log])).stdout)
    }

    /// Messages exchanged so far.
    ///
    /// # Panics
    /// When a byte was wrong.
    #[must_use]
    pub fn messages(&self) -> u64 {
        let said = self.read();
        assert!(!said.contains("wrong"), "{} in {}: {said}", self.log, self.pod);
        said.lines().rev().find_map(|l| l.strip_prefix("ok ")?.parse().ok()).unwrap_or(0)
    }

    /// Waits until more messages have been exchanged.
    ///
    /// # Panics
    /// When none are within half a minute, or a byte is wrong.
    pub fn goes_on(&self) {
        let before = self.messages();
        self.cluster.eventually("messages go on", Duration::from_secs(30), |_| self.messages() > before + 20);
    }

    /// Ends it in order; gives the number of bytes that were checked.
    ///
    /// # Panics
    /// When one was wrong or is missing.
    pub fn end(mut self) -> u64 {
        self.terminate();
        self.cluster.eventually("the client ends", Duration::from_secs(35), |_| {
            let said = self.read();
            said.contains("done") || said.contains("wrong")
        });
        self.over = true;
        let said = self.read();
        let done = said.lines().find_map(|l| l.strip_prefix("done ")).unwrap_or_else(|| panic!("{} in {}: {said}", self.log, self.pod));
        done.split_whitespace().nth(2).and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{done}"))
    }

    fn terminate(&self) {
        let _ = crate::cluster::output(&mut self.cluster.exec(&self.pod, &["sh", "-c", &format!("kill $(cat {}.pid)", self.log)]));
    }
}

/// Waits until each has exchanged more messages, and ends it in order.
///
/// # Panics
/// When a byte was wrong or is missing, or none was exchanged.
pub fn end_all<'a>(talks: impl IntoIterator<Item = Talk<'a>>) {
    for talk in talks {
        talk.goes_on();
        assert!(talk.end() > 0);
    }
}

impl Drop for Talk<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.terminate();
        }
    }
}

/// A plugin that runs while the test goes on; what it prints can be waited for.
#[derive(Debug)]
pub struct Running {
    child: Child,
    lines: Receiver<String>,
    /// Everything it has printed, stdout and stderr in the order they came.
    pub said: Vec<String>,
}

impl Running {
    /// Starts it.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(command: &mut Command) -> Self {
        // One pipe for both, as on a terminal: the order of lines is that in which they were written.
        let (output, input) = std::io::pipe().unwrap_or_else(|e| panic!("a pipe: {e}"));
        let both = input.try_clone().unwrap_or_else(|e| panic!("a pipe: {e}"));
        let child = command.stdout(both).stderr(input).spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        // Our copies of its ends have to be closed, or it would not end with the process.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let (sink, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sink.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines, said: Vec::new() }
    }

    /// Waits until it prints a line that this holds for; gives the line.
    ///
    /// # Panics
    /// When it ends or stays silent about it.
    pub fn expect(&mut self, what: &str, patience: Duration, holds: impl Fn(&str) -> bool) -> String {
        let until = Instant::now() + patience;
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.said.push(line.clone());
                    if holds(&line) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout) => panic!("{what}: not within {patience:?}; it said:\n{}", self.said.join("\n")),
                Err(RecvTimeoutError::Disconnected) => panic!("{what}: it has ended; it said:\n{}", self.said.join("\n")),
            }
        }
    }

    /// Waits until a pair of these pods is in this state.
    ///
    /// # Panics
    /// As [`Self::expect`].
    pub fn expect_pair(&mut self, client: &str, server: &str, state: &str) -> String {
        let (from, to) = (format!("{NAMESPACE}/{client}:"), format!("-> {NAMESPACE}/{server}:"));
        let what = format!("{client} to {server} is {state}");
        self.expect(&what, Duration::from_secs(30), |l| l.starts_with(&from) && l.contains(&to) && l.contains(state))
    }

    /// Waits until all these pairs of pods were in this state, in whatever order they came to it.
    ///
    /// # Panics
    /// As [`Self::expect`].
    pub fn expect_pairs(&mut self, pairs: &[(&str, &str)], state: &str) {
        self.expect_pairs_within(Duration::from_secs(40), pairs, state);
    }

    /// The same, where each may take that long.
    ///
    /// # Panics
    /// As [`Self::expect`].
    pub fn expect_pairs_within(&mut self, patience: Duration, pairs: &[(&str, &str)], state: &str) {
        let before = self.said.len();
        let is = |line: &str, (client, server): &(&str, &str)| {
            line.contains(&format!("/{client}:")) && line.contains(&format!("/{server}:")) && line.contains(state)
        };
        while !pairs.iter().all(|pair| self.said[before..].iter().any(|line| is(line, pair))) {
            self.expect(&format!("{pairs:?} are {state}"), patience, |line| pairs.iter().any(|pair| is(line, pair)));
        }
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it is gone.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).unwrap_or_else(|e| panic!("{e}"));
        kill(Pid::from_raw(pid), signal).unwrap_or_else(|e| panic!("{e}"));
    }

    /// Waits for its end; gives its status and everything it said.
    ///
    /// # Panics
    /// When it goes on for a minute.
    pub fn end(mut self) -> (ExitStatus, String) {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => self.said.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it goes on; it said:\n{}", self.said.join("\n")),
            }
        }
        let status = self.child.wait().unwrap_or_else(|e| panic!("{e}"));
        (status, self.said.join("\n"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
