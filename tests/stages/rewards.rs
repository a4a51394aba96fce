//! Reward models beyond pairs (soft labels, ratings, safety labels, calibration), and reward sources made of others.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempering::error::{Error, Result};
use tempering::recipe::{self, CheckedRecipe, RunOptions};

use super::resume::run_until;
use crate::support::pipeline::{metrics, values};

/// Prompts, chosen and rejected responses.
const ROWS: [[&str; 3]; 6] = [
    ["I lost my red key:", " a lost key", " the rain"],
    ["the cat sat on a mat:", " a cat", " we sold it all"],
    ["should I tell him:", " yes", " no, never"],
    ["the house is cold:", " warm it", " buy bread again"],
    ["my friend is late:", " wait and wait", " go"],
    ["they sold the car:", " a sale", " birds"],
];

/// Comparisons with every label there is.
fn pair(index: usize) -> Value {
    let [prompt, chosen, rejected] = ROWS[index];
    let probability = [0.9, 0.75, 0.2, 0.5, 1.0, 0.6][index];
    json!({"prompt": prompt, "chosen": chosen, "rejected": rejected, "chosen_probability": probability, "chosen_safe": index != 3, "rejected_safe": index % 2,
        "gold_chosen": index as f64, "gold_rejected": 2.5})
}

fn rated(index: usize) -> Value {
    let [prompt, chosen, _] = ROWS[index];
    json!({"prompt": prompt, "completion": chosen, "rating": index as f64 / 2.0})
}

fn write(file: &Path, row: impl Fn(usize) -> Value) {
    let lines: String = (0..ROWS.len()).map(|i| format!("{}\n", row(i))).collect();
    fs::write(file, lines).unwrap();
}

/// A reward model of `rows.jsonl` in the folder, evaluated on the same rows.
fn reward_model(folder: &Path, keys: &str) -> String {
    let rows = folder.join("rows.jsonl");
    format!(
        "(name: \"r\", model: \"models/tiny\", seed: 4, stages: [RewardModel(name: \"rm\", init: Base,
            data: (source: Jsonl({rows:?})), eval_data: (source: Jsonl({rows:?})), peft: Lora(rank: 2), optim: (lr: 1e-3),
            batch_size: 2, max_length: 64, cadence: (eval_steps: 1, save_steps: 1), {keys})])"
    )
}

fn checked(folder: &Path, recipe: &str) -> Result<(CheckedRecipe, RunOptions)> {
    let file = folder.join("r.ron");
    fs::write(&file, recipe).unwrap();
    let options = RunOptions {
        output: Some(folder.join("out")),
        ..RunOptions::default()
    };
    let checked = recipe::check(recipe::load_with_places(&file, &[])?, &options)?;
    Ok((checked, options))
}

/// The problems of a recipe, or its warnings if it is sound.
fn complaints(folder: &Path, recipe: &str) -> String {
    match checked(folder, recipe) {
        Ok((checked, _)) => format!("{:?}", checked.warnings),
        Err(Error::Invalid { problems, .. }) => format!("{problems:?}"),
        Err(error) => panic!("{error}"),
    }
}

