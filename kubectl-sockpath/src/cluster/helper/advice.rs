//! What to do when the API server refuses a helper pod or the stream to it.

use crate::cluster::api::problem::{Kind, Problem};
use crate::cluster::helper::pod::{CPU_REQUEST, MEMORY_LIMIT, MEMORY_REQUEST};

/// The command that lists what may change a pod while it is admitted.
pub const LIST_MUTATORS: &str = "kubectl get mutatingwebhookconfigurations,mutatingadmissionpolicies";

/// manifests/ of this release with its helper's image in the policy; the files of the repository cannot be applied.
pub const MANIFESTS: &str =
    concat!("https://github.com/sockpath/kubectl-sockpath/releases/download/v", env!("CARGO_PKG_VERSION"), "/manifests.yaml");

/// The command with which an administrator lets a user do it: in one namespace, or in the whole cluster. `role` is kubectl's
/// option, e.g. `--role=sockpath-user`.
#[must_use]
pub fn binding(user: Option<&str>, namespace: Option<&str>, role: &str) -> String {
    let user = user.unwrap_or("YOU");
    // Names of users are free text (OIDC issuers, service accounts), those of bindings and the shell are not.
    let name: String = user.chars().map(|c| if c.is_ascii_alphanumeric() || "-.@".contains(c) { c } else { '-' }).collect();
    let is_plain = user.chars().all(|c| c.is_ascii_alphanumeric() || "-._@:/".contains(c));
    let user = if is_plain { user.to_owned() } else { format!("'{}'", user.replace('\'', r"'\''")) };
    match namespace {
        Some(ns) => format!("kubectl create rolebinding -n {ns} sockpath-{name} {role} --user={user}"),
        None => format!("kubectl create clusterrolebinding sockpath-{name} {role} --user={user}"),
    }
}

/// Adds the next step to a refused creation of a helper pod.
#[must_use]
pub fn for_create(problem: Problem, namespace: &str) -> Problem {
    let advice = match problem.kind {
        Kind::PodSecurity => format!(
            "the helper needs a namespace that admits it: kubectl label namespace {namespace} pod-security.kubernetes.io/enforce=privileged --overwrite\n\
             or name one that does: --helper-namespace NS; kubectl apply -f {MANIFESTS} makes namespace sockpath"
        ),
        Kind::NoNamespace => format!(
            "create it once per cluster, with its policies and a Role: kubectl apply -f {MANIFESTS}\n\
             or without them, so that the right to create pods there is the right to be root on the nodes:\n\
             kubectl create namespace {namespace} && kubectl label namespace {namespace} pod-security.kubernetes.io/enforce=privileged"
        ),
        Kind::Terminating => format!(
            "wait until it is deleted, then create it again: kubectl wait --for=delete namespace/{namespace} && kubectl apply -f {MANIFESTS}\n\
             what holds it up: kubectl get namespace {namespace} -o yaml (status.conditions); --helper-namespace names another one"
        ),
        Kind::Forbidden => format!(
            "an administrator can allow it: kubectl apply -f {MANIFESTS}, then\n{}",
            binding(problem.user(), Some(namespace), "--role=sockpath-user")
        ),
        Kind::Denied => denied(&problem.to_string(), namespace),
        Kind::Quota => format!(
            "kubectl describe quota,limitrange -n {namespace} shows the limits: the helper requests {CPU_REQUEST} CPU and {MEMORY_REQUEST}, with a limit of {MEMORY_LIMIT};\n\
             an administrator can raise them, and --helper-namespace names another namespace"
        ),
        _ => return problem,
    };
    problem.with_advice(&advice)
}

/// What to do about an admission controller's refusal; whose it is stands in its message.
fn denied(refusal: &str, namespace: &str) -> String {
    let named = |before: &str, end: char| Some(refusal.split_once(before)?.1.split_once(end)?.0);
    match (named("ValidatingAdmissionPolicy '", '\''), named("admission webhook \"", '"')) {
        (Some("sockpath-helper"), _) if refusal.contains("is not among the images") => {
            "the images it admits: kubectl get validatingadmissionpolicy sockpath-helper -o jsonpath='{.spec.variables[0].expression}'\n\
             name one of them with --helper-image, or have an administrator add yours there (variable images)"
                .to_owned()
        }
        (Some("sockpath-helper"), _) if refusal.contains("is not pinned by digest") => {
            "name it by digest, in the policy and here: --helper-image NAME@sha256:DIGEST".to_owned()
        }
        (Some("sockpath-helper"), _) if refusal.contains("of this policy") => {
            "the API server adds these to each pod: an administrator can add their name to that variable of the policy:\n\
             kubectl edit validatingadmissionpolicy sockpath-helper"
                .to_owned()
        }
        (Some("sockpath-helper"), _) => format!(
            "the policy is that of another release than this plugin ({}): kubectl apply -f {MANIFESTS};\n\
             or something in the cluster changes the pod before the policy sees it: {LIST_MUTATORS}",
            env!("CARGO_PKG_VERSION")
        ),
        (Some(policy), _) => format!(
            "its rules: kubectl describe validatingadmissionpolicy {policy}; the pod: --dry-run=client -o yaml;\n\
             an administrator can except namespace {namespace} in the policy's binding (spec.matchResources.namespaceSelector)"
        ),
        (None, Some(webhook)) => format!(
            "its owner: kubectl get validatingwebhookconfigurations,mutatingwebhookconfigurations -o yaml (name: {webhook}); the pod: --dry-run=client -o yaml;\n\
             an administrator can except namespace {namespace} there (namespaceSelector)"
        ),
        (None, None) => format!(
            "an admission controller of the API server refuses the helper pod, which --dry-run=client -o yaml shows;\n\
             an administrator can except namespace {namespace}, and --helper-namespace names another one"
        ),
    }
}

