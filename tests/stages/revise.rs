//! Critique and revision: what is written, resumed and refused.

use std::fs;
use std::path::Path;

use burn::backend::Flex;
use serde_json::Value;
use tempering::error::Error;
use tempering::recipe::RunOptions;
use tempering::report::SilentReporter;

use super::resume::run_until;
use crate::support::pipeline;

/// Revisions of the embedded model, and fine-tuning on them.
fn recipe(more: &str) -> String {
    format!(
        r#"(
    name: "revised", model: "tiny", seed: 5,
    stages: [
        Revise(name: "revise", init: Base, data: (source: Posts(rows: 40, seed: 4)), num_revisions: 2, response_length: 10,
            critique_length: 6, valid_fraction: 0.25, {more}),
        Sft(name: "sft", data: (source: Stage("revise")), eval_data: (source: HeldOut("revise")), peft: Lora(rank: 4),
            batch_size: 16, max_length: 128),
    ],
)
"#
    )
}

fn write_principles(folder: &Path) -> String {
    let path = folder.join("principles.jsonl");
    let line = |what: &str| {
        format!("{{\"critique\": \"What is {what}?\", \"revision\": \"Make it less {what}.\"}}\n")
    };
    fs::write(&path, line("long") + &line("vague")).unwrap();
    format!("{:?}", path.display().to_string())
}

fn rows(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn run(recipe: &str, folder: &Path) -> Result<(), Error> {
    let options = RunOptions {
        output: Some(folder.join("run")),
        ..RunOptions::default()
    };
    let reporter = &mut SilentReporter;
    pipeline::run_recipe::<Flex>(recipe, folder, Default::default(), &options, reporter)
}

#[test]
fn revisions_are_rows_and_a_killed_stage_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let principles = write_principles(folder.path());
    let examples = folder.path().join("examples.jsonl");
    fs::write(
        &examples,
        "{\"prompt\": \"A red key is lost.\\n\\nTL;DR:\", \"response\": \" key\", \"critique_request\": \"What is short?\", \
         \"critique\": \"All of it.\", \"revision_request\": \"Make it longer.\", \"revision\": \"a red key is lost\"}\n",
    )
    .unwrap();
    let text = recipe(&format!(
        "principles: {principles}, examples: {:?}",
        examples.display().to_string()
    ));
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    assert!(!run_until(&text, folder.path(), &whole, None));
    assert!(run_until(&text, folder.path(), &parts, Some(("revise", 1))));
    let log = parts.join("revise/dialogues.jsonl");
    let mut dialogues = fs::read_to_string(&log).unwrap();
    assert_eq!(dialogues.lines().count(), 32);
    dialogues += "{\"prompt\":";
    fs::write(&log, dialogues).unwrap();
    assert!(!run_until(&text, folder.path(), &parts, None));
    for file in [
        "revise/dialogues.jsonl",
        "revise/train.jsonl",
        "revise/valid.jsonl",
        "revise/metrics.jsonl",
        "sft/metrics.jsonl",
    ] {
        let [a, b] = [&whole, &parts].map(|run| fs::read(run.join(file)).unwrap());
        assert!(a == b, "{file}");
    }
    let dialogues = rows(&whole.join("revise/dialogues.jsonl"));
    assert_eq!(dialogues.len(), 40);
    let mut drawn = [0, 0];
    for dialogue in &dialogues {
        let rounds = dialogue["rounds"].as_array().unwrap();
        assert_eq!(rounds.len(), 2);
        for round in rounds {
            drawn[round["principle"].as_u64().unwrap() as usize] += 1;
        }
    }
    assert!(drawn.iter().all(|&count| count > 20), "{drawn:?}");
    let train = rows(&whole.join("revise/train.jsonl"));
    let valid = rows(&whole.join("revise/valid.jsonl"));
    let nonempty = |dialogue: &Value| {
        let rounds = dialogue["rounds"].as_array().unwrap();
        rounds
            .iter()
            .filter(|round| round["revision"] != "")
            .count()
    };
    assert_eq!(
        train.len() + valid.len(),
        dialogues.iter().map(nonempty).sum::<usize>()
    );
    // Rows of one prompt stay on one side.
    assert!(
        valid
            .iter()
            .all(|row| train.iter().all(|other| other["prompt"] != row["prompt"]))
    );
    let samples = rows(&whole.join("revise/samples.jsonl"));
    let names: Vec<&str> = samples
        .iter()
        .filter_map(|sample| sample["policy"].as_str())
        .collect();
    assert!(
        names.contains(&"response") && names.contains(&"revision 2"),
        "{names:?}"
    );
}

#[test]
fn the_last_revision_alone_without_critiques() {
    let folder = tempfile::tempdir().unwrap();
    let principles = write_principles(folder.path());
    let text = recipe(&format!(
        "principles: {principles}, keep: Last, critique: false, stop: [\"\\n\"]"
    ));
    run(&text, folder.path()).unwrap();
    let out = folder.path().join("run/revise");
    let dialogues = rows(&out.join("dialogues.jsonl"));
    assert!(
        dialogues
            .iter()
            .all(|dialogue| dialogue["rounds"][0]["critique"] == "")
    );
    let mut all = rows(&out.join("train.jsonl"));
    all.extend(rows(&out.join("valid.jsonl")));
    assert!(all.len() <= 40);
    assert!(
        all.iter()
            .all(|row| !row["completion"].as_str().unwrap().contains('\n'))
    );
}

#[test]
fn what_cannot_be_asked_is_refused_before_anything_runs() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty.jsonl");
    fs::write(&empty, "\n").unwrap();
    let odd = folder.path().join("odd.jsonl");
    fs::write(
        &odd,
        "{\"critique\": \"c\", \"revision\": \"r\"}\n{\"critique\": \"c\"}\n",
    )
    .unwrap();
    for (path, parts) in [
        (
            empty.display().to_string(),
            ["stages.revise.principles", "is empty"],
        ),
        (
            odd.display().to_string(),
            ["odd.jsonl:2", "missing field `revision`"],
        ),
        (
            "nowhere.jsonl".to_owned(),
            ["stages.revise.principles", "nowhere.jsonl"],
        ),
    ] {
        let error = run(&recipe(&format!("principles: {path:?}")), folder.path()).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        for part in parts {
            assert!(
                error.to_string().contains(part),
                "{part:?} is not in {error}"
            );
        }
    }
    let text = recipe("principles: \"x.jsonl\", stop: [\"\"]")
        .replace("num_revisions: 2", "num_revisions: 0");
    let error = run(&text, folder.path()).unwrap_err().to_string();
    assert!(
        error.contains("num_revisions") && error.contains("stop"),
        "{error}"
    );
}
