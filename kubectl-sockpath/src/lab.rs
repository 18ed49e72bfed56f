//! The lab: found through `sockpath-lab status -o json`, and commands forwarded to that program.

use std::ffi::{OsStr, OsString};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sockpath_protocol::lab::{LabPod, LabService, LabStatus};
use sockpath_protocol::pod::Node;

use crate::cli::{Global, LabCommand, TableOutput};
use crate::inventory::{ContainerInfo, Inventory, Kind, PodInfo, Port, Scope, ServiceInfo};
use crate::platform;
use crate::progress::Progress;
use crate::session::{self, Fleet, Ready};

/// Namespace of the lab's pods when none is named.
const DEFAULT_NAMESPACE: &str = "default";

/// How long the helper may take to say hello.
const HELLO_PATIENCE: Duration = Duration::from_secs(10);

/// The lab as it was when the command started.
#[derive(Debug)]
pub struct Lab {
    program: PathBuf,
    namespace: String,
    verbose: bool,
    status: LabStatus,
}

impl Lab {
    /// Asks `sockpath-lab` for the lab's state.
    ///
    /// # Errors
    /// When there is no such program, or the lab is not up and `need_up` is set.
    pub async fn connect(global: &Global, need_up: bool) -> Result<Self> {
        let program = program()?;
        let output = tokio::process::Command::new(&program)
            .args(["status", "-o", "json"])
            .kill_on_drop(true)
            .output()
            .await
            .with_context(|| format!("cannot run {}", program.display()))?;
        let status: LabStatus = if output.status.success() {
            serde_json::from_slice(&output.stdout).with_context(|| {
                format!("`{} status -o json` printed unexpected output: are both of the same release?", program.display())
            })?
        } else {
            let stderr = String::from_utf8_lossy(&output.stderr);
            let stderr = stderr.trim().trim_start_matches("error: ");
            bail!("cannot read the lab's state: {}", if stderr.is_empty() { "sockpath-lab printed no error" } else { stderr })
        };
        if need_up && !status.up {
            bail!("the lab is not up: run `{} lab up` first", crate::invocation::invocation());
        }
        let namespace = global.namespace.clone().unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
        Ok(Self { program, namespace, verbose: global.verbose > 0, status })
    }

    /// Has one helper started for all these nodes, to join the fleet when it has said hello.
    ///
    /// # Errors
    /// When it does not start.
    pub fn helpers(&self, fleet: &mut Fleet, nodes: &[Node], progress: &Progress) -> Result<()> {
        progress.phase("", "starting the helper");
        let names: Vec<String> = nodes.iter().map(|n| n.name.clone()).collect();
        let transport = session::spawn(&self.program, &[OsStr::new("session")], names.clone(), self.verbose)?;
        let progress = progress.clone();
        fleet.expect(names.clone(), Box::new(|| None), |mailbox| async move {
            let ready = Ready::handshake(transport, HELLO_PATIENCE, mailbox).await?;
            for text in ready.other_release(&names).into_iter().chain(ready.built_for_tests(&names)) {
                progress.warn(&text);
            }
            Ok(ready)
        });
        Ok(())
    }

    /// All nodes of the lab.
    #[must_use]
    pub fn all_nodes(&self) -> Vec<Node> {
        self.status.nodes.iter().map(Node::from).collect()
    }

    fn pod_info(&self, pod: &LabPod) -> PodInfo {
        PodInfo {
            pod: pod.into(),
            unusable: None,
            containers: pod.containers.iter().map(|c| ContainerInfo { name: c.name.clone(), ports: vec![c.port.into()] }).collect(),
        }
    }

    fn service_info(&self, service: &LabService) -> ServiceInfo {
        let behind = |p: &&LabPod| p.namespace == service.namespace && service.ports.iter().any(|port| port.backends.contains(&p.name));
        ServiceInfo {
            ports: service.ports.iter().map(|p| Port::from(p.port)).collect(),
            service: self.status.service(service),
            backends: self.status.pods.iter().filter(behind).map(|p| self.pod_info(p)).collect(),
        }
    }
}

impl Inventory for Lab {
    fn namespace(&self) -> &str {
        &self.namespace
    }

    async fn pod(&self, namespace: &str, name: &str) -> Result<Option<PodInfo>> {
        Ok(self.status.pods.iter().find(|p| p.namespace == namespace && p.name == name).map(|p| self.pod_info(p)))
    }

    async fn pods(&self, scope: &Scope) -> Result<Vec<PodInfo>> {
        if scope.selector.is_some() {
            bail!("pods of the lab have no labels: use their names, without a selector");
        }
        let wanted = |p: &&LabPod| scope.namespace.as_ref().is_none_or(|ns| *ns == p.namespace);
        Ok(self.status.pods.iter().filter(wanted).map(|p| self.pod_info(p)).collect())
    }

    async fn pods_at(&self, ip: IpAddr) -> Result<Vec<PodInfo>> {
        Ok(self.status.pods.iter().filter(|p| p.ips.contains(&ip)).map(|p| self.pod_info(p)).collect())
    }

