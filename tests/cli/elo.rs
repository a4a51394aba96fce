//! `temper elo`: ratings from rows of comparisons.

use std::fs;

use serde_json::{Value, json};

use super::{fail, reference_dir, succeed, temper};

fn json_lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

#[test]
fn ratings_are_those_of_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let file = reference_dir("ratings").join("ratings.json");
    let expected: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    let args = "elo REF/ratings/comparisons.jsonl --anchor base --json --html r.html";
    let text = succeed(folder, args);
    let found: Value = serde_json::from_str(&text).unwrap();
    let found = &found[0];
    assert_eq!(
        (&found["comparisons"], &found["prompts"]),
        (&json!(400), &json!(80))
    );
    let policies = found["policies"].as_array().unwrap();
    let order: Vec<&str> = policies
        .iter()
        .map(|p| p["name"].as_str().unwrap())
        .collect();
    assert_eq!(order, ["ppo", "dpo", "best-of-4", "sft", "base"]);
    for policy in policies {
        let at = expected["players"]
            .as_array()
            .unwrap()
            .iter()
            .position(|name| *name == policy["name"]);
        let at = at.unwrap();
        for (name, key, tolerance) in [("rating", "bradley_terry", 1e-3), ("elo", "elo", 1e-6)] {
            let (found, expected) = (&policy[name], expected[key][at].as_f64().unwrap());
            let points = found["points"].as_f64().unwrap();
            assert!((points - expected).abs() < tolerance, "{policy} {expected}");
            let [low, high] = ["low", "high"].map(|end| found["interval"][end].as_f64().unwrap());
            assert!(low <= points && points <= high, "{policy}");
        }
    }
    // The same numbers again: the bootstrap has a seed. And drawn by prompt they are others.
    assert_eq!(succeed(folder, &args.replace("elo", "rate")), text);
    assert_ne!(
        succeed(folder, &format!("{args} --bootstrap prompts")),
        text
    );
    let page = fs::read_to_string(folder.join("r.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("best-of-4") && !page.contains("<script"));
    let table = succeed(folder, "elo REF/ratings/comparisons.jsonl");
    assert!(
        table.contains("| ppo ") && table.contains("won against"),
        "{table}"
    );
}

#[test]
fn rows_of_several_layouts_are_rated_and_what_is_left_out_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let pair = |chosen: &str, rejected: &str, more: Value| {
        let mut row = json!({"prompt": "p", "chosen": format!("of {chosen}"), "rejected": format!("of {rejected}"),
            "chosen_policy": chosen, "rejected_policy": rejected});
        row.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        row
    };
    let people = [
        pair("ppo", "sft", json!({})),
        pair("sft", "ppo", json!({"tie": true})),
        pair("sft", "sft", json!({})),
        json!({"prompt": "p", "chosen": "a", "rejected": "b"}),
    ];
    let ranked = [
        json!({"prompt": "q", "responses": ["x", "y", "z"], "policies": ["ppo", "sft", "base"], "ranks": [1, 2, 2]}),
        json!({"prompt": "r", "responses": ["x", "y"], "policies": ["base", "ppo"], "ranks": [1, 2]}),
        json!({"prompt": "s", "responses": ["x", "y"], "policies": ["base", "ppo"], "ranks": [null, null]}),
    ];
    fs::write(folder.join("people.jsonl"), json_lines(&people)).unwrap();
    fs::write(folder.join("ranked.jsonl"), json_lines(&ranked)).unwrap();
    let output = temper(folder, "elo people.jsonl ranked.jsonl --json");
    let said = super::stderr(&output);
    assert!(output.status.success(), "{said}");
    for part in [
        "1 rows without a judgement",
        "1 rows that name no policies",
        "1 comparisons of a policy with itself",
    ] {
        assert!(said.contains(part), "{said}");
    }
    let found: Value = serde_json::from_str(&super::stdout(&output)).unwrap();
    // ppo-sft twice (a tie), three pairs of the ranking (a tie), base over ppo.
    assert_eq!(
        (&found[0]["comparisons"], &found[0]["ties"]),
        (&json!(6), &json!(2))
    );
    // By response: the ranking and the pair give scores that are zero on average.
    let text = succeed(folder, "elo ranked.jsonl --of responses");
    let rows: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(rows.len(), 5);
    let score = |i: usize| rows[i]["score"].as_f64().unwrap();
    assert!(
        score(0) > 0.0 && score(1) == score(2) && (score(0) + 2.0 * score(1)).abs() < 1e-9,
        "{text}"
    );
    assert_eq!(
        (&rows[0]["policy"], &rows[0]["comparisons"]),
        (&json!("ppo"), &json!(2))
    );
    // One win alone, with the prior of standard deviation 1 (see `response_scores`).
    assert!((score(3) - 0.337_416).abs() < 1e-5, "{text}");
}

#[test]
fn what_cannot_be_rated_is_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let battle = |a: &str, b: &str| json!({"model_a": a, "model_b": b, "winner": "model_a"});
    fs::write(
        folder.join("apart.jsonl"),
        json_lines(&[battle("a", "b"), battle("c", "d")]),
    )
    .unwrap();
    fail(
        folder,
        "elo apart.jsonl",
        2,
        &["no comparison connects `a`, `b` with `c`, `d`"],
    );
    let plain = [json!({"prompt": "p", "chosen": "a", "rejected": "b"})];
    fs::write(folder.join("plain.jsonl"), json_lines(&plain)).unwrap();
    fail(
        folder,
        "elo plain.jsonl",
        2,
        &["no row names the policies", "--of responses"],
    );
    fail(
        folder,
        "elo plain.jsonl --source gold --of responses",
        2,
        &["expected one of `preference`"],
    );
    fail(folder, "elo plain.jsonl --k -1", 2, &["at least 0"]);
    fs::write(folder.join("text.jsonl"), "{\"text\": \"x\"}\n").unwrap();
    fail(
        folder,
        "elo text.jsonl",
        1,
        &["text.jsonl:1: expected `chosen`"],
    );
    fs::create_dir(folder.join("sft")).unwrap();
    fs::write(folder.join("sft/stage.json"), "{}").unwrap();
    fail(
        folder,
        "elo sft",
        2,
        &["expected responses.jsonl, which a Compare stage writes"],
    );
}
