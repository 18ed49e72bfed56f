//! The helper pod: built from the API's types, so that what `--dry-run=client` prints is what would be sent.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    AppArmorProfile, Capabilities, Container, HostPathVolumeSource, Pod, PodSpec, ResourceRequirements, SELinuxOptions, SeccompProfile,
    SecurityContext, Toleration, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::Value;

use crate::cli::Seccomp;
use crate::cluster::helper::owner::{self, Owner, random_suffix};
use crate::cluster::helper::privilege::{self, MODES};
use crate::cluster::helper::yaml;
use crate::mode::Mode;

/// Name of the one container.
pub const CONTAINER: &str = "helper";
/// Selects every helper pod.
pub const SELECTOR: &str = "app.kubernetes.io/name=sockpath-helper,app.kubernetes.io/managed-by=kubectl-sockpath";
/// Label: the run of the plugin that started it.
pub const LABEL_SESSION: &str = "sockpath/session";
/// Label: what it was started for.
pub const LABEL_MODE: &str = "sockpath/mode";
/// The image when `--helper-image` is not given. The release build pins it by digest through `SOCKPATH_RELEASE_IMAGE`.
pub const DEFAULT_IMAGE: &str = match option_env!("SOCKPATH_RELEASE_IMAGE") {
    Some(image) => image,
    None => concat!("ghcr.io/sockpath/helper:v", env!("CARGO_PKG_VERSION")),
};

/// What a helper asks of its node.
pub const CPU_REQUEST: &str = "10m";
/// The same of memory.
pub const MEMORY_REQUEST: &str = "64Mi";
/// The kernel's bytes for maps and ring buffers count towards it, so it is well above the request.
pub const MEMORY_LIMIT: &str = "256Mi";
/// Time for an acceleration to drain its queues after SIGTERM, in seconds.
const GRACE_SECONDS: i64 = 15;
/// Longest run of letters of the node's name that goes into the pod's name, which becomes a host name of at most 63.
const NODE_IN_NAME: usize = 30;

/// What a helper pod is built from.
#[derive(Debug, Clone)]
pub struct HelperSpec {
    /// What it is for.
    pub mode: Mode,
    /// The node it has to run on.
    pub node: String,
    /// The namespace it lives in (`--helper-namespace`).
    pub namespace: String,
    /// Its image (`--helper-image`).
    pub image: String,
    /// The kubelet ends it after this many seconds, whatever else fails.
    pub deadline_seconds: i64,
    /// `RuntimeDefault`, or `Unconfined` for runtimes whose default profile refuses bpf(2) to every container.
    pub seccomp: Seccomp,
    /// How long it goes on after its session, if it does.
    pub stays: Option<Duration>,
    /// Who starts it.
    pub owner: Owner,
}

impl HelperSpec {
    /// The pod, under a name that is unique.
    #[must_use]
    pub fn build(&self) -> Pod {
        self.build_named(&self.unique_name())
    }

    fn unique_name(&self) -> String {
        let node: String = self.node.split('.').next().unwrap_or_default().chars().take(NODE_IN_NAME).collect();
        format!("sockpath-{}-{}-{}", privilege::mode_name(self.mode), node.trim_end_matches('-'), random_suffix())
    }

