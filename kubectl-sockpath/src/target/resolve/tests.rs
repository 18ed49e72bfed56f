use super::*;
use crate::exit::{Exit, of_error};
use crate::inventory::ContainerInfo;
use sockpath_protocol::request::{Frontend, Locate, Node};

/// Two nodes: `curl` (with a sidecar) and `web` on one, `far` on two, and in namespace `shop` `clerk` on one; Service `web` before `web` and `far`, `empty` before nobody.
struct Small;

fn info(name: &str, node: &str, last: u8) -> PodInfo {
    let ports = |name: &str, port| ContainerInfo { name: name.to_owned(), ports: vec![port] };
    let mut containers = vec![ports("main", 8080)];
    if name == "curl" {
        containers.push(ports("sidecar", 8081));
    }
    let pod = Pod {
        namespace: "default".to_owned(),
        name: name.to_owned(),
        uid: format!("uid-{name}"),
        node: node.to_owned(),
        ips: vec![IpAddr::from([10, 42, 1, last]), format!("fd00:42::{last}").parse().unwrap()],
        host_network: false,
        containers: Vec::new(),
        locate: Locate::Uid,
    };
    PodInfo { pod, unusable: (name == "dead").then(|| "it is Pending".to_owned()), containers }
}

fn all() -> Vec<PodInfo> {
    let mut clerk = info("clerk", "one", 6);
    clerk.pod.namespace = "shop".to_owned();
    vec![info("curl", "one", 2), info("web", "one", 3), info("far", "two", 4), info("dead", "two", 5), clerk]
}

fn named_service(name: &str) -> Option<ServiceInfo> {
    let (last, backends) = match name {
        "web" => (10, vec![info("web", "one", 3), info("far", "two", 4)]),
        "empty" => (11, Vec::new()),
        _ => return None,
    };
    let ips = [IpAddr::from([10, 96, 0, last]), format!("fd00:96::{last}").parse().unwrap()];
    let frontends = ips.map(|ip| Frontend { addr: SocketAddr::new(ip, 80), protocol: Protocol::Tcp }).to_vec();
    let addresses = backends.iter().map(|b: &PodInfo| SocketAddr::new(b.pod.ips[0], 8080)).collect();
    Some(ServiceInfo {
        service: Service { namespace: "default".to_owned(), name: name.to_owned(), frontends, backends: addresses },
        backends,
    })
}

/// A headless Service with two ports.
fn headless() -> ServiceInfo {
    let mut service = named_service("web").unwrap();
    service.service.frontends.clear();
    service.service.backends = ["10.42.1.3:8080", "10.42.1.3:9090", "[fd00:42::3]:9090"].map(|a| a.parse().unwrap()).to_vec();
    service
}

impl Inventory for Small {
    fn namespace(&self) -> &str {
        "default"
    }
    async fn pod(&self, namespace: &str, name: &str) -> Result<Option<PodInfo>> {
        Ok(all().into_iter().find(|p| p.pod.namespace == namespace && p.pod.name == name))
    }
    async fn pods(&self, scope: &Scope) -> Result<Vec<PodInfo>> {
        Ok(all().into_iter().filter(|p| scope.namespace.as_ref().is_none_or(|ns| *ns == p.pod.namespace)).collect())
    }
    async fn pods_at(&self, ip: IpAddr) -> Result<Vec<PodInfo>> {
        Ok(all().into_iter().filter(|p| p.pod.ips.contains(&ip)).collect())
    }
    async fn deployment(&self, _: &str, name: &str) -> Result<Option<Vec<PodInfo>>> {
        Ok(match name {
            "web" => Some(vec![info("dead", "two", 5), info("web", "one", 3)]),
            "stuck" => Some(vec![info("dead", "two", 5)]),
            _ => None,
        })
    }
    async fn service(&self, _: &str, name: &str) -> Result<Option<ServiceInfo>> {
        Ok(if name == "headless" { Some(headless()) } else { named_service(name) })
    }
    async fn services_with(&self, addresses: &[IpAddr]) -> Result<Vec<ServiceInfo>> {
        let touches = |s: &ServiceInfo| {
            s.service.frontends.iter().map(|f| f.addr).chain(s.service.backends.iter().copied()).any(|a| addresses.contains(&a.ip()))
        };
        Ok(["web", "empty"].into_iter().filter_map(named_service).filter(touches).collect())
    }
    async fn nodes(&self, names: &[String]) -> Result<Vec<Node>> {
        Ok(names.iter().map(|n| Node { name: n.clone(), ips: Vec::new(), netns: None }).collect())
    }
    async fn names(&self, kind: Kind, namespace: &str) -> Result<Vec<String>> {
        Ok(match kind {
            Kind::Namespace => ["default", "other", "shop"].map(str::to_owned).to_vec(),
            Kind::Service if namespace == "shop" => vec!["till".to_owned()],
            _ if namespace != "default" => Vec::new(),
            Kind::Pod => all().into_iter().map(|p| p.pod.name).collect(),
            Kind::Service => vec!["web".to_owned(), "empty".to_owned()],
            _ => Vec::new(),
        })
    }
}

