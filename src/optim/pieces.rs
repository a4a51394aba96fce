//! Update rules that look at a tensor as a whole: the tensors of files that one parameter holds are updated one by one.

use std::ops::Range;

use burn::tensor::Tensor;
use burn::tensor::ops::FloatTensor;

use super::rule::ParamForm;
use crate::ops::{ModelBackend, unwrap, wrap};

/// The columns `piece` of a matrix.
pub(super) fn piece<B: ModelBackend>(x: &Tensor<B, 2>, piece: &Range<usize>) -> Tensor<B, 2> {
    let [rows, columns] = x.dims();
    match *piece == (0..columns) {
        true => x.clone(),
        false => x.clone().slice([0..rows, piece.clone()]),
    }
}

/// Matrices side by side.
pub(super) fn side_by_side<B: ModelBackend>(mut parts: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
    match parts.len() {
        1 => parts.remove(0),
        _ => Tensor::cat(parts, 1),
    }
}

/// A parameter of either rank as a matrix: a vector is one row.
pub(super) fn matrix<B: ModelBackend>(x: FloatTensor<B>, form: &ParamForm) -> Tensor<B, 2> {
    let columns = form.shape.last().copied().unwrap_or(1);
    let rows = form.num_entries() / columns.max(1);
    wrap(B::float_reshape(x, [rows, columns].into()))
}

/// The inverse of [`matrix`].
pub(super) fn parameter<B: ModelBackend>(x: Tensor<B, 2>, form: &ParamForm) -> FloatTensor<B> {
    B::float_reshape(unwrap(x), form.shape.clone().into())
}

/// The mean over all entries, `[1, 1]`. By rows first: a full reduction has no fixed order on GPUs.
pub(super) fn mean<B: ModelBackend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    x.mean_dim(1).mean_dim(0)
}
