//! `temper label`: judged over loopback, the server killed in the middle, rows exported and trained on.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use super::{command, fail, lines, stderr, succeed, temper, text_model, write_rows};

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
    let path = std::env::var("PATH").unwrap_or_default();
    let programs = folder.join("bin").display().to_string();
    let mut child = command(folder, &format!("label {args} --port 0"))
        .env("PATH", format!("{programs}:{path}"))
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

/// A device without an end is not read.
#[cfg(unix)]
#[test]
fn a_form_is_a_regular_file() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    write_pairs(folder);
    std::os::unix::fs::symlink("/dev/zero", folder.join("zero.ron")).unwrap();
    let label = "label --store x.db --data pairs.jsonl --form zero.ron";
    fail(
        folder,
        label,
        1,
        &["zero.ron: is a character device, expected a regular file"],
    );
    assert!(!folder.join("x.db").exists());
}

/// Policies of a run respond to prompts, an annotator judges without knowing who wrote what, and the policies are rated.
#[test]
fn policies_of_a_run_are_compared_blind() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    let recipe = r#"(name: "p", model: "tiny", stages: [
        Sft(name: "sft", data: (source: Posts(rows: 16, seed: 1)), peft: Lora(rank: 4), optim: (lr: 3e-2), batch_size: 8, max_length: 128),
    ])"#;
    fs::write(folder.join("r.ron"), recipe).unwrap();
    succeed(folder, "recipe r.ron --output run");
    let prompts: Vec<Value> = (0..6)
        .map(|i| json!({"prompt": format!("{i} cats and a dog")}))
        .collect();
    write_rows(folder.join("prompts.jsonl"), &prompts);
    for (policies, expected) in [
        ("base,nope", "nope"),
        ("base,sft --stage sft", "cannot be used with"),
    ] {
        let args =
            format!("label --store no.db --run run --policies {policies} --data prompts.jsonl");
        fail(folder, &args, 2, &[expected]);
    }
    assert!(!folder.join("no.db").exists());
    // What `--open` opens: the desktop's opener is the first one in PATH.
    fs::create_dir(folder.join("bin")).unwrap();
    let opener = folder.join("bin/xdg-open");
    fs::write(&opener, "#!/bin/sh\necho \"$1\" > new && mv new opened\n").unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&opener, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let sampled = "--data prompts.jsonl --max-new-tokens 8 --seed 7";
    let begin = format!("--store blind.db --run run --policies base,sft {sampled} --open");
    let server = serve(folder, &begin, 1);
    let client = &server.clients[0];
    if cfg!(target_os = "linux") {
        let begun = std::time::Instant::now();
        while !folder.join("opened").exists() {
            assert!(begun.elapsed().as_secs() < 20, "nothing was opened");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let opened = fs::read_to_string(folder.join("opened")).unwrap();
        assert_eq!(Client::at(&opened), *client);
    }
    let mut state = client.next().unwrap();
    let mut judged = 0;
    loop {
        let columns: Vec<&String> = state["task"].as_object().unwrap().keys().collect();
        // Texts and nothing that says whose they are.
        assert_eq!(
            columns,
            ["nonce", "prompt", "responses", "turns", "draft"],
            "{state}"
        );
        judged += 1;
        match client.judge(&state, &json!({"grade": if judged == 6 { 0 } else { 1 }})) {
            Some(next) => state = next,
            None => break,
        }
    }
    assert_eq!(judged, 6);
    drop(server);
    succeed(folder, "label --store blind.db --export out");
    let compared = rows(&folder.join("out/comparisons.jsonl"));
    assert_eq!(compared.len(), 6);
    assert_eq!(
        compared.iter().filter(|row| row["tie"] == true).count(),
        1,
        "{compared:?}"
    );
    // Each text is called after the policy that writes it.
    let written = |model: &str| -> Vec<Value> {
        let args = format!("generate {model} {sampled} --json --output -");
        lines(&succeed(folder, &args))
    };
    let texts = [written("--model tiny"), written("--run run --stage sft")];
    for row in &compared {
        let at = prompts
            .iter()
            .position(|prompt| prompt["prompt"] == row["prompt"])
            .unwrap();
        for side in ["chosen", "rejected"] {
            let policy = &row[format!("{side}_policy")];
            let of = usize::from(policy == "sft");
            assert!(policy == "base" || policy == "sft", "{row}");
            assert_eq!(row[side], texts[of][at]["completion"], "{policy}: {row}");
        }
        assert_ne!(row["chosen_policy"], row["rejected_policy"]);
    }
    // Either policy was shown first, as the seed says.
    let judgements = rows(&folder.join("out/judgements.jsonl"));
    let first: std::collections::BTreeSet<String> = judgements
        .iter()
        .map(|row| row["shown"].to_string())
        .collect();
    assert_eq!(first.len(), 2, "{judgements:?}");
    let rated: Value =
        serde_json::from_str(&succeed(folder, "elo out/comparisons.jsonl --json")).unwrap();
    assert!(rated.to_string().contains("sft"), "{rated}");
}

