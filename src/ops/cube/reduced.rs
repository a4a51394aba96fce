//! Products with reduced weights. Packed weights are uploaded at their first use; a product of many rows unpacks the weight
//! temporarily, one of few rows reads it packed.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::blocks::Codes;
use super::packed::{Packed, per_word};
use super::{bf16, dims2, empty, entrywise};
use crate::ops::reduced::{GROUP, LARGEST};
use crate::ops::{MatmulPrecision, ModelBackend, Precision, ReducedMatrix};

/// Number `place` of a word.
#[cube]
fn number(word: u32, place: u32, #[comptime] per_word: usize) -> f32 {
    if per_word == 1 {
        f32::reinterpret(word)
    } else if per_word == 2 {
        let bits = word >> (place * 16) << 16;
        f32::reinterpret(bits)
    } else {
        let byte = word >> (place * 8) & 255;
        let mut value = f32::cast_from(byte);
        if byte > 127 {
            value -= 256.0f32;
        }
        value
    }
}

/// Unpacks to f32, one unit per word.
#[cube(launch)]
fn unpack(
    words: &Array<u32>,
    scales: &Array<f32>,
    out: &mut Array<f32>,
    outputs: u32,
    row_words: u32,
    len: u32,
    #[comptime] per_word: usize,
) {
    let (outputs, row_words) = (outputs as usize, row_words as usize);
    let mut i = ABSOLUTE_POS;
    while i < len as usize {
        let (k, first) = (i / row_words, i % row_words * per_word);
        let word = words[i];
        #[unroll]
        for place in 0..per_word {
            let column = first + place;
            if column < outputs {
                let mut value = number(word, place as u32, per_word);
                if per_word == 4 {
                    value *= scales[k / GROUP * outputs + column];
                }
                out[k * outputs + column] = value;
            }
        }
        i += CUBE_COUNT_X as usize * CUBE_DIM_X as usize;
    }
}

/// Rounds each group of a row to 8 bits, one unit per group.
#[cube(launch)]
fn round_groups(x: &Array<f32>, y: &mut Array<f32>, inputs: u32, groups: u32, len: u32) {
    let (inputs, groups) = (inputs as usize, groups as usize);
    let mut i = ABSOLUTE_POS;
    while i < len as usize {
        let row = i / groups * inputs;
        let first = row + i % groups * GROUP;
        let mut end = first + GROUP;
        if end > row + inputs {
            end = row + inputs;
        }
        let mut largest = 0.0f32;
        let mut at = first;
        while at < end {
            let size = f32::abs(x[at]);
            if size > largest {
                largest = size;
            }
            at += 1;
        }
        let mut inverse = 0.0f32;
        if largest > 0.0f32 {
            inverse = LARGEST / largest;
        }
        let step = largest / LARGEST;
        let mut at = first;
        while at < end {
            y[at] = f32::round(x[at] * inverse) * step;
            at += 1;
        }
        i += CUBE_COUNT_X as usize * CUBE_DIM_X as usize;
    }
}

/// Words of a cube of [`few_rows`], one unit each.
const WORDS: usize = 64;

/// Rows of a cube: it reads each word once for all of them.
const ROWS: usize = 8;

/// Most rows for which reading the packed weight dominates the cost of a product.
pub(super) const FEW_ROWS: usize = 16;