/// Runs a recipe whole, and in two parts; both give the same files.
fn run_twice(folder: &Path, recipe: &str, stop: (&'static str, usize), files: &[&str]) {
    let (whole, parts) = (folder.join("whole"), folder.join("parts"));
    assert!(!run_until(recipe, folder, &whole, None));
    assert!(run_until(recipe, folder, &parts, Some(stop)));
    assert!(!run_until(recipe, folder, &parts, None));
    for file in files {
        let read = |run: &Path| fs::read(run.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        assert!(read(&whole) == read(&parts), "{file}");
    }
}

const FILES: [&str; 2] = ["rm/metrics.jsonl", "rm/adapter/adapter_model.safetensors"];

#[test]
fn soft_labels_centring_and_safety_train_evaluate_and_resume() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write(&folder.join("rows.jsonl"), pair);
    let recipe = reward_model(
        folder,
        "soft_labels: true, center_rewards_coefficient: 0.01, safety_coef: 0.5, epochs: 2",
    );
    run_twice(folder, &recipe, ("rm", 2), &FILES);
    let whole = folder.join("whole");
    let last = metrics(&whole, "rm").pop().unwrap();
    let first = &values(&whole, "rm", "eval/loss")[0];
    let trained = last["eval/loss"].as_f64().unwrap();
    assert!(trained < *first, "{trained}, {first}");
    for name in [
        "eval/accuracy",
        "eval/calibration_error",
        "eval/length_correlation",
        "eval/accuracy_shorter",
        "eval/accuracy_longer",
        "eval/gold_agreement",
        "eval/safety_accuracy",
        "eval/unsafe_recall",
    ] {
        assert!(
            last[name].as_f64().is_some_and(f64::is_finite),
            "{name}: {last}"
        );
    }
    let page = fs::read_to_string(whole.join("rm/report.html")).unwrap();
    for part in [
        "Reliability",
        "Accuracy by length",
        "held-out comparisons as the gold scores do",
    ] {
        assert!(page.contains(part), "{part}");
    }
}

#[test]
fn a_certain_soft_label_is_a_plain_one() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let losses = |row: fn(usize) -> Value, keys: &str, name: &str| {
        write(&folder.join("rows.jsonl"), row);
        let out = folder.join(name);
        assert!(!run_until(&reward_model(folder, keys), folder, &out, None));
        values(&out, "rm", "eval/loss")
    };
    let certain = |index| {
        let mut row = pair(index);
        row["chosen_probability"] = json!(1);
        row
    };
    let turned = |index| {
        let mut row = pair(index);
        row["chosen_probability"] = json!(0);
        let (chosen, rejected) = (row["chosen"].take(), row["rejected"].take());
        (row["chosen"], row["rejected"]) = (rejected, chosen);
        row
    };
    let plain = losses(pair, "", "plain");
    assert_eq!(losses(certain, "soft_labels: true", "certain"), plain);
    let turned = losses(turned, "soft_labels: true", "turned");
    for (turned, plain) in turned.iter().zip(&plain) {
        // Rows are packed in another order.
        assert!((turned - plain).abs() < 1e-5, "{turned}, {plain}");
    }
}

#[test]
fn ratings_are_regressed_on() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write(&folder.join("rows.jsonl"), rated);
    let recipe = reward_model(folder, "loss_type: regression, epochs: 4");
    run_twice(folder, &recipe, ("rm", 5), &FILES);
    let whole = folder.join("whole");
    let losses = values(&whole, "rm", "eval/loss");
    assert!(losses.last().unwrap() < &losses[0], "{losses:?}");
    for name in ["eval/mae", "eval/correlation"] {
        assert!(values(&whole, "rm", name).len() > 1, "{name}");
    }
    assert!(values(&whole, "rm", "accuracy").is_empty());
}

