//! Where a session works, and which requests are for such a place.
//!
//! The program decides it, once, before the first request is read: `sockpath-helper` works on a node, `sockpath-lab` in a lab. No request
//! and no environment variable of a helper changes it.

use anyhow::{Result, bail};
use sockpath_protocol::Request;
use sockpath_protocol::pod::{Locate, Node, Pod};

use crate::coded::Coded;

/// Where a session works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Site {
    /// A node of a cluster: pods are found by their UIDs, the node's network namespace is that of process 1.
    Node,
    /// A lab of this machine: pods and nodes are found by the paths that requests name.
    Lab(LabName),
}

/// Name of a lab; empty for the default one. It is part of paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabName(String);

impl LabName {
    /// Checks a name.
    ///
    /// # Errors
    /// When it may not be part of a path, or is too long for one of the names made of it.
    pub fn new(name: &str) -> Result<Self> {
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.len() > 32 || !name.chars().all(legal) || name.starts_with('-') || name.ends_with('-') {
            bail!("a lab's name has up to 32 characters of a-z, 0-9 and '-', and does not start or end with '-'");
        }
        Ok(Self(name.to_owned()))
    }

    /// The name itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Site {
    /// Whether this is a lab.
    #[must_use]
    pub fn is_lab(&self) -> bool {
        matches!(self, Self::Lab(_))
    }

    /// Lets a request through that is for such a place.
    ///
    /// # Errors
    /// On a node: when the request names files, as only the lab's do, or leaves the acceleration to a process of its own.
    pub fn admit(&self, request: &Request) -> Result<()> {
        match request {
            Request::Trace(r) => {
                self.admit_pods(r.targets.iter().chain([&r.source]))?;
                self.admit_nodes(&r.nodes)
            }
            Request::Accelerate(r) => {
                self.admit_pods(&r.pods)?;
                self.admit_nodes(&r.nodes)?;
                if r.detach && !r.stay && !self.is_lab() {
                    return Err(Coded::new(
                        "protocol",
                        "on a node a detached acceleration is continued by the process of its session (`stay`)",
                    ));
                }
                Ok(())
            }
            Request::Choose(r) => self.admit_pods(&r.pods),
            _ => Ok(()),
        }
    }

    fn admit_pods<'a>(&self, pods: impl IntoIterator<Item = &'a Pod>) -> Result<()> {
        pods.into_iter()
            .filter(|pod| matches!(pod.locate, Locate::Path { .. } | Locate::Node { netns: Some(_) }))
            .try_for_each(|pod| self.admit_paths("pod", &pod.name))
    }

    fn admit_nodes(&self, nodes: &[Node]) -> Result<()> {
        nodes.iter().filter(|node| node.netns.is_some()).try_for_each(|node| self.admit_paths("node", &node.name))
    }

    /// Lets a path through by which something is to be found.
    ///
    /// # Errors
    /// On a node.
    pub fn admit_paths(&self, kind: &str, name: &str) -> Result<()> {
        match self {
            Self::Lab(_) => Ok(()),
            Self::Node => Err(Coded::new(
                "lab-only",
                format!("the request locates {kind} {name} by a path, which only sockpath-lab accepts: a helper finds pods by UID"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lab() -> Site {
        Site::Lab(LabName::new("a").expect("a legal name"))
    }

    fn code(error: &anyhow::Error) -> &'static str {
        error.downcast_ref::<Coded>().map_or("", Coded::code)
    }

    fn request(json: &str) -> Request {
        serde_json::from_str(json).expect("a request")
    }

    const BY_PATH: &str = r#"{"namespace":"default","name":"curl","uid":"12345678","node":"n","ips":[],
        "locate":{"by":"path","netns":"/run/netns/x","cgroup":"/sys/fs/cgroup/x"}}"#;
    const NODE_BY_PATH: &str = r#"{"namespace":"","name":"n","uid":"","node":"n","ips":[],"locate":{"by":"node","netns":"/run/netns/x"}}"#;
    const BY_UID: &str = r#"{"namespace":"default","name":"curl","uid":"12345678","node":"n","ips":[],"locate":{"by":"uid"}}"#;

    #[test]
    fn paths_are_for_the_lab_only() {
        let traces = |source: &str, target: &str, netns: &str| {
            request(&format!(r#"{{"type":"trace","source":{source},"targets":[{target}],"nodes":[{{"name":"n","ips":[]{netns}}}]}}"#))
        };
        let path = r#","netns":"/run/netns/n""#;
        let with_paths = [
            traces(BY_PATH, BY_UID, ""),
            traces(BY_UID, BY_PATH, ""),
            traces(BY_UID, NODE_BY_PATH, ""),
            traces(BY_UID, BY_UID, path),
            request(&format!(r#"{{"type":"accelerate","pods":[{BY_UID},{BY_PATH}],"lease_ms":1000,"owner":"o","detach":false}}"#)),
            request(&format!(r#"{{"type":"choose","pods":[{BY_PATH}]}}"#)),
        ];
        for request in &with_paths {
            let refused = Site::Node.admit(request).expect_err("a path");
            assert_eq!(code(&refused), "lab-only", "{request:?}: {refused:#}");
            lab().admit(request).expect("it is for the lab");
        }
        for request in [traces(BY_UID, BY_UID, ""), Request::Status, Request::Cleanup] {
            Site::Node.admit(&request).expect("nothing in it is the lab's");
        }
    }

    #[test]
    fn only_the_lab_continues_in_a_process_of_its_own() {
        let detached = |stay: bool| {
            request(&format!(r#"{{"type":"accelerate","pods":[{BY_UID}],"lease_ms":1000,"owner":"o","detach":true,"stay":{stay}}}"#))
        };
        assert_eq!(code(&Site::Node.admit(&detached(false)).expect_err("nothing would continue it")), "protocol");
        Site::Node.admit(&detached(true)).expect("the helper's process continues it");
        lab().admit(&detached(false)).expect("sockpath-lab starts a process");
    }

    #[test]
    fn names_of_labs_are_fit_for_paths() {
        for name in ["", "a", "t123-4"] {
            assert_eq!(LabName::new(name).expect("legal").as_str(), name);
        }
        for name in ["-a", "a-", "../a", "a/b", "A", "a_b", &"a".repeat(33)] {
            assert!(LabName::new(name).is_err(), "{name}");
        }
    }
}
