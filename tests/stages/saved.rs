//! Modules that are trained whole beside adapters: the reference keeps the base's, results hold them, runs go on with them.

use std::fs;
use std::path::Path;
use std::process::Command;

use burn::backend::Flex;
use tempering::model::weights;
use tempering::recipe::RunOptions;
use tempering::report::SilentReporter;

use super::resume::run_until;
use crate::support::pipeline::{run_recipe, values};

const RECIPE: &str = r#"(
    name: "saved", model: "tiny", seed: 3,
    stages: [
        Sft(name: "sft", data: (source: Posts(rows: 24, seed: 2)), optim: (lr: 1e-3), batch_size: 8, max_length: 128,
            peft: Lora(rank: 2, alpha: 2.0, modules_to_save: ["embed_tokens", "norm"], ensure_weight_tying: true),
            cadence: (save_steps: 1)),
        Rank(name: "rank", init: Stage("sft"), data: (source: Posts(rows: 16, seed: 4)), num_responses: 3,
            response_length: 16, reward: Gold, generation_batch_size: 16),
        RewardModel(name: "rm", init: Base, data: (source: Ranked(stage: "rank")), optim: (lr: 1e-2),
            peft: Lora(rank: 2, modules_to_save: ["norm", "embed_tokens"]), batch_size: 4, max_length: 128, cadence: (save_steps: 1)),
        Dpo(name: "dpo", init: Stage("sft"), data: (source: Ranked(stage: "rank")), optim: (lr: 1e-3), batch_size: 4,
            peft: Lora(rank: 2, alpha: 2.0, modules_to_save: ["embed_tokens", "norm"], ensure_weight_tying: true),
            max_length: 128, cadence: (save_steps: 1)),
        Ppo(name: "ppo", init: Stage("sft"), data: (source: Posts(rows: 32, seed: 6)), reward: Learned(stage: "rm"),
            peft: Lora(rank: 2, alpha: 2.0, modules_to_save: ["model.norm"]), optim: (lr: 1e-3),
            total_episodes: 32, batch_size: 16, num_mini_batches: 2, num_ppo_epochs: 2, response_length: 16,
            max_prompt_length: 96, cadence: (save_steps: 1)),
    ],
)
"#;

const TRAINED: [&str; 4] = ["sft", "rm", "dpo", "ppo"];

#[test]
fn modules_are_trained_in_every_stage_and_resume_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
    run_until(RECIPE, folder.path(), &whole, None);
    for stage in TRAINED {
        let stop = Some((stage, if stage == "sft" { 2 } else { 1 }));
        assert!(run_until(RECIPE, folder.path(), &parts, stop), "{stage}");
    }
    run_until(RECIPE, folder.path(), &parts, None);
    for stage in TRAINED {
        for file in ["metrics.jsonl", "adapter/adapter_model.safetensors"] {
            let read = |run: &Path| fs::read(run.join(stage).join(file)).unwrap();
            assert!(read(&whole) == read(&parts), "{stage}/{file}");
        }
    }
    // The policy starts as its reference, which keeps the modules that it began with.
    let first = |stage: &str, name: &str| values(&whole, stage, name)[0];
    let loss = first("dpo", "loss");
    assert!((loss - std::f64::consts::LN_2).abs() < 1e-5, "{loss}");
    let kl = values(&whole, "ppo", "objective/kl");
    assert!(kl[0].abs() < 1e-3 && kl[1].abs() > 1e-5, "{kl:?}");

    // What is stored is the whole module, and not that of the stage before.
    let source = |stage: &str| {
        let file = whole.join(stage).join("adapter/adapter_model.safetensors");
        weights::open(file).unwrap()
    };
    let embedding = "base_model.model.model.embed_tokens.weight";
    let [sft, dpo] = ["sft", "dpo"].map(|stage| source(stage).read(embedding).unwrap());
    assert!(sft != dpo);
    let head = source("sft")
        .read("base_model.model.lm_head.weight")
        .unwrap();
    assert!(sft == head, "one parameter");
    assert!(
        source("rm")
            .shape("base_model.model.lm_head.weight")
            .is_none()
    );

    // Merged into a whole model, the modules are those of the file.
    let merged = folder.path().join("merged");
    let output = Command::new(env!("CARGO_BIN_EXE_temper"))
        .args([
            "export", "--run", "whole", "--stage", "sft", "--merge", "--to", "merged",
        ])
        .current_dir(folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    let model = weights::open(&merged).unwrap();
    assert!(model.read("model.embed_tokens.weight").unwrap() == sft);
}

