//! `recipes/tldr.ron` as it is shipped, through all of its stages, against a hub of this test's own: the data sets' files by their names
//! on the hub, with their columns, and a small qwen3 in the place of Qwen3-0.6B-Base.
#![cfg(feature = "flex")]

#[allow(dead_code)]
#[path = "../support/hub.rs"]
mod hub;
mod parquet_files;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use hub::{COMMIT, LoopbackHub};
use parquet_files::parquet_file;
use serde_json::{Value, json};
use tempering::model::ModelConfig;
use tempering::model::weights::{RandomSource, WeightSource, write_safetensors};
use tempering::rng::Seed;

/// What shortens the recipe: sizes of batches, the number of episodes and the length of responses.
const SHORTENED: [&str; 6] = [
    "stages.sft.batch_size=8",
    "stages.rm.batch_size=4",
    "stages.ppo.batch_size=4",
    "stages.ppo.total_episodes=8",
    "stages.ppo.response_length=8",
    "stages.compare.response_length=8",
];

/// A post in the words of trl-lib/tldr.
fn prompt(index: usize) -> String {
    let names = ["sister", "flatmate", "boss", "neighbour"];
    let name = names[index % names.len()];
    format!(
        "SUBREDDIT: r/relationships\n\nTITLE: My [{}F] {name} borrows my car and never fills the tank.\n\nPOST: We have shared a car for {index} months. \
         Every Monday it is empty.\nI have asked my {name} twice. What should I say?\n\nTL;DR:",
        20 + index
    )
}

/// Rows of trl-lib/tldr: `prompt`, and `completion` with a space before it.
fn tldr(from: usize, rows: usize) -> Vec<u8> {
    let rows: Vec<Vec<String>> = (from..from + rows)
        .map(|i| {
            let completion = format!(" car is empty every Monday for {i} months, want it to stop.");
            vec![prompt(i), completion]
        })
        .collect();
    parquet_file(&["prompt", "completion"], &rows)
}

/// Rows of trl-lib/tldr-preference: `prompt`, `chosen` and `rejected`.
fn preferences(from: usize, rows: usize) -> Vec<u8> {
    let rows: Vec<Vec<String>> = (from..from + rows)
        .map(|i| {
            let chosen = format!(" I have shared a car for {i} months; it is always empty.");
            vec![prompt(i), chosen, " I have a car. What do I do?".into()]
        })
        .collect();
    parquet_file(&["prompt", "chosen", "rejected"], &rows)
}

/// A qwen3 of two layers with random weights and the tokenizer of the embedded model, file by file.
fn small_qwen3() -> Vec<(String, Vec<u8>)> {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny");
    let config = json!({
        "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 1024, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "initializer_range": 0.05,
        "tie_word_embeddings": true, "vocab_size": 768, "eos_token_id": 0, "bos_token_id": 0
    });
    let source = RandomSource::new(
        &ModelConfig::from_value(config.clone()).unwrap(),
        Seed::new(5),
    );
    let tensors: Vec<_> = source
        .names()
        .into_iter()
        .filter(|name| name != "score.weight")
        .map(|name| {
            let (shape, values) = (source.shape(&name).unwrap(), source.read(&name).unwrap());
            (name, shape, values)
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let weights = folder.path().join("model.safetensors");
    write_safetensors(&weights, &tensors).unwrap();
    let mut files = vec![
        ("config.json".to_owned(), config.to_string().into_bytes()),
        ("model.safetensors".to_owned(), fs::read(weights).unwrap()),
    ];
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        files.push((name.to_owned(), fs::read(tiny.join(name)).unwrap()));
    }
    files
}

/// Everything that the recipe names, by its path on the hub.
fn files() -> BTreeMap<String, Vec<u8>> {
    let of = |repo: &str, split: &str| {
        format!("datasets/trl-lib/{repo}/data/{split}-00000-of-00001.parquet")
    };
    let mut files = BTreeMap::from([
        (of("tldr", "train"), tldr(0, 16)),
        (of("tldr", "validation"), tldr(16, 4)),
        (of("tldr", "test"), tldr(20, 4)),
        (of("tldr-preference", "train"), preferences(0, 8)),
        (of("tldr-preference", "validation"), preferences(8, 4)),
    ]);
    for (name, bytes) in small_qwen3() {
        files.insert(format!("Qwen/Qwen3-0.6B-Base/{name}"), bytes);
    }
    files
}

#[test]
fn the_recipe_runs_from_the_hub_to_its_last_table() {
    let files = files();
    let names: Vec<String> = files.keys().cloned().collect();
    let hub = LoopbackHub::serve(files);
    let temp = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_temper"));
    command
        .current_dir(temp.path())
        .env("TEMPERING_HOME", temp.path().join("home"))
        .env("HF_HOME", temp.path().join("hub"))
        .env("HF_ENDPOINT", &hub.endpoint)
        .env("NO_PROXY", "127.0.0.1")
        .args(["--backend", "flex", "recipe"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/tldr.ron"));
    for set in SHORTENED {
        command.args(["--set", set]);
    }
    let output = command.output().unwrap();
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{stderr}");

    // 16 rows in batches of 8, 8 comparisons in batches of 4, 8 episodes in batches of 4.
    for stage in ["sft", "rm", "ppo"] {
        let folder = temp.path().join("runs/tldr").join(stage);
        let metrics = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
        let last: Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
        assert_eq!(last["step"], 2, "{stage}: {last}");
        assert!(folder.join("model/model.safetensors").exists(), "{stage}");
    }
    for column in ["base", "sft", "ppo", "reward", "rouge-l"] {
        assert!(stdout.contains(column), "{column} is not in {stdout}");
    }
    let run = fs::read_to_string(temp.path().join("runs/tldr/run.json")).unwrap();
    let run: Value = serde_json::from_str(&run).unwrap();
    for (inputs, repository) in [
        ("/models/0/files/0", "Qwen/Qwen3-0.6B-Base"),
        ("/data/0", "datasets/trl-lib/tldr"),
    ] {
        let file = run["lineage"][0].pointer(inputs).unwrap();
        assert_eq!(file["repository"], format!("{repository}@{COMMIT}"));
    }
    let mut fetched = hub.downloads();
    fetched.sort();
    assert_eq!(fetched, names, "every file of the hub is fetched, and once");
}
