//! Rows put before those of a packed matrix, and taken out again.

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Int, Tensor, TensorPrimitive};

use super::ModelBackend;
use super::tensor::{unwrap, wrap};
use crate::host::indices;

/// Where the same few rows stand in a longer matrix, once before each chosen segment of another's rows.
#[derive(Debug, Clone)]
pub struct Insertion<B: Backend> {
    /// For each row of the longer matrix its index among the old rows followed by the new ones.
    pub(super) order: IntTensor<B>,
    /// For each row of the longer matrix its index among the old rows; their number for a new one.
    pub(super) origin: IntTensor<B>,
    /// Places of the old rows in the longer matrix.
    pub(super) old: IntTensor<B>,
    /// Places of the new rows, one copy of them after another.
    pub(super) new: IntTensor<B>,
    /// How often the new rows are put in.
    pub(super) copies: usize,
}

impl<B: Backend> Insertion<B> {
    /// Of `count` rows before each of the segments, given by length, that are chosen.
    ///
    /// # Panics
    /// If no segment is chosen: there is nothing to insert.
    pub fn new(segments: &[(usize, bool)], count: usize, device: &B::Device) -> Self {
        let old_rows: usize = segments.iter().map(|(len, _)| len).sum();
        let (mut order, mut origin) = (Vec::new(), Vec::new());
        let (mut old, mut new) = (Vec::new(), Vec::new());
        for &(len, chosen) in segments {
            if chosen {
                new.extend(order.len()..order.len() + count);
                order.extend(old_rows..old_rows + count);
                origin.extend(std::iter::repeat_n(old_rows, count));
            }
            let first = old.len();
            old.extend(order.len()..order.len() + len);
            order.extend(first..first + len);
            origin.extend(first..first + len);
        }
        assert!(!new.is_empty(), "nothing to insert");
        let copies = new.len() / count;
        let on_device = |values: &[usize]| indices::<B>(values, device).into_primitive();
        Self {
            order: on_device(&order),
            origin: on_device(&origin),
            old: on_device(&old),
            new: on_device(&new),
            copies,
        }
    }

    /// Places of the old rows in the longer matrix.
    pub fn old(&self) -> Tensor<B, 1, Int> {
        Tensor::from_primitive(self.old.clone())
    }
}

/// Puts `rows` (`[count, width]`) into `x` (`[tokens, width]`) where `insertion` says. Both may be differentiated.
pub fn insert_rows<B: ModelBackend>(
    x: Tensor<B, 2>,
    rows: Tensor<B, 2>,
    insertion: &Insertion<B>,
) -> Tensor<B, 2> {
    wrap(B::insert_rows(unwrap(x), unwrap(rows), insertion))
}

/// The rows of `x` that were there before [`insert_rows`].
pub fn remove_rows<B: ModelBackend>(x: Tensor<B, 2>, insertion: &Insertion<B>) -> Tensor<B, 2> {
    wrap(B::remove_rows(unwrap(x), insertion))
}

fn select<B: Backend>(x: FloatTensor<B>, places: &IntTensor<B>) -> FloatTensor<B> {
    B::float_select(x, 0, places.clone())
}

fn joined<B: Backend>(x: FloatTensor<B>, below: Tensor<B, 2>) -> FloatTensor<B> {
    B::float_cat(vec![x, unwrap(below)], 0)
}

/// See [`insert_rows`].
pub(super) fn insert<B: Backend>(
    x: FloatTensor<B>,
    rows: FloatTensor<B>,
    insertion: &Insertion<B>,
) -> FloatTensor<B> {
    select::<B>(joined::<B>(x, wrap(rows)), &insertion.order)
}

/// See [`remove_rows`].
pub(super) fn remove<B: Backend>(x: FloatTensor<B>, insertion: &Insertion<B>) -> FloatTensor<B> {
    select::<B>(x, &insertion.old)
}

/// Gradient of [`insert`] with respect to the rows that were put in: the sum over their copies.
pub(super) fn inserted_gradient<B: Backend>(
    grad: FloatTensor<B>,
    insertion: &Insertion<B>,
) -> FloatTensor<B> {
    let grad = wrap::<B, 2>(select::<B>(grad, &insertion.new));
    let [rows, width] = grad.dims();
    let count = rows / insertion.copies;
    let by_copy = grad.reshape([insertion.copies, count * width]);
    unwrap(by_copy.sum_dim(0).reshape([count, width]))
}

/// Gradient of [`remove`]: zeros in the places of the removed rows.
pub(super) fn removed_gradient<B: Backend>(
    grad: FloatTensor<B>,
    insertion: &Insertion<B>,
) -> FloatTensor<B> {
    let x = Tensor::<B, 2>::from_primitive(TensorPrimitive::Float(grad));
    let zeros = Tensor::zeros([1, x.dims()[1]], &x.device());
    select::<B>(joined::<B>(unwrap(x), zeros), &insertion.origin)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::backend::{Autodiff, NdArray};

    type B = Autodiff<NdArray>;

    #[test]
    fn rows_are_put_before_chosen_segments_and_taken_out_again() {
        let device = Default::default();
        let insertion = Insertion::<B>::new(&[(2, true), (1, false), (1, true)], 2, &device);
        let x = Tensor::<B, 2>::from_floats([[1.0], [2.0], [3.0], [4.0]], &device).require_grad();
        let rows = Tensor::<B, 2>::from_floats([[10.0], [20.0]], &device).require_grad();
        let y = insert_rows(x.clone(), rows.clone(), &insertion);
        let values = |t: Tensor<_, 2>| t.into_data().into_vec::<f32>().unwrap();
        assert_eq!(
            values(y.clone()),
            [10.0, 20.0, 1.0, 2.0, 3.0, 10.0, 20.0, 4.0]
        );
        assert_eq!(
            values(remove_rows(y.clone(), &insertion)),
            [1.0, 2.0, 3.0, 4.0]
        );
        // d/dy of sum(y * w) with w = 1..8: x gets w at 3, 4, 5, 8; the rows get 1 + 6 and 2 + 7.
        let w = Tensor::<B, 1>::from_floats([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], &device);
        let grads = (y.clone() * w.reshape([8, 1])).sum().backward();
        let of = |t: &Tensor<B, 2>| {
            t.grad(&grads)
                .unwrap()
                .into_data()
                .into_vec::<f32>()
                .unwrap()
        };
        assert_eq!(of(&x), [3.0, 4.0, 5.0, 8.0]);
        assert_eq!(of(&rows), [7.0, 9.0]);
        // Through the removal only the old rows get anything. A backward pass takes its graph with it.
        let y = insert_rows(x.clone(), rows.clone(), &insertion);
        let grads = remove_rows(y, &insertion).sum().backward();
        let of = |t: &Tensor<B, 2>| {
            t.grad(&grads)
                .unwrap()
                .into_data()
                .into_vec::<f32>()
                .unwrap()
        };
        assert_eq!((of(&x), of(&rows)), (vec![1.0; 4], vec![0.0; 2]));
    }
}
