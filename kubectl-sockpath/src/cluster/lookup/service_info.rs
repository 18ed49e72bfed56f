//! A Service of the API as helpers need it: the addresses clients dial, and the endpoints behind it.

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::{Service as ApiService, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use sockpath_protocol::request::{Frontend, Protocol, Service};

use crate::inventory::Port;

/// What the slices of a Service say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// Address and port of each ready endpoint.
    pub addresses: Vec<SocketAddr>,
    /// Names of the pods that are ready endpoints, in the Service's namespace.
    pub pods: Vec<String>,
    /// The ports of the endpoints, under the names of the Service's.
    pub ports: Vec<Port>,
}

/// Reads the slices of one Service.
#[must_use]
pub fn endpoints<'a>(slices: impl IntoIterator<Item = &'a EndpointSlice>) -> Endpoints {
    let mut found = Endpoints::default();
    for slice in slices {
        let ports: Vec<u16> = slice.ports.iter().flatten().filter_map(|p| u16::try_from(p.port?).ok()).collect();
        for port in slice.ports.iter().flatten() {
            let number = port.port.and_then(|p| u16::try_from(p).ok());
            let (Some(number), Some(protocol)) = (number, protocol_of(port.protocol.as_deref())) else { continue };
            let port = Port { name: port.name.clone().filter(|n| !n.is_empty()), number, protocol };
            if !found.ports.contains(&port) {
                found.ports.push(port);
            }
        }
        for endpoint in &slice.endpoints {
            // Absent means ready (the API says so); terminating endpoints still serve while nothing else does, but are not ready.
            if endpoint.conditions.as_ref().and_then(|c| c.ready) == Some(false) {
                continue;
            }
            for ip in endpoint.addresses.iter().filter_map(|a| a.parse::<IpAddr>().ok()) {
                found.addresses.extend(ports.iter().map(|port| SocketAddr::new(ip, *port)));
            }
            if let Some(pod) = endpoint.target_ref.as_ref().filter(|t| t.kind.as_deref() == Some("Pod")).and_then(|t| t.name.clone()) {
                found.pods.push(pod);
            }
        }
    }
    found.addresses.sort_unstable();
    found.addresses.dedup();
    found.pods.sort_unstable();
    found.pods.dedup();
    found
}

/// Name of the Service a slice belongs to.
#[must_use]
pub fn service_of(slice: &EndpointSlice) -> Option<&str> {
    slice.metadata.labels.as_ref()?.get("kubernetes.io/service-name").map(String::as_str)
}

/// The addresses of a Service itself: those in the cluster, external ones, and those of its load balancer.
#[must_use]
pub fn dialled(object: &ApiService) -> Vec<IpAddr> {
    let mut dialled: Vec<IpAddr> = Vec::new();
    let spec = object.spec.as_ref();
    // A headless Service has the word None for an address, which parses as none.
    let listed = spec.into_iter().flat_map(|s| s.cluster_ips.iter().flatten().chain(&s.cluster_ip).chain(s.external_ips.iter().flatten()));
    let balanced =
        object.status.iter().flat_map(|s| s.load_balancer.iter()).flat_map(|l| l.ingress.iter().flatten()).filter_map(|i| i.ip.as_ref());
    for ip in listed.chain(balanced).filter_map(|ip| ip.parse().ok()) {
        if !dialled.contains(&ip) {
            dialled.push(ip);
        }
    }
    dialled
}

/// Reads a Service. `node_ips` are those of all nodes; they matter only for node ports.
#[must_use]
pub fn service(object: &ApiService, endpoints: &Endpoints, node_ips: &[IpAddr]) -> Service {
    let spec = object.spec.clone().unwrap_or_default();
    let dialled = dialled(object);
    let mut frontends = Vec::new();
    for port in spec.ports.iter().flatten() {
        let Some(protocol) = protocol_of(port.protocol.as_deref()) else { continue };
        let mut add = |ips: &[IpAddr], port: Option<i32>| {
            let Some(port) = port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0) else { return };
            frontends.extend(ips.iter().map(|ip| Frontend { addr: SocketAddr::new(*ip, port), protocol }));
        };
        add(&dialled, Some(port.port));
        add(node_ips, port.node_port);
    }
    Service {
        namespace: object.metadata.namespace.clone().unwrap_or_default(),
        name: object.metadata.name.clone().unwrap_or_default(),
        frontends,
        backends: endpoints.addresses.clone(),
    }
}

