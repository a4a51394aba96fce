//! Products with weights in blocks. Codes lie packed in device memory from their first use on, scales beside them in f32; a product
//! of many rows unpacks the weight for its own duration, one of few rows reads it packed.

use std::sync::Arc;

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{dims2, empty, entrywise};
use crate::ops::reduced::{BlockFormat, BlockMatrix, Panels};
use crate::ops::{ModelBackend, ReducedMatrix};

/// Formats as kernels tell them apart.
const NF4: u32 = 0;
const Q4_0: u32 = 1;
const Q4_1: u32 = 2;
const Q8_0: u32 = 3;

/// NF4's numbers, which stand before the scales.
const QUANTILES: usize = BlockFormat::QUANTILES.len();

/// A matrix `[inputs, outputs]` of tensors in one format.
pub(super) struct Codes<R: CubeRuntime> {
    /// `[inputs, words]`, codes of neighbouring columns in a word, lower bits first.
    words: CubeTensor<R>,
    /// NF4's numbers, then `[runs, outputs]` scales, then as many minima where the format has them.
    scales: CubeTensor<R>,
    format: BlockFormat,
    outputs: usize,
    /// Inputs that share a scale.
    run: usize,
}

fn kind(format: BlockFormat) -> u32 {
    match format {
        BlockFormat::Nf4 => NF4,
        BlockFormat::Q4_0 => Q4_0,
        BlockFormat::Q4_1 => Q4_1,
        BlockFormat::Q8_0 => Q8_0,
    }
}

impl<R: CubeRuntime> Codes<R> {
    /// The copy on the device of `like`; `None` for weights that are not in blocks, or in blocks of several kinds.
    pub(super) fn of(weight: &ReducedMatrix, like: &CubeTensor<R>) -> Option<Arc<Self>> {
        let Panels::Blocks(matrix) = weight.panels() else {
            return None;
        };
        let mut pieces = matrix.pieces();
        let first = pieces.next()?;
        let alike =
            pieces.all(|piece| (piece.format(), piece.run()) == (first.format(), first.run()));
        let empty = weight.inputs() * weight.outputs() == 0;
        (alike && !empty).then(|| {
            weight.resident(
                |codes: &Self| codes.words.device == like.device,
                || Self::upload(matrix, first.format(), first.run(), like),
            )
        })
    }

    fn upload(matrix: &BlockMatrix, format: BlockFormat, run: usize, like: &CubeTensor<R>) -> Self {
        let (inputs, outputs) = (matrix.inputs(), matrix.outputs());
        let (per_word, bits) = (format.per_word(), format.bits());
        let row_words = outputs.div_ceil(per_word);
        let mut words = vec![0u32; inputs * row_words];
        let runs = inputs / run;
        let lines = runs * outputs;
        let minima = if format == BlockFormat::Q4_1 {
            lines
        } else {
            0
        };
        let mut scales = BlockFormat::QUANTILES.to_vec();
        scales.resize(QUANTILES + lines + minima, 0.0);
        let mut column = 0;
        for blocks in matrix.pieces() {
            for row in 0..blocks.outputs() {
                for k in 0..inputs {
                    let code = blocks.code(k, row) << (column % per_word * bits);
                    words[k * row_words + column / per_word] |= code;
                }
                for line in 0..runs {
                    let (scale, minimum) = blocks.scale(line * run, row);
                    scales[QUANTILES + line * outputs + column] = scale;
                    if minima > 0 {
                        scales[QUANTILES + lines + line * outputs + column] = minimum;
                    }
                }
                column += 1;
            }
        }
        let new = |bytes: &[u8], shape: [usize; 2], dtype| {
            let handle = like.client.create_from_slice(bytes);
            let (client, device) = (like.client.clone(), like.device.clone());
            CubeTensor::new_contiguous(client, device, shape.into(), handle, dtype)
        };
        Self {
            words: new(
                bytemuck::cast_slice(&words),
                [inputs, row_words],
                DType::U32,
            ),
            scales: new(bytemuck::cast_slice(&scales), [1, scales.len()], DType::F32),
            format,
            outputs,
            run,
        }
    }

