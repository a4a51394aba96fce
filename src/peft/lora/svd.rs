//! The leading singular values and vectors of a matrix, by powers of a block of vectors: products with the matrix on its device,
//! everything of the block's size on the host in f64.
//!
//! # Source
//! Halko, Martinsson and Tropp 2011, arXiv:0909.4061, algorithms 4.4 and 5.1; Jacobi's rotations for the small symmetric
//! eigenproblem: Golub and Van Loan, Matrix Computations, section 8.5.

use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;

use crate::host;
use crate::ops::{ModelBackend, f32_matmul};
use crate::rng::Seed;

/// Most passes over the matrix where none are given.
const MOST_PASSES: usize = 100;
/// Residual of singular vectors, as a share of the largest singular value, that counts as none: a few roundings of f32.
const RESIDUAL: f64 = 2e-6;

/// A block of columns, row-major in f64.
#[derive(Debug, Clone)]
struct Block {
    rows: usize,
    columns: usize,
    values: Vec<f64>,
}

/// `w = left . diag(values) . right^T` but for what is left out.
#[derive(Debug, Clone)]
pub(super) struct Singular {
    /// Descending.
    pub(super) values: Vec<f64>,
    /// `[in, rank]`, row-major.
    pub(super) left: Vec<f64>,
    /// `[out, rank]`, row-major.
    pub(super) right: Vec<f64>,
}

/// The `rank` largest singular values of `weight` (`[in, out]`) with their vectors; of each pair of vectors the left one's largest entry
/// is positive. `passes`: as many powers of a random block of `rank` vectors, an approximation; `None` goes on until nothing
/// changes, with a block that is a little larger. Reads the device.
///
/// # Panics
/// If the matrix has fewer than `rank` singular values.
pub(super) fn leading<B: ModelBackend>(
    weight: &Tensor<B, 2>,
    rank: usize,
    passes: Option<usize>,
    seed: Seed,
) -> Singular {
    let [inputs, outputs] = weight.dims();
    let most = inputs.min(outputs);
    assert!(
        rank <= most,
        "a matrix of {inputs} x {outputs} has {most} singular values, not {rank}"
    );
    let width = match passes {
        Some(_) => rank,
        None => (rank + (rank / 4).max(8)).min(most),
    };
    let transposed = weight.clone().transpose();
    let times = |matrix: &Tensor<B, 2>, block: &Block| {
        let product = f32_matmul(matrix.clone(), block.tensor(&weight.device()));
        Block::of(product)
    };
    let draws = (0..outputs * width).map(|i| seed.normal(i as u64));
    let mut y = times(weight, &Block::new(outputs, width, draws.collect()));
    let mut pass = 0;
    loop {
        let q = y.orthonormal();
        // w ~ q . z^T
        let z = times(&transposed, &q);
        let (squares, rotation) = eigen(&z.gram());
        let values: Vec<f64> = squares
            .iter()
            .map(|square| square.max(0.0).sqrt())
            .collect();
        let left = q.times(&rotation);
        let mut right = z.times(&rotation);
        right.scale_columns(|column| match values[column] {
            value if value > 0.0 => 1.0 / value,
            _ => 0.0,
        });
        let last = passes.is_some_and(|passes| pass >= passes);
        if !last {
            y = times(weight, &right.orthonormal());
        }
        let residual = || {
            let mut expected = left.clone();
            expected.scale_columns(|column| values[column]);
            y.largest_difference(&expected, rank)
        };
        let done = match passes {
            Some(_) => last,
            None => pass + 1 >= MOST_PASSES || residual() <= RESIDUAL * values[0],
        };
        if done {
            return Singular::new(values, &left, &right, rank);
        }
        pass += 1;
    }
}

/// The largest singular values of a matrix, so many of them: the left vectors times the values (`[rows, rank]`), and the right ones
/// (`[rank, columns]`), both row by row. Reads the device.
///
/// # Panics
/// If the matrix has fewer rows or columns than `rank`.
pub fn largest_singular<B: ModelBackend>(
    matrix: &Tensor<B, 2>,
    rank: usize,
) -> (Vec<f32>, Vec<f32>) {
    let found = leading(matrix, rank, None, Seed::new(0));
    let left = found.left.iter().zip(found.values.iter().cycle());
    let right = (0..rank).flat_map(|k| found.right.iter().skip(k).step_by(rank));
    (
        left.map(|(x, value)| (x * value) as f32).collect(),
        right.map(|x| *x as f32).collect(),
    )
}

