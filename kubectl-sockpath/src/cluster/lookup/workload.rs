//! Kinds that have pods: which labels theirs carry.

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::ReplicationController;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::Selector;

use crate::cluster::api::problem::{Kind as ProblemKind, Problem};
use crate::cluster::helper::advice;
use crate::cluster::lookup::Lookup;
use crate::inventory::Kind;

impl Lookup {
    /// What selects the pods of a workload; `None` where there is none of that name.
    ///
    /// # Errors
    /// When it may not be read, or selects by what no list of pods can be asked for.
    pub(super) async fn selector_of(&self, kind: Kind, namespace: &str, name: &str) -> Result<Option<Selector>, Problem> {
        let labels = match kind {
            Kind::Deployment => self.read::<Deployment>(kind, namespace, name).await?.map(|o| o.spec.map(|s| s.selector)),
            Kind::StatefulSet => self.read::<StatefulSet>(kind, namespace, name).await?.map(|o| o.spec.map(|s| s.selector)),
            Kind::DaemonSet => self.read::<DaemonSet>(kind, namespace, name).await?.map(|o| o.spec.map(|s| s.selector)),
            Kind::ReplicaSet => self.read::<ReplicaSet>(kind, namespace, name).await?.map(|o| o.spec.map(|s| s.selector)),
            Kind::Job => self.read::<Job>(kind, namespace, name).await?.map(|o| o.spec.and_then(|s| s.selector)),
            Kind::ReplicationController => self.read::<ReplicationController>(kind, namespace, name).await?.map(|o| {
                let labels = o.spec.and_then(|s| s.selector);
                labels.map(|match_labels| LabelSelector { match_labels: Some(match_labels), match_expressions: None })
            }),
            Kind::Pod | Kind::Service | Kind::Node | Kind::Namespace => None,
        };
        let Some(selector) = labels else { return Ok(None) };
        let unusable = |why: String| Problem::new(ProblemKind::Other, format!("the selector of {} {namespace}/{name} {why}", kind.word()));
        let selector: Selector = selector.unwrap_or_default().try_into().map_err(|e| unusable(format!("cannot be read: {e}")))?;
        // Everything would be selected.
        if selector.selects_all() { Err(unusable("is empty".to_owned())) } else { Ok(Some(selector)) }
    }

    async fn read<K>(&self, kind: Kind, namespace: &str, name: &str) -> Result<Option<K>, Problem>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + serde::de::DeserializeOwned
            + std::fmt::Debug,
    {
        let api: kube::Api<K> = kube::Api::namespaced(self.api().client(), namespace);
        let what = format!("read {} {namespace}/{name}", kind.word());
        self.api().ask_opt(&what, api.get(name)).await.map_err(|p| advice::for_lookup(p, Some(namespace)))
    }
}
