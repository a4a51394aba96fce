//! Selective unfreezing: what is not named keeps its bits, in every stage; what is refused, and where.

use std::collections::BTreeMap;
use std::path::Path;

use burn::backend::Flex;
use tempering::error::Error;
use tempering::model::weights;
use tempering::recipe::RunOptions;
use tempering::report::{Interrupt, SilentReporter};

use super::resume::Interrupter;
use crate::support::pipeline::run_recipe;

/// A part of a joint matrix of queries, keys and values, a whole block but its norms, and the final norm.
const ONLY: &str = r#"Only(["layers.1.self_attn.k_proj", "layers.-1.mlp", "model.norm"])"#;
/// What [`ONLY`] names.
const TRAINED: [&str; 5] = [
    "model.layers.1.self_attn.k_proj.weight",
    "model.layers.3.mlp.down_proj.weight",
    "model.layers.3.mlp.gate_proj.weight",
    "model.layers.3.mlp.up_proj.weight",
    "model.norm.weight",
];

const RECIPE: &str = r#"(
    name: "only", model: "tiny", seed: 3,
    stages: [
        Pretrain(name: "pretrain", data: (source: Posts(rows: 16, seed: 1)), peft: ONLY,
            optim: (lr: 1e-3, weight_decay: 0.1), batch_size: 8, max_length: 96, gradient_checkpointing: true),
        Sft(name: "sft", data: (source: Posts(rows: 24, seed: 2)), peft: ONLY, optim: (lr: 1e-3, weight_decay: 0.1),
            batch_size: 8, max_length: 128, cadence: (save_steps: 1)),
        Rank(name: "rank", init: Stage("sft"), data: (source: Posts(rows: 16, seed: 4)), num_responses: 3,
            response_length: 16, reward: Gold),
        RewardModel(name: "rm", init: Stage("sft"), data: (source: Ranked(stage: "rank")), peft: ONLY,
            optim: (lr: 1e-3, weight_decay: 0.1), batch_size: 4, max_length: 128),
        Dpo(name: "dpo", init: Stage("sft"), data: (source: Ranked(stage: "rank")), peft: ONLY,
            optim: (lr: 1e-3, weight_decay: 0.1), batch_size: 4, max_length: 128),
        Ppo(name: "ppo", init: Stage("sft"), data: (source: Posts(rows: 16, seed: 6)), reward: Learned(stage: "rm"),
            peft: ONLY, optim: (lr: 1e-3, weight_decay: 0.1), total_episodes: 16, batch_size: 8, num_mini_batches: 2,
            num_ppo_epochs: 2, response_length: 16, max_prompt_length: 96, gradient_checkpointing: true,
            ema_decay: 0.9),
    ],
)
"#;

/// Numbers of every tensor, as bits.
fn tensors(model: &Path) -> BTreeMap<String, Vec<u32>> {
    let source = weights::open(model).unwrap();
    let names = source.names().into_iter();
    names
        .map(|name| {
            let bits = source.read(&name).unwrap();
            (name, bits.into_iter().map(f32::to_bits).collect())
        })
        .collect()
}

#[test]
fn every_stage_changes_what_is_named_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let text = RECIPE.replace("ONLY", ONLY);
    let run = |output: &str, reporter: &mut dyn tempering::report::Reporter, resume, interrupt| {
        let options = RunOptions {
            output: Some(folder.path().join(output)),
            resume,
            interrupt,
            ..RunOptions::default()
        };
        run_recipe::<Flex>(&text, folder.path(), Default::default(), &options, reporter)
    };
    run("whole", &mut SilentReporter, false, Interrupt::default()).unwrap();
    let whole = folder.path().join("whole");
    for (stage, init) in [
        ("pretrain", None),
        ("sft", None),
        ("rm", Some("sft")),
        ("dpo", Some("sft")),
        ("ppo", Some("sft")),
    ] {
        let before = tensors(&match init {
            Some(stage) => whole.join(stage).join("model"),
            None => Path::new("models/tiny").to_path_buf(),
        });
        let after = tensors(&whole.join(stage).join("model"));
        let changed = |name: &&String| before.get(*name).is_some_and(|old| *old != after[*name]);
        let changed: Vec<&String> = after.keys().filter(changed).collect();
        assert_eq!(changed, TRAINED, "{stage}");
        // Nothing is lost but a reward model's head, which here is the embedding.
        let kept = before.keys().filter(|name| after.contains_key(*name));
        assert_eq!(kept.count(), before.len(), "{stage}");
    }

    // Interrupted between two steps and resumed, the parts of joint matrices continue with their moments.
    let interrupt = Interrupt::default();
    let mut reporter = Interrupter("sft", 1, interrupt.clone());
    let stopped = run("parts", &mut reporter, false, interrupt).unwrap_err();
    assert!(matches!(stopped, Error::Interrupted { .. }), "{stopped}");
    run("parts", &mut SilentReporter, true, Interrupt::default()).unwrap();
    let parts = folder.path().join("parts");
    for stage in ["sft", "ppo"] {
        let file = |run: &Path| run.join(stage).join("model");
        assert!(tensors(&file(&whole)) == tensors(&file(&parts)), "{stage}");
    }
}

#[test]
fn names_are_checked_before_a_weight_is_loaded() {
    let refused = |peft: &str, stage: &str| {
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            r#"(name: "only", model: "tiny", stages: [{stage}, peft: {peft}, batch_size: 8, max_length: 96)])"#
        );
        let options = RunOptions {
            output: Some(folder.path().join("run")),
            ..RunOptions::default()
        };
        let error = run_recipe::<Flex>(
            &text,
            folder.path(),
            Default::default(),
            &options,
            &mut SilentReporter,
        )
        .unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        assert!(!folder.path().join("run").exists());
        error.to_string()
    };
    let sft = r#"Sft(name: "a", data: (source: Posts(rows: 16, seed: 1))"#;
    for (peft, expected) in [
        (
            r#"Only(["lm_head"])"#,
            "stages.a.peft: \"lm_head\": lm_head is tied to model.embed_tokens in this model",
        ),
        (
            r#"Only(["layers.4", "self_atn"])"#,
            "\"layers.4\" matches no parameter; \"self_atn\" matches no parameter; did you mean \"self_attn\"?",
        ),
        ("Only([])", "stages.a.peft: names no parameter"),
    ] {
        let message = refused(peft, sft);
        assert!(message.contains(expected), "{message}");
    }
    let message = refused(
        r#"Only(["lm_head"])"#,
        r#"RewardModel(name: "a", init: Base, data: (source: Jsonl("tests/reference/trajectories/preferences.jsonl"))"#,
    );
    assert!(
        message.contains("\"lm_head\" matches no parameter"),
        "{message}"
    );
}