#[test]
fn labels_that_do_not_fit_are_refused_before_anything_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let rows = folder.join("rows.jsonl");
    let finds = |keys: &str, parts: &[&str]| {
        let found = complaints(folder, &reward_model(folder, keys));
        for part in parts {
            assert!(found.contains(part), "{part:?} is not in\n{found}");
        }
    };
    let changed = |column: &'static str, value: Value| {
        move |index: usize| {
            let mut row = pair(index);
            if index == 2 {
                row[column] = value.clone();
            }
            row
        }
    };
    write(&rows, pair);
    finds(
        "",
        &[
            "6 of 6 rows have a `chosen_probability`",
            "12 responses have a safety label",
        ],
    );
    finds(
        "soft_labels: true, use_margin: true",
        &["a pair has a margin or a probability"],
    );
    finds(
        "soft_labels: true, loss_type: best_of_k",
        &["only the loss `bradley_terry` knows probabilities of pairs"],
    );
    finds(
        "center_rewards_coefficient: 0.0",
        &["center_rewards_coefficient", "above 0"],
    );
    finds(
        "safety_coef: 1.0, center_on: (source: Posts(rows: 4, seed: 1))",
        &["shifts the scores, which `safety_coef` trains to be logits"],
    );
    finds(
        "loss_type: regression",
        &["expected `prompt` and `completion`"],
    );
    write(&rows, |index| {
        let [prompt, chosen, _] = ROWS[index];
        json!({"prompt": prompt, "completion": chosen})
    });
    finds(
        "loss_type: regression",
        &["expected a column `rating`, a number"],
    );
    write(&rows, changed("chosen_probability", json!(1.25)));
    finds(
        "soft_labels: true",
        &[
            "rows.jsonl:3",
            "expected a probability, from 0 to 1, found 1.25",
        ],
    );
    let safe_alone = |index| {
        let mut row = pair(index);
        (row["chosen_safe"], row["rejected_safe"]) = (json!(true), json!(1));
        row
    };
    write(&rows, safe_alone);
    finds(
        "safety_coef: 0.1",
        &["all 12 labels say safe: a classification needs responses of both classes"],
    );
    write(&rows, |index| {
        let [prompt, chosen, rejected] = ROWS[index];
        json!({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    });
    finds(
        "safety_coef: 0.1",
        &["no row of the data has a column `chosen_safe` or `rejected_safe`"],
    );
    finds(
        "soft_labels: true",
        &["no row of the data has a column `chosen_probability`"],
    );
    write(&rows, |index| {
        let mut row = rated(index);
        row["rating"] = json!("good");
        row
    });
    finds(
        "loss_type: regression",
        &["column `rating`: expected a number, found a string"],
    );
    write(&rows, |index| {
        let mut row = rated(index);
        row["rating"] = json!(3);
        row
    });
    finds(
        "loss_type: regression",
        &["all 6 ratings are 3: nothing can be learned"],
    );
}

#[test]
fn rows_of_a_stage_without_the_labels_are_refused_by_the_check() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = |keys: &str| {
        format!(
            "(name: \"r\", model: \"models/tiny\", seed: 4, stages: [
                Rank(name: \"rank\", init: Base, data: (source: Posts(rows: 8, seed: 4)), num_responses: 2, response_length: 8,
                    reward: Gold),
                RewardModel(name: \"rm\", init: Base, data: (source: Stage(\"rank\")), peft: Lora(rank: 2),
                    optim: (lr: 1e-3), batch_size: 2, max_length: 128, {keys})])"
        )
    };
    for (keys, expected) in [
        (
            "soft_labels: true",
            "have scores and no `chosen_probability`",
        ),
        (
            "safety_coef: 1.0",
            "no stage writes rows with `chosen_safe`",
        ),
    ] {
        let problems = checked(folder.path(), &recipe(keys)).err().unwrap();
        let error = problems.to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// Two reward models and their combinations as the reward of PPO.
const SOURCES: &str = r#"(
    name: "sources", model: "models/tiny", seed: 6,
    stages: [
        Sft(name: "sft", data: (source: Posts(rows: 16, seed: 2)), peft: Lora(rank: 2), optim: (lr: 1e-3), batch_size: 8,
            max_length: 128),
        Rank(name: "rank", init: Stage("sft"), data: (source: Posts(rows: 12, seed: 4)), num_responses: 2, response_length: 12,
            reward: LengthPenalty(source: Sum([(1.0, Bleu()), (1.0, Chrf(word_order: 2))]), unit: Tokens, beyond: 4, coef: 0.5)),
        RewardModel(name: "a", init: Stage("sft"), data: (source: Stage("rank")), peft: Lora(rank: 2), optim: (lr: 1e-3),
            batch_size: 4, max_length: 128),
        RewardModel(name: "b", init: Stage("sft"), data: (source: Stage("rank")), peft: Lora(rank: 2), optim: (lr: 2e-3),
            batch_size: 4, max_length: 128),
        Ppo(name: "ppo", init: Stage("sft"), data: (source: Jsonl("PROMPTS")),
            reward: Safest(
                helpful: Ensemble(sources: [Learned(stage: "a"), Learned(stage: "b")], combine: MeanMinusStd(0.5)),
                safety: Sum([(1.0, Learned(stage: "b")), (0.1, LogProbability(model: "models/tiny")), (0.1, LogProbability(stage: "sft"))]),
                tag: "risky"),
            value_init: Learned("b"),
            peft: Lora(rank: 2), optim: (lr: 1e-3), total_episodes: 16, batch_size: 8, num_mini_batches: 1, num_ppo_epochs: 1,
            response_length: 12, max_prompt_length: 64, cadence: (save_steps: 1)),
    ],
)
"#;

