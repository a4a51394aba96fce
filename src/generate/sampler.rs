//! Sampling one token from one row of logits, on the host.

use super::SamplingConfig;

/// A sampled token and its log-probability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampledToken {
    /// Token id.
    pub id: u32,
    /// Nats, under the full distribution at the sampling temperature (1 for greedy decoding), before top-k and top-p: the
    /// quantity that a policy gradient needs.
    pub logprob: f32,
}

/// Samples a token from `logits`, given a uniform number `u` in `[0, 1)`.
///
/// # Source
/// The order is that of transformers: temperature, top-k, top-p of what is left, min-p.
pub fn sample_token(logits: &[f32], config: &SamplingConfig, u: f64) -> SampledToken {
    let greedy = config.temperature == 0.0;
    let (top, best) = argmax(logits);
    let Scale {
        inv_temperature,
        lse,
    } = Scale::of(logits, best, config);
    let shifted = |l: f32| (l - best) * inv_temperature;
    let pick = |id: usize| SampledToken {
        id: id as u32,
        logprob: (f64::from(shifted(logits[id])) - lse) as f32,
    };
    if greedy || config.top_k == 1 {
        return pick(top);
    }
    if config.top_k == 0 && config.top_p >= 1.0 && config.min_p <= 0.0 {
        return pick(invert(
            logits
                .iter()
                .enumerate()
                .map(|(id, &l)| (id, f64::from(shifted(l)) - lse)),
            u,
            top,
        ));
    }
    let mut kept: Vec<(usize, f64)> = logits
        .iter()
        .enumerate()
        .map(|(id, &l)| (id, f64::from(shifted(l)) - lse))
        .collect();
    // Ties go to the lower id, on every backend.
    kept.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if config.top_k > 0 {
        kept.truncate(config.top_k);
    }
    let total: f64 = kept.iter().map(|(_, logp)| logp.exp()).sum();
    if config.top_p < 1.0 {
        let mut sum = 0.0;
        let cut = kept.iter().position(|(_, logp)| {
            sum += logp.exp() / total;
            sum >= config.top_p
        });
        kept.truncate(cut.map_or(kept.len(), |cut| cut + 1));
    }
    if config.min_p > 0.0 {
        // The first is the most probable one, and stays.
        let least = kept[0].1 + config.min_p.ln();
        let cut = kept[1..].iter().position(|(_, logp)| *logp < least);
        kept.truncate(cut.map_or(kept.len(), |cut| cut + 1));
    }
    let total: f64 = kept.iter().map(|(_, logp)| logp.exp()).sum();
    pick(invert(kept.into_iter(), u * total, top))
}

/// [`sample_token`] after the logits of tokens that stand in `seen` already are divided by `penalty` where they are positive and
/// multiplied by it where they are not. The log-probability stays that of the model's own logits.
///
/// # Source
/// Keskar et al. 2019 (CTRL), section 4.1, with the signs of transformers' `RepetitionPenaltyLogitsProcessor`.
pub fn sample_penalised(
    logits: &[f32],
    seen: impl IntoIterator<Item = u32>,
    penalty: f32,
    config: &SamplingConfig,
    u: f64,
) -> SampledToken {
    if penalty == 1.0 {
        return sample_token(logits, config, u);
    }
    let mut penalised = logits.to_vec();
    for id in seen {
        // From the model's logits, so that a token that stands there twice is penalised once.
        let logit = logits[id as usize];
        penalised[id as usize] = match logit < 0.0 {
            true => logit * penalty,
            false => logit / penalty,
        };
    }
    let id = sample_token(&penalised, config, u).id;
    let (_, best) = argmax(logits);
    let scale = Scale::of(logits, best, config);
    let shifted = (logits[id as usize] - best) * scale.inv_temperature;
    SampledToken {
        id,
        logprob: (f64::from(shifted) - scale.lse) as f32,
    }
}

/// What turns logits into log-probabilities: `(logit - best) * inv_temperature - lse`.
struct Scale {
    inv_temperature: f32,
    /// Nats.
    lse: f64,
}

impl Scale {
    fn of(logits: &[f32], best: f32, config: &SamplingConfig) -> Self {
        let inv_temperature = match config.temperature == 0.0 {
            true => 1.0,
            // Finite for the smallest temperature: 0 times it, of the best token, is a number.
            false => ((1.0 / config.temperature) as f32).min(f32::MAX),
        };
        // Summed in f64: beside a probability near one, an f32 sum loses the tail of a large vocabulary.
        let exp = |&l: &f32| f64::from(((l - best) * inv_temperature).exp());
        let sum: f64 = logits.iter().map(exp).sum();
        Self {
            inv_temperature,
            lse: sum.ln(),
        }
    }
}

/// The first token at which the cumulative probability exceeds `u`; `fallback` if rounding keeps the sum below `u`.
fn invert(logprobs: impl Iterator<Item = (usize, f64)>, u: f64, fallback: usize) -> usize {
    let mut cumulative = 0.0;
    for (id, logp) in logprobs {
        cumulative += logp.exp();
        if cumulative > u {
            return id;
        }
    }
    fallback
}

