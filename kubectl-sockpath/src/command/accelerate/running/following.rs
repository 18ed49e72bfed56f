//! What changes in the cluster meanwhile: pods come and go, further nodes join, NetworkPolicies pause the pairs they touch.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Result;
use sockpath_protocol::Request;
use sockpath_protocol::accel::{ChoosePods, PauseReason, PauseRequest, PodName, ResumeRequest};
use sockpath_protocol::pod::{Node, Pod};
use tokio::time::Instant;

use super::super::by_node;
use super::{GATHER, Session};
use crate::cluster::News;
use crate::inventory::{Inventory, PodInfo};
use crate::mode::Mode;
use crate::target::select_pods;

impl Session<'_> {
    /// Reacts to a change in the cluster.
    pub(super) async fn react(&mut self, news: News) -> Result<()> {
        if !matches!(news, News::Unwatched(_) | News::Node { .. } | News::Terminating(_)) {
            self.choose_at.get_or_insert(Instant::now() + GATHER);
        }
        match news {
            News::Pods => Ok(()),
            News::Node { name, text } if self.nodes.iter().any(|n| n.name == name) => self.note(&text),
            News::Terminating(name) => {
                let text = format!("namespace {name} is being deleted: its pods go, and their connections with them");
                self.terminating.insert(name);
                self.note(&text)
            }
            // The deletion of the namespace has been reported.
            News::Gone(name) if self.terminating.contains(&name.namespace) => Ok(()),
            News::Gone(name) if self.is_chosen(&name) => self.note(&format!("pod {name} was deleted: its connections are let go")),
            News::Gone(_) | News::Node { .. } => Ok(()),
            News::Unwatched(text) => self.warn(&text),
            News::Policies { what, pause, resume } => self.obey(&what, pause, resume).await,
        }
    }

    /// Has pairs go by TCP that changed policies are about, and lets those go again whose policies are what they were.
    async fn obey(&mut self, what: &str, mut pause: Vec<PodName>, mut resume: Vec<PodName>) -> Result<()> {
        // All are remembered, chosen or not yet: who joins later is paused at once.
        self.paused.extend(pause.iter().cloned());
        self.paused.retain(|p| !resume.contains(p));
        pause.retain(|name| self.is_chosen(name));
        resume.retain(|name| self.is_chosen(name));
        let names = |pods: &[PodName]| pods.iter().map(PodName::to_string).collect::<Vec<_>>().join(", ");
        if !pause.is_empty() {
            let text = format!("{what}: connections of {} go by TCP", names(&pause));
            self.pause(None, pause).await;
            self.note(&text)?;
        }
        if !resume.is_empty() {
            let text = format!("{what}: the policies of {} are again what they were, they are accelerated again", names(&resume));
            self.send_begun(&Request::Resume(ResumeRequest { pods: resume })).await;
            self.note(&text)?;
        }
        Ok(())
    }

    fn is_chosen(&self, name: &PodName) -> bool {
        self.pods.iter().any(|p| p.namespace == name.namespace && p.name == name.name)
    }

    /// Has one helper, or all, keep these pods' pairs on TCP.
    pub(super) async fn pause(&self, index: Option<usize>, pods: Vec<PodName>) {
        if pods.is_empty() {
            return;
        }
        let request = Request::Pause(PauseRequest { pods, reason: PauseReason::NetworkPolicy });
        match index {
            Some(index) => self.fleet.send(index, request).await,
            None => self.send_begun(&request).await,
        }
    }

    /// Brings a helper up to date whose connection was interrupted: requests of that time may not have arrived, and the API server may
    /// have been away for as long.
    pub(super) async fn catch_up(&mut self, index: usize) {
        let Some(member) = self.fleet.members().get(index) else { return };
        let here: Vec<&Pod> = self.pods.iter().filter(|p| member.nodes.contains(&p.node)).collect();
        self.send_chosen(index).await;
        let names = here.iter().map(|p| PodName { namespace: p.namespace.clone(), name: p.name.clone() });
        let resume: Vec<PodName> = names.filter(|name| !self.paused.contains(name)).collect();
        self.fleet.send(index, Request::Resume(ResumeRequest { pods: resume })).await;
        self.pause(Some(index), self.paused.iter().cloned().collect()).await;
        self.watch.renew();
    }

    /// Sends one helper the pods that are chosen now.
    async fn send_chosen(&self, index: usize) {
        let Some(member) = self.fleet.members().get(index) else { return };
        let (pods, nodes) = (Arc::clone(&self.pods), member.nodes.clone());
        let build = move || {
            let by_node::ByNode { here, elsewhere } = by_node::at(&pods, &nodes);
            Request::Choose(ChoosePods { pods: here, elsewhere })
        };
        self.fleet.send_large(index, build).await;
    }

    /// The helpers that have begun.
    fn begun(&self) -> Vec<usize> {
        self.last_message.keys().copied().collect()
    }

    async fn send_begun(&self, request: &Request) {
        for index in self.begun() {
            self.fleet.send(index, request.clone()).await;
        }
    }

    /// Looks again which pods are meant.
    pub(super) fn choose_again(&mut self) {
        self.choose_at = None;
        let (backend, args, scope) = (self.backend, self.args, self.scope.clone());
        self.choosing = Some(Box::pin(async move { select_pods(backend, &args.pods, &scope).await }));
    }

    /// Tells helpers which pods are meant now, and starts some where there are none yet.
    pub(super) async fn choose(&mut self, found: Result<Vec<PodInfo>>) -> Result<()> {
        let found: Vec<Pod> = match found {
            Ok(found) => found.into_iter().map(|p| p.pod).collect(),
            // The API server may be away, or a pod that was named is just being replaced.
            Err(e) => {
                self.progress.detail(&format!("pods are left as they are: {e:#}"));
                return Ok(());
            }
        };
        let before = std::mem::replace(&mut self.pods, Arc::new(found));
        let uids = |pods: &[Pod]| pods.iter().map(|p| p.uid.clone()).collect::<BTreeSet<_>>();
        if uids(&before) == uids(&self.pods) {
            return Ok(());
        }
        // Those that have not begun begin with the pods that are meant by then.
        for index in self.begun() {
            let nodes = &self.fleet.members()[index].nodes;
            let here = |pods: &[Pod]| pods.iter().filter(|p| nodes.contains(&p.node)).map(|p| p.uid.clone()).collect::<BTreeSet<_>>();
            let changed_here = here(&before) != here(&self.pods);
            // Every helper gets them: the places of the other pods are the reason why connections with them are excluded.
            self.send_chosen(index).await;
            if changed_here {
                self.pause(Some(index), self.paused.iter().cloned().collect()).await;
            }
        }
        self.begin_with_those_that_came().await;
        self.recruit();
        Ok(())
    }

    /// Begins on nodes whose helper found no chosen pod when it joined.
    async fn begin_with_those_that_came(&mut self) {
        let idle = |index: &usize| self.fleet.members()[*index].has_joined() && !self.last_message.contains_key(index);
        let idle: Vec<usize> = (0..self.fleet.members().len()).filter(idle).collect();
        for index in idle {
            self.begin(index).await;
        }
    }

    /// Looks up nodes that have chosen pods for the first time.
    fn recruit(&mut self) {
        let served: BTreeSet<&String> = self.fleet.members().iter().flat_map(|m| &m.nodes).chain(&self.given_up).collect();
        let nodes: BTreeSet<&String> = self.pods.iter().map(|p| &p.node).filter(|node| !served.contains(node)).collect();
        if nodes.is_empty() || self.locating.is_some() {
            return;
        }
        let names: Vec<String> = nodes.into_iter().cloned().collect();
        let backend = self.backend;
        self.locating = Some(Box::pin(async move {
            let nodes = backend.nodes(&names).await;
            (names, nodes)
        }));
    }

    /// Has helpers started on these nodes.
    pub(super) fn recruit_on(&mut self, names: Vec<String>, nodes: Result<Vec<Node>>) -> Result<()> {
        match nodes {
            Ok(nodes) => {
                let gone = names.into_iter().filter(|name| !nodes.iter().any(|n| n.name == *name));
                self.given_up.extend(gone);
                self.nodes.extend(nodes.iter().cloned());
                self.backend.recruit(&mut self.fleet, &nodes, Mode::Accelerate, self.progress);
                self.make_room();
            }
            Err(e) => {
                self.warn(&format!("pods on {} are excluded: {e:#}", names.join(", ")))?;
                self.given_up.extend(names);
            }
        }
        // Pods may have come to further nodes meanwhile.
        self.recruit();
        Ok(())
    }
}