/// Sums over `chunk` inputs (a multiple of [`GROUP`]) of `x . weight`, into `parts`: `[chunks, rows, outputs]`.
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
    #[comptime] per_word: usize,
) {
    let (rows, inputs, outputs) = (rows as usize, inputs as usize, outputs as usize);
    let word_column = ABSOLUTE_POS_X as usize;
    if word_column >= row_words as usize {
        terminate!();
    }
    let first_row = CUBE_POS_Z as usize * ROWS;
    let mut group = CUBE_POS_Y as usize * chunk as usize;
    let mut end = group + chunk as usize;
    if end > inputs {
        end = inputs;
    }
    let mut sums = Array::<f32>::new(comptime!(ROWS * per_word));
    let mut inner = Array::<f32>::new(comptime!(ROWS * per_word));
    #[unroll]
    for i in 0..comptime!(ROWS * per_word) {
        sums[i] = 0.0f32;
    }
    while group < end {
        #[unroll]
        for i in 0..comptime!(ROWS * per_word) {
            inner[i] = 0.0f32;
        }
        let mut group_end = group + GROUP;
        if group_end > end {
            group_end = end;
        }
        for k in group..group_end {
            let word = words[k * row_words as usize + word_column];
            #[unroll]
            for place in 0..per_word {
                let weight = number(word, place as u32, per_word);
                #[unroll]
                for r in 0..ROWS {
                    if first_row + r < rows {
                        inner[r * per_word + place] += x[(first_row + r) * inputs + k] * weight;
                    }
                }
            }
        }
        #[unroll]
        for place in 0..per_word {
            let column = word_column * per_word + place;
            // Padding columns are not written.
            let mut existing = column;
            if column >= outputs {
                existing = 0;
            }
            let mut scale = 1.0f32;
            if per_word == 4 {
                scale = scales[group / GROUP * outputs + existing];
            }
            #[unroll]
            for r in 0..ROWS {
                sums[r * per_word + place] += inner[r * per_word + place] * scale;
            }
        }
        group += GROUP;
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

fn unpacked<R: CubeRuntime>(weight: &ReducedMatrix, like: &CubeTensor<R>) -> CubeTensor<R> {
    if let Some(codes) = Codes::of(weight, like) {
        return codes.unpacked();
    }
    let packed = Packed::of(weight, like);
    let out = empty(like, [weight.inputs(), weight.outputs()]);
    let [inputs, row_words] = dims2(&packed.words);
    let len = inputs * row_words;
    if len > 0 {
        let (count, dim) = entrywise(len);
        unpack::launch::<R>(
            &like.client,
            count,
            dim,
            packed.words.clone().into_array_arg(),
            packed.scales.clone().into_array_arg(),
            out.clone().into_array_arg(),
            weight.outputs() as u32,
            row_words as u32,
            len as u32,
            per_word(weight.precision()),
        );
    }
    out
}

fn rounded<R: CubeRuntime>(x: CubeTensor<R>) -> CubeTensor<R> {
    let [rows, inputs] = dims2(&x);
    let groups = inputs.div_ceil(GROUP);
    let y = empty(&x, [rows, inputs]);
    if rows * groups > 0 {
        let (count, dim) = entrywise(rows * groups);
        round_groups::launch::<R>(
            &x.client.clone(),
            count,
            dim,
            x.into_array_arg(),
            y.clone().into_array_arg(),
            inputs as u32,
            groups as u32,
            (rows * groups) as u32,
        );
    }
    y
}

/// `x . weight`.
pub(super) fn linear<R, B>(x: CubeTensor<R>, weight: &ReducedMatrix) -> CubeTensor<R>
where
    R: CubeRuntime,
    B: ModelBackend<FloatTensorPrimitive = CubeTensor<R>>,
{
    let [rows, inputs] = dims2(&x);
    let many = rows > FEW_ROWS || rows * inputs * weight.outputs() == 0;
    let x = match (weight.precision(), weight.matmul()) {
        (Precision::Int8, _) => rounded(into_contiguous(x)),
        (_, MatmulPrecision::F32) => into_contiguous(x),
        // A weight in bfloat16 is rounded already.
        (Precision::Bf16, MatmulPrecision::Bf16) if !many => bf16::rounded(x),
        (_, MatmulPrecision::Bf16) => return bf16_product::<R, B>(x, weight, false),
    };
    if many {
        let weight = unpacked(weight, &x);
        return B::f32_matmul(x, weight);
    }
    if let Some(codes) = Codes::of(weight, &x) {
        return codes.few_rows::<B>(x);
    }
    let packed = Packed::of(weight, &x);
    let words = per_word(weight.precision());
    few_rows_product::<R, B>(x, &packed, weight.outputs(), words)
}

/// A product of few rows with a row-major f32 matrix, which is read once like a packed one.
pub(super) fn few_rows_of_f32<R, B>(
    x: &CubeTensor<R>,
    weight: &CubeTensor<R>,
) -> Option<CubeTensor<R>>
where
    R: CubeRuntime,
    B: ModelBackend<FloatTensorPrimitive = CubeTensor<R>>,
{
    let [rows, _] = dims2(x);
    let [inputs, outputs] = dims2(weight);
    let few = rows <= FEW_ROWS && rows * inputs * outputs > 0;
    (few && outputs >= WORDS && weight.is_contiguous()).then(|| {
        let (client, device) = (weight.client.clone(), weight.device.clone());
        let (shape, handle) = (weight.meta.shape().clone(), weight.handle.clone());
        let words = CubeTensor::new_contiguous(client, device, shape, handle, DType::U32);
        let scales = words.clone();
        few_rows_product::<R, B>(
            into_contiguous(x.clone()),
            &Packed { words, scales },
            outputs,
            1,
        )
    })
}

fn few_rows_product<R, B>(
    x: CubeTensor<R>,
    packed: &Packed<R>,
    outputs: usize,
    per_word: usize,
) -> CubeTensor<R>
where
    R: CubeRuntime,
    B: ModelBackend<FloatTensorPrimitive = CubeTensor<R>>,
{
    let [rows, inputs] = dims2(&x);
    let [_, row_words] = dims2(&packed.words);
    // Narrow outputs alone would not fill a device.
    let chunk = inputs.div_ceil(GROUP).div_ceil(16) * GROUP;
    let chunks = inputs.div_ceil(chunk);
    let parts = empty(&x, [chunks, rows * outputs]);
    few_rows::launch::<R>(
        &x.client.clone(),
        CubeCount::Static(
            row_words.div_ceil(WORDS) as u32,
            chunks as u32,
            rows.div_ceil(ROWS) as u32,
        ),
        CubeDim::new_1d(WORDS as u32),
        x.into_array_arg(),
        packed.words.clone().into_array_arg(),
        packed.scales.clone().into_array_arg(),
        parts.clone().into_array_arg(),
        rows as u32,
        inputs as u32,
        outputs as u32,
        row_words as u32,
        chunk as u32,
        per_word,
    );
    let y = if chunks == 1 {
        parts
    } else {
        B::float_sum_dim(parts, 0)
    };
    B::float_reshape(y, [rows, outputs].into())
}

/// One unit per number.
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
    #[comptime] per_word: usize,
) {
    let (inputs, outputs, row_words) = (inputs as usize, outputs as usize, row_words as usize);
    let mut i = ABSOLUTE_POS;
    while i < len as usize {
        let (column, k) = (columns[i / inputs] as usize, i % inputs);
        let word = words[k * row_words + column / per_word];
        let mut value = number(word, (column % per_word) as u32, per_word);
        if per_word == 4 {
            value *= scales[k / GROUP * outputs + column];
        }
        out[i] = value;
        i += CUBE_COUNT_X as usize * CUBE_DIM_X as usize;
    }
}

/// Some columns, `[columns, inputs]`.
pub(super) fn columns<R: CubeRuntime>(
    weight: &ReducedMatrix,
    columns: CubeTensor<R>,
) -> CubeTensor<R> {
    let columns = into_contiguous(columns);
    if let Some(codes) = Codes::of(weight, &columns) {
        return codes.columns(columns);
    }
    let packed = Packed::of(weight, &columns);
    let count = columns.meta.shape().num_elements();
    let out = empty(&columns, [count, weight.inputs()]);
    let len = count * weight.inputs();
    if len > 0 {
        let (count, dim) = entrywise(len);
        gather_columns::launch::<R>(
            &columns.client.clone(),
            count,
            dim,
            packed.words.clone().into_array_arg(),
            packed.scales.clone().into_array_arg(),
            columns.into_array_arg(),
            out.clone().into_array_arg(),
            weight.inputs() as u32,
            weight.outputs() as u32,
            dims2(&packed.words)[1] as u32,
            len as u32,
            per_word(weight.precision()),
        );
    }
    out
}

/// `grad . weight^T`.
pub(super) fn linear_backward<R, B>(grad: CubeTensor<R>, weight: &ReducedMatrix) -> CubeTensor<R>
where
    R: CubeRuntime,
    B: ModelBackend<FloatTensorPrimitive = CubeTensor<R>>,
{
    if weight.matmul() == MatmulPrecision::Bf16 {
        return bf16_product::<R, B>(grad, weight, true);
    }
    let weight = unpacked(weight, &grad);
    B::f32_matmul(grad, B::float_transpose(weight))
}

/// `x . weight` or `x . weight^T`, both rounded to bfloat16; packed bfloat16 words are used directly.
fn bf16_product<R, B>(x: CubeTensor<R>, weight: &ReducedMatrix, transposed: bool) -> CubeTensor<R>
where
    R: CubeRuntime,
    B: ModelBackend<FloatTensorPrimitive = CubeTensor<R>>,
{
    let oriented = |weight| match transposed {
        true => B::float_transpose(weight),
        false => weight,
    };
    let words = match bf16::is_native::<R, B>(&x) {
        true => Packed::of(weight, &x).as_bf16(weight),
        false => None,
    };
    match words {
        Some(words) => bf16::native::<R, B>(x, oriented(words)),
        None => {
            let weight = unpacked(weight, &x);
            bf16::matmul::<R, B>(x, oriented(weight))
        }
    }
}
