//! Stages on preferences other than plain DPO: all losses of Dpo, Cpo, Orpo and Kto run, do not depend on how a step is split, resume to
//! the bit, and refuse what cannot be trained on.

use std::fs;
use std::path::Path;

use burn::backend::Flex;
use serde_json::{Value, json};
use tempering::error::Result;
use tempering::recipe::{self, CheckedRecipe, RunOptions};
use tempering::report::SilentReporter;

use super::resume::run_until;

/// Prompts, desirable and undesirable responses.
const ROWS: [[&str; 3]; 6] = [
    ["I lost my red key:", " a lost key", " the rain"],
    ["the cat sat on a mat:", " a cat", " we sold it all"],
    ["should I tell him:", " yes", " no, never"],
    ["the house is cold:", " warm it", " buy bread again"],
    ["my friend is late:", " wait", " go home now"],
    ["they sold the car:", " a sale", " birds"],
];

const PAIR: fn(usize, [&str; 3]) -> Value = |_, [prompt, chosen, rejected]| json!({"prompt": prompt, "chosen": chosen, "rejected": rejected});

/// Rows of one response each, every second one desirable.
const LABEL: fn(usize, [&str; 3]) -> Value = |i, row| {
    let label = i.is_multiple_of(2);
    json!({"prompt": row[0], "completion": row[if label { 1 } else { 2 }], "label": label})
};

fn write_rows(folder: &Path, row: impl Fn(usize, [&str; 3]) -> Value) {
    let rows = ROWS.iter().enumerate();
    let lines: String = rows.map(|(i, &r)| format!("{}\n", row(i, r))).collect();
    fs::write(folder.join("rows.jsonl"), lines).unwrap();
}

/// A recipe of one stage on `rows.jsonl` of the folder.
fn recipe_text(folder: &Path, stage: &str, keys: &str) -> String {
    let rows = folder.join("rows.jsonl");
    let model = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models/tiny"));
    format!(
        "(name: \"r\", model: {model:?}, stages: [{stage}(name: \"stage\", init: Base, data: (source: Jsonl({rows:?})),
            batch_size: 3, max_length: 32, {keys})])"
    )
}

fn checked(
    folder: &Path,
    stage: &str,
    keys: &str,
    output: &str,
) -> Result<(CheckedRecipe, RunOptions)> {
    let file = folder.join("r.ron");
    fs::write(&file, recipe_text(folder, stage, keys)).unwrap();
    let options = RunOptions {
        output: Some(folder.join(output)),
        ..RunOptions::default()
    };
    let checked = recipe::check(recipe::load_with_places(&file, &[])?, &options)?;
    Ok((checked, options))
}

/// Runs it; returns the lines of `metrics.jsonl`.
fn run(folder: &Path, stage: &str, keys: &str, output: &str) -> Vec<Value> {
    let (checked, options) =
        checked(folder, stage, keys, output).unwrap_or_else(|e| panic!("{keys}: {e}"));
    let device = Default::default();
    recipe::run::<Flex>(&checked, &options, device, "flex", &mut SilentReporter)
        .unwrap_or_else(|e| panic!("{keys}: {e}"));
    let path = folder.join(output).join("stage/metrics.jsonl");
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines();
    lines.map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[track_caller]
fn refused(folder: &Path, stage: &str, keys: &str, parts: &[&str]) {
    let Err(error) = checked(folder, stage, keys, "out") else {
        panic!("{stage} takes {keys}")
    };
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
}

/// Compares the metrics of two runs, step by step.
#[track_caller]
fn agree(a: &[Value], b: &[Value], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    for (a, b) in a.iter().zip(b) {
        for (key, a) in a.as_object().unwrap() {
            let (a, b) = (a.as_f64().unwrap(), b[key].as_f64().unwrap());
            let allowed = 2e-4 * a.abs().max(1.0);
            assert!((a - b).abs() < allowed, "{what}, {key}: {a} and {b}");
        }
    }
}

const LR: &str = "epochs: 2, optim: (lr: 2e-3)";

#[test]
fn the_split_into_passes_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for (stage, row, keys) in [
        ("Dpo", PAIR, "loss_type: aot, label_smoothing: 0.1"),
        (
            "Dpo",
            PAIR,
            "loss_type: [(aot_unpaired, 0.5), (sft, 0.5), (nca_pair, 1.0)]",
        ),
        (
            "Dpo",
            PAIR,
            "loss_type: [discopop, exo_pair], loss_weights: [1.0, 0.25], label_smoothing: 0.1",
        ),
        ("Cpo", PAIR, "loss_type: simpo, beta: 2.0"),
        ("Cpo", PAIR, "peft: Lora(rank: 2), alpha: 0.01"),
        ("Orpo", PAIR, "beta: 0.5"),
        ("Kto", LABEL, "desirable_weight: 1.2"),
        (
            "Kto",
            LABEL,
            "peft: Lora(rank: 2), loss_type: apo_zero_unpaired",
        ),
    ] {
        write_rows(folder, row);
        let of = |tokens: usize| {
            let keys = format!("{LR}, {keys}, micro_batch_tokens: {tokens}");
            let output = format!("{tokens}");
            let lines = run(folder, stage, &keys, &output);
            fs::remove_dir_all(folder.join(output)).unwrap();
            lines
        };
        let (whole, parts) = (of(2048), of(32));
        assert_eq!(whole.len(), 4, "{stage} {keys}");
        agree(&whole, &parts, &format!("{stage} {keys}"));
    }
}