async fn plan_of(source: &str, target: &str) -> Result<Plan> {
    plan(&Small, source, target, None, None).await
}

#[tokio::test]
async fn scenarios() {
    for (source, target, scenario, nodes, probe) in [
        ("curl", "web", Scenario::SameNode, 1, Some("10.42.1.3:8080")),
        ("curl", "web:99", Scenario::SameNode, 1, Some("10.42.1.3:99")),
        ("curl", "far", Scenario::CrossNode, 2, Some("10.42.1.4:8080")),
        ("curl", "svc/web", Scenario::CrossNode, 2, Some("10.96.0.10:80")),
        ("curl", "10.96.0.10", Scenario::CrossNode, 2, Some("10.96.0.10:80")),
        ("curl", "[fd00:96::10]:80", Scenario::CrossNode, 2, Some("[fd00:96::10]:80")),
        ("curl", "fd00:96::10", Scenario::CrossNode, 2, Some("[fd00:96::10]:80")),
        ("curl", "svc/empty", Scenario::External, 1, Some("10.96.0.11:80")),
        ("curl", "svc/headless", Scenario::CrossNode, 2, Some("10.42.1.3:8080")),
        ("curl", "svc/headless:9090", Scenario::CrossNode, 2, Some("10.42.1.3:9090")),
        ("curl", ":8081", Scenario::InPod, 1, Some("127.0.0.1:8081")),
        ("curl", "localhost:8081", Scenario::InPod, 1, Some("127.0.0.1:8081")),
        ("curl", "[::1]:8081", Scenario::InPod, 1, Some("[::1]:8081")),
        ("curl", "curl:8081", Scenario::InPod, 1, Some("127.0.0.1:8081")),
        ("curl", "10.42.1.2:8081", Scenario::InPod, 1, Some("10.42.1.2:8081")),
        ("curl", "10.42.1.3", Scenario::SameNode, 1, Some("10.42.1.3:8080")),
        ("curl", "[fd00:42::4]:80", Scenario::CrossNode, 2, Some("[fd00:42::4]:80")),
        ("curl", "192.0.2.1", Scenario::External, 1, None),
        ("curl", "192.0.2.1:443", Scenario::External, 1, Some("192.0.2.1:443")),
        ("deploy/web", "curl", Scenario::SameNode, 1, Some("10.42.1.2:8080")),
        ("default/curl", "pod/web", Scenario::SameNode, 1, Some("10.42.1.3:8080")),
    ] {
        let plan = plan_of(source, target).await.unwrap_or_else(|e| panic!("{source} {target}: {e:#}"));
        assert_eq!(plan.scenario, scenario, "{source} {target}");
        assert_eq!(plan.request.nodes.len(), nodes, "{source} {target}");
        assert_eq!(plan.probe.map(|p| p.to.to_string()).as_deref(), probe, "{source} {target}");
    }
}

#[tokio::test]
async fn services_are_told_to_helpers() {
    let named = plan_of("curl", "svc/web").await.unwrap();
    assert_eq!(named.via_service.as_deref(), Some("default/web"));
    assert_eq!(named.request.targets.len(), 2);
    let unnamed = plan_of("curl", "web").await.unwrap();
    assert_eq!(unnamed.via_service, None);
    assert_eq!(unnamed.request.services.len(), 1);
    assert_eq!(plan(&Small, "curl", "web", Some("main"), None).await.unwrap().request.port, Some(8080));
}

