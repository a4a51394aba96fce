//! How far annotators agree, beyond chance.

/// How far two values are apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Equal or not.
    Nominal,
    /// By the number of values between them.
    Ordinal,
    /// By the square of their difference.
    Interval,
}

/// Share of equal answers of two annotators to the same questions; `None` without any.
pub(super) fn raw_agreement(pairs: &[(i64, i64)]) -> Option<f64> {
    let equal = pairs.iter().filter(|(a, b)| a == b).count();
    (!pairs.is_empty()).then(|| equal as f64 / pairs.len() as f64)
}

/// Cohen's kappa of two annotators' answers to the same questions, `(p_o - p_e) / (1 - p_e)`: the share `p_o` of equal answers against the
/// share `p_e` that their frequencies give by chance. `None` without questions, or where both always give the same one answer.
///
/// # Source
/// Cohen 1960, "A coefficient of agreement for nominal scales".
pub fn cohens_kappa(pairs: &[(i64, i64)]) -> Option<f64> {
    let observed = raw_agreement(pairs)?;
    let n = pairs.len() as f64;
    let mut values: Vec<i64> = pairs.iter().flat_map(|&(a, b)| [a, b]).collect();
    values.sort_unstable();
    values.dedup();
    let share = |count: usize| count as f64 / n;
    let by_chance: f64 = (values.iter())
        .map(|value| {
            let of_a = pairs.iter().filter(|(a, _)| a == value).count();
            let of_b = pairs.iter().filter(|(_, b)| b == value).count();
            share(of_a) * share(of_b)
        })
        .sum();
    (by_chance < 1.0).then(|| (observed - by_chance) / (1.0 - by_chance))
}

/// Krippendorff's alpha, `1 - D_o / D_e`: the differences of answers to the same question against those of all answers. `units` holds
/// the answers to each question, of any number of annotators; questions with one answer do not count. `None` without
/// two answers to a question, or where all answers are equal.
///
/// # Source
/// Krippendorff 2011, "Computing Krippendorff's alpha-reliability".
pub fn krippendorffs_alpha(units: &[Vec<f64>], scale: Scale) -> Option<f64> {
    let units: Vec<&Vec<f64>> = units.iter().filter(|unit| unit.len() > 1).collect();
    let mut values: Vec<f64> = units.iter().flat_map(|unit| unit.iter().copied()).collect();
    values.sort_by(f64::total_cmp);
    values.dedup();
    let index = |value: f64| values.partition_point(|other| *other < value);
    let mut coincidences = vec![vec![0.0; values.len()]; values.len()];
    for unit in &units {
        let weight = 1.0 / (unit.len() - 1) as f64;
        for (i, &a) in unit.iter().enumerate() {
            for (j, &b) in unit.iter().enumerate() {
                if i != j {
                    coincidences[index(a)][index(b)] += weight;
                }
            }
        }
    }
    let totals: Vec<f64> = coincidences.iter().map(|row| row.iter().sum()).collect();
    let n: f64 = totals.iter().sum();
    let distance = |a: usize, b: usize| -> f64 {
        match scale {
            Scale::Nominal => f64::from(u8::from(a != b)),
            Scale::Interval => (values[a] - values[b]).powi(2),
            Scale::Ordinal => {
                let (low, high) = (a.min(b), a.max(b));
                let between: f64 = totals[low..=high].iter().sum();
                (between - (totals[a] + totals[b]) / 2.0).powi(2)
            }
        }
    };
    let (mut observed, mut expected) = (0.0, 0.0);
    for a in 0..values.len() {
        for b in 0..values.len() {
            if a != b {
                observed += coincidences[a][b] * distance(a, b);
                expected += totals[a] * totals[b] * distance(a, b);
            }
        }
    }
    (expected > 0.0).then(|| 1.0 - (n - 1.0) * observed / expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four observers and twelve units, Krippendorff 2011, section D; 0 is a missing value. The paper gives alpha as 0.743 (nominal),
    /// 0.815 (ordinal) and 0.849 (interval); the package krippendorff 0.9.0 gives the digits here.
    #[test]
    fn alpha_is_that_of_the_paper() {
        let observers: [[u8; 12]; 4] = [
            [1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0],
            [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3],
            [0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0],
            [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0],
        ];
        let of_unit = |unit: usize| {
            observers
                .iter()
                .map(|of| of[unit])
                .filter(|value| *value > 0)
                .map(f64::from)
                .collect()
        };
        let units: Vec<Vec<f64>> = (0..12).map(of_unit).collect();
        for (scale, expected) in [
            (Scale::Nominal, 0.743_421_052_631_579),
            (Scale::Ordinal, 0.815_387_503_754_881_4),
            (Scale::Interval, 0.849_107_142_857_142_7),
        ] {
            let alpha = krippendorffs_alpha(&units, scale).unwrap();
            assert!((alpha - expected).abs() < 1e-9, "{scale:?}: {alpha}");
        }
        assert_eq!(
            krippendorffs_alpha(&[vec![1.0], vec![2.0]], Scale::Nominal),
            None
        );
        assert_eq!(krippendorffs_alpha(&[vec![1.0, 1.0]], Scale::Nominal), None);
    }

    /// Fifty grants, read by two: both yes 20, both no 15, yes and no 5, no and yes 10. p_o = 0.7,
    /// p_e = 0.5 * 0.6 + 0.5 * 0.4 = 0.5, so kappa = 0.4.
    #[test]
    fn kappa_of_fifty_grants_is_two_fifths() {
        let cells = [((1, 1), 20), ((0, 0), 15), ((1, 0), 5), ((0, 1), 10)];
        let pairs: Vec<(i64, i64)> = cells
            .into_iter()
            .flat_map(|(pair, n)| std::iter::repeat_n(pair, n))
            .collect();
        assert!((cohens_kappa(&pairs).unwrap() - 0.4).abs() < 1e-12);
        assert!((raw_agreement(&pairs).unwrap() - 0.7).abs() < 1e-12);
        assert_eq!(cohens_kappa(&[]), None);
        assert_eq!(cohens_kappa(&[(1, 1), (1, 1)]), None);
        // Three answers, scikit-learn 1.9.1: cohen_kappa_score([-1,0,1,1,0,-1], [-1,1,1,1,0,0]).
        let three = [(-1, -1), (0, 1), (1, 1), (1, 1), (0, 0), (-1, 0)];
        assert!((cohens_kappa(&three).unwrap() - 0.5).abs() < 1e-12);
    }
}