#[test]
fn a_policy_moves_towards_what_is_desired() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for (stage, row, keys) in [
        ("Dpo", PAIR, "loss_type: [(sigmoid, 0.8), (sft, 0.2)]"),
        ("Cpo", PAIR, "loss_type: simpo, cpo_alpha: 0.0, beta: 2.0"),
        ("Orpo", PAIR, "beta: 1.0"),
        ("Kto", LABEL, ""),
        ("Kto", PAIR, "loss_type: apo_zero_unpaired"),
    ] {
        write_rows(folder, row);
        let held_out = format!(
            "eval_data: (source: Jsonl({:?}))",
            folder.join("rows.jsonl")
        );
        // The losses of labels have no slope far from the reference: after larger steps a policy does not come back.
        let lr = if stage == "Kto" { "2e-3" } else { "1e-2" };
        let keys = format!("epochs: 6, optim: (lr: {lr}), peft: Lora(rank: 4), {held_out}, {keys}");
        let output = format!("{stage}-{}", keys.len());
        let lines = run(folder, stage, &keys, &output);
        // Over all rows, before and after training.
        let margins = lines
            .iter()
            .filter_map(|line| line["eval/rewards/margins"].as_f64());
        let margins: Vec<f64> = margins.collect();
        assert_eq!(margins.len(), 2, "{stage} {keys}");
        assert!(
            margins[1] > margins[0] + 0.01,
            "{stage} {keys}: {margins:?}"
        );
    }
}

#[test]
fn kto_is_half_its_weight_at_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_rows(folder, LABEL);
    let keys = "shuffle: false, desirable_weight: 2.0, undesirable_weight: 1.5, optim: (lr: 1e-4)";
    let lines = run(folder, "Kto", keys, "out");
    // Labels true, false, true: (2 + 1.5 + 2) / 2 / 3.
    let loss = lines[0]["loss"].as_f64().unwrap();
    assert!((loss - 5.5 / 6.0).abs() < 1e-5, "{loss}");
    assert!(lines[0]["kl"].as_f64().unwrap().abs() < 1e-4);
}

#[test]
fn a_comparison_is_two_labelled_responses() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let keys = "shuffle: false, optim: (lr: 1e-3)";
    write_rows(folder, PAIR);
    let pairs = run(folder, "Kto", keys, "pairs");
    // First the chosen responses, then the rejected ones.
    let lines: String = [(1, true), (2, false)]
        .iter()
        .flat_map(|(side, label)| {
            ROWS.map(|row| {
                let row = json!({"prompt": row[0], "completion": row[*side], "label": label});
                format!("{row}\n")
            })
        })
        .collect();
    fs::write(folder.join("rows.jsonl"), lines).unwrap();
    let labels = run(folder, "Kto", keys, "labels");
    assert_eq!(pairs.len(), 4);
    assert_eq!(pairs, labels);
}

