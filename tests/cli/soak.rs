//! Short forms of tests/soak.sh, tests/crash.sh and tests/long.sh, and what a run keeps from others: secrets, control characters, time.

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::hub::loopback::TOKEN;
use super::{command, hub};

/// A script of the repository with the tested program; its output.
#[cfg(target_os = "linux")]
fn script(line: &str) -> String {
    let mut words = line.split(' ');
    let output = Command::new(super::repository().join(words.next().unwrap()))
        .args(words)
        .env("TEMPER", env!("CARGO_BIN_EXE_temper"))
        .env("RECIPE", "tests/soak/short.ron")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{line}:\n{text}{error}");
    text
}

#[cfg(target_os = "linux")]
#[test]
fn a_run_that_is_killed_ends_as_an_undisturbed_one() {
    let text = script("tests/soak.sh 4");
    assert!(
        text.contains("4 stops (") && text.ends_with(": 0 runs differ\n"),
        "{text}"
    );
    let text = script("tests/crash.sh 17 97");
    assert!(text.ends_with(": 0 do not go on, 0 differ\n"), "{text}");
}

#[cfg(target_os = "linux")]
#[test]
fn memory_files_and_threads_do_not_grow_with_the_steps() {
    let text = script("tests/long.sh 300 Sft Ppo");
    assert!(
        text.contains("| Sft | ") && text.contains("| Ppo | "),
        "{text}"
    );
}

/// All files below a folder.
fn files_of(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files_of(&path, found),
            false => found.push(path),
        }
    }
}

#[test]
fn the_token_of_the_hub_is_in_no_file_and_no_message() {
    let temp = tempfile::tempdir().unwrap();
    let (folder, server) = (temp.path(), hub::serve());
    server.gate("me/tiny");
    let recipe = r#"(
    name: "r", model: "me/tiny",
    stages: [Sft(name: "sft", data: (source: Posts(rows: 4, seed: 1)), batch_size: 4, max_length: 64)],
)"#;
    fs::write(folder.join("r.ron"), recipe).unwrap();
    let run = |token: &str, args: &str| {
        let output = command(folder, args)
            .env("HF_HOME", folder.join("hf"))
            .env(
                "HF_ENDPOINT",
                server.endpoint.replace("://", "://me:pass-word@"),
            )
            .env("HF_TOKEN", token)
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        (output.status.code(), text.concat())
    };
    let (code, refused) = run("hf_other", "recipe r.ron --output run");
    assert_eq!(code, Some(2), "{refused}");
    assert!(
        refused.contains("the token of HF_TOKEN was sent"),
        "{refused}"
    );
    let (code, done) = run(TOKEN, "recipe r.ron --output run");
    assert_eq!(code, Some(0), "{done}");
    let mut files = Vec::new();
    files_of(folder, &mut files);
    assert!(files.len() > 15, "{files:?}");
    for secret in [TOKEN, "hf_other", "pass-word"] {
        assert!(
            !refused.contains(secret) && !done.contains(secret),
            "{refused}{done}"
        );
        for file in &files {
            let bytes = fs::read(file).unwrap();
            let found = bytes
                .windows(secret.len())
                .any(|part| part == secret.as_bytes());
            assert!(!found, "{secret} in {}", file.display());
        }
    }
}

/// The address of a server that takes requests and never answers.
fn silent() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let kept: Vec<_> = listener.incoming().collect();
        drop(kept);
    });
    url
}

#[cfg(unix)]
#[test]
fn one_signal_ends_the_wait_for_a_silent_server() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    let url = silent();
    let pairs = r#"{"prompt": "a", "chosen": "b", "rejected": "c"}"#;
    fs::write(folder.join("pairs.jsonl"), format!("{pairs}\n")).unwrap();
    let judge = format!(
        r#"(name: "r", model: "tiny", stages: [
        Judge(name: "judge", judge: Endpoint(url: "{url}/v1", model: "m"), data: (source: "pairs.jsonl"), valid_fraction: 0.0)])"#
    );
    fs::write(folder.join("judge.ron"), judge).unwrap();
    for (args, code, part) in [
        // During a stage: the wait ends, and what is there is kept.
        (
            "recipe judge.ron --output run",
            Some(1),
            "stopped before it answered. The 0 answers so far are kept",
        ),
        // Before one: nothing is lost.
        ("models --fetch me/x", None, ""),
    ] {
        let mut child = command(folder, args)
            .env("HF_HOME", folder.join("hf"))
            .env("HF_ENDPOINT", &url)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(1500));
        assert!(child.try_wait().unwrap().is_none(), "{args} does not wait");
        let signal = Command::new("kill")
            .args(["-TERM", &child.id().to_string()])
            .status();
        assert!(signal.unwrap().success());
        let begin = Instant::now();
        let status = child.wait().unwrap();
        assert!(
            begin.elapsed() < Duration::from_secs(10),
            "{args}: {:?}",
            begin.elapsed()
        );
        let mut text = String::new();
        child.stderr.unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(status.code(), code, "{text}");
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn control_characters_do_not_reach_a_terminal() {
    let temp = tempfile::tempdir().unwrap();
    let output = command(temp.path(), "inspect --model")
        .arg("\u{1b}[2Jno\u{7}")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("\\u{1b}[2Jno\\u{7}"), "{text:?}");
    assert!(
        !text.contains('\u{1b}') && !text.contains('\u{7}'),
        "{text:?}"
    );
}
