//! Methods with virtual tokens, bottlenecks, and LoRA on embedding and head through every stage: trained, sampled from, scored with, resumed to the bit.

use std::fs;
use std::path::Path;

use burn::backend::Flex;
use tempering::peft::AdapterConfig;
use tempering::recipe::RunOptions;
use tempering::report::{Interrupt, SilentReporter};

use crate::stages::resume::Interrupter;
use crate::support::pipeline::{run_recipe, values};

const RECIPE: &str = r#"(
    name: "methods", model: "tiny", seed: 3,
    stages: [
        Sft(name: "sft", data: (source: Posts(rows: 16, seed: 2)), peft: METHOD, optim: (lr: 1e-2),
            batch_size: 8, max_length: 128, micro_batch_tokens: 256, gradient_checkpointing: true, cadence: (save_steps: 1)),
        Rank(name: "rank", init: Stage("sft"), data: (source: Posts(rows: 12, seed: 4)), num_responses: 3,
            response_length: 12, reward: Gold, generation_batch_size: 8),
        RewardModel(name: "rm", init: Stage("sft"), data: (source: Ranked(stage: "rank")), peft: METHOD, optim: (lr: 1e-2),
            batch_size: 4, max_length: 128, center_on: (source: Posts(rows: 4, seed: 5)), cadence: (save_steps: 1)),
        DPO
        Ppo(name: "ppo", init: Stage("sft"), data: (source: Posts(rows: 16, seed: 6)),
            reward: Learned(stage: "rm"), gold: Gold, peft: METHOD, optim: (lr: 1e-2, eps: 1e-5), total_episodes: 16, batch_size: 8,
            num_mini_batches: 2, num_ppo_epochs: 2, response_length: 12, max_prompt_length: 96, kl_coef: 0.05,
            missing_eos: Subtract(1.0), cadence: (save_steps: 1)),
    ],
)
"#;

/// Not for a method with dropout, as a reference could not be the same model.
const DPO: &str = r#"Dpo(name: "dpo", init: Stage("sft"), data: (source: Ranked(stage: "rank")), peft: METHOD, optim: (lr: 1e-2),
            batch_size: 4, max_length: 128, beta: 0.2, cadence: (save_steps: 1)),"#;

const METHODS: [&str; 8] = [
    "Lora(rank: 4, target_modules: [\"embed_tokens\", \"q_proj\"])",
    "Bottleneck(size: 4, non_linearity: SwiGlu)",
    "Bottleneck(placement: Parallel, reduction_factor: 8.0, leave_out: [0])",
    "PromptTuning(num_virtual_tokens: 4, prompt_tuning_init: Text(\"Summarise this post:\"))",
    "PrefixTuning(num_virtual_tokens: 3)",
    "PrefixTuning(num_virtual_tokens: 2, prefix_projection: true, encoder_hidden_size: 8)",
    "PTuning(num_virtual_tokens: 3, encoder_hidden_size: 8)",
    "PTuning(num_virtual_tokens: 2, encoder_reparameterization_type: Lstm, encoder_hidden_size: 8, encoder_dropout: 0.1)",
];

fn options(output: &Path) -> RunOptions {
    RunOptions {
        output: Some(output.to_path_buf()),
        ..RunOptions::default()
    }
}

#[test]
fn every_stage_trains_virtual_tokens_and_resumes() {
    for method in METHODS {
        let drops = method.contains("dropout");
        let dpo = if drops { "" } else { DPO };
        let text = RECIPE.replace("DPO", dpo).replace("METHOD", method);
        let folder = tempfile::tempdir().unwrap();
        let run = |options: &RunOptions| {
            let device = Default::default();
            run_recipe::<Flex>(&text, folder.path(), device, options, &mut SilentReporter)
        };
        let whole = folder.path().join("whole");
        run(&options(&whole)).unwrap_or_else(|e| panic!("{method}: {e}"));
        // Sampling and the packed forward pass are two programs: their log-probabilities have to agree.
        let apart = values(&whole, "ppo", "rollout/logprob_max_diff");
        assert_eq!(apart.len(), 2, "{method}");
        assert!(apart.iter().all(|&x| x < 1e-3), "{method}: {apart:?}");
        // The policy starts as its reference.
        let kl = values(&whole, "ppo", "objective/kl");
        assert!(kl[0].abs() < 1e-3, "{method}: {kl:?}");
        if !drops {
            let losses = values(&whole, "dpo", "loss");
            assert!((losses[0] - 2f64.ln()).abs() < 1e-4, "{method}: {losses:?}");
        }
        let (adapter, warnings) = AdapterConfig::load(whole.join("ppo/adapter")).unwrap();
        assert!(warnings.is_empty(), "{method}: {warnings:?}");
        let bottleneck = method.starts_with("Bottleneck");
        let on_layers = bottleneck || method.starts_with("Lora");
        assert_eq!(adapter.spec.on_layers(), on_layers, "{method}");
        let weights = match bottleneck {
            true => "adapter.safetensors",
            false => "adapter_model.safetensors",
        };

        let parts = folder.path().join("parts");
        let mut options = options(&parts);
        for (stage, step) in [("sft", 1), ("rm", 1), ("ppo", 1)] {
            options.interrupt = Interrupt::default();
            let mut reporter = Interrupter(stage, step, options.interrupt.clone());
            let device = Default::default();
            run_recipe::<Flex>(&text, folder.path(), device, &options, &mut reporter).unwrap_err();
            options.resume = true;
        }
        options.interrupt = Interrupt::default();
        run(&options).unwrap();
        for stage in ["sft", "rm", "dpo", "ppo"]
            .into_iter()
            .filter(|stage| !drops || *stage != "dpo")
        {
            for file in ["metrics.jsonl".to_owned(), format!("adapter/{weights}")] {
                let file = format!("{stage}/{file}");
                let same =
                    fs::read(whole.join(&file)).unwrap() == fs::read(parts.join(&file)).unwrap();
                assert!(same, "{method}: {file}");
            }
        }
    }
}

