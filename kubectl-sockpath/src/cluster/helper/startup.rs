//! How far a helper pod has come, read from its status, and what to do when it comes no further.
//!
//! Pure: an object in, a verdict out, so that every failure is a test without a cluster.

use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, Event, Node, Pod, PodStatus};

use crate::cluster::helper::pod::{CONTAINER, CPU_REQUEST, MEMORY_REQUEST};

/// How far it has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// Starting; what it waits for, in a few words.
    Waiting(String),
    /// Its process runs.
    Running,
    /// It will not start, not without help, or has ended already: what, why, and what to do.
    Failed(String),
}

/// How long a fault that may pass (a registry that does not answer, a sandbox that fails once) is given before it is reported.
const PATIENCE: Duration = Duration::from_secs(8);
/// How the phase begins in which an image is pulled.
pub const PULLING: &str = "pulling the image";
/// How long a node may not react before its conditions are read.
pub const SILENCE: Duration = Duration::from_secs(4);
/// How long the kubelet may take to report that a process has ended.
pub const REPORT: Duration = Duration::from_secs(3);

/// Judges a pod. `waited` is the time since it was created; `events` may be empty where the user may not read them.
#[must_use]
pub fn assess(pod: &Pod, events: &[Event], waited: Duration) -> Stage {
    let status = pod.status.clone().unwrap_or_default();
    let subject = Subject::of(pod);
    if pod.metadata.deletion_timestamp.is_some() {
        return Stage::Failed(deleted(&subject.namespace, &subject.name, &subject.node));
    }
    match status.phase.as_deref() {
        Some("Failed") => return failed(&subject, &status),
        Some("Succeeded") => {
            return Stage::Failed(format!("{subject} ended before it was used\n{}", image_advice(&subject)));
        }
        _ => {}
    }
    let unscheduled = status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False");
    if let Some(condition) = unscheduled {
        let why = condition.message.clone().or_else(|| condition.reason.clone()).unwrap_or_default();
        return Stage::Failed(format!("{subject} cannot be scheduled: {why}\n{}", scheduling_advice(&why, &subject.node)));
    }
    let container = status.container_statuses.iter().flatten().find(|c| c.name == CONTAINER);
    let Some(state) = container.and_then(|c| c.state.as_ref()) else {
        return stuck(&subject, events, waited).unwrap_or_else(|| Stage::Waiting("waiting for the kubelet".to_owned()));
    };
    container_stage(&subject, state, events, waited)
}

fn container_stage(subject: &Subject, state: &ContainerState, events: &[Event], waited: Duration) -> Stage {
    if state.running.is_some() {
        return Stage::Running;
    }
    if let Some(ended) = &state.terminated {
        return ended_at_once(subject, ended);
    }
    let waiting = state.waiting.clone().unwrap_or_default();
    let reason = waiting.reason.unwrap_or_default();
    let message = waiting.message.unwrap_or_default();
    match reason.as_str() {
        "ErrImageNeverPull" | "InvalidImageName" => Stage::Failed(image_text(subject, &reason, &message)),
        "ErrImagePull" | "ImagePullBackOff" | "ImageInspectError" | "RegistryUnavailable" => {
            if waited >= PATIENCE || is_final_pull_error(&message) {
                Stage::Failed(image_text(subject, &reason, &message))
            } else {
                Stage::Waiting(format!("{PULLING} again after: {}", first_sentence(&message)))
            }
        }
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" | "CrashLoopBackOff" => {
            Stage::Failed(format!("{subject} cannot be started ({reason}): {message}\n{}", create_advice(&message)))
        }
        _ => stuck(subject, events, waited).unwrap_or_else(|| Stage::Waiting(phase_of(events).to_owned())),
    }
}

/// How the process ended, once it has.
#[must_use]
pub fn terminated(status: &PodStatus) -> Option<&ContainerStateTerminated> {
    status.container_statuses.iter().flatten().find_map(|c| c.state.as_ref()?.terminated.as_ref())
}

/// The error for a helper pod that another client deletes before it runs: a person, or a controller that evicts pods.
#[must_use]
pub fn deleted(namespace: &str, name: &str, node: &str) -> String {
    format!(
        "the helper pod {namespace}/{name} on node {node} was deleted by another client before it ran\n\
         start the command again; what a controller has against it: kubectl get events -n {namespace} --field-selector involvedObject.name={name}"
    )
}

