//! Between the layout of files and that of parameters.

use super::ParamMeta;

/// The parameter's columns, given the file's.
pub(super) fn from_file_order(values: Vec<f32>, meta: &ParamMeta) -> Vec<f32> {
    let Some(order) = &meta.order else {
        return values;
    };
    let rows = values.chunks_exact(order.len());
    rows.flat_map(|row| order.iter().map(|&column| row[column]))
        .collect()
}

/// The file's columns, given the parameter's.
pub(super) fn to_file_order(values: Vec<f32>, meta: &ParamMeta) -> Vec<f32> {
    let Some(order) = &meta.order else {
        return values;
    };
    let mut out = vec![0f32; values.len()];
    let rows = values.chunks_exact(order.len());
    for (out, row) in out.chunks_exact_mut(order.len()).zip(rows) {
        for (&column, &value) in order.iter().zip(row) {
            out[column] = value;
        }
    }
    out
}

/// `[cols, rows]` of a `[rows, cols]` matrix, by blocks that stay in cache.
pub(crate) fn transpose(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    use rayon::prelude::*;
    const BLOCK: usize = 32;
    let mut out = vec![0f32; values.len()];
    if rows == 0 || cols == 0 {
        return out;
    }
    out.par_chunks_mut(BLOCK * rows)
        .enumerate()
        .for_each(|(block, out)| {
            let first = block * BLOCK;
            let count = out.len() / rows;
            for r0 in (0..rows).step_by(BLOCK) {
                for c in 0..count {
                    for r in r0..(r0 + BLOCK).min(rows) {
                        out[c * rows + r] = values[r * cols + first + c];
                    }
                }
            }
        });
    out
}
