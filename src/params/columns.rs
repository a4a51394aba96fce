//! Training some columns of a parameter, where several layers are stored as one matrix.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorMetadata};

use crate::ops::{unwrap, wrap};

/// Trained columns of a parameter (entries, for a vector), while others are frozen; `None` for all.
pub type TrainedColumns = Option<Arc<Vec<Range<usize>>>>;

/// The columns `ranges` of a matrix (entries of a vector), concatenated.
pub(crate) fn columns_of<B: Backend>(
    whole: FloatTensor<B>,
    ranges: &[Range<usize>],
) -> FloatTensor<B> {
    match whole.shape().num_dims() {
        1 => {
            let whole = wrap::<B, 1>(whole);
            let parts = ranges
                .iter()
                .map(|range| whole.clone().slice([range.clone()]));
            unwrap(Tensor::cat(parts.collect(), 0))
        }
        _ => {
            let whole = wrap::<B, 2>(whole);
            let rows = whole.dims()[0];
            let part = |range: &Range<usize>| whole.clone().slice([0..rows, range.clone()]);
            unwrap(Tensor::cat(ranges.iter().map(part).collect(), 1))
        }
    }
}

/// Replaces the columns `ranges` of `whole` by `columns`; see [`columns_of`].
pub(crate) fn with_columns<B: Backend>(
    whole: FloatTensor<B>,
    columns: FloatTensor<B>,
    ranges: &[Range<usize>],
) -> FloatTensor<B> {
    let mut first = 0;
    let parts = ranges.iter().map(|range| {
        let own = first..first + range.len();
        first = own.end;
        (range.clone(), own)
    });
    match whole.shape().num_dims() {
        1 => {
            let columns = wrap::<B, 1>(columns);
            unwrap(parts.fold(wrap::<B, 1>(whole), |whole, (range, own)| {
                whole.slice_assign([range], columns.clone().slice([own]))
            }))
        }
        _ => {
            let columns = wrap::<B, 2>(columns);
            let rows = columns.dims()[0];
            unwrap(parts.fold(wrap::<B, 2>(whole), |whole, (range, own)| {
                whole.slice_assign([0..rows, range], columns.clone().slice([0..rows, own]))
            }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::backend::NdArray;

    #[test]
    fn columns_are_taken_out_and_put_back() {
        let device = Default::default();
        let matrix =
            Tensor::<NdArray, 2>::from_floats([[1., 2., 3., 4.], [5., 6., 7., 8.]], &device);
        let ranges = [0..1, 2..4];
        let columns = columns_of::<NdArray>(unwrap(matrix.clone()), &ranges);
        let read = |tensor| {
            wrap::<NdArray, 2>(tensor)
                .into_data()
                .into_vec::<f32>()
                .unwrap()
        };
        assert_eq!(read(columns), [1., 3., 4., 5., 7., 8.]);
        let new = Tensor::<NdArray, 2>::zeros([2, 3], &device);
        let whole = with_columns::<NdArray>(unwrap(matrix), unwrap(new), &ranges);
        assert_eq!(read(whole), [0., 2., 0., 0., 0., 6., 0., 0.]);

        let vector = Tensor::<NdArray, 1>::from_floats([1., 2., 3., 4.], &device);
        let entries = columns_of::<NdArray>(unwrap(vector.clone()), &[1..2, 3..4]);
        let whole = with_columns::<NdArray>(unwrap(vector), entries.clone(), &[2..3, 0..1]);
        let read = |tensor| {
            wrap::<NdArray, 1>(tensor)
                .into_data()
                .into_vec::<f32>()
                .unwrap()
        };
        assert_eq!(
            (read(entries), read(whole)),
            (vec![2., 4.], vec![4., 2., 2., 4.])
        );
    }
}