    async fn workload(&self, _kind: Kind, _namespace: &str, _name: &str) -> Result<Option<Vec<PodInfo>>> {
        Ok(None)
    }

    async fn node(&self, name: &str) -> Result<Option<PodInfo>> {
        Ok(self.status.nodes.iter().map(Node::from).find(|n| n.name == name).map(|n| PodInfo::of_node(&n)))
    }

    async fn node_at(&self, ip: IpAddr) -> Result<Option<PodInfo>> {
        Ok(self.status.nodes.iter().map(Node::from).find(|n| n.ips.contains(&ip)).map(|n| PodInfo::of_node(&n)))
    }

    async fn service(&self, namespace: &str, name: &str) -> Result<Option<ServiceInfo>> {
        Ok(self.status.services.iter().find(|s| s.namespace == namespace && s.name == name).map(|s| self.service_info(s)))
    }

    async fn services_with(&self, addresses: &[IpAddr]) -> Result<Vec<ServiceInfo>> {
        let touches = |s: &ServiceInfo| {
            s.service.frontends.iter().any(|f| addresses.contains(&f.addr.ip()))
                || s.service.backends.iter().any(|b| addresses.contains(&b.ip()))
        };
        Ok(self.status.services.iter().map(|s| self.service_info(s)).filter(touches).collect())
    }

    async fn nodes(&self, names: &[String]) -> Result<Vec<Node>> {
        Ok(self.status.nodes.iter().filter(|n| names.contains(&n.name)).map(Node::from).collect())
    }

    async fn names(&self, kind: Kind, namespace: &str) -> Result<Vec<String>> {
        Ok(match kind {
            Kind::Pod => self.status.pods.iter().filter(|p| p.namespace == namespace).map(|p| p.name.clone()).collect(),
            Kind::Service => self.status.services.iter().filter(|s| s.namespace == namespace).map(|s| s.name.clone()).collect(),
            Kind::Node => self.status.nodes.iter().map(|n| n.name.clone()).collect(),
            Kind::Namespace => {
                let mut names: Vec<String> = self.status.pods.iter().map(|p| p.namespace.clone()).collect();
                names.sort_unstable();
                names.dedup();
                names
            }
            _ => Vec::new(),
        })
    }
}

/// Finds the program of the lab: `SOCKPATH_LAB_PROGRAM`, else `sockpath-lab` beside this executable, else on PATH.
///
/// # Errors
/// When it is nowhere.
pub fn program() -> Result<PathBuf> {
    const NAME: &str = "sockpath-lab";
    if let Some(path) = std::env::var_os("SOCKPATH_LAB_PROGRAM").filter(|p| !p.is_empty()) {
        let path = PathBuf::from(path);
        if !path.is_file() {
            bail!("SOCKPATH_LAB_PROGRAM names {}, which is not a file", path.display());
        }
        return Ok(path);
    }
    // krew and `ln -s` put a link on PATH; the program lies beside what it points to.
    let beside = std::env::current_exe().ok().and_then(|p| p.canonicalize().ok()).and_then(|p| p.parent().map(|d| d.join(NAME)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut candidates = beside.into_iter().chain(std::env::split_paths(&path).map(|d| d.join(NAME)));
    candidates.find(|p| p.is_file()).with_context(|| {
        format!("cannot find {NAME}, which the lab needs: install it next to kubectl-sockpath or on PATH, or set SOCKPATH_LAB_PROGRAM")
    })
}

/// The program's arguments for a lab command.
fn arguments(command: LabCommand) -> Vec<OsString> {
    let mut args: Vec<OsString> = Vec::new();
    match command {
        LabCommand::Up { overlay } => args.extend(["up".into(), "--overlay".into(), overlay.into()]),
        LabCommand::Down => args.push("down".into()),
        LabCommand::Status { output } => {
            args.push("status".into());
            if output == Some(TableOutput::Json) {
                args.extend(["-o".into(), "json".into()]);
            }
        }
        LabCommand::Exec { pod, container, command } => {
            args.push("exec".into());
            if let Some(container) = container {
                args.extend(["-c".into(), container.into()]);
            }
            args.extend([pod.into(), "--".into()]);
            args.extend(command);
        }
    }
    args
}

/// Becomes the lab's program, so that terminal, signals and exit code are its own.
///
/// # Errors
/// When it cannot be run; otherwise this does not come back.
pub fn forward(command: LabCommand) -> Result<std::convert::Infallible> {
    let program = program()?;
    platform::become_program(&program, arguments(command)).with_context(|| format!("cannot run {}", program.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lab_commands_become_the_same_arguments() {
        let exec = LabCommand::Exec { pod: "curl".into(), container: None, command: vec!["ls".into(), "-l".into()] };
        assert_eq!(arguments(exec), ["exec", "curl", "--", "ls", "-l"]);
        assert_eq!(arguments(LabCommand::Up { overlay: "vxlan".into() }), ["up", "--overlay", "vxlan"]);
        assert_eq!(arguments(LabCommand::Status { output: Some(TableOutput::Json) }), ["status", "-o", "json"]);
    }
}
