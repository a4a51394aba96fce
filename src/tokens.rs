//! Packed batches: rows of tokens concatenated without padding, and their boundaries.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};

/// The boundaries of rows in a packed batch.
///
/// A row may continue an earlier row, its parent: it attends to the parent's tokens and its own, and its positions continue those
/// of the parent. Rows with a common prefix thus share it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segments {
    /// `rows + 1` offsets, from 0 to the number of tokens.
    offsets: Arc<Vec<usize>>,
    /// The parent of each row; empty if no row has one.
    parents: Arc<Vec<Option<usize>>>,
}

/// The tokens of one row in a packed batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Tokens of the parent; empty without one.
    pub context: Range<usize>,
    /// Its own tokens.
    pub own: Range<usize>,
}

impl Span {
    /// Length of the row in tokens, parent included.
    pub fn len(&self) -> usize {
        self.context.len() + self.own.len()
    }

    /// Whether the row has no token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Index in the batch of the row's token at `position`.
    ///
    /// # Panics
    /// If the row is shorter.
    pub fn token(&self, position: usize) -> usize {
        assert!(position < self.len(), "a row of {} tokens", self.len());
        match position.checked_sub(self.context.len()) {
            Some(own) => self.own.start + own,
            None => self.context.start + position,
        }
    }
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
            parents: Arc::default(),
        }
    }

    /// Segments of the given lengths in tokens, each with its parent.
    ///
    /// # Panics
    /// If a parent does not come before its row, or has a parent itself.
    pub fn continuing(rows: &[(usize, Option<usize>)]) -> Self {
        for (row, (_, parent)) in rows.iter().enumerate() {
            if let Some(parent) = *parent {
                assert!(
                    parent < row && rows[parent].1.is_none(),
                    "row {row} cannot continue row {parent}"
                );
            }
        }
        let mut segments = Self::from_lens(rows.iter().map(|row| row.0));
        segments.parents = Arc::new(rows.iter().map(|row| row.1).collect());
        segments
    }

    /// The same rows with `count` more tokens before each that is chosen.
    ///
    /// # Panics
    /// If there is not one choice for each row.
    pub fn lengthened(&self, count: usize, chosen: &[bool]) -> Self {
        assert_eq!(chosen.len(), self.num_rows(), "a choice for each row");
        let more = |&chosen: &bool| if chosen { count } else { 0 };
        let lens = self.iter().zip(chosen);
        Self {
            parents: Arc::clone(&self.parents),
            ..Self::from_lens(lens.map(|(row, chosen)| row.len() + more(chosen)))
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

    /// Length of `row` in tokens, without its parent.
    pub fn row_len(&self, row: usize) -> usize {
        self.range(row).len()
    }

    /// The parent of `row`.
    pub fn parent(&self, row: usize) -> Option<usize> {
        self.parents.get(row).copied().flatten()
    }

    /// The tokens of `row` and of its parent.
    pub fn span(&self, row: usize) -> Span {
        Span {
            context: self.parent(row).map_or(0..0, |parent| self.range(parent)),
            own: self.range(row),
        }
    }

    /// All rows' token ranges, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Range<usize>> + '_ {
        self.offsets.windows(2).map(|w| w[0]..w[1])
    }

    /// All rows' spans, in order.
    pub fn spans(&self) -> impl ExactSizeIterator<Item = Span> + '_ {
        (0..self.num_rows()).map(|row| self.span(row))
    }

    /// Position of each token within its row, parent included.
    pub fn positions(&self) -> Vec<usize> {
        self.spans()
            .flat_map(|span| span.context.len()..span.len())
            .collect()
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
    /// `[tokens]`, rows concatenated.
    pub input_ids: Tensor<B, 1, Int>,
    /// Row boundaries.
    pub segments: Segments,
}

impl<B: Backend> TokenBatch<B> {
    /// Packs `rows` onto `device`.
    pub fn from_rows<R: AsRef<[u32]>>(rows: &[R], device: &B::Device) -> Self {
        let segments = Segments::from_lens(rows.iter().map(|row| row.as_ref().len()));
        Self::new(rows.iter().flat_map(AsRef::as_ref), segments, device)
    }

    /// Packs groups of rows onto `device`; the common prefix of a group's rows is in the batch once. Returns the batch and the span of
    /// each row, group by group. Attention and losses of a row do not change.
    pub fn from_groups<R: AsRef<[u32]>>(
        groups: &[Vec<R>],
        device: &B::Device,
    ) -> (Self, Vec<Span>) {
        let (ids, segments, spans) = pack_groups(groups);
        (Self::new(ids, segments, device), spans)
    }

    fn new<'a>(
        ids: impl IntoIterator<Item = &'a u32>,
        segments: Segments,
        device: &B::Device,
    ) -> Self {
        let ids: Vec<i32> = ids.into_iter().map(|&id| id as i32).collect();
        let shape = [ids.len()];
        Self {
            input_ids: Tensor::from_data(TensorData::new(ids, shape), device),
            segments,
        }
    }
}