/// The pod as messages name it.
struct Subject {
    namespace: String,
    name: String,
    node: String,
    image: String,
}

impl Subject {
    fn of(pod: &Pod) -> Self {
        let spec = pod.spec.as_ref();
        Self {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            node: spec.and_then(|s| s.node_name.clone()).unwrap_or_default(),
            image: spec.and_then(|s| s.containers.first()).and_then(|c| c.image.clone()).unwrap_or_default(),
        }
    }
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the helper pod {}/{} on node {}", self.namespace, self.name, self.node)
    }
}

fn failed(subject: &Subject, status: &PodStatus) -> Stage {
    let reason = status.reason.clone().unwrap_or_default();
    let message = status.message.clone().unwrap_or_default();
    if reason.is_empty() {
        return ended_at_once(subject, &terminated(status).cloned().unwrap_or_default());
    }
    let advice = match reason.as_str() {
        "DeadlineExceeded" => "its deadline has passed: start the command again".to_owned(),
        "Evicted" => format!("the node lacks a resource: kubectl describe node {} shows which", subject.node),
        "OutOfpods" | "OutOfcpu" | "OutOfmemory" => format!("the node is full: {}", room_advice(&subject.node)),
        // The kubelet looks at NoExecute alone.
        "TaintToleration" => taint_advice(&subject.node),
        "NodeAffinity" | "NodeName" => format!("no helper can run on this node: kubectl describe node {}", subject.node),
        "NodeShutdown" | "Terminated" => "the node is shutting down".to_owned(),
        "AppArmor" => "the kubelet could not apply the AppArmor profile: kubectl describe pod shows why".to_owned(),
        _ => format!("kubectl describe node {} may show why", subject.node),
    };
    Stage::Failed(format!("{subject} was refused by the kubelet ({reason}): {message}\n{advice}"))
}

/// A process that the runtime could not start, or that ran and was gone: its last words are the container's termination message.
fn ended_at_once(subject: &Subject, ended: &ContainerStateTerminated) -> Stage {
    let message = ended.message.as_deref().unwrap_or_default();
    let is_refused = matches!(ended.reason.as_deref(), Some("StartError" | "ContainerCannotRun"));
    // Not every runtime gives that reason.
    if is_refused || message.contains("runc") || message.contains("OCI") {
        return Stage::Failed(format!("{subject} could not start its process: {message}\n{}", create_advice(message)));
    }
    let reason = ended.reason.as_deref().unwrap_or("no reason given");
    let words: Vec<_> = message.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let words = if words.is_empty() { String::new() } else { format!(": {}", words.join("; ")) };
    Stage::Failed(format!("{subject} ended at once with exit code {} ({reason}){words}\n{}", ended.exit_code, image_advice(subject)))
}

fn image_advice(subject: &Subject) -> String {
    format!("is {} a helper of this release? check --helper-image (or SOCKPATH_HELPER_IMAGE)", subject.image)
}

fn scheduling_advice(why: &str, node: &str) -> String {
    if why.contains("taint") { taint_advice(node) } else { room_advice(node) }
}

fn room_advice(node: &str) -> String {
    format!(
        "kubectl describe node {node} shows the allocated resources; the helper needs one pod slot, {CPU_REQUEST} CPU and {MEMORY_REQUEST}"
    )
}

fn taint_advice(node: &str) -> String {
    format!(
        "the helper tolerates every taint, so something in the cluster removed its tolerations;\n\
         the node's taints: kubectl get node {node} -o jsonpath='{{.spec.taints}}'"
    )
}

fn is_final_pull_error(message: &str) -> bool {
    let m = message.to_ascii_lowercase();
    ["not found", "unauthorized", "denied", "forbidden", "no match for platform", "manifest unknown", "invalid reference"]
        .iter()
        .any(|s| m.contains(s))
}

