//! Group methods against TRL's trainers, and REINFORCE++ against its equations, on the same responses and rewards, step by step:
//! `tests/reference/group.py` and `reinforce_plus_plus.py`.

use std::collections::BTreeMap;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use serde::Deserialize;
use serde_json::{Value, json};

use tempering::generate::Response;
use tempering::model::LanguageModel;
use tempering::ops::ModelBackend;
use tempering::optim::Optimiser;
use tempering::params::Parameters;
use tempering::train::config::{GrpoConfig, ReinforcePlusPlusConfig, RlooConfig};
use tempering::train::group::GroupMethod;
use tempering::train::rollout::{Episodes, Models, Networks, update};
use tempering::train::row_logprobs;

use super::parity::{Comparison, backend_name};
use super::reference::{folder, load, read};

/// Steps of every trajectory.
const STEPS: usize = 20;
/// Largest difference over 20 steps, relative to the largest number of the series. Adam divides by the root of a mean square, so that
/// rounding grows from step to step: initial weights that differ by 1e-7 move TRL's own gradient norms by up to 1.6e-4, its losses by up to
/// 1e-5.
const TOLERANCE: f64 = 5e-4;

#[derive(Deserialize)]
struct Reference {
    sizes: Sizes,
    rollouts: Vec<Given>,
    variants: BTreeMap<String, Variant>,
}

#[derive(Deserialize)]
struct Sizes {
    size: usize,
    response_length: usize,
    eos: u32,
}

/// A rollout's queries, one per group, and the responses to each with their rewards.
#[derive(Deserialize)]
struct Given {
    queries: Vec<Vec<u32>>,
    responses: Vec<Vec<u32>>,
    scores: Vec<f32>,
}

#[derive(Deserialize)]
struct Variant {
    method: String,
    settings: Value,
    steps: BTreeMap<String, Vec<f64>>,
}

/// Every variant of GRPO, RLOO and REINFORCE++: loss, gradient norm, entropy and, where they are noted, KL and clipped share of 20 steps.
pub(crate) fn methods<B: ModelBackend>(device: B::Device) {
    let mut reference: Reference =
        serde_json::from_value(read(&folder("group").join("ref.json"))).unwrap();
    let more = read(&folder("reinforce_plus_plus").join("ref.json"));
    let more: BTreeMap<String, Variant> = serde_json::from_value(more["variants"].clone()).unwrap();
    reference.variants.extend(more);
    let mut worst: BTreeMap<(&str, &str), (f64, &str)> = BTreeMap::new();
    for (name, variant) in &reference.variants {
        let config = recipe(&reference.sizes, variant);
        let ours = match variant.method.as_str() {
            "grpo" => {
                let config: GrpoConfig = serde_json::from_value(config).unwrap();
                train::<B>(&reference, &config, &device)
            }
            "rloo" => {
                let config: RlooConfig = serde_json::from_value(config).unwrap();
                train::<B>(&reference, &config, &device)
            }
            "reinforce_plus_plus" => {
                let config: ReinforcePlusPlusConfig = serde_json::from_value(config).unwrap();
                train::<B>(&reference, &config, &device)
            }
            other => panic!("{other}"),
        };
        let accumulated = variant.settings["accumulation"] != 1;
        let by_response =
            variant.method == "rloo" || variant.settings["importance_sampling_level"] == "sequence";
        let has_delta = variant.settings.get("delta").is_some();
        let by_mean_of_responses = variant.settings["loss_type"] == "grpo";
        // `dapo` divides by the tokens of an average minibatch, TRL's metric by those of each.
        let loss_type = variant.settings.get("loss_type");
        let of_average_minibatch =
            variant.settings["minibatches"] != 1 && loss_type.is_none_or(|name| name == "cispo");
        for (series, expected) in &variant.steps {
            let Some(found) = ours.get(series.as_str()) else {
                continue;
            };
            let skipped = match series.as_str() {
                "loss" | "grad_norm" => false,
                // TRL averages the means of micro-batches.
                _ if accumulated => true,
                // It counts a ratio of responses once for each, and not what its second bound holds back.
                "clip_ratio/region_mean" | "cispo_clip_ratio" => by_response || has_delta,
                // Here the KL is averaged as the loss is.
                "kl" => by_mean_of_responses || of_average_minibatch,
                _ => false,
            };
            if skipped {
                continue;
            }
            assert_eq!((found.len(), expected.len()), (STEPS, STEPS), "{name}");
            let scale = expected.iter().fold(0f64, |most, x| most.max(x.abs()));
            // A loss may be a sum that cancels, as that of the first step over a rollout: its terms are of the advantages' size.
            let scale = if series == "loss" {
                scale.max(1.0)
            } else {
                scale
            };
            for (found, expected) in found.iter().zip(expected) {
                let difference = (found - expected).abs() / scale.max(1e-9);
                let entry = (worst.entry((&variant.method, series))).or_insert((0.0, name));
                if difference.is_nan() || difference > entry.0 {
                    *entry = (difference, name);
                }
            }
        }
    }
    for compared in [
        ("grpo", "kl"),
        ("rloo", "grad_norm"),
        ("reinforce_plus_plus", "kl"),
    ] {
        assert!(worst.contains_key(&compared), "{compared:?}");
    }
    // All of them first: a check ends at its first failure.
    for ((method, series), (difference, variant)) in &worst {
        eprintln!("{method} {series}: {difference:.1e} ({variant})");
    }
    for ((method, series), (difference, variant)) in worst {
        Comparison {
            reference: match method {
                "reinforce_plus_plus" => "its equations in torch",
                _ => "TRL 1.16",
            },
            subject: &format!("{method}, worst of its variants: {variant}"),
            what: series,
            backend: backend_name::<B>(),
            difference,
            tolerance: TOLERANCE,
            relative: true,
        }
        .check();
    }
}