/// Policy, reward model and value network with a method each, over one frozen base.
#[test]
fn policy_reward_and_value_have_methods_of_their_own() {
    let text = RECIPE.replace("DPO", "").replace(
        r#"RewardModel(name: "rm", init: Stage("sft"), data: (source: Ranked(stage: "rank")), peft: METHOD"#,
        r#"RewardModel(name: "rm", init: Base, data: (source: Ranked(stage: "rank")), peft: REWARD"#,
    );
    for (policy, reward, value) in [
        (
            "PromptTuning(num_virtual_tokens: 4)",
            "PrefixTuning(num_virtual_tokens: 3)",
            "PrefixTuning(num_virtual_tokens: 3)",
        ),
        (
            "PrefixTuning(num_virtual_tokens: 3)",
            "Bottleneck(size: 4)",
            "Bottleneck(size: 4)",
        ),
        (
            "Lora(rank: 2, target_modules: [\"embed_tokens\", \"lm_head\", \"v_proj\"])",
            "Lora(rank: 2, target_modules: [\"embed_tokens\", \"v_proj\"])",
            "Lora(rank: 2, target_modules: [\"embed_tokens\", \"v_proj\"])",
        ),
        (
            "Lora(rank: 2)",
            "PTuning(num_virtual_tokens: 2)",
            "PTuning(num_virtual_tokens: 2)",
        ),
    ] {
        let with_value = format!("peft: {policy}, value_peft: {value}, optim: (lr: 1e-2, eps");
        let text = (text.replace("peft: METHOD, optim: (lr: 1e-2, eps", &with_value))
            .replace("METHOD", policy)
            .replace("REWARD", reward);
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("run");
        let device = Default::default();
        run_recipe::<Flex>(
            &text,
            folder.path(),
            device,
            &options(&out),
            &mut SilentReporter,
        )
        .unwrap_or_else(|e| panic!("{policy}, {reward}: {e}"));
        let kl = values(&out, "ppo", "objective/kl");
        assert!(kl[0].abs() < 1e-3, "{policy}: {kl:?}");
        let norms = values(&out, "ppo", "value/grad_norm");
        assert!(
            norms.len() == 2 && norms.iter().all(|x| *x > 0.0),
            "{value}: {norms:?}"
        );
    }
}

/// Settings that cannot be are named before a weight is loaded.
#[test]
fn what_cannot_be_trained_is_refused() {
    for (from, to, expected) in [
        (
            "METHOD",
            "PromptTuning(num_virtual_tokens: 0)",
            "must be at least 1, found 0",
        ),
        (
            "METHOD",
            "PromptTuning(num_virtual_tokens: 9000)",
            "leave no room for a row",
        ),
        (
            "METHOD",
            "PromptTuning(prompt_tuning_init: Text(\"\"))",
            "the text is empty",
        ),
        (
            "METHOD",
            "PrefixTuning(encoder_hidden_size: 8)",
            "without `prefix_projection: true` there is none",
        ),
        (
            "METHOD",
            "PTuning(encoder_num_layers: 3)",
            "is of the LSTM, and the encoder is an MLP",
        ),
        (
            "METHOD",
            "Bottleneck(size: 4000)",
            "a bottleneck of 4000 is wider than the model",
        ),
        (
            "METHOD",
            "Bottleneck(leave_out: [99])",
            "there is no block 99",
        ),
        (
            "peft: METHOD, optim: (lr: 1e-2, eps",
            "peft: Lora(rank: 2), optim: (lr: 1e-2, eps",
            "they cannot be merged into the model",
        ),
        (
            "peft: METHOD, optim: (lr: 1e-2, eps",
            "peft: METHOD, value_peft: Full, optim: (lr: 1e-2, eps",
            "must leave the model's weights as they are",
        ),
    ] {
        let text = RECIPE.replace("DPO", "").replace(from, to);
        let text = text.replace("METHOD", "PrefixTuning(num_virtual_tokens: 3)");
        let folder = tempfile::tempdir().unwrap();
        let (out, device) = (folder.path().join("run"), Default::default());
        let error = run_recipe::<Flex>(
            &text,
            folder.path(),
            device,
            &options(&out),
            &mut SilentReporter,
        )
        .unwrap_err()
        .to_string();
        assert!(error.contains(expected), "{to}: {error}");
    }
}
