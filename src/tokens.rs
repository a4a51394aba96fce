//! Rows of tokens laid end to end, without padding, and the boundaries between them.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};

/// Where each row of a packed batch starts and ends. Rows follow one another without gaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segments {
    /// `rows + 1` offsets, from 0 to the number of tokens.
    offsets: Arc<Vec<usize>>,
}

impl Segments {
    /// Segments of the given lengths in tokens.
    pub fn from_lens(lens: impl IntoIterator<Item = usize>) -> Self {
        let mut offsets = vec![0];
        for len in lens {
            offsets.push(offsets[offsets.len() - 1] + len);
        }
        Self {
            offsets: Arc::new(offsets),
        }
    }

    /// Number of rows.
    pub fn num_rows(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Number of tokens in all rows.
    pub fn num_tokens(&self) -> usize {
        self.offsets[self.offsets.len() - 1]
    }

    /// Token positions of `row` in the packed batch.
    pub fn range(&self, row: usize) -> Range<usize> {
        self.offsets[row]..self.offsets[row + 1]
    }

    /// Length of `row` in tokens.
    pub fn row_len(&self, row: usize) -> usize {
        self.range(row).len()
    }

    /// All rows' token ranges, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Range<usize>> + '_ {
        self.offsets.windows(2).map(|w| w[0]..w[1])
    }

    /// Position of each token within its own row.
    pub fn positions(&self) -> Vec<usize> {
        self.iter().flat_map(|range| 0..range.len()).collect()
    }

    /// Index of each row's last token.
    ///
    /// # Panics
    /// If a row is empty: it has no last token.
    pub fn last_tokens(&self) -> Vec<usize> {
        self.iter()
            .map(|range| {
                assert!(!range.is_empty(), "an empty row has no last token");
                range.end - 1
            })
            .collect()
    }
}

/// A packed batch on the device.
#[derive(Debug, Clone)]
pub struct TokenBatch<B: Backend> {
    /// `[tokens]`, rows laid end to end.
    pub input_ids: Tensor<B, 1, Int>,
    /// Row boundaries.
    pub segments: Segments,
}

impl<B: Backend> TokenBatch<B> {
    /// Packs `rows` onto `device`.
    pub fn from_rows<R: AsRef<[u32]>>(rows: &[R], device: &B::Device) -> Self {
        let segments = Segments::from_lens(rows.iter().map(|row| row.as_ref().len()));
        let ids: Vec<i32> = rows
            .iter()
            .flat_map(|row| row.as_ref().iter().map(|&id| id as i32))
            .collect();
        let shape = [ids.len()];
        Self {
            input_ids: Tensor::from_data(TensorData::new(ids, shape), device),
            segments,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_restart_at_each_row() {
        let segments = Segments::from_lens([3, 0, 2]);
        assert_eq!(segments.positions(), [0, 1, 2, 0, 1]);
        assert_eq!((segments.num_rows(), segments.num_tokens()), (3, 5));
        assert_eq!(segments.range(2), 3..5);
        assert_eq!(Segments::from_lens([3, 2]).last_tokens(), [2, 4]);
    }
}
