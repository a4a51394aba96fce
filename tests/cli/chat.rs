//! `temper chat`, and `temper generate` by a model's chat template.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};

use serde_json::{Value, json};

use super::{command, fail, lines, stderr, stdout, succeed, text_model, write_rows};

const TEMPLATE: &str = "{% for m in messages %}{{ '[' + m['role'] + '] ' + m['content'] + '\n' }}{% endfor %}\
                        {% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}";

fn chat_model(folder: &Path) {
    let dir = text_model(folder);
    fs::write(dir.join("chat_template.jinja"), TEMPLATE).unwrap();
}

/// Talks with the model: one message or command a line.
fn chat(folder: &Path, options: &str, said: &str) -> Output {
    let mut chat = command(
        folder,
        &format!("chat --model text-model --temperature 0 --max-new-tokens 9 {options}"),
    )
    .stdin(Stdio::piped())
    .stdout(Stdio::piped())
    .stderr(Stdio::piped())
    .spawn()
    .unwrap();
    chat.stdin
        .take()
        .unwrap()
        .write_all(said.as_bytes())
        .unwrap();
    let output = chat.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    output
}

/// The greedy answer of `generate` to a conversation.
fn answer(folder: &Path, messages: &[(&str, &str)]) -> String {
    let messages: Vec<Value> = (messages.iter())
        .map(|(role, content)| json!({"role": role, "content": content}))
        .collect();
    write_rows(folder.join("asked.jsonl"), &[json!({ "prompt": messages })]);
    let answers = succeed(
        folder,
        "generate --model text-model --data asked.jsonl --temperature 0 --max-new-tokens 9",
    );
    lines(&answers)[0]["completion"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[test]
fn a_conversation_is_what_generate_says_turn_by_turn() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    chat_model(folder);
    let first = answer(folder, &[("user", "one day")]);
    let turns = [
        ("user", "one day"),
        ("assistant", first.as_str()),
        ("user", "and then"),
    ];
    let second = answer(folder, &turns);
    let brief = answer(folder, &[("system", "be brief"), ("user", "one day")]);
    assert!(first != second && first != brief);

    let said = "one day\n\nand then\n/undo\nand then\n/reset\n/system be brief\none day\n/rest\n/compare\n/quit\nno more\n";
    let output = chat(folder, "", said);
    assert_eq!(
        stdout(&output),
        format!("{first}\n{second}\n{second}\n{brief}\n")
    );
    for part in [
        "the last message and its answer are gone",
        "did you mean `/reset`?",
        "--against MODEL",
        "in use",
    ] {
        assert!(stderr(&output).contains(part), "{}", stderr(&output));
    }

    // It is kept after every answer, as a row that can be trained on, and goes on where it ended.
    let kept = fs::read_to_string(folder.join("home/chat.jsonl")).unwrap();
    let expected = json!([
        {"role": "system", "content": "be brief"}, {"role": "user", "content": "one day"},
        {"role": "assistant", "content": brief},
    ]);
    assert_eq!(lines(&kept)[0]["messages"], expected);
    let output = chat(folder, "--continue", "/retry\n/save talk.jsonl\n");
    assert_eq!(stdout(&output), format!("{brief}\n"));
    assert_eq!(fs::read_to_string(folder.join("talk.jsonl")).unwrap(), kept);

    // Two models answer, each in its own conversation.
    let output = chat(
        folder,
        "--against text-model --history both.jsonl",
        "one day\n",
    );
    assert_eq!(
        stdout(&output),
        format!("[text-model]\n{first}\n[text-model]\n{first}\n")
    );
    assert_eq!(
        fs::read_to_string(folder.join("both.jsonl"))
            .unwrap()
            .lines()
            .count(),
        2
    );
}

#[test]
fn a_conversation_may_be_longer_than_the_model_can_read() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    chat_model(folder);
    let long = "word ".repeat(60);
    let output = chat(
        folder,
        "",
        &format!("{long}\n{long}\n{long}\n{}\n", long.repeat(9)),
    );
    let message = stderr(&output);
    for part in ["the model takes 256 tokens: the first", "Say it shorter"] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(
        stdout(&output).matches('\n').count(),
        3,
        "{}",
        stdout(&output)
    );
}

#[test]
fn a_prompt_is_the_users_message_where_there_is_a_template() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    text_model(folder);
    fail(
        folder,
        "chat --model text-model",
        2,
        &["has no chat template", "generate"],
    );
    fail(
        folder,
        "generate --model text-model --prompt a --system b",
        2,
        &["--system", "no chat template"],
    );
    let dir = folder.join("text-model");
    fs::write(dir.join("chat_template.jinja"), TEMPLATE).unwrap();
    let greedy = "generate --model text-model --temperature 0 --max-new-tokens 9";
    let templated = answer(folder, &[("user", "day")]);
    assert_eq!(
        succeed(folder, &format!("{greedy} --prompt day")),
        format!("{templated}\n")
    );
    let raw = succeed(folder, &format!("{greedy} --prompt day --raw"));
    assert_ne!(raw, format!("{templated}\n"));

    // As JSON, several times, and up to a stop string.
    let many = format!("{greedy} --prompt day --num-responses 2");
    let rows = lines(&succeed(folder, &format!("{many} --json")));
    assert_eq!(rows.len(), 2);
    assert!(rows.iter().all(|row| row["completion"] == json!(templated)));
    assert_eq!(
        succeed(folder, &many),
        format!("[1 of 2]\n{templated}\n\n[2 of 2]\n{templated}\n")
    );
    let at = templated
        .char_indices()
        .nth(4)
        .map_or(templated.len(), |(at, _)| at);
    let end = templated[at..].chars().next().unwrap();
    let stop = ["--stop", &end.to_string()].map(String::from);
    let mut stopped = command(folder, &format!("{greedy} --json --prompt day"));
    let output = stopped.args(&stop).output().unwrap();
    let row = lines(&stdout(&output)).remove(0);
    let expected = templated.split(end).next().unwrap();
    assert_eq!(
        (row["completion"].as_str(), &row["stopped"]),
        (Some(expected), &json!(true))
    );
    let mut stopped = command(folder, &format!("{greedy} --prompt day"));
    let output = stopped.args(&stop).output().unwrap();
    assert_eq!(stdout(&output), format!("{expected}\n"));
}
