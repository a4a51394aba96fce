//! Epochs over one rollout: minibatches, micro-batches, clipped losses, optimisers.

use std::sync::Arc;

use burn::backend::Autodiff;
use burn::tensor::Tensor;

use super::ptx::Ptx;
use super::rollout::Rollout;
use super::value::{ValueFunction, WithHead};
use crate::data::micro_batches;
use crate::guard;
use crate::host::{Later, floats, indices};
use crate::loss::{kl_loss, policy_loss, value_loss};
use crate::model::{CausalLm, LanguageModel, ScalarModel, Tape, Trained};
use crate::ops::ModelBackend;
use crate::optim::{AdamW, GradientSum};
use crate::rl::{KlIn, UpdateStats};
use crate::rng::Seed;
use crate::tokens::{Segments, TokenBatch};
use crate::train::config::PpoConfig;
use crate::train::shared::{NonFinite, finite, optimise};

/// What is trained.
#[derive(Debug)]
pub struct Networks<B: ModelBackend> {
    /// The policy.
    pub policy: LanguageModel<Autodiff<B>>,
    /// The value function.
    pub value: ValueFunction<B>,
    /// The policy's optimiser, and that of a value head.
    pub policy_optim: AdamW<B>,
}

/// What one update is done with.
#[derive(Debug, Clone, Copy)]
pub struct UpdateSettings<'a> {
    /// Clips, weights, temperature, number of minibatches, tokens per forward pass.
    pub ppo: &'a PpoConfig,
    /// Learning rate of the policy.
    pub policy_lr: f64,
    /// Learning rate of the value network.
    pub value_lr: f64,
    /// Pre-training text to mix in.
    pub ptx: Option<Ptx<'a>>,
}

/// One minibatch, before its optimiser steps. Means are over all its positions that count.
#[derive(Debug, Clone, Default)]
pub struct MinibatchReport {
    /// Sums over tokens and value positions.
    pub stats: UpdateStats,
    /// Clipped policy loss, mean over response tokens.
    pub policy_loss: f64,
    /// Clipped value loss with its factor 0.5 and without `vf_coef`, mean over value positions.
    pub value_loss: f64,
    /// KL term of the loss before its weight, nats per response token, if it is there.
    pub kl_loss: Option<f64>,
    /// Nats per response token.
    pub entropy: f64,
    /// Cross-entropy of the pre-training text, nats per token, if there is any.
    pub ptx_loss: Option<f64>,
    /// Response tokens.
    pub num_tokens: usize,
    /// Value positions.
    pub num_values: usize,
    /// Norm of the policy's gradient before clipping; with a value head that of both, `vf_coef` included.
    pub policy_grad_norm: f64,
    /// Norm of a value network's gradient, `vf_coef` included, before clipping.
    pub value_grad_norm: Option<f64>,
}

/// All minibatches of an update.
#[derive(Debug, Clone, Default)]
pub struct UpdateReport {
    /// In the order of their steps.
    pub minibatches: Vec<MinibatchReport>,
    /// Largest difference in nats between a log-probability of sampling and of the first minibatch's policy pass, which
    /// is done with the weights that drew: the error of having two programs, one with a cache and one without.
    pub logprob_max_diff: f64,
}

impl UpdateReport {
    /// What `metrics.jsonl` says of the update: means over tokens (value positions), norms over minibatches.
    pub fn metrics(&self) -> Vec<(&'static str, f64)> {
        let mut stats = UpdateStats::default();
        let (mut tokens, mut values) = (0, 0);
        let (mut policy_loss, mut value_loss, mut entropy) = (0.0, 0.0, 0.0);
        for part in &self.minibatches {
            stats.merge(&part.stats);
            tokens += part.num_tokens;
            values += part.num_values;
            policy_loss += part.policy_loss * part.num_tokens as f64;
            value_loss += part.value_loss * part.num_values as f64;
            entropy += part.entropy * part.num_tokens as f64;
        }
        let (tokens, values) = (tokens.max(1) as f64, values.max(1) as f64);
        let norm = |of: fn(&MinibatchReport) -> Option<f64>| {
            let norms = self.minibatches.iter().filter_map(of);
            norms.sum::<f64>() / self.minibatches.len().max(1) as f64
        };
        let mut metrics = stats.metrics().to_vec();
        let kl = (self.minibatches.iter())
            .filter_map(|part| Some(part.kl_loss? * part.num_tokens as f64))
            .reduce(|a, b| a + b);
        metrics.extend(kl.map(|kl| ("loss/kl_avg", kl / tokens)));
        let texts: Vec<f64> = (self.minibatches.iter())
            .filter_map(|part| part.ptx_loss)
            .collect();
        if !texts.is_empty() {
            let mean = texts.iter().sum::<f64>() / texts.len() as f64;
            metrics.push(("loss/ptx_avg", mean));
        }
        metrics.extend([
            ("loss/policy_avg", policy_loss / tokens),
            ("loss/value_avg", value_loss / values),
            ("objective/entropy", entropy / tokens),
            ("policy/grad_norm", norm(|part| Some(part.policy_grad_norm))),
        ]);
        if self
            .minibatches
            .iter()
            .any(|part| part.value_grad_norm.is_some())
        {
            metrics.push(("value/grad_norm", norm(|part| part.value_grad_norm)));
        }
        metrics.push(("rollout/logprob_max_diff", self.logprob_max_diff));
        metrics
    }
}

