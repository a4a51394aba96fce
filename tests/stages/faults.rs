//! Faults on the way: each ends with an error that says where and what is left, and the run goes on from there to the results of one
//! that saw no fault. The promises are listed in `docs/reliability.md`.

use std::fs;
use std::path::{Path, PathBuf};

use burn::backend::Flex;
use serde_json::Value;
use tempering::error::{Error, Result};
use tempering::recipe::RunOptions;
use tempering::report::{
    EvalReport, Interrupt, Reporter, RolloutReport, SilentReporter, StageInfo, StepReport,
};

use crate::support::pipeline::run_recipe;

/// Notes messages, and does something at a step of any stage or while responses are sampled.
#[derive(Default)]
struct Watcher<'a> {
    messages: Vec<String>,
    steps: usize,
    at_step: Option<(usize, &'a (dyn Fn() + Sync))>,
    /// After so many responses.
    at_response: Option<(usize, Interrupt)>,
}

impl Reporter for Watcher<'_> {
    fn stage_start(&mut self, _: &StageInfo<'_>) {}
    fn step(&mut self, step: &StepReport<'_>) {
        self.steps += 1;
        if let Some((at, act)) = self.at_step
            && step.step == at
        {
            act();
        }
    }
    fn rollout(&mut self, rollout: &RolloutReport<'_>) {
        if let Some((after, interrupt)) = &self.at_response
            && rollout.done >= *after
        {
            interrupt.request();
        }
    }
    fn eval(&mut self, _: &EvalReport<'_>) {}
    fn message(&mut self, text: &str) {
        self.messages.push(text.to_owned());
    }
    fn stage_end(&mut self, _: &str) {}
}

/// Runs `recipe` in `folder` into `out`.
fn go(
    recipe: &str,
    folder: &Path,
    out: &Path,
    change: impl FnOnce(&mut RunOptions),
    watcher: &mut dyn Reporter,
) -> Result<()> {
    let mut options = RunOptions {
        output: Some(out.to_owned()),
        resume_command: "temper recipe short.ron --resume".into(),
        ..RunOptions::default()
    };
    change(&mut options);
    run_recipe::<Flex>(recipe, folder, Default::default(), &options, watcher)
}

fn resumes(options: &mut RunOptions) {
    options.resume = true;
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The files of a stage that no fault may change are equal in two runs; of `stage.json` all but time and memory.
#[track_caller]
fn equal(a: &Path, b: &Path, stage: &str, files: &[&str]) {
    for file in files
        .iter()
        .chain(&["metrics.jsonl", "samples.jsonl", "DONE"])
    {
        let [a, b] = [a, b].map(|run| read(&run.join(stage).join(file)));
        assert!(
            a == b,
            "{stage}/{file}:\n{}\n---\n{}",
            String::from_utf8_lossy(&a),
            String::from_utf8_lossy(&b)
        );
    }
    let record = |run: &Path| {
        let mut record: Value =
            serde_json::from_slice(&read(&run.join(stage).join("stage.json"))).unwrap();
        let map = record.as_object_mut().unwrap();
        map.remove("seconds");
        map.remove("peak_bytes");
        record
    };
    assert_eq!(record(a), record(b), "{stage}/stage.json");
}

const ADAPTER: &str = "adapter/adapter_model.safetensors";

const SFT: &str = r#"(name: "s", model: "tiny", seed: 1, stages: [
    Sft(name: "sft", data: DATA, eval_data: (source: Posts(rows: 4, seed: 3)), peft: Lora(rank: 4), optim: (lr: 1e-3),
        batch_size: 8, max_length: 128, cadence: (save_steps: 2)),
])"#;

fn sft() -> String {
    SFT.replace("DATA", "(source: Posts(rows: 32, seed: 2))")
}

#[cfg(unix)]
#[test]
fn a_full_disk_is_an_error_and_the_run_goes_on_when_there_is_room() {
    use std::process::Command;
    let folder = tempfile::tempdir().unwrap();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/models/tiny");
    fs::write(
        folder.path().join("r.ron"),
        sft().replace("\"tiny\"", &format!("{model:?}")),
    )
    .unwrap();
    // The moments of a checkpoint do not fit into 160 blocks of half a KiB, or one, as the shell has it.
    let temper = |out: &str, limit: &str, resume: &[&str]| {
        Command::new("sh")
            .args(["-c", &format!("{limit} exec \"$0\" \"$@\"")])
            .arg(env!("CARGO_BIN_EXE_temper"))
            .args([
                "recipe",
                "r.ron",
                "--backend",
                "flex",
                "--threads",
                "2",
                "--output",
                out,
            ])
            .args(resume)
            .current_dir(folder.path())
            .output()
            .unwrap()
    };
    let whole = temper("whole", "", &[]);
    assert!(whole.status.success(), "{whole:?}");
    let full = temper("run", "ulimit -f 160;", &[]);
    let stderr = String::from_utf8_lossy(&full.stderr);
    assert_eq!(full.status.code(), Some(1), "{stderr}");
    for part in [
        "error: stage sft: Sft ended after step 2",
        "cannot write run/sft/checkpoints/step-000002",
        "There is no checkpoint of this stage",
        "--resume",
        "Make room there first.",
    ] {
        assert!(stderr.contains(part), "{part:?} is not in\n{stderr}");
    }
    let resumed = temper("run", "", &["--resume"]);
    assert!(resumed.status.success(), "{resumed:?}");
    let at = |out: &str| folder.path().join(out);
    equal(&at("whole"), &at("run"), "sft", &[ADAPTER]);
}

