//! Methods of adapters in whole pipelines, different ones for policy, reward and value; interrupted and gone on with.

use std::fs;
use std::path::Path;

use burn::backend::Flex;
use tempering::peft::{Adaptable, LoraConfig};

use super::resume::run_until;
use crate::support::pipeline::values;

const RECIPE: &str = r#"(
    name: "methods", model: "tiny", seed: 3,
    stages: [
        Sft(name: "sft", data: (source: Posts(rows: 24, seed: 2)), optim: (lr: 1e-3), batch_size: 8, max_length: 128,
            peft: Lora(rank: 2, alpha: 2.0, use_dora: true, use_rslora: true, dropout: 0.1, loraplus_lr_ratio: 4.0),
            cadence: (save_steps: 1)),
        Rank(name: "rank", init: Stage("sft"), data: (source: Posts(rows: 16, seed: 4)), num_responses: 3,
            response_length: 16, reward: Gold, generation_batch_size: 16),
        RewardModel(name: "rm", init: Base, data: (source: Ranked(stage: "rank")), optim: (lr: 1e-2),
            peft: Vera(rank: 8, target_modules: ["q_proj", "v_proj"]), batch_size: 4, max_length: 128, cadence: (save_steps: 1)),
        Dpo(name: "dpo", init: Stage("sft"), data: (source: Ranked(stage: "rank")), optim: (lr: 1e-3), batch_size: 4,
            peft: Lora(rank: 2, alpha: 2.0, init_lora_weights: "olora", lora_bias: false), max_length: 128, cadence: (save_steps: 1)),
        Dpo(name: "again", init: Stage("dpo"), data: (source: Ranked(stage: "rank")), optim: (lr: 1e-3), batch_size: 4,
            peft: Lora(rank: 2, alpha: 2.0, init_lora_weights: "olora"), max_length: 128, cadence: (save_steps: 1)),
        Ppo(name: "ppo", init: Stage("sft"), data: (source: Posts(rows: 32, seed: 6)), reward: Learned(stage: "rm"),
            peft: Lora(rank: 2, alpha: 2.0, use_dora: true, use_rslora: true, loraplus_lr_ratio: 2.0), optim: (lr: 1e-3),
            total_episodes: 32, batch_size: 16, num_mini_batches: 2, num_ppo_epochs: 2, response_length: 16,
            max_prompt_length: 96, cadence: (save_steps: 1)),
        Ppo(name: "pissa", init: Stage("sft"), data: (source: Posts(rows: 32, seed: 6)), reward: Learned(stage: "rm"),
            peft: Lora(rank: 2, alpha: 2.0, init_lora_weights: "pissa"), optim: (lr: 1e-3), total_episodes: 32, batch_size: 16,
            num_mini_batches: 2, num_ppo_epochs: 2, response_length: 16, max_prompt_length: 96, cadence: (save_steps: 1)),
    ],
)
"#;

#[test]
fn methods_go_together_and_resume_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
    run_until(RECIPE, folder.path(), &whole, None);
    for stop in [
        ("sft", 2),
        ("rm", 1),
        ("dpo", 1),
        ("again", 1),
        ("ppo", 1),
        ("pissa", 1),
    ] {
        assert!(
            run_until(RECIPE, folder.path(), &parts, Some(stop)),
            "{stop:?}"
        );
    }
    run_until(RECIPE, folder.path(), &parts, None);
    for stage in ["sft", "rm", "dpo", "again", "ppo", "pissa"] {
        for file in ["metrics.jsonl", "adapter/adapter_model.safetensors"] {
            let read = |run: &Path| fs::read(run.join(stage).join(file)).unwrap();
            assert!(read(&whole) == read(&parts), "{stage}/{file}");
        }
    }
    // What began with a part of the weight goes on as such, on the same base.
    let config = |stage: &str| {
        let file = whole.join(stage).join("adapter/adapter_config.json");
        serde_json::from_str::<serde_json::Value>(&fs::read_to_string(file).unwrap()).unwrap()
    };
    for stage in ["dpo", "again"] {
        assert_eq!(config(stage)["r"], 4, "{stage}");
    }
    assert_eq!(
        config("again")["base_model_name_or_path"],
        config("dpo")["base_model_name_or_path"]
    );
    assert!(whole.join("dpo/base").is_dir() && !whole.join("again/base").exists());
    // Sampling and the packed forward pass are two programs; the policy starts as its reference.
    for stage in ["ppo", "pissa"] {
        let differences = values(&whole, stage, "rollout/logprob_max_diff");
        assert!(
            differences.iter().all(|&x| x < 1e-3),
            "{stage}: {differences:?}"
        );
        let kl = values(&whole, stage, "objective/kl");
        assert!(kl[0].abs() < 1e-3, "{stage}: {kl:?}");
    }
    let losses = values(&whole, "rm", "loss");
    assert!(losses.iter().all(|x| x.is_finite()), "{losses:?}");
}

/// What no weight can stand for says so, and the model is as it was.
#[test]
fn a_bias_on_a_layer_without_one_cannot_be_merged() {
    let (config, mut model) = crate::support::peft::llama::<Flex>();
    let lora = LoraConfig {
        rank: 2,
        lora_bias: true,
        ..LoraConfig::default()
    };
    let seed = tempering::rng::Seed::new(1);
    tempering::model::attach_adapters(&mut model, &config, &lora, seed).unwrap();
    let error = model.merge_adapters().unwrap_err().to_string();
    assert!(error.contains("cannot be merged"), "{error}");
    model.for_each_projection(&mut |projection| {
        assert!(projection.adapters.iter().all(Option::is_some));
    });
}
