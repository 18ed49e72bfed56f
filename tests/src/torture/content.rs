//! Position-dependent content: each byte tells which connection, direction and offset it belongs to.
//!
//! The stream is a sequence of little-endian 64-bit words, word `i` being `mix(i ^ key)`. The map is a bijection, so a piece of
//! at least 15 bytes can be placed in its stream without knowing where it was cut: bytes that arrive at the wrong place
//! are named, and concurrent readers of one socket can be checked.

use std::fmt;

use super::prng::mix;

/// The direction in which bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the client to the server.
    ToServer,
    /// From the server to the client.
    ToClient,
}

/// The content of one direction of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    key: u64,
}

/// Longest stream, in words, that [`Content::locate`] believes in.
const MAX_WORDS: u64 = 1 << 34;

impl Content {
    /// The content of a direction of connection `id` in the run `seed`.
    #[must_use]
    pub fn new(seed: u64, id: u64, direction: Direction) -> Self {
        Self { key: mix(mix(seed) ^ (id * 2 + u64::from(direction == Direction::ToClient)).wrapping_mul(0x9e37_79b9_7f4a_7c15)) }
    }

    fn word(self, i: u64) -> [u8; 8] {
        mix(i ^ self.key).to_le_bytes()
    }

    /// Writes the bytes from `offset` into `buf`.
    pub fn fill(self, offset: u64, buf: &mut [u8]) {
        let skip = usize::try_from(offset % 8).unwrap_or(0);
        let mut i = offset / 8;
        let head = buf.len().min((8 - skip) % 8);
        let (first, rest) = buf.split_at_mut(head);
        if head > 0 {
            first.copy_from_slice(&self.word(i)[skip..skip + head]);
            i += 1;
        }
        let mut words = rest.chunks_exact_mut(8);
        for word in &mut words {
            word.copy_from_slice(&self.word(i));
            i += 1;
        }
        let tail = words.into_remainder();
        let n = tail.len();
        tail.copy_from_slice(&self.word(i)[..n]);
    }

    /// The bytes of `offset..offset + len`.
    #[must_use]
    pub fn bytes(self, offset: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0; len];
        self.fill(offset, &mut buf);
        buf
    }

    /// Compares `got` with what belongs at `offset`.
    ///
    /// # Errors
    /// The first wrong byte, and where the bytes belong if they are of this stream.
    pub fn check(self, offset: u64, got: &[u8]) -> Result<(), Wrong> {
        let mut expected = [0; 4096];
        for (n, chunk) in got.chunks(expected.len()).enumerate() {
            let at = offset + (n * expected.len()) as u64;
            let expected = &mut expected[..chunk.len()];
            self.fill(at, expected);
            if chunk != expected {
                let first = chunk.iter().zip(expected.iter()).position(|(g, e)| g != e).unwrap_or(0);
                let from = n * 4096 + first;
                let belongs = self.locate(&got[from..]).or_else(|| self.locate(chunk));
                let offset = at + first as u64;
                return Err(Wrong { offset, expected: expected[first], got: chunk[first], belongs, read: got.len() });
            }
        }
        Ok(())
    }

    /// Where in this stream `piece` begins, if it holds a whole word of it.
    #[must_use]
    pub fn locate(self, piece: &[u8]) -> Option<u64> {
        for lead in 0..8 {
            let Some(word) = piece.get(lead..lead + 8).and_then(|w| <[u8; 8]>::try_from(w).ok()) else { break };
            let i = unmix(u64::from_le_bytes(word)) ^ self.key;
            if i < MAX_WORDS && i * 8 >= lead as u64 {
                return Some(i * 8 - lead as u64);
            }
        }
        None
    }
}

/// Inverse of [`mix`].
fn unmix(mut z: u64) -> u64 {
    z = (z ^ (z >> 31) ^ (z >> 62)).wrapping_mul(0x3196_42b2_d24d_8ec3);
    z = (z ^ (z >> 27) ^ (z >> 54)).wrapping_mul(0x96de_1b17_3f11_9089);
    z ^ (z >> 30) ^ (z >> 60)
}

/// The first wrong byte of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wrong {
    /// Its offset in the stream.
    pub offset: u64,
    /// What belongs there.
    pub expected: u8,
    /// What came.
    pub got: u8,
    /// Where the bytes that came belong in the same stream, when they do.
    pub belongs: Option<u64>,
    /// Length of the read that held it.
    pub read: usize,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "wrong byte at offset {}: {:#04x} instead of {:#04x} (in a read of {} bytes)",
            self.offset, self.got, self.expected, self.read
        )?;
        match self.belongs {
            Some(at) if at > self.offset => write!(f, "; bytes of offset {at} came early: reordered or {} lost", at - self.offset),
            Some(at) => write!(f, "; bytes of offset {at} came again or late: duplicated or reordered"),
            None => write!(f, "; not bytes of this stream: altered or of another connection"),
        }
    }
}

