//! New tokens in a recipe: in every stage, in what stages write, and in what starts from that.

use std::fs;
use std::path::Path;

use burn::backend::Flex;
use serde_json::{Value, json};
use tempering::data::Tokenizer;
use tempering::error::Error;
use tempering::model::{ModelSource, weights};
use tempering::recipe::RunOptions;
use tempering::report::{Interrupt, SilentReporter};

use super::resume::Interrupter;
use crate::support::pipeline::{run_recipe, values};

/// The tokenizer of `tiny` has as many tokens as the model has rows.
const ROWS: usize = 768;

const RECIPE: &str = r#"(
    name: "tokens", model: "tiny", seed: 3, add_tokens: ["<|think|>", "<|/think|>"],
    stages: [
        Sft(name: "sft", data: (source: Jsonl("rows.jsonl")),
            peft: METHOD, optim: (lr: 1e-3), batch_size: 4, max_length: 64, cadence: (save_steps: 1)),
        Rank(name: "rank", init: Stage("sft"), data: (source: Posts(rows: 12, seed: 4)), num_responses: 3,
            response_length: 12, reward: Gold, generation_batch_size: 8),
        RewardModel(name: "rm", init: Stage("sft"), data: (source: Ranked(stage: "rank")), peft: METHOD, optim: (lr: 1e-3),
            batch_size: 4, max_length: 128),
        Dpo(name: "dpo", init: Stage("sft"), data: (source: Ranked(stage: "rank")), peft: METHOD, optim: (lr: 1e-3),
            batch_size: 4, max_length: 128),
        Ppo(name: "ppo", init: Stage("sft"), data: (source: Posts(rows: 8, seed: 6)), reward: Learned(stage: "rm"),
            peft: METHOD, optim: (lr: 1e-3, eps: 1e-5), total_episodes: 8, batch_size: 8, num_mini_batches: 1,
            num_ppo_epochs: 1, response_length: 8, max_prompt_length: 96, kl_coef: 0.05),
    ],
)
"#;

fn rows(folder: &Path) {
    let row = |i: usize| json!({"prompt": format!("Post {i}:"), "completion": format!(" <|think|>it is {i}<|/think|> yes")});
    let text: String = (0..8).map(|i| format!("{}\n", row(i))).collect();
    fs::write(folder.join("rows.jsonl"), text).unwrap();
}

/// The recipe trained by `method` on the rows of [`rows`] in `folder`.
fn recipe(text: &str, folder: &Path, method: &str) -> String {
    let file = folder.join("rows.jsonl").display().to_string();
    text.replace("rows.jsonl", &file).replace("METHOD", method)
}

fn go(text: &str, folder: &Path, options: &RunOptions) -> Result<(), Error> {
    run_recipe::<Flex>(
        text,
        folder,
        Default::default(),
        options,
        &mut SilentReporter,
    )
    .map(drop)
}

fn options(output: &Path) -> RunOptions {
    RunOptions {
        output: Some(output.to_path_buf()),
        ..RunOptions::default()
    }
}

#[test]
fn new_tokens_are_in_every_stage_and_every_result() {
    for method in [
        "Lora(rank: 2)",
        "Full",
        "PromptTuning(num_virtual_tokens: 2)",
        "Bottleneck(size: 4)",
    ] {
        let folder = tempfile::tempdir().unwrap();
        rows(folder.path());
        let text = recipe(RECIPE, folder.path(), method);
        let whole = folder.path().join("whole");
        go(&text, folder.path(), &options(&whole)).unwrap_or_else(|e| panic!("{method}: {e}"));
        let kl = values(&whole, "ppo", "objective/kl");
        assert!(kl[0].abs() < 1e-3, "{method}: {kl:?}");
        for stage in ["sft", "rm", "dpo", "ppo"] {
            let source = ModelSource::of_stage(&whole.join(stage), None)
                .unwrap()
                .unwrap();
            let at = format!("{method}: {stage}");
            assert_eq!(source.config.vocab_size(), ROWS + 2, "{at}");
            let tokenizer = source.tokenizer().unwrap();
            assert_eq!(
                tokenizer.single_token("<|/think|>").unwrap(),
                ROWS as u32 + 1,
                "{at}"
            );
            match stage {
                "rm" => drop(source.check_reward().unwrap()),
                _ => source.check().unwrap(),
            }
            assert_eq!(source.config.has_own_tables(), method != "Full", "{at}");
        }
        // Read by another run with no word about tokens.
        let next = format!(
            r#"(name: "next", stages: [Sft(name: "sft", init: Folder("{}"), data: (source: Jsonl("rows.jsonl")),
                peft: METHOD, batch_size: 8, max_length: 64)])"#,
            whole.join("dpo").display()
        );
        let next = recipe(&next, folder.path(), method);
        let next_run = folder.path().join("next");
        go(&next, folder.path(), &options(&next_run)).unwrap_or_else(|e| panic!("{method}: {e}"));
        let source = ModelSource::of_stage(&next_run.join("sft"), None)
            .unwrap()
            .unwrap();
        assert_eq!(source.config.vocab_size(), ROWS + 2, "{method}");
    }
}

