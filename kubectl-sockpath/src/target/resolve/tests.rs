use super::*;
use crate::exit::{Exit, of_error};
use crate::inventory::{ContainerInfo, Kind, Port, ServiceInfo};
use sockpath_protocol::pod::{Locate, Node};
use sockpath_protocol::request::{Frontend, Service};

/// Two nodes: `curl` (with a sidecar) and `web` on one, `far` on two, and in namespace `shop` `clerk` on one; Service `web` before `web` and `far`, `empty` without endpoints.
struct Small;

fn info(name: &str, node: &str, last: u8) -> PodInfo {
    let ports = |name: &str, port: u16| ContainerInfo {
        name: name.to_owned(),
        ports: vec![Port { name: Some(format!("{name}-port")), ..Port::from(port) }],
    };
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
        ports: vec![Port { name: Some("http".to_owned()), ..Port::from(80) }],
        backends,
    })
}

/// The two nodes, as targets and sources.
fn nodes() -> Vec<PodInfo> {
    let node = |name: &str, last: u8| Node { name: name.to_owned(), ips: vec![IpAddr::from([192, 0, 2, 100 + last])], netns: None };
    vec![PodInfo::of_node(&node("one", 1)), PodInfo::of_node(&node("two", 2))]
}

/// A pod with hostNetwork on node two that declares 9100.
fn exporter() -> PodInfo {
    let mut pod = info("exporter", "two", 9);
    (pod.pod.host_network, pod.pod.ips) = (true, vec![IpAddr::from([192, 0, 2, 102])]);
    pod.containers = vec![ContainerInfo { name: "main".to_owned(), ports: vec![Port::from(9100)] }];
    pod
}

/// DNS over both protocols, as kube-dns has it, behind `far`; node port 30053 for TCP, and an external address.
fn dns() -> ServiceInfo {
    let mut service = named_service("web").unwrap();
    let port = |name: &str, protocol| Port { name: Some(name.to_owned()), number: 53, protocol };
    service.service.name = "dns".to_owned();
    service.ports = vec![port("dns", Protocol::Udp), port("dns-tcp", Protocol::Tcp)];
    let frontend = |addr: &str, protocol| Frontend { addr: addr.parse().unwrap(), protocol };
    service.service.frontends = vec![
        frontend("10.96.0.53:53", Protocol::Udp),
        frontend("10.96.0.53:53", Protocol::Tcp),
        frontend("198.51.100.7:53", Protocol::Udp),
        frontend("192.0.2.101:30053", Protocol::Tcp),
        frontend("192.0.2.102:30053", Protocol::Tcp),
    ];
    service.service.backends = vec!["10.42.1.4:53".parse().unwrap()];
    service.backends = vec![info("far", "two", 4)];
    service
}

