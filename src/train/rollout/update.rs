//! The update: epochs over one rollout in minibatches, micro-batches and optimiser steps.

use super::micro_batch::MicroBatch;
use super::networks::Networks;
use super::ptx::Ptx;
use super::report::{MinibatchReport, UpdateReport};
use super::shared_queries::step_passes;
use super::value::{ValueFunction, WithHead};
use super::{PassSettings, Rollout, ValueTargets};
use crate::guard;
use crate::ops::ModelBackend;
use crate::optim::GradientSum;
use crate::rl::rollout::{LossMean, MinibatchSize, Objective, RatioLevel};
use crate::train::shared::{Accumulator, NonFinite, optimise};

/// Settings of the policy's update.
#[derive(Debug, Clone, Copy)]
pub struct PolicyUpdate {
    /// The objective that is maximised.
    pub objective: Objective,
    /// What the objective's probability ratio is a ratio of.
    pub ratio: RatioLevel,
    /// Whether a KL term in the loss is multiplied by the probability ratio: its gradient is then that of `KL(policy || reference)`.
    ///
    /// # Source
    /// DeepSeek-AI 2025, arXiv:2512.02556, section 3.1; TRL's `use_bias_correction_kl`.
    pub kl_bias_correction: bool,
    /// What the loss is averaged over.
    pub mean: LossMean,
    /// Temperature of the log-probabilities: that of generation.
    pub temperature: f64,
    /// Learning rate.
    pub lr: f64,
}

/// Settings of the value function's update.
#[derive(Debug, Clone, Copy)]
pub struct ValueUpdate {
    /// Clip range around the values of the rollout.
    pub cliprange_value: f64,
    /// Coefficient of the value loss.
    pub vf_coef: f64,
    /// Learning rate of a separate network.
    pub lr: f64,
}

/// Settings of one update.
#[derive(Debug, Clone, Copy)]
pub struct UpdateSettings<'a> {
    /// Optimiser steps of an epoch.
    pub num_mini_batches: usize,
    /// Tokens per pass, and recomputation.
    pub passes: PassSettings,
    /// Settings of the policy.
    pub policy: PolicyUpdate,
    /// Settings of the value function, if there is one.
    pub value: Option<ValueUpdate>,
    /// Pre-training text to mix in.
    pub ptx: Option<Ptx<'a>>,
}

/// Updates policy and value function: one pass over the rollout for each of `orders` (see
/// [`minibatch_orders`](super::minibatch_orders)), in `num_mini_batches` optimiser steps.
///
/// # Errors
/// [`NonFinite`] at the first loss or norm that is not finite.
///
/// # Panics
/// If an order names a row that the rollout does not have, or there is a value function without targets or settings.
///
/// # Source
/// arXiv:2403.17031, details 29 to 32. Where its code averages the means of micro-batches, the losses here are means over the
/// positions of the whole minibatch, so that the split into micro-batches changes nothing.
pub fn update<B: ModelBackend>(
    networks: &mut Networks<B>,
    rollout: &Rollout,
    orders: &[Vec<usize>],
    settings: &UpdateSettings<'_>,
    device: &B::Device,
) -> Result<UpdateReport, NonFinite> {
    let _lock = guard::lock_gradients();
    let mut report = UpdateReport::default();
    for order in orders {
        let size = (order.len() / settings.num_mini_batches).max(1);
        for rows in order.chunks(size) {
            let minibatch = Minibatch { rollout, rows };
            minibatch.step(networks, settings, &mut report, device)?;
        }
    }
    Ok(report)
}

/// The rows of one minibatch.
struct Minibatch<'a> {
    rollout: &'a Rollout,
    rows: &'a [usize],
}

/// The value function of an update with its targets.
struct Critic<'a, B: ModelBackend> {
    function: &'a mut ValueFunction<B>,
    targets: &'a ValueTargets,
    settings: &'a ValueUpdate,
}