    fn build_named(&self, name: &str) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.to_owned());
        pod.metadata.namespace = Some(self.namespace.clone());
        pod.metadata.labels = Some(BTreeMap::from([
            ("app.kubernetes.io/name".to_owned(), "sockpath-helper".to_owned()),
            ("app.kubernetes.io/managed-by".to_owned(), "kubectl-sockpath".to_owned()),
            ("app.kubernetes.io/version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
            (LABEL_SESSION.to_owned(), self.owner.session.clone()),
            (LABEL_MODE.to_owned(), privilege::mode_name(self.mode).to_owned()),
        ]));
        let mut annotations = self.owner.annotations();
        if let Some(lease) = self.stays {
            annotations.extend(owner::until(lease));
        }
        pod.metadata.annotations = Some(annotations);
        pod.spec = Some(PodSpec {
            node_name: Some(self.node.clone()),
            restart_policy: Some("Never".to_owned()),
            active_deadline_seconds: Some(self.deadline_seconds),
            termination_grace_period_seconds: Some(GRACE_SECONDS),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            dns_policy: Some("Default".to_owned()),
            host_pid: Some(true),
            tolerations: Some(vec![Toleration { operator: Some("Exists".to_owned()), ..Default::default() }]),
            containers: vec![self.container()],
            volumes: Some(self.mounts().iter().map(HostMount::volume).collect()),
            ..Default::default()
        });
        pod
    }

    fn container(&self) -> Container {
        let seccomp = match self.seccomp {
            Seccomp::RuntimeDefault => "RuntimeDefault",
            Seccomp::Unconfined => "Unconfined",
        };
        let quantity = |s: &str| Quantity(s.to_owned());
        Container {
            name: CONTAINER.to_owned(),
            image: Some(self.image.clone()),
            image_pull_policy: Some("IfNotPresent".to_owned()),
            command: Some(vec!["/sockpath-helper".to_owned()]),
            args: Some(vec!["session".to_owned()]),
            termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
            stdin: Some(true),
            resources: Some(ResourceRequirements {
                requests: Some(BTreeMap::from([
                    ("cpu".to_owned(), quantity(CPU_REQUEST)),
                    ("memory".to_owned(), quantity(MEMORY_REQUEST)),
                ])),
                limits: Some(BTreeMap::from([("memory".to_owned(), quantity(MEMORY_LIMIT))])),
                ..Default::default()
            }),
            security_context: Some(SecurityContext {
                allow_privilege_escalation: Some(false),
                app_armor_profile: Some(AppArmorProfile { type_: "Unconfined".to_owned(), ..Default::default() }),
                capabilities: Some(Capabilities {
                    add: Some(privilege::capabilities(self.mode).iter().map(|c| c.name().to_owned()).collect()),
                    drop: Some(vec!["ALL".to_owned()]),
                }),
                privileged: Some(false),
                read_only_root_filesystem: Some(true),
                run_as_user: Some(0),
                se_linux_options: Some(SELinuxOptions { type_: Some("spc_t".to_owned()), ..Default::default() }),
                seccomp_profile: Some(SeccompProfile { type_: seccomp.to_owned(), ..Default::default() }),
                ..Default::default()
            }),
            volume_mounts: Some(self.mounts().iter().map(HostMount::mount).collect()),
            ..Default::default()
        }
    }

    fn mounts(&self) -> Vec<HostMount> {
        let mut mounts = vec![HostMount { name: "cgroup", path: "/sys/fs/cgroup", read_only: true }];
        if privilege::uses_bpffs(self.mode) {
            mounts.push(HostMount { name: "bpf", path: "/sys/fs/bpf", read_only: false });
        }
        mounts
    }
}

/// A directory of the node, mounted at the same path.
struct HostMount {
    name: &'static str,
    path: &'static str,
    read_only: bool,
}

impl HostMount {
    fn volume(&self) -> Volume {
        Volume {
            name: self.name.to_owned(),
            host_path: Some(HostPathVolumeSource { path: self.path.to_owned(), type_: Some("Directory".to_owned()) }),
            ..Default::default()
        }
    }

    fn mount(&self) -> VolumeMount {
        VolumeMount {
            name: self.name.to_owned(),
            mount_path: self.path.to_owned(),
            read_only: Some(self.read_only),
            // On hybrid nodes each hierarchy is a mount of its own below; readOnly alone covers only the top.
            recursive_read_only: self.read_only.then(|| "IfPossible".to_owned()),
            ..Default::default()
        }
    }
}

/// The pod as YAML with the reason beside each right it asks for.
///
/// # Errors
/// When the pod cannot be represented as JSON, which its types rule out.
pub fn to_yaml(pod: &Pod) -> serde_json::Result<String> {
    Ok(yaml::print(&serde_json::to_value(pod)?, &comment))
}

