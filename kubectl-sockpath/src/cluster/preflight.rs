//! What `doctor` can say of client and cluster without a helper: who we are, what we may do, what the namespace admits.

use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::{EnvVar, Namespace, Pod};
use kube::api::PostParams;
use sockpath_protocol::message::{Check, CheckState};

use super::api::client::Api;
use super::api::problem::{Kind, Problem};
use super::helper::advice;
use super::helper::pod::HelperSpec;

/// WebSockets for attach are on by default from this minor version.
const OLDEST_MINOR: u32 = 30;

/// One right, what it is for, and whether everything fails without it.
struct Right {
    verb: &'static str,
    group: &'static str,
    resource: &'static str,
    subresource: &'static str,
    scope: RightScope,
    purpose: &'static str,
    essential: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum RightScope {
    /// The namespace of helper pods.
    Helper,
    /// The namespace of the pods to look at.
    Pods,
    /// The whole cluster.
    Cluster,
}

impl Right {
    /// What it is about, as a Role names it.
    fn object(&self) -> String {
        if self.subresource.is_empty() { self.resource.to_owned() } else { format!("{}/{}", self.resource, self.subresource) }
    }
}

const fn right(
    verb: &'static str,
    group: &'static str,
    resource: &'static str,
    subresource: &'static str,
    scope: RightScope,
    purpose: &'static str,
    essential: bool,
) -> Right {
    Right { verb, group, resource, subresource, scope, purpose, essential }
}

/// What manifests/rbac.yaml grants.
const RIGHTS: [Right; 12] = [
    right("create", "", "pods", "", RightScope::Helper, "start helpers", true),
    right("get", "", "pods", "", RightScope::Helper, "wait for helpers", true),
    right("watch", "", "pods", "", RightScope::Helper, "wait for helpers without polling", false),
    right("list", "", "pods", "", RightScope::Helper, "find remaining helpers", false),
    right("delete", "", "pods", "", RightScope::Helper, "remove helpers", true),
    right("get", "", "pods", "attach", RightScope::Helper, "connect to helpers", true),
    right("create", "", "pods", "attach", RightScope::Helper, "connect to helpers (from Kubernetes 1.35)", false),
    right("get", "", "pods", "", RightScope::Pods, "find pods", true),
    right("list", "", "pods", "", RightScope::Pods, "choose pods by label", false),
    right("get", "", "services", "", RightScope::Pods, "trace through Services", false),
    right("list", "discovery.k8s.io", "endpointslices", "", RightScope::Pods, "find the backends of a Service", false),
    right("get", "", "nodes", "", RightScope::Cluster, "read node addresses and check all nodes", false),
];

/// Rows about the client, the server and our rights.
pub async fn check(api: &Api, helper_namespace: &str) -> Vec<(String, Check)> {
    let mut rows = vec![("client".to_owned(), ok("plugin", format!("{} for {}", env!("CARGO_PKG_VERSION"), api.server())))];
    let server = match api.ask("read the version of the API server", api.client().apiserver_version()).await {
        Ok(info) => server_row(&info.git_version, &info.minor),
        Err(p) => {
            rows.push(("cluster".to_owned(), problem_row("API server", &p)));
            return rows;
        }
    };
    let mut cluster = vec![server];
    let user = match user(api).await {
        Ok(user) => user,
        Err(p) => {
            cluster.extend((p.kind == Kind::Unauthorized).then(|| problem_row("user", &p)));
            None
        }
    };
    cluster.extend(user.as_deref().map(|name| ok("user", name)));
    cluster.extend(rights(api, helper_namespace, user.as_deref()).await);
    cluster.push(namespace(api, helper_namespace).await);
    rows.extend(cluster.into_iter().map(|check| ("cluster".to_owned(), check)));
    rows
}

/// Asks the API server whether it would admit a helper pod, without creating it: PodSecurity, policies, quota, rights.
pub async fn admission(api: &Api, spec: &HelperSpec) -> Check {
    let pods: kube::Api<Pod> = kube::Api::namespaced(api.client(), &spec.namespace);
    let params = PostParams { dry_run: true, ..Default::default() };
    match api.ask("create a helper pod (dry run)", pods.create(&params, &spec.build())).await {
        Ok(_) => ok("helper pod", format!("would be admitted in namespace {}", spec.namespace)),
        Err(p) => problem_row("helper pod", &advice::for_create(p, &spec.namespace)),
    }
}

/// Whether a policy keeps other programs out of the namespace: asks, without creating it, for a helper pod with an environment, which ours
/// has not. `None` where something else refuses it.
pub async fn policy(api: &Api, spec: &HelperSpec) -> Option<Check> {
    let mut pod = spec.build();
    let variable = EnvVar { name: "SOCKPATH_DOCTOR".to_owned(), ..Default::default() };
    pod.spec.as_mut()?.containers.first_mut()?.env = Some(vec![variable]);
    let pods: kube::Api<Pod> = kube::Api::namespaced(api.client(), &spec.namespace);
    let params = PostParams { dry_run: true, ..Default::default() };
    match api.ask("create a pod that is not a helper (dry run)", pods.create(&params, &pod)).await {
        Ok(_) => Some(Check {
            name: "policy".to_owned(),
            state: CheckState::Degraded,
            found: format!("none in namespace {}: users who may create pods there can become root on the nodes", spec.namespace),
            remedy: Some(format!("kubectl apply -f {} contains policies for namespace sockpath", advice::MANIFESTS)),
        }),
        Err(p) if p.to_string().contains("ValidatingAdmissionPolicy 'sockpath-helper'") => {
            Some(ok("policy", format!("namespace {} admits helpers only", spec.namespace)))
        }
        Err(_) => None,
    }
}

fn ok(name: &str, found: impl Into<String>) -> Check {
    Check { name: name.to_owned(), state: CheckState::Ok, found: found.into(), remedy: None }
}

/// A problem's first line is what is wrong, the rest what to do.
fn problem_row(name: &str, problem: &Problem) -> Check {
    let text = problem.to_string();
    let (found, remedy) = text.split_once('\n').map_or((text.as_str(), None), |(found, remedy)| (found, Some(remedy.to_owned())));
    Check { name: name.to_owned(), state: CheckState::Failed, found: found.to_owned(), remedy }
}

fn server_row(version: &str, minor: &str) -> Check {
    let digits: String = minor.chars().take_while(char::is_ascii_digit).collect();
    match digits.parse::<u32>() {
        Ok(minor) if minor < OLDEST_MINOR => Check {
            name: "API server".to_owned(),
            state: CheckState::Failed,
            found: format!("{version}, which cannot attach over WebSocket"),
            remedy: Some(format!("Kubernetes 1.{OLDEST_MINOR} or later is needed")),
        },
        _ => ok("API server", version),
    }
}

/// The user name that the API server sees.
async fn user(api: &Api) -> Result<Option<String>, Problem> {
    let reviews: kube::Api<SelfSubjectReview> = kube::Api::all(api.client());
    let review = api.ask("read the own user", reviews.create(&PostParams::default(), &SelfSubjectReview::default())).await?;
    Ok(review.status.and_then(|s| s.user_info?.username))
}

async fn rights(api: &Api, helper_namespace: &str, user: Option<&str>) -> Vec<Check> {
    let reviews: kube::Api<SelfSubjectAccessReview> = kube::Api::all(api.client());
    let (mut granted, mut rows) = (0, Vec::new());
    for r in &RIGHTS {
        let namespace = match r.scope {
            RightScope::Helper => Some(helper_namespace.to_owned()),
            RightScope::Pods => Some(api.namespace().to_owned()),
            RightScope::Cluster => None,
        };
        let attributes = ResourceAttributes {
            verb: Some(r.verb.to_owned()),
            group: Some(r.group.to_owned()),
            resource: Some(r.resource.to_owned()),
            subresource: Some(r.subresource.to_owned()).filter(|s| !s.is_empty()),
            namespace: namespace.clone(),
            ..Default::default()
        };
        let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
        let review = SelfSubjectAccessReview { spec, ..Default::default() };
        match api.ask("read the own permissions", reviews.create(&PostParams::default(), &review)).await {
            Ok(answer) if answer.status.as_ref().is_some_and(|s| s.allowed) => granted += 1,
            Ok(_) => rows.push(missing(r, namespace.as_deref(), user, api.is_namespace_named())),
            Err(p) => {
                rows.push(problem_row("permissions", &p));
                return rows;
            }
        }
    }
    if granted == RIGHTS.len() {
        rows.push(ok("permissions", "all permissions of manifests/rbac.yaml"));
    }
    rows
}

/// The row of a right that is missing. Where no namespace was `named`, pods may be meant that are elsewhere.
fn missing(right: &Right, namespace: Option<&str>, user: Option<&str>, named: bool) -> Check {
    let place = namespace.map_or_else(|| "in the cluster".to_owned(), |ns| format!("in namespace {ns}"));
    let role = match right.scope {
        RightScope::Helper => "--role=sockpath-user",
        RightScope::Pods => "--clusterrole=sockpath-lookup",
        RightScope::Cluster => "--clusterrole=sockpath-nodes",
    };
    let elsewhere = right.scope == RightScope::Pods && !named;
    let binding = advice::binding(user, namespace, role);
    Check {
        name: format!("may {} {}", right.verb, right.object()),
        state: if right.essential && !elsewhere { CheckState::Failed } else { CheckState::Degraded },
        found: format!("missing {place}: needed to {}", right.purpose),
        remedy: Some(if elsewhere { format!("set the namespace of your pods with -n; for this one:\n{binding}") } else { binding }),
    }
}

async fn namespace(api: &Api, name: &str) -> Check {
    let namespaces: kube::Api<Namespace> = kube::Api::all(api.client());
    match api.ask_opt(&format!("read namespace {name}"), namespaces.get(name)).await {
        Ok(Some(object)) => namespace_row(name, &object),
        Ok(None) => no_namespace(name),
        Err(p) if p.kind == Kind::NoNamespace => no_namespace(name),
        // Who may not read it still learns from the dry run whether it admits helpers.
        Err(p) if p.kind == Kind::Forbidden => ok("namespace", format!("{name} (its labels may not be read)")),
        Err(p) => problem_row("namespace", &p),
    }
}

fn no_namespace(name: &str) -> Check {
    Check {
        name: "namespace".to_owned(),
        state: CheckState::Failed,
        found: format!("namespace {name} does not exist"),
        remedy: Some(format!("kubectl apply -f {}", advice::MANIFESTS)),
    }
}

fn namespace_row(name: &str, object: &Namespace) -> Check {
    const ENFORCE: &str = "pod-security.kubernetes.io/enforce";
    let level = object.metadata.labels.as_ref().and_then(|l| l.get(ENFORCE)).map(String::as_str);
    match level {
        Some("privileged") => ok("namespace", format!("{name} admits privileged pods")),
        None => ok("namespace", format!("{name} has no {ENFORCE} label, the cluster's default applies")),
        Some(level) => Check {
            name: "namespace".to_owned(),
            state: CheckState::Failed,
            found: format!("{name} enforces PodSecurity {level}, which refuses the helper"),
            remedy: Some(format!("kubectl label namespace {name} {ENFORCE}=privileged --overwrite")),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::api::mock::Mock;
    use super::*;

    const REVIEWS: &str = "POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

    fn review(allowed: bool) -> serde_json::Value {
        json!({"kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "spec": {}, "status": {"allowed": allowed}})
    }

    fn version(minor: &str) -> serde_json::Value {
        json!({"major": "1", "minor": minor, "gitVersion": format!("v1.{minor}.0"), "gitCommit": "", "gitTreeState": "", "buildDate": "",
            "goVersion": "", "compiler": "", "platform": ""})
    }

    #[tokio::test]
    async fn what_is_missing_is_named_with_the_command_that_grants_it() {
        let mock =
            Mock::default().on("GET /version", 200, version("36")).on(REVIEWS, 201, review(false)).on(REVIEWS, 201, review(true)).on(
                "GET /api/v1/namespaces/tools",
                200,
                json!({"metadata": {"name": "tools", "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}),
            );
        let rows = check(&mock.api("shop"), "tools").await;
        let bad: Vec<_> = rows.iter().filter(|(_, c)| c.state == CheckState::Failed).map(|(_, c)| c).collect();
        assert_eq!(bad.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["may create pods", "namespace"]);
        assert_eq!(bad[0].remedy.as_deref(), Some("kubectl create rolebinding -n tools sockpath-YOU --role=sockpath-user --user=YOU"));
        assert!(bad[1].remedy.as_deref().unwrap().contains("enforce=privileged --overwrite"));
    }

    #[tokio::test]
    async fn a_missing_namespace_is_reported() {
        let gone = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404, "reason": "NotFound",
            "message": "namespaces \"tools\" not found", "details": {"kind": "namespaces", "name": "tools"}});
        let mock = Mock::default().on("GET /api/v1/namespaces/tools", 404, gone);
        let row = namespace(&mock.api("shop"), "tools").await;
        assert_eq!((row.state, row.found.as_str()), (CheckState::Failed, "namespace tools does not exist"));
        assert!(row.remedy.unwrap().contains("kubectl apply"));
    }

    #[tokio::test]
    async fn a_namespace_without_our_policy_is_reported() {
        const PODS: &str = "POST /api/v1/namespaces/sockpath/pods";
        let spec = HelperSpec::sample(crate::mode::Mode::Trace);
        let pod = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "x"}});
        let open = policy(&Mock::default().on(PODS, 201, pod).api("shop"), &spec).await.unwrap();
        assert!(open.state == CheckState::Degraded && open.remedy.unwrap().contains("manifests.yaml"), "{}", open.found);
        let refusal = |message: &str| json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 422, "message": message});
        let ours = "pods \"x\" is invalid: : ValidatingAdmissionPolicy 'sockpath-helper' with binding 'sockpath-helper' denied request: no";
        let kept = policy(&Mock::default().on(PODS, 422, refusal(ours)).api("shop"), &spec).await.unwrap();
        assert_eq!((kept.state, kept.found.as_str()), (CheckState::Ok, "namespace sockpath admits helpers only"));
        let mock = Mock::default().forbid(PODS);
        assert!(policy(&mock.api("shop"), &spec).await.is_none());
        assert!(mock.asked()[0].contains("dryRun=All"), "{:?}", mock.asked());
    }

    #[tokio::test]
    async fn an_old_or_dead_server_is_reported() {
        assert_eq!(server_row("v1.29.3", "29").state, CheckState::Failed);
        assert_eq!(server_row("v1.30.1-gke.1", "30+").state, CheckState::Ok);
        let dead = Mock::default().on("GET /version", 503, json!("down"));
        let rows = check(&dead.api("shop"), "tools").await;
        assert_eq!(rows.last().map(|(_, c)| (c.name.as_str(), c.state)), Some(("API server", CheckState::Failed)));
    }

    #[test]
    fn the_rights_are_those_of_the_manifest() {
        let manifest = include_str!("../../../manifests/rbac.yaml");
        for right in &RIGHTS {
            let object = right.object();
            let granted = manifest.lines().zip(manifest.lines().skip(1)).any(|(resources, verbs)| {
                let holds = |line: &str, word: &str| line.split(['[', ']', ',', ' ']).any(|w| w == word);
                resources.contains("resources:")
                    && holds(resources, &object)
                    && (holds(verbs, right.verb) || verbs.contains("resourceNames"))
            });
            assert!(granted, "manifests/rbac.yaml does not grant {} {object}", right.verb);
        }
    }
}
