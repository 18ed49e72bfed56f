//! What to do when the API server refuses a helper pod or the stream to it.

use super::problem::{Kind, Problem};

/// Adds the next step to a refused creation of a helper pod.
#[must_use]
pub fn for_create(problem: Problem, namespace: &str) -> Problem {
    let remedy = match problem.kind {
        Kind::PodSecurity => format!(
            "the helper needs a namespace that admits it: kubectl label namespace {namespace} pod-security.kubernetes.io/enforce=privileged --overwrite\n\
             or name one that does: --helper-namespace NS; kubectl apply -f manifests/ makes namespace sockpath"
        ),
        Kind::NoNamespace => format!(
            "make it once per cluster: kubectl apply -f manifests/ (namespace, Role and policies, each line explained)\n\
             or: kubectl create namespace {namespace} && kubectl label namespace {namespace} pod-security.kubernetes.io/enforce=privileged"
        ),
        Kind::Forbidden => format!(
            "an administrator can allow it: kubectl apply -f manifests/rbac.yaml, then\n\
             kubectl create rolebinding -n {namespace} sockpath-YOU --role=sockpath-user --user=YOU"
        ),
        Kind::Denied => format!(
            "an admission policy of the cluster refuses the helper pod: the policy of manifests/ admits only our image by digest (--helper-image);\n\
             for another one see the pod with --dry-run=client -o yaml, and have namespace {namespace} exempted"
        ),
        Kind::Quota => format!(
            "kubectl describe quota,limitrange -n {namespace} shows the limits; the helper asks for 10m CPU and 64Mi, limited to 256Mi"
        ),
        _ => return problem,
    };
    problem.with_remedy(&remedy)
}

/// Adds the next step to a refused attach.
#[must_use]
pub fn for_attach(problem: Problem, namespace: &str) -> Problem {
    match problem.kind {
        Kind::Forbidden => problem.with_remedy(&format!(
            "attaching needs get and, from Kubernetes 1.35, create on pods/attach in namespace {namespace}: manifests/rbac.yaml grants both"
        )),
        _ => problem,
    }
}

/// Adds the next step to a refused look at the pods and Services of a namespace.
#[must_use]
pub fn for_lookup(problem: Problem, namespace: Option<&str>) -> Problem {
    match (problem.kind, namespace) {
        (Kind::Forbidden, Some(ns)) => problem.with_remedy(&format!(
            "an administrator can allow it: kubectl create rolebinding -n {ns} sockpath-YOU --clusterrole=sockpath-lookup --user=YOU"
        )),
        (Kind::Forbidden, None) => problem.with_remedy(
            "name a namespace with -n, or have an administrator allow it:\n\
             kubectl create clusterrolebinding sockpath-YOU --clusterrole=sockpath-lookup --user=YOU",
        ),
        _ => problem,
    }
}

/// Adds the next step to a refused look at the nodes.
#[must_use]
pub fn for_nodes(problem: Problem) -> Problem {
    match problem.kind {
        Kind::Forbidden => problem.with_remedy(
            "no helper of ours runs, so there are no nodes to go by either; an administrator can let you list them:\n\
             kubectl create clusterrolebinding sockpath-YOU --clusterrole=sockpath-nodes --user=YOU",
        ),
        _ => problem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_of_the_pod_ends_in_a_command() {
        for (kind, expected) in [
            (Kind::PodSecurity, "kubectl label namespace tools pod-security.kubernetes.io/enforce=privileged"),
            (Kind::NoNamespace, "kubectl create namespace tools"),
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
}