impl Singular {
    fn new(mut values: Vec<f64>, left: &Block, right: &Block, rank: usize) -> Self {
        let (mut left, mut right) = (left.first(rank), right.first(rank));
        let signs: Vec<f64> = (0..rank)
            .map(|column| {
                let entries = (0..left.rows).map(|row| left.at(row, column));
                let largest = entries.fold(
                    0.0f64,
                    |most, x| if x.abs() > most.abs() { x } else { most },
                );
                if largest < 0.0 { -1.0 } else { 1.0 }
            })
            .collect();
        left.scale_columns(|column| signs[column]);
        right.scale_columns(|column| signs[column]);
        values.truncate(rank);
        Self {
            values,
            left: left.values,
            right: right.values,
        }
    }
}

impl Block {
    fn new(rows: usize, columns: usize, values: Vec<f64>) -> Self {
        assert_eq!(values.len(), rows * columns, "as many entries");
        Self {
            rows,
            columns,
            values,
        }
    }

    fn of<B: ModelBackend>(tensor: Tensor<B, 2>) -> Self {
        let [rows, columns] = tensor.dims();
        let values: Vec<f32> = host::read(tensor);
        Self::new(rows, columns, values.into_iter().map(f64::from).collect())
    }

    fn tensor<B: ModelBackend>(&self, device: &B::Device) -> Tensor<B, 2> {
        let values: Vec<f32> = self.values.iter().map(|&x| x as f32).collect();
        Tensor::from_data(TensorData::new(values, [self.rows, self.columns]), device)
    }

    fn at(&self, row: usize, column: usize) -> f64 {
        self.values[row * self.columns + column]
    }

    /// Its first columns.
    fn first(&self, columns: usize) -> Self {
        let rows = self.values.chunks_exact(self.columns);
        let values = rows.flat_map(|row| row[..columns].to_vec()).collect();
        Self::new(self.rows, columns, values)
    }

    fn scale_columns(&mut self, factor: impl Fn(usize) -> f64) {
        for row in self.values.chunks_exact_mut(self.columns) {
            for (column, x) in row.iter_mut().enumerate() {
                *x *= factor(column);
            }
        }
    }

    /// `self . small`, with a square matrix.
    fn times(&self, small: &Self) -> Self {
        let mut values = vec![0.0; self.values.len()];
        (values.par_chunks_exact_mut(self.columns))
            .zip(self.values.par_chunks_exact(self.columns))
            .for_each(|(out, row)| {
                for (x, factors) in row.iter().zip(small.values.chunks_exact(small.columns)) {
                    out.iter_mut()
                        .zip(factors)
                        .for_each(|(out, factor)| *out += x * factor);
                }
            });
        Self::new(self.rows, self.columns, values)
    }

    /// `self^T . self`.
    fn gram(&self) -> Self {
        let n = self.columns;
        let mut values = vec![0.0; n * n];
        for row in self.values.chunks_exact(n) {
            for (i, x) in row.iter().enumerate() {
                let out = &mut values[i * n..(i + 1) * n];
                out.iter_mut().zip(row).for_each(|(out, y)| *out += x * y);
            }
        }
        Self::new(n, n, values)
    }

    /// Orthonormal columns that span the same, by Gram and Schmidt, twice; a column that depends on those before it is zero.
    fn orthonormal(&self) -> Self {
        let column = |j: usize| -> Vec<f64> { (0..self.rows).map(|i| self.at(i, j)).collect() };
        let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
        let mut basis: Vec<Vec<f64>> = Vec::with_capacity(self.columns);
        for j in 0..self.columns {
            let mut v = column(j);
            let before = dot(&v, &v).sqrt();
            for _ in 0..2 {
                for u in &basis {
                    let along = dot(u, &v);
                    v.iter_mut().zip(u).for_each(|(v, u)| *v -= along * u);
                }
            }
            let norm = dot(&v, &v).sqrt();
            // What rounding alone leaves is no direction.
            let factor = if norm > 1e-12 * before {
                1.0 / norm
            } else {
                0.0
            };
            v.iter_mut().for_each(|x| *x *= factor);
            basis.push(v);
        }
        let entries = (0..self.rows).flat_map(|i| basis.iter().map(move |v| v[i]));
        Self::new(self.rows, self.columns, entries.collect())
    }

    /// The largest Euclidean distance between the first columns of two blocks.
    fn largest_difference(&self, other: &Self, columns: usize) -> f64 {
        let distance = |column| {
            let rows = 0..self.rows;
            rows.map(|row| (self.at(row, column) - other.at(row, column)).powi(2))
                .sum::<f64>()
                .sqrt()
        };
        (0..columns).map(distance).fold(0.0, f64::max)
    }
}

