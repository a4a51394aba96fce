//! A short run of every stage on the embedded model, generic over the backend.

use std::path::Path;

use serde_json::Value;
use tempering::error::Result;
use tempering::ops::ModelBackend;
use tempering::recipe::{self, RunOptions};
use tempering::report::{Reporter, SilentReporter};

/// Every stage kind; full fine-tuning and LoRA, DPO with a model as reference and with its numbers alone, both EOS rules, adaptive KL and whitening are among it.
pub(crate) const RECIPE: &str = r#"(
    name: "short", model: "tiny", seed: 3,
    stages: [
        Pretrain(name: "pretrain", init: Random("models/tiny/config.json"), data: (source: Posts(rows: 24, seed: 1)),
            optim: (lr: 1e-3, weight_decay: 0.1), batch_size: 8, max_length: 96, cadence: (save_steps: 1)),
        Sft(name: "sft", data: (source: Posts(rows: 32, seed: 2)), eval_data: (source: Posts(rows: 6, seed: 3)),
            peft: Lora(rank: 4, dropout: 0.1), optim: (lr: 1e-3, schedule: Cosine(warmup_ratio: 0.25, floor: 0.1)),
            batch_size: 8, max_length: 128, micro_batch_tokens: 256, cadence: (eval_steps: 2, save_steps: 1)),
        Rank(name: "rank", init: Stage("sft"), data: (source: Posts(rows: 24, seed: 4)), num_responses: 3,
            response_length: 16, reward: Gold, generation_batch_size: 16),
        RewardModel(name: "rm", init: Stage("sft"), data: (source: Ranked(stage: "rank")),
            eval_data: (source: Ranked(stage: "rank", valid: true)), peft: Lora(rank: 4), optim: (lr: 1e-3),
            batch_size: 4, max_length: 128, center_on: (source: Posts(rows: 6, seed: 5)), cadence: (save_steps: 1)),
        Dpo(name: "dpo", init: Stage("sft"), data: (source: Ranked(stage: "rank")),
            eval_data: (source: Ranked(stage: "rank", valid: true)), peft: Lora(rank: 4), optim: (lr: 1e-3), batch_size: 4,
            max_length: 128, micro_batch_tokens: 256, beta: 0.2, label_smoothing: 0.1, epochs: 2,
            cadence: (eval_steps: 2, save_steps: 1)),
        Dpo(name: "dpo_full", init: Stage("sft"), data: (source: Ranked(stage: "rank")), optim: (lr: 1e-4), batch_size: 8,
            max_length: 128, loss_type: ipo, precompute_ref_log_probs: true, cadence: (save_steps: 1)),
        Ppo(name: "ppo", init: Stage("sft"), data: (source: Posts(rows: 48, seed: 6)),
            eval_data: (source: Posts(rows: 4, seed: 7)), reward: Learned(stage: "rm"), gold: Gold, peft: Lora(rank: 4),
            optim: (lr: 1e-3, eps: 1e-5), total_episodes: 48, batch_size: 16, num_mini_batches: 2, num_ppo_epochs: 2,
            response_length: 16, max_prompt_length: 96, kl_coef: 0.05, missing_eos: Subtract(1.0),
            cadence: (eval_steps: 2, save_steps: 1)),
        Compare(name: "compare", policies: [Base, Stage("sft"), Stage("dpo"), Stage("ppo")], reference: Stage("sft"),
            data: (source: Posts(rows: 6, seed: 8)), rewards: { "gold": Gold, "reward": Learned(stage: "rm") },
            response_length: 16),
    ],
)
"#;

/// The stages of [`RECIPE`], in order.
pub(crate) const STAGES: [&str; 8] = [
    "pretrain", "sft", "rank", "rm", "dpo", "dpo_full", "ppo", "compare",
];

/// Runs [`RECIPE`] in `folder`.
pub(crate) fn run<B: ModelBackend>(
    folder: &Path,
    device: B::Device,
    options: &RunOptions,
    reporter: &mut dyn Reporter,
) -> Result<()> {
    run_recipe::<B>(RECIPE, folder, device, options, reporter)
}

/// Runs the recipe `text` in `folder`.
pub(crate) fn run_recipe<B: ModelBackend>(
    text: &str,
    folder: &Path,
    device: B::Device,
    options: &RunOptions,
    reporter: &mut dyn Reporter,
) -> Result<()> {
    let file = folder.join("short.ron");
    std::fs::write(&file, text).unwrap();
    let loaded = recipe::load_with_places(&file, &[])?;
    let checked = recipe::check(loaded, options)?;
    recipe::run::<B>(&checked, options, device, "test", reporter).map(drop)
}

