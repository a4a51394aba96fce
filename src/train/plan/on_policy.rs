//! Parts of the plans of stages that train on responses of their own policy.

use super::{Lengths, Planner, StagePlan, Workload, estimate, longest, num_evaluations};
use crate::data::{DataConfig, RowKind};
use crate::reward::RewardConfig;
use crate::train::TrainingSettings;
use crate::train::config::Init;

/// The settings that these plans read.
#[derive(Debug, Clone, Copy)]
pub(in crate::train) struct OnPolicyPlan<'a> {
    pub(in crate::train) init: &'a Init,
    /// Prompts.
    pub(in crate::train) data: &'a DataConfig,
    pub(in crate::train) eval_data: Option<&'a DataConfig>,
    pub(in crate::train) reward: &'a RewardConfig,
    pub(in crate::train) gold: Option<&'a RewardConfig>,
    pub(in crate::train) total_episodes: usize,
    /// Responses of an update.
    pub(in crate::train) batch_size: usize,
    pub(in crate::train) num_mini_batches: usize,
    /// Passes over each rollout.
    pub(in crate::train) num_epochs: usize,
    pub(in crate::train) micro_batch_tokens: usize,
    pub(in crate::train) generation_batch_size: usize,
    pub(in crate::train) response_length: usize,
    pub(in crate::train) max_prompt_length: usize,
}

/// Parameters whose memory an update needs.
#[derive(Debug, Clone, Copy)]
pub(in crate::train) struct UpdateParams {
    /// Of all trained networks.
    pub(in crate::train) trained: u64,
    /// Of all networks beside the shared base.
    pub(in crate::train) networks: u64,
    /// Of the optimisers' states, bytes.
    pub(in crate::train) optimizer_bytes: u64,
}

impl OnPolicyPlan<'_> {
    /// Minibatches of the whole stage: all optimiser steps of a network.
    pub(in crate::train) fn num_minibatches(&self, updates: u64) -> u64 {
        let passes = self.num_epochs.saturating_mul(self.num_mini_batches);
        updates.saturating_mul(passes as u64)
    }

    /// Enters rows, updates and tokens; returns the lengths of the prompts.
    pub(in crate::train) fn rows(
        &self,
        planner: &mut Planner<'_>,
        plan: &mut StagePlan,
    ) -> Lengths {
        let data = planner.lengths("data", self.data, RowKind::Prompt, self.max_prompt_length);
        plan.rows = data.rows;
        plan.steps = (self.total_episodes / self.batch_size.max(1)) as u64;
        plan.tokens =
            (self.total_episodes as f64 * (data.mean + self.response_length as f64)) as u64;
        data
    }

    /// Enters the memory of generation and of updates on single responses.
    pub(in crate::train) fn memory(
        &self,
        plan: &mut StagePlan,
        data: &Lengths,
        params: UpdateParams,
    ) {
        let minibatch = self.batch_size / self.num_mini_batches.max(1);
        let samples = self.num_minibatches(plan.steps);
        let prompts = data.largest(minibatch, samples).unwrap_or(usize::MAX);
        let responses = minibatch.saturating_mul(self.response_length);
        let step = prompts.min(minibatch.saturating_mul(self.max_prompt_length)) + responses;
        let row = (data.mean + self.response_length as f64).max(1.0);
        let micro_tokens = self.micro_batch_tokens.min(step);
        let rows = ((micro_tokens as f64 / row).ceil() as usize).min(minibatch);
        self.workload(plan, data, params, [micro_tokens, rows, responses]);
    }

    /// The same for passes of `micro_tokens` tokens in `rows` rows with `targets` targets.
    pub(in crate::train) fn workload(
        &self,
        plan: &mut StagePlan,
        data: &Lengths,
        params: UpdateParams,
        [micro_tokens, rows, targets]: [usize; 3],
    ) {
        let work = Workload::Ppo {
            micro_tokens: micro_tokens as u64,
            rows: rows as u64,
            targets: targets as u64,
            batch: self.generation_batch_size as u64,
            prompt: longest(data, self.max_prompt_length),
            response: self.response_length as u64,
            trained_params: params.trained,
            network_params: params.networks,
            optimizer_bytes: params.optimizer_bytes,
        };
        plan.memory = estimate(work, &plan.shape);
        plan.workload = Some(work);
    }

    /// Models among the reward sources: passes over each response.
    pub(in crate::train) fn num_learned(&self) -> f64 {
        let gold = self.gold.map_or(0, RewardConfig::num_learned);
        (self.reward.num_learned() + gold) as f64
    }

    /// Expected length of a response in tokens.
    pub(in crate::train) fn response(&self, planner: &Planner<'_>) -> f64 {
        planner.response_of(self.init, self.response_length)
    }

    /// Adds the work of the evaluations: a response to each held-out prompt, its reference and `learned` scores.
    pub(in crate::train) fn held_out(
        &self,
        planner: &mut Planner<'_>,
        plan: &mut StagePlan,
        training: &TrainingSettings<'_>,
        learned: f64,
    ) {
        let Some(eval_data) = self.eval_data else {
            return;
        };
        let response = self.response(planner);
        let held_out = planner.quietly(eval_data, RowKind::Prompt, self.max_prompt_length);
        let rows = num_evaluations(training, plan.steps) as f64 * held_out.rows as f64;
        let row = held_out.mean + response;
        plan.work.sampled += rows * response;
        plan.work.forward += rows * (held_out.mean + (1.0 + learned) * row);
    }
}