/// The reference's numbers may be taken before training or on the way: rounding aside they are the same.
#[test]
fn kto_with_a_precomputed_reference_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_rows(folder, LABEL);
    for peft in ["Full", "Lora(rank: 2)"] {
        let of = |precompute: bool| {
            let keys = format!("{LR}, peft: {peft}, precompute_ref_log_probs: {precompute}");
            run(
                folder,
                "Kto",
                &keys,
                &format!("{peft}-{precompute}").replace(['(', ')', ' ', ':'], ""),
            )
        };
        agree(&of(false), &of(true), peft);
    }
}

#[test]
fn interrupted_runs_end_as_uninterrupted_ones() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for (stage, row, keys) in [
        ("Dpo", PAIR, "loss_type: aot, micro_batch_tokens: 32"),
        ("Cpo", PAIR, "loss_type: simpo"),
        ("Orpo", PAIR, "peft: Lora(rank: 2)"),
        ("Kto", LABEL, "peft: Lora(rank: 2)"),
        ("Kto", LABEL, "precompute_ref_log_probs: true"),
    ] {
        write_rows(folder, row);
        let keys = format!("{LR}, {keys}");
        let text = recipe_text(folder, stage, &keys);
        let [whole, parts] = ["whole", "parts"].map(|name| folder.join(name));
        assert!(!run_until(&text, folder, &whole, None));
        assert!(run_until(&text, folder, &parts, Some(("stage", 1))));
        assert!(run_until(&text, folder, &parts, Some(("stage", 3))));
        assert!(!run_until(&text, folder, &parts, None));
        let read = |run: &Path| fs::read(run.join("stage/metrics.jsonl")).unwrap();
        assert!(read(&whole) == read(&parts), "{stage} {keys}");
        for run in [whole, parts] {
            fs::remove_dir_all(run).unwrap();
        }
    }
}

#[test]
fn settings_that_fit_no_loss_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_rows(folder, PAIR);
    for (stage, keys, parts) in [
        (
            "Dpo",
            "loss_type: apo_zer",
            &["`apo_zer`", "`apo_zero`"][..],
        ),
        (
            "Dpo",
            "loss_type: [(sigmoid, 0.8), (stf, 0.2)]",
            &["`stf`", "`sft`"],
        ),
        (
            "Dpo",
            "loss_type: []",
            &["stages.stage.loss_type: lists no loss"],
        ),
        (
            "Dpo",
            "loss_type: [(sigmoid, -1.0)]",
            &["above 0 and finite: the weight of `sigmoid`"],
        ),
        (
            "Dpo",
            "loss_type: [sigmoid, sft], loss_weights: [1.0]",
            &["found 1 for 2"],
        ),
        (
            "Dpo",
            "loss_type: [(sigmoid, 0.5)], loss_weights: [1.0]",
            &["has weights already"],
        ),
        ("Dpo", "loss_type: exo_pair", &["label_smoothing", "1e-3"]),
        (
            "Dpo",
            "loss_type: apo_down, label_smoothing: 0.1",
            &["know wrong labels"],
        ),
        (
            "Dpo",
            "discopop_tau: 0.1",
            &["only the loss `discopop` reads it"],
        ),
        (
            "Cpo",
            "simpo_gamma: 1.0",
            &["only the loss `simpo` reads it"],
        ),
        (
            "Cpo",
            "loss_type: ipo, label_smoothing: 0.1",
            &["know wrong labels"],
        ),
        ("Cpo", "cpo_alpha: -1.0", &["cpo_alpha", "at least 0"]),
        ("Cpo", "peft: Lora(dropout: 0.1)", &["without dropout"]),
        ("Orpo", "beta: 0.0", &["beta", "above 0"]),
        (
            "Kto",
            "undesirable_weight: 0.0",
            &["undesirable_weight", "above 0"],
        ),
        ("Simpo", "", &["Cpo(loss_type: simpo"]),
        ("ORPOTrainer", "", &["Orpo(..)"]),
    ] {
        refused(folder, stage, keys, parts);
    }
    let batch_of_one = recipe_text(folder, "Kto", "").replace("batch_size: 3", "batch_size: 1");
    let file = folder.join("one.ron");
    fs::write(&file, batch_of_one).unwrap();
    let error = recipe::load_with_places(&file, &[])
        .and_then(|loaded| recipe::check(loaded, &RunOptions::default()).map(drop))
        .unwrap_err();
    assert!(error.to_string().contains("must be at least 2"), "{error}");
}

