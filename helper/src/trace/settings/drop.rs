//! A drop by the kernel without netfilter, and what explains it.

use sockpath_protocol::packet::{Cause, Certainty, Flow, Mechanism};

/// A drop that the kernel did without netfilter.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KernelDrop {
    /// `enum skb_drop_reason` without its prefix.
    pub reason: String,
    /// Its number, where `enum skb_drop_reason` does not have it.
    pub unnamed: Option<u32>,
    /// The function that dropped, without offset; empty where that is not known.
    pub function: String,
    /// Addresses as it was dropped.
    pub flow: Flow,
    /// Bytes of a packet of it, from the network header on; of each segment, where it stands for several.
    pub length: u32,
    /// The device it was at: index and name.
    pub device: Option<(u32, String)>,
    /// Ports of bridges that lead to pods of the trace, by index.
    pub ports: Vec<u32>,
}

/// What did it, and in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What did it.
    pub mechanism: Mechanism,
    /// In words.
    pub detail: String,
    /// What was read.
    pub evidence: Vec<String>,
}

impl Finding {
    /// As the protocol has it.
    #[must_use]
    pub fn cause(self) -> (String, Cause) {
        let Self { mechanism, detail, evidence } = self;
        (detail, Cause { mechanism, certainty: Certainty::Inferred, evidence, candidates: Vec::new() })
    }
}