/// A fresh order of the rollout's rows for each epoch.
pub fn minibatch_orders(seed: Seed, num_rows: usize, num_epochs: usize) -> Vec<Vec<usize>> {
    (0..num_epochs as u64)
        .map(|epoch| seed.fork_index(epoch).permutation(num_rows))
        .collect()
}

/// Updates policy and value function: one pass over the rollout for each of `orders` (see [`minibatch_orders`]), in
/// `num_mini_batches` optimiser steps.
///
/// # Errors
/// [`NonFinite`] at the first loss or norm that is not finite.
///
/// # Panics
/// If an order names a row that the rollout does not have.
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
    let _turn = guard::gradients();
    let mut report = UpdateReport::default();
    for order in orders {
        let size = (order.len() / settings.ppo.num_mini_batches).max(1);
        for rows in order.chunks(size) {
            let minibatch = Minibatch { rollout, rows };
            minibatch.step(networks, settings, &mut report, device)?;
        }
    }
    Ok(report)
}

/// Some rows of a rollout.
struct Minibatch<'a> {
    rollout: &'a Rollout,
    rows: &'a [usize],
}

/// Rows of a minibatch that go through the models together.
struct MicroBatch<B: ModelBackend> {
    batch: TokenBatch<Autodiff<B>>,
    /// Row of the rollout, and its query's last token in the batch.
    rows: Vec<(usize, usize)>,
}

impl<B: ModelBackend> MicroBatch<B> {
    fn new(rollout: &Rollout, rows: &[usize], device: &B::Device) -> Self {
        let slices: Vec<&[u32]> = rows.iter().map(|&row| &*rollout.rows[row]).collect();
        let batch = TokenBatch::from_rows(&slices, device);
        let rows = rows
            .iter()
            .zip(batch.segments.iter())
            .map(|(&row, range)| (row, range.start + rollout.query_lens[row] - 1))
            .collect();
        Self { batch, rows }
    }

    /// Positions in the batch of what `segments` counts, each row's from its query's last token on.
    fn positions(&self, segments: &Segments) -> Vec<usize> {
        (self.rows.iter())
            .flat_map(|&(row, start)| start..start + segments.row_len(row))
            .collect()
    }

    /// An array of the rollout at these rows.
    fn gather(&self, values: &[f32], segments: &Segments) -> Vec<f32> {
        (self.rows.iter())
            .flat_map(|&(row, _)| &values[segments.range(row)])
            .copied()
            .collect()
    }
}

