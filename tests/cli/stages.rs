//! `temper eval --run R --stages a,b`.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::{fail, succeed};

const RECIPE: &str = r#"(name: "two", model: "tiny", seed: 2, stages: [
    Sft(name: "a", data: (source: Posts(rows: 16, seed: 2)), peft: Lora(rank: 4), optim: (lr: 5e-3), batch_size: 8, max_length: 128),
    Sft(name: "b", init: Stage("a"), data: (source: Posts(rows: 16, seed: 3)), optim: (lr: 1e-3), batch_size: 8, max_length: 128),
    Rank(name: "rank", init: Stage("a"), data: (source: Posts(rows: 8, seed: 4)), num_responses: 2, response_length: 4, reward: Gold),
    RewardModel(name: "rm", init: Stage("a"), data: (source: Stage("rank")), peft: Lora(rank: 4), batch_size: 4, max_length: 128),
])"#;

fn run(folder: &Path) {
    fs::write(folder.join("two.ron"), RECIPE).unwrap();
    succeed(folder, "recipe two.ron --output out --backend flex");
    let row = |text: &str| format!("{{\"prompt\":\"{text}\",\"completion\":\" a key\"}}\n");
    let rows = ["I lost my red key:", "the cat sat:", "they sold the car:"]
        .map(row)
        .concat();
    fs::write(folder.join("rows.jsonl"), rows).unwrap();
}

#[test]
fn stages_of_a_run_are_compared_and_the_base_with_them() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    run(folder);
    let common =
        "eval --run out --data rows.jsonl --reward rouge-l --reward length:3 --max-new-tokens 5";
    let text = succeed(folder, &format!("{common} --stages base,a,b"));
    for part in [
        "| base",
        "| b ",
        "win rate against base",
        "ratings by all pairs",
        "a against base, prompt by prompt",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    succeed(
        folder,
        &format!(
            "{common} --stages a,b --judge tiny --num-responses 4 --temperature 1 --tie-margin 0.1 --output e.json"
        ),
    );
    let found: Value =
        serde_json::from_str(&fs::read_to_string(folder.join("e.json")).unwrap()).unwrap();
    assert_eq!(found["reference"], "a");
    assert!(found["policies"][0]["kl"].as_f64().unwrap().abs() < 1e-3);
    assert_eq!(found["curves"][1]["counts"], serde_json::json!([1, 2, 4]));
    assert!(found["contest"]["sources"][0]["win_rates"][1]["rate"].is_f64());
    let judge = &found["contest"]["judge"];
    assert_eq!(judge["by"], "tiny");
    assert_eq!(
        (&judge["pairs"], &judge["unanswered"]),
        (&12.into(), &0.into())
    );
    assert!(judge["win_rates"][0].is_null() && judge["win_rates"][1]["rate"].is_f64());

    for (args, parts) in [
        ("--stages a", "at least two"),
        ("--stages a,c", "no stage c"),
        ("--stages a,rank", "no adapter/ and no model/"),
        ("--stages a,rm", "is a reward model"),
        ("--stages a,b --num-responses 2", "all the same"),
    ] {
        fail(folder, &format!("{common} {args}"), 2, &[parts]);
    }
    fail(
        folder,
        "eval --run out --stages a,b --data rows.jsonl",
        2,
        &["--reward"],
    );
    fail(
        folder,
        &format!("{common} --stages a,b --stage a"),
        2,
        &["--stage"],
    );
    fail(
        folder,
        &format!("{common} --stages a,b --tie-margin=-1"),
        2,
        &["at least 0"],
    );
    fail(
        folder,
        "eval --model tiny --data rows.jsonl --judge tiny",
        2,
        &["--stages"],
    );
    fail(
        folder,
        &format!("{common} --stages a,b --judge no-such-model"),
        2,
        &["no-such-model"],
    );
    fail(
        folder,
        "eval --model tiny --data rows.jsonl --num-responses 2",
        2,
        &["--stages"],
    );
}