/// Its ports as its clients name them; a headless Service is dialled at its pods.
#[must_use]
pub fn ports(object: &ApiService, endpoints: &Endpoints) -> Vec<Port> {
    let spec = object.spec.as_ref();
    if spec.and_then(|s| s.cluster_ip.as_deref()) == Some("None") {
        return endpoints.ports.clone();
    }
    let port = |p: &ServicePort| {
        Some(Port { name: p.name.clone(), number: u16::try_from(p.port).ok()?, protocol: protocol_of(p.protocol.as_deref())? })
    };
    spec.iter().flat_map(|s| s.ports.iter().flatten()).filter_map(port).collect()
}

/// The host a Service of type `ExternalName` stands for.
#[must_use]
pub fn alias(object: &ApiService) -> Option<&str> {
    let spec = object.spec.as_ref().filter(|s| s.type_.as_deref() == Some("ExternalName"))?;
    spec.external_name.as_deref()
}

/// Whether clients may dial it at the address of a node.
#[must_use]
pub fn has_node_port(object: &ApiService) -> bool {
    object.spec.iter().flat_map(|s| s.ports.iter().flatten()).any(|p| p.node_port.is_some_and(|p| p != 0))
}

/// The protocol of a port; `None` for those that are neither traced nor probed (SCTP).
pub(super) fn protocol_of(protocol: Option<&str>) -> Option<Protocol> {
    match protocol {
        None | Some("TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn slice(endpoints: Value) -> EndpointSlice {
        serde_json::from_value(json!({
            "metadata": {"name": "web-x", "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
            "endpoints": endpoints, "ports": [{"port": 8080, "name": "http"}]
        }))
        .unwrap()
    }

    fn api_service(spec: Value) -> ApiService {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "prod"}, "spec": spec})).unwrap()
    }

    #[test]
    fn only_ready_endpoints_count() {
        let slice = slice(json!([
            {"addresses": ["10.1.0.2"], "conditions": {"ready": true}, "targetRef": {"kind": "Pod", "name": "a"}},
            {"addresses": ["10.1.0.3"], "conditions": {}, "targetRef": {"kind": "Pod", "name": "b"}},
            {"addresses": ["10.1.0.4"], "conditions": {"ready": false}, "targetRef": {"kind": "Pod", "name": "c"}},
            {"addresses": ["192.0.2.9"]}
        ]));
        let found = endpoints([&slice]);
        assert_eq!(found.pods, ["a", "b"]);
        assert_eq!(
            found.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["10.1.0.2:8080", "10.1.0.3:8080", "192.0.2.9:8080"]
        );
        assert_eq!(service_of(&slice), Some("web"));
    }

    #[test]
    fn every_address_of_it() {
        let object = api_service(json!({
            "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10", "fd00::10"], "externalIPs": ["198.51.100.1"],
            "ports": [{"port": 80, "nodePort": 30080, "targetPort": 8080}, {"port": 53, "protocol": "UDP"}, {"port": 9, "protocol": "SCTP"}]
        }));
        let s = service(&object, &Endpoints::default(), &["192.0.2.1".parse().unwrap()]);
        let shown: Vec<String> = s.frontends.iter().map(|f| format!("{} {:?}", f.addr, f.protocol)).collect();
        assert_eq!(
            shown,
            [
                "10.96.0.10:80 Tcp",
                "[fd00::10]:80 Tcp",
                "198.51.100.1:80 Tcp",
                "192.0.2.1:30080 Tcp",
                "10.96.0.10:53 Udp",
                "[fd00::10]:53 Udp",
                "198.51.100.1:53 Udp"
            ]
        );
        assert!(has_node_port(&object));
    }

    #[test]
    fn a_headless_service_has_backends_only() {
        let object = api_service(json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"port": 80}]}));
        let found = endpoints([&slice(json!([{"addresses": ["10.1.0.2"]}]))]);
        let s = service(&object, &found, &["192.0.2.1".parse().unwrap()]);
        assert_eq!((s.frontends.len(), s.backends.len()), (0, 1));
        assert!(!has_node_port(&object));
    }
}
