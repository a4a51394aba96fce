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
pub fn sample_token(logits: &[f32], config: &SamplingConfig, u: f64) -> SampledToken {
    let greedy = config.temperature == 0.0;
    let inv_temperature = if greedy {
        1.0
    } else {
        (1.0 / config.temperature) as f32
    };
    let (top, best) = argmax(logits);
    let shifted = |l: f32| (l - best) * inv_temperature;
    // Summed in f64: beside a probability near one, an f32 sum loses the tail of a large vocabulary.
    let sum: f64 = logits.iter().map(|&l| f64::from(shifted(l).exp())).sum();
    let lse = sum.ln();
    let pick = |id: usize| SampledToken {
        id: id as u32,
        logprob: (f64::from(shifted(logits[id])) - lse) as f32,
    };
    if greedy || config.top_k == 1 {
        return pick(top);
    }
    if config.top_k == 0 && config.top_p >= 1.0 {
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
    let total: f64 = kept.iter().map(|(_, logp)| logp.exp()).sum();
    pick(invert(kept.into_iter(), u * total, top))
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
}