/// The lines of a stage's `metrics.jsonl`.
pub(crate) fn metrics(run: &Path, stage: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join(stage).join("metrics.jsonl")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The values of one metric, step by step.
pub(crate) fn values(run: &Path, stage: &str, name: &str) -> Vec<f64> {
    metrics(run, stage)
        .iter()
        .filter_map(|row| row[name].as_f64())
        .collect()
}

/// The whole pipeline runs, and what must hold of its numbers whatever the backend holds.
pub(crate) fn every_stage<B: ModelBackend>(device: B::Device) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let options = RunOptions {
        output: Some(out.clone()),
        ..RunOptions::default()
    };
    run::<B>(folder.path(), device, &options, &mut SilentReporter).unwrap();

    let losses = values(&out, "pretrain", "loss");
    assert_eq!(losses.len(), 3);
    // A uniform distribution over the 768 tokens: ln 768 = 6.64.
    assert!((losses[0] - 768f64.ln()).abs() < 1.0, "{losses:?}");
    assert!(losses[2] < losses[0], "{losses:?}");

    let evals = values(&out, "sft", "eval/loss");
    assert_eq!(
        evals.len(),
        3,
        "before the first step, and every second of four"
    );
    assert!(evals[2] < evals[0], "{evals:?}");

    // Sampling and the packed forward pass are two programs: their log-probabilities have to agree.
    let differences = values(&out, "ppo", "rollout/logprob_max_diff");
    assert_eq!(differences.len(), 3);
    assert!(differences.iter().all(|&x| x < 1e-3), "{differences:?}");
    // The policy starts as its reference.
    let kl = values(&out, "ppo", "objective/kl");
    assert!(kl[0].abs() < 1e-3, "{kl:?}");
    for name in [
        "val/ratio",
        "policy/grad_norm",
        "value/grad_norm",
        "objective/gold_scores",
    ] {
        let found = values(&out, "ppo", name);
        assert!(
            found.len() == 3 && found.iter().all(|x| x.is_finite()),
            "{name}: {found:?}"
        );
    }

    // Policy and reference are equal: ln 2, and 1 / (4 beta^2) for IPO.
    let losses = values(&out, "dpo", "loss");
    assert!((losses[0] - 2f64.ln()).abs() < 1e-4, "{losses:?}");
    let ipo = values(&out, "dpo_full", "loss");
    assert!((ipo[0] - 25.0).abs() < 1e-3, "{ipo:?}");
    let margins = values(&out, "dpo", "rewards/margins");
    assert!(margins[0].abs() < 1e-4, "{margins:?}");
    assert!(margins[margins.len() - 1] > 0.02, "{margins:?}");
    let chosen = values(&out, "dpo", "logps/chosen");
    assert!(chosen.iter().all(|&x| x < 0.0), "{chosen:?}");
    let held_out = values(&out, "dpo", "eval/rewards/margins");
    assert!(held_out[0].abs() < 1e-4, "{held_out:?}");

    for stage in STAGES {
        assert!(out.join(stage).join("DONE").exists(), "{stage}");
        assert!(out.join(stage).join("report.html").exists(), "{stage}");
    }
    let info: Value =
        serde_json::from_str(&std::fs::read_to_string(out.join("run.json")).unwrap()).unwrap();
    let lineage = info["lineage"].as_array().unwrap();
    let stages: Vec<&str> = (lineage.iter())
        .map(|entry| entry["stage"].as_str().unwrap())
        .collect();
    assert_eq!(stages, STAGES);
    // Models by what they were used for, with their files: weights, and adapters on them.
    let random = "policy models/tiny/config.json: 0 files";
    assert_eq!(models(&out, "pretrain"), [random]);
    assert_eq!(models(&out, "sft"), ["policy tiny: 1 files"]);
    let of_ppo = [
        "policy sft: 2 files",
        "reward rm: 2 files",
        "value rm: 2 files",
    ];
    assert_eq!(models(&out, "ppo"), of_ppo);
    let of_compare = models(&out, "compare");
    assert_eq!(
        of_compare[..2],
        ["reference sft: 2 files", "reward rm: 2 files"]
    );
    assert_eq!(of_compare.len(), 6, "{of_compare:?}");
}

/// The models in a stage's lineage: `role name: n files`. Their hashes are there.
pub(crate) fn models(run: &Path, stage: &str) -> Vec<String> {
    let info = std::fs::read_to_string(run.join("run.json")).unwrap();
    let info: Value = serde_json::from_str(&info).unwrap();
    let mut entries = info["lineage"].as_array().unwrap().iter();
    let entry = entries.find(|entry| entry["stage"] == stage).unwrap();
    let text = |model: &Value| {
        let files = model["files"].as_array().unwrap();
        assert!(
            files
                .iter()
                .all(|file| file["sha256"].as_str().unwrap().len() == 64)
        );
        let [role, name] = ["role", "name"].map(|key| model[key].as_str().unwrap());
        format!("{role} {name}: {} files", files.len())
    };
    entry["models"]
        .as_array()
        .unwrap()
        .iter()
        .map(text)
        .collect()
}
