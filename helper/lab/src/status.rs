//! `lab status`.

use std::process::ExitCode;

use anyhow::{Context, Result};
use sockpath_protocol::lab::{LabContainer, LabNode, LabPod, LabService, LabServicePort, LabStatus};

use super::plan::{self, Instance, NAMESPACE, NODES, PODS, SERVICES};
use super::preflight::require_up;
use super::state::State;

/// Prints the lab as a table, or as JSON.
pub fn status(instance: &Instance, json: bool) -> Result<ExitCode> {
    let state = require_up(instance);
    if json {
        let status = match &state {
            Ok(state) => describe(instance, state),
            Err(_) => LabStatus { up: false, overlay: Default::default(), nodes: Vec::new(), pods: Vec::new(), services: Vec::new() },
        };
        if let Err(e) = state {
            eprintln!("{e:#}");
        }
        return print(&(serde_json::to_string_pretty(&status).context("cannot encode the lab's state")? + "\n"));
    }
    print(&table(&describe(instance, &state?)))
}

/// The lab as the protocol has it.
#[must_use]
pub fn describe(instance: &Instance, state: &State) -> LabStatus {
    let node = |n: &&plan::Node| LabNode {
        name: n.name.to_owned(),
        ips: vec![n.ipv4().into(), n.ipv6().into()],
        netns: instance.netns_path(n.name).display().to_string(),
        pod_cidrs: n.pod_cidrs(),
    };
    let pod = |p: &plan::Pod| LabPod {
        name: p.name.to_owned(),
        namespace: NAMESPACE.to_owned(),
        uid: p.uid(instance),
        node: p.node.name.to_owned(),
        ips: vec![p.ipv4().into(), p.ipv6().into()],
        netns: instance.netns_path(p.name).display().to_string(),
        cgroup: state.cgroup_dir(instance).join(p.cgroup(instance)).display().to_string(),
        containers: p
            .containers
            .iter()
            .map(|c| LabContainer {
                name: c.name.to_owned(),
                id: p.container_id(instance, c),
                pid: state.servers.get(&format!("{}/{}", p.name, c.name)).copied().unwrap_or(0),
                port: c.port,
            })
            .collect(),
    };
    let service = |s: &plan::Service| LabService {
        name: s.name.to_owned(),
        namespace: NAMESPACE.to_owned(),
        cluster_ips: s.cluster_ips(),
        ports: vec![LabServicePort {
            port: s.port,
            target_port: s.target_port,
            backends: s.backends.iter().map(|&b| b.to_owned()).collect(),
        }],
    };
    LabStatus {
        up: true,
        overlay: state.overlay,
        nodes: NODES.iter().map(node).collect(),
        pods: PODS.iter().map(pod).collect(),
        services: SERVICES.iter().map(service).collect(),
    }
}

fn table(status: &LabStatus) -> String {
    let list = |items: &mut dyn Iterator<Item = String>| items.collect::<Vec<_>>().join(",");
    let mut rows = vec![["KIND", "NAME", "NODE", "ADDRESSES", "PORTS"].map(str::to_owned)];
    for n in &status.nodes {
        rows.push(["node".into(), n.name.clone(), "-".into(), list(&mut n.ips.iter().map(ToString::to_string)), "-".into()]);
    }
    for p in &status.pods {
        let ports = list(&mut p.containers.iter().map(|c| format!("{}:{}", c.name, c.port)));
        rows.push(["pod".into(), p.name.clone(), p.node.clone(), list(&mut p.ips.iter().map(ToString::to_string)), ports]);
    }
    for s in &status.services {
        let ports = list(&mut s.ports.iter().map(|p| {
            let behind = if p.backends.is_empty() { "nothing".to_owned() } else { format!("{}:{}", p.backends.join(","), p.target_port) };
            format!("{}->{behind}", p.port)
        }));
        rows.push(["service".into(), s.name.clone(), "-".into(), list(&mut s.cluster_ips.iter().map(ToString::to_string)), ports]);
    }
    let width = |i: usize| rows.iter().map(|r| r[i].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..4).map(width).collect();
    let mut out = format!("the lab is up, overlay {}\n", plan::overlay_name(status.overlay));
    for row in &rows {
        for (cell, width) in row.iter().zip(&widths) {
            out.push_str(&format!("{cell:<width$}  "));
        }
        out.push_str(&row[4]);
        out.push('\n');
    }
    out
}

/// Writes to stdout; a closed pipe is not an error.
fn print(text: &str) -> Result<ExitCode> {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e).context("cannot write to stdout"),
        _ => Ok(ExitCode::SUCCESS),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use sockpath_protocol::lab::Overlay;

    use super::*;
    use crate::state::Phase;

    #[test]
    fn the_table_names_everything() {
        let state = State { phase: Phase::Up, overlay: Overlay::Vxlan, cgroup_root: PathBuf::from("/cg"), servers: Default::default() };
        let status = describe(&Instance::new("").unwrap(), &state);
        assert!(status.pods[0].cgroup.starts_with("/cg/sockpath-lab/node-1/kubepods/burstable/pod"));
        let expected = "\
the lab is up, overlay vxlan
KIND     NAME            NODE    ADDRESSES                  PORTS
node     node-1          -       10.199.0.1,fd00:10:199::1  -
node     node-2          -       10.199.0.2,fd00:10:199::2  -
pod      curl            node-1  10.42.1.2,fd00:10:42:1::2  curl:8080,sidecar:8081
pod      httpbin         node-1  10.42.1.3,fd00:10:42:1::3  httpbin:8080
pod      httpbin-remote  node-2  10.42.2.2,fd00:10:42:2::2  httpbin:8080
service  httpbin         -       10.96.0.10,fd00:10:96::a   80->httpbin:8080
service  httpbin-remote  -       10.96.0.11,fd00:10:96::b   80->httpbin-remote:8080
service  empty           -       10.96.0.12,fd00:10:96::c   80->nothing
";
        assert_eq!(table(&status), expected);
    }
}