#[test]
fn an_output_that_is_no_folder_is_refused_by_the_check() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    for (out, part) in [
        (folder.path().join("file"), "is a file; expected a folder"),
        (folder.path().join("file/below"), "file: is a file"),
        (PathBuf::new(), "is empty"),
        #[cfg(target_os = "linux")]
        (PathBuf::from("/dev/full"), "is a character device"),
    ] {
        let error = go(&sft(), folder.path(), &out, |_| (), &mut SilentReporter).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        let message = error.to_string();
        assert!(
            message.contains("--output") && message.contains(part),
            "{message}"
        );
    }
    #[cfg(target_os = "linux")]
    for (out, part) in [
        ("/dev/full", "always full"),
        ("/dev/urandom", "is a character device"),
    ] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_temper"))
            .args([
                "logprobs", "--model", "tiny", "--data", "file", "--output", out,
            ])
            .current_dir(folder.path())
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(part), "{stderr}");
    }
}

#[test]
fn a_run_folder_that_is_moved_is_noticed_within_a_step_and_resumed_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    go(
        &sft(),
        folder.path(),
        &at("whole"),
        |_| (),
        &mut SilentReporter,
    )
    .unwrap();
    let (run, moved) = (at("run"), at("moved"));
    let act = || fs::rename(at("run"), at("moved")).unwrap();
    let mut watcher = Watcher {
        at_step: Some((2, &act)),
        ..Watcher::default()
    };
    // Step 2 has a checkpoint to write, into a folder that is no longer there.
    let message = (go(&sft(), folder.path(), &run, |_| (), &mut watcher).unwrap_err()).to_string();
    for part in [
        "stage sft: Sft ended after step 2",
        "removed, moved or replaced",
        "is no longer there",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert_eq!(watcher.steps, 2);
    assert!(!run.exists(), "the folder is not made anew");
    go(&sft(), folder.path(), &moved, resumes, &mut SilentReporter).unwrap();
    equal(&at("whole"), &moved, "sft", &[ADAPTER]);
}

#[test]
fn unfinished_files_are_removed_and_summaries_are_whole_after_resume() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    go(
        &sft(),
        folder.path(),
        &at("whole"),
        |_| (),
        &mut SilentReporter,
    )
    .unwrap();
    let run = at("run");
    let interrupt = Interrupt::default();
    let ask = || {
        interrupt.request();
    };
    let mut watcher = Watcher {
        at_step: Some((3, &ask)),
        ..Watcher::default()
    };
    let stopped = go(
        &sft(),
        folder.path(),
        &run,
        |o| o.interrupt = interrupt.clone(),
        &mut watcher,
    );
    assert!(matches!(stopped, Err(Error::Interrupted { .. })));
    // What a kill leaves: of a checkpoint, and of the run's files.
    let checkpoints = run.join("sft/checkpoints");
    fs::create_dir(checkpoints.join(".tmp-7-0-step-000004")).unwrap();
    fs::write(checkpoints.join(".tmp-7-0-step-000004/state.json"), "{").unwrap();
    fs::write(run.join(".tmp-7-1-run.json"), "{").unwrap();
    // What a disk leaves: half of a file that tells where results come from.
    let info = read(&run.join("run.json"));
    fs::write(run.join("run.json"), &info[..info.len() / 2]).unwrap();
    let mut watcher = Watcher::default();
    go(&sft(), folder.path(), &run, resumes, &mut watcher).unwrap();
    let said = watcher
        .messages
        .iter()
        .filter(|m| m.contains("removed 2 unfinished files"));
    assert_eq!(said.count(), 1, "{:?}", watcher.messages);
    assert!(!run.join(".tmp-7-1-run.json").exists());
    let said = watcher
        .messages
        .iter()
        .any(|m| m.contains("not a run.json") && m.contains("damaged-run.json"));
    assert!(said, "{:?}", watcher.messages);
    let info: Value = serde_json::from_slice(&read(&run.join("run.json"))).unwrap();
    assert_eq!(info["lineage"][0]["stage"], "sft");
    // The summary has the loss before the first step, which the first process measured.
    let done = String::from_utf8(read(&run.join("sft/DONE"))).unwrap();
    assert!(done.contains(" -> "), "{done}");
    equal(&at("whole"), &run, "sft", &[ADAPTER]);
}

