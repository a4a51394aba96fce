//! Epochs over one rollout: minibatches, micro-batches, clipped losses, two optimisers.

use std::sync::Arc;

use burn::backend::Autodiff;

use super::finite;
use super::rollout::Rollout;
use crate::data::micro_batches;
use crate::loss::{policy_loss, value_loss};
use crate::model::{CausalLm, LanguageModel, ScalarModel};
use crate::ops::ModelBackend;
use crate::optim::{AdamW, GradientSum};
use crate::rl::UpdateStats;
use crate::rng::Seed;
use crate::tokens::TokenBatch;
use crate::train::config::PpoConfig;
use crate::train::forward::{floats, host, indices};

/// What is trained.
pub(super) struct Networks<B: ModelBackend> {
    pub(super) policy: LanguageModel<Autodiff<B>>,
    pub(super) value: ScalarModel<Autodiff<B>>,
    pub(super) policy_optim: AdamW<B>,
    pub(super) value_optim: AdamW<B>,
}

/// What one update is done with.
pub(super) struct UpdateConfig<'a> {
    pub(super) ppo: &'a PpoConfig,
    pub(super) policy_lr: f64,
    pub(super) value_lr: f64,
    pub(super) seed: Seed,
}

/// Means over the update.
#[derive(Default)]
pub(super) struct UpdateReport {
    stats: UpdateStats,
    policy_loss: f64,
    value_loss: f64,
    entropy: f64,
    tokens: usize,
    value_positions: usize,
    policy_norm: f64,
    value_norm: f64,
    minibatches: usize,
    /// Largest difference between a log-probability of sampling and of the first, still unchanged, policy pass.
    pub(super) logprob_max_diff: f64,
}

impl UpdateReport {
    pub(super) fn metrics(&self) -> Vec<(&'static str, f64)> {
        let (tokens, values) = (
            self.tokens.max(1) as f64,
            self.value_positions.max(1) as f64,
        );
        let mut metrics = self.stats.metrics().to_vec();
        metrics.extend([
            ("loss/policy_avg", self.policy_loss / tokens),
            ("loss/value_avg", self.value_loss / values),
            ("objective/entropy", self.entropy / tokens),
            (
                "policy/grad_norm",
                self.policy_norm / self.minibatches.max(1) as f64,
            ),
            (
                "value/grad_norm",
                self.value_norm / self.minibatches.max(1) as f64,
            ),
            ("rollout/logprob_max_diff", self.logprob_max_diff),
        ]);
        metrics
    }
}

/// Updates both networks; the error names the quantity that is not finite.
pub(super) fn update<B: ModelBackend>(
    networks: &mut Networks<B>,
    rollout: &Rollout,
    config: &UpdateConfig<'_>,
    device: &B::Device,
) -> Result<UpdateReport, String> {
    let mut report = UpdateReport::default();
    let ppo = config.ppo;
    let size = rollout.rows.len() / ppo.num_mini_batches;
    for epoch in 0..ppo.num_ppo_epochs {
        let order = config
            .seed
            .fork_index(epoch as u64)
            .permutation(rollout.rows.len());
        for minibatch in order.chunks(size) {
            let first = report.minibatches == 0;
            minibatch_step(
                networks,
                rollout,
                minibatch,
                config,
                first,
                &mut report,
                device,
            )?;
        }
    }
    Ok(report)
}

