//! Strengths of policies from comparisons of pairs.

use super::logistic::{Observation, PRIOR, fit};

/// Log-strengths `x` of policies by maximum likelihood, `P(i beats j) = 1 / (1 + exp(x_j - x_i))`, up to a constant.
///
/// `wins[i][j]`: how often `i` beat `j`, a tie counting one half for both. A weak prior keeps a policy that lost or won every time finite.
///
/// # Source
/// Bradley and Terry 1952; Chiang et al. 2024, arXiv:2403.04132, section 4.
pub fn bradley_terry(wins: &[Vec<f64>]) -> Vec<f64> {
    bradley_terry_with(wins, PRIOR)
}

/// As [`bradley_terry`], with the prior `exp(-prior / 2 |x|^2)`: strengths of standard deviation `1 / sqrt(prior)` around zero. The mean of
/// the strengths of those who played is then zero.
pub fn bradley_terry_with(wins: &[Vec<f64>], prior: f64) -> Vec<f64> {
    let mut observations = Vec::new();
    for (i, row) in wins.iter().enumerate() {
        for (j, &won) in row.iter().enumerate().skip(i + 1) {
            let weight = won + wins[j][i];
            if weight > 0.0 {
                observations.push(Observation {
                    features: vec![(i, 1.0), (j, -1.0)],
                    outcome: won / weight,
                    weight,
                });
            }
        }
    }
    fit(&observations, wins.len(), prior)
}

/// Log-strengths as ratings on the scale of Elo, `1000 + 400 (x - x_anchor) / ln 10`: 400 points are odds of ten to one, and the policy
/// `anchor` has 1000.
pub fn elo(strengths: &[f64], anchor: usize) -> Vec<f64> {
    let scale = 400.0 / std::f64::consts::LN_10;
    (strengths.iter())
        .map(|strength| 1000.0 + scale * (strength - strengths[anchor]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three wins in four are odds of three: 400 log10(3) = 190.85 points.
    #[test]
    fn odds_of_three_are_191_points() {
        let wins = [vec![0.0, 25.0], vec![75.0, 0.0]];
        let ratings = elo(&bradley_terry(&wins), 0);
        assert_eq!(ratings[0], 1000.0);
        assert!((ratings[1] - 1_190.848_5).abs() < 0.01, "{ratings:?}");
    }

    /// Strengths 0, ln 2, ln 4 give these shares exactly: 2/3, 4/5 and 2/3.
    #[test]
    fn three_policies_have_the_strengths_that_made_their_wins() {
        let wins = [
            vec![0.0, 100.0, 60.0],
            vec![200.0, 0.0, 100.0],
            vec![240.0, 200.0, 0.0],
        ];
        let x = bradley_terry(&wins);
        assert!((x[1] - x[0] - 2f64.ln()).abs() < 1e-5, "{x:?}");
        assert!((x[2] - x[0] - 4f64.ln()).abs() < 1e-5, "{x:?}");
    }

    #[test]
    fn one_that_always_wins_is_far_above_and_finite() {
        let ratings = elo(&bradley_terry(&[vec![0.0, 30.0], vec![0.0, 0.0]]), 1);
        assert!(ratings[0].is_finite() && ratings[0] > 2000.0, "{ratings:?}");
    }

    /// tests/reference/ratings.py: minorisation-maximisation, and Newton's method with a prior, in numpy.
    #[test]
    fn ratings_are_those_of_another_algorithm() {
        let file = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/reference/ratings/ratings.json"
        );
        let text = std::fs::read_to_string(file).unwrap();
        let reference: serde_json::Value = serde_json::from_str(&text).unwrap();
        let numbers = |value: &serde_json::Value| -> Vec<f64> {
            let all = value.as_array().unwrap().iter();
            all.map(|x| x.as_f64().unwrap()).collect()
        };
        let wins: Vec<Vec<f64>> = (reference["wins"].as_array().unwrap().iter())
            .map(numbers)
            .collect();
        let differ = |found: &[f64], name: &str| {
            let expected = numbers(&reference[name]);
            let differences = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
            differences.fold(0.0, f64::max)
        };
        // With next to no prior the maximum of the likelihood; with the usual one within a thousandth of a point.
        let points = |prior| elo(&bradley_terry_with(&wins, prior), 0);
        assert!(differ(&points(1e-9), "bradley_terry") < 1e-6);
        let usual = differ(&elo(&bradley_terry(&wins), 0), "bradley_terry");
        assert!(usual < 1e-3, "{usual}");
        let held = bradley_terry_with(&wins, reference["prior"].as_f64().unwrap());
        assert!(differ(&held, "with_prior") < 1e-9, "{held:?}");
    }
}
