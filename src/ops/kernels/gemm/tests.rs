use super::*;
use crate::ops::kernels::LANES;
use crate::ops::{BlockFormat, Blocks, Precision};
use crate::rng::Seed;

fn numbers(len: usize, name: &str) -> Vec<f32> {
    let seed = Seed::new(1).fork(name);
    (0..len).map(|i| seed.normal(i as u64) as f32).collect()
}

/// Every instruction set that this machine has.
pub(super) fn arches() -> Vec<pulp::Arch> {
    #[cfg(target_arch = "x86_64")]
    let wider = pulp::x86::V3::try_new().map(pulp::Arch::V3);
    #[cfg(not(target_arch = "x86_64"))]
    let wider = None;
    [Some(pulp::Arch::Scalar), wider, Some(*ARCH)]
        .into_iter()
        .flatten()
        .collect()
}

/// The product in f64.
fn product(x: &[f32], b: impl Fn(usize, usize) -> f32, sizes: [usize; 3]) -> Vec<f64> {
    let [rows, depth, columns] = sizes;
    let entry = |i: usize, j: usize| {
        let terms = (0..depth).map(|k| f64::from(x[i * depth + k]) * f64::from(b(k, j)));
        terms.sum::<f64>()
    };
    (0..rows)
        .flat_map(|i| (0..columns).map(move |j| (i, j)))
        .map(|(i, j)| entry(i, j))
        .collect()
}

fn factor<'a>(matrix: Matrix<'a>, right: Right, sizes: [usize; 2]) -> Factor<'a> {
    Factor::new(matrix, right, sizes, MatmulPrecision::F32)
}

/// The product. What was in `y` before must not matter.
fn run(form: Form, arch: pulp::Arch, x: &[f32], factor: Factor<'_>) -> Vec<f32> {
    let rows = x.len() / factor.depth;
    let mut y = vec![f32::NAN; rows * factor.columns];
    gemm_as(form, arch, &mut Room::default(), &mut y, x, &factor);
    y
}

/// Numbers that bfloat16 can hold.
fn half(values: &[f32]) -> Vec<f32> {
    let round = |&x: &f32| half::bf16::from_f32(x).to_f32();
    values.iter().map(round).collect()
}

/// Every way of computing a product in a precision.
fn ways(precision: MatmulPrecision) -> Vec<(Form, pulp::Arch)> {
    let form = match precision {
        MatmulPrecision::F32 => Form::Full,
        MatmulPrecision::Bf16 => Form::Rounded,
    };
    let mut ways: Vec<_> = arches().into_iter().map(|arch| (form, arch)).collect();
    if precision == MatmulPrecision::Bf16 && bf16::available() {
        ways.push((Form::Pairs, *ARCH));
    }
    ways
}

/// Rows that fill no tile, columns that fill no panel or several, depths that are odd or of more than one block.
const SIZES: [[usize; 3]; 6] = [
    [1, 1, 1],
    [7, 3, 65],
    [13, 40, 64],
    [6, 513, 17],
    [61, 2050, 130],
    [67, 1100, 130],
];

#[test]
fn products_are_those_of_f64() {
    for precision in [MatmulPrecision::F32, MatmulPrecision::Bf16] {
        for (sizes, right) in SIZES
            .into_iter()
            .flat_map(|sizes| [(sizes, Right::Plain), (sizes, Right::Transposed)])
        {
            let [rows, depth, columns] = sizes;
            let (x, b) = (numbers(rows * depth, "x"), numbers(depth * columns, "b"));
            let [rounded_x, rounded_b] = match precision {
                MatmulPrecision::F32 => [x.clone(), b.clone()],
                MatmulPrecision::Bf16 => [half(&x), half(&b)],
            };
            let at = |k: usize, j: usize| match right {
                Right::Plain => rounded_b[k * columns + j],
                Right::Transposed => rounded_b[j * depth + k],
            };
            let want = product(&rounded_x, at, sizes);
            for (form, arch) in ways(precision) {
                let factor = Factor {
                    precision,
                    ..factor(Matrix::Full(&b), right, [depth, columns])
                };
                // Sums grow as the root of the number of terms, and each addition rounds by half a unit of the sum: in all
                // about one unit (1.2e-7) a term; the first term alone is up to 9.
                let allowed = 1.2e-7 * depth as f64 + 5e-7;
                for (got, want) in run(form, arch, &x, factor).iter().zip(&want) {
                    let off = (f64::from(*got) - want).abs();
                    assert!(off < allowed, "{sizes:?} {right:?} {form:?}: off by {off}");
                }
            }
        }
    }
}

