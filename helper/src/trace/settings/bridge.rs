//! Ports of a bridge that do not send a packet on.

use sockpath_kernel::bridge::{Port, ports, vlan_aware};
use sockpath_kernel::netlink::Socket;
use sockpath_protocol::packet::Mechanism;

use super::drop::{Finding, KernelDrop};

/// Functions of the bridge that drop without a reason.
pub(super) const FUNCTIONS: &[&str] = &[
    "br_forward",
    "__br_forward",
    "br_handle_frame",
    "br_handle_frame_finish",
    "br_allowed_ingress",
    "__allowed_ingress",
    "br_dev_queue_push_xmit",
];

/// Why the bridge did not send it on.
pub(super) fn not_forwarded(socket: &mut Socket, drop: &KernelDrop) -> Option<Finding> {
    let all = ports(socket).ok()?;
    let filters = vlan_aware(socket).unwrap_or_default();
    let (index, _) = drop.device.as_ref()?;
    let input = all.iter().find(|p| p.index == *index)?;
    // What goes back to its sender would leave by the port it came in by.
    let output = match drop.flow.from.ip() == drop.flow.to.ip() {
        true => Some(input),
        false => all.iter().find(|p| p.index != *index && p.bridge == input.bridge && drop.ports.contains(&p.index)),
    };
    explain(input, output, filters.contains(&input.bridge))
}

fn explain(input: &Port, output: Option<&Port>, filters: bool) -> Option<Finding> {
    let state = |port: &Port| Finding {
        mechanism: Mechanism::PortState,
        detail: format!("the bridge port {} is {}", port.name, port.state_name()),
        evidence: vec![format!("`bridge link` there: {} state {}", port.name, port.state_name())],
    };
    let vlan = |port: &Port, vlan: u16| Finding {
        mechanism: Mechanism::PortVlan,
        detail: format!("the bridge port {} is not a member of VLAN {vlan}", port.name),
        evidence: vec![format!("the bridge filters by VLAN; VLANs of {}: {:?}", port.name, port.vlans)],
    };
    if !input.forwards() {
        return Some(state(input));
    }
    if filters && input.pvid.is_none() {
        return Some(Finding {
            mechanism: Mechanism::PortVlan,
            detail: format!("the bridge port {} has no VLAN for packets without a tag", input.name),
            evidence: vec![format!("the bridge filters by VLAN; VLANs of {}: {:?}, no PVID", input.name, input.vlans)],
        });
    }
    let output = output?;
    if output.index == input.index {
        return (!output.hairpin).then(|| Finding {
            mechanism: Mechanism::HairpinOff,
            detail: format!("the bridge sends nothing out by the port it came in by: hairpin mode is off at {}", output.name),
            evidence: vec![format!("`bridge -d link` there: {} hairpin off", output.name)],
        });
    }
    if !output.forwards() {
        return Some(state(output));
    }
    if input.isolated && output.isolated {
        return Some(Finding {
            mechanism: Mechanism::PortIsolated,
            detail: format!("the bridge ports {} and {} are isolated from each other", input.name, output.name),
            evidence: vec![format!("`bridge -d link` there: {} isolated on, {} isolated on", input.name, output.name)],
        });
    }
    let tag = input.pvid.filter(|tag| filters && !output.vlans.contains(tag))?;
    Some(vlan(output, tag))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(index: u32) -> Port {
        Port { index, name: format!("veth{index}"), bridge: 1, state: 3, pvid: Some(1), vlans: vec![1], ..Port::default() }
    }

    fn mechanism(input: &Port, output: Option<&Port>, filters: bool) -> Option<Mechanism> {
        explain(input, output, filters).map(|f| f.mechanism)
    }

    #[test]
    fn the_setting_that_stops_a_packet_is_named() {
        let (a, b) = (port(2), port(3));
        assert_eq!(mechanism(&a, Some(&b), true), None);
        assert_eq!(mechanism(&a, Some(&a), false), Some(Mechanism::HairpinOff));
        assert_eq!(mechanism(&Port { hairpin: true, ..port(2) }, Some(&Port { hairpin: true, ..port(2) }), false), None);
        assert_eq!(mechanism(&a, Some(&Port { state: 4, ..port(3) }), false), Some(Mechanism::PortState));
        assert_eq!(mechanism(&Port { state: 0, ..port(2) }, None, false), Some(Mechanism::PortState));
        let isolated = |index| Port { isolated: true, ..port(index) };
        assert_eq!(mechanism(&isolated(2), Some(&isolated(3)), false), Some(Mechanism::PortIsolated));
        assert_eq!(mechanism(&isolated(2), Some(&b), false), None);
        let other = Port { vlans: vec![10], pvid: Some(10), ..port(3) };
        assert_eq!(mechanism(&a, Some(&other), true), Some(Mechanism::PortVlan));
        assert_eq!(mechanism(&a, Some(&other), false), None, "VLANs do not count where nothing is filtered");
        assert_eq!(mechanism(&Port { pvid: None, ..port(2) }, Some(&b), true), Some(Mechanism::PortVlan));
    }
}