/// The recipe [`SOURCES`] on prompts of its own.
fn sources(folder: &Path, risky: impl Fn(usize) -> Value) -> String {
    let prompts = folder.join("prompts.jsonl");
    write(
        &prompts,
        |i| json!({"prompt": ROWS[i][0], "risky": risky(i)}),
    );
    SOURCES.replace("PROMPTS", prompts.to_str().unwrap())
}

#[test]
fn sources_of_sources_reward_ppo_and_it_resumes() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let recipe = sources(folder, |i| json!(i % 2 == 0));
    let files = ["ppo/metrics.jsonl", "ppo/adapter/adapter_model.safetensors"];
    run_twice(folder, &recipe, ("ppo", 1), &files);
    // Whitened over a batch: the mean is 0.
    let scores = values(&folder.join("whole"), "ppo", "objective/scores");
    assert!(scores.iter().all(|score| score.abs() < 1e-4), "{scores:?}");
}

#[test]
fn models_inside_sources_are_checked_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let recipe = sources(folder, |i| json!(i % 2));
    let (found, _) = checked(folder, &recipe).unwrap();
    let memory = |kind: &str| -> u64 {
        let plan = found.plans.iter().find(|plan| plan.name == "ppo").unwrap();
        let parts = plan.memory.iter().filter(|(name, _)| name == kind);
        parts.map(|(_, bytes)| bytes).sum()
    };
    // The recipe's own model is read without a second copy.
    assert_eq!(memory("models of rewards"), 0);
    let other = recipe.replace(
        "LogProbability(model: \"models/tiny\")",
        "LogProbability(model: \"./models/tiny\")",
    );
    let (found, _) = checked(folder, &other).unwrap();
    let plan = found.plans.iter().find(|plan| plan.name == "ppo").unwrap();
    let bytes = plan
        .memory
        .iter()
        .find(|(name, _)| name == "models of rewards");
    assert!(
        bytes.is_some_and(|(_, bytes)| *bytes > 1 << 20),
        "{:?}",
        plan.memory
    );

    let complains = |recipe: &str, parts: &[&str]| {
        let found = complaints(folder, recipe);
        for part in parts {
            assert!(found.contains(part), "{part:?} is not in\n{found}");
        }
    };
    complains(
        &recipe.replace("Learned(stage: \"a\")", "Learned(stage: \"nothing\")"),
        &["nothing"],
    );
    complains(
        &recipe.replace(
            "LogProbability(model: \"models/tiny\")",
            "LogProbability(model: \"./no-model\")",
        ),
        &["no-model"],
    );
    for (stage, part) in [
        ("nothing", "there is no stage `nothing`"),
        ("a", "`a` is a `RewardModel`"),
    ] {
        let named = format!("LogProbability(stage: \"{stage}\")");
        complains(
            &recipe.replace("LogProbability(stage: \"sft\")", &named),
            &[part],
        );
    }
    for (from, to, part) in [
        (
            "LogProbability(stage: \"sft\")",
            "LogProbability()",
            "neither `model` nor `stage` is given",
        ),
        (
            "LogProbability(stage: \"sft\")",
            "LogProbability(model: \"tiny\", stage: \"sft\")",
            "both `model` and `stage` are given",
        ),
        (
            "value_init: Learned(\"b\")",
            "value_init: Reward",
            "`reward` has several reward models: `a`, `b`",
        ),
        (
            "value_init: Learned(\"b\")",
            "value_init: Learned(\"c\")",
            "`reward` has no reward model `c`; it has `a`, `b`",
        ),
    ] {
        complains(&recipe.replace(from, to), &[part]);
    }
    complains(
        &recipe.replace("tag: \"risky\"", "threshold: 1.5, tag: \"risky\""),
        &["threshold is 1.5; expected a probability, from 0 to 1"],
    );
    complains(
        &recipe.replace("[Learned(stage: \"a\"), Learned(stage: \"b\")]", "[]"),
        &["an ensemble of no sources; expected at least two"],
    );
    complains(
        &sources(folder, |i| json!(if i == 3 { "yes" } else { "no" })),
        &[
            "prompts.jsonl:1",
            "column `risky`, which a reward source reads: expected true or false, or 1 or 0, found a string",
        ],
    );
}
