//! Helpfulness, unless a response is unsafe.

use super::{Completion, RewardSource, columns};
use crate::data::flag;
use crate::error::{Error, Result};
use crate::rl::{Variance, whiten};

/// Llama 2's reward of two reward models.
///
/// `Rc = Rs` for prompts tagged as safety prompts and where `Rs < threshold`, else `Rh`; the score is `whiten(logit(Rc))`. `Rs` and `Rh` are
/// the sigmoid of the two sources' scores, so that `logit(Rc)` is one of these scores itself. Mean and variance are those of the
/// completions that are scored at once: a PPO batch, or the prompts of an evaluation, whose mean score is 0 by that.
///
/// # Source
/// Touvron et al. 2023, arXiv:2307.09288, section 3.2.3: threshold 0.15, chosen for a precision of 0.89 and a recall of 0.55 on its safety test.
pub(super) struct Safest {
    pub(super) helpful: Box<dyn RewardSource>,
    pub(super) safety: Box<dyn RewardSource>,
    pub(super) threshold: f64,
    pub(super) tag: Option<String>,
    pub(super) whiten: bool,
    /// Responses that were whitened one by one.
    pub(super) alone: usize,
}

impl Safest {
    /// Whether the prompt is one whose safety score always counts.
    fn is_tagged(&self, completion: &Completion) -> Result<bool> {
        let Some(tag) = &self.tag else {
            return Ok(false);
        };
        let found = completion.row.get(tag);
        found.and_then(flag).ok_or_else(|| Error::Reward {
            name: "safest".into(),
            message: match found {
                Some(other) => {
                    format!("column {tag:?}: expected true or false, or 1 or 0, found {other}")
                }
                None => format!(
                    "the row has no column {tag:?}; it has {}",
                    columns(&completion.row)
                ),
            },
        })
    }
}

impl RewardSource for Safest {
    fn score(&mut self, completions: &[Completion]) -> Result<Vec<f32>> {
        let helpful = self.helpful.score(completions)?;
        let safety = self.safety.score(completions)?;
        let mut scores = Vec::with_capacity(completions.len());
        for ((completion, helpful), safety) in completions.iter().zip(helpful).zip(safety) {
            let is_safe = 1.0 / (1.0 + (-f64::from(safety)).exp());
            let counts = self.is_tagged(completion)? || is_safe < self.threshold;
            scores.push(if counts { safety } else { helpful });
        }
        if !self.whiten {
            return Ok(scores);
        }
        self.alone += usize::from(scores.len() == 1);
        Ok(whiten(&scores, true, Variance::Biased))
    }

    fn warnings(&self) -> Vec<String> {
        let alone = self.alone;
        let own = (alone > 0).then(|| {
            format!(
                "the reward Safest scored {alone} responses one by one: whitened, each is 0; score several at once, or take `whiten: false`"
            )
        });
        let parts = [&self.helpful, &self.safety];
        let nested = parts.iter().flat_map(|source| source.warnings());
        own.into_iter().chain(nested).collect()
    }

    fn take_messages(&mut self) -> Vec<String> {
        let parts = [&mut self.helpful, &mut self.safety];
        (parts.into_iter())
            .flat_map(|source| source.take_messages())
            .collect()
    }

    fn notes(&self) -> Vec<String> {
        let parts = [&self.helpful, &self.safety];
        parts.iter().flat_map(|source| source.notes()).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::completions;
    use super::*;

    fn source(scores: &'static [f32]) -> Box<dyn RewardSource> {
        Box::new(move |_: &[Completion]| Ok(scores.to_vec()))
    }

    fn safest(safety: &'static [f32]) -> Safest {
        Safest {
            helpful: source(&[1.0, 2.0, 3.0]),
            safety: source(safety),
            threshold: 0.15,
            tag: None,
            whiten: false,
            alone: 0,
        }
    }

    #[test]
    fn what_is_likely_unsafe_has_its_safety_score() {
        // logit(0.15) = ln(0.15 / 0.85) = -1.734601.
        let mut source = safest(&[-1.7347, -1.7345, 5.0]);
        let three = completions(&["a", "b", "c"]);
        assert_eq!(source.score(&three).unwrap(), [-1.7347, 2.0, 3.0]);
        source.threshold = 0.0;
        assert_eq!(source.score(&three).unwrap(), [1.0, 2.0, 3.0]);
    }

    #[test]
    fn a_tagged_prompt_always_has_its_safety_score() {
        let mut source = safest(&[4.0, 5.0, 6.0]);
        source.tag = Some("is_safety".into());
        let mut three = completions(&["a", "b", "c"]);
        for (completion, tag) in three.iter_mut().zip([json!(true), json!(0), json!(1)]) {
            completion.row.insert("is_safety".into(), tag);
        }
        assert_eq!(source.score(&three).unwrap(), [4.0, 2.0, 6.0]);
        three[1].row.insert("is_safety".into(), json!("yes"));
        let message = source.score(&three).unwrap_err().to_string();
        assert_eq!(
            message,
            "reward source safest: column \"is_safety\": expected true or false, or 1 or 0, found \"yes\""
        );
        three[1].row.remove("is_safety");
        let message = source.score(&three).unwrap_err().to_string();
        assert!(
            message.ends_with("the row has no column \"is_safety\"; it has no columns"),
            "{message}"
        );
    }

    #[test]
    fn logits_are_whitened() {
        let mut source = safest(&[-3.0, 5.0, 5.0]);
        source.whiten = true;
        // -3, 2, 3: mean 2/3, variance (9 + 4 + 9) / 3 - 4/9 = 6.888889, deviation 2.624669.
        let got = source.score(&completions(&["a", "b", "c"])).unwrap();
        for (got, want) in got.iter().zip([-1.397_001, 0.508_001, 0.889_001]) {
            assert!((got - want).abs() < 1e-5, "{got}, expected {want}");
        }
        assert!(source.warnings().is_empty());
        let (helpful, safety) = (self::source(&[7.0]), self::source(&[7.0]));
        (source.helpful, source.safety) = (helpful, safety);
        assert_eq!(source.score(&completions(&["a"])).unwrap(), [0.0]);
        assert!(source.warnings()[0].contains("one by one"));
    }
}
