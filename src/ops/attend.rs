//! The parameters of attention: heads, mask and score function.

use std::ops::Range;
use std::sync::Arc;

use crate::tokens::Segments;

/// Head layout of a joint `[tokens, (heads + 2 * kv_heads) * head_dim]` matrix of queries, keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadLayout {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Features of one head.
    pub head_dim: usize,
}

impl HeadLayout {
    /// Columns of the queries, and of the attention output.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Columns of the keys, and of the values.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Columns of the joint matrix.
    pub fn joint_width(&self) -> usize {
        self.q_width() + 2 * self.kv_width()
    }

    /// The usual factor on the scores, `1 / sqrt(head_dim)`.
    pub fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
}

/// Which keys of its row a query attends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mask {
    /// Its own key and all before it.
    Causal,
    /// All keys.
    Full,
    /// The last `n` keys of [`Mask::Causal`], at least 1: the query at position `i` attends to the keys at `j` with `i - n < j <= i`.
    Window(usize),
}

impl Mask {
    /// Positions that the query at `position` attends to, in a row of `len` tokens.
    pub fn seen(self, position: usize, len: usize) -> Range<usize> {
        match self {
            Self::Causal => 0..position + 1,
            Self::Full => 0..len,
            Self::Window(n) => (position + 1).saturating_sub(n)..position + 1,
        }
    }
}

/// One attention: `softmax(score(q . k)) . v` for each query head, over the keys that `mask` allows in each row of `segments`, parent
/// included.
///
/// The score is `s = scale * (q . k)`, or `softcap * tanh(s / softcap)`, plus the bias of `alibi`.
#[derive(Debug, Clone, PartialEq)]
pub struct Attend {
    /// Heads.
    pub layout: HeadLayout,
    /// Rows of the batch.
    pub segments: Segments,
    /// Factor on the products of queries and keys.
    pub scale: f32,
    /// Which keys a query attends to.
    pub mask: Mask,
    /// Soft cap of the scores; positive.
    ///
    /// # Source
    /// Gemma 2, arXiv:2408.00118, section 2.
    pub softcap: Option<f32>,
    /// ALiBi: the slope of each query head, by which the score of a key falls with each token between it and the query. `slope * (j - i)`
    /// is added to the score of the key at position `j` for the query at position `i`.
    ///
    /// # Source
    /// Press et al. 2022, arXiv:2108.12409, section 3.
    pub alibi: Option<Arc<[f32]>>,
}

impl Attend {
    /// Causal attention at the usual scale.
    pub fn causal(layout: HeadLayout, segments: &Segments) -> Self {
        Self {
            layout,
            segments: segments.clone(),
            scale: layout.scale(),
            mask: Mask::Causal,
            softcap: None,
            alibi: None,
        }
    }

    /// For each token of the batch, its cache slot and the positions in it that the token attends to. `slots[row]` is the slot of a row,
    /// `held[row]` its length before the batch, whose tokens have been written.
    pub(crate) fn cached(&self, slots: &[usize], held: &[usize]) -> Vec<(usize, Range<usize>)> {
        let rows = self.segments.iter().zip(slots).zip(held);
        rows.flat_map(|((row, &slot), &held)| {
            let len = held + row.len();
            (held..len).map(move |position| (slot, self.mask.seen(position, len)))
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `sliding_window_overlay` of transformers 5.23: `kv_idx > q_idx - sliding_window`.
    #[test]
    fn a_window_counts_the_query_itself() {
        assert_eq!(Mask::Causal.seen(3, 9), 0..4);
        assert_eq!(Mask::Full.seen(3, 9), 0..9);
        assert_eq!(Mask::Window(1).seen(3, 9), 3..4);
        assert_eq!(Mask::Window(3).seen(3, 9), 1..4);
        assert_eq!(Mask::Window(4).seen(3, 9), 0..4);
        assert_eq!(Mask::Window(9).seen(3, 9), 0..4);
    }

    #[test]
    fn a_cached_token_sees_what_its_slot_held_and_its_row_up_to_itself() {
        let layout = HeadLayout {
            heads: 1,
            kv_heads: 1,
            head_dim: 1,
        };
        let mut attend = Attend::causal(layout, &Segments::from_lens([2, 1]));
        let seen = |attend: &Attend| attend.cached(&[4, 0], &[3, 0]);
        assert_eq!(seen(&attend), [(4, 0..4), (4, 0..5), (0, 0..1)]);
        attend.mask = Mask::Window(2);
        assert_eq!(seen(&attend), [(4, 2..4), (4, 3..5), (0, 0..1)]);
        attend.mask = Mask::Full;
        assert_eq!(seen(&attend), [(4, 0..5), (4, 0..5), (0, 0..1)]);
    }
}
