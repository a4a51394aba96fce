//! Reuses the memory of dropped results.
//!
//! An allocated result would be cleared by one thread before all threads overwrite it. Buffers that an operation reads for the last
//! time are returned here instead, and a later result of about the same size overwrites them.

use std::cell::RefCell;
use std::collections::VecDeque;

use burn::tensor::TensorMetadata;
use burn_flex::FlexTensor;
use rayon::prelude::*;

/// Smallest buffer to keep, in numbers: smaller ones are cleared in the cache.
const SMALLEST: usize = 1 << 14;
/// Most numbers to keep (256 MiB): enough for the gradients of one layer, not for a step's activations.
const MOST: usize = 64 << 20;

thread_local! {
    static KEPT: RefCell<SpareBuffers> = RefCell::default();
}

/// Kept buffers, oldest first.
#[derive(Default)]
struct SpareBuffers {
    buffers: VecDeque<Vec<f32>>,
    /// Sum of their capacities.
    numbers: usize,
}

impl SpareBuffers {
    fn remove(&mut self, place: usize) -> Option<Vec<f32>> {
        let buffer = self.buffers.remove(place)?;
        self.numbers -= buffer.capacity();
        Some(buffer)
    }

    /// Takes the best fit, at most a quarter too large.
    fn take(&mut self, len: usize) -> Option<Vec<f32>> {
        let fits = len..=len + len / 4;
        let capacities = self.buffers.iter().map(Vec::capacity).enumerate();
        let best = capacities
            .filter(|(_, capacity)| fits.contains(capacity))
            .min_by_key(|(_, capacity)| *capacity);
        if let Some((place, _)) = best {
            return self.remove(place);
        }
        // No buffer fits: sizes have changed, so old buffers are freed one by one.
        self.remove(0);
        None
    }

    fn put(&mut self, buffer: Vec<f32>) {
        self.numbers += buffer.capacity();
        self.buffers.push_back(buffer);
        while self.numbers > MOST {
            self.remove(0);
        }
    }
}

/// A buffer of `len` numbers with arbitrary content, to be overwritten.
pub(super) fn buffer(len: usize) -> Vec<f32> {
    if len < SMALLEST {
        return vec![0.0; len];
    }
    match KEPT.with_borrow_mut(|kept| kept.take(len)) {
        Some(mut buffer) => {
            buffer.resize(len, 0.0);
            buffer
        }
        None => {
            let mut buffer = Vec::new();
            rayon::iter::repeat_n(0.0, len).collect_into_vec(&mut buffer);
            buffer
        }
    }
}

