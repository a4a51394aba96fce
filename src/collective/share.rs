//! What the ranks have computed, given to all.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::ranks;
use crate::host::{floats, read};

/// Numbers of one item of a batch as 32-bit words.
pub trait Words: Default {
    /// The words.
    fn words(&self) -> Vec<u32>;

    /// The numbers in `words`.
    fn from_words(words: &[u32]) -> Self;
}

impl Words for Vec<f32> {
    fn words(&self) -> Vec<u32> {
        self.iter().map(|value| value.to_bits()).collect()
    }

    fn from_words(words: &[u32]) -> Self {
        words.iter().map(|&bits| f32::from_bits(bits)).collect()
    }
}

impl Words for Vec<f64> {
    fn words(&self) -> Vec<u32> {
        let halves = |value: &f64| [value.to_bits() as u32, (value.to_bits() >> 32) as u32];
        self.iter().flat_map(halves).collect()
    }

    fn from_words(words: &[u32]) -> Self {
        let whole = |half: &[u32]| f64::from_bits(u64::from(half[0]) | u64::from(half[1]) << 32);
        words.chunks_exact(2).map(whole).collect()
    }
}

/// Completes `items`, of which this rank has computed `own`, by those of the other ranks.
pub fn share<T: Words>(items: &mut [T], own: impl IntoIterator<Item = usize>) {
    let ranks = ranks();
    if ranks.is_alone() {
        return;
    }
    let mut sent: Vec<u32> = Vec::new();
    for item in own {
        let words = items[item].words();
        sent.extend([item as u32, words.len() as u32]);
        sent.extend(words);
    }
    for (rank, bytes) in ranks.gather(bytemuck::cast_slice(&sent)).iter().enumerate() {
        if rank == ranks.rank() {
            continue;
        }
        let words = words_of(bytes);
        let mut rest = words.as_slice();
        while let [item, len, tail @ ..] = rest {
            let (words, tail) = tail.split_at(*len as usize);
            items[*item as usize] = T::from_words(words);
            rest = tail;
        }
    }
}

/// Lists of numbers of all ranks, in the order of ranks.
pub fn numbers<I: Iterator<Item = Vec<f32>>>(own: I) -> Numbers<I> {
    let ranks = ranks();
    if ranks.is_alone() {
        return Numbers::Own(own);
    }
    let mut sent: Vec<u32> = Vec::new();
    for numbers in own {
        let words = numbers.words();
        sent.push(words.len() as u32);
        sent.extend(words);
    }
    let mut all: Vec<Vec<f32>> = Vec::new();
    for bytes in ranks.gather(bytemuck::cast_slice(&sent)) {
        let words = words_of(&bytes);
        let mut rest = words.as_slice();
        while let [len, tail @ ..] = rest {
            let (words, tail) = tail.split_at(*len as usize);
            all.push(Vec::from_words(words));
            rest = tail;
        }
    }
    Numbers::All(all.into_iter())
}

/// See [`numbers`].
#[derive(Debug)]
pub enum Numbers<I> {
    /// Those of a process that is alone.
    Own(I),
    /// Those of all ranks.
    All(std::vec::IntoIter<Vec<f32>>),
}

impl<I: Iterator<Item = Vec<f32>>> Iterator for Numbers<I> {
    type Item = Vec<f32>;

    fn next(&mut self) -> Option<Vec<f32>> {
        match self {
            Self::Own(numbers) => numbers.next(),
            Self::All(numbers) => numbers.next(),
        }
    }
}

/// Tensors of all ranks, in the order of ranks. Reads the device, unless alone.
pub fn tensors<B: Backend>(own: Vec<Tensor<B, 1>>, device: &B::Device) -> Vec<Tensor<B, 1>> {
    if ranks().is_alone() {
        return own;
    }
    numbers(own.into_iter().map(read))
        .map(|values| floats(&values, device))
        .collect()
}

/// The sum over ranks of a tensor, added in their order. Reads the device, unless alone.
pub fn total<B: Backend>(own: Tensor<B, 1>, device: &B::Device) -> Tensor<B, 1> {
    if ranks().is_alone() {
        return own;
    }
    let mut values = read(own);
    ranks().sum_in_place(&mut values);
    floats(&values, device)
}

/// The sums over ranks, added in their order.
pub fn sum_f64<const N: usize>(own: [f64; N]) -> [f64; N] {
    let ranks = ranks();
    if ranks.is_alone() {
        return own;
    }
    let mut sums = [0.0; N];
    for bytes in ranks.gather(bytemuck::cast_slice(&own.to_vec().words())) {
        let values = Vec::<f64>::from_words(&words_of(&bytes));
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum += value;
        }
    }
    sums
}

/// The words that some bytes are; they need not be aligned.
fn words_of(bytes: &[u8]) -> Vec<u32> {
    let word = |four: &[u8]| u32::from_ne_bytes([four[0], four[1], four[2], four[3]]);
    bytes.chunks_exact(4).map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Threads, own};
    use super::*;

    #[test]
    fn every_rank_has_all_items_and_numbers_bit_by_bit() {
        let found = Threads::run(3, |rank| {
            let mut items: Vec<Vec<f32>> = vec![Vec::new(); 5];
            for item in own(5) {
                items[item] = vec![item as f32 + 0.1; item];
            }
            share(&mut items, own(5));
            let lists = (0..rank).map(|i| vec![f32::NAN, i as f32]);
            let lists: Vec<Vec<f32>> = numbers(lists).collect();
            (items, lists, sum_f64([0.1, rank as f64]))
        });
        for (items, lists, sums) in found {
            let want: Vec<Vec<f32>> = (0..5).map(|i| vec![i as f32 + 0.1; i]).collect();
            assert_eq!(items, want);
            // Rank 1 has one list and rank 2 has two.
            let second: Vec<f32> = lists.iter().map(|list| list[1]).collect();
            assert_eq!(second, [0.0, 0.0, 1.0]);
            assert!(lists.iter().all(|list| list[0].is_nan()));
            assert_eq!(sums, [0.1 + 0.1 + 0.1, 3.0]);
        }
    }
}