impl Minibatch<'_> {
    /// Response tokens of all rows.
    fn num_tokens(&self) -> f64 {
        let responses = self.rollout.layout.responses();
        let lens = self.rows.iter().map(|&row| responses.row_len(row));
        lens.sum::<usize>() as f64
    }

    /// Value positions of all rows.
    fn num_values(&self) -> f64 {
        let places = self.rollout.layout.values();
        let lens = self.rows.iter().map(|&row| places.row_len(row));
        lens.sum::<usize>() as f64
    }

    /// One optimiser step of policy and value function.
    fn step<B: ModelBackend>(
        &self,
        networks: &mut Networks<B>,
        settings: &UpdateSettings<'_>,
        report: &mut UpdateReport,
        device: &B::Device,
    ) -> Result<(), NonFinite> {
        let (rollout, ppo) = (self.rollout, settings.ppo);
        let lens: Vec<usize> = (self.rows.iter())
            .map(|&row| rollout.rows[row].len())
            .collect();
        let mut sums = (GradientSum::<B>::default(), GradientSum::<B>::default());
        let (mut later, mut micros) = (Later::default(), Vec::new());
        for part in micro_batches(&lens, ppo.micro_batch_tokens) {
            let rows: Vec<usize> = part.into_iter().map(|i| self.rows[i]).collect();
            let micro = MicroBatch::<B>::new(rollout, &rows, device);
            let Networks { policy, value, .. } = &mut *networks;
            match value {
                ValueFunction::Network { model, .. } => {
                    micro.policy(policy, rollout, ppo, &mut sums.0, &mut later, device);
                    micro.value(model, rollout, ppo, &mut sums.1, &mut later, device);
                }
                ValueFunction::Head(head) => {
                    let weight = ppo.vf_coef * self.num_tokens() / self.num_values();
                    let mut both = WithHead { policy, head };
                    micro.both(
                        &mut both,
                        rollout,
                        ppo,
                        weight,
                        &mut sums.0,
                        &mut later,
                        device,
                    );
                }
            }
            micros.push(micro);
        }
        let mut done = MinibatchReport::default();
        let mut numbers = later.read();
        for micro in &micros {
            let worst = micro.report_policy(rollout, ppo, &mut numbers, &mut done)?;
            if report.minibatches.is_empty() {
                report.logprob_max_diff = report.logprob_max_diff.max(worst);
            }
            micro.report_value(rollout, ppo, &mut numbers, &mut done)?;
        }
        let (tokens, values) = (done.num_tokens as f64, done.num_values as f64);
        let (mut policy_sum, value_sum) = sums;
        if let Some(ptx) = settings.ptx {
            let step = report.minibatches.len();
            let policy = &mut networks.policy;
            done.ptx_loss = Some(ptx.add(step, policy, &mut policy_sum, tokens, ppo, device)?);
        }
        let Networks {
            policy,
            value,
            policy_optim: optim,
        } = networks;
        let lr = settings.policy_lr;
        done.policy_grad_norm = match value {
            ValueFunction::Network { .. } => optimise(policy, optim, policy_sum, tokens, lr)?,
            ValueFunction::Head(head) => {
                let mut both = WithHead { policy, head };
                optimise(&mut both, optim, policy_sum, tokens, lr)?
            }
        };
        if let ValueFunction::Network { model, optim } = value {
            // The weight of the value loss enters here: `sum * vf_coef / positions`.
            let divisor = values / ppo.vf_coef;
            let norm = optimise(model, optim, value_sum, divisor, settings.value_lr)?;
            done.value_grad_norm = Some(norm);
        }
        done.policy_loss /= tokens;
        done.kl_loss = done.kl_loss.map(|kl| kl / tokens);
        done.entropy /= tokens;
        done.value_loss /= values;
        report.minibatches.push(done);
        Ok(())
    }
}

impl<B: ModelBackend> MicroBatch<B> {
    /// The states of `model` at these places, and the way back.
    fn states<M: Trained<B>>(
        &self,
        model: &M,
        places: &Segments,
        ppo: &PpoConfig,
        device: &B::Device,
    ) -> (Tensor<Autodiff<B>, 2>, Tape<B>) {
        let at = Some(indices(&self.positions(places), device));
        let (batch, checkpointing) = (self.batch.clone(), ppo.gradient_checkpointing);
        Tape::states_at(model, batch, at, None, checkpointing)
    }

    /// Adds the policy's gradients, and keeps what [`MicroBatch::report_policy`] reads.
    fn policy(
        &self,
        policy: &mut LanguageModel<Autodiff<B>>,
        rollout: &Rollout,
        ppo: &PpoConfig,
        sum: &mut GradientSum<B>,
        later: &mut Later<B>,
        device: &B::Device,
    ) {
        let (states, tape) = self.states(policy, rollout.layout.responses(), ppo, device);
        let loss = self.policy_loss(policy, states, rollout, ppo, later, device);
        tape.backward(&loss, policy, sum);
    }

    /// Adds the value network's gradients, and keeps what [`MicroBatch::report_value`] reads.
    fn value(
        &self,
        value: &mut ScalarModel<Autodiff<B>>,
        rollout: &Rollout,
        ppo: &PpoConfig,
        sum: &mut GradientSum<B>,
        later: &mut Later<B>,
        device: &B::Device,
    ) {
        let (states, tape) = self.states(value, rollout.layout.values(), ppo, device);
        let loss = self.value_loss(value.scores_of(states), rollout, ppo, later, device);
        tape.backward(&loss, value, sum);
    }

    /// The same for a value head on the policy, in one pass: the gradient of the sums `policy loss + weight * value loss`.
    #[allow(clippy::too_many_arguments)]
    fn both(
        &self,
        model: &mut WithHead<'_, B>,
        rollout: &Rollout,
        ppo: &PpoConfig,
        weight: f64,
        sum: &mut GradientSum<B>,
        later: &mut Later<B>,
        device: &B::Device,
    ) {
        let (places, responses) = (rollout.layout.values(), rollout.layout.responses());
        let (states, tape) = self.states(model, places, ppo, device);
        // Each row's responses stand at the first of its value positions.
        let (mut chosen, mut start) = (Vec::new(), 0);
        for &(row, _) in &self.rows {
            chosen.extend(start..start + responses.row_len(row));
            start += places.row_len(row);
        }
        let at_responses = states.clone().select(0, indices(&chosen, device));
        let policy_loss = self.policy_loss(model.policy, at_responses, rollout, ppo, later, device);
        let values = model.head.values(states);
        let value_loss = self.value_loss(values, rollout, ppo, later, device);
        tape.backward(&(policy_loss + value_loss * weight), model, sum);
    }

