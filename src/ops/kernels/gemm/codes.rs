//! Few rows by a right side in blocks: codes become numbers in registers, once for all rows of a tile.

use pulp::Simd;

use super::Factor;
use super::pack::Block;
use super::square::transpose_rows;
use crate::ops::reduced::{BlockFormat, LANES, Part, ScaleLine, TILE, Word};

/// Rows that a tile may have. More than there are count as zeros.
const HEIGHTS: [usize; 7] = [1, 2, 4, 6, 8, 12, 16];

/// The most of them whose sums stay in registers.
const fn tallest(lanes: usize) -> usize {
    // 16 lanes come with 32 registers, 8 with 16.
    if lanes == LANES { 16 } else { 4 }
}

/// How codes are numbers, before the scale of their block.
pub(super) trait Codes<S: Simd>: Copy {
    /// Codes of a word of 32 bits.
    const PER_WORD: usize;

    /// The numbers of the lowest codes of a vector of words.
    fn numbers(self, simd: S, words: S::u32s) -> S::f32s;

    /// Brings down the next codes.
    #[inline(always)]
    fn next(self, simd: S, words: S::u32s) -> S::u32s {
        let bits = 32 / Self::PER_WORD as u32;
        simd.wrapping_dyn_shr_u32s(words, simd.splat_u32s(bits))
    }
}

/// Four bits each: the numbers are looked up in registers.
#[derive(Clone, Copy)]
pub(super) struct FourBits(pub(super) [f32; 16]);

/// Eight bits each, with a sign.
#[derive(Clone, Copy)]
pub(super) struct EightBits;

impl<S: Simd> Codes<S> for FourBits {
    const PER_WORD: usize = 8;

    #[inline(always)]
    fn numbers(self, simd: S, words: S::u32s) -> S::f32s {
        let Self(table) = self;
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{__m256, __m256i, __m512, __m512i};
            let simd = &simd as &dyn std::any::Any;
            if let Some(simd) = simd.downcast_ref::<pulp::x86::V4>() {
                // The whole table is one register, and the look-up reads the lowest four bits alone.
                let (table, words): (__m512, __m512i) =
                    (bytemuck::cast(table), bytemuck::cast(words));
                return bytemuck::cast(simd.avx512f._mm512_permutexvar_ps(words, table));
            }
            if let Some(simd) = simd.downcast_ref::<pulp::x86::V3>() {
                // It is two: the lowest three bits are looked up in both, and the fourth, as a sign, chooses.
                let [lower, upper]: [__m256; 2] = bytemuck::cast(table);
                let words: __m256i = bytemuck::cast(words);
                let numbers = simd.avx._mm256_blendv_ps(
                    simd.avx2._mm256_permutevar8x32_ps(lower, words),
                    simd.avx2._mm256_permutevar8x32_ps(upper, words),
                    bytemuck::cast(simd.avx2._mm256_slli_epi32::<28>(words)),
                );
                return bytemuck::cast(numbers);
            }
        }
        let mut numbers = simd.splat_f32s(0.0);
        let codes: &[u32] = bytemuck::cast_slice(std::slice::from_ref(&words));
        let lanes: &mut [f32] = bytemuck::cast_slice_mut(std::slice::from_mut(&mut numbers));
        for (number, code) in lanes.iter_mut().zip(codes) {
            *number = table[(code & 15) as usize];
        }
        numbers
    }
}

impl<S: Simd> Codes<S> for EightBits {
    const PER_WORD: usize = 4;

    #[inline(always)]
    fn numbers(self, simd: S, words: S::u32s) -> S::f32s {
        // A code that is moved up by 128, in the lowest bits of an f32 from 2^23 on.
        const SHIFT: f32 = 8_388_608.0;
        let byte = simd.and_u32s(words, simd.splat_u32s(0xFF));
        let bits = simd.xor_u32s(byte, simd.splat_u32s(SHIFT.to_bits() | 0x80));
        let moved = simd.transmute_f32s_u32s(bits);
        simd.sub_f32s(moved, simd.splat_f32s(SHIFT + 128.0))
    }
}

/// Runs `body` with the codes of a format.
macro_rules! with_codes {
    ($format:expr, |$codes:ident| $body:expr) => {
        match $format {
            BlockFormat::Q8_0 => {
                let $codes = $crate::ops::kernels::gemm::codes::EightBits;
                $body
            }
            format => {
                let $codes = $crate::ops::kernels::gemm::codes::FourBits(format.table());
                $body
            }
        }
    };
}
pub(super) use with_codes;

