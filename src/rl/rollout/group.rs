//! Baselines from other responses to the same prompt.

use serde::{Deserialize, Serialize};

use crate::rl::{Variance, mean};

/// Scale of a group's advantages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub enum ScaleRewards {
    /// The standard deviation over the group (GRPO).
    #[default]
    #[serde(rename = "group")]
    Group,
    /// The standard deviation over all rewards (TRL; Liu et al. 2025, arXiv:2508.08221).
    #[serde(rename = "batch")]
    Batch,
    /// 1: no bias towards easy or hard prompts (Dr. GRPO).
    #[serde(rename = "none")]
    None,
}

/// Added to standard deviations before division: TRL's.
const EPSILON: f64 = 1e-4;

/// Advantages over the mean of the group, `(r - mean(group)) / (std + 1e-4)`, with the unbiased standard deviation.
///
/// A group of equal rewards has advantages of exactly zero, and no gradient.
///
/// # Shapes
/// - `rewards`: `[rows]`, consecutive groups of `size` responses to one prompt
/// - returns: `[rows]`
///
/// # Panics
/// If `size` does not divide the number of rows, or is 0.
///
/// # Source
/// Shao et al. 2024, arXiv:2402.03300, section 4.1.2 (GRPO); Liu et al. 2025, arXiv:2503.20783 (Dr. GRPO, no scale).
/// Epsilon and divisor `n - 1` are TRL 1.16's.
pub fn group_advantages(rewards: &[f32], size: usize, scale: ScaleRewards) -> Vec<f32> {
    let std = |values: &[f32]| Variance::Unbiased.of(values).sqrt();
    let over_all = std(rewards);
    (groups(rewards, size))
        .flat_map(|group| {
            let mean = mean(group);
            let divisor = match scale {
                ScaleRewards::Group => std(group) + EPSILON,
                ScaleRewards::Batch => over_all + EPSILON,
                ScaleRewards::None => 1.0,
            };
            (group.iter()).map(move |&reward| ((f64::from(reward) - mean) / divisor) as f32)
        })
        .collect()
}

/// Advantages over the mean of the *other* responses of the group, `r_i - (sum of r_j, j != i) / (size - 1)`: an unbiased
/// baseline without a value model.
///
/// # Shapes
/// - as [`group_advantages`]
///
/// # Panics
/// If `size` does not divide the number of rows, or is below 2: a response alone has no others.
///
/// # Source
/// Ahmadian et al. 2024, arXiv:2402.14740, section 2.2 (RLOO); Kool, van Hoof and Welling 2019.
pub fn leave_one_out(rewards: &[f32], size: usize) -> Vec<f32> {
    assert!(
        size > 1,
        "a baseline from others needs at least 2 responses"
    );
    (groups(rewards, size))
        .flat_map(|group| {
            let total: f64 = group.iter().map(|&reward| f64::from(reward)).sum();
            group.iter().map(move |&reward| {
                let others = (total - f64::from(reward)) / (size - 1) as f64;
                (f64::from(reward) - others) as f32
            })
        })
        .collect()
}

/// Rewards less the mean of their group.
///
/// # Shapes and panics
/// As [`group_advantages`].
///
/// # Source
/// Hu 2025, arXiv:2501.03262 (REINFORCE++-baseline).
pub fn less_group_mean(rewards: &[f32], size: usize) -> Vec<f32> {
    group_advantages(rewards, size, ScaleRewards::None)
}

/// Shifts to mean 0 and scales to the unbiased standard deviation 1, `(a - mean) / (std + 1e-4)`, over all of `advantages`.
///
/// # Source
/// TRL 1.16, `normalize_advantages` of RLOO.
pub fn normalised(advantages: &[f32]) -> Vec<f32> {
    let (shift, std) = (
        mean(advantages),
        Variance::Unbiased.of(advantages).sqrt() + EPSILON,
    );
    (advantages.iter())
        .map(|&advantage| ((f64::from(advantage) - shift) / std) as f32)
        .collect()
}

/// Whether the responses of each group have different rewards. `size` divides the number of rows.
///
/// # Panics
/// As [`group_advantages`].
pub fn groups_vary(rewards: &[f32], size: usize) -> Vec<bool> {
    (groups(rewards, size))
        .map(|group| group.iter().any(|reward| *reward != group[0]))
        .collect()
}

