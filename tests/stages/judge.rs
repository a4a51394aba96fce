//! AI labels: pairs judged by a model and by a server, grades as rewards, and what goes wrong with them.

use std::fs;
use std::path::Path;

use burn::backend::Flex;
use serde_json::{Value, json};
use tempering::error::Error;
use tempering::recipe::RunOptions;
use tempering::report::SilentReporter;

use super::resume::run_until;
use crate::support::endpoint::{LoopbackEndpoint, completion, last_message, nobody};
use crate::support::pipeline;

/// Pairs from a file, judged by `judge`, and a reward model from them.
fn recipe(judge: &str) -> String {
    format!(
        r#"(
    name: "judged", model: "tiny", seed: 5,
    stages: [
        Judge(name: "judge", {judge}, data: (source: Jsonl("PAIRS"))),
        RewardModel(name: "rm", init: Base, data: (source: Stage("judge")), eval_data: (source: HeldOut("judge")),
            soft_labels: true, peft: Lora(rank: 4), batch_size: 8, max_length: 128),
    ],
)
"#
    )
}

/// The recipe with its file of 24 pairs of a short and a long response, each chosen in half of the rows.
fn with_pairs(recipe: &str, folder: &Path) -> String {
    let row = |i: usize| {
        let (short, long) = (" word".repeat(1 + i % 5), " thing".repeat(6 + i % 3));
        let (chosen, rejected) = match i % 2 {
            0 => (short, long),
            _ => (long, short),
        };
        json!({"prompt": format!("Post {i}.\n\nTL;DR:"), "chosen": chosen, "rejected": rejected})
            .to_string()
            + "\n"
    };
    let path = folder.join("pairs.jsonl");
    fs::write(&path, (0..24).map(row).collect::<String>()).unwrap();
    recipe.replace("PAIRS", &path.display().to_string())
}

fn run(recipe: &str, folder: &Path, resume: bool) -> Result<(), Error> {
    let options = RunOptions {
        output: Some(folder.join("run")),
        resume,
        ..RunOptions::default()
    };
    let reporter = &mut SilentReporter;
    let recipe = &with_pairs(recipe, folder);
    pipeline::run_recipe::<Flex>(recipe, folder, Default::default(), &options, reporter)
}