/// Adds the next step to a refused attach.
#[must_use]
pub fn for_attach(problem: Problem, namespace: &str) -> Problem {
    match problem.kind {
        Kind::Forbidden => {
            let grant = binding(problem.user(), Some(namespace), "--role=sockpath-user");
            problem.with_advice(&format!(
                "attaching needs get and, from Kubernetes 1.35, create on pods/attach; the Role of manifests/rbac.yaml has both:\n{grant}"
            ))
        }
        _ => problem,
    }
}

/// Adds the next step to a refused look at the pods and Services of a namespace.
#[must_use]
pub fn for_lookup(problem: Problem, namespace: Option<&str>) -> Problem {
    if problem.kind != Kind::Forbidden {
        return problem;
    }
    let grant = binding(problem.user(), namespace, "--clusterrole=sockpath-lookup");
    problem.with_advice(&match namespace {
        Some(_) => format!("an administrator can allow it: {grant}"),
        None => format!("set a namespace with -n, or let an administrator allow it:\n{grant}"),
    })
}

/// Adds the next step to a refused look at a node that was named.
#[must_use]
pub fn for_node(problem: Problem) -> Problem {
    if problem.kind != Kind::Forbidden {
        return problem;
    }
    let grant = binding(problem.user(), None, "--clusterrole=sockpath-nodes");
    problem.with_advice(&format!("an administrator can allow it: {grant}"))
}

/// What is left out for a user who may not list nodes, and who may change that.
#[must_use]
pub fn without_nodes(problem: &Problem, pods_too: bool) -> String {
    let grant = binding(problem.user(), None, "--clusterrole=sockpath-nodes");
    let asked = if pods_too {
        "the nodes of this namespace's pods and of accelerated connections"
    } else {
        "the nodes on which helpers accelerate"
    };
    format!(
        "you may not list nodes: this covers only {asked}, not resources that remain on other nodes; an administrator can allow it: {grant}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_of_the_pod_ends_in_a_command() {
        for (kind, expected) in [
            (Kind::PodSecurity, "kubectl label namespace tools pod-security.kubernetes.io/enforce=privileged"),
            (Kind::NoNamespace, "kubectl create namespace tools"),
            (Kind::Terminating, "kubectl wait --for=delete namespace/tools"),
            (Kind::Forbidden, "kubectl create rolebinding -n tools"),
            (Kind::Denied, "--dry-run=client -o yaml"),
            (Kind::Quota, "kubectl describe quota,limitrange -n tools"),
        ] {
            let text = for_create(Problem::new(kind, "cannot create the helper pod: no"), "tools").to_string();
            assert!(text.contains(expected), "{text}");
        }
        let unread = |ns| for_lookup(Problem::new(Kind::Forbidden, "no"), ns).to_string();
        assert!(unread(Some("shop")).contains("rolebinding -n shop sockpath-YOU --clusterrole=sockpath-lookup"));
        assert!(unread(None).contains("clusterrolebinding"));
        assert!(for_attach(Problem::new(Kind::Forbidden, "no"), "tools").to_string().contains("pods/attach"));
    }

    #[test]
    fn a_denial_is_answered_with_what_helps_against_whose_it_is() {
        let answer = |refusal: &str| for_create(Problem::new(Kind::Denied, refusal), "tools").to_string();
        let ours = |why: &str| answer(&format!("no: ValidatingAdmissionPolicy 'sockpath-helper' with binding 'b' denied request: {why}"));
        assert!(ours("image x is not among the images of this policy").contains("jsonpath='{.spec.variables[0].expression}'"));
        assert!(ours("image x is not pinned by digest").contains("--helper-image NAME@sha256:DIGEST"));
        assert!(ours("spec.priorityClassName: not among the priorityClasses of this policy").contains("kubectl edit"));
        assert!(ours("the helper has no such spec.hostNetwork").contains(&format!("kubectl apply -f {MANIFESTS}")));
        let theirs = answer("no: ValidatingAdmissionPolicy 'no-host-pid' with binding 'b' denied request: no");
        assert!(
            theirs.contains("kubectl describe validatingadmissionpolicy no-host-pid") && theirs.contains("namespace tools"),
            "{theirs}"
        );
        assert!(answer("admission webhook \"v.io\" denied the request: no").contains("(name: v.io)"));
    }

    #[test]
    fn the_user_who_was_refused_is_named_in_the_command() {
        let refused = |user: &str| {
            let text = format!("cannot create: pods is forbidden: User \"{user}\" cannot create resource \"pods\"");
            for_create(Problem::new(Kind::Forbidden, text), "tools").to_string()
        };
        assert!(refused("dave").ends_with("-n tools sockpath-dave --role=sockpath-user --user=dave"));
        let account = "system:serviceaccount:ci:runner";
        assert!(
            refused(account)
                .ends_with("sockpath-system-serviceaccount-ci-runner --role=sockpath-user --user=system:serviceaccount:ci:runner")
        );
        assert!(refused("o'neill x").ends_with(r"sockpath-o-neill-x --role=sockpath-user --user='o'\''neill x'"));
    }
}
