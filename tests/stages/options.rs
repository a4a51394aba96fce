//! What stages do beyond the plain pipeline: responses that end at a token, a reward model of choices with standardised
//! scores, pre-training text and averaged weights in PPO.

use std::fs;
use std::path::Path;

use burn::backend::Flex;
use serde_json::Value;
use tempering::checkpoint::{RunDir, read_tensor_map};
use tempering::data::{DataConfig, DataContext, Tokenizer, encode_completions, read_rows};
use tempering::recipe::RunOptions;
use tempering::report::{Interrupt, SilentReporter};
use tempering::rl;
use tempering::train::Session;

use super::resume::Interrupter;
use crate::support::pipeline::{run_recipe, values};

const RECIPE: &str = r#"(
    name: "options", model: "tiny", seed: 5,
    stages: [
        Sft(name: "sft", data: (source: Posts(rows: 16, seed: 2)), peft: Lora(rank: 4), optim: (lr: 1e-3), batch_size: 8,
            max_length: 128),
        Rank(name: "rank", init: Stage("sft"), data: (source: Posts(rows: 16, seed: 4)), num_responses: 3,
            response_length: 16, truncate: (token: ".", after: 4), reward: Gold),
        RewardModel(name: "rm", init: Stage("sft"), data: (source: Ranked(stage: "rank")),
            eval_data: (source: Jsonl("VALID")), peft: Lora(rank: 4), optim: (lr: 1e-3), loss_type: best_of_k,
            batch_size: 4, max_length: 128, center_on: (source: Posts(rows: 12, seed: 5)), standardize: true,
            accuracy_by: ["batch", "extra.confidence"], cadence: (save_steps: 1)),
        Ppo(name: "ppo", init: Stage("sft"), data: (source: Posts(rows: 48, seed: 6)), reward: Learned(stage: "rm"),
            peft: Lora(rank: 4), optim: (lr: 1e-3), total_episodes: EPISODES, batch_size: 16, num_mini_batches: 2,
            num_ppo_epochs: 2, response_length: 16, max_prompt_length: 96, truncate: (token: ".", after: 4),
            ptx: (data: (source: Posts(rows: 10, seed: 9)), coef: 0.5, batch_size: 4, max_length: 96),
            ema_decay: DECAY, cadence: (save_steps: 1)),
    ],
)
"#;

/// Held-out comparisons with labels.
const VALID: &str = r#"{"prompt": "p", "chosen": "good", "rejected": "bad", "batch": 7, "extra": {"confidence": 9}}
{"prompt": "p", "chosen": "one", "rejected": "two", "batch": 7, "extra": {"confidence": -1}}
{"prompt": "q", "chosen": "three", "rejected": "four"}
"#;

fn recipe(folder: &Path, episodes: usize, decay: &str) -> String {
    let valid = folder.join("valid.jsonl");
    fs::write(&valid, VALID).unwrap();
    RECIPE
        .replace("VALID", valid.to_str().unwrap())
        .replace("EPISODES", &episodes.to_string())
        .replace("DECAY", decay)
}

fn options(output: &Path) -> RunOptions {
    RunOptions {
        output: Some(output.to_path_buf()),
        ..RunOptions::default()
    }
}

fn run(text: &str, folder: &Path, options: &RunOptions) {
    let device = Default::default();
    run_recipe::<Flex>(text, folder, device, options, &mut SilentReporter).unwrap();
}