fn comment(path: &str, value: &Value) -> Option<String> {
    if path.starts_with("spec.containers[0].securityContext.capabilities.add[") {
        let name = value.as_str()?;
        return MODES.into_iter().flat_map(privilege::capabilities).find(|c| c.name() == name).map(|c| c.reason().to_owned());
    }
    let text = match path {
        "spec.activeDeadlineSeconds" => "the kubelet ends it after this time, even if everything else fails",
        "spec.automountServiceAccountToken" => "the helper has no credentials for the API; the plugin resolves all names",
        "spec.hostPID" => {
            "a pod is found by its cgroup, its namespace by one of its processes: both are hidden from other PID namespaces\n\
             (and /proc/1/ns/net is the node's own network namespace)"
        }
        "spec.nodeName" => "the node of the pods to observe; the scheduler is not involved",
        "spec.restartPolicy" => "a helper without its plugin must not restart",
        "spec.tolerations" => "it must run where the pods run, tainted or not",
        "spec.containers[0].stdin" => "requests arrive on stdin; without stdinOnce, the plugin can attach again when its connection breaks",
        "spec.containers[0].securityContext.allowPrivilegeEscalation" => "no_new_privs: no child process can gain privileges",
        "spec.containers[0].securityContext.appArmorProfile" => "the runtime's default profile hides processes of other profiles",
        "spec.containers[0].securityContext.runAsUser" => "capabilities added here are not ambient: only uid 0 gets them",
        "spec.containers[0].securityContext.seLinuxOptions" => {
            "container_t may not read other pods' processes; without SELinux this is ignored"
        }
        "spec.containers[0].securityContext.seccompProfile" => "the default profile permits bpf(2) and setns(2) for the capabilities above",
        "spec.containers[0].terminationMessagePolicy" => {
            "the pod's status contains the last output of a failed helper, so no right to read logs is needed"
        }
        "spec.containers[0].resources.limits" => "maps and ring buffers are charged to it",
        _ => {
            return match (path.ends_with(".hostPath"), value.pointer("/path").and_then(Value::as_str)) {
                (true, Some("/sys/fs/cgroup")) => {
                    Some("the cgroups of all pods: to find their processes and to attach sockops programs".into())
                }
                (true, Some("/sys/fs/bpf")) => {
                    Some("socket maps are pinned under /sys/fs/bpf/sockpath, so that no bytes are lost if the helper is killed".into())
                }
                _ => None,
            };
        }
    };
    Some(text.to_owned())
}

#[cfg(test)]
impl HelperSpec {
    /// One for tests.
    pub fn sample(mode: Mode) -> Self {
        Self {
            mode,
            node: "ip-10-0-0-1.eu-central-1.compute.internal".into(),
            namespace: "sockpath".into(),
            image: "example.test/helper@sha256:00".into(),
            deadline_seconds: 3600,
            seccomp: Seccomp::default(),
            stays: None,
            owner: Owner { session: "abcde".into(), client: "c1".into(), process: "1-2".into(), user: "me@here".into() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn least_rights() {
        for mode in MODES {
            let pod = HelperSpec::sample(mode).build();
            let s = pod.spec.unwrap();
            let c = &s.containers[0];
            let sc = c.security_context.as_ref().unwrap();
            assert_eq!(
                (sc.privileged, sc.allow_privilege_escalation, sc.read_only_root_filesystem),
                (Some(false), Some(false), Some(true))
            );
            assert_eq!(sc.capabilities.as_ref().unwrap().drop.as_deref(), Some(&["ALL".to_owned()][..]));
            assert_eq!((s.host_network, s.host_ipc, s.automount_service_account_token), (None, None, Some(false)));
            assert_eq!((c.stdin, c.stdin_once, s.restart_policy.as_deref()), (Some(true), None, Some("Never")));
            let paths: Vec<_> = s.volumes.unwrap().into_iter().map(|v| v.host_path.unwrap().path).collect();
            assert_eq!(paths.contains(&"/sys/fs/bpf".to_owned()), privilege::uses_bpffs(mode), "{mode:?}");
        }
    }

    #[test]
    fn names_are_unique_and_short_enough_for_a_host_name() {
        let (a, b) = (HelperSpec::sample(Mode::Accelerate).build(), HelperSpec::sample(Mode::Accelerate).build());
        let (a, b) = (a.metadata.name.unwrap(), b.metadata.name.unwrap());
        assert_ne!(a, b);
        assert!(a.starts_with("sockpath-accelerate-ip-10-0-0-1-"), "{a}");
        let mut long = HelperSpec::sample(Mode::Accelerate);
        long.node = "n".repeat(200);
        assert!(long.build().metadata.name.unwrap().len() <= 63);
    }

    #[test]
    fn every_right_is_explained_in_the_yaml() {
        for mode in MODES {
            let text = to_yaml(&HelperSpec::sample(mode).build()).unwrap();
            for capability in privilege::capabilities(mode) {
                let explained = format!("# {}\n        - {}\n", capability.reason(), capability.name());
                assert!(text.contains(&explained), "{explained}\n{text}");
            }
            for line in ["  hostPID: true", "  - hostPath:", "      runAsUser: 0", "      appArmorProfile:"] {
                let (before, _) = text.split_once(&format!("{line}\n")).unwrap_or_else(|| panic!("{line} is missing in\n{text}"));
                assert!(before.lines().last().unwrap().trim_start().starts_with('#'), "{line} is not explained in\n{text}");
            }
            let back: Pod = serde_saphyr::from_str(&text).unwrap();
            assert_eq!(back.spec, HelperSpec::sample(mode).build().spec, "what is printed is what would be sent");
        }
    }
}
