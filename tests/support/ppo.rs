//! One PPO rollout and its update against plain torch (`tests/reference/ppo.py`), array by array, generic over the backend.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use serde::Deserialize;
use serde_json::json;

use tempering::generate::Response;
use tempering::host::read;
use tempering::model::{LanguageModel, ModelConfig, ScalarModel, attach_adapters, weights};
use tempering::ops::ModelBackend;
use tempering::optim::{OptimConfig, Optimiser};
use tempering::params::{ParamKind, Parameters};
use tempering::peft::{Adaptable, LoraConfig};
use tempering::reward::{Completion, Learned, RewardSource};
use tempering::rl::{self, KlEstimator, KlIn, MissingEos, Variance};
use tempering::rng::Seed;
use tempering::train::config::PpoConfig;
use tempering::train::ppo;
use tempering::train::rollout::{
    Episodes, FrozenValue, Models, Networks, Rollout, UpdateReport, ValueFunction, ValueHead,
    update,
};
use tempering::train::row_logprobs;

use super::parity::{Comparison, backend_name};

/// Rows by position.
type Rows = Vec<Vec<f64>>;

#[derive(Deserialize)]
struct Reference {
    temperature: f64,
    eos: u32,
    response_length: usize,
    score_offset: f64,
    lora_rank: usize,
    lora_alpha: f64,
    queries: Vec<Vec<u32>>,
    sampled: Vec<Vec<u32>>,
    responses: Vec<Vec<u32>>,
    variants: BTreeMap<String, Variant>,
}

#[derive(Deserialize)]
struct Settings {
    lora: bool,
    /// Whether the value function is a head on the policy.
    trunk: bool,
    kl_estimator: KlEstimator,
    kl_in: KlIn,
    kl_coef: f64,
    missing_eos: (String, f64),
    whiten_rewards: bool,
    gamma: f64,
    lam: f64,
    cliprange: f64,
    cliprange_value: f64,
    vf_coef: f64,
    epochs: usize,
    num_mini_batches: usize,
    policy_lr: f64,
    value_lr: f64,
    max_grad_norm: Option<f64>,
    weight_decay: f64,
}

#[derive(Deserialize)]
struct Variant {
    settings: Settings,
    orders: Vec<Vec<usize>>,
    logprobs: Rows,
    ref_logprobs: Rows,
    values: Rows,
    kl: BTreeMap<String, Rows>,
    scores: Vec<f64>,
    kept_scores: Vec<f64>,
    scores_replaced: Vec<f64>,
    scores_subtracted: Vec<f64>,
    rewards: Rows,
    rewards_whitened_biased: Rows,
    rewards_whitened_unbiased: Rows,
    advantages: Rows,
    returns: Rows,
    advantages_whitened_biased: Rows,
    advantages_whitened_unbiased: Rows,
    objective: BTreeMap<String, f64>,
    minibatches: Vec<BTreeMap<String, f64>>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/ppo")
}