/// Stops a run of [`SFT`] on `data.jsonl` after its second step.
fn begun(folder: &Path) -> (String, PathBuf) {
    let rows: String = (0..32)
        .map(|i| format!("{{\"prompt\":\"Number {i}.\",\"completion\":\" The key is {i}.\"}}\n"))
        .collect();
    fs::write(folder.join("data.jsonl"), rows).unwrap();
    let data = folder.join("data.jsonl");
    let recipe = SFT.replace("DATA", &format!("(source: Jsonl({data:?}))"));
    let run = folder.join("run");
    let interrupt = Interrupt::default();
    let ask = || {
        interrupt.request();
    };
    let mut watcher = Watcher {
        at_step: Some((2, &ask)),
        ..Watcher::default()
    };
    let interrupts = |o: &mut RunOptions| o.interrupt = interrupt.clone();
    let stopped = go(&recipe, folder, &run, interrupts, &mut watcher);
    assert!(matches!(stopped, Err(Error::Interrupted { .. })));
    (recipe, run)
}

#[test]
fn the_guard_of_settings_covers_data_and_machine_and_survives_damaged_files() {
    let folder = tempfile::tempdir().unwrap();
    let (recipe, run) = begun(folder.path());
    let refused = |recipe: &str, parts: &[&str]| {
        let error = go(recipe, folder.path(), &run, resumes, &mut SilentReporter).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        for part in parts {
            assert!(error.to_string().contains(part), "{part}: {error}");
        }
    };
    // Data of the same size with one other word.
    let data = folder.path().join("data.jsonl");
    let rows = fs::read_to_string(&data).unwrap();
    fs::write(&data, rows.replace("key is 31", "box is 31")).unwrap();
    refused(
        &recipe,
        &[
            "stages.sft.data",
            "data.jsonl has changed since the stage was begun",
        ],
    );
    fs::write(&data, &rows).unwrap();
    // The copy of the recipe is cut, or gone: the stage's own record tells its settings.
    let copy = run.join("recipe.ron");
    let text = fs::read_to_string(&copy).unwrap();
    let other = recipe
        .replace("seed: 1,", "seed: 99,")
        .replace("lr: 1e-3", "lr: 2e-3");
    let changed = ["seed", "begun with 1, found 99", "stages.sft.optim.lr"];
    fs::write(&copy, &text[..text.len() - 20]).unwrap();
    refused(&other, &changed);
    fs::remove_file(&copy).unwrap();
    refused(&other, &changed);
    // Another backend, and another number of threads.
    let file = run.join("sft/begun.json");
    let record = fs::read_to_string(&file).unwrap();
    let mut value: Value = serde_json::from_str(&record).unwrap();
    value["backend"] = "cuda".into();
    fs::write(&file, value.to_string()).unwrap();
    refused(
        &recipe,
        &["begun with the backend cuda, found test", "--backend cuda"],
    );
    let mut value: Value = serde_json::from_str(&record).unwrap();
    value["threads"] = 999.into();
    fs::write(&file, value.to_string()).unwrap();
    refused(&recipe, &["begun with 999 threads", "--threads 999"]);
    // The record itself is damaged, or both are gone.
    fs::write(&file, &record[..record.len() / 2]).unwrap();
    refused(&recipe, &["begun.json: damaged", "--stage sft"]);
    fs::remove_file(&file).unwrap();
    refused(&recipe, &["neither", "recipe.ron says with which settings"]);
    fs::write(&file, &record).unwrap();
    go(&recipe, folder.path(), &run, resumes, &mut SilentReporter).unwrap();
    let whole = folder.path().join("whole");
    go(&recipe, folder.path(), &whole, |_| (), &mut SilentReporter).unwrap();
    equal(&whole, &run, "sft", &[ADAPTER]);
    // A stage that begins again may not change what the run's files say of others.
    let two = recipe.replace(
        "\n])",
        "\n    Sft(name: \"next\", init: Stage(\"sft\"), data: (source: Posts(rows: 8, seed: 4)), peft: Lora(rank: 4), batch_size: 4, max_length: 128)])",
    );
    let two = two.replace("seed: 1,", "seed: 99,");
    let only = |o: &mut RunOptions| o.stage = Some("next".into());
    let error = go(&two, folder.path(), &run, only, &mut SilentReporter).unwrap_err();
    assert!(
        error.to_string().contains("begun with 1, found 99"),
        "{error}"
    );
}