/// Eigenvalues of a symmetric matrix, descending, and the orthonormal eigenvectors as columns.
fn eigen(matrix: &Block) -> (Vec<f64>, Block) {
    let n = matrix.rows;
    let mut a = matrix.values.clone();
    let mut v = vec![0.0; n * n];
    (0..n).for_each(|i| v[i * n + i] = 1.0);
    let size = a.iter().map(|x| x * x).sum::<f64>();
    for _sweep in 0..40 {
        let off: f64 = (0..n)
            .flat_map(|i| (0..i).map(move |j| (i, j)))
            .map(|(i, j)| a[i * n + j].powi(2))
            .sum();
        if off <= 1e-30 * size {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                rotate(&mut a, &mut v, n, p, q);
            }
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| a[j * n + j].total_cmp(&a[i * n + i]));
    let values = order.iter().map(|&i| a[i * n + i]).collect();
    let vectors = (0..n).flat_map(|row| order.iter().map(move |&column| (row, column)));
    let vectors = vectors.map(|(row, column)| v[row * n + column]).collect();
    (values, Block::new(n, n, vectors))
}

/// Jacobi's rotation that makes entry `(p, q)` of a symmetric matrix zero.
fn rotate(a: &mut [f64], v: &mut [f64], n: usize, p: usize, q: usize) {
    let apq = a[p * n + q];
    if apq == 0.0 {
        return;
    }
    let tau = (a[q * n + q] - a[p * n + p]) / (2.0 * apq);
    let t = tau.signum() / (tau.abs() + (1.0 + tau * tau).sqrt());
    let cos = 1.0 / (1.0 + t * t).sqrt();
    let sin = t * cos;
    for k in 0..n {
        let (x, y) = (a[k * n + p], a[k * n + q]);
        a[k * n + p] = cos * x - sin * y;
        a[k * n + q] = sin * x + cos * y;
    }
    for k in 0..n {
        let (x, y) = (a[p * n + k], a[q * n + k]);
        a[p * n + k] = cos * x - sin * y;
        a[q * n + k] = sin * x + cos * y;
    }
    for k in 0..n {
        let (x, y) = (v[k * n + p], v[k * n + q]);
        v[k * n + p] = cos * x - sin * y;
        v[k * n + q] = sin * x + cos * y;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::backend::NdArray;

    /// `diag(5, 3, 1)` between two rotations by 30 and 60 degrees of the first two axes, beside a column of zeros.
    #[test]
    fn singular_values_of_a_rotated_diagonal_are_its_entries() {
        let (c, s) = (0.75f64.sqrt(), 0.5);
        // left = [[c, -s, 0], [s, c, 0], [0, 0, 1]], right = [[s, -c, 0], [c, s, 0], [0, 0, 1]] (4 rows, the last zero)
        let left = [[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]];
        let right = [[s, -c, 0.0], [c, s, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]];
        let values = [5.0, 3.0, 1.0];
        let entry = |i: usize, j: usize| -> f64 {
            (0..3).map(|k| left[i][k] * values[k] * right[j][k]).sum()
        };
        let weight: Vec<f32> = (0..12).map(|at| entry(at / 4, at % 4) as f32).collect();
        let weight =
            Tensor::<NdArray, 2>::from_data(TensorData::new(weight, [3, 4]), &Default::default());
        let found = leading(&weight, 2, None, Seed::new(1));
        for (found, expected) in found.values.iter().zip([5.0, 3.0]) {
            assert!((found - expected).abs() < 1e-5, "{found}");
        }
        // The signs are those that make the largest entry on the left positive.
        let expected = [c, -s, s, c, 0.0, 0.0];
        for (found, expected) in found.left.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-5, "{:?}", found);
        }
        for (row, expected) in found.right.chunks(2).zip(&right) {
            assert!((row[0] - expected[0]).abs() < 1e-5 && (row[1] - expected[1]).abs() < 1e-5);
        }
        let few = leading(&weight, 2, Some(6), Seed::new(1));
        assert!((few.values[0] - 5.0).abs() < 1e-3, "{:?}", few.values);
    }

    #[test]
    fn a_symmetric_matrix_is_turned_onto_its_axes() {
        // [[2, 1], [1, 2]] has 3 along (1, 1) and 1 along (1, -1).
        let (values, vectors) = eigen(&Block::new(2, 2, vec![2.0, 1.0, 1.0, 2.0]));
        assert!((values[0] - 3.0).abs() < 1e-12 && (values[1] - 1.0).abs() < 1e-12);
        assert!((vectors.at(0, 0) - vectors.at(1, 0)).abs() < 1e-12);
    }
}