fn reference() -> Reference {
    let text = std::fs::read_to_string(folder().join("ref.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn config() -> ModelConfig {
    ModelConfig::load(folder().join("ref")).unwrap()
}

fn language_model<B: ModelBackend>(name: &str, device: &B::Device) -> LanguageModel<B> {
    let source = weights::open(folder().join(name)).unwrap();
    LanguageModel::load(&config(), source.as_ref(), device).unwrap()
}

fn reward_model<B: ModelBackend>(reference: &Reference, device: &B::Device) -> ScalarModel<B> {
    let source = weights::open(folder().join("reward")).unwrap();
    let mut model = ScalarModel::load(&config(), source.as_ref(), device).unwrap();
    model.offset = reference.score_offset;
    model
}

/// Adapters on all linear layers, `A` from the variant's file and `B` zero.
fn add_lora<B: ModelBackend, M: Adaptable<B> + Parameters<B>>(
    model: &mut M,
    reference: &Reference,
    variant: &str,
    role: &str,
    device: &B::Device,
) {
    let lora = LoraConfig {
        rank: reference.lora_rank,
        alpha: reference.lora_alpha,
        ..LoraConfig::default()
    };
    attach_adapters(model, &config(), &lora, Seed::new(1)).unwrap();
    let source = weights::open(folder().join(format!("{variant}.safetensors"))).unwrap();
    model.for_each_parameter(&mut |meta, mut slot| {
        if meta.kind == ParamKind::Adapter && meta.key().contains("lora_A") {
            slot.load(meta, device, |name| {
                source.read(&format!("start.{role}.{name}"))
            })
            .unwrap();
        }
    });
}

fn ppo_config(reference: &Reference, s: &Settings, micro_batch_tokens: usize) -> PpoConfig {
    let (rule, number) = &s.missing_eos;
    let missing_eos = match rule.as_str() {
        "replace" => MissingEos::Replace(*number),
        "subtract" => MissingEos::Subtract(*number),
        other => panic!("{other}"),
    };
    serde_json::from_value(json!({
        "name": "ppo", "init": "Base", "data": {"source": {"Posts": {"rows": 1, "seed": 1}}}, "reward": "Gold",
        "total_episodes": 8, "batch_size": 8, "num_mini_batches": s.num_mini_batches, "num_ppo_epochs": s.epochs,
        "micro_batch_tokens": micro_batch_tokens, "response_length": reference.response_length,
        "temperature": reference.temperature, "kl_coef": s.kl_coef, "kl_estimator": s.kl_estimator, "kl_in": s.kl_in,
        "cliprange": s.cliprange, "cliprange_value": s.cliprange_value, "vf_coef": s.vf_coef, "gamma": s.gamma,
        "lam": s.lam, "whiten_rewards": s.whiten_rewards, "missing_eos": missing_eos,
        "value_trunk": if s.trunk { "Policy" } else { "Own" },
    }))
    .unwrap()
}

fn optim_config(settings: &Settings) -> OptimConfig {
    OptimConfig {
        eps: 1e-5,
        weight_decay: settings.weight_decay,
        max_grad_norm: settings.max_grad_norm,
        ..OptimConfig::default()
    }
}

/// The largest differences seen, by what was compared.
struct Differences {
    variant: String,
    backend: &'static str,
    seen: BTreeMap<(&'static str, bool), (f64, f64)>,
}

impl Differences {
    fn new<B: ModelBackend>(variant: &str) -> Self {
        Self {
            variant: variant.to_owned(),
            backend: backend_name::<B>(),
            seen: BTreeMap::new(),
        }
    }

    fn note(&mut self, what: &'static str, relative: bool, tolerance: f64, difference: f64) {
        let entry = self
            .seen
            .entry((what, relative))
            .or_insert((0.0, tolerance));
        if difference.is_nan() || difference > entry.0 {
            entry.0 = difference;
        }
    }

    #[track_caller]
    fn absolute(&mut self, what: &'static str, tolerance: f64, got: &[f32], expected: &[f64]) {
        assert_eq!(got.len(), expected.len(), "{what}");
        for (got, expected) in got.iter().zip(expected) {
            let difference = (f64::from(*got) - expected).abs();
            self.note(what, false, tolerance, difference);
        }
    }

    #[track_caller]
    fn rows(&mut self, what: &'static str, got: &[f32], expected: &Rows) {
        self.absolute(what, 1e-4, got, &expected.concat());
    }

    fn check(&self) {
        for ((what, relative), (difference, tolerance)) in &self.seen {
            Comparison {
                reference: "plain torch, padded as in the N+ code",
                subject: &format!("PPO, {}", self.variant),
                what,
                backend: self.backend,
                difference: *difference,
                tolerance: *tolerance,
                relative: *relative,
            }
            .check();
        }
    }
}

/// What a variant starts from.
struct Start<B: ModelBackend> {
    reference: LanguageModel<B>,
    policy: LanguageModel<B>,
    reward: ScalarModel<B>,
    value: ScalarModel<B>,
    /// The value function, if it is a head on the policy.
    head: Option<ValueHead<B>>,
}

impl<B: ModelBackend> Start<B> {
    fn load(reference: &Reference, name: &str, settings: &Settings, device: &B::Device) -> Self {
        let initial = language_model("ref", device);
        let reward = reward_model(reference, device);
        let head = settings.trunk.then(|| {
            let score = read(reward.score.val());
            let mut head = ValueHead::zero(score.len(), device);
            head.for_each_parameter(&mut |_, mut slot| {
                slot.assign(score.clone(), &[score.len()], device);
            });
            head
        });
        let mut start = Self {
            // With adapters on one base, so that passes of both are one.
            policy: match settings.lora {
                true => initial.clone(),
                false => language_model("policy", device),
            },
            reference: initial,
            value: reward.clone(),
            reward,
            head,
        };
        if settings.lora {
            add_lora(&mut start.policy, reference, name, "policy", device);
        }
        if settings.lora && !settings.trunk {
            add_lora(&mut start.value, reference, name, "value", device);
        }
        start
    }

    fn frozen_value(&self) -> FrozenValue<B> {
        match &self.head {
            Some(head) => FrozenValue::Head(head.clone()),
            None => FrozenValue::Network(self.value.clone()),
        }
    }

    /// The given responses with this policy's log-probabilities and the reward model's scores.
    fn episodes(&self, reference: &Reference, config: &PpoConfig, device: &B::Device) -> Episodes {
        let rows: Vec<Vec<u32>> = (reference.queries.iter().zip(&reference.responses))
            .map(|(query, response)| [query.as_slice(), response].concat())
            .collect();
        let slices: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let lens: Vec<usize> = reference.queries.iter().map(Vec::len).collect();
        let logprobs = row_logprobs(
            &self.policy,
            &slices,
            &lens,
            config.logprob_temperature(),
            config.micro_batch_tokens,
            device,
        );
        let responses: Vec<Response> = (reference.responses.iter().zip(logprobs))
            .map(|(ids, logprobs)| Response {
                ids: ids.clone(),
                logprobs,
                stopped: ids.last() == Some(&reference.eos),
            })
            .collect();
        let completions: Vec<Completion> = (reference.queries.iter().zip(&reference.responses))
            .map(|(query, response)| Completion {
                prompt_ids: query.clone(),
                response_ids: response.clone(),
                ..Completion::default()
            })
            .collect();
        let mut source = Learned::new(
            self.reward.clone(),
            config.micro_batch_tokens,
            device.clone(),
        );
        Episodes {
            queries: reference.queries.clone(),
            responses,
            values: None,
            columns: Vec::new(),
            scores: source.score(&completions).unwrap(),
        }
    }

    fn networks(self, settings: &Settings) -> Networks<B> {
        let mut policy = LanguageModel::<Autodiff<B>>::from_inner(self.policy);
        let full = !settings.lora;
        policy.train_only(&|kind| full || kind == ParamKind::Adapter);
        let mut value = match self.head {
            Some(head) => ValueFunction::Head(ValueHead::<Autodiff<B>>::from_inner(head)),
            None => ValueFunction::Network {
                model: ScalarModel::<Autodiff<B>>::from_inner(self.value),
                optim: Optimiser::new(optim_config(settings)),
            },
        };
        (value.parameters())
            .train_only(&|kind| full || matches!(kind, ParamKind::Adapter | ParamKind::Score));
        Networks {
            policy,
            policy_optim: Optimiser::new(optim_config(settings)),
            value: Some(value),
        }
    }
}

/// Every array of the rollout.
fn compare_rollout(
    seen: &mut Differences,
    episodes: &Episodes,
    rollout: &Rollout,
    variant: &Variant,
) {
    let samples = &rollout.samples;
    let ref_logprobs = samples.ref_logprobs.as_ref().unwrap();
    let targets = rollout.targets.as_ref().unwrap();
    seen.rows("log-probabilities", &samples.logprobs, &variant.logprobs);
    seen.rows(
        "log-probabilities of the reference",
        ref_logprobs,
        &variant.ref_logprobs,
    );
    seen.rows("values", &targets.values, &variant.values);
    for (name, estimator) in [
        ("k1", KlEstimator::K1),
        ("k2", KlEstimator::K2),
        ("k3", KlEstimator::K3),
    ] {
        let kl = samples.kl(estimator);
        seen.rows("KL per token (k1, k2, k3)", &kl, &variant.kl[name]);
    }
    seen.absolute("scores", 1e-4, &episodes.scores, &variant.scores);
    let kept = "scores after the missing-EOS rule";
    seen.absolute(kept, 1e-4, &samples.scores, &variant.kept_scores);
    for (rule, expected) in [
        (MissingEos::Replace(-1.0), &variant.scores_replaced),
        (MissingEos::Subtract(1.0), &variant.scores_subtracted),
    ] {
        let mut scores = episodes.scores.clone();
        rl::apply_missing_eos(&mut scores, &samples.has_eos, rule);
        seen.absolute(kept, 1e-4, &scores, expected);
    }
    let raw_rewards = samples.token_rewards(&rollout.kl);
    seen.rows("rewards", &raw_rewards, &variant.rewards);
    let used = match variant.settings.whiten_rewards {
        true => &variant.rewards_whitened_biased,
        false => &variant.rewards,
    };
    seen.rows("rewards as the stage uses them", &targets.rewards, used);
    for (variance, rewards, advantages) in [
        (
            Variance::Biased,
            &variant.rewards_whitened_biased,
            &variant.advantages_whitened_biased,
        ),
        (
            Variance::Unbiased,
            &variant.rewards_whitened_unbiased,
            &variant.advantages_whitened_unbiased,
        ),
    ] {
        let got = rl::whiten(&raw_rewards, false, variance);
        seen.rows("whitened rewards (biased, unbiased)", &got, rewards);
        let got = rl::whiten(&rollout.raw_advantages, true, variance);
        seen.rows("whitened advantages (biased, unbiased)", &got, advantages);
    }
    let (gamma, lam) = (variant.settings.gamma, variant.settings.lam);
    let positions = samples.layout.values();
    let raw = rl::gae(&targets.rewards, &targets.values, positions, gamma, lam).advantages;
    seen.rows("advantages", &raw, &variant.advantages);
    assert_eq!(rollout.raw_advantages, samples.layout.at_responses(&raw));
    let whitened = "advantages as the stage uses them";
    seen.rows(
        whitened,
        &rollout.advantages,
        &variant.advantages_whitened_biased,
    );
    seen.rows("returns", &targets.returns, &variant.returns);

    let metrics: BTreeMap<_, _> = rollout.metrics().into_iter().collect();
    for (name, expected) in [
        ("objective/kl", "kl"),
        ("objective/non_score_reward", "non_score_reward"),
        ("objective/scores", "scores"),
        ("objective/rlhf_reward", "rlhf_reward"),
        ("val/num_eos_tokens", "num_eos"),
    ] {
        let difference = (metrics[name] - variant.objective[expected]).abs();
        seen.note("objective/* metrics", false, 1e-4, difference);
    }
    assert_eq!(samples.mean_kl(), metrics["objective/kl"]);
}

/// Every minibatch of the update.
fn compare_minibatches(seen: &mut Differences, report: &UpdateReport, variant: &Variant) {
    assert_eq!(report.minibatches.len(), variant.minibatches.len());
    for (got, expected) in report.minibatches.iter().zip(&variant.minibatches) {
        let (ratio_min, ratio_max) = got.stats.ratio_range().unwrap();
        let total = got.policy_loss + variant.settings.vf_coef * got.value_loss;
        for (what, tolerance, values) in [
            (
                "losses of each minibatch",
                1e-4,
                vec![
                    ("policy_loss", got.policy_loss),
                    ("value_loss", got.value_loss),
                    ("total_loss", total),
                ],
            ),
            (
                "approxkl, clip fractions, entropy of each minibatch",
                1e-4,
                vec![
                    ("approxkl", got.stats.approxkl()),
                    ("clipfrac", got.stats.clipfrac()),
                    ("value_clipfrac", got.stats.value_clipfrac()),
                    ("entropy", got.entropy),
                ],
            ),
        ] {
            for (name, got) in values {
                seen.note(what, false, tolerance, (got - expected[name]).abs());
            }
        }
        assert_eq!(got.kl_loss.is_some(), expected.contains_key("kl_loss"));
        if let Some(kl) = got.kl_loss {
            let difference = (kl - expected["kl_loss"]).abs();
            seen.note("KL loss of each minibatch", false, 1e-4, difference);
        }
        for (name, got) in [
            ("ratio_mean", got.stats.ratio_mean()),
            ("ratio_var", got.stats.ratio_var()),
            ("ratio_min", ratio_min),
            ("ratio_max", ratio_max),
        ] {
            let size = expected[name].abs().max(1.0);
            let difference = (got - expected[name]).abs() / size;
            seen.note("ratio of each minibatch", true, 1e-4, difference);
        }
        for (name, got) in [
            ("policy_grad_norm", Some(got.policy_grad_norm)),
            ("value_grad_norm", got.value_grad_norm),
        ] {
            assert_eq!(got.is_some(), expected.contains_key(name), "{name}");
            let Some(got) = got else { continue };
            // A minibatch whose values are all clipped has no gradient, here as there.
            let difference = match expected[name] {
                0.0 => got,
                norm => (got - norm).abs() / norm,
            };
            seen.note("gradient norms", true, 1e-4, difference);
        }
    }
}

/// Every trained weight after the last step.
fn compare_weights<B: ModelBackend>(
    seen: &mut Differences,
    what: &'static str,
    model: &mut dyn Parameters<Autodiff<B>>,
    name: &str,
    role: &str,
) {
    let source = weights::open(folder().join(format!("{name}.safetensors"))).unwrap();
    let prefix = format!("{role}.");
    let mut left: Vec<String> = source
        .names()
        .into_iter()
        .filter(|name| name.starts_with(&prefix))
        .collect();
    model.for_each_parameter(&mut |meta, slot| {
        if !slot.is_trained() {
            return;
        }
        for (tensor, _, values) in slot.save(meta) {
            let stored = format!("{prefix}{tensor}");
            let expected: Vec<f64> = (source.read(&stored).unwrap().into_iter())
                .map(f64::from)
                .collect();
            seen.absolute(what, 1e-5, &values, &expected);
            left.retain(|name| *name != stored);
        }
    });
    assert_eq!(left, Vec::<String>::new(), "{what}: weights not compared");
}

/// Every variant, with the minibatches in one pass and split into as many micro-batches as the rows allow.
pub(crate) fn rollout_and_update<B: ModelBackend>(device: B::Device) {
    let reference = reference();
    // Generation stops at the first EOS of what the reference sampled; what follows is not seen here.
    for (sampled, response) in reference.sampled.iter().zip(&reference.responses) {
        let end = sampled.iter().position(|&id| id == reference.eos);
        let len = end.map_or(sampled.len(), |end| end + 1);
        assert_eq!(response[..], sampled[..len]);
    }
    for (name, variant) in &reference.variants {
        let mut seen = Differences::new::<B>(name);
        for micro_batch_tokens in [14, 4096] {
            let config = ppo_config(&reference, &variant.settings, micro_batch_tokens);
            let start = Start::<B>::load(&reference, name, &variant.settings, &device);
            let episodes = start.episodes(&reference, &config, &device);
            let value = start.frozen_value();
            let models = Models {
                policy: &start.policy,
                reference: Some(&start.reference),
                value: Some(&value),
                recompute_logprobs: false,
                frozen_base: variant.settings.lora,
            };
            let rollout = ppo::rollout(&episodes, models, &config, config.kl_coef, &device);
            compare_rollout(&mut seen, &episodes, &rollout, variant);
            let mut networks = start.networks(&variant.settings);
            let mut settings = config.update_settings(0, 1, None);
            settings.policy.lr = variant.settings.policy_lr;
            settings.value.as_mut().unwrap().lr = variant.settings.value_lr;
            let report = update(&mut networks, &rollout, &variant.orders, &settings, &device)
                .expect("finite");
            compare_minibatches(&mut seen, &report, variant);
            assert!(
                report.logprob_max_diff < 1e-5,
                "{}",
                report.logprob_max_diff
            );
            let what = "policy weights after the update";
            compare_weights::<B>(&mut seen, what, &mut networks.policy, name, "policy");
            let what = "value network's weights after the update";
            let value = networks.value.as_mut().unwrap();
            compare_weights::<B>(&mut seen, what, value.parameters(), name, "value");
        }
        seen.check();
    }
}
