//! Products of few rows, as in decoding: a task takes all rows through a panel, so that the weight is read once.

use rayon::prelude::*;

use super::codes::{self, RowTiles};
use super::pack::Block;
use super::panel::Panel;
use super::{Rows, Sums};
use crate::ops::kernels::{self, gather_panels};
use crate::ops::reduced::ScaleLine;

/// Largest depth of a panel that is read where it lies: rows a power of two apart share few places of the second-level cache.
const DEPTH_IN_PLACE: usize = 128;

/// All rows by one panel at a time.
pub(super) fn few_rows(
    arch: pulp::Arch,
    y: &mut [f32],
    x: &[u32],
    words: usize,
    blocks: &[Block<'_>],
) {
    let Block { width, factor, .. } = blocks[0];
    let columns = factor.columns;
    let rows = y.len() / columns;
    let tiles = RowTiles::new(arch, x, rows, &blocks[0]);
    let mut panels = vec![0f32; columns.div_ceil(width) * rows * width];
    panels
        .par_chunks_mut(rows * width)
        .enumerate()
        .for_each_init(Room::default, |room, (panel, y)| {
            let run = |y: &mut [f32], block: &Block<'_>, b: Panel<'_>, sums: Sums| {
                let rows = Rows {
                    y,
                    y_panel: panel,
                    columns: width,
                    x,
                    row_words: words,
                    transposed: factor.left_transposed,
                    row: 0,
                    b,
                    sums,
                    panel,
                    block,
                };
                rows.run(arch);
            };
            for block in blocks {
                let in_place = block.lies_whole(panel);
                if !in_place && tiles.is_none() {
                    let packed = kernels::room(&mut room.packed, block.panel_len());
                    block.pack(arch, panel, packed);
                    run(y, block, Panel::packed(block, packed), Sums::of(block));
                    continue;
                }
                let mut later = match Sums::of(block) {
                    Sums::Added => vec![0f32; y.len()],
                    _ => Vec::new(),
                };
                let sum = if later.is_empty() {
                    &mut *y
                } else {
                    &mut later
                };
                let below = |part: &Block<'_>| part.ranks(panel).len() * width;
                if let Some(tiles) = &tiles {
                    codes::product(arch, sum, tiles, block, panel, &mut room.scales);
                    let end = block.end();
                    if below(&end) > 0 {
                        let packed = kernels::room(&mut room.packed, end.panel_len());
                        end.pack_ranks(panel, bytemuck::cast_slice_mut(packed));
                        run(sum, &end, Panel::packed(&end, packed), Sums::Continued);
                    }
                } else {
                    for part in block.parts(DEPTH_IN_PLACE) {
                        let sums = match part.inputs.start == block.inputs.start {
                            true => Sums::Written,
                            false => Sums::Continued,
                        };
                        let packed = kernels::room(&mut room.packed, below(&part));
                        let below: &mut [f32] = bytemuck::cast_slice_mut(packed);
                        part.pack_ranks(panel, below);
                        run(sum, &part, part.in_place(panel, below), sums);
                    }
                }
                y.iter_mut().zip(&later).for_each(|(y, sum)| *y += sum);
            }
        });
    gather_panels(&panels, width, columns, y);
}

/// Room that a task keeps from panel to panel.
#[derive(Default)]
struct Room {
    /// Grows to what is packed, which in place is little.
    packed: Vec<u32>,
    scales: Vec<ScaleLine>,
}
