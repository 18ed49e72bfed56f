//! kubectl as administrator of a cluster, and the namespaces that tests use.

use std::env;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Namespace of the workloads; deleted with the cluster, or at the end on a cluster that is not ours.
pub const NAMESPACE: &str = "sockpath-e2e";
/// Namespace of helper pods, as in manifests/.
pub const HELPERS: &str = "sockpath";
/// kubectl with a kubeconfig.
#[derive(Debug)]
pub struct Kubectl {
    /// The kubeconfig of the administrator.
    pub kubeconfig: PathBuf,
}

impl Kubectl {
    /// A command without arguments.
    #[must_use]
    pub fn command(&self) -> Command {
        let beside = env::var_os("K8S_BIN").map(|dir| PathBuf::from(dir).join("kubectl")).filter(|p| p.is_file());
        let mut command = Command::new(beside.unwrap_or_else(|| PathBuf::from("kubectl")));
        command.env("KUBECONFIG", &self.kubeconfig).stdin(Stdio::null());
        command
    }
}
