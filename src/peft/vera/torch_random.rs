//! PyTorch's random numbers on a CPU, for matrices that files name by their seed alone.
//!
//! # Source
//! Matsumoto and Nishimura 1998, "Mersenne Twister"; PyTorch 2, `at::mt19937` and `at::uniform_real_distribution<float>`.

/// Words of the state.
const WORDS: usize = 624;
/// Distance of the word that is mixed in.
const MIDDLE: usize = 397;

/// The Mersenne Twister with 32-bit words, as `torch.Generator("cpu")` steps it.
pub(super) struct Generator {
    state: Vec<u32>,
    next: usize,
}

impl Generator {
    /// `torch.Generator().manual_seed(seed)`, of which PyTorch takes the lower half.
    pub(super) fn new(seed: u64) -> Self {
        let mut state = vec![seed as u32; WORDS];
        for i in 1..WORDS {
            let before = state[i - 1];
            let mixed = 1_812_433_253u32.wrapping_mul(before ^ (before >> 30));
            state[i] = mixed.wrapping_add(i as u32);
        }
        Self { state, next: WORDS }
    }

    fn bits(&mut self) -> u32 {
        if self.next == WORDS {
            for i in 0..WORDS {
                let word =
                    (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % WORDS] & 0x7fff_ffff);
                let odd = if word & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + MIDDLE) % WORDS] ^ (word >> 1) ^ odd;
            }
            self.next = 0;
        }
        let mut x = self.state[self.next];
        self.next += 1;
        x ^= x >> 11;
        x ^= (x << 7) & 0x9d2c_5680;
        x ^= (x << 15) & 0xefc6_0000;
        x ^ (x >> 18)
    }

    /// `tensor.uniform_(-bound, bound, generator=self)` of that many entries.
    pub(super) fn uniform(&mut self, count: usize, bound: f64) -> Vec<f32> {
        let (from, to) = (-bound as f32, bound as f32);
        let unit = 1.0 / (1u32 << 24) as f32;
        (0..count)
            .map(|_| (self.bits() & 0x00ff_ffff) as f32 * unit * (to - from) + from)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_the_reference_implementations() {
        // C: init_genrand(5489); genrand_int32() ten thousand times (std::mt19937's check value).
        let mut generator = Generator::new(5489);
        let last = (0..10_000).map(|_| generator.bits()).last();
        assert_eq!(last, Some(4_123_659_995));
    }
}
