//! Tensors in blocks side by side: the weights of layers that read the same.

use std::ops::Range;

use super::Blocks;

/// A matrix `[inputs, outputs]`: the transposes of tensors in blocks, each with scales of its own, from left to right.
#[derive(Debug)]
pub(in crate::ops) struct BlockMatrix {
    /// Each with its first column.
    pieces: Vec<(usize, Blocks)>,
}

/// Columns of a matrix that are of one tensor.
pub(in crate::ops) struct Part<'a> {
    pub(in crate::ops) blocks: &'a Blocks,
    /// Rows of that tensor.
    pub(in crate::ops) rows: Range<usize>,
    /// The place of the first of them among the columns that were asked for.
    pub(in crate::ops) offset: usize,
}

impl BlockMatrix {
    /// # Panics
    /// If there is no piece, or not all have as many inputs.
    pub(in crate::ops) fn new(pieces: Vec<Blocks>) -> Self {
        let inputs = pieces.first().map(Blocks::inputs);
        let mut column = 0;
        let pieces = pieces.into_iter().map(|blocks| {
            assert_eq!(Some(blocks.inputs()), inputs, "layers that read the same");
            let first = column;
            column += blocks.outputs();
            (first, blocks)
        });
        let pieces: Vec<_> = pieces.collect();
        assert!(!pieces.is_empty(), "a matrix of at least one tensor");
        Self { pieces }
    }

    pub(in crate::ops) fn inputs(&self) -> usize {
        self.pieces[0].1.inputs()
    }

    pub(in crate::ops) fn outputs(&self) -> usize {
        self.pieces.iter().map(|(_, blocks)| blocks.outputs()).sum()
    }

    pub(in crate::ops) fn pieces(&self) -> impl Iterator<Item = &Blocks> {
        self.pieces.iter().map(|(_, blocks)| blocks)
    }

    /// Some columns, tensor by tensor.
    #[inline(always)]
    pub(in crate::ops) fn parts(&self, columns: Range<usize>) -> impl Iterator<Item = Part<'_>> {
        self.pieces.iter().filter_map(move |(first, blocks)| {
            let start = columns.start.max(*first);
            let end = columns.end.min(first + blocks.outputs());
            (start < end).then(|| Part {
                blocks,
                rows: start - first..end - first,
                offset: start - columns.start,
            })
        })
    }

    /// Entries `(k, columns)`.
    pub(in crate::ops) fn row_part(&self, k: usize, columns: Range<usize>, out: &mut [f32]) {
        for part in self.parts(columns) {
            let out = &mut out[part.offset..part.offset + part.rows.len()];
            part.blocks.across(k, part.rows, out);
        }
    }

    /// A column.
    pub(in crate::ops) fn column(&self, column: usize, out: &mut [f32]) {
        for part in self.parts(column..column + 1) {
            part.blocks.along(part.rows.start, out);
        }
    }
}
