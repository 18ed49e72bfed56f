//! Objects without what this program never reads: of a large cluster's pods and nodes that is most of their memory.

use k8s_openapi::api::core::v1::{Container, Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::Resource;

/// An object that can be made smaller.
pub trait Lean: Resource {
    /// Removes what is never read.
    #[must_use]
    fn lean(mut self) -> Self
    where
        Self: Sized,
    {
        self.meta_mut().managed_fields = None;
        self
    }
}

impl Lean for Namespace {}
impl Lean for Service {}
impl Lean for EndpointSlice {}
impl Lean for NetworkPolicy {}

impl Lean for Node {
    fn lean(mut self) -> Self {
        self.metadata.managed_fields = None;
        if let Some(status) = &mut self.status {
            (status.images, status.volumes_attached, status.volumes_in_use) = (None, None, None);
        }
        self
    }
}

impl Lean for Pod {
    fn lean(mut self) -> Self {
        self.metadata.managed_fields = None;
        if let Some(annotations) = &mut self.metadata.annotations {
            annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
        }
        if let Some(spec) = &mut self.spec {
            (spec.volumes, spec.affinity, spec.tolerations, spec.topology_spread_constraints) = (None, None, None, None);
            spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()).for_each(strip);
            for container in spec.ephemeral_containers.iter_mut().flatten() {
                (container.env, container.env_from, container.volume_mounts) = (None, None, None);
            }
        }
        self
    }
}

/// Leaves a container its name, image and ports.
fn strip(container: &mut Container) {
    let restart_policy = container.restart_policy.take();
    *container = Container {
        name: std::mem::take(&mut container.name),
        image: container.image.take(),
        ports: container.ports.take(),
        restart_policy,
        ..Container::default()
    };
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_keeps_what_identifies_it_and_its_ports() {
        let pod = json!({
            "metadata": {"name": "web", "labels": {"app": "web"}, "managedFields": [{"manager": "m"}],
                "annotations": {"kubernetes.io/config.hash": "h", "kubectl.kubernetes.io/last-applied-configuration": "{}"}},
            "spec": {"nodeName": "n1", "volumes": [{"name": "v"}],
                "containers": [{"name": "app", "env": [{"name": "A", "value": "b"}], "ports": [{"containerPort": 80}]}]},
        });
        let lean: Pod = serde_json::from_value::<Pod>(pod).unwrap().lean();
        let kept = json!({
            "metadata": {"name": "web", "labels": {"app": "web"}, "annotations": {"kubernetes.io/config.hash": "h"}},
            "spec": {"nodeName": "n1", "containers": [{"name": "app", "ports": [{"containerPort": 80}]}]},
        });
        assert_eq!(lean, serde_json::from_value(kept).unwrap());
    }
}
