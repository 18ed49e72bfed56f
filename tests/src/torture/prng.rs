//! A small reproducible source of random numbers: everything random in a torture run comes from one printed seed.

/// xoshiro256** seeded by splitmix64 (Blackman and Vigna, "Scrambled linear pseudorandom number generators").
#[derive(Debug, Clone)]
pub struct Prng([u64; 4]);

/// The splitmix64 output function: a bijection of 64 bits with good avalanche.
#[must_use]
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Prng {
    /// A generator for the subject `stream` of a run; equal arguments give equal numbers on every machine.
    #[must_use]
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut state = mix(seed) ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self(std::array::from_fn(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            mix(state)
        }))
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number in `0..n`; 0 when `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        // Multiply-shift: the bias at our ranges is below 2^-40.
        u64::try_from((u128::from(self.next_u64()) * u128::from(n)) >> 64).unwrap_or(0)
    }

    /// A number in `low..=high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// A number in `low..=high` whose logarithm is uniform: small and huge values are equally likely per octave. `low` must be at least 1.
    pub fn log_between(&mut self, low: u64, high: u64) -> u64 {
        let bits = self.between(u64::from(low.ilog2()), u64::from(high.ilog2()));
        let octave = 1u64 << bits;
        (octave + self.below(octave)).clamp(low, high)
    }

    /// True once in `n` on average.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of the choices. `choices` must not be empty.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::try_from(self.below(choices.len() as u64)).unwrap_or(0)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_give_equal_numbers() {
        let (mut a, mut b, mut c) = (Prng::new(7, 1), Prng::new(7, 1), Prng::new(7, 2));
        let numbers: Vec<_> = (0..8).map(|_| a.next_u64()).collect();
        assert_eq!(numbers, (0..8).map(|_| b.next_u64()).collect::<Vec<_>>());
        assert_ne!(numbers, (0..8).map(|_| c.next_u64()).collect::<Vec<_>>());
    }

    #[test]
    fn ranges_hold_their_ends() {
        let mut r = Prng::new(1, 1);
        for _ in 0..10_000 {
            assert!((3..=9).contains(&r.between(3, 9)));
            assert!((1..=1 << 20).contains(&r.log_between(1, 1 << 20)));
        }
        assert_eq!(r.below(0), 0);
        assert_eq!(r.log_between(1, 1), 1);
    }
}
