//! Transfers between host and device. A read waits for all queued work of the device, so training steps read once.

use std::cell::Cell;

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};

thread_local! {
    static READS: Cell<u64> = const { Cell::new(0) };
}

/// Uploads indices.
pub fn indices<B: Backend>(values: &[usize], device: &B::Device) -> Tensor<B, 1, Int> {
    let values: Vec<i32> = values.iter().map(|&i| i as i32).collect();
    let shape = [values.len()];
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// Uploads numbers.
pub fn floats<B: Backend>(values: &[f32], device: &B::Device) -> Tensor<B, 1> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
}

/// Reads a tensor, row-major. Waits for the device.
pub fn read<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    READS.set(READS.get() + 1);
    let data = tensor.into_data().convert::<f32>();
    data.into_vec().expect("converted to f32")
}

/// Number of calls of [`read`] in this thread.
pub fn num_reads() -> u64 {
    READS.get()
}

/// Collects tensors to read at the end of a step, in one read: the next micro-batch can be packed and uploaded while the device
/// works on the current one.
#[derive(Debug)]
pub struct DeferredReads<B: Backend> {
    parts: Vec<Tensor<B, 1>>,
}

impl<B: Backend> Default for DeferredReads<B> {
    fn default() -> Self {
        Self { parts: Vec::new() }
    }
}

impl<B: Backend> DeferredReads<B> {
    /// Adds `numbers`.
    pub fn push(&mut self, numbers: Tensor<B, 1>) {
        self.parts.push(numbers);
    }

    /// Reads all tensors, in order.
    pub fn read(self) -> impl Iterator<Item = Vec<f32>> + use<B> {
        let lens: Vec<usize> = self.parts.iter().map(|part| part.dims()[0]).collect();
        let mut all = match self.parts.len() {
            0 => Vec::new(),
            _ => read(Tensor::cat(self.parts, 0)),
        }
        .into_iter();
        lens.into_iter()
            .map(move |len| all.by_ref().take(len).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn_ndarray::NdArray;

    #[test]
    fn what_is_kept_is_read_at_once_and_in_order() {
        let device = Default::default();
        let mut deferred = DeferredReads::<NdArray>::default();
        let parts = [vec![1.0, 2.0], vec![], vec![3.0]];
        for part in &parts {
            deferred.push(floats(part, &device));
        }
        let before = num_reads();
        assert_eq!(deferred.read().collect::<Vec<_>>(), parts);
        assert_eq!(num_reads(), before + 1);
        assert_eq!(DeferredReads::<NdArray>::default().read().count(), 0);
        assert_eq!(num_reads(), before + 1);
    }
}