fn image_text(subject: &Subject, reason: &str, message: &str) -> String {
    let m = message.to_ascii_lowercase();
    let image = &subject.image;
    let advice = if reason == "ErrImageNeverPull" {
        format!("the image is not on node {}: load it there (kind load docker-image, ctr -n k8s.io images import)", subject.node)
    } else if reason == "InvalidImageName" {
        "--helper-image must be a valid image reference".to_owned()
    } else if m.contains("no match for platform") {
        format!("the image has no variant for this node's architecture: kubectl get node {} -L kubernetes.io/arch", subject.node)
    } else if m.contains("unauthorized") || m.contains("denied") || m.contains("forbidden") {
        format!(
            "the registry requires credentials: add an imagePullSecret to the service account 'default' of namespace {}, or use --helper-image with a mirror",
            subject.namespace
        )
    } else if m.contains("not found") || m.contains("manifest unknown") {
        "the image does not exist: check --helper-image (or SOCKPATH_HELPER_IMAGE)".to_owned()
    } else {
        format!("node {} cannot reach the registry: mirror the image and use --helper-image, or load it on the node", subject.node)
    };
    format!("the image {image} cannot be pulled on node {} ({reason}): {message}\n{advice}", subject.node)
}

/// Why the runtime could not make or start the container.
fn create_advice(message: &str) -> String {
    let m = message.to_ascii_lowercase();
    if m.contains("seccomp") {
        "the runtime could not apply its seccomp profile: try --seccomp Unconfined, and kubectl sockpath doctor".to_owned()
    } else if m.contains("exec format error") {
        "the image is built for a different architecture than the node's: check --helper-image".to_owned()
    } else if m.contains("no such file") && m.contains("sockpath-helper") {
        "the image does not contain /sockpath-helper: check --helper-image".to_owned()
    } else if m.contains("/sys/fs/bpf") {
        "the node has no BPF file system mounted: mount -t bpf bpf /sys/fs/bpf on the node (systemd does so at boot)".to_owned()
    } else if m.contains("apparmor") {
        "the runtime could not apply the AppArmor setting of the pod".to_owned()
    } else if m.contains("capabilit") || m.contains("operation not permitted") {
        "the runtime cannot grant a capability that the helper needs (is the node itself a container with fewer rights?)".to_owned()
    } else {
        "kubectl describe pod shows the runtime's message; kubectl sockpath doctor checks the node".to_owned()
    }
}

/// Warnings of the kubelet about a pod that comes no further, once they persist.
fn stuck(subject: &Subject, events: &[Event], waited: Duration) -> Option<Stage> {
    if waited < PATIENCE {
        return None;
    }
    let warning = events.iter().rfind(|e| e.type_.as_deref() == Some("Warning"))?;
    let reason = warning.reason.clone().unwrap_or_default();
    let message = warning.message.clone().unwrap_or_default();
    let advice = match reason.as_str() {
        "FailedMount" | "FailedAttachVolume" => {
            if message.contains("/sys/fs/bpf") {
                "the node has no /sys/fs/bpf: mount -t bpf bpf /sys/fs/bpf there".to_owned()
            } else {
                format!("the node does not have that directory: kubectl describe pod -n {} {}", subject.namespace, subject.name)
            }
        }
        "FailedCreatePodSandBox" => "the node's network plugin or runtime cannot create pods: check other new pods on that node".to_owned(),
        _ => create_advice(&message),
    };
    Some(Stage::Failed(format!("{subject} does not start ({reason}): {message}\n{advice}")))
}

fn phase_of(events: &[Event]) -> &'static str {
    match events.last().and_then(|e| e.reason.as_deref()) {
        Some("Pulling") => PULLING,
        Some("Pulled" | "Created") => "starting the helper",
        Some("FailedCreatePodSandBox") => "the pod's sandbox failed, the kubelet retries",
        Some("FailedMount") => "a mount failed, the kubelet retries",
        _ => "creating the helper's container",
    }
}

/// Says what is wrong with a node that does not react to a pod; `None` when it looks well.
#[must_use]
pub fn node_trouble(node: &Node) -> Option<String> {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let ready = node.status.as_ref()?.conditions.iter().flatten().find(|c| c.type_ == "Ready")?;
    (ready.status != "True").then(|| {
        format!(
            "node {name} is not ready ({}): {}\nits kubelet does not start pods: kubectl describe node {name}",
            ready.reason.as_deref().unwrap_or("no reason given"),
            ready.message.as_deref().unwrap_or("no message")
        )
    })
}

fn first_sentence(message: &str) -> &str {
    let end = message.char_indices().nth(80).map_or(message.len(), |(i, _)| i);
    message[..end].split('\n').next().unwrap_or_default()
}

#[cfg(test)]
#[path = "startup_tests.rs"]
mod tests;