/// One optimiser step of each network. Losses are means over the tokens (value positions) of the whole minibatch, so the
/// split into micro-batches does not matter.
fn minibatch_step<B: ModelBackend>(
    networks: &mut Networks<B>,
    rollout: &Rollout,
    minibatch: &[usize],
    config: &UpdateConfig<'_>,
    first: bool,
    report: &mut UpdateReport,
    device: &B::Device,
) -> Result<(), String> {
    let ppo = config.ppo;
    let lens: Vec<usize> = minibatch
        .iter()
        .map(|&row| rollout.rows[row].len())
        .collect();
    let (mut policy_sum, mut value_sum) =
        (GradientSum::<B>::default(), GradientSum::<B>::default());
    let (mut tokens, mut value_positions) = (0, 0);
    for part in micro_batches(&lens, ppo.micro_batch_tokens) {
        let part: Vec<usize> = part.into_iter().map(|i| minibatch[i]).collect();
        let rows: Vec<&[u32]> = part
            .iter()
            .map(|&row| rollout.rows[row].as_slice())
            .collect();
        let gather = |values: &[Vec<f32>]| -> Vec<f32> {
            part.iter().flat_map(|&row| values[row].clone()).collect()
        };
        let batch = TokenBatch::<Autodiff<B>>::from_rows(&rows, device);
        let starts: Vec<usize> = part
            .iter()
            .zip(batch.segments.iter())
            .map(|(&row, range)| range.start + rollout.query_lens[row] - 1)
            .collect();
        let positions = |values: &[Vec<f32>]| -> Vec<usize> {
            part.iter()
                .zip(&starts)
                .flat_map(|(&row, &start)| start..start + values[row].len())
                .collect()
        };

        let at = positions(&rollout.logprobs);
        let targets: Vec<u32> = part
            .iter()
            .flat_map(|&row| rollout.rows[row][rollout.query_lens[row]..].to_vec())
            .collect();
        let old = gather(&rollout.logprobs);
        let advantages = gather(&rollout.advantages);
        let hidden = networks
            .policy
            .hidden_states(&batch, None, None)
            .select(0, indices(&at, device));
        let (logprobs, entropy) =
            networks
                .policy
                .logprobs(hidden, &Arc::new(targets), ppo.temperature);
        let new = host(logprobs.clone().inner());
        if first {
            let worst = new
                .iter()
                .zip(&old)
                .map(|(a, b)| f64::from((a - b).abs()))
                .fold(0.0, f64::max);
            report.logprob_max_diff = report.logprob_max_diff.max(worst);
        }
        report
            .stats
            .add_policy(&new, &old, &advantages, ppo.cliprange);
        report.entropy += host(entropy.inner())
            .iter()
            .map(|&x| f64::from(x))
            .sum::<f64>();
        let loss = policy_loss(
            logprobs,
            floats(&old, device),
            floats(&advantages, device),
            ppo.cliprange,
        );
        report.policy_loss += finite("policy loss", f64::from(host(loss.clone().inner())[0]))?;
        policy_sum.add::<Autodiff<B>>(&mut networks.policy, &mut loss.backward());
        tokens += new.len();

        let at = positions(&rollout.values);
        let (old, returns) = (gather(&rollout.values), gather(&rollout.returns));
        let values = networks
            .value
            .scores(&batch, Some(indices(&at, device)), None);
        report.stats.add_value(
            &host(values.clone().inner()),
            &old,
            &returns,
            ppo.cliprange_value,
        );
        let loss = value_loss(
            values,
            floats(&old, device),
            floats(&returns, device),
            ppo.cliprange_value,
        );
        report.value_loss += finite("value loss", f64::from(host(loss.clone().inner())[0]))?;
        value_sum.add::<Autodiff<B>>(&mut networks.value, &mut loss.backward());
        value_positions += returns.len();
    }
    let norm = networks.policy_optim.update(
        &mut networks.policy,
        policy_sum,
        tokens as f64,
        config.policy_lr,
    );
    report.policy_norm += finite("policy gradient norm", norm)?;
    // The weight of the value loss enters here: `sum * vf_coef / positions`.
    let count = value_positions as f64 / ppo.vf_coef;
    let norm = networks
        .value_optim
        .update(&mut networks.value, value_sum, count, config.value_lr);
    report.value_norm += finite("value gradient norm", norm)?;
    report.tokens += tokens;
    report.value_positions += value_positions;
    report.minibatches += 1;
    Ok(())
}
