//! Tables of which a few rows are replaced by others: embeddings and output heads with trained tokens.
//!
//! The table itself stays as it is, in whatever precision, and no gradient of its size is computed.

use std::sync::Arc;

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Int, Tensor};

use super::LogprobOutput;
use crate::host::indices;

/// Which rows of a table are replaced.
#[derive(Debug, Clone)]
pub struct ReplacedRows<B: Backend> {
    /// Their indices: row `j` of the others stands in place of row `at[j]`.
    pub(super) at: Arc<Vec<u32>>,
    /// For each row of the table its index among the table's rows followed by the others.
    pub(super) order: IntTensor<B>,
}

/// The results of [`ModelBackend::replaced_token_logprob`](super::ModelBackend::replaced_token_logprob): with gradients also
/// `[tokens, others]`, the derivative of each log-probability with respect to the logits of the rows in place of others.
pub type ReplacedLogprob<B> = (LogprobOutput<B>, Option<FloatTensor<B>>);

impl<B: Backend> ReplacedRows<B> {
    /// Those at `at`, each named once; `order` is that of [`replaced_order`].
    pub fn new(at: Arc<Vec<u32>>, order: Tensor<B, 1, Int>) -> Self {
        Self {
            at,
            order: order.into_primitive(),
        }
    }

    fn order(&self) -> Tensor<B, 1, Int> {
        Tensor::from_primitive(self.order.clone())
    }

    /// Rows of the table.
    pub(super) fn num_rows(&self) -> usize {
        self.order().dims()[0]
    }

    /// `[tokens, others]`: the columns of `x`, `[tokens, rows of the table]`, that belong to replaced rows.
    pub(super) fn columns(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let at: Vec<usize> = self.at.iter().map(|&row| row as usize).collect();
        let at = indices(&at, &x.device());
        x.select(1, at)
    }

    /// `x` with other columns in the place of [`ReplacedRows::columns`].
    pub(super) fn put(&self, x: Tensor<B, 2>, columns: Tensor<B, 2>) -> Tensor<B, 2> {
        Tensor::cat(vec![x, columns], 1).select(1, self.order())
    }

    /// `x` with zeros in the place of [`ReplacedRows::columns`].
    pub(super) fn clear(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let rows = self.num_rows();
        let kept = self.order().lower_elem(rows as i64).float();
        x * kept.reshape([1, rows])
    }
}

impl<B: Backend, C: CheckpointStrategy> ReplacedRows<Autodiff<B, C>> {
    /// The same on the backend below: indices have no gradients.
    pub(super) fn without_gradients(&self) -> ReplacedRows<B> {
        ReplacedRows {
            at: self.at.clone(),
            order: self.order.clone(),
        }
    }
}

/// For each row of a table of `rows` rows its index among them followed by others, of which row `j` stands in place of row `at[j]`.
///
/// # Panics
/// If there is no row `at[j]`.
pub fn replaced_order<B: Backend>(
    at: &[u32],
    rows: usize,
    device: &B::Device,
) -> Tensor<B, 1, Int> {
    let mut order: Vec<usize> = (0..rows).collect();
    for (other, &row) in at.iter().enumerate() {
        order[row as usize] = rows + other;
    }
    indices(&order, device)
}

/// `x`, the rows of a table at `ids`, with `others` in place of those that are replaced. `x`: `[tokens, width]`, `others`:
/// `[replaced, width]`; both may be differentiated.
pub fn replace_rows<B: Backend>(
    x: Tensor<B, 2>,
    ids: &Tensor<B, 1, Int>,
    others: Tensor<B, 2>,
    replaced: &ReplacedRows<B>,
) -> Tensor<B, 2> {
    let [tokens, width] = x.dims();
    let place = replaced.order().select(0, ids.clone()) - replaced.num_rows() as i64;
    let is_replaced = place.clone().greater_equal_elem(0);
    let is_replaced = is_replaced.reshape([tokens, 1]).expand([tokens, width]);
    x.mask_where(is_replaced, others.select(0, place.clamp_min(0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::backend::NdArray;

    type B = Autodiff<NdArray>;

    #[test]
    fn rows_are_looked_up_in_place_of_others() {
        let device = Default::default();
        let at = Arc::new(vec![3, 1]);
        let order = replaced_order::<B>(&at, 4, &device);
        let order_values: Vec<i64> = order.to_data().iter().collect();
        assert_eq!(order_values, [0, 5, 2, 4]);
        let replaced = ReplacedRows::new(at, order);
        let ids = [0, 1, 3, 1, 2];
        let table = Tensor::<B, 2>::from_floats([[1.0], [2.0], [3.0], [4.0]], &device);
        let others = Tensor::<B, 2>::from_floats([[40.0], [20.0]], &device).require_grad();
        let ids = indices(&ids, &device);
        let x = table.select(0, ids.clone()).require_grad();
        let y = replace_rows(x.clone(), &ids, others.clone(), &replaced);
        let values = |t: Tensor<_, 2>| t.into_data().into_vec::<f32>().unwrap();
        assert_eq!(values(y.clone()), [1.0, 20.0, 40.0, 20.0, 3.0]);
        // d/dy of sum(y * w) with w = 1..5: row 1 is met at 2 and 4.
        let w = Tensor::<B, 2>::from_floats([[1.0], [2.0], [3.0], [4.0], [5.0]], &device);
        let grads = (y * w).sum().backward();
        let of = |t: &Tensor<B, 2>| {
            let grad = t.grad(&grads).unwrap();
            grad.into_data().into_vec::<f32>().unwrap()
        };
        assert_eq!(of(&others), [3.0, 6.0]);
        assert_eq!(of(&x), [1.0, 0.0, 0.0, 0.0, 5.0]);
    }

    #[test]
    fn columns_are_put_in_place_of_others() {
        let device = Default::default();
        let at = Arc::new(vec![2, 0]);
        let replaced = ReplacedRows::new(at.clone(), replaced_order::<NdArray>(&at, 3, &device));
        let x = Tensor::<NdArray, 2>::from_floats([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], &device);
        let others = Tensor::from_floats([[7.0, 8.0], [9.0, 0.5]], &device);
        let values = |t: Tensor<NdArray, 2>| t.into_data().into_vec::<f32>().unwrap();
        assert_eq!(values(replaced.columns(x.clone())), [3.0, 1.0, 6.0, 4.0]);
        assert_eq!(
            values(replaced.clear(x.clone())),
            [0.0, 2.0, 0.0, 0.0, 5.0, 0.0]
        );
        assert_eq!(
            values(replaced.put(x, others)),
            [8.0, 2.0, 7.0, 0.5, 5.0, 9.0]
        );
    }
}