/// Interrupts the recipe after `updates` updates of PPO and resumes: the files equal those of the whole run.
fn ppo_resumes(text: &str, folder: &Path, updates: usize, whole: &Path, parts: &Path) {
    let mut options = options(parts);
    let mut reporter = Interrupter("ppo", updates, options.interrupt.clone());
    let device = Default::default();
    run_recipe::<Flex>(text, folder, device, &options, &mut reporter).unwrap_err();
    (options.resume, options.interrupt) = (true, Interrupt::default());
    run(text, folder, &options);
    for file in ["ppo/metrics.jsonl", "ppo/adapter/adapter_model.safetensors"] {
        assert!(read(&whole.join(file)) == read(&parts.join(file)), "{file}");
    }
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn every_option_works_and_resumes() {
    let folder = tempfile::tempdir().unwrap();
    let text = recipe(folder.path(), 48, "0.9");
    let whole = folder.path().join("whole");
    run(&text, folder.path(), &options(&whole));
    responses_end_at_the_token(&whole);
    scores_are_standardised(&whole);
    accuracy_is_reported_by_group(&whole);
    let texts = values(&whole, "ppo", "loss/ptx_avg");
    assert_eq!(texts.len(), 3, "{texts:?}");
    // The embedded model was trained on such text, to 0.83 nats per token.
    let near = |loss: &f64| (0.6..1.1).contains(loss);
    assert!(texts.iter().all(near), "{texts:?}");

    let parts = folder.path().join("parts");
    let mut options = options(&parts);
    for (stage, step) in [("rm", 2), ("ppo", 1), ("ppo", 2)] {
        options.interrupt = Interrupt::default();
        let mut reporter = Interrupter(stage, step, options.interrupt.clone());
        let device = Default::default();
        run_recipe::<Flex>(&text, folder.path(), device, &options, &mut reporter).unwrap_err();
        options.resume = true;
    }
    options.interrupt = Interrupt::default();
    run(&text, folder.path(), &options);
    for file in [
        "rank/train.jsonl",
        "rm/metrics.jsonl",
        "rm/adapter/adapter_model.safetensors",
        "ppo/metrics.jsonl",
        "ppo/adapter/adapter_model.safetensors",
    ] {
        assert!(read(&whole.join(file)) == read(&parts.join(file)), "{file}");
    }
}

/// A value head on the policy, in f32 and where old log-probabilities come from a pass with the values.
#[test]
fn one_trunk_works_and_resumes() {
    let folder = tempfile::tempdir().unwrap();
    for base in ["f32", "int8"] {
        let text = recipe(folder.path(), 48, "None")
            .replace("ema_decay", "value_trunk: Policy, vf_coef: 0.5, ema_decay")
            .replace("seed: 5,", &format!("seed: 5, base_precision: {base},"));
        let whole = folder.path().join(format!("{base}-whole"));
        let parts = folder.path().join(format!("{base}-parts"));
        run(&text, folder.path(), &options(&whole));
        ppo_resumes(&text, folder.path(), 2, &whole, &parts);
        assert!(values(&whole, "ppo", "value/grad_norm").is_empty());
        // The head starts at zero and learns: its values of the second rollout explain some variance, or are at least not constant.
        let explained = values(&whole, "ppo", "val/explained_variance");
        assert!(explained[0].abs() < 1e-6, "{explained:?}");
        assert!(
            explained[1..].iter().all(|x| x.abs() > 1e-6),
            "{explained:?}"
        );
        let apart = values(&whole, "ppo", "rollout/logprob_max_diff");
        let most = if base == "int8" { 1e-6 } else { 1e-4 };
        assert!(apart.iter().all(|&diff| diff < most), "{apart:?}");
    }
}

#[test]
fn fewer_bits_work_and_resume() {
    let folder = tempfile::tempdir().unwrap();
    for (base, products) in [
        ("bf16", "f32"),
        ("int8", "f32"),
        ("f32", "bf16"),
        ("bf16", "bf16"),
        ("int8", "bf16"),
    ] {
        let text = recipe(folder.path(), 32, "0.9").replace(
            "seed: 5,",
            &format!("seed: 5, base_precision: {base}, matmul_precision: {products},"),
        );
        let whole = folder.path().join(format!("{base}-{products}-whole"));
        let parts = folder.path().join(format!("{base}-{products}-parts"));
        run(&text, folder.path(), &options(&whole));
        ppo_resumes(&text, folder.path(), 1, &whole, &parts);
        // Where inputs are rounded the old log-probabilities are of a pass like the update's, to the last bit.
        let rounded = base == "int8" || products == "bf16";
        let most = if rounded { 1e-6 } else { 1e-4 };
        let apart = values(&whole, "ppo", "rollout/logprob_max_diff");
        assert!(apart.iter().all(|&diff| diff < most), "{apart:?}");
    }
}

/// From index 4 on a full stop is the last token, and every response that is not full ends with one or with EOS.
/// Layers that are computed again have the same numbers, to the last bit.
#[test]
fn recomputed_layers_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let plain = recipe(folder.path(), 32, "0.9").replace(
        "        Ppo(",
        "        Dpo(name: \"dpo\", init: Stage(\"sft\"), data: (source: Ranked(stage: \"rank\")), peft: Lora(rank: 4),
            optim: (lr: 1e-3), batch_size: 4, max_length: 128),
        Ppo(",
    );
    assert!(plain.contains("Dpo("));
    let again = plain.replace(
        "peft: Lora(rank: 4),",
        "gradient_checkpointing: true, peft: Lora(rank: 4),",
    );
    assert_eq!(again.matches("gradient_checkpointing").count(), 4);
    let runs = [("plain", plain), ("again", again)].map(|(name, text)| {
        let output = folder.path().join(name);
        run(&text, folder.path(), &options(&output));
        output
    });
    for stage in ["sft", "rm", "dpo", "ppo"] {
        for file in ["metrics.jsonl", "adapter/adapter_model.safetensors"] {
            let [plain, again] = runs.each_ref().map(|run| read(&run.join(stage).join(file)));
            assert!(plain == again, "{stage}/{file}");
        }
    }
}

