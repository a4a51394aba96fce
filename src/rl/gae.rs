//! Generalised advantage estimation.

use crate::tokens::Segments;

/// Advantages and returns, one per value position.
#[derive(Debug, Clone, PartialEq)]
pub struct Gae {
    /// Before any whitening.
    pub advantages: Vec<f32>,
    /// Targets of the value function: `advantages + values`.
    pub returns: Vec<f32>,
}

/// Generalised advantage estimation, from the end of each row to its start.
///
/// `delta_t = r_t + gamma V_{t+1} - V_t`, `A_t = delta_t + gamma lam A_{t+1}`, with `V` and `A` zero after the row's last
/// position. Returns are taken here, before advantages are whitened.
///
/// # Shapes
/// - `rewards`, `values`: `[value positions]`, rows as in `segments` (see [`super::ResponseLayout::values`])
/// - returns: `[value positions]` each
///
/// # Panics
/// If the lengths differ.
///
/// # Source
/// Schulman et al. 2016, arXiv:1506.02438, eq. 16.
pub fn gae(rewards: &[f32], values: &[f32], segments: &Segments, gamma: f64, lam: f64) -> Gae {
    assert_eq!(rewards.len(), segments.num_tokens(), "value positions");
    assert_eq!(values.len(), segments.num_tokens(), "value positions");
    let mut advantages = vec![0.0; rewards.len()];
    let mut returns = vec![0.0; rewards.len()];
    for row in segments.iter() {
        let (mut next_value, mut next_advantage) = (0.0, 0.0);
        for t in row.rev() {
            let value = f64::from(values[t]);
            let delta = f64::from(rewards[t]) + gamma * next_value - value;
            let advantage = delta + gamma * lam * next_advantage;
            advantages[t] = advantage as f32;
            returns[t] = (advantage + value) as f32;
            (next_value, next_advantage) = (value, advantage);
        }
    }
    Gae {
        advantages,
        returns,
    }
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

    #[test]
    fn gae_at_the_reference_vector_between_other_rows() {
        let segments = Segments::from_lens([1, 3, 0, 2]);
        let rewards = [1.0, -0.025, 0.01, 2.0, 0.0, 1.0];
        let values = [5.0, 0.5, 0.6, 0.7, 0.0, 0.0];
        let out = gae(&rewards, &values, &segments, 1.0, 0.95);
        assert_close(&out.advantages, &[-4.0, 1.352_75, 1.345, 1.3, 0.95, 1.0]);
        assert_close(&out.returns, &[1.0, 1.852_75, 1.945, 2.0, 0.95, 1.0]);
    }

    #[test]
    fn lam_one_gives_discounted_returns_and_lam_zero_the_td_error() {
        let segments = Segments::from_lens([3]);
        let (rewards, values) = ([1.0, 2.0, 4.0], [0.5, 0.25, 2.0]);
        // gamma 0.5: 4; 2 + 2 = 4; 1 + 2 = 3, whatever the values are.
        let out = gae(&rewards, &values, &segments, 0.5, 1.0);
        assert_close(&out.returns, &[3.0, 4.0, 4.0]);
        // r + gamma V' - V: 1 + .125 - .5; 2 + 1 - .25; 4 - 2.
        let out = gae(&rewards, &values, &segments, 0.5, 0.0);
        assert_close(&out.advantages, &[0.625, 2.75, 2.0]);
    }

    #[test]
    fn a_perfect_value_function_leaves_no_advantage() {
        let segments = Segments::from_lens([3, 2]);
        let rewards = [0.0, 0.0, 1.0, 0.5, 0.5];
        let values = [1.0, 1.0, 1.0, 1.0, 0.5];
        let out = gae(&rewards, &values, &segments, 1.0, 0.95);
        assert_close(&out.advantages, &[0.0; 5]);
        assert_close(&out.returns, &values);
    }
}
