//! Direct preference optimisation: forms of data, both kinds of reference, and the plan.

use std::fs;
use std::path::Path;

use burn::backend::Flex;
use serde_json::{Value, json};
use tempering::error::{Error, Result};
use tempering::model::ModelConfig;
use tempering::model::weights::write_safetensors;
use tempering::recipe::{self, CheckedRecipe, RunOptions};
use tempering::report::SilentReporter;

/// Prompts, chosen and rejected responses.
const ROWS: [[&str; 3]; 6] = [
    ["I lost my red key:", " a lost key", " the rain"],
    ["the cat sat on a mat:", " a cat", " we sold it all"],
    ["should I tell him:", " yes", " no, never"],
    ["the house is cold:", " warm it", " buy bread again"],
    ["my friend is late:", " wait", " go home now"],
    ["they sold the car:", " a sale", " birds"],
];

fn write_rows(file: &Path, row: impl Fn([&str; 3]) -> Value) {
    let lines: String = ROWS.iter().map(|&r| format!("{}\n", row(r))).collect();
    fs::write(file, lines).unwrap();
}

/// A recipe of one stage on `rows.jsonl` of the folder, which may hold a `model`.
fn checked(folder: &Path, keys: &str, output: &str) -> Result<(CheckedRecipe, RunOptions)> {
    let model = folder.join("model");
    let model = if model.exists() {
        model
    } else {
        Path::new("models/tiny").to_path_buf()
    };
    let file = folder.join("r.ron");
    let rows = folder.join("rows.jsonl");
    let text = format!(
        "(name: \"r\", model: {model:?}, stages: [Dpo(name: \"dpo\", init: Base, data: (source: Jsonl({rows:?})),
            batch_size: 2, max_length: 64, micro_batch_tokens: 96, {keys})])"
    );
    fs::write(&file, text).unwrap();
    let options = RunOptions {
        output: Some(folder.join(output)),
        ..RunOptions::default()
    };
    let checked = recipe::check(recipe::load_with_places(&file, &[])?, &options)?;
    Ok((checked, options))
}

/// Runs it; returns the lines of `metrics.jsonl`.
fn run(folder: &Path, keys: &str, output: &str) -> Result<Vec<Value>> {
    let (checked, options) = checked(folder, keys, output)?;
    let device = Default::default();
    recipe::run::<Flex>(&checked, &options, device, "flex", &mut SilentReporter)?;
    let text = fs::read_to_string(folder.join(output).join("dpo/metrics.jsonl")).unwrap();
    let lines = text.lines();
    Ok(lines.map(|l| serde_json::from_str(l).unwrap()).collect())
}

const EXPLICIT: fn([&str; 3]) -> Value =
    |[prompt, chosen, rejected]| json!({"prompt": prompt, "chosen": chosen, "rejected": rejected});

#[test]
fn a_prompt_may_stand_in_its_own_column_or_in_both_responses() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rows.jsonl");
    let keys = "peft: Lora(rank: 2), optim: (lr: 1e-3)";
    write_rows(&file, EXPLICIT);
    let explicit = run(folder.path(), keys, "explicit").unwrap();
    write_rows(
        &file,
        |[prompt, chosen, rejected]| json!({"chosen": format!("{prompt}{chosen}"), "rejected": format!("{prompt}{rejected}")}),
    );
    let implicit = run(folder.path(), keys, "implicit").unwrap();
    assert_eq!(explicit.len(), 3);
    assert_eq!(explicit, implicit);
}

#[test]
fn conversations_go_through_the_chat_template() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        fs::copy(Path::new("models/tiny").join(file), model.join(file)).unwrap();
    }
    let text = fs::read_to_string("models/tiny/tokenizer_config.json").unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config["chat_template"] = json!(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.role == 'assistant' %}<|endoftext|>{% endif %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    );
    fs::write(model.join("tokenizer_config.json"), config.to_string()).unwrap();
    write_rows(
        &folder.path().join("rows.jsonl"),
        |[prompt, chosen, rejected]| {
            let message = |role: &str, content: &str| json!({"role": role, "content": content});
            let user = message("user", prompt);
            json!({"chosen": [user, message("assistant", chosen.trim())], "rejected": [user, message("assistant", rejected.trim())]})
        },
    );
    let steps = run(folder.path(), "optim: (lr: 1e-4)", "out").unwrap();
    assert_eq!(steps.len(), 3);
    assert!((steps[0]["loss"].as_f64().unwrap() - 2f64.ln()).abs() < 1e-5);
}