impl std::error::Error for Wrong {}

/// Checks that pieces taken by concurrent readers, in any order, tile the stream from offset `from` exactly; yields its end.
///
/// # Errors
/// Says which piece does not fit, or where the first gap is.
pub fn check_tiling(content: Content, from: u64, pieces: &[Vec<u8>]) -> Result<u64, String> {
    let mut placed = Vec::new();
    let mut small: std::collections::BTreeMap<&[u8], usize> = std::collections::BTreeMap::new();
    for piece in pieces {
        match content.locate(piece) {
            Some(at) => placed.push((at, piece)),
            None if piece.len() >= 15 => return Err(format!("a piece of {} bytes is not of this stream", piece.len())),
            None => *small.entry(piece).or_default() += 1,
        }
    }
    placed.sort_unstable_by_key(|(at, _)| *at);
    let mut end = from;
    for (at, piece) in placed {
        if at > end && !fill_gap(content, end, at, &mut small) {
            return Err(format!("bytes {end}..{at} are missing"));
        }
        if at < end {
            return Err(format!("bytes from {at} came twice (already had up to {end})"));
        }
        content.check(at, piece).map_err(|w| w.to_string())?;
        end = at + piece.len() as u64;
    }
    let left: usize = small.iter().map(|(p, n)| p.len() * n).sum();
    if left > 0 && !fill_gap(content, end, end + left as u64, &mut small) {
        return Err(format!("{left} bytes in small pieces fit nowhere (stream complete up to {end})"));
    }
    Ok(end + left as u64)
}

/// Tiles `from..to` with small pieces, taking those it uses. Depth is bounded by the gap's length.
fn fill_gap(content: Content, from: u64, to: u64, small: &mut std::collections::BTreeMap<&[u8], usize>) -> bool {
    if from == to {
        return true;
    }
    let most = usize::try_from(to - from).unwrap_or(usize::MAX).min(14);
    let expected = content.bytes(from, most);
    for len in (1..=most).rev() {
        let Some((&piece, _)) = small.get_key_value(&expected[..len]) else { continue };
        let Some(count) = small.get_mut(piece).filter(|n| **n > 0) else { continue };
        *count -= 1;
        if fill_gap(content, from + len as u64, to, small) {
            return true;
        }
        if let Some(count) = small.get_mut(piece) {
            *count += 1;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content() -> Content {
        Content::new(42, 7, Direction::ToServer)
    }

    #[test]
    fn pieces_equal_the_whole() {
        let whole = content().bytes(0, 300);
        for from in 0..40 {
            for len in 0..60 {
                assert_eq!(content().bytes(from as u64, len), whole[from..from + len]);
            }
        }
        assert_ne!(Content::new(42, 7, Direction::ToClient).bytes(0, 16), whole[..16]);
        assert_ne!(Content::new(42, 8, Direction::ToServer).bytes(0, 16), whole[..16]);
    }

    #[test]
    fn the_first_wrong_offset_is_found_and_explained() {
        let c = content();
        assert_eq!(c.check(5, &c.bytes(5, 10_000)), Ok(()));
        let mut altered = c.bytes(5, 10_000);
        altered[5000] ^= 1;
        assert_eq!(c.check(5, &altered).map_err(|w| w.offset), Err(5005));
        let mut reordered = c.bytes(0, 100);
        reordered.extend(c.bytes(200, 100));
        let wrong = c.check(0, &reordered).expect_err("reordered");
        assert_eq!((wrong.offset, wrong.belongs), (100, Some(200)));
        assert!(wrong.to_string().contains("came early"), "{wrong}");
    }

    #[test]
    fn pieces_are_located_wherever_they_were_cut() {
        for from in 0..100 {
            assert_eq!(content().locate(&content().bytes(from, 15)), Some(from));
        }
        assert_eq!(Content::new(42, 9, Direction::ToServer).locate(&content().bytes(0, 64)), None);
    }

    #[test]
    fn tiling_accepts_any_order_and_names_gaps() {
        let c = content();
        let mut cuts: Vec<Vec<u8>> = Vec::new();
        let mut at = 16;
        for len in [100, 3, 1, 14, 7, 40, 2, 2, 9, 500, 1] {
            cuts.push(c.bytes(at, len));
            at += len as u64;
        }
        cuts.reverse();
        assert_eq!(check_tiling(c, 16, &cuts), Ok(at));
        let lost = cuts.remove(1);
        assert!(check_tiling(c, 16, &cuts).is_err());
        cuts.push(lost.clone());
        cuts.push(lost);
        assert!(check_tiling(c, 16, &cuts).is_err(), "a duplicate is seen");
    }
}
