//! `temper label`: judged over loopback, the server killed in the middle, rows exported and trained on.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use super::{command, stderr, temper};

#[path = "../support/labeller.rs"]
mod labeller;

use labeller::{Client, grade_of};

/// A server in the background, and its annotators' addresses.
struct Labelling {
    child: Child,
    clients: Vec<Client>,
}

impl Drop for Labelling {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve(folder: &Path, args: &str, annotators: usize) -> Labelling {
    let mut child = command(folder, &format!("label {args} --port 0"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let clients = lines
        .take(annotators)
        .map(|line| Client::at(line.unwrap().split(": ").nth(1).unwrap()));
    Labelling {
        clients: clients.collect(),
        child,
    }
}

fn rows(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Twenty-four prompts, each with a short and a long response in either order.
fn write_pairs(folder: &Path) {
    let row = |i: usize| {
        let (short, long) = (" word".repeat(1 + i % 5), " thing".repeat(6 + i % 3));
        let responses = if i.is_multiple_of(2) {
            [short, long]
        } else {
            [long, short]
        };
        json!({"prompt": format!("Post {i}.\n\nTL;DR:"), "responses": responses, "policies": ["sft", "ppo"]}).to_string() + "\n"
    };
    fs::write(
        folder.join("pairs.jsonl"),
        (0..24).map(row).collect::<String>(),
    )
    .unwrap();
}

#[test]
fn judgements_survive_a_kill_and_train_a_reward_model() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    write_pairs(folder);
    let begin = "--data pairs.jsonl --store labels.db --annotators ann,bob --overlap 0.25 --grades 4 --no-ties";
    let mut server = serve(folder, begin, 2);
    for _ in 0..5 {
        for client in &server.clients {
            let task = client.next().expect("a task");
            client.judge(&task, &grade_of(&task, 3));
        }
    }
    let ann = server.clients.remove(0);
    // SIGKILL, with a task in ann's hands.
    let held = ann.next().unwrap();
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    drop(server);
    // Another day; the earlier address is valid at the new port.
    let server = serve(folder, "--store labels.db --until-done", 2);
    let ann = ann.at_port_of(&server.clients[0]);
    assert_eq!(ann.next().unwrap()["task"]["nonce"], held["task"]["nonce"]);
    let mut judged = 10;
    for client in [&ann, &server.clients[1]] {
        let mut next = client.next();
        while let Some(task) = next {
            next = client.judge(&task, &grade_of(&task, 3));
            judged += 1;
        }
    }
    // 24, of which six are judged by both.
    assert_eq!(judged, 30);
    let mut server = server;
    assert!(server.child.wait().unwrap().success());
    let report = temper(folder, "label --store labels.db --report --json");
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    assert_eq!(
        (&report["judged"], &report["shared"], &report["agreement"]),
        (&json!(24), &json!(6), &json!(1.0))
    );
    let table =
        String::from_utf8(temper(folder, "label --store labels.db --report").stdout).unwrap();
    assert!(
        table.contains("24 of 24 tasks judged, 30 judgements, 0 skips"),
        "{table}"
    );
    let done = temper(folder, "label --store labels.db --export labels");
    assert!(done.status.success(), "{}", stderr(&done));
    let preferences = rows(&folder.join("labels/preferences.jsonl"));
    assert_eq!(preferences.len(), 24);
    for row in &preferences {
        assert!(
            row["chosen"].as_str().unwrap().starts_with(" word"),
            "{row}"
        );
        assert_eq!(
            (
                &row["grade"],
                &row["confidence"],
                &row["chosen_probability"]
            ),
            (&json!(3.0), &json!(0.75), &json!(0.875))
        );
        assert!((row["margin"].as_f64().unwrap() - 2.0 / 3.0).abs() < 1e-12);
    }
    assert_eq!(rows(&folder.join("labels/labels.jsonl")).len(), 48);
    assert_eq!(rows(&folder.join("labels/comparisons.jsonl")).len(), 30);
    let recipe = r#"(name: "people", model: "tiny", stages: [
        RewardModel(name: "rm", init: Base, data: (source: Jsonl("labels/preferences.jsonl")), eval_data: (source: Jsonl("labels/preferences.jsonl")),
            use_margin: true, peft: Lora(rank: 4), optim: (lr: 1e-2), batch_size: 8, epochs: 4, max_length: 128),
    ])"#;
    fs::write(folder.join("rm.ron"), recipe).unwrap();
    let run = temper(folder, "recipe rm.ron --output run --threads 1");
    assert!(run.status.success(), "{}", stderr(&run));
    let metrics = fs::read_to_string(folder.join("run/rm/metrics.jsonl")).unwrap();
    let accuracy = metrics
        .lines()
        .rev()
        .find_map(|line| serde_json::from_str::<Value>(line).unwrap()["eval/accuracy"].as_f64());
    assert!(accuracy.unwrap() > 0.9, "{metrics}");
}

#[test]
fn what_does_not_fit_is_refused_before_a_server_starts() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    write_pairs(folder);
    fs::write(
        folder.join("one.jsonl"),
        "{\"prompt\": \"p\", \"responses\": [\"a\"]}\n",
    )
    .unwrap();
    for (args, expected) in [
        ("--store x.db", "there is no such file yet"),
        ("--store x.db --report", "x.db"),
        ("--store x.db --run runs/none", "say what is judged"),
        (
            "--store x.db --run runs/none --stage s",
            "expected a Sample or Rank stage that has finished",
        ),
        (
            "--store x.db --data one.jsonl",
            "1 of 1 rows have too few responses",
        ),
        (
            "--store x.db --data pairs.jsonl --form stars",
            "expected pairwise, rank, instructgpt, dialogue",
        ),
        (
            "--store x.db --data pairs.jsonl --grades 3",
            "expected 2, 4 or 9, found 3",
        ),
        (
            "--store x.db --data pairs.jsonl --form rank --grades 4",
            "only pairwise and dialogue have grades",
        ),
        (
            "--store x.db --data pairs.jsonl --overlap 2",
            "expected a fraction from 0 to 1",
        ),
        (
            "--store x.db --data pairs.jsonl --form dialogue",
            "expected a column `turns`",
        ),
        (
            "--store x.db --data pairs.jsonl --annotators a,a",
            "is there twice",
        ),
        ("--store pairs.jsonl --report", "not a file of judgements"),
    ] {
        let output = temper(folder, &format!("label {args}"));
        let said = stderr(&output);
        assert!(
            !output.status.success() && said.contains(expected),
            "{args}: {said}"
        );
    }
}