fn rows(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn a_model_of_the_recipe_labels_pairs() {
    let folder = tempfile::tempdir().unwrap();
    let principles = folder.path().join("principles.txt");
    fs::write(
        &principles,
        "# Two of them.\n\nWhich is shorter?\nWhich names more?\n",
    )
    .unwrap();
    let text = recipe(&format!(
        "judge: Model(Base), max_pairs: 2, principles: {:?}, instructions: \"Compare.\"",
        principles.display().to_string()
    ))
    .replace(
        "    stages: [",
        r#"    stages: [
        Rank(name: "pairs", init: Base, data: (source: Posts(rows: 24, seed: 4)), num_responses: 3, response_length: 8, reward: Gold,
            valid_fraction: 0.0),"#,
    )
    .replace("Jsonl(\"PAIRS\")", "Stage(\"pairs\")");
    run(&text, folder.path(), false).unwrap();
    let out = folder.path().join("run/judge");
    let (train, valid) = (
        rows(&out.join("train.jsonl")),
        rows(&out.join("valid.jsonl")),
    );
    // 24 prompts with two of three pairs each, less pairs of equal texts.
    assert!(
        (40..=48).contains(&(train.len() + valid.len())),
        "{}",
        train.len()
    );
    assert!(!valid.is_empty());
    for row in train.iter().chain(&valid) {
        let sure = row["chosen_probability"].as_f64().unwrap();
        assert!((0.5..=1.0).contains(&sure), "{row}");
        assert!(row["prompt"].as_str().unwrap().len() > 10 && row["chosen"] != row["rejected"]);
    }
    let judged = rows(&out.join("judged.jsonl"));
    assert_eq!(judged.len(), 24);
    let pairs: Vec<&Value> = judged
        .iter()
        .flat_map(|row| row["pairs"].as_array().unwrap())
        .collect();
    let drawn = |principle: u64| {
        pairs
            .iter()
            .filter(|pair| pair["principle"] == principle)
            .count()
    };
    assert!(drawn(0) > 8 && drawn(1) > 8, "{} {}", drawn(0), drawn(1));
    for pair in &pairs {
        // The mean over both orders.
        let first: Vec<f64> = pair["first"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| p.as_f64().unwrap())
            .collect();
        let expected = 0.5 * (first[0] + 1.0 - first[1]);
        assert!(
            (pair["probability"].as_f64().unwrap() - expected).abs() < 1e-9,
            "{pair}"
        );
    }
    for name in [
        "judge/position_bias",
        "judge/first_share",
        "judge/agreement",
        "judge/label_mass",
    ] {
        let values = pipeline::values(&folder.path().join("run"), "judge", name);
        assert_eq!(values.len(), 2, "{name}");
        assert!(
            values.iter().all(|x| (0.0..=1.0).contains(x)),
            "{name}: {values:?}"
        );
    }
}

#[test]
fn a_chain_of_thought_is_clamped_and_everything_resumes() {
    let text = recipe(
        "judge: Model(Stage(\"sft\")), labels: (\"(A)\", \"(B)\"), both_orders: false, chain_of_thought: (max_tokens: 8)",
    )
    .replace(
        "    stages: [",
        "    stages: [\n        Sft(name: \"sft\", data: (source: Posts(rows: 16, seed: 1)), peft: Lora(rank: 4), batch_size: 8, max_length: 128),",
    );
    let folder = tempfile::tempdir().unwrap();
    let text = with_pairs(&text, folder.path());
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    assert!(!run_until(&text, folder.path(), &whole, None));
    assert!(run_until(&text, folder.path(), &parts, Some(("judge", 1))));
    // As after a crash in the next step: a line of it, and half a line.
    let log = parts.join("judge/judged.jsonl");
    let mut judged = fs::read_to_string(&log).unwrap();
    assert_eq!(judged.lines().count(), 16);
    judged += "{\"pairs\":[]}\n{\"pai";
    fs::write(&log, judged).unwrap();
    assert!(!run_until(&text, folder.path(), &parts, None));
    for file in [
        "judged.jsonl",
        "train.jsonl",
        "valid.jsonl",
        "metrics.jsonl",
        "samples.jsonl",
    ] {
        let [a, b] = [&whole, &parts].map(|run| fs::read(run.join("judge").join(file)).unwrap());
        assert!(a == b, "{file}");
    }
    for row in rows(&whole.join("judge/train.jsonl")) {
        assert!(row["chosen_probability"].as_f64().unwrap() <= 0.6, "{row}");
    }
    let judged = rows(&whole.join("judge/judged.jsonl"));
    assert_eq!(
        judged[0]["pairs"][0]["thoughts"].as_array().unwrap().len(),
        1
    );
}

/// The label of the shorter of the two responses in a question, with three times the probability of the other; shows the place 2 some
/// favour.
fn prefers_short(body: &Value) -> Value {
    let text = last_message(body);
    let (_, rest) = text.split_once("\n\n1 ").unwrap();
    let (first, rest) = rest.split_once("\n\n2 ").unwrap();
    let second = rest.split("\n\nWhich response").next().unwrap();
    let p = if first.len() < second.len() { 0.6 } else { 0.2 };
    completion("1", &[("1", p), ("2", 0.8 - p), ("Both", 0.2)])
}

fn endpoint(url: &str, more: &str) -> String {
    format!("judge: Endpoint(url: {url:?}, model: \"m\", retry_wait_s: 0.01{more})")
}

#[test]
fn a_server_judges_and_is_asked_nothing_twice() {
    let folder = tempfile::tempdir().unwrap();
    let server = LoopbackEndpoint::serve(|body, before| match before {
        // One that is busy, and one that fails for a while.
        3 => (429, json!({"error": {"message": "slow down"}})),
        7 => (503, json!({})),
        _ => (200, prefers_short(body)),
    });
    // A variable that is there in every process stands for the one with the key.
    let more = ", api_key_env: \"PATH\", price: (prompt: 10.0, completion: 20.0), concurrency: 3";
    let text = recipe(&endpoint(&server.url, more));
    run(&text, folder.path(), false).unwrap();
    let key = std::env::var("PATH").unwrap();
    let seen = server.seen();
    assert!(
        seen.iter()
            .all(|question| question.path == "/v1/chat/completions")
    );
    assert!(
        seen.iter()
            .all(|question| question.key.as_deref() == Some(&format!("Bearer {}", key.trim())))
    );
    let mut bodies: Vec<String> = seen
        .iter()
        .map(|question| question.body.to_string())
        .collect();
    let asked = bodies.len();
    bodies.sort();
    bodies.dedup();
    assert_eq!(asked, bodies.len() + 2, "two were repeated");
    let body = &seen[0].body;
    assert_eq!(
        (&body["model"], &body["logprobs"], &body["temperature"]),
        (&json!("m"), &json!(true), &json!(0.0))
    );

    let models = pipeline::models(&folder.path().join("run"), "judge");
    assert_eq!(models, ["judge m: 0 files"]);
    let out = folder.path().join("run/judge");
    for row in rows(&out.join("train.jsonl")) {
        let [chosen, rejected] =
            ["chosen", "rejected"].map(|name| row[name].as_str().unwrap().trim().len());
        let sure = row["chosen_probability"].as_f64().unwrap();
        match chosen == rejected {
            // Then the place decides, and cancels.
            true => assert!((sure - 0.5).abs() < 1e-9),
            false => assert!(chosen < rejected && (sure - 0.75).abs() < 1e-9, "{row}"),
        }
    }
    let total = |name| {
        pipeline::values(&folder.path().join("run"), "judge", name)
            .iter()
            .sum::<f64>()
    };
    let questions = 2.0
        * rows(&out.join("judged.jsonl"))
            .iter()
            .map(|row| row["pairs"].as_array().unwrap().len())
            .sum::<usize>() as f64;
    assert_eq!(total("judge/prompt_tokens"), 100.0 * questions);
    assert!((total("judge/cost") - questions * (1000.0 + 40.0) / 1e6).abs() < 1e-9);
    // Nothing of the key is on the disk.
    let mut files = vec![folder.path().join("run")];
    while let Some(path) = files.pop() {
        match path.is_dir() {
            true => files.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            ),
            false => {
                let bytes = fs::read(&path).unwrap();
                let found = bytes
                    .windows(key.len())
                    .any(|window| window == key.as_bytes());
                assert!(!found, "{}", path.display());
            }
        }
    }
    // The stage once more: all answers are there.
    fs::remove_dir_all(&out).unwrap();
    run(&text, folder.path(), true).unwrap();
    assert_eq!(server.seen().len(), asked);
}

