//! `recipes/constitutional.ron` and `recipes/rlaif.ron` as they are shipped: sound at their sizes, and run to the end in a short form on
//! the embedded model.

use std::fs;
use std::path::Path;

use burn::backend::Flex;
use serde_json::json;
use tempering::error::Error;
use tempering::recipe::{self, RunOptions};
use tempering::report::{Interrupt, Reporter, SilentReporter};

use super::resume::Interrupter;
use crate::support::pipeline;

/// Replaces models and data by what is on every machine.
const CONSTITUTIONAL: [&str; 3] = [
    "model=\"tiny\"",
    "data.helpful=(source: Posts(rows: 42000, seed: 1))",
    "data.red_team=(source: Posts(rows: 42000, seed: 2))",
];
/// Rows of comparisons in the layout of the data on the hub.
fn dialogues(path: &Path) {
    let row = |i: usize| {
        let prompt = format!("\n\nHuman: How do I find the key number {i}?\n\nAssistant:");
        let [chosen, rejected] =
            [" Ask at the desk.", " Break the door."].map(|answer| format!("{prompt}{answer}"));
        json!({"chosen": chosen, "rejected": rejected}).to_string() + "\n"
    };
    fs::write(path, (0..24).map(row).collect::<String>()).unwrap();
}
const RLAIF: [&str; 5] = [
    "model=\"tiny\"",
    "data.train=(source: Posts(rows: 42000, seed: 1))",
    "data.validation=(source: Posts(rows: 2000, seed: 2))",
    "stages.labels.judge=Model(Base)",
    "stages.d_rlaif.reward=Graded(judge: Model(Base), instructions: \"You grade summaries.\")",
];

/// Runs a shipped recipe with these `--set`; `stop`: Ctrl-C after this step of a stage.
fn run(
    name: &str,
    sets: &[&str],
    output: &Path,
    stop: Option<(&'static str, usize)>,
) -> Result<(), Error> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("recipes")
        .join(name);
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    let loaded = recipe::load_with_places(&path, &sets)?;
    let options = RunOptions {
        output: Some(output.to_path_buf()),
        resume: output.exists(),
        interrupt: Interrupt::default(),
        ..RunOptions::default()
    };
    let checked = recipe::check(loaded, &options)?;
    let mut silent = SilentReporter;
    let mut interrupter =
        stop.map(|(stage, step)| Interrupter(stage, step, options.interrupt.clone()));
    let reporter: &mut dyn Reporter = match &mut interrupter {
        Some(interrupter) => interrupter,
        None => &mut silent,
    };
    recipe::run::<Flex>(&checked, &options, Default::default(), "test", reporter).map(drop)
}

#[test]
fn the_published_sizes_are_sound() {
    for (name, sets) in [
        ("constitutional.ron", &CONSTITUTIONAL[..]),
        ("rlaif.ron", &RLAIF),
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("recipes")
            .join(name);
        let mut sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        let folder = tempfile::tempdir().unwrap();
        if name == "constitutional.ron" {
            let file = folder.path().join("dialogues.jsonl");
            dialogues(&file);
            sets.push(format!(
                "data.human.source=Jsonl({:?})",
                file.display().to_string()
            ));
        }
        if name == "rlaif.ron" {
            // The embedded model has no chat template.
            sets.push("stages.labels.chat=false".into());
        }
        let loaded = recipe::load_with_places(&path, &sets).unwrap();
        let options = RunOptions {
            output: Some(folder.path().join("run")),
            ..RunOptions::default()
        };
        let checked = recipe::check(loaded, &options).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(checked.plans.len(), checked.recipe.stages.len(), "{name}");
    }
}

