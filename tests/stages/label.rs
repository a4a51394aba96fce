//! People in a recipe: a stage that waits for judgements, resumed, and as the labeller of rounds.

use std::fs;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use burn::backend::Flex;
use serde_json::Value;
use tempering::error::Error;
use tempering::recipe::RunOptions;
use tempering::report::{
    EvalReport, Interrupt, Reporter, RolloutReport, SilentReporter, StageInfo, StepReport,
};

use crate::support::labeller::{Client, grade_of};
use crate::support::pipeline;

/// Sends every annotator's address that a stage prints.
struct Addresses(Sender<String>);

impl Reporter for Addresses {
    fn stage_start(&mut self, _: &StageInfo<'_>) {}
    fn step(&mut self, _: &StepReport<'_>) {}
    fn rollout(&mut self, _: &RolloutReport<'_>) {}
    fn eval(&mut self, _: &EvalReport<'_>) {}
    fn stage_end(&mut self, _: &str) {}
    fn message(&mut self, text: &str) {
        for line in text.lines().filter(|line| line.contains("/#")) {
            let _ = self.0.send(line.split(": ").nth(1).unwrap().to_owned());
        }
    }
}

/// Judges all tasks at each address, or `most` of them and then stops the run.
fn people(
    addresses: Receiver<String>,
    most: Option<usize>,
    interrupt: Interrupt,
) -> thread::JoinHandle<usize> {
    thread::spawn(move || {
        let mut judged = 0;
        for address in addresses {
            let client = Client::at(&address);
            let mut next = client.next();
            while let Some(task) = next {
                if most == Some(judged) {
                    interrupt.request();
                    return judged;
                }
                next = client.judge(&task, &grade_of(&task, 1));
                judged += 1;
            }
        }
        judged
    })
}

fn run(
    recipe: &str,
    folder: &Path,
    resume: bool,
    most: Option<usize>,
) -> (Result<(), Error>, usize) {
    let (sender, receiver) = channel();
    let options = RunOptions {
        output: Some(folder.join("run")),
        resume,
        ..RunOptions::default()
    };
    let judges = people(receiver, most, options.interrupt.clone());
    let outcome = pipeline::run_recipe::<Flex>(
        recipe,
        folder,
        Default::default(),
        &options,
        &mut Addresses(sender),
    );
    (outcome, judges.join().unwrap())
}

fn rows(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Ziegler's loop in small: responses of the policy, labels, a reward model, PPO; `TIMES` times. `LABEL` is the one line that changes.
const ROUNDS: &str = r#"(
    name: "rounds", model: "tiny", seed: 3,
    stages: [
        Repeat(name: "online", rounds: TIMES, start: {"policy": Base}, stages: [
            Sample(name: "pairs", init: Last("policy"), data: (source: Posts(rows: 6, seed: 4)), num_responses: 2,
                response_length: 8, reward: Gold, valid_fraction: 0.0),
            LABEL
            RewardModel(name: "rm", init: Base, data: (source: Rounds("labels")), peft: Lora(rank: 4), batch_size: 4, max_length: 160),
            Ppo(name: "policy", init: Last("policy"), reference: Base, data: (source: Posts(rows: 8, seed: 6)), reward: Learned(stage: "rm"),
                peft: Lora(rank: 4), total_episodes: 8, batch_size: 8, num_mini_batches: 1, response_length: 8, max_prompt_length: 128,
                kl_coef: 0.05),
        ]),
    ],
)
"#;

#[test]
fn one_line_makes_a_loop_of_people_a_judge_or_gold() {
    for (label, rounds) in [
        (
            r#"Label(name: "labels", data: (source: Stage("pairs")), valid_fraction: 0.0),"#,
            2,
        ),
        (
            r#"Label(name: "labels", data: (source: Stage("pairs")), by: Scores, valid_fraction: 0.0),"#,
            1,
        ),
        (
            r#"Judge(name: "labels", judge: Model(Base), data: (source: Stage("pairs")), valid_fraction: 0.0),"#,
            1,
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let recipe = ROUNDS
            .replace("LABEL", label)
            .replace("TIMES", &rounds.to_string());
        let (outcome, judged) = run(&recipe, folder.path(), false, None);
        outcome.unwrap();
        let out = folder.path().join("run");
        let of = |round: usize| rows(&out.join(format!("labels-{round}/train.jsonl")));
        let all: usize = (1..=rounds).map(|round| of(round).len()).sum();
        assert!(all > 3 * rounds, "{label}: {all}");
        assert!(out.join(format!("policy-{rounds}/adapter")).is_dir());
        if rounds == 2 {
            assert_eq!(judged, all);
            for row in of(2) {
                assert!(
                    row["chosen"].as_str().unwrap().len()
                        <= row["rejected"].as_str().unwrap().len(),
                    "{row}"
                );
            }
            let values = pipeline::values(&out, "labels-1", "label/judgements");
            assert_eq!(values.len(), 1);
        }
    }
}

#[test]
fn a_stopped_run_goes_on_with_what_was_judged() {
    let recipe = r#"(
    name: "stopped", model: "tiny", seed: 3,
    stages: [
        Sample(name: "pairs", init: Base, data: (source: Posts(rows: 8, seed: 4)), num_responses: 2, response_length: 8, valid_fraction: 0.0),
        Label(name: "labels", data: (source: Stage("pairs")), form: Pairwise(grades: 9), enough: 6, valid_fraction: 0.5),
    ],
)
"#;
    let folder = tempfile::tempdir().unwrap();
    let (outcome, judged) = run(recipe, folder.path(), false, Some(2));
    assert_eq!(judged, 2);
    let Err(Error::Interrupted { stage, .. }) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(stage, "labels");
    let (outcome, judged) = run(recipe, folder.path(), true, None);
    outcome.unwrap();
    // Two of the six were there; a client may be quicker than the stage's look at the store.
    assert!((4..=6).contains(&judged), "{judged}");
    let out = folder.path().join("run/labels");
    let (train, valid) = (
        rows(&out.join("train.jsonl")).len(),
        rows(&out.join("valid.jsonl")).len(),
    );
    assert_eq!(train + valid, judged + 2);
    assert!(valid > 0 && train > 0);
}

#[test]
fn what_a_label_stage_cannot_do_is_said_at_once() {
    for (label, expected) in [
        ("annotators: []", "annotators: expected at least one name"),
        (
            "form: Pairwise(grades: 5)",
            "grades: expected 2, 4 or 9, found 5",
        ),
        ("form: Dialogue()", "stages write no dialogues"),
        (
            "by: Scores, form: InstructGpt",
            "has no effect: nobody is asked",
        ),
        ("host: \"0.0.0.0\"", "is reached by other machines"),
        ("overlap: 1.5", "overlap"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let recipe = format!(
            r#"(name: "x", model: "tiny", stages: [
                Sample(name: "pairs", init: Base, data: (source: Posts(rows: 8, seed: 4)), num_responses: 2, response_length: 8),
                Label(name: "labels", data: (source: Stage("pairs")), {label}),
            ])"#
        );
        let error = pipeline::run_recipe::<Flex>(
            &recipe,
            folder.path(),
            Default::default(),
            &RunOptions::default(),
            &mut SilentReporter,
        );
        let error = error.unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        assert!(error.to_string().contains(expected), "{label}: {error}");
    }
}
