//! On-policy distillation: where responses come from, exact resume, and what is refused.

use std::fs;
use std::path::Path;

use super::resume::run_until;
use crate::support::pipeline::{metrics, models, values};
use tempering::recipe::{self, RunOptions};

/// A teacher that was fine-tuned for a few steps, and its student, which is the model before that.
fn recipe(keys: &str) -> String {
    format!(
        r#"(name: "short", model: "tiny", seed: 5, stages: [
        Sft(name: "teacher", data: (source: Posts(rows: 64, seed: 2)), peft: Lora(rank: 4),
            optim: (lr: 5e-3), batch_size: 8, max_length: 128),
        Distill(name: "student", teacher: Stage("teacher"), peft: Lora(rank: 4, dropout: 0.1), optim: (lr: 5e-3),
            batch_size: 4, response_length: 12, max_length: 128, micro_batch_tokens: 256,
            cadence: (eval_steps: 4, save_steps: 1), {keys}),
    ])"#
    )
}

const POSTS: &str =
    "data: (source: Posts(rows: 32, seed: 3)), eval_data: (source: Posts(rows: 6, seed: 4))";

#[test]
fn a_student_comes_nearer_to_its_teacher_and_resumes_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    let text = recipe(POSTS);
    run_until(&text, folder.path(), &whole, None);
    assert_eq!(
        models(&whole, "student"),
        ["policy tiny: 1 files", "teacher teacher: 2 files"]
    );
    let held_out = values(&whole, "student", "eval/loss");
    assert_eq!(held_out.len(), 3, "{held_out:?}");
    assert!(held_out[2] < 0.9 * held_out[0], "{held_out:?}");
    // Half of the steps, by chance, are on responses of the student's.
    let own = values(&whole, "student", "on_policy");
    assert_eq!(own.len(), 8);
    assert!(own.contains(&1.0) && own.contains(&0.0), "{own:?}");
    for (line, own) in metrics(&whole, "student")
        .iter()
        .filter(|line| line["loss"].is_f64())
        .zip(own)
    {
        let length = line["response_length"].as_f64().unwrap();
        assert!(own == 0.0 || length <= 12.0, "{line}");
    }

    let parts = folder.path().join("parts");
    for step in [1, 3, 6] {
        assert!(run_until(
            &text,
            folder.path(),
            &parts,
            Some(("student", step))
        ));
    }
    run_until(&text, folder.path(), &parts, None);
    for file in [
        "metrics.jsonl",
        "samples.jsonl",
        "adapter/adapter_model.safetensors",
    ] {
        let [a, b] = [&whole, &parts].map(|run| fs::read(run.join("student").join(file)).unwrap());
        assert!(a == b, "{file}");
    }
}

/// Prompts alone will do for responses of the teacher and of the student.
#[test]
fn generated_responses_need_no_completions() {
    let folder = tempfile::tempdir().unwrap();
    let rows = folder.path().join("prompts.jsonl");
    fs::write(
        &rows,
        "{\"prompt\":\"I lost my red key:\"}\n{\"prompt\":\"the cat sat:\"}\n",
    )
    .unwrap();
    let data = format!(
        "data: (source: Jsonl({rows:?})), eval_data: (source: Jsonl({rows:?})), max_steps: 2"
    );
    for (name, keys, own) in [
        ("teacher", "seq_kd: true, lmbda: 0.0, beta: 0.0", 0.0),
        (
            "student",
            "lmbda: 1.0, beta: 1.0, loss_temperature: 2.0",
            1.0,
        ),
    ] {
        let out = folder.path().join(name);
        run_until(
            &recipe(&format!("{data}, {keys}")),
            folder.path(),
            &out,
            None,
        );
        assert_eq!(values(&out, "student", "on_policy"), [own, own]);
        let losses = values(&out, "student", "loss");
        assert!(losses.iter().all(|&loss| loss > 0.0), "{losses:?}");
    }
    // The data's own completions are asked for at check time.
    let problem = problem(folder.path(), &recipe(&data));
    assert!(problem.contains("completion"), "{problem}");
}

/// What the check of a recipe says.
fn problem(folder: &Path, text: &str) -> String {
    let file = folder.join("bad.ron");
    fs::write(&file, text).unwrap();
    let loaded = recipe::load_with_places(&file, &[]);
    let checked = loaded.and_then(|loaded| recipe::check(loaded, &RunOptions::default()));
    match checked {
        Ok(_) => panic!("accepted: {text}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_teacher_has_the_tokens_of_its_student() {
    let folder = tempfile::tempdir().unwrap();
    for (key, keys, parts) in [
        ("", "beta: 1.5", ["stages.student.beta", "1.5"]),
        ("", "lmbda: -0.1", ["stages.student.lmbda", "-0.1"]),
        (
            "",
            "loss_temperature: 0.0",
            ["stages.student.loss_temperature", "above 0"],
        ),
        (
            "",
            "init: Stage(\"teacher\")",
            ["stages.student.teacher", "the student itself"],
        ),
        (
            "response_length: 12, ",
            "response_length: 200",
            [
                "stages.student.micro_batch_tokens",
                "max_length + response_length = 328",
            ],
        ),
    ] {
        let text = recipe(&format!("{POSTS}, {keys}"));
        let found = problem(folder.path(), &text.replacen(key, "", 1));
        for part in parts {
            assert!(found.contains(part), "{part:?} is not in\n{found}");
        }
    }
    // Another vocabulary of the same tokenizer: one more row.
    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(Path::new("models/tiny").join(file), model.join(file)).unwrap();
    }
    let config = fs::read_to_string("models/tiny/config.json").unwrap();
    let larger = config.replace("\"vocab_size\": 768", "\"vocab_size\": 769");
    assert_ne!(config, larger);
    fs::write(model.join("config.json"), larger).unwrap();
    let init = format!("init: Random({:?})", model.join("config.json"));
    let text =
        recipe(&format!("{POSTS}, {init}")).replace("peft: Lora(rank: 4, dropout: 0.1), ", "");
    let found = problem(folder.path(), &text);
    for part in ["stages.student.teacher", "has 768 tokens", "`init` has 769"] {
        assert!(found.contains(part), "{part:?} is not in\n{found}");
    }
}
