//! Products of one thread, as attention's: a right side is packed once for several left sides.

use std::ops::Range;

use super::pack::{Block, Form};
use super::panel::Panel;
use super::{Factor, Right, Rows, Sums, f32};
use crate::ops::kernels::{ARCH, LANES, room};

/// The left side of a product.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) struct Left<'a> {
    pub(in crate::ops) values: &'a [f32],
    /// Numbers from row to row as they lie in memory.
    pub(in crate::ops) stride: usize,
    /// Whether it is transposed in memory, `[depth, rows]`.
    pub(in crate::ops) transposed: bool,
}

/// A matrix `[depth, columns]` in panels as wide as a tile. Its memory serves the next one.
pub(in crate::ops) struct PackedRight {
    arch: pulp::Arch,
    words: Vec<u32>,
    depth: usize,
    columns: usize,
    width: usize,
}

impl Default for PackedRight {
    fn default() -> Self {
        Self::on(*ARCH)
    }
}

impl PackedRight {
    /// Room for a matrix, for an instruction set of choice.
    pub(super) fn on(arch: pulp::Arch) -> Self {
        Self {
            arch,
            words: Vec::new(),
            depth: 0,
            columns: 0,
            width: 1,
        }
    }

    /// Takes the place of what was packed before. Rows of `values` are `stride` numbers apart.
    pub(in crate::ops) fn pack(
        &mut self,
        values: &[f32],
        right: Right,
        [depth, columns]: [usize; 2],
        stride: usize,
    ) {
        let factor = Factor {
            right_stride: stride,
            ..Factor::of_numbers(values, right, [depth, columns])
        };
        let width = f32::panel_width(Form::Full, self.arch, columns);
        let block = block(&factor, width);
        let (panels, panel_len) = (padded(columns).div_ceil(width), block.panel_len());
        let all = room(&mut self.words, panels * panel_len);
        for panel in 0..panels {
            let words = &mut all[panel * panel_len..][..panel_len];
            match panel * width < columns {
                true => block.pack(self.arch, panel, words),
                false => words.fill(0),
            }
        }
        (self.depth, self.columns, self.width) = (depth, columns, width);
    }

    /// `y = x . b`, or `y += x . b`, of some inputs and columns of the matrix, the first column being a panel's first. There are zeros
    /// in columns behind the last up to the next multiple of [`LANES`]. `y`: `[rows, columns]`. Every entry is summed in the order
    /// of the depth.
    pub(in crate::ops) fn product(
        &self,
        y: &mut [f32],
        x: Left<'_>,
        inputs: Range<usize>,
        columns: Range<usize>,
        added: bool,
    ) {
        assert!(inputs.end <= self.depth && columns.end <= padded(self.columns));
        assert_eq!(columns.start % self.width, 0, "a panel begins there");
        if inputs.is_empty() && !added {
            return y.fill(0.0);
        }
        let factor = Factor::of_numbers(&[], Right::Plain, [inputs.len(), columns.len()]);
        let block = block(&factor, self.width);
        let first = columns.start / self.width;
        let panel_len = self.depth * self.width;
        for panel in first..columns.end.div_ceil(self.width) {
            let words = &self.words[panel * panel_len..][..panel_len];
            let words = &words[inputs.start * self.width..inputs.end * self.width];
            Rows {
                y: &mut *y,
                y_panel: first,
                columns: columns.len(),
                x: bytemuck::cast_slice(x.values),
                row_words: x.stride,
                transposed: x.transposed,
                row: 0,
                b: Panel::packed(&block, words),
                sums: if added { Sums::Added } else { Sums::Written },
                panel,
                block: &block,
            }
            .run(self.arch);
        }
    }
}

/// Columns with those of zeros.
fn padded(columns: usize) -> usize {
    columns.next_multiple_of(LANES)
}

/// A whole matrix as one block.
fn block<'a>(factor: &'a Factor<'a>, width: usize) -> Block<'a> {
    Block {
        factor,
        form: Form::Full,
        inputs: 0..factor.depth,
        words: 0..factor.depth,
        width,
        in_place: false,
        low_rank: None,
    }
}
