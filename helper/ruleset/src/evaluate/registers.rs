//! The registers of nftables: 64 bytes, of which some bits may be known.

use crate::bits::Word;
use crate::model::Register;

/// Bytes of all registers.
const SIZE: usize = 64;

/// The registers.
#[derive(Debug, Clone)]
pub struct Registers {
    bytes: [u8; SIZE],
    known: [u8; SIZE],
    /// The map that a register's unknown value was looked up in.
    pub map: Option<(Register, u32)>,
}

impl Default for Registers {
    fn default() -> Self {
        Self { bytes: [0; SIZE], known: [0; SIZE], map: None }
    }
}

impl Registers {
    /// Bytes from a register on, and their known bits; fewer where the registers end.
    pub fn get(&self, from: Register, length: usize) -> (&[u8], &[u8]) {
        let from = (usize::from(from) * 4).min(SIZE);
        let to = (from + length).min(SIZE);
        (&self.bytes[from..to], &self.known[from..to])
    }

    /// Sets bytes, all known. The rest of the last word becomes 0, as the kernel leaves it.
    pub fn set(&mut self, to: Register, value: &[u8]) {
        self.set_bits(to, value.iter().map(|b| (*b, u8::MAX)));
        let end = usize::from(to) * 4 + value.len();
        for at in end..end.next_multiple_of(4).min(SIZE) {
            (self.bytes[at], self.known[at]) = (0, u8::MAX);
        }
    }

    /// Sets bytes, each with its known bits.
    pub fn set_bits(&mut self, to: Register, bits: impl Iterator<Item = (u8, u8)>) {
        let from = (usize::from(to) * 4).min(SIZE);
        for ((byte, known), (b, k)) in self.bytes[from..].iter_mut().zip(&mut self.known[from..]).zip(bits) {
            (*byte, *known) = (b & k, k);
        }
    }

    /// Sets a word in the machine's order.
    pub fn set_word(&mut self, to: Register, word: Word) {
        self.set_bits(to, word.value.to_ne_bytes().into_iter().zip(word.known.to_ne_bytes()));
    }

    /// A word in the machine's order.
    pub fn word(&self, from: Register) -> Word {
        let (bytes, known) = self.get(from, 4);
        let number = |b: &[u8]| b.try_into().map_or(0, u32::from_ne_bytes);
        Word { value: number(bytes), known: number(known) }
    }

    /// Makes everything from a register on unknown.
    pub fn forget(&mut self, from: Register) {
        let from = (usize::from(from) * 4).min(SIZE);
        // No value is longer than four words, but for names and concatenations.
        self.known[from..].fill(0);
        self.bytes[from..].fill(0);
    }
}