/// Keeps the memory of tensors without other owners.
pub(super) fn give_back<const N: usize>(tensors: [FlexTensor; N]) {
    for tensor in tensors {
        let numbers = tensor.shape().num_elements();
        // A view into a larger buffer would be copied.
        let whole = tensor.is_unique() && tensor.storage::<f32>().len() == numbers;
        if numbers < SMALLEST || !whole || tensor.as_slice::<f32>().is_none() {
            continue;
        }
        // Memory of another alignment cannot become a vector of numbers; it is freed.
        if let Ok(buffer) = tensor.into_data().bytes.try_into_vec::<f32>() {
            KEPT.with_borrow_mut(|kept| kept.put(buffer));
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;

    use super::super::{dims2, tensor};
    use super::*;
    use crate::ops::{FrozenWeight, Gate, Gelu, LowRankPart, MatmulPrecision, ModelBackend};

    const ROWS: usize = 300;
    const WIDTH: usize = 96;

    /// A matrix of distinct numbers.
    fn matrix(rows: usize, columns: usize) -> FlexTensor {
        let values = (0..rows * columns).map(|i| (i as f32 * 0.37).sin());
        tensor(values.collect(), [rows, columns])
    }

    fn poison() {
        KEPT.with_borrow_mut(|kept| {
            for columns in [WIDTH / 2, WIDTH, 2 * WIDTH] {
                for _ in 0..4 {
                    kept.put(vec![f32::NAN; ROWS * columns]);
                }
            }
        });
    }

    /// No operation reads the old content of a buffer.
    #[test]
    fn results_do_not_depend_on_what_was_in_their_memory() {
        let x = || matrix(ROWS, WIDTH);
        let wide = || matrix(ROWS, 2 * WIDTH);
        let vector = || tensor(vec![0.5; WIDTH], [WIDTH]);
        let weight = || FrozenWeight::<Flex>::Full(matrix(WIDTH, WIDTH), MatmulPrecision::F32);
        let (a, b) = (
            || matrix(WIDTH, 2),
            || tensor(vec![0.1; 2 * WIDTH], [2 * WIDTH]),
        );
        let parts = [LowRankPart {
            rank: 2,
            scale: 0.5,
            column: 0,
            width: WIDTH,
        }];
        let gelu = Gelu::Erf;
        let runs: Vec<Box<dyn Fn() -> Vec<FlexTensor>>> = vec![
            Box::new(|| vec![Flex::rms_norm(x(), vector(), 1e-5)]),
            Box::new(|| vec![Flex::rms_norm_backward(x(), vector(), x(), 1e-5, false).0]),
            Box::new(|| vec![Flex::layer_norm_of(x(), vector(), vector(), 1e-5)]),
            Box::new(|| vec![Flex::layer_norm_of_backward(x(), vector(), x(), 1e-5, false).0]),
            Box::new(|| {
                vec![
                    Flex::gelu_of(x(), gelu),
                    Flex::gelu_of_backward(x(), x(), gelu),
                ]
            }),
            Box::new(|| {
                vec![
                    Flex::gated_unit(wide(), Gate::Silu),
                    Flex::gated_unit_backward(wide(), x(), Gate::Silu),
                ]
            }),
            Box::new(|| {
                vec![Flex::full_linear(
                    x(),
                    matrix(WIDTH, WIDTH),
                    MatmulPrecision::F32,
                )]
            }),
            Box::new(|| vec![Flex::bf16_matmul(x(), matrix(WIDTH, WIDTH))]),
            Box::new(|| vec![Flex::lora_linear(x(), &weight(), a(), b(), &parts).0]),
            Box::new(|| {
                let (xa, grad) = (matrix(ROWS, 2), x());
                let (dx, da, db) =
                    Flex::lora_linear_backward(x(), &weight(), a(), b(), xa, grad, &parts, true);
                vec![dx.expect("asked for"), da, db]
            }),
        ];
        for (i, run) in runs.iter().enumerate() {
            KEPT.take();
            let fresh = run();
            poison();
            let reused = run();
            let taken = KEPT.with_borrow(|kept| kept.buffers.iter().flatten().any(|x| x.is_nan()));
            assert!(taken, "run {i}: too little was poisoned");
            for (a, b) in fresh.into_iter().zip(reused) {
                assert_eq!(a.as_slice::<f32>(), b.as_slice::<f32>(), "run {i}");
            }
        }
    }

    #[test]
    fn buffers_fit_and_are_not_hoarded() {
        KEPT.take();
        let kept =
            || KEPT.with_borrow(|kept| kept.buffers.iter().map(Vec::capacity).collect::<Vec<_>>());
        give_back([tensor(vec![1.0; 20_000], [200, 100])]);
        give_back([tensor(vec![1.0; 24_000], [240, 100])]);
        give_back([tensor(vec![1.0; 100], [100])]);
        assert_eq!(kept(), [20_000, 24_000]);
        // The smallest that is large enough.
        assert_eq!(buffer(19_000).len(), 19_000);
        assert_eq!(kept(), [24_000]);
        // None fits: the buffer is freed.
        assert_eq!(buffer(18_000).len(), 18_000);
        assert_eq!(kept(), [0; 0]);
        // A tensor with another owner is not kept.
        let shared = matrix(200, 100);
        give_back([shared.clone()]);
        assert_eq!((kept().len(), dims2(&shared)), (0, [200, 100]));
        let view = matrix(400, 100);
        give_back([view.narrow(0, 0, 200)]);
        drop(view);
        assert_eq!(kept().len(), 0);
        for _ in 0..5 {
            give_back([tensor(vec![0.0; MOST / 4], [4, MOST / 16])]);
        }
        assert_eq!(kept().len(), 4);
        KEPT.take();
    }
}