/// The left side in tiles of equally many rows, `[tiles][depth][rows of a tile]`.
pub(super) struct RowTiles {
    height: usize,
    depth: usize,
    numbers: Vec<f32>,
}

impl RowTiles {
    /// The rows of a product that [`product`] computes; `None` for others.
    pub(super) fn new(arch: pulp::Arch, x: &[u32], rows: usize, block: &Block<'_>) -> Option<Self> {
        struct Tallest;
        impl pulp::WithSimd for Tallest {
            type Output = usize;
            #[inline(always)]
            fn with_simd<S: Simd>(self, _: S) -> usize {
                tallest(S::F32_LANES)
            }
        }
        let &Factor {
            depth,
            left_stride,
            left_transposed,
            ..
        } = block.factor;
        if !block.reads_codes() || left_transposed {
            return None;
        }
        let tiles = rows.div_ceil(arch.dispatch(Tallest));
        let height = HEIGHTS.into_iter().find(|height| height * tiles >= rows);
        let height = height.expect("no tile is higher than the tallest");
        let mut numbers = vec![0f32; tiles * depth * height];
        let tiles = numbers.chunks_exact_mut(depth * height);
        for (x, out) in x.chunks(height * left_stride).zip(tiles) {
            let out = bytemuck::cast_slice_mut(out);
            transpose_rows(arch, x, [left_stride, depth], out, height);
        }
        Some(Self {
            height,
            depth,
            numbers,
        })
    }
}

/// `y = x . b` of a block's inputs by one panel: `[rows, width]`. Every entry is summed in the order of the depth, of the very numbers
/// that are packed for many rows.
pub(super) fn product(
    arch: pulp::Arch,
    y: &mut [f32],
    x: &RowTiles,
    block: &Block<'_>,
    panel: usize,
    scales: &mut Vec<ScaleLine>,
) {
    arch.dispatch(Product {
        y,
        x,
        block,
        panel,
        scales,
    });
}

struct Product<'a> {
    y: &'a mut [f32],
    x: &'a RowTiles,
    block: &'a Block<'a>,
    panel: usize,
    /// Room for the scales of some panels of blocks.
    scales: &'a mut Vec<ScaleLine>,
}

impl pulp::WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let Some(matrix) = self.block.in_blocks() else {
            return;
        };
        let start = self.panel * self.block.width;
        let columns = start..(start + self.block.width).min(self.block.factor.columns);
        for part in matrix.parts(columns) {
            with_codes!(part.blocks.format(), |codes| self.part(simd, codes, &part));
        }
    }
}

