//! Tiles of f32 sums, by whatever instruction set there is.

use pulp::Simd;

use super::pack::Form;
use super::{Rows, Sums, Tile};

/// Vectors side by side in a tile: as many as leave the accumulators in registers.
const fn vectors<S: Simd>() -> usize {
    // 16 lanes (AVX-512) and 4 (NEON) come with 32 registers, 8 (AVX2) with 16.
    if S::F32_LANES == 8 { 2 } else { 4 }
}

/// Columns of a panel: whole vectors, and no more than there are columns for.
pub(super) fn panel_width(form: Form, arch: pulp::Arch, columns: usize) -> usize {
    struct Width(usize);
    impl pulp::WithSimd for Width {
        type Output = usize;
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> usize {
            vectors::<S>().min(self.0.div_ceil(S::F32_LANES)) * S::F32_LANES
        }
    }
    match form {
        Form::Pairs => super::bf16::WIDTH,
        _ => arch.dispatch(Width(columns)),
    }
}

impl pulp::WithSimd for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let most = vectors::<S>();
        match self.block.width / S::F32_LANES {
            1 => rows::<S, 1>(simd, self),
            2 => rows::<S, 2>(simd, self),
            3 if most > 3 => rows::<S, 3>(simd, self),
            _ if most > 3 => rows::<S, 4>(simd, self),
            _ => unreachable!("a panel of more vectors than a tile has"),
        }
    }
}

#[inline(always)]
fn rows<S: Simd, const V: usize>(simd: S, task: Rows<'_>) {
    task.for_each_tile(
        #[inline(always)]
        |tile| match tile.rows {
            6 => run::<S, V, 6>(simd, tile),
            5 => run::<S, V, 5>(simd, tile),
            4 => run::<S, V, 4>(simd, tile),
            3 => run::<S, V, 3>(simd, tile),
            2 => run::<S, V, 2>(simd, tile),
            _ => run::<S, V, 1>(simd, tile),
        },
    );
}

#[inline(always)]
fn run<S: Simd, const V: usize, const R: usize>(simd: S, mut tile: Tile<'_>) {
    // By value from step to step: behind a reference the sums would be cleared, stored and loaded in memory.
    let mut sums = [[simd.splat_f32s(0.0); V]; R];
    if tile.sums == Sums::Continued {
        for (r, sums) in sums.iter_mut().enumerate() {
            with_vectors::<S, V>(tile.outputs(r), |y| sums.copy_from_slice(y));
        }
    }
    let words: &[f32] = bytemuck::cast_slice(tile.b.words);
    let together = tile.b.stride == V * S::F32_LANES;
    let sums = match (tile.transposed, together) {
        (false, true) => add::<S, V, R>(simd, sums, inputs(&tile), words),
        (false, false) => {
            let b = apart::<S, V>(words, tile.b.stride);
            add_rows::<S, V, R>(simd, sums, inputs(&tile), b)
        }
        (true, true) => {
            let b = S::as_simd_f32s(words).0.chunks_exact(V);
            add_turned::<S, V, R>(simd, sums, &tile, b)
        }
        (true, false) => {
            let b = apart::<S, V>(words, tile.b.stride);
            add_turned::<S, V, R>(simd, sums, &tile, b)
        }
    };
    let below = tile.below(V * S::F32_LANES);
    let sums = add::<S, V, R>(simd, sums, tile.low_rank(), below);
    let added = tile.sums == Sums::Added;
    for (r, sums) in sums.iter().enumerate() {
        with_vectors::<S, V>(tile.outputs(r), |y| {
            for v in 0..V {
                y[v] = match added {
                    true => simd.add_f32s(y[v], sums[v]),
                    false => sums[v],
                };
            }
        });
    }
}

/// Runs `body` on a row of a tile as whole vectors.
#[inline(always)]
fn with_vectors<S: Simd, const V: usize>(y: &mut [f32], body: impl FnOnce(&mut [S::f32s])) {
    if y.len() == V * S::F32_LANES {
        return body(S::as_mut_simd_f32s(y).0);
    }
    // The widest panel: four vectors of sixteen.
    let mut whole = [0f32; 64];
    let whole = &mut whole[..V * S::F32_LANES];
    let (inside, _) = whole.split_at_mut(y.len());
    inside.copy_from_slice(y);
    body(S::as_mut_simd_f32s(whole).0);
    y.copy_from_slice(&whole[..y.len()]);
}

/// `sums + x . b`, `b` being rows of `V` vectors.
#[inline(always)]
fn add<S: Simd, const V: usize, const R: usize>(
    simd: S,
    sums: [[S::f32s; V]; R],
    x: [&[f32]; R],
    b: &[f32],
) -> [[S::f32s; V]; R] {
    let (b, _) = S::as_simd_f32s(b);
    add_rows(simd, sums, x, b.chunks_exact(V))
}

/// The inputs of a tile's rows.
#[inline(always)]
fn inputs<'a, const R: usize>(tile: &Tile<'a>) -> [&'a [f32]; R] {
    tile.inputs::<R>().map(bytemuck::cast_slice)
}

/// Rows of `V` vectors that are `stride` numbers apart.
#[inline(always)]
fn apart<S: Simd, const V: usize>(b: &[f32], stride: usize) -> impl Iterator<Item = &[S::f32s]> {
    let rows = b.chunks(stride);
    rows.map(|b| S::as_simd_f32s(&b[..V * S::F32_LANES]).0)
}

/// `sums + x . b` of a transposed left side: the rows' values of one input are contiguous.
#[inline(always)]
fn add_turned<'a, S: Simd, const V: usize, const R: usize>(
    simd: S,
    sums: [[S::f32s; V]; R],
    tile: &Tile<'_>,
    b: impl Iterator<Item = &'a [S::f32s]>,
) -> [[S::f32s; V]; R] {
    let mut acc = sums;
    let x: &[f32] = bytemuck::cast_slice(tile.x);
    let lines = x.chunks(tile.row_words);
    for (x, b) in lines.zip(b) {
        let x = x.first_chunk::<R>().expect("an input of every row");
        for r in 0..R {
            let x = simd.splat_f32s(x[r]);
            for v in 0..V {
                acc[r][v] = simd.mul_add_f32s(x, b[v], acc[r][v]);
            }
        }
    }
    acc
}

#[inline(always)]
fn add_rows<'a, S: Simd, const V: usize, const R: usize>(
    simd: S,
    sums: [[S::f32s; V]; R],
    x: [&[f32]; R],
    b: impl Iterator<Item = &'a [S::f32s]>,
) -> [[S::f32s; V]; R] {
    let mut acc = sums;
    for (k, b) in b.enumerate() {
        for r in 0..R {
            let x = simd.splat_f32s(x[r][k]);
            for v in 0..V {
                acc[r][v] = simd.mul_add_f32s(x, b[v], acc[r][v]);
            }
        }
    }
    acc
}
