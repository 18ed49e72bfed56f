//! Flows as the maps of the programs have them: `struct short_key4`, `struct short_key` and `struct short_plan` of bpf/include/wire.h.

use std::mem::offset_of;
use std::net::{IpAddr, SocketAddr};

use libbpf_rs::MapCore;
use sockpath_bpf::short::types::{short_action, short_flag, short_key, short_key4, short_plan};
use sockpath_kernel::conntrack::Tuple;
use sockpath_kernel::netlink::{address, family, half, octets, word};

use super::checksum;
use super::eligible::{Leg, Target};

/// A key of one of the two maps.
pub enum Key {
    /// Over IPv4.
    V4(short_key4),
    /// Over IPv6.
    V6(short_key),
}

impl Key {
    /// Of packets with this tuple that come in by a device.
    pub fn of(tuple: &Tuple, device: u32) -> Self {
        let key = of_either_family(tuple, device);
        match tuple.source.ip() {
            IpAddr::V6(_) => Self::V6(key),
            IpAddr::V4(_) => {
                let short_key { saddr: [saddr, ..], daddr: [daddr, ..], sport, dport, ifindex, protocol, .. } = key;
                Self::V4(short_key4 { saddr, daddr, sport, dport, ifindex, protocol: protocol.into() })
            }
        }
    }

    /// As the map has it.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::V4(key) => bytes_of(key),
            Self::V6(key) => bytes_of(key),
        }
    }
}

/// The key over either family, by which programs report flows.
fn of_either_family(tuple: &Tuple, device: u32) -> short_key {
    let Tuple { protocol, source, destination } = tuple;
    short_key {
        saddr: words(source.ip()),
        daddr: words(destination.ip()),
        sport: source.port().to_be(),
        dport: destination.port().to_be(),
        ifindex: device,
        family: family(source.ip()).into(),
        protocol: (*protocol).into(),
    }
}

/// Whether a map has keys and values as this version writes them.
pub fn is_of_this_version(map: &impl MapCore) -> bool {
    let of_keys = [size_of::<short_key4>(), size_of::<short_key>()];
    of_keys.contains(&(map.key_size() as usize)) && map.value_size() as usize == size_of::<short_plan>()
}

/// What the programs do with packets of a direction, whose tuple becomes `to`; as the map has it.
pub fn plan(from: &Tuple, to: &Tuple, leg: &Leg, slot: u32) -> Vec<u8> {
    let (action, ifindex, hop) = match leg.target {
        Target::Pod { device } => (short_action::SHORT_TO_PEER, device, None),
        Target::Hop { device, address } => (short_action::SHORT_TO_NEIGHBOUR, device, Some(address)),
    };
    let rewrite = if from != to { short_flag::SHORT_REWRITE.0 } else { 0 };
    let routed = if leg.routed { short_flag::SHORT_ROUTED.0 } else { 0 };
    let addresses = |tuple: &Tuple| [words(tuple.source.ip()), words(tuple.destination.ip())];
    let added = checksum::difference(addresses(from).as_flattened(), addresses(to).as_flattened());
    let byte = |value: u32| u8::try_from(value).unwrap_or(0);
    let plan = short_plan {
        slot,
        ifindex,
        mtu: u16::try_from(leg.mtu).unwrap_or(u16::MAX),
        action: byte(action.0),
        flags: byte(rewrite | routed),
        sport: to.source.port().to_be(),
        dport: to.destination.port().to_be(),
        saddr: words(to.source.ip()),
        daddr: words(to.destination.ip()),
        next_hop: hop.map(words).unwrap_or_default(),
        next_hop_family: hop.map_or(0, family).into(),
        header_sum: checksum::of_header(added, leg.routed),
        addresses_sum: added.into(),
    };
    bytes_of(&plan).to_vec()
}