/// HH's dialogues: the better answer at each turn makes a preference after all that was said before.
#[test]
fn turns_of_a_dialogue_become_preferences() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    let turns = |i: usize| {
        json!({"turns": [
            {"prompt": format!("Hello {i}."), "responses": ["Hi.", "What do you want now?"], "continued": 1},
            {"prompt": "A joke!", "responses": ["I do not know any jokes.", "No."]},
        ]})
    };
    let mut dialogues: Vec<Value> = (0..4).map(turns).collect();
    dialogues[0]["prompt"] = json!("Be brief.");
    write_rows(folder.join("d.jsonl"), &dialogues);
    let server = serve(
        folder,
        "--data d.jsonl --store d.db --form dialogue --grades 4",
        1,
    );
    let client = &server.clients[0];
    let mut next = client.next();
    while let Some(state) = next {
        // The shorter answer of each turn is better; of the last dialogue's first turn both are as good.
        let grades = state["task"]["turns"]
            .as_array()
            .unwrap()
            .iter()
            .map(|turn| {
                let len = |i: usize| turn["responses"][i].as_str().unwrap().len();
                match turn["prompt"] == "Hello 3." {
                    true => 0,
                    false if len(0) < len(1) => 2,
                    false => -2,
                }
            });
        let answer = json!({"turns": grades.collect::<Vec<i64>>()});
        next = client.judge(&state, &answer);
    }
    drop(server);
    let said = succeed(folder, "label --store d.db --export out");
    assert!(
        said.contains("preferences.jsonl: 7 rows; 1 tie left out"),
        "{said}"
    );
    let preferences = rows(&folder.join("out/preferences.jsonl"));
    let of = |text: &str, chosen: &str| {
        let found = preferences
            .iter()
            .find(|row| row["chosen"] == chosen && row["prompt"].to_string().contains(text));
        found.unwrap_or_else(|| panic!("{text}: {preferences:?}"))
    };
    let (user, assistant) = (
        |text: &str| json!({"role": "user", "content": text}),
        |text: &str| json!({"role": "assistant", "content": text}),
    );
    let system = json!({"role": "system", "content": "Be brief."});
    let first = of("Hello 0.", "Hi.");
    assert_eq!(first["prompt"], json!([system, user("Hello 0.")]));
    let second = of("Hello 0.", "No.");
    // The dialogue went on from the second answer, which is not the better one.
    let before = json!([
        system,
        user("Hello 0."),
        assistant("What do you want now?"),
        user("A joke!")
    ]);
    assert_eq!(second["prompt"], before);
    assert_eq!(
        [&second["rejected"], &second["grade"], &second["confidence"]],
        [&json!("I do not know any jokes."), &json!(2.0), &json!(0.5)]
    );
    assert!((second["margin"].as_f64().unwrap() - 1.0 / 3.0).abs() < 1e-12);
    assert_eq!(rows(&folder.join("out/labels.jsonl")).len(), 14);
    // A reward model reads them as they are.
    let dir = text_model(folder);
    let template =
        "{% for m in messages %}{{ '[' + m['role'] + '] ' + m['content'] + '\n' }}{% endfor %}";
    fs::write(dir.join("chat_template.jinja"), template).unwrap();
    let recipe = r#"(name: "hh", model: "./text-model", stages: [
        RewardModel(name: "rm", init: Base, data: (source: Jsonl("out/preferences.jsonl")), eval_data: (source: Jsonl("out/preferences.jsonl")),
            use_margin: true, optim: (lr: 1e-2), batch_size: 7, epochs: 30, max_length: 128),
    ])"#;
    fs::write(folder.join("hh.ron"), recipe).unwrap();
    succeed(folder, "recipe hh.ron --output run");
    let metrics = rows(&folder.join("run/rm/metrics.jsonl"));
    let accuracy = metrics
        .iter()
        .rev()
        .find_map(|row| row["eval/accuracy"].as_f64());
    assert!(accuracy.unwrap() > 0.85, "{metrics:?}");
}
