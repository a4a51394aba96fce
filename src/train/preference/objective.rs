//! The losses of stages that learn from comparisons, on the log-probabilities of a micro-batch.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::MicroBatch;
use crate::host::{floats, indices};
use crate::loss::{
    CpoObjective, DpoObjective, ResponseValues, chosen_tokens, cpo, dpo, orpo, response_sums,
};

/// A loss with its parameters.
#[derive(Debug, Clone)]
pub(in crate::train) enum Objective {
    /// Against a reference policy.
    Dpo(DpoObjective),
    /// The same with `Ipo` of summed log ratios, not of means over tokens: TRL's online form.
    OnlineDpo(DpoObjective),
    /// Without a reference policy.
    Cpo(CpoObjective),
    /// Odds ratios without a reference policy, of this weight.
    Orpo {
        /// The paper's lambda.
        beta: f64,
    },
}

impl Objective {
    /// Whether it needs a reference policy.
    pub(super) fn has_reference(&self) -> bool {
        matches!(self, Self::Dpo(_) | Self::OnlineDpo(_))
    }

    /// Whether it reads the log-probabilities of prompts, too.
    pub(super) fn reads_prompts(&self) -> bool {
        matches!(self, Self::Orpo { .. })
    }

    /// Whether the loss of a pair depends on the other pairs of the step.
    pub(super) fn sorts(&self) -> bool {
        match self {
            Self::Dpo(dpo) | Self::OnlineDpo(dpo) => {
                (dpo.losses.weighted().iter()).any(|(loss, _)| loss.sorts())
            }
            Self::Cpo(_) | Self::Orpo { .. } => false,
        }
    }

    /// Whether the metric `nll_loss` is reported: TRL does where the loss has a term of its own for it.
    pub(super) fn reports_nll(&self) -> bool {
        !self.has_reference()
    }