/// Of the responses of a Rank stage those are desirable that are better than most.
#[test]
fn ranked_responses_are_labelled_by_their_scores() {
    let folder = tempfile::tempdir().unwrap();
    let model = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models/tiny"));
    let text = format!(
        "(name: \"r\", model: {model:?}, stages: [
            Rank(name: \"rank\", init: Base, data: (source: Posts(rows: 8, seed: 4)), num_responses: 4, response_length: 8,
                reward: Gold, valid_fraction: 0.25),
            Kto(name: \"stage\", init: Base, data: (source: Stage(\"rank\"), format: (take: BestAndWorst)),
                eval_data: (source: HeldOut(\"rank\")), batch_size: 4, peft: Lora(rank: 2), optim: (lr: 1e-3))])"
    );
    let output = folder.path().join("out");
    assert!(!run_until(&text, folder.path(), &output, None));
    let lines = fs::read_to_string(output.join("stage/metrics.jsonl")).unwrap();
    let first: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    // At the reference: half the weight.
    assert!(
        (first["eval/loss"].as_f64().unwrap() - 0.5).abs() < 1e-4,
        "{first}"
    );
}

#[test]
fn labels_are_looked_at_before_anything_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_rows(
        folder,
        |_, [prompt, response, _]| json!({"prompt": prompt, "completion": response, "label": true}),
    );
    refused(folder, "Kto", "", &["all 6 labels are true", "use `Sft`"]);
    write_rows(
        folder,
        |_, [prompt, _, response]| json!({"prompt": prompt, "completion": response, "label": "false"}),
    );
    refused(folder, "Kto", "", &["all 6 labels are false"]);
    write_rows(
        folder,
        |i, [prompt, response, _]| json!({"prompt": prompt, "completion": response, "label": i}),
    );
    refused(
        folder,
        "Kto",
        "",
        &["rows.jsonl:3", "expected true or false", "found 2"],
    );
    write_rows(
        folder,
        |_, [prompt, response, _]| json!({"prompt": prompt, "completion": response}),
    );
    refused(folder, "Kto", "", &["rows.jsonl:1", "no column `label`"]);
    write_rows(folder, LABEL);
    refused(
        folder,
        "Dpo",
        "",
        &["`Kto`", "pairs of `chosen` and `rejected`"],
    );
    // Five of six are desirable.
    write_rows(folder, |i, row| {
        let label = i > 0;
        json!({"prompt": row[0], "completion": row[1], "label": label})
    });
    let (found, _) = checked(folder, "Kto", "", "out").unwrap();
    let warnings = found.warnings.iter().map(ToString::to_string);
    let warnings: Vec<String> = warnings.collect();
    assert!(
        warnings
            .iter()
            .any(|text| text.contains("5 desirable and 1 undesirable")),
        "{warnings:?}"
    );
}

#[test]
fn plans_count_the_reference_where_there_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let plan = |stage: &str, keys: &str| {
        recipe::table(&checked(folder, stage, keys, "out").unwrap().0.plans, None)
    };
    write_rows(folder, PAIR);
    for stage in ["Cpo", "Orpo"] {
        assert!(!plan(stage, "peft: Full").contains("reference"), "{stage}");
    }
    // Twelve responses in steps of three.
    let kto = plan("Kto", "peft: Full");
    assert!(kto.contains("reference 3.15 MiB"), "{kto}");
    write_rows(folder, LABEL);
    assert!(!plan("Kto", "peft: Lora(rank: 2)").contains("reference"));
}
