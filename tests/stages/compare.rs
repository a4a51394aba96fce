//! Policies side by side: several responses to a prompt, win rates, ratings, best of n, and where responses end.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tempering::recipe::{self, RunOptions};

use super::resume::run_until;
use crate::support::pipeline::values;

fn recipe(keys: &str) -> String {
    format!(
        r#"(name: "short", model: "tiny", seed: 5, stages: [
        Sft(name: "short", data: (source: Posts(rows: 32, seed: 2)), peft: Lora(rank: 4), optim: (lr: 5e-3), batch_size: 8,
            max_length: 128),
        Sft(name: "long", init: Stage("short"), data: (source: Posts(rows: 32, seed: 3)), peft: Lora(rank: 4), optim: (lr: 5e-3),
            batch_size: 8, max_length: 128),
        Compare(name: "compare", policies: [Base, Stage("short"), Stage("long")], data: (source: Posts(rows: 6, seed: 8)),
            rewards: {{"gold": Gold, "cold": Pattern(regex: "cold")}}, response_length: 10, num_samples: 2, {keys}),
    ])"#
    )
}

fn record(run: &Path) -> Value {
    let text = fs::read_to_string(run.join("compare/stage.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn several_responses_give_curves_and_every_pair_plays() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    run_until(
        &recipe("num_responses: 3, tie_margin: 0.05"),
        folder.path(),
        &out,
        None,
    );
    let comparison = &record(&out)["comparison"];
    let contest = &comparison["contest"];
    assert_eq!(
        (&contest["reference"], &contest["prompts"]),
        (&"base".into(), &6.into())
    );
    // By the names of the sources: cold, gold.
    let gold = &contest["sources"][1];
    assert!(gold["win_rates"][0].is_null());
    for won in &gold["win_rates"].as_array().unwrap()[1..] {
        let rate = won["rate"].as_f64().unwrap();
        let (low, high) = (
            won["interval"]["low"].as_f64().unwrap(),
            won["interval"]["high"].as_f64().unwrap(),
        );
        assert!(
            (0.0..=1.0).contains(&rate) && low <= rate && rate <= high,
            "{won}"
        );
    }
    assert_eq!(gold["ratings"].as_array().unwrap().len(), 3);
    assert_eq!(gold["ratings"][0]["points"], 1000.0);
    let curves = comparison["curves"].as_array().unwrap();
    assert_eq!(curves.len(), 3);
    assert_eq!(curves[0]["counts"], serde_json::json!([1, 2, 3]));
    // The expected best of one is the mean, and it rises with the number of samples.
    let mean = comparison["policies"][2]["scores"][1]["mean"]
        .as_f64()
        .unwrap();
    let best = |n: usize| curves[2]["best_of_n"][1][n][1]["mean"].as_f64().unwrap();
    assert!((best(0) - mean).abs() < 1e-9 && best(0) <= best(1) && best(1) <= best(2));
    // A pattern is right or wrong: pass@k, and none for the gold score.
    assert!(curves[0]["pass_at_k"][0].is_array() && curves[0]["pass_at_k"][1].is_null());
    // The first policy is the reference, which its responses equal up to rounding.
    let kl = values(&out, "compare", "eval/kl");
    assert!(kl[0].abs() < 1e-4 && kl[1] > 0.01, "{kl:?}");
    let page = fs::read_to_string(out.join("compare/report.html")).unwrap();
    for part in [
        "Win rate by gold",
        "gold against KL",
        "Ratings by all pairs",
        "Best of n responses of base",
        "pass@n, cold",
    ] {
        assert!(page.contains(part), "{part:?} is not in the report");
    }
    let samples = fs::read_to_string(out.join("compare/samples.jsonl")).unwrap();
    assert_eq!(samples.lines().count(), 6, "two prompts of three policies");
    // All responses with their scores are there for ratings.
    let rows = fs::read_to_string(out.join("compare/responses.jsonl")).unwrap();
    let rows: Vec<Value> = rows
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(rows.len(), 6);
    let policies = ["base", "base", "base", "short", "short", "short"];
    assert_eq!(rows[0]["policies"].as_array().unwrap()[..6], policies);
    let scores = rows[0]["scores"]["gold"].as_array().unwrap();
    assert_eq!(
        (scores.len(), rows[0]["responses"].as_array().unwrap().len()),
        (9, 9)
    );
    let of_base: f64 = (rows.iter())
        .flat_map(|row| &row["scores"]["gold"].as_array().unwrap()[..3])
        .map(|score| score.as_f64().unwrap())
        .sum();
    let mean = comparison["policies"][0]["scores"][1]["mean"]
        .as_f64()
        .unwrap();
    assert!((of_base / 18.0 - mean).abs() < 1e-9, "{of_base} {mean}");
}

#[test]
fn a_judge_compares_every_policy_with_the_reference_and_resumes() {
    let folder = tempfile::tempdir().unwrap();
    let text = recipe(
        "judge: (judge: Model(Stage(\"short\")), labels: (\"A\", \"B\")), reference: Stage(\"short\")",
    );
    let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
    assert!(!run_until(&text, folder.path(), &whole, None));
    let judge = &record(&whole)["comparison"]["contest"]["judge"];
    assert_eq!(judge["by"], "short");
    assert_eq!(
        (&judge["pairs"], &judge["unanswered"]),
        (&12.into(), &0.into())
    );
    for (policy, is_reference) in [(0, false), (1, true), (2, false)] {
        let won = &judge["win_rates"][policy];
        assert_eq!(won.is_null(), is_reference, "{judge}");
        if is_reference {
            continue;
        }
        let number = |key: &str| won[key].as_f64().unwrap();
        let (low, high) = (&won["interval"]["low"], &won["interval"]["high"]);
        assert!((0.0..=1.0).contains(&number("rate")), "{won}");
        assert!((0.0..=1.0).contains(&number("length_controlled")), "{won}");
        assert!(low.as_f64() <= Some(number("rate")) && Some(number("rate")) <= high.as_f64());
        let first = judge["first_shown"][policy].as_f64().unwrap();
        assert!(first > 0.0 && first < 1.0, "{judge}");
    }
    let page = fs::read_to_string(whole.join("compare/report.html")).unwrap();
    for part in ["Win rate by the judge short", "both orders averaged"] {
        assert!(page.contains(part), "{part:?} is not in the report");
    }
    assert!(run_until(&text, folder.path(), &parts, Some(("long", 1))));
    assert!(!run_until(&text, folder.path(), &parts, None));
    assert_eq!(record(&parts)["comparison"], record(&whole)["comparison"]);
}

#[test]
fn responses_end_at_a_stop_text() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, cut] = ["whole", "cut"].map(|name| folder.path().join(name));
    run_until(&recipe(""), folder.path(), &whole, None);
    run_until(&recipe(r#"stop: ["e"]"#), folder.path(), &cut, None);
    let [long, short] = [&whole, &cut].map(|run| values(run, "compare", "eval/response_length"));
    assert!(
        long.iter().zip(&short).all(|(long, short)| short < long),
        "{long:?} {short:?}"
    );
    let samples = fs::read_to_string(cut.join("compare/samples.jsonl")).unwrap();
    for line in samples.lines() {
        let sample: Value = serde_json::from_str(line).unwrap();
        assert!(
            !sample["response"].as_str().unwrap().contains('e'),
            "{line}"
        );
    }
    // One response to each prompt has no curves.
    assert!(record(&whole)["comparison"]["curves"].is_null());
}

#[test]
fn what_would_say_nothing_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bad.ron");
    for (keys, parts) in [
        (
            "num_responses: 0",
            ["stages.compare.num_responses", "at least 1"],
        ),
        (
            "num_responses: 2, sampling: (temperature: 0.0)",
            ["stages.compare.num_responses", "all the same"],
        ),
        ("tie_margin: -1.0", ["stages.compare.tie_margin", "-1"]),
        ("stop: [\" \"]", ["stages.compare.stop", "blanks alone"]),
        (
            "judge: (judge: Model(Stage(\"none\")))",
            ["stages.compare.judge.judge", "there is no stage `none`"],
        ),
        (
            "judge: (judge: Model(Base), tie_margin: 0.5)",
            ["stages.compare.judge.tie_margin", "below 0.5"],
        ),
        (
            "judge: (judge: Model(Base), labels: (\"1\", \"12\"))",
            ["stages.compare.judge.labels", "neither begins the other"],
        ),
        (
            "judge: (judge: Model(Base)), reference: Folder(\"models/tiny\")",
            ["stages.compare.judge", "is not among `policies`"],
        ),
        (
            "judge: (judge: Model(Base), chat: true)",
            ["stages.compare.judge.chat", "no chat template"],
        ),
    ] {
        fs::write(&file, recipe(keys)).unwrap();
        let loaded = recipe::load_with_places(&file, &[]);
        let checked = loaded.and_then(|loaded| recipe::check(loaded, &RunOptions::default()));
        let found = checked
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default();
        for part in parts {
            assert!(found.contains(part), "{part:?} is not in\n{found}");
        }
    }
}