#[test]
fn rows_may_be_apart() {
    // Columns of wider matrices, as adapters read them: the bits are those of the columns by themselves.
    let (depth, columns) = (1300, 130);
    let (left_stride, right_stride) = (depth + 5, columns + 70);
    for rows in [3, 20, 50, 70] {
        let x = numbers((rows - 1) * left_stride + depth, "x");
        let b = numbers((depth - 1) * right_stride + columns, "b");
        let near = |values: &[f32], stride: usize, len: usize| -> Vec<f32> {
            let rows = values.chunks(stride).flat_map(|row| &row[..len]);
            rows.copied().collect()
        };
        let near = [
            near(&x, left_stride, depth),
            near(&b, right_stride, columns),
        ];
        for arch in arches() {
            let factor_near = factor(Matrix::Full(&near[1]), Right::Plain, [depth, columns]);
            let apart = Factor {
                left_stride,
                right_stride,
                matrix: Matrix::Full(&b),
                ..factor_near
            };
            let mut y = vec![f32::NAN; rows * columns];
            gemm_as(Form::Full, arch, &mut Room::default(), &mut y, &x, &apart);
            assert_eq!(y, run(Form::Full, arch, &near[0], factor_near), "{rows}");
        }
    }
}

/// `[columns, rows]` of `[rows, columns]`.
fn transposed(x: &[f32], columns: usize) -> Vec<f32> {
    let column = |j| x.iter().skip(j).step_by(columns).copied();
    (0..columns).flat_map(column).collect()
}

#[test]
fn a_left_side_may_lie_turned() {
    // To the last bit: the same numbers are added in the same order.
    let (depth, columns) = (1300, 130);
    for rows in [3, 16, 50, 70] {
        let (x, b) = (numbers(rows * depth, "x"), numbers(depth * columns, "b"));
        for arch in arches() {
            for right in [Right::Plain, Right::Transposed] {
                let plain = factor(Matrix::Full(&b), right, [depth, columns]);
                let factor = Factor {
                    left_stride: rows,
                    left_transposed: true,
                    ..plain
                };
                let mut y = vec![f32::NAN; rows * columns];
                let x_transposed = transposed(&x, depth);
                let mut room = Room::default();
                gemm_as(Form::Full, arch, &mut room, &mut y, &x_transposed, &factor);
                assert_eq!(y, run(Form::Full, arch, &x, plain), "{rows} {right:?}");
            }
        }
    }
}

