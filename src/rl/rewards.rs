//! Scores and KL become per-token rewards.

use super::{MissingEos, ResponseLayout};

/// Applies the missing-EOS rule to the scores of responses without EOS.
///
/// `Replace(v)` is the "EOS trick" of lm-human-preferences and N+ (`v = -1`); `Subtract(p)` is TRL's `missing_eos_penalty`.
/// Whether a response has an EOS is known from where it stopped, never by searching for a token id.
///
/// # Shapes
/// - `scores`, `has_eos`: `[rows]`
///
/// # Panics
/// If the lengths differ.
pub fn apply_missing_eos(scores: &mut [f32], has_eos: &[bool], rule: MissingEos) {
    assert_eq!(scores.len(), has_eos.len(), "rows");
    for (score, _) in scores.iter_mut().zip(has_eos).filter(|(_, has)| !**has) {
        match rule {
            MissingEos::Keep => {}
            MissingEos::Replace(value) => *score = value as f32,
            MissingEos::Subtract(penalty) => *score = (f64::from(*score) - penalty) as f32,
        }
    }
}

/// Per-token rewards: `-kl_coef * kl` at each response token, and the score at the row's last value position.
///
/// With [`ResponseLayout::after_eos`] the score of a response that ended early is one position after its EOS, where KL is 0; with
/// [`ResponseLayout::on_last_token`], and for full responses in either layout, KL and score add up on the last token.
///
/// # Shapes
/// - `kl`: `[response tokens]`; `scores`: `[rows]`
/// - returns: `[value positions]`
///
/// # Panics
/// If `kl` or `scores` do not fit the layout.
///
/// # Source
/// arXiv:2403.17031, details 20 to 24; Ziegler et al. 2019, arXiv:1909.08593, eq. 2.
pub fn token_rewards(
    kl: &[f32],
    scores: &[f32],
    kl_coef: f64,
    layout: &ResponseLayout,
) -> Vec<f32> {
    assert_eq!(scores.len(), layout.responses().num_rows(), "rows");
    let penalties: Vec<f32> = (kl.iter())
        .map(|&kl| (-kl_coef * f64::from(kl)) as f32)
        .collect();
    let mut rewards = layout.at_values(&penalties);
    for (position, score) in layout.score_positions().into_iter().zip(scores) {
        rewards[position] += score;
    }
    rewards
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rl::{KlEstimator, gae, kl_per_token};
    use crate::tokens::Segments;

    fn assert_close(got: &[f32], want: &[f32]) {
        assert_eq!(got.len(), want.len());
        for (g, w) in got.iter().zip(want) {
            assert!((g - w).abs() < 1e-6, "{got:?}, expected {want:?}");
        }
    }

    #[test]
    fn missing_eos_rules_replace_or_subtract() {
        let apply = |rule| {
            let mut scores = [2.0, 3.0, -4.0];
            apply_missing_eos(&mut scores, &[true, false, false], rule);
            scores
        };
        assert_eq!(apply(MissingEos::Keep), [2.0, 3.0, -4.0]);
        assert_eq!(apply(MissingEos::Replace(-1.0)), [2.0, -1.0, -1.0]);
        assert_eq!(apply(MissingEos::Subtract(1.0)), [2.0, 2.0, -5.0]);
    }

    #[test]
    fn gae_and_masks_of_the_reference_come_out_packed() {
        // N+ definition, T = 4, EOS at index 1, beta 0.05, score 2, gamma 1, lambda 0.95. Padded, the reference gives
        // rewards [-.025, .01, 2, 0], advantages [1.35275, 1.345, 1.3, 0], returns [1.85275, 1.945, 2, 0].
        let layout = ResponseLayout::after_eos(Segments::from_lens([2]), 4);
        let kl = kl_per_token(KlEstimator::K1, &[-1.0, -2.0], &[-1.5, -1.8]);
        let rewards = token_rewards(&kl, &[2.0], 0.05, &layout);
        assert_close(&rewards, &[-0.025, 0.01, 2.0]);
        let out = gae(&rewards, &[0.5, 0.6, 0.7], layout.values(), 1.0, 0.95);
        assert_close(&out.advantages, &[1.352_75, 1.345, 1.3]);
        assert_close(&out.returns, &[1.852_75, 1.945, 2.0]);
        // The policy loss sees the two response tokens only.
        assert_close(&layout.at_responses(&out.advantages), &[1.352_75, 1.345]);
    }

    #[test]
    fn score_on_the_eos_token_itself() {
        let layout = ResponseLayout::on_last_token(Segments::from_lens([2]));
        let rewards = token_rewards(&[0.5, -0.2], &[2.0], 0.05, &layout);
        assert_close(&rewards, &[-0.025, 2.01]);
        // delta_1 = 2.01 - .6 = 1.41; delta_0 = -.025 + .6 - .5 = .075; A_0 = .075 + .95 * 1.41 = 1.4145.
        let out = gae(&rewards, &[0.5, 0.6], layout.values(), 1.0, 0.95);
        assert_close(&out.advantages, &[1.4145, 1.41]);
        assert_close(&out.returns, &[1.9145, 2.01]);
    }

    #[test]
    fn score_of_a_full_response_is_on_its_last_token() {
        // L + 1 = T: both layouts agree.
        let responses = Segments::from_lens([2]);
        for layout in [
            ResponseLayout::after_eos(responses.clone(), 2),
            ResponseLayout::on_last_token(responses),
        ] {
            let rewards = token_rewards(&[0.5, -0.2], &[2.0], 0.05, &layout);
            assert_close(&rewards, &[-0.025, 2.01]);
        }
    }

    #[test]
    fn rewards_of_a_row_do_not_depend_on_its_neighbours() {
        let layout = ResponseLayout::after_eos(Segments::from_lens([1, 2, 3]), 3);
        let rewards = token_rewards(
            &[1.0, 0.5, -0.2, 1.0, 1.0, 1.0],
            &[7.0, 2.0, 5.0],
            0.05,
            &layout,
        );
        let want = [-0.05, 7.0, -0.025, 0.01, 2.0, -0.05, -0.05, 4.95];
        assert_close(&rewards, &want);
    }
}