const COMPARE: &str = r#"(name: "c", model: "tiny", seed: 4, stages: [
    Compare(name: "c", policies: [Base, Base], data: (source: Posts(rows: 40, seed: 1)), rewards: {"gold": Gold},
        response_length: 12, max_prompt_length: 200, generation_batch_size: 2),
])"#;

#[test]
fn a_comparison_stops_at_once_and_goes_on_with_what_it_lacks() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    go(
        COMPARE,
        folder.path(),
        &at("whole"),
        |_| (),
        &mut SilentReporter,
    )
    .unwrap();
    let run = at("run");
    for after in [18, 34] {
        let interrupt = Interrupt::default();
        let mut watcher = Watcher {
            at_response: Some((after, interrupt.clone())),
            ..Watcher::default()
        };
        let options = |o: &mut RunOptions| {
            o.interrupt = interrupt.clone();
            o.resume = after > 18;
        };
        let stopped = go(COMPARE, folder.path(), &run, options, &mut watcher).unwrap_err();
        assert!(
            matches!(&stopped, Error::Interrupted { stage, .. } if stage == "c"),
            "{stopped}"
        );
        let kept = String::from_utf8(read(&run.join("c/partial.jsonl"))).unwrap();
        // Eight batches of two at a time.
        assert_eq!(kept.lines().count(), after / 16 * 16);
    }
    // A line that a kill cut short.
    let mut partial = read(&run.join("c/partial.jsonl"));
    partial.extend(b"{\"policy\":1,\"pro");
    fs::write(run.join("c/partial.jsonl"), partial).unwrap();
    go(COMPARE, folder.path(), &run, resumes, &mut SilentReporter).unwrap();
    assert!(!run.join("c/partial.jsonl").exists());
    equal(&at("whole"), &run, "c", &[]);
}

/// Three updates with a reward by a program, and no checkpoints of their own.
const PPO: &str = r#"(name: "p", model: "tiny", seed: 2, stages: [
    Ppo(name: "ppo", init: Base, data: (source: Posts(rows: 24, seed: 6)), eval_data: (source: Posts(rows: 2, seed: 7)),
        reward: REWARD, peft: Lora(rank: 2), optim: (lr: 1e-3), total_episodes: 12, batch_size: 4, num_mini_batches: 1,
        num_ppo_epochs: 1, response_length: 6, max_prompt_length: 96),
])"#;

#[cfg(unix)]
#[test]
fn a_reward_program_that_dies_is_restarted_and_without_retries_leaves_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    // Scores by the length of the line. Where `fault` is, a process ends after 11 lines: the evaluation's 2, and 9 of 12.
    let script = at("score.sh");
    let text = format!(
        "n=0; while read -r line; do [ -e {:?} ] && [ $n = 11 ] && {{ echo tired >&2; exit 3; }}; n=$((n+1)); \
         echo \"{{\\\"score\\\": 0.$((${{#line}} % 10))}}\"; done",
        at("fault")
    );
    fs::write(&script, text).unwrap();
    let recipe = |retries: usize| {
        let reward = format!("Command(command: [\"sh\", {script:?}], retries: {retries})");
        PPO.replace("REWARD", &reward)
    };
    let (never, twice) = (recipe(0), recipe(2));
    go(
        &twice,
        folder.path(),
        &at("whole"),
        |_| (),
        &mut SilentReporter,
    )
    .unwrap();

    fs::write(at("fault"), "").unwrap();
    let mut watcher = Watcher::default();
    go(
        &twice,
        folder.path(),
        &at("restarted"),
        |_| (),
        &mut watcher,
    )
    .unwrap();
    let said = watcher.messages.join("\n");
    assert!(said.contains("tired; it is restarted, 1 of 2"), "{said}");
    assert!(said.contains("the program was restarted 1 time"), "{said}");
    equal(&at("whole"), &at("restarted"), "ppo", &[ADAPTER]);

    let mut watcher = Watcher::default();
    let error = go(&never, folder.path(), &at("run"), |_| (), &mut watcher).unwrap_err();
    assert_eq!(error.exit_code(), 1);
    let message = error.to_string();
    for part in [
        "stage ppo: Ppo ended after step 2",
        "exit status: 3",
        "tired",
        "step-000002; continue with: temper recipe short.ron --resume",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    let said = watcher.messages.join("\n");
    assert!(
        said.contains("a checkpoint of the 2 steps before the failure was written"),
        "{said}"
    );
    fs::remove_file(at("fault")).unwrap();
    go(
        &never,
        folder.path(),
        &at("run"),
        resumes,
        &mut SilentReporter,
    )
    .unwrap();
    equal(&at("whole"), &at("run"), "ppo", &[ADAPTER]);
}
