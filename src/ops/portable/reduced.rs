//! Products with reduced weights.

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Int, Tensor, TensorData};

use crate::host::read;
use crate::ops::reduced::{GROUP, LARGEST};
use crate::ops::tensor::{unwrap, wrap};
use crate::ops::{ModelBackend, Precision, ReducedMatrix};

/// The reduced weight in f32, uploaded for every product: correct on every backend, but slow.
fn full<B: Backend>(weight: &ReducedMatrix, device: &B::Device) -> Tensor<B, 2> {
    let shape = [weight.inputs(), weight.outputs()];
    Tensor::from_data(TensorData::new(weight.values(), shape), device)
}

pub(in crate::ops) fn reduced_linear<B: ModelBackend>(
    x: FloatTensor<B>,
    weight: &ReducedMatrix,
) -> FloatTensor<B> {
    let x = wrap::<B, 2>(x);
    let full = full(weight, &x.device());
    match weight.precision() {
        Precision::Int8 => unwrap(rounded(x).matmul(full)),
        _ => weight.matmul().matmul::<B>(unwrap(x), unwrap(full)),
    }
}

pub(in crate::ops) fn reduced_linear_backward<B: ModelBackend>(
    grad: FloatTensor<B>,
    weight: &ReducedMatrix,
) -> FloatTensor<B> {
    let grad = wrap::<B, 2>(grad);
    let full = full::<B>(weight, &grad.device()).transpose();
    weight.matmul().matmul::<B>(unwrap(grad), unwrap(full))
}

/// Rounds on the host: correct on every backend, but slow.
pub(in crate::ops) fn bf16_matmul<B: Backend>(
    a: FloatTensor<B>,
    b: FloatTensor<B>,
) -> FloatTensor<B> {
    let [a, b] = [a, b].map(|matrix| {
        let matrix = wrap::<B, 2>(matrix);
        let (shape, device) = (matrix.dims(), matrix.device());
        let mut values = read(matrix);
        for x in &mut values {
            *x = half::bf16::from_f32(*x).to_f32();
        }
        Tensor::<B, 2>::from_data(TensorData::new(values, shape), &device)
    });
    unwrap(a.matmul(b))
}

pub(in crate::ops) fn reduced_columns<B: Backend>(
    weight: &ReducedMatrix,
    columns: IntTensor<B>,
) -> FloatTensor<B> {
    let columns = Tensor::<B, 1, Int>::from_primitive(columns);
    let device = columns.device();
    let columns = columns.into_data().convert::<u32>().into_vec::<u32>();
    let columns = columns.expect("converted to u32");
    let shape = [columns.len(), weight.inputs()];
    let values = TensorData::new(weight.columns(&columns), shape);
    unwrap(Tensor::<B, 2>::from_data(values, &device))
}

/// Rounded to 8 bits by row and group of columns.
fn rounded<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    let [rows, inputs] = x.dims();
    let groups = inputs.div_ceil(GROUP);
    let padding = Tensor::zeros([rows, groups * GROUP - inputs], &x.device());
    let x = match groups * GROUP == inputs {
        true => x,
        false => Tensor::cat(vec![x, padding], 1),
    };
    let x = x.reshape([rows * groups, GROUP]);
    let largest = x.clone().abs().max_dim(1);
    // A group of zeros: any scale works.
    let zero = largest.clone().equal_elem(0.0);
    let inverse = largest.clone().mask_fill(zero, 1.0).recip() * LARGEST;
    let numbers = (x * inverse).round();
    let x = numbers * (largest / LARGEST);
    x.reshape([rows, groups * GROUP]).narrow(1, 0, inputs)
}