#[test]
fn a_server_that_goes_down_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let down = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let state = std::sync::Arc::clone(&down);
    let server = LoopbackEndpoint::serve(move |body, before| {
        // From the 20th question on, until it is started again.
        if before == 20 {
            state.store(true, std::sync::atomic::Ordering::SeqCst);
        }
        match state.load(std::sync::atomic::Ordering::SeqCst) {
            true => (500, json!({"error": {"message": "out of memory"}})),
            false => (200, prefers_short(body)),
        }
    });
    let text = recipe(&endpoint(&server.url, ", max_retries: 1"));
    let error = run(&text, folder.path(), false).unwrap_err();
    let of_endpoint = |error: &Error| matches!(error, Error::Failed { source, .. } if matches!(**source, Error::Endpoint { .. }));
    assert!(of_endpoint(&error), "{error}");
    assert_eq!(error.exit_code(), 1);
    let message = error.to_string();
    for part in [
        "/v1/chat/completions",
        "answers 500",
        "out of memory",
        "2 times in a row",
        "answers.jsonl",
        "--resume",
    ] {
        assert!(message.contains(part), "{part:?} is not in {message}");
    }
    let kept = rows(&folder.path().join("run/answers.jsonl")).len();
    assert!(kept >= 16, "{kept}");
    down.store(false, std::sync::atomic::Ordering::SeqCst);
    let before = server.seen().len();
    run(&text, folder.path(), true).unwrap();
    let all = rows(&folder.path().join("run/answers.jsonl")).len();
    assert_eq!(
        server.seen().len() - before,
        all - kept,
        "only what was missing"
    );

    // As a run that was never interrupted.
    let whole = tempfile::tempdir().unwrap();
    let other = LoopbackEndpoint::serve(|body, _| (200, prefers_short(body)));
    run(
        &recipe(&endpoint(&other.url, ", max_retries: 1")),
        whole.path(),
        false,
    )
    .unwrap();
    for file in ["judged.jsonl", "train.jsonl", "metrics.jsonl"] {
        let [a, b] = [&folder, &whole]
            .map(|folder| fs::read(folder.path().join("run/judge").join(file)).unwrap());
        assert!(a == b, "{file}");
    }
}