#[test]
fn a_run_with_new_tokens_resumes_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    rows(folder.path());
    let text = recipe(RECIPE, folder.path(), "Lora(rank: 2)");
    let whole = folder.path().join("whole");
    go(&text, folder.path(), &options(&whole)).unwrap();
    let parts = folder.path().join("parts");
    let mut stopped = options(&parts);
    stopped.interrupt = Interrupt::default();
    let mut reporter = Interrupter("sft", 1, stopped.interrupt.clone());
    run_recipe::<Flex>(
        &text,
        folder.path(),
        Default::default(),
        &stopped,
        &mut reporter,
    )
    .unwrap_err();
    let mut resumed = options(&parts);
    resumed.resume = true;
    go(&text, folder.path(), &resumed).unwrap();
    for file in [
        "metrics.jsonl",
        "adapter/adapter_model.safetensors",
        "adapter/tokenizer.json",
    ] {
        let file = Path::new("ppo").join(file);
        let same = fs::read(whole.join(&file)).unwrap() == fs::read(parts.join(&file)).unwrap();
        assert!(same, "{}", file.display());
    }
    // Other tokens are another run.
    let other = text.replace("<|think|>", "<|other|>");
    let message = go(&other, folder.path(), &resumed).unwrap_err().to_string();
    assert!(message.contains("add_tokens"), "{message}");
}

#[test]
fn the_files_name_the_tokens_and_their_rows_are_the_mean() {
    let folder = tempfile::tempdir().unwrap();
    rows(folder.path());
    let sft = RECIPE.split("        Rank(").next().unwrap().to_owned() + "],)";
    let out = folder.path().join("run");
    go(
        &recipe(&sft, folder.path(), "Lora(rank: 2)"),
        folder.path(),
        &options(&out),
    )
    .unwrap();
    let adapter = out.join("sft/adapter");
    let file = fs::read_to_string(adapter.join("tokenizer.json")).unwrap();
    let file: Value = serde_json::from_str(&file).unwrap();
    let last = file["added_tokens"].as_array().unwrap().last().unwrap();
    assert_eq!(
        (&last["id"], &last["content"], &last["special"]),
        (&json!(769), &json!("<|/think|>"), &json!(true))
    );
    let source = weights::open(adapter.join("adapter_model.safetensors")).unwrap();
    let table = source
        .read("base_model.model.model.embed_tokens.weight")
        .unwrap();
    let base = weights::open("models/tiny").unwrap();
    let old = base.read("model.embed_tokens.weight").unwrap();
    let width = old.len() / ROWS;
    assert_eq!(table.len(), (ROWS + 2) * width);
    assert!(table[..old.len()] == old[..]);
    for column in 0..width {
        let mean = old
            .iter()
            .skip(column)
            .step_by(width)
            .map(|&x| f64::from(x))
            .sum::<f64>()
            / ROWS as f64;
        for row in [ROWS, ROWS + 1] {
            assert!((f64::from(table[row * width + column]) - mean).abs() < 1e-7);
        }
    }
    // The tokens are there when the results are read alone.
    let tokenizer = Tokenizer::load(&adapter).unwrap();
    assert!(tokenizer.is_special(768) && tokenizer.is_special(769));
}

#[test]
fn tokens_that_cannot_be_added_are_named_before_a_weight_is_loaded() {
    for (tokens, expected) in [
        (r#"["<a>", ""]"#, "add_tokens.1: is empty"),
        (
            r#"["<a>", "<b>", "<a>"]"#,
            "add_tokens.2: \"<a>\" is listed twice",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        rows(folder.path());
        let text = RECIPE
            .replace(r#"["<|think|>", "<|/think|>"]"#, tokens)
            .replace("METHOD", "Full");
        let error = go(&text, folder.path(), &options(&folder.path().join("run"))).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        assert!(error.to_string().contains(expected), "{error}");
        assert!(!folder.path().join("run").exists());
    }
}
