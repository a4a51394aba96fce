//! The parallel tasks of attention.

use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;

use crate::ops::kernels::{Left, PackedRight, Right, Visible};
use crate::ops::{Attend, HeadLayout, Mask};
use crate::tokens::Span;

/// Queries per block: memory is linear in the row's length, and keys that no query of a block attends to are skipped. Large blocks
/// suit long rows, where little is skipped and large products are faster.
const QUERY_BLOCK: usize = 128;
/// Queries per block in rows of at most [`SHORT`] tokens.
const SHORT_QUERY_BLOCK: usize = 64;
/// Longest row for which all query heads of a key head are one task. For longer rows there may be fewer rows than threads, and
/// packing the keys per query head is cheap beside its products.
const SHORT: usize = 256;
/// Keys per block: scores of long rows then fit in the second-level cache.
const KEY_BLOCK: usize = 512;
/// The first block of a window begins at a multiple of this, which is a multiple of the panel width of packed keys unless there is
/// only one panel.
const KEY_ALIGN: usize = 64;

/// A matrix with a row stride.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) values: &'a [f32],
    /// Distance between rows.
    pub(super) width: usize,
}

impl<'a> View<'a> {
    /// The part from `row` and `column` on.
    pub(super) fn from(self, row: usize, column: usize) -> View<'a> {
        let values = &self.values[row * self.width + column..];
        View { values, ..self }
    }

    pub(super) fn left(self) -> Left<'a> {
        Left {
            values: self.values,
            stride: self.width,
            transposed: false,
        }
    }

    /// Packs the first `rows` rows and `columns` columns, or their transpose, as the right side of products.
    pub(super) fn pack(self, packed: &mut PackedRight, right: Right, rows: usize, columns: usize) {
        let sizes = match right {
            Right::Plain => [rows, columns],
            Right::Transposed => [columns, rows],
        };
        packed.pack(self.values, right, sizes, self.width);
    }
}

/// Keys or values of a row.
pub(super) struct Keys<'a> {
    values: Cow<'a, [f32]>,
    width: usize,
}

impl Keys<'_> {
    pub(super) fn view(&self) -> View<'_> {
        View {
            values: &self.values,
            width: self.width,
        }
    }
}

/// One task: query heads of one key head in one row.
pub(super) struct Task {
    pub(super) span: Span,
    /// Key and value head.
    pub(super) head: usize,
    pub(super) queries: Range<usize>,
}

impl Task {
    /// First column of a query head.
    pub(super) fn query_column(query: usize, layout: HeadLayout) -> usize {
        query * layout.head_dim
    }

    /// First columns of the key and the value head.
    pub(super) fn key_columns(&self, layout: HeadLayout) -> [usize; 2] {
        let key = layout.q_width() + self.head * layout.head_dim;
        [key, key + layout.kv_width()]
    }

    /// Whether it is the first task of its row with this key head.
    pub(super) fn is_first(&self, layout: HeadLayout) -> bool {
        self.queries.start == self.head * (layout.heads / layout.kv_heads)
    }

