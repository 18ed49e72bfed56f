//! Values of which some bits are known, and tests on them that may be undecided.

/// Result of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Truth {
    /// It fails.
    No,
    /// What is known does not decide it.
    Maybe,
    /// It succeeds.
    Yes,
}

impl Truth {
    /// Negated when `negated`.
    #[must_use]
    pub fn xor(self, negated: bool) -> Self {
        if negated { !self } else { self }
    }

    /// Both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        self.min(other)
    }

    /// One of both.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        self.max(other)
    }
}

impl std::ops::Not for Truth {
    type Output = Self;

    fn not(self) -> Self {
        match self {
            Self::No => Self::Yes,
            Self::Maybe => Self::Maybe,
            Self::Yes => Self::No,
        }
    }
}

impl From<bool> for Truth {
    fn from(value: bool) -> Self {
        if value { Self::Yes } else { Self::No }
    }
}

impl From<Option<bool>> for Truth {
    fn from(value: Option<bool>) -> Self {
        value.map_or(Self::Maybe, Self::from)
    }
}

/// A number of 32 bits of which those in `known` are known; the others are 0 in `value`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Word {
    /// The known bits.
    pub value: u32,
    /// Which bits are known.
    pub known: u32,
}

impl Word {
    /// Nothing is known.
    pub const UNKNOWN: Self = Self { value: 0, known: 0 };

    /// All bits are known.
    #[must_use]
    pub fn known(value: u32) -> Self {
        Self { value, known: u32::MAX }
    }

    /// What is true of both.
    #[must_use]
    pub fn join(self, other: Self) -> Self {
        let known = self.known & other.known & !(self.value ^ other.value);
        Self { value: self.value & known, known }
    }

    /// Whether both can be the same number.
    #[must_use]
    pub fn agrees(self, other: Self) -> bool {
        (self.value ^ other.value) & self.known & other.known == 0
    }

    /// `(self & mask) == value`.
    #[must_use]
    pub fn masked_equals(self, mask: u32, value: u32) -> Truth {
        if value & !mask != 0 || (self.value ^ value) & self.known & mask != 0 {
            Truth::No
        } else if self.known & mask == mask {
            Truth::Yes
        } else {
            Truth::Maybe
        }
    }

    /// `(self & keep) ^ flip`.
    #[must_use]
    pub fn masked(self, keep: u32, flip: u32) -> Self {
        let known = self.known | !keep;
        Self { value: ((self.value & keep) ^ flip) & known, known }
    }
}

impl From<Option<u32>> for Word {
    fn from(value: Option<u32>) -> Self {
        value.map_or(Self::UNKNOWN, Self::known)
    }
}

/// Whether bytes, of which some bits are known, equal `value` (as far as that reaches).
#[must_use]
pub fn equals(bytes: &[u8], known: &[u8], value: &[u8]) -> Truth {
    let mut all = true;
    for ((b, k), v) in bytes.iter().zip(known).zip(value) {
        if (b ^ v) & k != 0 {
            return Truth::No;
        }
        all &= *k == u8::MAX;
    }
    if all && bytes.len() >= value.len() { Truth::Yes } else { Truth::Maybe }
}

/// Whether bytes, of which some bits are known, lie between two values (both included) as numbers in network order.
#[must_use]
pub fn within(bytes: &[u8], known: &[u8], from: &[u8], to: &[u8]) -> Truth {
    let length = from.len().min(to.len()).min(bytes.len());
    let least = |i: usize| bytes[i];
    let most = |i: usize| bytes[i] | !known[i];
    let (from, to) = (&from[..length], &to[..length]);
    let low: Vec<u8> = (0..length).map(least).collect();
    let high: Vec<u8> = (0..length).map(most).collect();
    if low.as_slice() > to || high.as_slice() < from {
        Truth::No
    } else if low.as_slice() >= from && high.as_slice() <= to {
        Truth::Yes
    } else {
        Truth::Maybe
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_bits_leave_a_test_undecided_only_where_they_matter() {
        let word = Word { value: 0x20, known: 0xf0 };
        assert_eq!(word.masked_equals(0xf0, 0x20), Truth::Yes);
        assert_eq!(word.masked_equals(0xff, 0x21), Truth::Maybe);
        assert_eq!(word.masked_equals(0xff, 0x31), Truth::No);
        assert_eq!(word.join(Word::known(0x2f)), Word { value: 0x20, known: 0xf0 });
        assert_eq!(word.masked(0, 7), Word::known(7));
        assert_eq!(equals(&[1, 0], &[255, 0], &[1, 9]), Truth::Maybe);
        assert_eq!(equals(&[1, 0], &[255, 0], &[2, 9]), Truth::No);
        assert_eq!(within(&[1, 0], &[255, 0], &[1, 0], &[1, 255]), Truth::Yes);
        assert_eq!(within(&[1, 0], &[255, 0], &[1, 5], &[3, 0]), Truth::Maybe);
        assert_eq!(within(&[1, 0], &[255, 0], &[2, 0], &[3, 0]), Truth::No);
    }
}