#[test]
fn what_a_server_refuses_is_said() {
    let refused = |url: &str, more: &str| {
        let folder = tempfile::tempdir().unwrap();
        run(&recipe(&endpoint(url, more)), folder.path(), false)
            .unwrap_err()
            .to_string()
    };
    let nobody = refused(&nobody(), ", max_retries: 1, timeout_s: 5.0");
    assert!(
        nobody.contains("no answer") && nobody.contains("Check that the server runs"),
        "{nobody}"
    );
    let server =
        LoopbackEndpoint::serve(|_, _| (401, json!({"error": {"message": "no such key"}})));
    let denied = refused(&server.url, "");
    assert!(
        denied.contains("answers 401: \"no such key\"") && denied.contains("api_key_env"),
        "{denied}"
    );
    assert!(server.seen().len() <= 4, "a refusal is not repeated");
    let server =
        LoopbackEndpoint::serve(|_, _| (400, json!({"error": "logprobs are not supported"})));
    assert!(refused(&server.url, "").contains("set `logprobs: false`"));
    let server = LoopbackEndpoint::serve(|_, _| (200, json!({"object": "error"})));
    assert!(refused(&server.url, "").contains("choices[0].message"));
    let server = LoopbackEndpoint::serve(|body, _| {
        std::thread::sleep(std::time::Duration::from_secs(3));
        (200, prefers_short(body))
    });
    assert!(refused(&server.url, ", max_retries: 0, timeout_s: 0.2").contains("no answer"));
}

#[test]
fn a_judge_that_answers_neither_label_is_counted_and_then_an_error() {
    let folder = tempfile::tempdir().unwrap();
    // Every fifth pair, in one order.
    let answer = |body: &Value, before: usize| match before.is_multiple_of(10) {
        true => (200, completion("Neither.", &[])),
        false => (200, prefers_short(body)),
    };
    let server = LoopbackEndpoint::serve(answer);
    let text = recipe(&format!(
        "{}, max_unanswered: 0.5",
        endpoint(&server.url, ", concurrency: 1")
    ));
    run(&text, folder.path(), false).unwrap();
    let unanswered = pipeline::values(&folder.path().join("run"), "judge", "judge/unanswered");
    assert!(
        unanswered.iter().all(|&share| share > 0.05 && share < 0.4),
        "{unanswered:?}"
    );

    let folder = tempfile::tempdir().unwrap();
    let server = LoopbackEndpoint::serve(|_, _| (200, completion("Neither.", &[])));
    let error = run(&recipe(&endpoint(&server.url, "")), folder.path(), false)
        .unwrap_err()
        .to_string();
    for part in [
        "neither \"1\" nor \"2\"",
        "max_unanswered 0.1",
        "\"Neither.\"",
        "instructions",
    ] {
        assert!(error.contains(part), "{part:?} is not in {error}");
    }
}

#[test]
fn the_label_written_counts_where_there_are_no_probabilities() {
    let folder = tempfile::tempdir().unwrap();
    let server = LoopbackEndpoint::serve(|body, _| {
        assert!(body.get("logprobs").is_none());
        (200, completion("2", &[]))
    });
    run(
        &recipe(&endpoint(&server.url, ", logprobs: false")),
        folder.path(),
        false,
    )
    .unwrap();
    // The second place in both orders: nothing is known of the responses.
    for row in rows(&folder.path().join("run/judge/train.jsonl")) {
        assert_eq!(row["chosen_probability"], 0.5);
    }
    let bias = pipeline::values(&folder.path().join("run"), "judge", "judge/position_bias");
    assert_eq!(bias, [1.0, 1.0]);
}

