//! What commands check first: privilege, and whether the lab is up and whole.

use anyhow::{Result, bail};

use super::plan::{Instance, NODES, PODS};
use super::state::{self, Phase, State};
use super::{cgroup, node};

/// Fails with what to do when this process is not root.
pub fn require_root() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the lab creates network namespaces and cgroups, which needs root; run it with sudo");
    }
    Ok(())
}

/// Fails when the lab is not there for this command.
pub fn require_up(instance: &Instance) -> Result<State> {
    let state = state::load(instance)?;
    let Some(state) = state else { bail!("the lab is not up; run `{}`", instance.command("up")) };
    match server_fault(instance, &state) {
        None if state.phase == Phase::Up => Ok(state),
        None => bail!("the lab is not complete; run `{}` to repair it", instance.command("up")),
        Some(fault) => bail!("the lab is broken: {fault}; run `{}` to repair it", instance.command("up")),
    }
}

/// What is wrong with a lab that should be up, if anything is. Reads only.
pub async fn fault(instance: &Instance, state: &State) -> Result<Option<String>> {
    if state.phase != Phase::Up {
        return Ok(Some("an earlier `lab up` did not finish".to_owned()));
    }
    for node in NODES {
        if let Some(fault) = node::check(instance, node.name, &node::devices(node, instance, state.overlay)).await? {
            return Ok(Some(fault));
        }
    }
    for pod in &PODS {
        if let Some(fault) = node::check(instance, pod.name, &["eth0".to_owned()]).await? {
            return Ok(Some(fault));
        }
    }
    Ok(server_fault(instance, state))
}

/// As [`fault`], but only what can be seen without privilege.
#[must_use]
fn server_fault(instance: &Instance, state: &State) -> Option<String> {
    for pod in &PODS {
        for container in pod.containers {
            let dir = state.container_cgroup(instance, pod, container);
            let pid = state.servers.get(&format!("{}/{}", pod.name, container.name));
            if !pid.is_some_and(|pid| cgroup::processes(&dir).contains(pid)) {
                return Some(format!("the server of pod {}, container {}, is gone", pod.name, container.name));
            }
        }
    }
    None
}