    /// The loss in the error that it is not finite, with what to change.
    pub(super) fn loss_name(&self) -> &'static str {
        match self {
            Self::Cpo(cpo) if cpo.alpha > 0.0 => {
                "loss (its rewards grow with exp(alpha * nats): lower `alpha`)"
            }
            _ => "loss",
        }
    }

    /// Scale of the implicit rewards.
    pub(super) fn beta(&self) -> f64 {
        match self {
            Self::Dpo(dpo) | Self::OnlineDpo(dpo) => dpo.beta,
            Self::Cpo(cpo) => cpo.beta,
            Self::Orpo { beta } => *beta,
        }
    }

    /// The log-probability of a response that rewards and metrics are taken of: the sum over its `len` tokens or their mean.
    pub(super) fn logp(&self, sum: f64, len: usize) -> f64 {
        let averages = match self {
            Self::Dpo(_) | Self::OnlineDpo(_) => false,
            Self::Cpo(cpo) => cpo.loss_type.averages(),
            Self::Orpo { .. } => true,
        };
        match averages {
            true => sum / len.max(1) as f64,
            false => sum,
        }
    }

    /// The implicit reward of a response, without `beta`, from its [`Objective::logp`] without a reference.
    pub(super) fn reward(&self, logp: f64) -> f64 {
        match self {
            Self::Cpo(cpo) => cpo.reward(logp),
            Self::Dpo(_) | Self::OnlineDpo(_) | Self::Orpo { .. } => logp,
        }
    }

    /// Tokens of chosen responses that its cross-entropy is a mean over, one pair a prompt.
    pub(super) fn chosen_tokens(&self, micro: &MicroBatch<'_>) -> f64 {
        match self.reads_prompts() {
            true => chosen_tokens(&micro.pairs, &micro.row_lens()),
            false => chosen_tokens(&micro.pairs, &micro.lens),
        }
    }

    /// The loss, summed over prompts, of the log-probabilities of [`MicroBatch::packed`]; `prompts_per_token` are the step's prompts by
    /// its [`Objective::chosen_tokens`].
    ///
    /// # Shapes
    /// - `logprobs`: `[tokens]`; `ref_logprobs`: the same, of the reference
    /// - returns: `[1]`
    pub(super) fn loss<B: Backend>(
        &self,
        logprobs: Tensor<B, 1>,
        ref_logprobs: Option<Tensor<B, 1>>,
        micro: &MicroBatch<'_>,
        prompts_per_token: f64,
    ) -> Tensor<B, 1> {
        let sums = match ref_logprobs {
            Some(reference) => ResponseSums {
                logps: response_sums(logprobs - reference.clone(), &micro.lens),
                ref_logps: Some(response_sums(reference, &micro.lens)),
                row_logps: None,
            },
            None => ResponseSums::of(logprobs, micro),
        };
        self.loss_of_sums(sums, micro, prompts_per_token)
    }

    /// The same of numbers on the host, of which there may be many: for held-out rows.
    pub(super) fn held_out_loss<B: Backend>(
        &self,
        logprobs: &[f32],
        ref_logprobs: Option<&[f32]>,
        micro: &MicroBatch<'_>,
        device: &B::Device,
    ) -> Tensor<B, 1> {
        let upload = |sums: Vec<f64>| {
            let sums: Vec<f32> = sums.into_iter().map(|x| x as f32).collect();
            floats::<B>(&sums, device)
        };
        let sums = ResponseSums {
            logps: upload(match ref_logprobs {
                Some(reference) => micro.sums(logprobs.iter().zip(reference).map(|(a, b)| a - b)),
                None => micro.sums(logprobs.iter().copied()),
            }),
            ref_logps: ref_logprobs.map(|reference| upload(micro.sums(reference.iter().copied()))),
            row_logps: (self.reads_prompts()).then(|| upload(micro.row_sums(logprobs))),
        };
        let prompts_per_token = micro.pairs.num_prompts() as f64 / self.chosen_tokens(micro);
        self.loss_of_sums(sums, micro, prompts_per_token)
    }

    fn loss_of_sums<B: Backend>(
        &self,
        sums: ResponseSums<B>,
        micro: &MicroBatch<'_>,
        prompts_per_token: f64,
    ) -> Tensor<B, 1> {
        let ResponseSums {
            logps,
            ref_logps,
            row_logps,
        } = sums;
        let (lens, pairs) = (&micro.lens, &micro.pairs);
        match self {
            Self::Dpo(objective) | Self::OnlineDpo(objective) => {
                let ones = vec![1; lens.len()];
                let values = ResponseValues {
                    log_ratios: logps,
                    ref_logps: ref_logps.expect("DPO has a reference"),
                    lens: match self {
                        Self::OnlineDpo(_) => &ones,
                        _ => lens,
                    },
                    prompts_per_token,
                };
                dpo(&values, pairs, objective)
            }
            Self::Cpo(objective) => cpo(logps, lens, pairs, prompts_per_token, objective),
            Self::Orpo { beta } => {
                let rows = row_logps.unwrap_or_else(|| logps.clone());
                orpo(logps, rows, lens, pairs, prompts_per_token, *beta)
            }
        }
    }
}

/// Sums of log-probabilities over the tokens of each response, `[responses]`, nats.
struct ResponseSums<B: Backend> {
    /// Of the policy; with a reference, of the log ratios to it.
    logps: Tensor<B, 1>,
    ref_logps: Option<Tensor<B, 1>>,
    /// With the prompt's tokens; `None` if these are not read.
    row_logps: Option<Tensor<B, 1>>,
}

impl<B: Backend> ResponseSums<B> {
    /// Without a reference.
    fn of(logprobs: Tensor<B, 1>, micro: &MicroBatch<'_>) -> Self {
        let [tokens] = logprobs.dims();
        let of_responses = micro.num_response_tokens();
        let of_prompts = tokens - of_responses;
        if of_prompts == 0 {
            return Self {
                logps: response_sums(logprobs, &micro.lens),
                ref_logps: None,
                row_logps: None,
            };
        }
        let logps = logprobs.clone().narrow(0, 0, of_responses);
        let logps = response_sums(logps, &micro.lens);
        let prompts = logprobs.narrow(0, of_responses, of_prompts);
        let prompts = response_sums(prompts, &micro.prompt_targets());
        let owners = indices(&micro.owners(), &prompts.device());
        Self {
            row_logps: Some(logps.clone() + prompts.select(0, owners)),
            logps,
            ref_logps: None,
        }
    }
}