/// The tokens of the groups, the segments, and the span of each given row.
fn pack_groups<R: AsRef<[u32]>>(groups: &[Vec<R>]) -> (Vec<&u32>, Segments, Vec<Span>) {
    let (mut lens, mut ids): (Vec<(usize, Option<usize>)>, Vec<&u32>) = Default::default();
    let mut places = Vec::new();
    for group in groups {
        let shared = shared_len(group);
        let parent = (shared > 0).then(|| {
            ids.extend(&group[0].as_ref()[..shared]);
            lens.push((shared, None));
            lens.len() - 1
        });
        for row in group {
            let own = &row.as_ref()[shared..];
            ids.extend(own);
            places.push(lens.len());
            lens.push((own.len(), parent));
        }
    }
    let segments = Segments::continuing(&lens);
    let spans = places.into_iter().map(|row| segments.span(row)).collect();
    (ids, segments, spans)
}

/// Number of tokens of a group of rows in [`TokenBatch::from_groups`].
pub fn packed_len<R: AsRef<[u32]>>(group: &[R]) -> usize {
    let shared = shared_len(group);
    let own: usize = group.iter().map(|row| row.as_ref().len() - shared).sum();
    shared + own
}

/// Ranges of adjacent rows to be packed as groups: those for which `same_prompt` holds of the first one and another, as long as the group
/// has at most `most` tokens.
pub fn row_groups(
    rows: &[&[u32]],
    most: usize,
    same_prompt: impl Fn(usize, usize) -> bool,
) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    for row in 0..rows.len() {
        match groups.last_mut() {
            Some(group)
                if same_prompt(group.start, row)
                    && packed_len(&rows[group.start..=row]) <= most =>
            {
                group.end = row + 1;
            }
            _ => groups.push(row..row + 1),
        }
    }
    groups
}

/// Length of the common prefix of a group's rows. It leaves each row at least one own token; for a single row it is 0.
fn shared_len<R: AsRef<[u32]>>(group: &[R]) -> usize {
    let [first, others @ ..] = group else {
        return 0;
    };
    let first = first.as_ref();
    let common = others.iter().map(AsRef::as_ref).map(|row: &[u32]| {
        let same = first.iter().zip(row).take_while(|(a, b)| a == b).count();
        same.min(row.len().saturating_sub(1))
    });
    common
        .min()
        .map_or(0, |shared| shared.min(first.len().saturating_sub(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adjacent_rows_with_one_prompt_are_a_group() {
        let rows: [&[u32]; 5] = [
            &[1, 2, 5],
            &[1, 2, 6, 7],
            &[1, 2, 8],
            &[1, 3, 5],
            &[1, 2, 5],
        ];
        let same = |a: usize, b: usize| rows[a][..2] == rows[b][..2];
        assert_eq!(row_groups(&rows, 100, same), [0..3, 3..4, 4..5]);
        // Two of the prompt, one and two of the responses are five; a third response would be the sixth.
        assert_eq!(row_groups(&rows, 5, same), [0..2, 2..3, 3..4, 4..5]);
        assert_eq!(row_groups(&rows[..2], 1, same), [0..1, 1..2]);
    }

    #[test]
    fn positions_restart_at_each_row() {
        let segments = Segments::from_lens([3, 0, 2]);
        assert_eq!(segments.positions(), [0, 1, 2, 0, 1]);
        assert_eq!((segments.num_rows(), segments.num_tokens()), (3, 5));
        assert_eq!(segments.range(2), 3..5);
        assert_eq!(Segments::from_lens([3, 2]).last_tokens(), [2, 4]);
    }

    #[test]
    fn a_row_goes_on_where_its_parent_ends() {
        let segments = Segments::continuing(&[(2, None), (1, Some(0)), (3, None), (2, Some(0))]);
        assert_eq!(segments.positions(), [0, 1, 2, 0, 1, 2, 2, 3]);
        let span = segments.span(3);
        assert_eq!((span.context.clone(), span.own.clone()), (0..2, 6..8));
        let tokens: Vec<usize> = (0..span.len()).map(|i| span.token(i)).collect();
        assert_eq!(tokens, [0, 1, 6, 7]);
    }

    #[test]
    fn lengthened_rows_keep_their_parents() {
        let segments = Segments::continuing(&[(2, None), (1, Some(0)), (3, None)]);
        let longer = segments.lengthened(4, &[true, false, true]);
        let expected = Segments::continuing(&[(6, None), (1, Some(0)), (7, None)]);
        assert_eq!(longer, expected);
    }

    #[test]
    #[should_panic(expected = "row 2 cannot continue row 1")]
    fn a_continued_row_continues_none() {
        let _ = Segments::continuing(&[(1, None), (1, Some(0)), (1, Some(1))]);
    }

    #[test]
    fn a_group_holds_its_beginning_once() {
        let groups = [
            vec![vec![7, 8, 1], vec![7, 8, 2, 3]],
            vec![vec![5, 6]],
            vec![vec![4, 4], vec![4, 4], vec![4]], // each keeps a token, so nothing is shared
            vec![vec![9, 9], vec![9, 9]],
        ];
        let (ids, _, spans) = pack_groups(&groups);
        let ids: Vec<u32> = ids.into_iter().copied().collect();
        assert_eq!(ids, [7, 8, 1, 2, 3, 5, 6, 4, 4, 4, 4, 4, 9, 9, 9]);
        for (row, span) in groups.iter().flatten().zip(&spans) {
            let seen: Vec<u32> = (0..span.len()).map(|i| ids[span.token(i)]).collect();
            assert_eq!(&seen, row);
        }
        let lens: Vec<usize> = groups.iter().map(|group| packed_len(group)).collect();
        assert_eq!(lens, [5, 2, 5, 3]);
    }
}