/// The reference's numbers may be taken before training or on the way: rounding aside they are the same.
#[test]
fn precomputed_equals_asked_at_every_step() {
    let folder = tempfile::tempdir().unwrap();
    write_rows(&folder.path().join("rows.jsonl"), EXPLICIT);
    for (name, peft) in [("full", "Full"), ("lora", "Lora(rank: 2)")] {
        let keys = |precompute: bool| {
            format!(
                "epochs: 2, optim: (lr: 1e-3), peft: {peft}, precompute_ref_log_probs: {precompute}"
            )
        };
        let asked = run(folder.path(), &keys(false), &format!("{name}-asked")).unwrap();
        let cached = run(folder.path(), &keys(true), &format!("{name}-cached")).unwrap();
        assert_eq!((asked.len(), cached.len()), (6, 6));
        for (asked, cached) in asked.iter().zip(&cached) {
            for key in ["loss", "rewards/chosen", "rewards/rejected", "logps/chosen"] {
                let [a, b] = [asked, cached].map(|step| step[key].as_f64().unwrap());
                assert!(
                    (a - b).abs() < 1e-4 * a.abs().max(1.0),
                    "{key}: {a} and {b}"
                );
            }
        }
        // What is trained has moved: the comparison above compared something.
        assert!(
            asked[5]["rewards/margins"].as_f64().unwrap() > 0.05,
            "{asked:?}"
        );
    }
}

#[test]
fn a_loss_that_is_not_a_number_stops_the_run() {
    let folder = tempfile::tempdir().unwrap();
    write_rows(&folder.path().join("rows.jsonl"), EXPLICIT);
    let keys = "epochs: 4, optim: (lr: 1e30, max_grad_norm: None)";
    let error = run(folder.path(), keys, "out").unwrap_err();
    let Error::NonFinite { stage, saved, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(stage, "dpo");
    let text = fs::read_to_string(saved).unwrap();
    assert!(text.contains("\"rows\""), "{text}");
}

#[test]
fn the_plan_counts_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    write_rows(&folder.path().join("rows.jsonl"), EXPLICIT);
    let plan =
        |keys: &str| recipe::table(&checked(folder.path(), keys, "out").unwrap().0.plans, None);
    let reference = |keys: &str| {
        let plan = plan(keys);
        let at = plan.find("reference ").unwrap_or_else(|| panic!("{plan}"));
        plan[at..].lines().next().unwrap().to_owned()
    };
    // The tiny model has 825,984 parameters: 3.15 MiB.
    assert_eq!(reference("peft: Full"), "reference 3.15 MiB");
    // A fresh adapter is switched off: nothing more is held.
    assert!(!plan("peft: Lora(rank: 4)").contains("reference"));
    // One number per token.
    let cached = reference("peft: Full, precompute_ref_log_probs: true");
    assert!(!cached.contains("MiB"), "{cached}");
}

#[test]
fn a_folder_to_start_from_is_looked_for_before_anything_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("r.ron");
    let rows = folder.path().join("rows.jsonl");
    write_rows(&rows, EXPLICIT);
    let check = |init: &Path| {
        let text = format!(
            "(name: \"r\", stages: [Dpo(name: \"dpo\", init: Folder({init:?}), data: (source: Jsonl({rows:?})), batch_size: 2)])"
        );
        fs::write(&file, text).unwrap();
        recipe::check(
            recipe::load_with_places(&file, &[])?,
            &RunOptions::default(),
        )
        .map(drop)
    };
    check(Path::new("models/tiny")).unwrap();
    // An adapter brings its base with it.
    let adapter = folder.path().join("adapter");
    fs::create_dir(&adapter).unwrap();
    let config = |base: &str| json!({"peft_type": "LORA", "target_modules": ["q_proj"], "base_model_name_or_path": base});
    let write = |config: Value| {
        fs::write(adapter.join("adapter_config.json"), config.to_string()).unwrap();
    };
    write(config("tiny"));
    // Its weights are looked at, too: a half-copied folder is no start.
    let missing = check(&adapter).unwrap_err().to_string();
    assert!(missing.contains("adapter_model.safetensors"), "{missing}");
    let layers = ModelConfig::load("models/tiny").unwrap().linear_modules();
    let tensors: Vec<_> = (layers.iter())
        .filter(|layer| layer.name.ends_with("q_proj"))
        .flat_map(|layer| {
            let tensor = |matrix: &str, shape: [usize; 2]| {
                let name = format!("base_model.model.{}.{matrix}.weight", layer.name);
                (name, shape.to_vec(), vec![0.0; shape[0] * shape[1]])
            };
            [
                tensor("lora_A", [8, layer.in_features]),
                tensor("lora_B", [layer.out_features, 8]),
            ]
        })
        .collect();
    write_safetensors(adapter.join("adapter_model.safetensors"), &tensors).unwrap();
    check(&adapter).unwrap();
    write(config("no/such/model"));
    for (init, part) in [
        (folder.path().join("nope"), "stages.dpo.init: cannot open"),
        (
            adapter,
            "the adapter names the base model \"no/such/model\"",
        ),
    ] {
        let error = check(&init).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}
