//! What an interrupted run leaves, and that it ends as an uninterrupted one.

use std::fs;
use std::io::Write;
use std::path::Path;

use burn::backend::Flex;
use tempering::error::Error;
use tempering::recipe::RunOptions;
use tempering::report::{
    EvalReport, Interrupt, Reporter, RolloutReport, SilentReporter, StageInfo, StepReport,
};

use crate::support::pipeline;

/// Presses Ctrl-C after a step of a stage.
pub(crate) struct Interrupter(
    pub(crate) &'static str,
    pub(crate) usize,
    pub(crate) Interrupt,
);

impl Reporter for Interrupter {
    fn stage_start(&mut self, _: &StageInfo<'_>) {}
    fn step(&mut self, step: &StepReport<'_>) {
        if (step.stage, step.step) == (self.0, self.1) {
            self.2.request();
        }
    }
    fn rollout(&mut self, _: &RolloutReport<'_>) {}
    fn eval(&mut self, _: &EvalReport<'_>) {}
    fn message(&mut self, _: &str) {}
    fn stage_end(&mut self, _: &str) {}
}

/// Runs `recipe` in `folder` into `output`, or goes on with what is there; returns whether it was interrupted, after `stop`'s step of
/// its stage.
pub(crate) fn run_until(
    recipe: &str,
    folder: &Path,
    output: &Path,
    stop: Option<(&'static str, usize)>,
) -> bool {
    let options = RunOptions {
        output: Some(output.to_path_buf()),
        resume: output.exists(),
        interrupt: Interrupt::default(),
        ..RunOptions::default()
    };
    let device = Default::default();
    match stop {
        Some((stage, step)) => {
            let mut reporter = Interrupter(stage, step, options.interrupt.clone());
            pipeline::run_recipe::<Flex>(recipe, folder, device, &options, &mut reporter).is_err()
        }
        None => {
            let reporter = &mut SilentReporter;
            pipeline::run_recipe::<Flex>(recipe, folder, device, &options, reporter).unwrap();
            false
        }
    }
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn a_resumed_run_gives_the_same_results() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    let options = RunOptions {
        output: Some(whole.clone()),
        ..RunOptions::default()
    };
    pipeline::run::<Flex>(
        folder.path(),
        Default::default(),
        &options,
        &mut SilentReporter,
    )
    .unwrap();

    let parts = folder.path().join("parts");
    let mut options = RunOptions {
        output: Some(parts.clone()),
        resume_command: "temper recipe short.ron --resume".into(),
        ..RunOptions::default()
    };
    for (stage, step) in [
        ("pretrain", 2),
        ("sft", 1),
        ("sft", 3),
        ("rm", 2),
        ("dpo", 1),
        ("dpo", 3),
        ("dpo_full", 1),
        ("ppo", 1),
        ("ppo", 2),
    ] {
        options.interrupt = Interrupt::default();
        let outcome = pipeline::run::<Flex>(
            folder.path(),
            Default::default(),
            &options,
            &mut Interrupter(stage, step, options.interrupt.clone()),
        );
        let error = outcome.unwrap_err();
        assert!(
            matches!(&error, Error::Interrupted { stage: s, step: n, .. } if s == stage && *n == step),
            "{error}"
        );
        assert!(
            error
                .to_string()
                .contains("temper recipe short.ron --resume"),
            "{error}"
        );
        // As after a crash: steps after the last checkpoint, and a line cut short.
        let mut log = fs::OpenOptions::new()
            .append(true)
            .open(parts.join(stage).join("metrics.jsonl"))
            .unwrap();
        writeln!(log, "{{\"step\":{},\"loss\":9.0}}", step + 1).unwrap();
        write!(log, "{{\"step\":{},\"lo", step + 2).unwrap();
        options.resume = true;
    }
    options.interrupt = Interrupt::default();
    pipeline::run::<Flex>(
        folder.path(),
        Default::default(),
        &options,
        &mut SilentReporter,
    )
    .unwrap();

    for stage in pipeline::STAGES {
        for file in ["metrics.jsonl", "samples.jsonl", "DONE"] {
            let [a, b] = [&whole, &parts].map(|run| read(&run.join(stage).join(file)));
            assert!(
                a == b,
                "{stage}/{file}:\n{}\n---\n{}",
                String::from_utf8_lossy(&a),
                String::from_utf8_lossy(&b)
            );
        }
    }
    for file in [
        "pretrain/model/model.safetensors",
        "sft/adapter/adapter_model.safetensors",
        "rank/train.jsonl",
        "rm/adapter/adapter_model.safetensors",
        "dpo/adapter/adapter_model.safetensors",
        "dpo_full/model/model.safetensors",
        "ppo/adapter/adapter_model.safetensors",
    ] {
        assert!(read(&whole.join(file)) == read(&parts.join(file)), "{file}");
    }
}

/// Collects the messages to the user.
#[derive(Default)]
struct Messages(Vec<String>);

impl Reporter for Messages {
    fn stage_start(&mut self, _: &StageInfo<'_>) {}
    fn step(&mut self, _: &StepReport<'_>) {}
    fn rollout(&mut self, _: &RolloutReport<'_>) {}
    fn eval(&mut self, _: &EvalReport<'_>) {}
    fn message(&mut self, text: &str) {
        self.0.push(text.to_owned());
    }
    fn stage_end(&mut self, _: &str) {}
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_tree(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

/// Runs `recipe` in `folder` into `run`; returns the messages to the user.
fn go(
    recipe: &str,
    folder: &Path,
    run: &Path,
    change: impl FnOnce(&mut RunOptions),
) -> Result<Vec<String>, Error> {
    let mut options = RunOptions {
        output: Some(run.to_owned()),
        ..RunOptions::default()
    };
    change(&mut options);
    let mut messages = Messages::default();
    pipeline::run_recipe::<Flex>(recipe, folder, Default::default(), &options, &mut messages)?;
    Ok(messages.0)
}

/// Runs `recipe` until it is interrupted after a step of a stage.
fn interrupted(recipe: &str, folder: &Path, run: &Path, stage: &'static str, step: usize) {
    let options = RunOptions {
        output: Some(run.to_owned()),
        ..RunOptions::default()
    };
    let mut reporter = Interrupter(stage, step, options.interrupt.clone());
    let outcome =
        pipeline::run_recipe::<Flex>(recipe, folder, Default::default(), &options, &mut reporter);
    assert!(matches!(outcome, Err(Error::Interrupted { .. })));
}

/// Three steps of a Rank stage: 32, 32 and 6 prompts.
const RANK: &str = r#"(name: "r", model: "tiny", seed: 1, stages: [
    Rank(name: "rank", init: Base, data: (source: Posts(rows: 70, seed: 4)), num_responses: 2, response_length: 4,
        reward: Gold, generation_batch_size: 64),
])"#;

/// A kill or a full disk at the end of a Rank stage leaves one of these states; each of them can be resumed.
#[test]
fn a_rank_stage_resumes_from_every_state() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    go(RANK, folder.path(), &whole, |_| ()).unwrap();
    let part = folder.path().join("part");
    interrupted(RANK, folder.path(), &part, "rank", 2);
    // The state before the last prompts are processed, with half a line of theirs, cut within a character.
    let mut torn = read(&part.join("rank/partial.jsonl"));
    assert_eq!(torn.iter().filter(|&&byte| byte == b'\n').count(), 64);
    torn.extend(b"{\"prompt\":\"\xc3");

    type State<'a> = (&'a str, &'a [&'a str], bool, bool);
    let states: [State<'_>; 7] = [
        ("before DONE", &[], false, false),
        ("before the report", &["report.html"], false, false),
        (
            "before the partial file is removed",
            &["report.html"],
            true,
            false,
        ),
        (
            "before valid.jsonl",
            &["report.html", "valid.jsonl"],
            true,
            false,
        ),
        (
            "before train.jsonl",
            &["report.html", "valid.jsonl", "train.jsonl"],
            true,
            false,
        ),
        (
            "without a checkpoint",
            &["report.html", "checkpoints"],
            false,
            false,
        ),
        ("lines lost", &["report.html", "valid.jsonl"], false, true),
    ];
    for (state, removed, partial, begins_again) in states {
        let run = folder.path().join(state);
        copy_tree(&whole, &run);
        let rank = run.join("rank");
        fs::remove_file(rank.join("DONE")).unwrap();
        for name in removed {
            let path = rank.join(name);
            match path.is_dir() {
                true => fs::remove_dir_all(path).unwrap(),
                false => fs::remove_file(path).unwrap(),
            }
        }
        if partial {
            fs::write(rank.join("partial.jsonl"), &torn).unwrap();
        }
        let messages = go(RANK, folder.path(), &run, |o| o.resume = true)
            .unwrap_or_else(|error| panic!("{state}: {error}"));
        let said = messages.iter().any(|line| line.contains("begins again"));
        assert_eq!(said, begins_again, "{state}: {messages:?}");
        for name in [
            "train.jsonl",
            "valid.jsonl",
            "metrics.jsonl",
            "samples.jsonl",
        ] {
            assert!(
                read(&rank.join(name)) == read(&whole.join("rank").join(name)),
                "{state}: {name}"
            );
        }
        assert!(
            rank.join("DONE").exists() && rank.join("report.html").exists(),
            "{state}"
        );
        assert!(!rank.join("partial.jsonl").exists(), "{state}");
    }
}

/// A run that was killed before it wrote `run.json` is begun by `--resume`, and one that never began is not.
#[test]
fn a_run_that_hardly_began_can_be_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let message = go(RANK, folder.path(), &run, |o| o.resume = true)
        .unwrap_err()
        .to_string();
    assert!(message.contains("leave out --resume"), "{message}");
    fs::create_dir(&run).unwrap();
    fs::write(run.join("notes.txt"), "a folder of something else").unwrap();
    assert!(go(RANK, folder.path(), &run, |o| o.resume = true).is_err());
    fs::remove_file(run.join("notes.txt")).unwrap();
    // Killed after the folder was made, and after the lock was.
    for lock in [false, true] {
        if lock {
            fs::remove_dir_all(&run).unwrap();
            fs::create_dir(&run).unwrap();
            fs::write(run.join(".lock"), "").unwrap();
        }
        go(RANK, folder.path(), &run, |o| o.resume = true).unwrap();
        assert!(run.join("rank/DONE").exists());
    }
}

const SFT: &str = r#"(name: "s", model: "tiny", seed: 1, stages: [
    Sft(name: "sft", data: (source: Posts(rows: 32, seed: 2)), peft: Lora(rank: 4), optim: (lr: 1e-3), batch_size: 8,
        max_length: 128, cadence: (save_steps: 1, save_total_limit: 3)),
])"#;

/// A damaged checkpoint is never resumed from: the one before it is used, if any, and reported.
#[test]
fn damaged_checkpoints_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    go(SFT, folder.path(), &whole, |_| ()).unwrap();
    let part = folder.path().join("part");
    interrupted(SFT, folder.path(), &part, "sft", 3);
    let result = "sft/adapter/adapter_model.safetensors";

    let edit = |path: &Path, change: &dyn Fn(Vec<u8>) -> Vec<u8>| {
        fs::write(path, change(read(path))).unwrap();
    };
    let replaced = |from: &'static str, to: &'static str| {
        move |bytes: Vec<u8>| {
            let at = bytes
                .windows(from.len())
                .position(|w| w == from.as_bytes())
                .unwrap();
            [&bytes[..at], to.as_bytes(), &bytes[at + from.len()..]].concat()
        }
    };
    let flip = |mut bytes: Vec<u8>| {
        let at = bytes.len() - 101;
        bytes[at] ^= 64;
        bytes
    };
    let half = |bytes: Vec<u8>| bytes[..bytes.len() / 2].to_vec();
    let empty_file = |_| [&2u64.to_le_bytes()[..], b"{}"].concat();
    let moment = replaced(".m\"", ".x\"");
    let step = replaced("\"step\": 3", "\"step\": 1000000000");
    type Change<'a> = &'a dyn Fn(Vec<u8>) -> Vec<u8>;
    let damages: [(&str, &str, Change<'_>); 8] = [
        ("no moments", "optim.safetensors", &empty_file),
        ("a renamed moment", "optim.safetensors", &moment),
        ("a flipped bit of a moment", "optim.safetensors", &flip),
        ("a flipped bit of a weight", "weights.safetensors", &flip),
        ("cut weights", "weights.safetensors", &half),
        ("another step", "state.json", &step),
        ("no updates", "state.json", &|bytes| {
            let mut state: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
            state["updates"] = serde_json::json!([]);
            state.to_string().into_bytes()
        }),
        ("a marker without checksums", "COMPLETE", &|_| Vec::new()),
    ];
    for (damage, file, change) in damages {
        let run = folder.path().join(damage);
        copy_tree(&part, &run);
        edit(&run.join("sft/checkpoints/step-000003").join(file), change);
        let messages = go(SFT, folder.path(), &run, |o| o.resume = true)
            .unwrap_or_else(|error| panic!("{damage}: {error}"))
            .join("\n");
        assert!(
            messages.contains(file) && messages.contains("continues from step-000002"),
            "{damage}: {messages}"
        );
        assert!(
            read(&run.join(result)) == read(&whole.join(result)),
            "{damage}"
        );
        let metrics = "sft/metrics.jsonl";
        assert!(
            read(&run.join(metrics)) == read(&whole.join(metrics)),
            "{damage}"
        );
        assert!(
            run.join("sft/checkpoints/damaged-step-000003").is_dir(),
            "{damage}"
        );
    }

    // With one line of the log lost, the checkpoint before it is used; with all lines lost, none can be.
    let run = folder.path().join("a line lost");
    copy_tree(&part, &run);
    let metrics = run.join("sft/metrics.jsonl");
    edit(&metrics, &|bytes| {
        let end = bytes[..bytes.len() - 1]
            .iter()
            .rposition(|&byte| byte == b'\n');
        bytes[..end.unwrap() + 1].to_vec()
    });
    let messages = go(SFT, folder.path(), &run, |o| o.resume = true)
        .unwrap()
        .join("\n");
    assert!(
        messages.contains("metrics.jsonl: lacks lines") && messages.contains("step-000002"),
        "{messages}"
    );
    assert!(read(&run.join(result)) == read(&whole.join(result)));

    let run = folder.path().join("log emptied");
    copy_tree(&part, &run);
    let metrics = run.join("sft/metrics.jsonl");
    fs::write(&metrics, "").unwrap();
    let message = go(SFT, folder.path(), &run, |o| o.resume = true)
        .unwrap_err()
        .to_string();
    for part in [
        "stage sft: no checkpoint",
        "metrics.jsonl: lacks lines",
        "`--stage sft`",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    go(SFT, folder.path(), &run, |o| o.stage = Some("sft".into())).unwrap();
    assert!(read(&run.join(result)) == read(&whole.join(result)));
}

/// A stage that runs again does not resume from its old checkpoints.
#[test]
fn a_stage_that_begins_again_forgets_its_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    go(SFT, folder.path(), &run, |_| ()).unwrap();
    assert!(run.join("sft/checkpoints/step-000003").is_dir());
    let other = SFT.replace("lr: 1e-3", "lr: 1e-2");
    let options = RunOptions {
        output: Some(run.clone()),
        stage: Some("sft".into()),
        ..RunOptions::default()
    };
    let mut reporter = Interrupter("sft", 1, options.interrupt.clone());
    let outcome = pipeline::run_recipe::<Flex>(
        &other,
        folder.path(),
        Default::default(),
        &options,
        &mut reporter,
    );
    assert!(matches!(outcome, Err(Error::Interrupted { .. })));
    let left: Vec<_> = fs::read_dir(run.join("sft/checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["step-000001"]);
}

/// A kill after a checkpoint is complete and before an older one is removed.
#[test]
fn a_checkpoint_too_many_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = r#"(name: "r", model: "tiny", seed: 1, stages: [
        Sft(name: "sft", data: (source: Posts(rows: 16, seed: 2)), peft: Lora(rank: 1), batch_size: 4, max_length: 64,
            cadence: (save_steps: 1, save_total_limit: 2)),
    ])"#;
    let run = folder.path().join("run");
    interrupted(recipe, folder.path(), &run, "sft", 3);
    let checkpoints = run.join("sft/checkpoints");
    let names = || {
        let entries = fs::read_dir(&checkpoints).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(), ["step-000002", "step-000003"]);
    copy_tree(
        &checkpoints.join("step-000002"),
        &checkpoints.join("step-000001"),
    );
    go(recipe, folder.path(), &run, |options| options.resume = true).unwrap();
    assert_eq!(names(), ["step-000002", "step-000003"]);
}