    /// Keys or values of context and row, `[keys, head_dim]`; not copied if they are contiguous.
    pub(super) fn keys<'a>(&self, qkv: View<'a>, column: usize, head_dim: usize) -> Keys<'a> {
        let Span { context, own } = &self.span;
        if context.is_empty() {
            return Keys {
                values: Cow::Borrowed(qkv.from(own.start, column).values),
                width: qkv.width,
            };
        }
        let rows = context.clone().chain(own.clone());
        let row = |row| &qkv.from(row, column).values[..head_dim];
        Keys {
            values: rows.flat_map(row).copied().collect(),
            width: head_dim,
        }
    }

    /// The blocks of the row's tokens.
    pub(super) fn blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        blocks(self.span.own.clone())
    }

    /// The blocks of keys that a block of queries attends to.
    pub(super) fn key_blocks(
        &self,
        block: &Range<usize>,
        mask: Mask,
    ) -> impl Iterator<Item = KeyBlock> + use<> {
        let queries = block.len();
        let Span { context, own } = &self.span;
        let position = context.len() + block.start - own.start;
        let end = mask.seen(position + queries - 1, self.span.len()).end;
        let first = mask.seen(position, end).start / KEY_ALIGN * KEY_ALIGN;
        // Each query attends to all keys of the blocks before the last; in a causal last block at least to its own key.
        let (whole, stairs) = match mask {
            Mask::Full => ((end - 1 - first) / KEY_BLOCK, 1),
            Mask::Causal | Mask::Window(_) => ((position - first) / KEY_BLOCK, queries),
        };
        (0..=whole).map(move |i| {
            let last = i == whole;
            let start = first + i * KEY_BLOCK;
            let keys = start..if last { end } else { start + KEY_BLOCK };
            let visible = Visible {
                keys: keys.len(),
                queries: if last { stairs } else { 1 },
                before_window: match mask {
                    Mask::Window(n) => position as isize + 1 - n as isize - start as isize,
                    Mask::Causal | Mask::Full => Visible::NO_WINDOW,
                },
            };
            KeyBlock {
                keys,
                visible,
                distance: start as isize - position as isize,
            }
        })
    }
}

/// Splits the tokens of a row into blocks.
fn blocks(own: Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
    let block = match own.len() {
        ..=SHORT => SHORT_QUERY_BLOCK,
        _ => QUERY_BLOCK,
    };
    let (starts, end) = (own.clone().step_by(block), own.end);
    starts.map(move |start| start..(start + block).min(end))
}

/// A block of keys, and which of them each query of a block attends to.
pub(super) struct KeyBlock {
    pub(super) keys: Range<usize>,
    pub(super) visible: Visible,
    /// Position of the first key, less that of the block's first query.
    pub(super) distance: isize,
}

/// The tasks of all rows.
pub(super) struct Tasks {
    pub(super) all: Vec<Task>,
    /// The rows that have tokens, and their tasks by number.
    rows: Vec<(Span, Range<usize>)>,
}

impl Tasks {
    pub(super) fn new(attend: &Attend) -> Self {
        let (layout, segments) = (attend.layout, &attend.segments);
        let group = layout.heads / layout.kv_heads;
        let (mut all, mut rows) = (Vec::new(), Vec::new());
        for span in segments.spans().filter(|span| !span.own.is_empty()) {
            let first = all.len();
            let together = if span.own.len() <= SHORT { group } else { 1 };
            all.extend((0..layout.heads).step_by(together).map(|query| Task {
                span: span.clone(),
                head: query / group,
                queries: query..query + together,
            }));
            rows.push((span, first..all.len()));
        }
        Self { all, rows }
    }

    /// Fills `out`, `[tokens, width]`, by blocks of queries in parallel: `write` gets the rows of one block, the block, its index in the
    /// row, and the indices of the row's tasks.
    pub(super) fn for_each_block(
        &self,
        out: &mut [f32],
        width: usize,
        write: impl Fn(&mut [f32], Range<usize>, usize, Range<usize>) + Sync,
    ) {
        let (mut parts, mut rest) = (Vec::new(), out);
        // Rows are in the order of their tokens.
        for (span, tasks) in &self.rows {
            for (place, block) in blocks(span.own.clone()).enumerate() {
                let (part, after) = rest.split_at_mut(block.len() * width);
                parts.push((part, block, place, tasks.clone()));
                rest = after;
            }
        }
        assert!(rest.is_empty(), "a row for every token");
        parts
            .into_par_iter()
            .for_each(|(part, block, place, tasks)| write(part, block, place, tasks));
    }
}

/// Writes `[rows, head_dim]` into the columns of `out` from `column` on, or adds it to them.
pub(super) fn scatter(
    out: &mut [f32],
    width: usize,
    column: usize,
    head_dim: usize,
    block: &[f32],
    added: bool,
) {
    let rows = out.chunks_exact_mut(width);
    for (row, values) in rows.zip(block.chunks_exact(head_dim)) {
        let row = &mut row[column..column + head_dim];
        if added {
            row.iter_mut().zip(values).for_each(|(sum, x)| *sum += x);
        } else {
            row.copy_from_slice(values);
        }
    }
}