#[tokio::test]
async fn a_probe_speaks_what_the_port_does() {
    let mut dns = named_service("web").unwrap();
    dns.service.frontends.iter_mut().for_each(|f| f.protocol = Protocol::Udp);
    let found = Found { pods: Vec::new(), addresses: Vec::new(), service: Some(dns), dialled: None, same: false };
    let source = info("curl", "one", 2);
    for (asked, spoken) in [(None, Protocol::Udp), (Some(Protocol::Tcp), Protocol::Tcp), (Some(Protocol::Udp), Protocol::Udp)] {
        let request = probe(asked, None, &found, &[], &source).unwrap();
        assert_eq!((request.protocol, request.http), (spoken, spoken == Protocol::Tcp));
        assert_eq!(request.to.to_string(), "10.96.0.10:80");
    }
}

#[tokio::test]
async fn mistakes_are_explained() {
    for (source, target, exit, words) in [
        ("curl", "curl", Exit::Usage, "same pod"),
        ("curl", "10.42.1.2", Exit::Usage, "trace curl :8081"),
        ("curl:80", "web", Exit::Usage, "belongs to the target"),
        ("svc/web", "curl", Exit::Usage, "sends nothing"),
        ("curl", "a b", Exit::Usage, "NS/NAME"),
        ("crul", "web", Exit::Failed, "did you mean curl?"),
        ("curl", "wbe", Exit::Failed, "did you mean web?"),
        ("curl", "empty", Exit::Failed, "svc/empty"),
        ("curl", "svc/far", Exit::Failed, "pod/far"),
        ("curl", "svc/webb", Exit::Failed, "did you mean web?"),
        ("curl", "other/web", Exit::Failed, "is the namespace right"),
        ("curl", "somethingelse", Exit::Failed, "there are curl, web"),
        ("curl", "othr/web", Exit::Failed, "there is no namespace `othr`; did you mean other?"),
        ("curl", "statefulsets/web", Exit::Failed, "only deploy/NAME can be named; name one of its pods, such as web"),
        ("curl", "till.shop.svc.cluster.local", Exit::Failed, "write shop/svc/till"),
        ("curl", "svc/till.shop", Exit::Failed, "write shop/svc/till"),
        ("curl", "sts/w", Exit::Failed, "name one of its pods"),
        ("curl", "svc/till", Exit::Failed, "there are web, empty"),
        ("shop/clerk", "svc/till", Exit::Failed, "there is one in namespace shop: write shop/svc/till"),
        ("curl", "svc/web:8443", Exit::Failed, "it has 80"),
        ("curl", "svc/web:8080", Exit::Failed, "8080 is the port of its pods"),
        ("curl", "dead", Exit::Failed, "Pending"),
        ("192.0.2.1", "web", Exit::Failed, "no pod has the address"),
    ] {
        let error = plan_of(source, target).await.expect_err(target);
        let text = format!("{error:#}");
        assert!(text.contains(words), "{source} {target}: {text}");
        assert_eq!(of_error(&error), exit, "{source} {target}: {text}");
    }
    let error = plan(&Small, "curl", "web", Some("nope"), None).await.unwrap_err();
    assert!(error.to_string().contains("it has main"), "{error}");
}

#[tokio::test]
async fn pods_to_accelerate() {
    let scope = Scope { namespace: Some("default".to_owned()), selector: None };
    assert_eq!(select_pods(&Small, &[], &scope).await.unwrap().len(), 3);
    let names: Vec<String> = ["svc/web", "far", "curl"].map(str::to_owned).to_vec();
    assert_eq!(select_pods(&Small, &names, &scope).await.unwrap().len(), 3);
    let deployed = select_pods(&Small, &["deploy/web".to_owned()], &scope).await.unwrap();
    assert_eq!(
        deployed.iter().map(|p| p.pod.name.as_str()).collect::<Vec<_>>(),
        ["web"],
        "one of its pods does not run, which is no reason"
    );
    for (namespace, words) in [("prod", "there is no namespace `prod`"), ("other", "-A takes all")] {
        let error = select_pods(&Small, &[], &Scope { namespace: Some(namespace.to_owned()), selector: None }).await.unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
    for (names, words) in [
        ("dead", "cannot be accelerated: it is Pending"),
        ("web:1", "not ports"),
        ("10.0.0.1", "not addresses"),
        ("svc/empty", "nothing that was named"),
        ("deploy/stuck", "no pod of Deployment stuck runs: default/dead: it is Pending"),
    ] {
        let error = select_pods(&Small, &[names.to_owned()], &scope).await.unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
}