/// A reduced base: what is trained of it is in f32.
#[test]
fn modules_of_a_reduced_base_are_trained_in_f32() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    // With the settings of the stage before, PPO goes on with its adapters instead of merging them.
    let same = r#"modules_to_save: ["embed_tokens", "norm"], ensure_weight_tying: true"#;
    let recipe = RECIPE
        .replace("seed: 3,", "seed: 3, base_precision: int8,")
        .replace(r#"modules_to_save: ["model.norm"]"#, same);
    run_until(&recipe, folder.path(), &run, None);
    let loss = values(&run, "dpo", "loss")[0];
    assert!((loss - std::f64::consts::LN_2).abs() < 1e-5, "{loss}");
    let kl = values(&run, "ppo", "objective/kl");
    assert!(kl[0].abs() < 1e-3, "{kl:?}");
}

#[test]
fn what_cannot_be_trained_whole_is_refused_before_a_weight_is_loaded() {
    let sft = r#"Sft(name: "a", data: (source: Posts(rows: 16, seed: 1))"#;
    let rm = r#"RewardModel(name: "a", init: Base, data: (source: Jsonl("tests/reference/trajectories/preferences.jsonl"))"#;
    for (stage, modules, expected) in [
        (
            sft,
            r#"["embed_tokens", "lm_head"]"#,
            "modules_to_save: lm_head is tied to model.embed_tokens in this model, the two are one parameter; \
             with `ensure_weight_tying: true` and \"embed_tokens\" among modules_to_save",
        ),
        (
            sft,
            r#"["final_norm", "wte"]"#,
            "modules_to_save: \"final_norm\" is the end of no module's path; this model has model.embed_tokens, \
             model.layers.N.input_layernorm, model.layers.N.post_attention_layernorm, model.norm, lm_head; \
             modules_to_save: \"wte\"",
        ),
        (
            sft,
            r#"["mlp"]"#,
            "\"mlp\" trains model.layers.0.mlp.gate_proj whole, which has an adapter by target_modules",
        ),
        (
            sft,
            r#"["mlp"], target_modules: ["q_proj"]"#,
            "\"mlp\" names the linear layer model.layers.0.mlp.gate_proj",
        ),
        (
            sft,
            r#"[], ensure_weight_tying: true, target_modules: ["embed_tokens", "q_proj"]"#,
            "ensure_weight_tying: an adapter on model.embed_tokens or lm_head",
        ),
        (sft, r#"["norm", ""]"#, "modules_to_save.1: is empty"),
        (
            rm,
            r#"["lm_head"]"#,
            "reward and value models have no output head",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            r#"(name: "saved", model: "tiny", stages: [
                {stage}, peft: Lora(modules_to_save: {modules}), batch_size: 8, max_length: 96)])"#
        );
        let output = folder.path().join("run");
        let options = RunOptions {
            output: Some(output.clone()),
            ..RunOptions::default()
        };
        let (device, reporter) = (Default::default(), &mut SilentReporter);
        let error = run_recipe::<Flex>(&text, folder.path(), device, &options, reporter);
        let error = error.unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        assert!(!output.exists());
        let message = error.to_string();
        assert!(message.contains(expected), "{message}");
    }
}