fn groups(rewards: &[f32], size: usize) -> std::slice::ChunksExact<'_, f32> {
    assert!(size > 0, "a group has at least one response");
    let rows = rewards.len();
    assert_eq!(rows % size, 0, "{rows} responses in groups of {size}");
    rewards.chunks_exact(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_close(got: &[f32], want: &[f32]) {
        assert_eq!(got.len(), want.len());
        for (g, w) in got.iter().zip(want) {
            assert!((g - w).abs() < 1e-6, "{got:?}, expected {want:?}");
        }
    }

    // Two prompts of four responses, right or wrong, as torch has it: means 0.5 and 0.25; unbiased deviations sqrt(1 / 3) = 0.577350 and
    // sqrt(0.75 / 3) = 0.5; over all eight (mean 0.375) sqrt(1.875 / 7) = 0.517549.
    const REWARDS: [f32; 8] = [1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0];

    #[test]
    fn grpo_scales_by_the_deviation_of_the_group() {
        // 0.5 / 0.577450; 0.25 / 0.5001 and 0.75 / 0.5001.
        let (a, b, c) = (0.865_875_6, 0.499_9, 1.499_700_1);
        let want = [a, -a, -a, a, -b, c, -b, -b];
        assert_close(&group_advantages(&REWARDS, 4, ScaleRewards::Group), &want);
    }

    #[test]
    fn dr_grpo_only_shifts_and_the_batch_scale_is_one_for_all() {
        let shifted = [0.5, -0.5, -0.5, 0.5, -0.25, 0.75, -0.25, -0.25];
        assert_close(&group_advantages(&REWARDS, 4, ScaleRewards::None), &shifted);
        let scaled = shifted.map(|x| x / 0.517_649_2);
        assert_close(&group_advantages(&REWARDS, 4, ScaleRewards::Batch), &scaled);
    }

    #[test]
    fn a_group_of_equal_rewards_has_no_advantage() {
        for scale in [ScaleRewards::Group, ScaleRewards::Batch, ScaleRewards::None] {
            let got = group_advantages(&[0.1, 0.1, 0.1, 7.0, 7.0, 7.0], 3, scale);
            assert_eq!(got, [0.0; 6], "{scale:?}");
            assert_eq!(group_advantages(&[3.0], 1, scale), [0.0]);
        }
    }

    #[test]
    fn rloo_compares_with_the_mean_of_the_others() {
        // Three prompts of four responses, by hand: 1 - (2 + 5 + 8) / 3 = -4, 2 - (1 + 5 + 8) / 3 = -8 / 3, 5 - 11 / 3 and
        // 8 - 8 / 3; a constant added to all four changes nothing.
        let rewards = [1.0, 2.0, 5.0, 8.0, 2.0, 3.0, 6.0, 9.0, 3.0, 4.0, 7.0, 10.0];
        let one = [-4.0, -8.0 / 3.0, 4.0 / 3.0, 16.0 / 3.0];
        assert_close(&leave_one_out(&rewards, 4), &[one, one, one].concat());
        // k / (k - 1) times the plain difference from the mean of all.
        let plain = group_advantages(&REWARDS, 4, ScaleRewards::None);
        let scaled: Vec<f32> = plain.iter().map(|x| x * 4.0 / 3.0).collect();
        assert_close(&leave_one_out(&REWARDS, 4), &scaled);
    }

    #[test]
    fn normalised_advantages_have_deviation_one() {
        // Mean 2, unbiased deviation 1: differences -1, 0, 1 over 1.0001.
        let got = normalised(&[1.0, 2.0, 3.0]);
        assert_close(&got, &[-1.0 / 1.0001, 0.0, 1.0 / 1.0001]);
        assert_eq!(normalised(&[5.0, 5.0]), [0.0, 0.0]);
    }

    #[test]
    fn a_group_varies_if_two_rewards_differ() {
        let rewards = [0.5, 0.5, 0.25, 0.5, 1.0, 1.0];
        assert_eq!(groups_vary(&rewards, 2), [false, true, false]);
    }

    #[test]
    #[should_panic(expected = "7 responses in groups of 4")]
    fn a_group_that_is_not_full_is_a_mistake() {
        let _ = group_advantages(&REWARDS[..7], 4, ScaleRewards::Group);
    }

    #[test]
    #[should_panic(expected = "at least 2")]
    fn one_response_has_no_others() {
        let _ = leave_one_out(&REWARDS, 1);
    }
}
