//! Logistic regression by Newton's method, in f64.

/// Strength of the prior that keeps weights finite where outcomes can be told apart perfectly; elsewhere it changes nothing that is shown.
pub(super) const PRIOR: f64 = 1e-4;
/// Newton steps at most; six suffice as a rule.
const MAX_STEPS: usize = 50;

/// The logistic function.
pub(super) fn sigmoid(x: f64) -> f64 {
    // Written so that neither end overflows.
    match x >= 0.0 {
        true => 1.0 / (1.0 + (-x).exp()),
        false => x.exp() / (1.0 + x.exp()),
    }
}

/// One observation, or several of one kind.
pub(super) struct Observation {
    /// The entries that are not zero: column and value.
    pub(super) features: Vec<(usize, f64)>,
    /// The mean outcome, 0 to 1.
    pub(super) outcome: f64,
    /// How many there are.
    pub(super) weight: f64,
}

/// The weights `w` that maximise `sum weight (y ln s + (1 - y) ln (1 - s)) - prior / 2 |w|^2` with `s = sigmoid(w . x)`.
pub(super) fn fit(observations: &[Observation], columns: usize, prior: f64) -> Vec<f64> {
    let mut weights = vec![0.0; columns];
    for _ in 0..MAX_STEPS {
        let mut gradient: Vec<f64> = weights.iter().map(|w| prior * w).collect();
        let mut hessian = vec![vec![0.0; columns]; columns];
        for (i, row) in hessian.iter_mut().enumerate() {
            row[i] = prior;
        }
        for of in observations {
            let score = of.features.iter().map(|&(i, x)| weights[i] * x).sum();
            let p = sigmoid(score);
            let slope = of.weight * p * (1.0 - p);
            for &(i, x) in &of.features {
                gradient[i] += of.weight * (p - of.outcome) * x;
                for &(j, y) in &of.features {
                    hessian[i][j] += slope * x * y;
                }
            }
        }
        let step = solve(hessian, gradient);
        // Far from the maximum the curvature says little: no weight moves by more than two at once.
        let largest = step.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
        let factor = (2.0 / largest.max(2.0)).min(1.0);
        for (weight, step) in weights.iter_mut().zip(&step) {
            *weight -= factor * step;
        }
        if largest < 1e-10 {
            break;
        }
    }
    weights
}

/// The solution of `matrix x = right`, by elimination; the matrix is positive definite.
fn solve(mut matrix: Vec<Vec<f64>>, mut right: Vec<f64>) -> Vec<f64> {
    let size = right.len();
    for column in 0..size {
        let (above, below) = matrix.split_at_mut(column + 1);
        let pivot = &above[column];
        let (done, rest) = right.split_at_mut(column + 1);
        for (row, right) in below.iter_mut().zip(rest) {
            let factor = row[column] / pivot[column];
            for (entry, of_pivot) in row.iter_mut().zip(pivot).skip(column) {
                *entry -= factor * of_pivot;
            }
            *right -= factor * done[column];
        }
    }
    for row in (0..size).rev() {
        let known: f64 = (row + 1..size).map(|j| matrix[row][j] * right[j]).sum();
        right[row] = (right[row] - known) / matrix[row][row];
    }
    right
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2 x + y = 5 and x + 3 y = 10: x = 1, y = 3.
    #[test]
    fn two_equations_are_solved() {
        let found = solve(vec![vec![2.0, 1.0], vec![1.0, 3.0]], vec![5.0, 10.0]);
        assert!((found[0] - 1.0).abs() < 1e-12 && (found[1] - 3.0).abs() < 1e-12);
    }

    /// At x = 0 half of the outcomes are 1, and at x = 1 three quarters: intercept 0, slope ln 3.
    #[test]
    fn weights_give_the_observed_shares() {
        let at = |x: f64, outcome| Observation {
            features: vec![(0, 1.0), (1, x)],
            outcome,
            weight: 100.0,
        };
        let found = fit(&[at(0.0, 0.5), at(1.0, 0.75)], 2, PRIOR);
        assert!(found[0].abs() < 1e-4, "{found:?}");
        assert!((found[1] - 3f64.ln()).abs() < 1e-4, "{found:?}");
    }

    #[test]
    fn perfect_outcomes_stay_finite() {
        let always = Observation {
            features: vec![(0, 1.0)],
            outcome: 1.0,
            weight: 50.0,
        };
        let found = fit(&[always], 1, PRIOR)[0];
        assert!(found > 8.0 && found < 20.0, "{found}");
        assert_eq!((sigmoid(800.0), sigmoid(-800.0)), (1.0, 0.0));
    }
}
