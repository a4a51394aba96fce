//! What an optimiser keeps of a parameter, on the device and in checkpoints.

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, Int, IntDType, Tensor, TensorData, TensorMetadata};

use crate::host;
use crate::ops::wrap;

/// A tensor that an update rule keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateSpec {
    /// Its name below the parameter's.
    pub name: &'static str,
    /// Its shape, in checkpoints too.
    pub shape: Vec<usize>,
    /// Whether it holds bytes, four to a word, in place of floats.
    pub bytes: bool,
}

impl StateSpec {
    /// Floats.
    pub fn floats(name: &'static str, shape: &[usize]) -> Self {
        Self {
            name,
            shape: shape.to_vec(),
            bytes: false,
        }
    }

    /// Bytes, rows of [`crate::ops::BLOCK`].
    pub fn bytes(name: &'static str, rows: usize) -> Self {
        Self {
            name,
            shape: vec![rows, crate::ops::BLOCK],
            bytes: true,
        }
    }

    /// Bytes that it takes.
    pub fn num_bytes(&self) -> usize {
        let entries: usize = self.shape.iter().product();
        match self.bytes {
            true => entries,
            false => 4 * entries,
        }
    }

    /// As before the first update.
    pub(super) fn zeros<B: Backend>(&self, device: &B::Device) -> StateTensor<B> {
        let shape = self.shape.clone();
        match self.bytes {
            false => StateTensor::Floats(B::float_zeros(shape.into(), device, DType::F32.into())),
            true => {
                let words = [shape[0], shape[1] / 4];
                StateTensor::Bytes(B::int_zeros(words.into(), device, IntDType::I32))
            }
        }
    }

    /// From a checkpoint's numbers.
    pub(super) fn restored<B: Backend>(
        &self,
        values: Vec<f32>,
        device: &B::Device,
    ) -> StateTensor<B> {
        if !self.bytes {
            let data = TensorData::new(values, self.shape.clone());
            return StateTensor::Floats(B::float_from_data(data, device));
        }
        let words: Vec<i32> = (values.chunks_exact(self.shape[1]))
            .flat_map(|row| {
                let quarter = row.len() / 4;
                (0..quarter).map(move |i| {
                    let byte = |k: usize| row[k * quarter + i] as u8;
                    i32::from_le_bytes([0, 1, 2, 3].map(byte))
                })
            })
            .collect();
        let shape = [self.shape[0], self.shape[1] / 4];
        StateTensor::Bytes(B::int_from_data(TensorData::new(words, shape), device))
    }
}

/// A tensor of an optimiser's state.
#[derive(Debug, Clone)]
pub enum StateTensor<B: Backend> {
    /// Floats.
    Floats(FloatTensor<B>),
    /// Bytes in words of 32 bits: word `i` of a row holds the row's bytes `i`, `i + n / 4`, `i + n / 2`, `i + 3 n / 4`, the first
    /// of them lowest.
    Bytes(IntTensor<B>),
}

impl<B: Backend> StateTensor<B> {
    /// The floats.
    ///
    /// # Panics
    /// If it holds bytes.
    pub(super) fn floats(self) -> FloatTensor<B> {
        match self {
            Self::Floats(tensor) => tensor,
            Self::Bytes(_) => unreachable!("bytes where the rule keeps floats"),
        }
    }

    /// The words of bytes.
    ///
    /// # Panics
    /// If it holds floats.
    pub(super) fn words(self) -> IntTensor<B> {
        match self {
            Self::Bytes(tensor) => tensor,
            Self::Floats(_) => unreachable!("floats where the rule keeps bytes"),
        }
    }

    /// Its numbers, row-major, bytes as such. Reads the device.
    pub(super) fn read(&self) -> Vec<f32> {
        match self {
            Self::Floats(tensor) => values::<B>(tensor.clone()),
            Self::Bytes(words) => {
                let words = Tensor::<B, 2, Int>::from_primitive(words.clone());
                let [_, quarter] = words.dims();
                let data = words.into_data().convert::<i32>();
                let words: Vec<i32> = data.into_vec().expect("converted to i32");
                let rows = words.chunks_exact(quarter);
                rows.flat_map(|row| {
                    (0..4).flat_map(move |k| {
                        row.iter().map(move |word| f32::from(word.to_le_bytes()[k]))
                    })
                })
                .collect()
            }
        }
    }
}

/// Its numbers, row-major.
pub(super) fn values<B: Backend>(tensor: FloatTensor<B>) -> Vec<f32> {
    let entries = tensor.shape().num_elements();
    let flat = B::float_reshape(tensor, [entries].into());
    host::read(wrap::<B, 1>(flat))
}