/// The tuple of packets with this key.
pub fn tuple(key: &[u8]) -> Option<Tuple> {
    if key.len() == size_of::<short_key4>() {
        let end = |ip: usize, port: usize| end(key, ip, 4, port);
        return Some(Tuple {
            protocol: word(key, offset_of!(short_key4, protocol))?.try_into().ok()?,
            source: end(offset_of!(short_key4, saddr), offset_of!(short_key4, sport))?,
            destination: end(offset_of!(short_key4, daddr), offset_of!(short_key4, dport))?,
        });
    }
    let length = address_length(half(key, offset_of!(short_key, family))?.into());
    Some(Tuple {
        protocol: half(key, offset_of!(short_key, protocol))?.try_into().ok()?,
        source: end(key, offset_of!(short_key, saddr), length, offset_of!(short_key, sport))?,
        destination: end(key, offset_of!(short_key, daddr), length, offset_of!(short_key, dport))?,
    })
}

/// Where packets with this tuple go by a plan: the destination after translation, and the slot.
pub fn destination(tuple: &Tuple, plan: &[u8]) -> Option<(SocketAddr, u32)> {
    let length = address_length(family(tuple.source.ip()).into());
    let to = end(plan, offset_of!(short_plan, daddr), length, offset_of!(short_plan, dport))?;
    Some((to, word(plan, offset_of!(short_plan, slot))?))
}

/// Bytes of an address.
fn address_length(family: i32) -> usize {
    if family == libc::AF_INET { 4 } else { 16 }
}

/// The address and the port at these offsets.
fn end(bytes: &[u8], ip: usize, length: usize, port: usize) -> Option<SocketAddr> {
    Some(SocketAddr::new(address(bytes.get(ip..ip + length)?)?, u16::from_be(half(bytes, port)?)))
}

/// An address in network order, as the programs have it: IPv4 in the first word.
fn words(address: IpAddr) -> [u32; 4] {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(octets(address).chunks_exact(4)) {
        *word = u32::from_ne_bytes(bytes.try_into().unwrap_or_default());
    }
    words
}

/// The bytes of a struct of the wire.
fn bytes_of<T: Wire>(value: &T) -> &[u8] {
    // SAFETY: implementors of `Wire` have no padding, so all bytes are initialized, and the slice borrows the value.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// # Safety
/// The type has no padding.
unsafe trait Wire {}

// SAFETY: 8 + 4 + 4 + 4 bytes of fields aligned by themselves; the size is checked below.
unsafe impl Wire for short_key4 {}
// SAFETY: 32 + 4 + 4 + 4 bytes of fields aligned by themselves; the size is checked below.
unsafe impl Wire for short_key {}
// SAFETY: 8 + 4 + 4 + 48 + 4 + 4 bytes of fields aligned by themselves; the size is checked below.
unsafe impl Wire for short_plan {}

const _: () = {
    assert!(size_of::<short_key4>() == 20);
    assert!(size_of::<short_key>() == 44);
    assert!(size_of::<short_plan>() == 72);
};

#[cfg(test)]
pub mod tests {
    use sockpath_kernel::conntrack::TCP;

    use super::*;

    fn parsed(source: &str, destination: &str) -> Tuple {
        Tuple { protocol: TCP, source: source.parse().expect("an address"), destination: destination.parse().expect("an address") }
    }

    /// A flow over each family.
    pub fn tuples() -> [Tuple; 2] {
        [parsed("10.42.1.2:4000", "10.42.1.3:80"), parsed("[fd00::2]:4000", "[fd00::3]:80")]
    }

    /// The key of either family, as a program reports it.
    pub fn reported(tuple: &Tuple, device: u32) -> Vec<u8> {
        bytes_of(&of_either_family(tuple, device)).to_vec()
    }

    #[test]
    fn a_flow_is_read_as_it_was_written() {
        let to = [parsed("10.42.1.1:61000", "10.42.1.9:8080"), parsed("[fd00::2]:4000", "[fd00::9]:8080")];
        let leg = Leg { device: 7, target: Target::Pod { device: 8 }, mtu: 1500, routed: true };
        for (from, to) in tuples().iter().zip(&to) {
            let key = Key::of(from, 7);
            assert_eq!(tuple(key.bytes()), Some(*from));
            assert_eq!(destination(from, &plan(from, to, &leg, 6)), Some((to.destination, 6)));
        }
        assert_eq!((tuple(&[]), tuple(&[0; 10])), (None, None));
    }
}