#[test]
fn a_packed_matrix_multiplies_parts_of_it() {
    // Inputs from the middle, columns from a panel on, zeros behind the last column, sums that go on.
    let (rows, stride, depth, columns) = (13, 90, 70, 200);
    let x = numbers(rows * stride, "x");
    let b = numbers(depth * columns, "b");
    for arch in arches() {
        let mut packed = PackedRight::on(arch);
        for right in [Right::Transposed, Right::Plain] {
            let stride_of_b = match right {
                Right::Plain => columns,
                Right::Transposed => depth,
            };
            // What was packed before must not matter.
            packed.pack(&[f32::NAN; 70 * 250], Right::Plain, [70, 250], 250);
            packed.pack(&b, right, [depth, columns], stride_of_b);
            for (inputs, first) in [(0..depth, 0), (3..68, 64), (7..8, 128)] {
                let wide = first..columns.next_multiple_of(LANES);
                let at = |k: usize, j: usize| match (first + j < columns, right) {
                    (false, _) => 0.0,
                    (true, Right::Plain) => b[(inputs.start + k) * columns + first + j],
                    (true, Right::Transposed) => b[(first + j) * depth + inputs.start + k],
                };
                let near: Vec<f32> = (x.chunks(stride))
                    .flat_map(|row| &row[..inputs.len()])
                    .copied()
                    .collect();
                let want = product(&near, at, [rows, inputs.len(), wide.len()]);
                let x_transposed = transposed(&near, inputs.len());
                for (values, stride, transposed) in
                    [(&x, stride, false), (&x_transposed, rows, true)]
                {
                    let left = Left {
                        values,
                        stride,
                        transposed,
                    };
                    let mut y = vec![f32::NAN; want.len()];
                    packed.product(&mut y, left, inputs.clone(), wide.clone(), false);
                    packed.product(&mut y, left, inputs.clone(), wide.clone(), true);
                    // Each of 70 additions rounds by at most 1e-6, half a unit of a sum below 32; twice the product twice that, of
                    // which random signs leave about a quarter.
                    for (got, want) in y.iter().zip(&want) {
                        let off = (f64::from(*got) - 2.0 * want).abs();
                        assert!(
                            off < 4e-5,
                            "{right:?} {inputs:?} {transposed}: off by {off}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn the_instruction_and_fused_multiply_adds_agree_to_the_last_bit() {
    if !bf16::available() {
        return;
    }
    for ([rows, depth, columns], right) in SIZES
        .into_iter()
        .flat_map(|sizes| [(sizes, Right::Plain), (sizes, Right::Transposed)])
    {
        let (x, b) = (numbers(rows * depth, "x"), numbers(depth * columns, "b"));
        let (t, low) = (numbers(rows, "t"), numbers(columns, "low"));
        let part = LowRankPart {
            rank: 1,
            scale: 0.5,
            column: 0,
            width: columns,
        };
        let factor = Factor {
            precision: MatmulPrecision::Bf16,
            low_rank: Some(LowRank {
                t: &t,
                ranks: 1,
                b: &low,
                parts: &[part],
            }),
            ..factor(Matrix::Full(&b), right, [depth, columns])
        };
        assert_eq!(
            run(Form::Pairs, *ARCH, &x, factor),
            run(Form::Rounded, *ARCH, &x, factor)
        );
    }
}

#[test]
fn a_row_does_not_depend_on_the_others() {
    // More columns than a strip has, which one row by itself does not go by.
    let (depth, columns) = (1100, 3850);
    assert!(depth / 2 * columns > STRIP);
    let (x, b) = (numbers(70 * depth, "x"), numbers(depth * columns, "b"));
    for precision in [MatmulPrecision::F32, MatmulPrecision::Bf16] {
        for (form, arch) in ways(precision) {
            let factor = Factor {
                precision,
                ..factor(Matrix::Full(&b), Right::Plain, [depth, columns])
            };
            let all = run(form, arch, &x, factor);
            let alone = run(form, arch, &x[67 * depth..68 * depth], factor);
            assert_eq!(all[67 * columns..68 * columns], alone);
        }
    }
}

#[test]
fn what_is_not_a_number_shows_in_bfloat16() {
    // The one that rounding alone would carry over into the sign, and one of the other kind.
    for bad in [f32::from_bits(0x7FFF_FFFF), f32::NAN, f32::INFINITY] {
        for (form, arch) in ways(MatmulPrecision::Bf16) {
            let (mut x, b) = (numbers(2 * 33, "x"), numbers(33 * 5, "b"));
            x[32] = bad;
            let factor = Factor {
                precision: MatmulPrecision::Bf16,
                ..factor(Matrix::Full(&b), Right::Plain, [33, 5])
            };
            let y = run(form, arch, &x, factor);
            assert!(y[..5].iter().all(|y| !y.is_finite()), "{form:?} {y:?}");
            assert!(y[5..].iter().all(|y| y.is_finite()));
        }
    }
}

#[test]
fn reduced_weights_are_those_of_their_rounded_numbers() {
    // Both kinds of tasks, both sides, panels of the weight that are cut by panels of the product.
    for (rows, right) in [
        (5, Right::Plain),
        (5, Right::Transposed),
        (70, Right::Plain),
        (70, Right::Transposed),
    ] {
        let (depth, columns) = (1101, 150);
        let [inputs, outputs] = match right {
            Right::Plain => [depth, columns],
            Right::Transposed => [columns, depth],
        };
        let (x, w) = (numbers(rows * depth, "x"), numbers(inputs * outputs, "w"));
        for storage in [Precision::Bf16, Precision::Int8] {
            let reduced = ReducedMatrix::new(&w, inputs, outputs, storage).unwrap();
            let rounded = reduced.values();
            for precision in [MatmulPrecision::F32, MatmulPrecision::Bf16] {
                for (form, arch) in ways(precision) {
                    let product = |matrix| {
                        let factor = Factor {
                            precision,
                            ..factor(matrix, right, [depth, columns])
                        };
                        run(form, arch, &x, factor)
                    };
                    let got = product(Matrix::Reduced(&reduced));
                    assert_eq!(got, product(Matrix::Full(&rounded)));
                }
            }
        }
    }
}

#[test]
fn weights_in_blocks_are_those_of_their_numbers() {
    // Both kinds of tasks, both sides, tensors that end inside tiles and panels, blocks that end inside rows, and a depth of several
    // blocks of the product, which are of whole tiles.
    let formats = [
        BlockFormat::Nf4,
        BlockFormat::Q4_0,
        BlockFormat::Q4_1,
        BlockFormat::Q8_0,
    ];
    for (rows, right, [depth, columns], first) in [
        (5, Right::Plain, [600, 150], 70),
        (1, Right::Plain, [1120, 150], 70),
        (2, Right::Plain, [64, 16], 16),
        (6, Right::Plain, [576, 150], 70),
        (12, Right::Plain, [1120, 33], 17),
        (16, Right::Plain, [128, 128], 64),
        (37, Right::Plain, [1120, 150], 64),
        (5, Right::Transposed, [600, 160], 64),
        (70, Right::Plain, [1120, 128], 64),
        (70, Right::Transposed, [1120, 192], 560),
        (3, Right::Plain, [70, 33], 17),
        (3, Right::Transposed, [33, 70], 17),
    ] {
        let [inputs, outputs] = match right {
            Right::Plain => [depth, columns],
            Right::Transposed => [columns, depth],
        };
        let (x, w) = (numbers(rows * depth, "x"), numbers(inputs * outputs, "w"));
        for format in formats {
            let (left, rest) = w.split_at(first * inputs);
            let tensors = [(left, first), (rest, outputs - first)];
            let blocks = tensors.map(|(w, rows)| Blocks::quantize(format, w, [rows, inputs]));
            let reduced = ReducedMatrix::of_blocks(blocks.into());
            let full = reduced.values();
            for precision in [MatmulPrecision::F32, MatmulPrecision::Bf16] {
                for (form, arch) in ways(precision) {
                    let product = |matrix| {
                        let factor = Factor {
                            precision,
                            ..factor(matrix, right, [depth, columns])
                        };
                        run(form, arch, &x, factor)
                    };
                    let got = product(Matrix::Reduced(&reduced));
                    let what = format!("{format:?} {right:?} {rows} {form:?} {arch:?}");
                    assert_eq!(got, product(Matrix::Full(&full)), "{what}");
                }
            }
        }
    }
}

#[test]
fn low_rank_products_join_in_their_columns() {
    // Parts that end inside a panel, leave columns out, and span panels.
    let part = |rank, scale, column, width| LowRankPart {
        rank,
        scale,
        column,
        width,
    };
    let parts = [
        part(3, 0.5, 2, 20),
        part(1, -2.0, 22, 100),
        part(4, 1.0, 140, 9),
    ];
    for rows in [20, 70] {
        low_rank_products(rows, &parts);
    }
}

fn low_rank_products(rows: usize, parts: &[LowRankPart]) {
    let (depth, columns, ranks) = (515, 150, 8);
    let (x, b) = (numbers(rows * depth, "x"), numbers(depth * columns, "b"));
    let (t, low) = (numbers(rows * ranks, "t"), numbers(60 + 100 + 36, "low"));
    let low_rank = LowRank {
        t: &t,
        ranks,
        b: &low,
        parts,
    };
    let at = |k: usize, j: usize| b[k * columns + j];
    let mut want = product(&x, at, [rows, depth, columns]);
    let (mut first, mut offset) = (0, 0);
    for part in parts {
        for (i, q, j) in (0..rows)
            .flat_map(|i| (0..part.rank).flat_map(move |q| (0..part.width).map(move |j| (i, q, j))))
        {
            let product = t[i * ranks + first + q] * low[offset + q * part.width + j];
            want[i * columns + part.column + j] += f64::from(part.scale * product);
        }
        first += part.rank;
        offset += part.rank * part.width;
    }
    for arch in arches() {
        let factor = Factor {
            low_rank: Some(low_rank),
            ..factor(Matrix::Full(&b), Right::Plain, [depth, columns])
        };
        for (got, want) in run(Form::Full, arch, &x, factor).iter().zip(&want) {
            let off = (f64::from(*got) - want).abs();
            // As above, for 523 terms; a sum beyond their root, 23, rounds by more in proportion.
            let allowed = 6.4e-5 * (want.abs() / 23.0).max(1.0);
            assert!(off < allowed, "{got}, expected {want}");
        }
    }
}

#[test]
fn tasks_cover_each_row_once_and_end_small() {
    for (rows, threads) in [(64, 1), (64, 2), (1016, 2), (1017, 3), (5000, 16)] {
        let columns = 2;
        let mut y = vec![0f32; rows * columns];
        let mut sizes = Vec::new();
        for (row, task) in tasks(&mut y, columns, threads) {
            assert_eq!(row, sizes.iter().sum::<usize>());
            sizes.push(task.len() / columns);
            task.iter_mut().for_each(|y| *y += 1.0);
        }
        assert!(y.iter().all(|&y| y == 1.0));
        let (last, whole) = sizes.split_last().expect("a task");
        assert!(*last <= ROWS);
        assert!(whole.iter().all(|size| size % ROWS == 0));
        assert!(whole.is_sorted_by(|a, b| a >= b));
        assert!(sizes[0] <= ROWS_OF_TASK && sizes[0] <= rows.div_ceil(2 * threads) + ROWS);
    }
}