impl Product<'_> {
    /// The columns that are of one tensor.
    #[inline(always)]
    fn part<S: Simd, C: Codes<S>>(&mut self, simd: S, codes: C, part: &Part<'_>) {
        // Together some sums that do not wait for each other.
        match self.x.height {
            1 => self.tiles::<S, C, 1, 4>(simd, codes, part),
            2 => self.tiles::<S, C, 2, 4>(simd, codes, part),
            4 => self.tiles::<S, C, 4, 2>(simd, codes, part),
            6 if tallest(S::F32_LANES) > 4 => self.tiles::<S, C, 6, 2>(simd, codes, part),
            8 if tallest(S::F32_LANES) > 4 => self.tiles::<S, C, 8, 2>(simd, codes, part),
            12 if tallest(S::F32_LANES) > 4 => self.tiles::<S, C, 12, 1>(simd, codes, part),
            _ if tallest(S::F32_LANES) > 4 => self.tiles::<S, C, 16, 1>(simd, codes, part),
            _ => unreachable!("a tile higher than the tallest"),
        }
    }

    /// In tiles of `R` rows by `V` vectors.
    #[inline(always)]
    fn tiles<S: Simd, C: Codes<S>, const R: usize, const V: usize>(
        &mut self,
        simd: S,
        codes: C,
        part: &Part<'_>,
    ) {
        let Block { inputs, width, .. } = self.block;
        let Part {
            blocks,
            rows: columns,
            offset,
        } = part;
        let of_panel = LANES / S::F32_LANES;
        let first = columns.start / LANES * of_panel;
        let end = columns.end.div_ceil(LANES) * of_panel;
        let tiles = inputs.start / TILE..inputs.end / TILE;
        let runs = inputs.start / blocks.run()..inputs.end.div_ceil(blocks.run());
        for from in (first..end).step_by(V) {
            let last = (from + V).min(end) - 1;
            let first_panel = from / of_panel;
            self.scales.clear();
            for panel in first_panel..=last / of_panel {
                for run in runs.clone() {
                    self.scales.push(blocks.scales(panel, run * blocks.run()));
                }
            }
            // Vectors that do not exist are the last one again.
            let vectors: [Vector<'_>; V] = std::array::from_fn(|v| {
                let vector = (from + v).min(last);
                let panel = vector / of_panel;
                Vector {
                    words: blocks.words(panel, tiles.clone()),
                    scales: &self.scales[(panel - first_panel) * runs.len()..][..runs.len()],
                    place: vector % of_panel,
                }
            });
            let of_run = Runs {
                // From the beginning of the first one.
                skipped: (inputs.start - runs.start * blocks.run()) / C::PER_WORD,
                shift: (blocks.run() / C::PER_WORD).trailing_zeros(),
            };
            let all = self.x.numbers.chunks_exact(self.x.depth * R);
            for (x, y) in all.zip(self.y.chunks_mut(R * width)) {
                let (x, _) = x.as_chunks::<R>();
                let sums = sums(simd, codes, vectors, of_run, &x[inputs.clone()]);
                for (sums, y) in sums.iter().zip(y.chunks_mut(*width)) {
                    for (v, sums) in (from..=last).zip(sums) {
                        let sums: &[f32] = bytemuck::cast_slice(std::slice::from_ref(sums));
                        let lanes = v * S::F32_LANES..(v + 1) * S::F32_LANES;
                        if columns.start <= lanes.start && lanes.end <= columns.end {
                            let at = offset + lanes.start - columns.start;
                            y[at..at + S::F32_LANES].copy_from_slice(&sums[..S::F32_LANES]);
                            continue;
                        }
                        for (column, sum) in lanes.zip(sums) {
                            if columns.contains(&column) {
                                y[offset + column - columns.start] = *sum;
                            }
                        }
                    }
                }
            }
        }
    }
}

/// As many columns as a vector has lanes.
#[derive(Clone, Copy)]
struct Vector<'a> {
    /// The block's words of the panel.
    words: &'a [Word],
    /// The scales of its runs.
    scales: &'a [ScaleLine],
    /// Which part of the panel's columns.
    place: usize,
}

/// Which words have which scales.
#[derive(Clone, Copy)]
struct Runs {
    /// Words of the first run that come before the block.
    skipped: usize,
    /// Logarithm of the words of a run.
    shift: u32,
}

/// `x . b`, `x` being of the block's inputs.
#[inline(always)]
fn sums<S: Simd, C: Codes<S>, const R: usize, const V: usize>(
    simd: S,
    codes: C,
    b: [Vector<'_>; V],
    runs: Runs,
    x: &[[f32; R]],
) -> [[S::f32s; V]; R] {
    let mut acc = [[simd.splat_f32s(0.0); V]; R];
    for (i, x) in x.chunks_exact(C::PER_WORD).enumerate() {
        let run = (runs.skipped + i) >> runs.shift;
        let mut words = [simd.splat_u32s(0); V];
        let mut scale = [simd.splat_f32s(0.0); V];
        let mut minimum = [simd.splat_f32s(0.0); V];
        for v in 0..V {
            let (place, line) = (b[v].place, &b[v].scales[run]);
            words[v] = S::as_simd_u32s(&b[v].words[i]).0[place];
            scale[v] = S::as_simd_f32s(&line.scale).0[place];
            minimum[v] = S::as_simd_f32s(&line.minimum).0[place];
        }
        for x in x {
            let mut w = [simd.splat_f32s(0.0); V];
            for v in 0..V {
                w[v] = simd.mul_add_f32s(codes.numbers(simd, words[v]), scale[v], minimum[v]);
                words[v] = codes.next(simd, words[v]);
            }
            for r in 0..R {
                let x = simd.splat_f32s(x[r]);
                for v in 0..V {
                    acc[r][v] = simd.mul_add_f32s(x, w[v], acc[r][v]);
                }
            }
        }
    }
    acc
}