fn responses_end_at_the_token(run: &Path) {
    let tokenizer = Tokenizer::load(Path::new("models/tiny")).unwrap();
    let stop = tokenizer.single_token(".").unwrap();
    let mut truncated = 0;
    let text = fs::read_to_string(run.join("rank/train.jsonl")).unwrap();
    for line in text.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let responses: Vec<Vec<u32>> = serde_json::from_value(row["response_ids"].clone()).unwrap();
        for ids in responses {
            let last = ids.len() - 1;
            let first = (4..ids.len()).find(|&i| ids[i] == stop);
            assert!(first.is_none_or(|i| i == last), "{ids:?}");
            let ended = first.is_some() || ids[last] == tokenizer.eos_id();
            assert!(ended || ids.len() == 16, "{ids:?}");
            truncated += usize::from(first.is_some());
        }
    }
    assert!(truncated > 0, "no response has a full stop");
}

/// Mean 0 and variance 1 over the responses of `center_on`, by the files that the stage wrote.
fn scores_are_standardised(run: &Path) {
    let data: DataConfig =
        serde_json::from_str(r#"{"source": {"Posts": {"rows": 12, "seed": 5}}}"#).unwrap();
    let rows = read_rows(&data, &DataContext::default()).unwrap();
    let tokenizer = Tokenizer::load(Path::new("models/tiny")).unwrap();
    let examples = encode_completions(&rows, &tokenizer, &data.format, 128, true).unwrap();
    let rows: Vec<&[u32]> = examples.items.iter().map(|e| e.ids.as_slice()).collect();
    let folder = RunDir::open(run).unwrap();
    let mut reporter = SilentReporter;
    let mut session = Session::<Flex>::new(Default::default(), &folder, &mut reporter);
    let model = session.reward_model("rm").unwrap().model;
    let scores = model.row_scores(&rows, 1024, &Default::default(), &mut |_, _| {});
    assert!(rl::mean(&scores).abs() < 1e-5, "{scores:?}");
    assert!((rl::variance(&scores) - 1.0).abs() < 1e-4, "{scores:?}");
}

fn accuracy_is_reported_by_group(run: &Path) {
    for (name, steps) in [
        ("eval/accuracy/batch=7", [0.0, 0.5, 1.0].as_slice()),
        ("eval/accuracy/batch=none", &[0.0, 1.0]),
        ("eval/accuracy/extra.confidence=9", &[0.0, 1.0]),
        ("eval/accuracy/extra.confidence=-1", &[0.0, 1.0]),
    ] {
        let found = values(run, "rm", name);
        assert_eq!(found.len(), 2, "{name}: before and after training");
        assert!(found.iter().all(|x| steps.contains(x)), "{name}: {found:?}");
    }
    let report = fs::read_to_string(run.join("rm/report.html")).unwrap();
    assert!(report.contains("extra.confidence"));
}

#[test]
fn the_average_lies_between_the_first_and_the_last_weights() {
    let folder = tempfile::tempdir().unwrap();
    let adapter = |decay: &str| {
        let output = folder.path().join(decay);
        run(
            &recipe(folder.path(), 16, decay),
            folder.path(),
            &options(&output),
        );
        let read = |stage: &str| {
            read_tensor_map(output.join(stage).join("adapter/adapter_model.safetensors")).unwrap()
        };
        (read("sft"), read("ppo"))
    };
    // After one update: 0.75 of the weights before it and 0.25 of those after it.
    let (first, last) = adapter("None");
    let (_, average) = adapter("0.75");
    let mut moved = 0f32;
    for (name, (_, values)) in &average {
        for ((mean, a), b) in values.iter().zip(&first[name].1).zip(&last[name].1) {
            assert!((mean - (0.75 * a + 0.25 * b)).abs() < 1e-7, "{name}");
            moved = moved.max((a - b).abs());
        }
    }
    assert!(moved > 1e-4, "{moved}");
}