    /// The policy's summed loss, `[1]`, from its states at the responses.
    fn policy_loss(
        &self,
        policy: &LanguageModel<Autodiff<B>>,
        states: Tensor<Autodiff<B>, 2>,
        rollout: &Rollout,
        ppo: &PpoConfig,
        later: &mut Later<B>,
        device: &B::Device,
    ) -> Tensor<Autodiff<B>, 1> {
        let responses = rollout.layout.responses();
        let targets: Vec<u32> = (self.rows.iter())
            .flat_map(|&(row, _)| &rollout.rows[row][rollout.query_lens[row]..])
            .copied()
            .collect();
        let temperature = super::logprob_temperature(ppo);
        let (logprobs, entropy) = policy.logprobs(states, &Arc::new(targets), temperature);
        later.push(logprobs.clone().inner());
        later.push(entropy.inner());
        let mut loss = policy_loss(
            logprobs.clone(),
            floats(&self.gather(&rollout.logprobs, responses), device),
            floats(&self.gather(&rollout.advantages, responses), device),
            ppo.cliprange,
        );
        later.push(loss.clone().inner());
        if rollout.kl_in == KlIn::Loss {
            let reference = floats(&self.gather(&rollout.ref_logprobs, responses), device);
            let kl = kl_loss(logprobs, reference, ppo.kl_estimator);
            later.push(kl.clone().inner());
            loss = loss + kl * rollout.kl_coef;
        }
        loss
    }

    /// The value function's summed loss, `[1]`, without its weight.
    fn value_loss(
        &self,
        values: Tensor<Autodiff<B>, 1>,
        rollout: &Rollout,
        ppo: &PpoConfig,
        later: &mut Later<B>,
        device: &B::Device,
    ) -> Tensor<Autodiff<B>, 1> {
        let places = rollout.layout.values();
        later.push(values.clone().inner());
        let loss = value_loss(
            values,
            floats(&self.gather(&rollout.values, places), device),
            floats(&self.gather(&rollout.returns, places), device),
            ppo.cliprange_value,
        );
        later.push(loss.clone().inner());
        loss
    }

    /// Adds the policy's sums of loss and entropy, and statistics, to `done`; returns the largest change of a
    /// log-probability since the rollout.
    fn report_policy(
        &self,
        rollout: &Rollout,
        ppo: &PpoConfig,
        numbers: &mut impl Iterator<Item = Vec<f32>>,
        done: &mut MinibatchReport,
    ) -> Result<f64, NonFinite> {
        let mut next = || numbers.next().expect("all that was kept");
        let (new, entropy, loss) = (next(), next(), next());
        done.policy_loss += finite("policy loss", f64::from(loss[0]))?;
        if rollout.kl_in == KlIn::Loss {
            let kl = finite("KL loss", f64::from(next()[0]))?;
            *done.kl_loss.get_or_insert_default() += kl;
        }
        let responses = rollout.layout.responses();
        let old = self.gather(&rollout.logprobs, responses);
        let advantages = self.gather(&rollout.advantages, responses);
        done.stats
            .add_policy(&new, &old, &advantages, ppo.cliprange);
        done.num_tokens += new.len();
        done.entropy += entropy.iter().map(|&x| f64::from(x)).sum::<f64>();
        let changes = new.iter().zip(&old).map(|(a, b)| f64::from((a - b).abs()));
        Ok(changes.fold(0.0, f64::max))
    }

    /// Adds the value function's sum of loss, and statistics, to `done`.
    fn report_value(
        &self,
        rollout: &Rollout,
        ppo: &PpoConfig,
        numbers: &mut impl Iterator<Item = Vec<f32>>,
        done: &mut MinibatchReport,
    ) -> Result<(), NonFinite> {
        let mut next = || numbers.next().expect("all that was kept");
        let (new, loss) = (next(), next());
        done.value_loss += finite("value loss", f64::from(loss[0]))?;
        let places = rollout.layout.values();
        let old = self.gather(&rollout.values, places);
        let returns = self.gather(&rollout.returns, places);
        done.stats
            .add_value(&new, &old, &returns, ppo.cliprange_value);
        done.num_values += new.len();
        Ok(())
    }
}