impl<'a> Minibatch<'a> {
    fn critic<B: ModelBackend>(
        &self,
        function: Option<&'a mut ValueFunction<B>>,
        settings: &'a UpdateSettings<'_>,
    ) -> Option<Critic<'a, B>> {
        function.map(|function| Critic {
            function,
            targets: (self.rollout.targets.as_ref()).expect("targets of the value function"),
            settings: (settings.value.as_ref()).expect("settings of the value function"),
        })
    }

    /// One optimiser step of policy and value function.
    fn step<B: ModelBackend>(
        &self,
        networks: &'a mut Networks<B>,
        settings: &'a UpdateSettings<'_>,
        report: &mut UpdateReport,
        device: &B::Device,
    ) -> Result<(), NonFinite> {
        let samples = &self.rollout.samples;
        let layout = samples.layout.select(self.rows);
        let tokens = self.rollout.trained_tokens(self.rows.iter().copied());
        let minibatches = settings.num_mini_batches as f64;
        let count = settings.policy.mean.count(MinibatchSize {
            rows: self.rows.len(),
            tokens,
            tokens_of_rollout: self.rollout.trained_tokens(0..samples.rows.len()) as f64
                / minibatches,
        });
        let values = layout.values().num_tokens() as f64;
        let Networks {
            policy,
            policy_optim,
            value,
        } = networks;
        let mut critic = self.critic(value.as_mut(), settings);
        let parts = step_passes(
            &samples.row_slices(),
            &samples.query_lens,
            self.rows,
            settings.passes.micro_batch_tokens,
            settings.passes.share_prompts,
        );
        let (mut sum, mut value_sum) = (Accumulator::default(), GradientSum::default());
        let mut micros = Vec::new();
        for (place, groups) in parts.all().iter().enumerate() {
            let mut micro = MicroBatch::new(self.rollout, groups, settings, device);
            if !parts.has(place) {
                micros.push(micro);
                continue;
            }
            micro.upload_rows(groups);
            match &mut critic {
                None => micro.policy(policy, &mut sum),
                Some(critic) => match critic.function {
                    ValueFunction::Network { model, .. } => {
                        micro.policy(policy, &mut sum);
                        let numbers = &mut sum.numbers;
                        let (targets, settings) = (critic.targets, critic.settings);
                        micro.value(model, targets, settings, &mut value_sum, numbers);
                    }
                    ValueFunction::Head(head) => {
                        let weight = critic.settings.vf_coef * count / values;
                        let mut both = WithHead { policy, head };
                        let (targets, settings) = (critic.targets, critic.settings);
                        micro.both(&mut both, targets, settings, weight, &mut sum);
                    }
                },
            }
            micros.push(micro);
        }

        let mut done = MinibatchReport::default();
        let mut numbers = sum.read_numbers();
        let is_first = report.minibatches.is_empty();
        for micro in &micros {
            let change = micro.report_policy(&mut numbers, &mut done)?;
            if is_first {
                report.logprob_max_diff = report.logprob_max_diff.max(change);
            }
            if let Some(critic) = &critic {
                let (targets, settings) = (critic.targets, critic.settings);
                micro.report_value(targets, settings, &mut numbers, &mut done)?;
            }
        }
        let mut policy_sum = sum.gradients;
        if let Some(ptx) = settings.ptx {
            let step = report.minibatches.len();
            let loss = ptx.add(
                step,
                policy,
                &mut policy_sum,
                count,
                settings.passes,
                device,
            )?;
            done.ptx_loss = Some(loss);
        }

        let lr = settings.policy.lr;
        done.policy_grad_norm = match &mut critic {
            Some(Critic {
                function: ValueFunction::Head(head),
                ..
            }) => {
                let mut both = WithHead { policy, head };
                optimise(&mut both, policy_optim, policy_sum, count, lr)?
            }
            _ => optimise(policy, policy_optim, policy_sum, count, lr)?,
        };
        if let Some(critic) = critic
            && let ValueFunction::Network { model, optim } = critic.function
        {
            // `vf_coef` enters here: `sum * vf_coef / positions`.
            let divisor = values / critic.settings.vf_coef;
            let norm = optimise(model, optim, value_sum, divisor, critic.settings.lr);
            let norm = norm.map_err(|_| NonFinite("gradient norm of the value network"))?;
            done.value_grad_norm = Some(norm);
        }
        done.policy_loss /= count;
        done.kl_loss = done.kl_loss.map(|kl| kl / count);
        done.entropy /= tokens.max(1) as f64;
        done.value_loss /= values;
        report.minibatches.push(done);
        Ok(())
    }
}