/// The largest logit, and the first token that has it.
fn argmax(logits: &[f32]) -> (usize, f32) {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    (logits.iter().position(|&l| l == best).unwrap_or(0), best)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 4] = [0.0, 2.0, 1.0, -1.0];

    fn config(temperature: f64, top_k: usize, top_p: f64) -> SamplingConfig {
        SamplingConfig {
            temperature,
            top_k,
            top_p,
            min_p: 0.0,
        }
    }

    #[test]
    fn greedy_takes_the_largest_logit() {
        let sampled = sample_token(&LOGITS, &config(0.0, 0, 1.0), 0.999);
        assert_eq!(sampled.id, 1);
        // log softmax: 2 - ln(1 + e^2 + e + e^-1) = -0.440190
        assert!((sampled.logprob + 0.440_190).abs() < 1e-6, "{sampled:?}");
    }

    #[test]
    fn the_cumulative_distribution_is_inverted() {
        // softmax = 0.087144, 0.643914, 0.236883, 0.032059
        let at = |u| sample_token(&LOGITS, &config(1.0, 0, 1.0), u).id;
        assert_eq!(
            [
                at(0.0),
                at(0.087),
                at(0.088),
                at(0.730),
                at(0.732),
                at(0.967),
                at(0.969)
            ],
            [0, 0, 1, 1, 2, 2, 3]
        );
    }

    #[test]
    fn logprobs_are_taken_at_the_temperature() {
        // logits / 0.5 = 0, 4, 2, -2: log softmax of token 1 is 4 - ln(1 + e^4 + e^2 + e^-2) = -0.145078
        let sampled = sample_token(&LOGITS, &config(0.5, 0, 1.0), 0.5);
        assert_eq!(sampled.id, 1);
        assert!((sampled.logprob + 0.145_078).abs() < 1e-5, "{sampled:?}");
    }

    #[test]
    fn the_smallest_temperature_is_greedy() {
        for temperature in [1e-39, 1e-45, 1e-320] {
            let sampled = sample_token(&LOGITS, &config(temperature, 0, 1.0), 0.999);
            assert_eq!((sampled.id, sampled.logprob), (1, 0.0), "{temperature}");
        }
    }

    #[test]
    fn the_tail_of_a_large_vocabulary_counts() {
        // One token at 0 and 150,000 at -16.7: each is below half a unit in the last place of 1, so an f32 sum that starts
        // with the first would stay there. lse = ln(1 + 150,000 e^-16.7) = 0.008_347_6.
        let mut logits = vec![-16.7; 150_001];
        logits[0] = 0.0;
        let sampled = sample_token(&logits, &config(1.0, 0, 1.0), 0.5);
        assert_eq!(sampled.id, 0);
        assert!((sampled.logprob + 0.008_347_6).abs() < 1e-6, "{sampled:?}");
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        assert_eq!(sample_token(&LOGITS, &config(1.0, 2, 1.0), 0.999_999).id, 2);
        assert_eq!(sample_token(&LOGITS, &config(1.0, 0, 0.6), 0.999_999).id, 1);
        // 0.643914 < 0.7: the second token is needed to reach it.
        assert_eq!(sample_token(&LOGITS, &config(1.0, 0, 0.7), 0.999_999).id, 2);
    }

    #[test]
    fn min_p_cuts_what_is_far_less_probable_than_the_best() {
        // Probabilities relative to the best: e^-2 = 0.135, 1, e^-1 = 0.368, e^-3 = 0.050.
        let at = |min_p, u| {
            let config = SamplingConfig {
                min_p,
                ..SamplingConfig::default()
            };
            sample_token(&LOGITS, &config, u).id
        };
        assert_eq!(at(0.04, 0.999_999), 3);
        assert_eq!(at(0.1, 0.999_999), 0);
        assert_eq!(at(0.3, 0.999_999), 2);
        assert_eq!(at(1.0, 0.999_999), 1);
    }

    #[test]
    fn what_was_said_already_is_less_probable() {
        // Token 1 falls from 2 to 0.8, below token 2; token 3 from -1 to -2.5. The log-probability of token 2 is the model's:
        // 1 - ln(1 + e^2 + e + e^-1) = -1.440190.
        let greedy = config(0.0, 0, 1.0);
        let sampled = sample_penalised(&LOGITS, [1, 1, 3], 2.5, &greedy, 0.5);
        assert_eq!(sampled.id, 2);
        assert!((sampled.logprob + 1.440_19).abs() < 1e-6, "{sampled:?}");
        let same = sample_penalised(&LOGITS, [1], 1.0, &greedy, 0.5);
        assert_eq!(same, sample_token(&LOGITS, &greedy, 0.5));
        // Softmax of 0, 0.8, 1, -2.5 is 0.165, 0.368, 0.449, 0.0136: from 0.983 on, the last one.
        let plain = SamplingConfig::default();
        let at = |u| sample_penalised(&LOGITS, [1, 3], 2.5, &plain, u).id;
        assert_eq!(
            [at(0.16), at(0.17), at(0.53), at(0.98), at(0.99)],
            [0, 1, 1, 2, 3]
        );
    }
}