#[test]
fn constitutional_ai_runs_short_and_resumes_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dialogues.jsonl");
    dialogues(&file);
    let source = |name: &str| format!("data.{name}.source=Jsonl({:?})", file.display().to_string());
    let [helpful, human, red_team] = ["helpful", "human", "red_team"].map(source);
    let mut sets = vec!["model=\"tiny\"", helpful.as_str(), &human, &red_team];
    sets.extend([
        "stages.helpful.data.limit=16",
        "stages.helpful.batch_size=8",
        "stages.helpful.optim.lr=1e-3",
        "stages.revise.data.limit=8",
        "stages.revise.num_revisions=2",
        "stages.revise.examples=None",
        "stages.revise.response_length=12",
        "stages.revise.critique_length=8",
        "stages.helpful_answers.data.skip=0",
        "stages.helpful_answers.data.limit=4",
        "stages.helpful_answers.response_length=8",
        "stages.sl_cai.batch_size=8",
        "stages.pairs.data.skip=0",
        "stages.pairs.data.limit=20",
        "stages.pairs.response_length=12",
        "stages.labels.examples=None",
        "stages.labels.valid_fraction=0.2",
        "stages.pm.batch_size=8",
        "stages.rl_cai.total_episodes=16",
        "stages.rl_cai.batch_size=8",
        "stages.rl_cai.response_length=12",
        "stages.compare.data.limit=2",
        "stages.compare.response_length=8",
    ]);
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    run("constitutional.ron", &sets, &whole, None).unwrap();
    for stop in [("helpful", 1), ("labels", 1), ("rl_cai", 1)] {
        let error = run("constitutional.ron", &sets, &parts, Some(stop)).unwrap_err();
        assert!(matches!(error, Error::Interrupted { .. }), "{error}");
    }
    run("constitutional.ron", &sets, &parts, None).unwrap();
    for file in [
        "revise/train.jsonl",
        "labels/train.jsonl",
        "labels/metrics.jsonl",
        "pm/metrics.jsonl",
        "rl_cai/metrics.jsonl",
        "rl_cai/model/model.safetensors",
        "compare/metrics.jsonl",
    ] {
        let [a, b] = [&whole, &parts].map(|run| fs::read(run.join(file)).unwrap());
        assert!(a == b, "{file}");
    }
    let scores = pipeline::values(&whole, "rl_cai", "objective/scores");
    assert_eq!(scores.len(), 2);
    // Of 24 comparisons of people and those of the judge, as many as the shares allow.
    let judged = fs::read_to_string(whole.join("labels/train.jsonl")).unwrap();
    let judged = judged.lines().count() as f64;
    let steps = pipeline::values(&whole, "pm", "loss").len();
    let rows = f64::min(24.0 / 0.425, judged / 0.575);
    assert!(
        (steps as f64 - rows / 8.0).abs() <= 1.0 && rows > judged + 1.0,
        "{steps} steps of {judged} judged rows"
    );
}

#[test]
fn rlaif_runs_short() {
    let mut sets = RLAIF.to_vec();
    sets.extend([
        "stages.sft.data.limit=16",
        "stages.sft.eval_data.limit=2",
        "stages.sft.batch_size=8",
        "stages.pairs.data.limit=12",
        "stages.pairs.response_length=12",
        "stages.labels.chat=false",
        "stages.labels.chain_of_thought=(max_tokens: 8, clamp: None)",
        "stages.rm.batch_size=8",
        "stages.rm.center_on.limit=4",
        "stages.rlaif.eval_data.limit=2",
        "stages.rlaif.total_episodes=8",
        "stages.rlaif.batch_size=8",
        "stages.rlaif.response_length=12",
        "stages.d_rlaif.eval_data.limit=2",
        "stages.d_rlaif.total_episodes=8",
        "stages.d_rlaif.batch_size=8",
        "stages.d_rlaif.response_length=12",
        "stages.compare.data.limit=2",
        "stages.compare.response_length=8",
    ]);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    run("rlaif.ron", &sets, &out, None).unwrap();
    let grades = pipeline::values(&out, "d_rlaif", "objective/scores");
    assert!(
        grades.iter().all(|grade| (-1.0..=1.0).contains(grade)),
        "{grades:?}"
    );
    assert!(out.join("compare/DONE").exists());
}
