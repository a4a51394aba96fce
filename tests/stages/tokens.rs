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

/// Only the rows of the new tokens are trained of the table.
const BESIDE_LORA: &str = r#"Lora(rank: 2, trainable_token_indices: ["<|think|>", "<|/think|>"])"#;

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
        BESIDE_LORA,
        "TrainableTokens(token_indices: [\"<|/think|>\", 768])",
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
    let text = recipe(RECIPE, folder.path(), BESIDE_LORA);
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
    let other = text.replace(
        "add_tokens: [\"<|think|>\", ",
        "add_tokens: [\"<|think|>\", \"<|other|>\", ",
    );
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

/// The only trained numbers beside LoRA's are the new rows, in files and in the optimiser; every other row stays the base's.
#[test]
fn a_new_token_costs_one_row() {
    let folder = tempfile::tempdir().unwrap();
    rows(folder.path());
    let text = RECIPE.split("        Rank(").next().unwrap().to_owned() + "],)";
    let text = recipe(&text, folder.path(), BESIDE_LORA);
    let out = folder.path().join("run");
    for precision in ["f32", "int8"] {
        let text = text.replace(
            "seed: 3,",
            &format!("seed: 3, base_precision: {precision},"),
        );
        let out = out.join(precision);
        go(&text, folder.path(), &options(&out)).unwrap();
        let adapter = out.join("sft/adapter");
        let source = weights::open(adapter.join("adapter_model.safetensors")).unwrap();
        let key = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta";
        let of_tables: Vec<String> = source.names();
        let of_tables = of_tables.iter().filter(|name| !name.contains(".lora_"));
        assert_eq!(of_tables.collect::<Vec<_>>(), [key], "{precision}");
        let shape = source.shape(key).unwrap();
        assert_eq!(shape[0], 2);
        let config = fs::read_to_string(adapter.join("adapter_config.json")).unwrap();
        let config: Value = serde_json::from_str(&config).unwrap();
        assert_eq!(config["trainable_token_indices"], json!([768, 769]));
        // Merged, the table is the base's but for them; the head is tied to it.
        let merged = out.join("merged");
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_temper"))
            .args(["export", "--stage", "sft", "--merge", "--run"])
            .args([&out, Path::new("--to"), &merged])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        let table =
            |source: &dyn weights::WeightSource| source.read("model.embed_tokens.weight").unwrap();
        let base = table(weights::open("models/tiny").unwrap().as_ref());
        let whole = table(weights::open(&merged).unwrap().as_ref());
        assert!(whole[..base.len()] == base[..], "{precision}");
        let trained = source.read(key).unwrap();
        assert!(whole[base.len()..] == trained[..], "{precision}");
        let width = base.len() / ROWS;
        assert!(
            trained[..width] != trained[width..],
            "{precision}: both stayed the mean"
        );
    }
}

#[test]
fn rows_that_cannot_be_trained_are_named_before_a_weight_is_loaded() {
    let lora = |rest: &str| format!("Lora(rank: 2, {rest})");
    for (method, expected) in [
        (
            lora(r#"trainable_token_indices: ["<|thnik|>", 5, "zzzzzz"]"#),
            "\"<|thnik|>\" is no token of the vocabulary; did you mean `<|think|>`?",
        ),
        (
            lora(r#"trainable_token_indices: ["<|thnik|>", 5, "zzzzzz"]"#),
            "\"zzzzzz\" is no token of the vocabulary; as a text it is ",
        ),
        (
            lora("trainable_token_indices: [770]"),
            "there is no token 770: model.embed_tokens has 770 rows, for ids 0 to 769",
        ),
        (
            lora(r#"trainable_token_indices: [768, "<|think|>"]"#),
            "token 768 is named twice",
        ),
        (lora("trainable_token_indices: [5, 7, 5]"), "names 5 twice"),
        (
            lora("trainable_token_indices: []"),
            "names no token, so none would be trained",
        ),
        (
            lora(r#"trainable_token_indices: {"wte": [5]}"#),
            "\"wte\" is the end of no table's path; this model has model.embed_tokens and lm_head",
        ),
        (
            lora(r#"trainable_token_indices: {"lm_head": [5]}"#),
            "lm_head is tied to model.embed_tokens in this model",
        ),
        (
            lora(
                r#"trainable_token_indices: [5], modules_to_save: ["embed_tokens"], ensure_weight_tying: true"#,
            ),
            "model.embed_tokens is trained whole by \"embed_tokens\" among modules_to_save",
        ),
        (
            lora(r#"trainable_token_indices: [5], target_modules: ["lm_head", "q_proj"]"#),
            "lm_head has an adapter by target_modules, and a row cannot be replaced and added to at once",
        ),
        ("TrainableTokens()".into(), "token_indices: names no token"),
        (
            r#"TrainableTokens(token_indices: [5], target_modules: ["q_proj"])"#.into(),
            "\"q_proj\" is the end of no table's path",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        rows(folder.path());
        let text = RECIPE.split("        Rank(").next().unwrap().to_owned() + "],)";
        let text = recipe(&text, folder.path(), &method);
        let run = folder.path().join("run");
        let error = go(&text, folder.path(), &options(&run)).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        assert!(error.to_string().contains(expected), "{method}: {error}");
        assert!(!run.exists());
    }
}