    /// The numbers in f32, `[inputs, outputs]`.
    pub(super) fn unpacked(&self) -> CubeTensor<R> {
        let [inputs, row_words] = dims2(&self.words);
        let out = empty(&self.words, [inputs, self.outputs]);
        let len = inputs * row_words;
        let (count, dim) = entrywise(len);
        unpack::launch::<R>(
            &self.words.client.clone(),
            count,
            dim,
            self.words.clone().into_array_arg(),
            self.scales.clone().into_array_arg(),
            out.clone().into_array_arg(),
            inputs as u32,
            self.outputs as u32,
            row_words as u32,
            self.run as u32,
            len as u32,
            self.format.per_word(),
            kind(self.format),
        );
        out
    }

    /// `x . weight` of few rows, which lie one after the other.
    pub(super) fn few_rows<B>(&self, x: CubeTensor<R>) -> CubeTensor<R>
    where
        B: ModelBackend<FloatTensorPrimitive = CubeTensor<R>>,
    {
        let [rows, inputs] = dims2(&x);
        let [_, row_words] = dims2(&self.words);
        // Narrow outputs alone would not fill a device.
        let chunk = inputs.div_ceil(CHUNK).div_ceil(16) * CHUNK;
        let chunks = inputs.div_ceil(chunk);
        let parts = empty(&x, [chunks, rows * self.outputs]);
        few_rows::launch::<R>(
            &x.client.clone(),
            CubeCount::Static(
                row_words.div_ceil(WORDS) as u32,
                chunks as u32,
                rows.div_ceil(ROWS) as u32,
            ),
            CubeDim::new_1d(WORDS as u32),
            x.into_array_arg(),
            self.words.clone().into_array_arg(),
            self.scales.clone().into_array_arg(),
            parts.clone().into_array_arg(),
            rows as u32,
            inputs as u32,
            self.outputs as u32,
            row_words as u32,
            self.run as u32,
            chunk as u32,
            self.format.per_word(),
            kind(self.format),
        );
        let y = if chunks == 1 {
            parts
        } else {
            B::float_sum_dim(parts, 0)
        };
        B::float_reshape(y, [rows, self.outputs].into())
    }

    /// Some columns, `[columns, inputs]`.
    pub(super) fn columns(&self, columns: CubeTensor<R>) -> CubeTensor<R> {
        let [inputs, row_words] = dims2(&self.words);
        let count = columns.meta.shape().num_elements();
        let out = empty(&self.words, [count, inputs]);
        let len = count * inputs;
        if len > 0 {
            let (count, dim) = entrywise(len);
            gather_columns::launch::<R>(
                &self.words.client.clone(),
                count,
                dim,
                self.words.clone().into_array_arg(),
                self.scales.clone().into_array_arg(),
                columns.into_array_arg(),
                out.clone().into_array_arg(),
                inputs as u32,
                self.outputs as u32,
                row_words as u32,
                self.run as u32,
                len as u32,
                self.format.per_word(),
                kind(self.format),
            );
        }
        out
    }
}

/// What the code at `place` of a word stands for, before its scale.
#[cube]
fn number(
    word: u32,
    place: u32,
    scales: &Array<f32>,
    #[comptime] per_word: usize,
    #[comptime] kind: u32,
) -> f32 {
    if per_word == 4 {
        let byte = word >> (place * 8) & 255;
        let mut value = f32::cast_from(byte);
        if byte > 127 {
            value -= 256.0f32;
        }
        value
    } else {
        let code = word >> (place * 4) & 15;
        if kind == NF4 {
            scales[code as usize]
        } else if kind == Q4_0 {
            f32::cast_from(code) - 8.0f32
        } else {
            f32::cast_from(code)
        }
    }
}

/// The numbers in f32, a unit for each word.
#[cube(launch)]
fn unpack(
    words: &Array<u32>,
    scales: &Array<f32>,
    out: &mut Array<f32>,
    inputs: u32,
    outputs: u32,
    row_words: u32,
    run: u32,
    len: u32,
    #[comptime] per_word: usize,
    #[comptime] kind: u32,
) {
    let (outputs, row_words) = (outputs as usize, row_words as usize);
    let minima = (inputs / run) as usize * outputs;
    let mut i = ABSOLUTE_POS;
    while i < len as usize {
        let (k, first) = (i / row_words, i % row_words * per_word);
        let word = words[i];
        #[unroll]
        for place in 0..per_word {
            let column = first + place;
            if column < outputs {
                let at = QUANTILES + k / run as usize * outputs + column;
                let mut value = number(word, place as u32, scales, per_word, kind) * scales[at];
                if kind == Q4_1 {
                    value += scales[minima + at];
                }
                out[k * outputs + column] = value;
            }
        }
        i += CUBE_COUNT_X as usize * CUBE_DIM_X as usize;
    }
}