/// The recipe of a variant as JSON.
fn recipe(sizes: &Sizes, variant: &Variant) -> Value {
    let settings = &variant.settings;
    let batch = 2 * sizes.size;
    let mut config = json!({
        "name": variant.method, "init": "Base", "data": {"source": {"Posts": {"rows": 1, "seed": 1}}}, "reward": "Gold",
        "total_episodes": batch * STEPS, "batch_size": batch, "num_generations": sizes.size,
        "num_mini_batches": settings["minibatches"], "num_iterations": settings["iterations"],
        "response_length": sizes.response_length, "temperature": settings["temperature"], "kl_coef": settings["beta"],
        "optim": {"lr": settings["lr"], "weight_decay": settings["weight_decay"], "max_grad_norm": settings["max_grad_norm"],
            "schedule": {"Constant": {}}},
        // As many passes as TRL's micro-batches, or more.
        "micro_batch_tokens": if settings["accumulation"] == 1 { 2048 } else { 64 },
    });
    let ours = [
        "epsilon",
        "epsilon_high",
        "delta",
        "loss_type",
        "scale_rewards",
        "importance_sampling_level",
        "use_bias_correction_kl",
        "mask_truncated_completions",
        "normalize_advantages",
        "reward_clip_range",
        "gamma",
        "baseline",
    ];
    for key in ours {
        if let Some(value) = settings.get(key) {
            config[key] = value.clone();
        }
    }
    config
}

/// Updates the reference's model on its rollouts; returns the series of its steps.
fn train<B: ModelBackend>(
    reference: &Reference,
    config: &dyn GroupMethod,
    device: &B::Device,
) -> BTreeMap<&'static str, Vec<f64>> {
    let (keys, method) = (config.keys(), config.method());
    let (_, initial) = load::<B>(&folder("trajectories"), device);
    let mut policy = LanguageModel::<Autodiff<B>>::from_inner(initial.clone());
    policy.train_only(&|_| true);
    let mut networks = Networks {
        policy,
        policy_optim: Optimiser::new(keys.optim.clone()),
        value: None,
    };
    let mut series: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
    for given in &reference.rollouts {
        if series.get("loss").is_some_and(|loss| loss.len() == STEPS) {
            break;
        }
        let now = networks.policy.valid();
        let episodes = episodes(&now, given, &reference.sizes, keys.temperature, device);
        let models = Models {
            policy: &now,
            reference: (keys.kl_coef > 0.0).then_some(&initial),
            value: None,
            recompute_logprobs: false,
            frozen_base: false,
        };
        let (samples, _) = models.samples(&episodes, keys.sample_settings(), device);
        let rollout = method.rollout(samples, keys.mask_truncated_completions);
        drop(now);
        let rows: Vec<usize> = (0..given.responses.len()).collect();
        let orders = vec![rows; keys.num_iterations];
        let settings = keys.update_settings(&method, 0);
        let report = update(&mut networks, &rollout, &orders, &settings, device).unwrap();
        for part in &report.minibatches {
            let kl = part.kl_loss;
            let loss = part.policy_loss + kl.map_or(0.0, |kl| kl * keys.kl_coef);
            let clipped = part.stats.clipfrac();
            let mut note = |name, value| series.entry(name).or_default().push(value);
            note("loss", loss);
            note("grad_norm", part.policy_grad_norm);
            note("entropy", part.entropy);
            if let Some(kl) = kl {
                note("kl", kl);
            }
            note("clip_ratio/region_mean", clipped);
            note("cispo_clip_ratio", clipped);
        }
    }
    series
}

/// The given responses as a policy has generated them.
fn episodes<B: ModelBackend>(
    policy: &LanguageModel<B>,
    given: &Given,
    sizes: &Sizes,
    temperature: f64,
    device: &B::Device,
) -> Episodes {
    let queries: Vec<Vec<u32>> = (given.queries.iter())
        .flat_map(|query| vec![query.clone(); sizes.size])
        .collect();
    let rows: Vec<Vec<u32>> = (queries.iter().zip(&given.responses))
        .map(|(query, response)| [query.as_slice(), response].concat())
        .collect();
    let slices: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
    let lens: Vec<usize> = queries.iter().map(Vec::len).collect();
    let logprobs = row_logprobs(policy, &slices, &lens, temperature, 2048, device);
    let responses = (given.responses.iter().zip(logprobs)).map(|(ids, logprobs)| Response {
        stopped: ids.last() == Some(&sizes.eos),
        ids: ids.clone(),
        logprobs,
    });
    Episodes {
        responses: responses.collect(),
        queries,
        values: None,
        scores: given.scores.clone(),
        columns: Vec::new(),
    }
}
