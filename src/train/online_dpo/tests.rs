//! Updates on given responses against TRL's `OnlineDPOTrainer`, step by step: `tests/reference/online_dpo.py`.

use std::collections::BTreeMap;
use std::path::Path;

use burn::backend::{Autodiff, Flex};
use burn::module::AutodiffModule;
use serde::Deserialize;
use serde_json::{Value, json};

use super::OnlineDpoConfig;
use super::update::Update;
use crate::checkpoint::RunDir;
use crate::generate::Response;
use crate::model::{LanguageModel, ModelConfig, weights};
use crate::ops::ModelBackend;
use crate::params::Parameters;
use crate::report::SilentReporter;
use crate::train::Session;
use crate::train::rollout::Episodes;
use crate::train::shared::Training;

/// Steps of every trajectory.
const STEPS: usize = 20;
/// Largest difference relative to the largest number of a series, as of the other losses on preferences.
const TOLERANCE: f64 = 1e-4;

#[derive(Deserialize)]
struct Reference {
    sizes: Sizes,
    rollouts: Vec<Given>,
    variants: BTreeMap<String, Variant>,
}

#[derive(Deserialize)]
struct Sizes {
    response_length: usize,
    eos: u32,
}

/// A step's queries, and two responses to each with their scores.
#[derive(Deserialize)]
struct Given {
    queries: Vec<Vec<u32>>,
    responses: Vec<Vec<u32>>,
    scores: Vec<f32>,
}

#[derive(Deserialize)]
struct Variant {
    settings: Value,
    steps: BTreeMap<String, Vec<f64>>,
}

fn reference(name: &str) -> std::path::PathBuf {
    (Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference")).join(name)
}

#[test]
fn twenty_updates_are_those_of_trl() {
    let _turn = crate::guard::lock_gradients();
    let text = std::fs::read(reference("online_dpo/ref.json")).unwrap();
    let reference: Reference = serde_json::from_slice(&text).unwrap();
    let mut worst = BTreeMap::new();
    for (name, variant) in &reference.variants {
        let config = config(&reference.sizes, &variant.settings);
        let ours = train::<Flex>(&reference, &config, &Default::default());
        for (series, expected) in &variant.steps {
            let found = &ours[series.as_str()];
            assert_eq!((found.len(), expected.len()), (STEPS, STEPS), "{name}");
            let scale = expected.iter().fold(0f64, |most, x| most.max(x.abs()));
            for (step, (found, expected)) in found.iter().zip(expected).enumerate() {
                // Rounding decides which of two equal rewards is the larger one.
                let margin = variant.steps["rewards/margins"][step];
                if series == "rewards/accuracies" && margin.abs() < 1e-4 {
                    continue;
                }
                let difference = (found - expected).abs() / scale.max(1e-9);
                let entry = worst.entry(series.clone()).or_insert((0.0, name));
                if difference.is_nan() || difference > entry.0 {
                    *entry = (difference, name);
                }
            }
        }
    }
    assert!(worst.contains_key("grad_norm") && worst.contains_key("rewards/chosen"));
    for (series, (difference, variant)) in &worst {
        eprintln!("online DPO, {series}: {difference:.1e} ({variant})");
    }
    for (series, (difference, variant)) in worst {
        // The learning rate is in f32 on neither side.
        let tolerance = if series == "lr" { 1e-8 } else { TOLERANCE };
        assert!(
            difference <= tolerance,
            "{series} of {variant}: {difference:.1e}"
        );
    }
}

/// The configuration of a variant.
fn config(sizes: &Sizes, settings: &Value) -> OnlineDpoConfig {
    let batch_size = 2 * settings["rows"].as_u64().unwrap();
    let schedule = match settings["schedule"].as_str().unwrap() {
        "linear" => "Linear",
        "cosine" => "Cosine",
        other => panic!("{other}"),
    };
    let mut config = json!({
        "name": "stage", "init": "Base", "data": {"source": {"Posts": {"rows": 1, "seed": 1}}}, "reward": "Gold",
        "total_episodes": batch_size * STEPS as u64, "batch_size": batch_size, "response_length": sizes.response_length,
        // Several passes a step.
        "micro_batch_tokens": 64,
        "beta": settings["beta"], "loss_type": settings["loss"],
        "optim": {"lr": settings["lr"], "weight_decay": settings["weight_decay"], "max_grad_norm": settings["max_grad_norm"],
            "schedule": {schedule: {"warmup_ratio": settings["warmup"]}}},
    });
    if let Some(penalty) = settings.get("missing_eos_penalty") {
        config["missing_eos"] = json!({ "Subtract": penalty });
    }
    serde_json::from_value(config).unwrap()
}

/// The metrics of updates on the given responses, series by series.
fn train<B: ModelBackend>(
    given: &Reference,
    config: &OnlineDpoConfig,
    device: &B::Device,
) -> BTreeMap<&'static str, Vec<f64>> {
    let folder = tempfile::tempdir().unwrap();
    let base = reference("trajectories");
    let model = ModelConfig::load(&base).unwrap();
    let source = weights::open(&base).unwrap();
    let initial = LanguageModel::<B>::load(&model, source.as_ref(), device).unwrap();
    let mut policy = LanguageModel::<Autodiff<B>>::from_inner(initial.clone());
    policy.train_only(&|_| true);
    let run = RunDir::create(folder.path().join("run")).unwrap();
    let mut reporter = SilentReporter;
    let mut session = Session::<B>::new(device.clone(), &run, &mut reporter);
    let mut training = Training::open(
        &mut session,
        &config.name,
        "",
        STEPS,
        &config.cadence,
        &config.optim,
        &mut policy,
    )
    .unwrap();
    let update = Update {
        config,
        objective: config.objective(),
        reference: &initial,
        device,
    };
    let mut series: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
    for rollout in &given.rollouts {
        let episodes = episodes(rollout, given.sizes.eos);
        let (metrics, tokens) = update.take(&mut training, &mut policy, &episodes).unwrap();
        training
            .journal
            .step(&mut session, tokens, &metrics)
            .unwrap();
        for (name, value) in metrics {
            series.entry(name).or_default().push(value);
        }
    }
    series
}

/// The given responses as a policy has generated them.
fn episodes(given: &Given, eos: u32) -> Episodes {
    let response = |ids: &Vec<u32>| Response {
        stopped: ids.last() == Some(&eos),
        ids: ids.clone(),
        // Not read: the loss takes those of the policy in training.
        logprobs: vec![0.0; ids.len()],
    };
    Episodes {
        queries: (given.queries.iter())
            .flat_map(|query| [query.clone(), query.clone()])
            .collect(),
        responses: given.responses.iter().map(response).collect(),
        values: None,
        scores: given.scores.clone(),
        columns: Vec::new(),
    }
}
