//! What rewriting a packet adds to its Internet checksums (RFC 1071): it is the same for all packets of a direction.

/// What a TTL that is lower by one adds to the sum of IPv4's header: it is the upper byte of a word.
const TTL_LESS_ONE: u16 = u16::to_be(!0x0100);

/// The sum of words in one's complement, as the kernel has it: in the byte order of the machine.
fn sum(words: impl IntoIterator<Item = u16>) -> u16 {
    words.into_iter().fold(0, |sum: u16, word| {
        let (sum, carry) = sum.overflowing_add(word);
        // With a carry, the sum is less than 0xffff.
        sum + u16::from(carry)
    })
}

fn halves(words: &[u32]) -> impl Iterator<Item = u16> {
    words.iter().flat_map(|word| [*word as u16, (*word >> 16) as u16])
}

/// What is added to a sum that covers `from` when that becomes `to`; 0 where nothing changes (RFC 1624, equation 3).
pub fn difference(from: &[u32], to: &[u32]) -> u16 {
    if from == to { 0 } else { sum(halves(from).map(|half| !half).chain(halves(to))) }
}

/// Checksum difference of the IPv4 header for this address difference, and for the decremented TTL if the packet is routed.
pub fn of_header(addresses: u16, routed: bool) -> u16 {
    sum([addresses, if routed { TTL_LESS_ONE } else { 0 }])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header without options; its checksum is right.
    fn header(ttl: u8, from: [u8; 4], to: [u8; 4]) -> [u8; 20] {
        let mut bytes = [0; 20];
        bytes[..10].copy_from_slice(&[0x45, 0, 5, 0xdc, 0xbe, 0xef, 0x40, 0, ttl, 6]);
        bytes[12..16].copy_from_slice(&from);
        bytes[16..].copy_from_slice(&to);
        let check = !sum(words(&bytes));
        bytes[10..12].copy_from_slice(&check.to_ne_bytes());
        bytes
    }

    fn words(bytes: &[u8]) -> impl Iterator<Item = u16> {
        bytes.chunks_exact(2).map(|pair| u16::from_ne_bytes([pair[0], pair[1]]))
    }

    #[test]
    fn a_header_that_is_rewritten_keeps_a_right_checksum() {
        let ips = [[10, 42, 1, 2], [10, 96, 0, 10], [255, 255, 255, 254], [0, 0, 0, 1], [192, 0, 2, 77]];
        let word = |ip: [u8; 4]| u32::from_ne_bytes(ip);
        for (from, to) in ips.iter().flat_map(|a| ips.iter().map(move |b| (*a, *b))) {
            for (ttl, routed) in [(64, true), (2, true), (255, true), (64, false)] {
                let old = header(ttl, from, ips[0]);
                let check = u16::from_ne_bytes([old[10], old[11]]);
                let added = of_header(difference(&[word(from), word(ips[0])], &[word(from), word(to)]), routed);
                let mut new = header(ttl - u8::from(routed), from, to);
                new[10..12].copy_from_slice(&(!sum([!check, added])).to_ne_bytes());
                assert_eq!(sum(words(&new)), 0xffff, "{from:?} to {to:?}, TTL {ttl}");
            }
        }
    }

    #[test]
    fn what_does_not_change_adds_nothing() {
        assert_eq!((difference(&[1, 2], &[1, 2]), of_header(0, false)), (0, 0));
        assert_eq!(difference(&[0x0001_0002], &[0x0001_0003]), 0x0001);
    }

    #[test]
    fn the_sum_over_addresses_of_ipv6_changes_by_the_difference() {
        let from: Vec<u32> = (1..9).map(|n| 0x9e37_79b9_u32.wrapping_mul(n)).collect();
        let ends = [from.clone(), from.iter().rev().copied().collect(), vec![0; 8], vec![u32::MAX; 8], (0..8).collect()];
        for to in ends {
            let changed = sum(halves(&from).chain([difference(&from, &to)]));
            // Zero has two representations in one's complement.
            assert_eq!(changed % 0xffff, sum(halves(&to)) % 0xffff, "{to:x?}");
        }
        // Nothing is added where addresses differ by a zero only, either.
        assert_eq!(difference(&[0xffff], &[0]) % 0xffff, 0);
    }
}