/// Words of a cube of [`few_rows`], a unit for each.
const WORDS: usize = 64;

/// Rows of a cube: each word is read once for all of them.
const ROWS: usize = 8;

/// Inputs of a chunk are a multiple of this, and so of every run.
const CHUNK: usize = 64;

/// Sums over `chunk` inputs of `x . weight`, into `parts`: `[chunks, rows, outputs]`.
#[cube(launch)]
fn few_rows(
    x: &Array<f32>,
    words: &Array<u32>,
    scales: &Array<f32>,
    parts: &mut Array<f32>,
    rows: u32,
    inputs: u32,
    outputs: u32,
    row_words: u32,
    run: u32,
    chunk: u32,
    #[comptime] per_word: usize,
    #[comptime] kind: u32,
) {
    let (rows, inputs, outputs) = (rows as usize, inputs as usize, outputs as usize);
    let run = run as usize;
    let minima = inputs / run * outputs;
    let word_column = ABSOLUTE_POS_X as usize;
    if word_column >= row_words as usize {
        terminate!();
    }
    let first_row = CUBE_POS_Z as usize * ROWS;
    let mut k = CUBE_POS_Y as usize * chunk as usize;
    let mut end = k + chunk as usize;
    if end > inputs {
        end = inputs;
    }
    let mut sums = Array::<f32>::new(comptime!(ROWS * per_word));
    let mut scale = Array::<f32>::new(comptime!(per_word));
    let mut minimum = Array::<f32>::new(comptime!(per_word));
    #[unroll]
    for i in 0..comptime!(ROWS * per_word) {
        sums[i] = 0.0f32;
    }
    while k < end {
        #[unroll]
        for place in 0..per_word {
            let mut column = word_column * per_word + place;
            // Columns that do not exist are not written.
            if column >= outputs {
                column = 0;
            }
            let at = QUANTILES + k / run * outputs + column;
            scale[place] = scales[at];
            minimum[place] = 0.0f32;
            if kind == Q4_1 {
                minimum[place] = scales[minima + at];
            }
        }
        let mut run_end = k + run;
        if run_end > end {
            run_end = end;
        }
        for input in k..run_end {
            let word = words[input * row_words as usize + word_column];
            #[unroll]
            for place in 0..per_word {
                let code = number(word, place as u32, scales, per_word, kind);
                let weight = code * scale[place] + minimum[place];
                #[unroll]
                for r in 0..ROWS {
                    if first_row + r < rows {
                        sums[r * per_word + place] += x[(first_row + r) * inputs + input] * weight;
                    }
                }
            }
        }
        k += run;
    }
    #[unroll]
    for place in 0..per_word {
        let column = word_column * per_word + place;
        #[unroll]
        for r in 0..ROWS {
            if column < outputs && first_row + r < rows {
                let to = (CUBE_POS_Y as usize * rows + first_row + r) * outputs + column;
                parts[to] = sums[r * per_word + place];
            }
        }
    }
}

/// A unit for each number.
#[cube(launch)]
fn gather_columns(
    words: &Array<u32>,
    scales: &Array<f32>,
    columns: &Array<i32>,
    out: &mut Array<f32>,
    inputs: u32,
    outputs: u32,
    row_words: u32,
    run: u32,
    len: u32,
    #[comptime] per_word: usize,
    #[comptime] kind: u32,
) {
    let (inputs, outputs, row_words) = (inputs as usize, outputs as usize, row_words as usize);
    let run = run as usize;
    let minima = inputs / run * outputs;
    let mut i = ABSOLUTE_POS;
    while i < len as usize {
        let (column, k) = (columns[i / inputs] as usize, i % inputs);
        let word = words[k * row_words + column / per_word];
        let at = QUANTILES + k / run * outputs + column;
        let place = (column % per_word) as u32;
        let mut value = number(word, place, scales, per_word, kind) * scales[at];
        if kind == Q4_1 {
            value += scales[minima + at];
        }
        out[i] = value;
        i += CUBE_COUNT_X as usize * CUBE_DIM_X as usize;
    }
}
