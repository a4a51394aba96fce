//! Kernels on matrices whose numbers lie packed in words: all of them or some columns in f32, and products of few rows, which read each
//! word once.

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::packed::Packed;
use super::{dims2, empty, entrywise};
use crate::ops::ModelBackend;

/// What words hold, as kernels tell it apart when they are compiled.
pub(super) type Kind = u32;

/// An f32.
pub(super) const F32: Kind = 0;
/// Two bfloat16.
pub(super) const BF16: Kind = 1;
/// Four whole numbers of 8 bits, with a scale for each run.
pub(super) const BYTES: Kind = 2;
/// Eight codes of NF4, with a scale for each run.
pub(super) const NF4: Kind = 3;
/// Eight codes of 4 bits around 8, with a scale for each run.
pub(super) const Q4_0: Kind = 4;
/// Eight codes of 4 bits, with a scale and a minimum for each run.
pub(super) const Q4_1: Kind = 5;

/// NF4's numbers, which stand before its scales.
pub(super) const QUANTILES: usize = 16;

/// Numbers in a word.
pub(super) const fn per_word(kind: Kind) -> usize {
    match kind {
        F32 => 1,
        BF16 => 2,
        BYTES => 4,
        _ => 8,
    }
}

/// What stands before the scales.
const fn first_scale(kind: Kind) -> usize {
    match kind {
        NF4 => QUANTILES,
        _ => 0,
    }
}

/// Whether a product sums a run before it scales the sum. Numbers of 4 bits are scaled one by one: so many sums more than there are
/// would not fit into registers.
const fn scales_sums(kind: Kind) -> bool {
    kind <= BYTES
}

/// Words of a cube of [`few_rows`], a unit for each.
pub(super) const WORDS: usize = 64;

/// Rows of a cube: it reads each word once for all of them.
const ROWS: usize = 8;

/// Inputs of a chunk are a multiple of this, and so of every run.
const CHUNK: usize = 64;

impl<R: CubeRuntime> Packed<R> {
    /// The numbers in f32, `[inputs, outputs]`.
    pub(super) fn unpacked(&self) -> CubeTensor<R> {
        let [inputs, row_words] = dims2(&self.words);
        let out = empty(&self.words, [inputs, self.outputs]);
        let len = inputs * row_words;
        if len > 0 {
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
                len as u32,
                self.run,
                per_word(self.kind),
                self.kind,
            );
        }
        out
    }

    /// `x . weight` of few rows, which lie one after the other; neither side is empty.
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
            chunk as u32,
            self.run,
            per_word(self.kind),
            self.kind,
        );
        let y = if chunks == 1 {
            parts
        } else {
            B::float_sum_dim(parts, 0)
        };
        B::float_reshape(y, [rows, self.outputs].into())
    }

    /// Some columns, `[columns, inputs]`; they are contiguous.
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
                len as u32,
                self.run,
                per_word(self.kind),
                self.kind,
            );
        }
        out
    }
}

/// What stands at `place` of a word, before its scale.
#[cube]
fn number(word: u32, place: u32, scales: &Array<f32>, #[comptime] kind: u32) -> f32 {
    if kind == F32 {
        f32::reinterpret(word)
    } else if kind == BF16 {
        let bits = word >> (place * 16) << 16;
        f32::reinterpret(bits)
    } else if kind == BYTES {
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

/// The number at `place` of a word, its scale being that in `line` and the minima `lines` behind the scales.
#[cube]
fn scaled(
    word: u32,
    place: u32,
    scales: &Array<f32>,
    line: usize,
    lines: usize,
    #[comptime] kind: u32,
) -> f32 {
    let mut value = number(word, place, scales, kind);
    if comptime!(kind >= BYTES) {
        value *= scales[comptime!(first_scale(kind)) + line];
    }
    if kind == Q4_1 {
        value += scales[lines + line];
    }
    value
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
    len: u32,
    #[comptime] run: usize,
    #[comptime] per_word: usize,
    #[comptime] kind: u32,
) {
    let (outputs, row_words) = (outputs as usize, row_words as usize);
    let lines = inputs as usize / run * outputs;
    let mut i = ABSOLUTE_POS;
    while i < len as usize {
        let (k, first) = (i / row_words, i % row_words * per_word);
        let word = words[i];
        #[unroll]
        for place in 0..per_word {
            let column = first + place;
            if column < outputs {
                let line = k / run * outputs + column;
                out[k * outputs + column] = scaled(word, place as u32, scales, line, lines, kind);
            }
        }
        i += CUBE_COUNT_X as usize * CUBE_DIM_X as usize;
    }
}

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
    chunk: u32,
    #[comptime] run: usize,
    #[comptime] per_word: usize,
    #[comptime] kind: u32,
) {
    let (rows, inputs, outputs) = (rows as usize, inputs as usize, outputs as usize);
    let lines = inputs / run * outputs;
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
    // Of a run, where it is scaled as a whole.
    let mut inner = Array::<f32>::new(comptime!(ROWS * per_word));
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
            let line = k / run * outputs + column;
            scale[place] = 1.0f32;
            minimum[place] = 0.0f32;
            if comptime!(kind >= BYTES) {
                scale[place] = scales[comptime!(first_scale(kind)) + line];
            }
            if kind == Q4_1 {
                minimum[place] = scales[lines + line];
            }
        }
        if comptime!(scales_sums(kind)) {
            #[unroll]
            for i in 0..comptime!(ROWS * per_word) {
                inner[i] = 0.0f32;
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
                let mut weight = number(word, place as u32, scales, kind);
                if comptime!(!scales_sums(kind)) {
                    weight = weight * scale[place] + minimum[place];
                }
                #[unroll]
                for r in 0..ROWS {
                    if first_row + r < rows {
                        let product = x[(first_row + r) * inputs + input] * weight;
                        if comptime!(scales_sums(kind)) {
                            inner[r * per_word + place] += product;
                        } else {
                            sums[r * per_word + place] += product;
                        }
                    }
                }
            }
        }
        if comptime!(scales_sums(kind)) {
            #[unroll]
            for place in 0..per_word {
                #[unroll]
                for r in 0..ROWS {
                    sums[r * per_word + place] += inner[r * per_word + place] * scale[place];
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
    len: u32,
    #[comptime] run: usize,
    #[comptime] per_word: usize,
    #[comptime] kind: u32,
) {
    let (inputs, outputs, row_words) = (inputs as usize, outputs as usize, row_words as usize);
    let lines = inputs / run * outputs;
    let mut i = ABSOLUTE_POS;
    while i < len as usize {
        let (column, k) = (columns[i / inputs] as usize, i % inputs);
        let word = words[k * row_words + column / per_word];
        let line = k / run * outputs + column;
        out[i] = scaled(word, (column % per_word) as u32, scales, line, lines, kind);
        i += CUBE_COUNT_X as usize * CUBE_DIM_X as usize;
    }
}
