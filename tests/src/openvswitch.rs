//! A datapath of Open vSwitch without its daemon, by generic netlink (include/uapi/linux/openvswitch.h).

use std::io;
use std::path::Path;
use std::process::Command;

use sockpath_kernel::btf::Btf;
use sockpath_kernel::netlink::{Attributes, Body, Socket, half};

const NETLINK_GENERIC: isize = 16;
/// `GENL_ID_CTRL`, `CTRL_CMD_GETFAMILY`, and the attributes of a family's number and name.
const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// Bytes of `struct genlmsghdr`.
const HEADER: usize = 4;
/// `OVS_DP_CMD_NEW`, `OVS_VPORT_CMD_NEW` and `OVS_FLOW_CMD_NEW`.
const NEW: u8 = 1;
/// `OVS_FLOW_CMD_DEL`.
const DELETE: u8 = 2;
/// `OVS_DATAPATH_VERSION`; those of ports and flows are 1.
const DATAPATH_VERSION: u8 = 2;

/// Where the initramfs of tests/kernels/boot has modules.
const MODULE: &str = "/lib/modules/openvswitch.ko";

/// What a flow does with its packets.
#[derive(Debug, Clone, Copy)]
pub enum Action {
    /// Sends them to a port.
    Output(u32),
    /// Drops them by the action `drop`.
    Drop,
}

/// A datapath of the network namespace in which it was made. It ends with that.
pub struct Datapath {
    socket: Socket,
    ports: u16,
    flows: u16,
    /// `struct ovs_header`.
    index: u32,
}

impl std::fmt::Debug for Datapath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Datapath").field("index", &self.index).finish_non_exhaustive()
    }
}

/// Whether the kernel names drops of Open vSwitch (6.7+) and has the module, or why this cannot be tested.
///
/// # Errors
/// What is missing, in words.
pub fn is_testable() -> Result<(), &'static str> {
    let text = std::fs::read("/sys/kernel/btf/vmlinux").unwrap_or_default();
    let has = |name: &str| Btf::parse(&text).is_some_and(|btf| btf.enums().flat_map(|e| e.values()).any(|(n, _)| n == name));
    if !has("SKB_DROP_REASON_SUBSYS_OPENVSWITCH") {
        return Err("this kernel has no drop reasons of Open vSwitch");
    }
    let can_load = || Command::new("modprobe").args(["-n", "-q", "openvswitch"]).status().is_ok_and(|s| s.success());
    if is_loaded() || Path::new(MODULE).exists() || can_load() { Ok(()) } else { Err("this kernel has no Open vSwitch") }
}

fn is_loaded() -> bool {
    Path::new("/sys/kernel/btf/openvswitch").exists()
}

/// Loads the module.
///
/// # Panics
/// When that fails.
pub fn load() {
    let by = |program: &str, module: &str| Command::new(program).arg(module).status().is_ok_and(|s| s.success());
    assert!(is_loaded() || by("insmod", MODULE) || by("modprobe", "openvswitch"), "cannot load openvswitch");
}

impl Datapath {
    /// A datapath with its internal device, without ports and flows, in this thread's network namespace.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn new(name: &str) -> io::Result<Self> {
        let mut socket = Socket::open(NETLINK_GENERIC)?;
        let [datapaths, ports, flows] = ["ovs_datapath", "ovs_vport", "ovs_flow"].map(|name| family(&mut socket, name));
        // OVS_DP_ATTR_NAME, OVS_DP_ATTR_UPCALL_PID: no process is called for packets without a flow.
        let body = request(NEW, DATAPATH_VERSION, 0).with(1, &text(name)).with(2, &0u32.to_ne_bytes());
        socket.request(datapaths?, 0, body.bytes())?;
        let index = nix::net::if_::if_nametoindex(name)?;
        Ok(Self { socket, ports: ports?, flows: flows?, index })
    }

    /// Makes a device a port of this number.
    ///
    /// # Errors
    /// When the kernel refuses it; also for devices in a bridge.
    pub fn add_port(&mut self, number: u32, device: &str) -> io::Result<()> {
        // OVS_VPORT_ATTR_PORT_NO, _TYPE (OVS_VPORT_TYPE_NETDEV), _NAME, _UPCALL_PID.
        let body = request(NEW, 1, self.index)
            .with(1, &number.to_ne_bytes())
            .with(2, &1u32.to_ne_bytes())
            .with(3, &text(device))
            .with(5, &0u32.to_ne_bytes());
        self.socket.request(self.ports, 0, body.bytes()).map(drop)
    }

    /// Sets what is done with IPv4 (or ARP) packets that come in by a port.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn set_flow(&mut self, port: u32, arp: bool, action: Action) -> io::Result<()> {
        // OVS_ACTION_ATTR_OUTPUT, and _DROP without an error.
        let actions = match action {
            Action::Output(to) => Body::default().with(1, &to.to_ne_bytes()),
            Action::Drop => Body::default().with(24, &0u32.to_ne_bytes()),
        };
        // OVS_KEY_ATTR_IN_PORT, _ETHERTYPE.
        let mask = Body::default().with(3, &u32::MAX.to_ne_bytes()).with(6, &u16::MAX.to_ne_bytes());
        // OVS_FLOW_ATTR_KEY, _ACTIONS, _MASK. A flow that exists gets the actions.
        let body = request(NEW, 1, self.index).with_nested(1, &key(port, arp)).with_nested(2, &actions).with_nested(7, &mask);
        self.socket.request(self.flows, 0, body.bytes()).map(drop)
    }

    /// Deletes that flow.
    ///
    /// # Errors
    /// When the kernel refuses it, or there is no such flow.
    pub fn delete_flow(&mut self, port: u32, arp: bool) -> io::Result<()> {
        let body = request(DELETE, 1, self.index).with_nested(1, &key(port, arp));
        self.socket.request(self.flows, 0, body.bytes()).map(drop)
    }
}

/// What a flow compares.
fn key(port: u32, arp: bool) -> Body {
    // OVS_KEY_ATTR_IN_PORT, _ETHERNET, _ETHERTYPE, and _ARP or _IPV4, which have to be there and are not compared.
    let (kind, headers, length) = if arp { (0x0806u16, 13, 24) } else { (0x0800, 7, 12) };
    Body::default().with(3, &port.to_ne_bytes()).with(4, &[0; 12]).with(6, &kind.to_be_bytes()).with(headers, &[0; 24][..length])
}

/// `struct genlmsghdr` and `struct ovs_header`.
fn request(command: u8, version: u8, datapath: u32) -> Body {
    Body::new(&[&[command, version, 0, 0][..], &datapath.to_ne_bytes()].concat())
}

fn text(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

/// The number of a family of generic netlink.
fn family(socket: &mut Socket, name: &str) -> io::Result<u16> {
    let body = Body::new(&[GET_FAMILY, 1, 0, 0]).with(FAMILY_NAME, &text(name));
    let answers = socket.request(CONTROL, 0, body.bytes())?;
    let number = answers.iter().find_map(|m| half(Attributes::behind(&m.body, HEADER).get(FAMILY_ID)?, 0));
    number.ok_or_else(|| io::Error::other(format!("the kernel does not number the family {name}")))
}
