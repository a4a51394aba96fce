//! Every method with virtual tokens through every stage: trained, sampled from, scored with, resumed to the bit.

use std::fs;
use std::path::Path;

use burn::backend::Flex;
use tempering::peft::{AdapterConfig, PROMPT_EMBEDDINGS};
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

const METHODS: [&str; 5] = [
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
        assert!(warnings.is_empty() && !adapter.spec.on_layers(), "{method}");
        let file = fs::read(whole.join("ppo/adapter/adapter_model.safetensors")).unwrap();
        assert!(String::from_utf8_lossy(&file).contains(PROMPT_EMBEDDINGS));

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
            for file in ["metrics.jsonl", "adapter/adapter_model.safetensors"] {
                let file = format!("{stage}/{file}");
                let same =
                    fs::read(whole.join(&file)).unwrap() == fs::read(parts.join(&file)).unwrap();
                assert!(same, "{method}: {file}");
            }
        }
    }
}