#[test]
fn grades_are_a_reward_for_ppo_and_comparisons() {
    let folder = tempfile::tempdir().unwrap();
    let server = LoopbackEndpoint::serve(|body, _| {
        assert!(last_message(body).contains("from 1 to 10"));
        (
            200,
            completion("7", &[("7", 0.5), ("10", 0.25), ("word", 0.25)]),
        )
    });
    let text = format!(
        r#"(
    name: "graded", model: "tiny", seed: 5,
    stages: [
        Rank(name: "rank", init: Base, data: (source: Posts(rows: 8, seed: 4)), num_responses: 2, response_length: 8,
            reward: Graded(judge: Model(Base), instructions: "Grade summaries.")),
        Ppo(name: "ppo", init: Base, data: (source: Posts(rows: 16, seed: 6)), reward: Sum([(2.0, Graded({}))]),
            peft: Lora(rank: 4), total_episodes: 8, batch_size: 8, response_length: 8),
    ],
)"#,
        endpoint(&server.url, "")
    );
    run(&text, folder.path(), false).unwrap();
    for row in rows(&folder.path().join("run/rank/train.jsonl")) {
        for score in row["scores"].as_array().unwrap() {
            assert!((-1.0..=1.0).contains(&score.as_f64().unwrap()), "{row}");
        }
    }
    // Among themselves 2/3 and 1/3: the grade 8, scaled 2 * 7 / 9 - 1 = 5 / 9, twice.
    let scores = pipeline::values(&folder.path().join("run"), "ppo", "objective/scores");
    assert!((scores[0] - 10.0 / 9.0).abs() < 1e-5, "{scores:?}");
}

#[test]
fn broken_judges_are_refused_before_anything_runs() {
    let refused = |judge: &str| {
        let folder = tempfile::tempdir().unwrap();
        let error = run(&recipe(judge), folder.path(), false).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        assert!(!folder.path().join("run/judge").exists(), "{error}");
        error.to_string()
    };
    let has = |judge: &str, parts: &[&str]| {
        let message = refused(judge);
        for part in parts {
            assert!(message.contains(part), "{part:?} is not in {message}");
        }
    };
    has(
        "judge: Model(Stage(\"sfft\"))",
        &["stages.judge.judge", "no stage `sfft`"],
    );
    has(
        "judge: Model(Stage(\"rm\"))",
        &["stages.judge.judge", "cycle: judge -> rm"],
    );
    has(
        "judge: Model(Random(\"models/tiny/config.json\"))",
        &["random weights cannot judge"],
    );
    has(
        "judge: Model(Base), chat: true",
        &["stages.judge.chat", "no chat template"],
    );
    has(
        "judge: Model(Base), labels: (\"1\", \"1\")",
        &["stages.judge.labels", "neither begins the other"],
    );
    has(
        "judge: Model(Base), template: \"{{ promt }}\"",
        &["stages.judge.template"],
    );
    has(
        "judge: Model(Base), principles: \"nowhere.txt\"",
        &["stages.judge.principles", "nowhere.txt"],
    );
    has(
        "judge: Model(Base), max_pairs: 0, max_unanswered: 2.0",
        &["max_pairs", "max_unanswered"],
    );
    has(
        "judge: Endpoint(url: \"127.0.0.1\", model: \"\", api_key_env: \"NO_SUCH_VARIABLE_HERE\", timeout_s: 0.0)",
        &[
            "judge.url",
            "judge.model",
            "NO_SUCH_VARIABLE_HERE is not set",
            "timeout_s",
        ],
    );
    has(
        "judge: Endpoint(url: \"http://me:secret@host/v1\", model: \"m\")",
        &["api_key_env"],
    );
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty.txt");
    fs::write(&empty, "# nothing\n\n").unwrap();
    has(
        &format!(
            "judge: Model(Base), principles: {:?}",
            empty.display().to_string()
        ),
        &["has no principle"],
    );
    let examples = folder.path().join("examples.jsonl");
    fs::write(&examples, "{\"prompt\": \"p\"}\n").unwrap();
    has(
        &format!(
            "judge: Model(Base), examples: {:?}",
            examples.display().to_string()
        ),
        &["examples.jsonl:1", "`first`"],
    );
}