/// A headless Service with two ports.
fn headless() -> ServiceInfo {
    let mut service = named_service("web").unwrap();
    service.service.frontends.clear();
    service.service.backends = ["10.42.1.3:8080", "10.42.1.3:9090", "[fd00:42::3]:9090"].map(|a| a.parse().unwrap()).to_vec();
    service.ports = vec![Port::from(8080), Port { name: Some("metrics".to_owned()), ..Port::from(9090) }];
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
        let labelled = |p: &PodInfo| scope.selector.as_ref().is_none_or(|s| *s == format!("app={}", p.pod.name));
        let here = |p: &PodInfo| scope.namespace.as_ref().is_none_or(|ns| *ns == p.pod.namespace);
        Ok(all().into_iter().filter(|p| here(p) && labelled(p)).collect())
    }
    async fn pods_at(&self, ip: IpAddr) -> Result<Vec<PodInfo>> {
        Ok(all().into_iter().chain([exporter()]).filter(|p| p.pod.ips.contains(&ip)).collect())
    }
    async fn workload(&self, kind: Kind, _: &str, name: &str) -> Result<Option<Vec<PodInfo>>> {
        Ok(match (kind, name) {
            (Kind::Deployment, "web") => Some(vec![info("dead", "two", 5), info("web", "one", 3)]),
            (Kind::StatefulSet, "far") => Some(vec![info("far", "two", 4)]),
            (Kind::Deployment, "stuck") => Some(vec![info("dead", "two", 5)]),
            _ => None,
        })
    }
    async fn node(&self, name: &str) -> Result<Option<PodInfo>> {
        Ok(nodes().into_iter().find(|n| n.pod.name == name))
    }
    async fn node_at(&self, ip: IpAddr) -> Result<Option<PodInfo>> {
        Ok(nodes().into_iter().find(|n| n.pod.ips.contains(&ip)))
    }
    async fn service(&self, namespace: &str, name: &str) -> Result<Option<ServiceInfo>> {
        Ok(match (namespace, name) {
            ("shop", "till") => named_service("empty"),
            ("default", "headless") => Some(headless()),
            ("default", "dns") => Some(dns()),
            ("default", name) => named_service(name),
            _ => None,
        })
    }
    async fn services_with(&self, addresses: &[IpAddr]) -> Result<Vec<ServiceInfo>> {
        let touches = |s: &ServiceInfo| {
            s.service.frontends.iter().map(|f| f.addr).chain(s.service.backends.iter().copied()).any(|a| addresses.contains(&a.ip()))
        };
        Ok(["web", "empty"].into_iter().filter_map(named_service).chain([dns()]).filter(touches).collect())
    }
    async fn nodes(&self, names: &[String]) -> Result<Vec<Node>> {
        Ok(names.iter().map(|n| Node { name: n.clone(), ips: Vec::new(), netns: None }).collect())
    }
    async fn names(&self, kind: Kind, namespace: &str) -> Result<Vec<String>> {
        Ok(match kind {
            Kind::Namespace => ["default", "other", "shop"].map(str::to_owned).to_vec(),
            Kind::Service if namespace == "shop" => vec!["till".to_owned()],
            Kind::Node => vec!["one".to_owned(), "two".to_owned()],
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
        ("sts/far", "curl", Scenario::CrossNode, 2, Some("10.42.1.2:8080")),
        ("app=curl", "app=web", Scenario::SameNode, 1, Some("10.42.1.3:8080")),
        ("curl", "sts/far:main-port", Scenario::CrossNode, 2, Some("10.42.1.4:8080")),
        ("curl", "svc/web:http", Scenario::CrossNode, 2, Some("10.96.0.10:80")),
        ("curl", "svc/headless:metrics", Scenario::CrossNode, 2, Some("10.42.1.3:9090")),
        ("curl", "web.default", Scenario::CrossNode, 2, Some("10.96.0.10:80")),
        ("curl", "web.default.svc.cluster.local:http", Scenario::CrossNode, 2, Some("10.96.0.10:80")),
        ("curl", "svc/web.default", Scenario::CrossNode, 2, Some("10.96.0.10:80")),
        ("curl", "far.web.default.svc", Scenario::CrossNode, 2, Some("10.42.1.4:8080")),
        ("curl", "10-42-1-4.default.pod", Scenario::CrossNode, 2, Some("10.42.1.4:8080")),
        // Addresses are what they are: a node's, a hostNetwork pod's by its port, a Service's by its node port or external address.
        ("curl", "node/two", Scenario::CrossNode, 2, None),
        ("curl", "node/two:22", Scenario::CrossNode, 2, Some("192.0.2.102:22")),
        ("curl", "192.0.2.102:9100", Scenario::CrossNode, 2, Some("192.0.2.102:9100")),
        ("node/one", "web", Scenario::SameNode, 1, Some("10.42.1.3:8080")),
        ("192.0.2.102", "web", Scenario::CrossNode, 2, Some("10.42.1.3:8080")),
        ("curl", "198.51.100.7", Scenario::CrossNode, 2, Some("198.51.100.7:53")),
    ] {
        let plan = plan_of(source, target).await.unwrap_or_else(|e| panic!("{source} {target}: {e:#}"));
        assert_eq!(plan.scenario, scenario, "{source} {target}");
        assert_eq!(plan.request.nodes.len(), nodes, "{source} {target}");
        assert_eq!(plan.probe.map(|p| p.to.to_string()).as_deref(), probe, "{source} {target}");
    }
}

#[tokio::test]
async fn services_are_part_of_the_request() {
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
    dns.ports.iter_mut().for_each(|p| p.protocol = Protocol::Udp);
    let found = Found { service: Some(dns), ..Found::default() };
    let source = info("curl", "one", 2);
    for (asked, spoken) in [(None, Protocol::Udp), (Some(Protocol::Tcp), Protocol::Tcp), (Some(Protocol::Udp), Protocol::Udp)] {
        let request = probe(asked, None, &found, &[], &source).unwrap();
        assert_eq!((request.protocol, request.http), (spoken, spoken == Protocol::Tcp));
        assert_eq!(request.to.to_string(), "10.96.0.10:80");
    }
}

#[tokio::test]
async fn an_address_is_what_it_is_and_nothing_else() {
    let what = |plan: Plan| {
        let names: Vec<String> = plan.request.targets.iter().map(|p| p.name.clone()).collect();
        (names.join(","), plan.via_service)
    };
    for (target, names, service) in [
        ("192.0.2.102", "two", None),
        ("192.0.2.102:22", "two", None),
        ("192.0.2.102:9100", "exporter", None),
        ("192.0.2.102:30053", "far", Some("default/dns")),
        ("node/one:30053", "far", Some("default/dns")),
        ("198.51.100.7", "far", Some("default/dns")),
        ("10.96.0.53", "far", Some("default/dns")),
        ("203.0.113.9", "", None),
    ] {
        let plan = plan_of("curl", target).await.unwrap_or_else(|e| panic!("{target}: {e:#}"));
        assert_eq!(what(plan), (names.to_owned(), service.map(str::to_owned)), "{target}");
    }
}

#[tokio::test]
async fn the_protocol_is_that_of_the_services_port() {
    for (target, asked, spoken) in [
        ("svc/dns", None, Protocol::Udp),
        ("svc/dns:53", None, Protocol::Udp),
        ("svc/dns:dns", None, Protocol::Udp),
        ("svc/dns:dns-tcp", None, Protocol::Tcp),
        ("svc/dns:53", Some(Protocol::Tcp), Protocol::Tcp),
        ("svc/dns:30053", None, Protocol::Tcp),
        ("svc/web", None, Protocol::Tcp),
    ] {
        let plan = plan(&Small, "curl", target, None, asked).await.unwrap();
        assert_eq!(plan.probe.map(|p| p.protocol), Some(spoken), "{target} {asked:?}");
    }
}

#[tokio::test]
async fn mistakes_are_explained() {
    for (source, target, exit, words) in [
        ("curl", "curl", Exit::Usage, "same pod"),
        ("curl", "10.42.1.2", Exit::Usage, "trace curl :8081"),
        ("curl:80", "web", Exit::Usage, "belongs to the target"),
        ("svc/web", "curl", Exit::Usage, "sends no packets"),
        ("curl", "a b", Exit::Usage, "NS/NAME"),
        ("crul", "web", Exit::Failed, "did you mean curl?"),
        ("curl", "wbe", Exit::Failed, "did you mean web?"),
        ("curl", "empty", Exit::Failed, "svc/empty"),
        ("curl", "svc/far", Exit::Failed, "pod/far"),
        ("curl", "svc/webb", Exit::Failed, "did you mean web?"),
        ("curl", "other/web", Exit::Failed, "is the namespace correct"),
        ("curl", "somethingelse", Exit::Failed, "there are curl, web"),
        ("curl", "othr/web", Exit::Failed, "there is no namespace `othr`; did you mean other?"),
        ("curl", "cronjobs/web", Exit::Failed, "use one of its jobs (job/NAME) or pods, such as web"),
        ("curl", "sts/w", Exit::Failed, "StatefulSet `w` is not in namespace default"),
        ("curl", "node/tow", Exit::Failed, "there is no node `tow`; did you mean two?"),
        ("curl", "none.shop.svc", Exit::Failed, "pod `none.shop.svc` is not in namespace default"),
        ("curl", "app=none", Exit::Failed, "no pod matches `app=none` in namespace default"),
        ("web.default.svc", "curl", Exit::Usage, "sends no packets"),
        ("curl", "svc/web:https", Exit::Failed, "Service web has no port named `https`; it has http (80)"),
        ("curl", "web:https", Exit::Failed, "pod web has no port named `https`; it has main-port (8080)"),
        ("curl", "svc/dns:metrics", Exit::Failed, "it has dns (53/UDP), dns-tcp (53)"),
        ("curl", "203.0.113.9:http", Exit::Usage, "use a number"),
        ("curl", "svc/till", Exit::Failed, "there are web, empty"),
        ("shop/clerk", "svc/till", Exit::Failed, "there is one in namespace shop: use shop/svc/till"),
        ("curl", "svc/web:8443", Exit::Failed, "it has 80"),
        ("curl", "svc/web:8080", Exit::Failed, "8080 is the port of its pods"),
        ("curl", "dead", Exit::Failed, "Pending"),
        ("203.0.113.9", "web", Exit::Failed, "neither a pod nor a node has the address"),
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
        "one of its pods does not run, which does not matter"
    );
    for (namespace, words) in [("prod", "there is no namespace `prod`"), ("other", "-A for all")] {
        let error = select_pods(&Small, &[], &Scope { namespace: Some(namespace.to_owned()), selector: None }).await.unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
    for (names, words) in [
        ("dead", "cannot be accelerated: it is Pending"),
        ("web:1", "not ports"),
        ("10.0.0.1", "not addresses"),
        ("svc/empty", "none of the names"),
        ("deploy/stuck", "no pod of Deployment stuck runs: default/dead: it is Pending"),
    ] {
        let error = select_pods(&Small, &[names.to_owned()], &scope).await.unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
}
