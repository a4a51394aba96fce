//! Models of the Hugging Face hub, from a hub on this machine.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Output;

use super::{command, stderr};

#[allow(dead_code)]
#[path = "../support/hub.rs"]
mod loopback;

use loopback::{COMMIT, LoopbackHub};

/// The model `me/tiny`, that of `models/tiny`; `me/odd`, of an unknown family; `me/mute`, without a tokenizer.
fn serve() -> LoopbackHub {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny");
    let read = |name: &str| fs::read(folder.join(name)).unwrap();
    let mut files = BTreeMap::new();
    for name in [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
    ] {
        files.insert(format!("me/tiny/{name}"), read(name));
        files.insert(format!("me/odd/{name}"), read(name));
    }
    for name in ["config.json", "model.safetensors"] {
        files.insert(format!("me/mute/{name}"), read(name));
    }
    files.insert(
        "me/odd/config.json".into(),
        br#"{"model_type": "mamba"}"#.to_vec(),
    );
    LoopbackHub::serve(files)
}

fn temper(folder: &Path, hub: &LoopbackHub, args: &str) -> Output {
    command(folder, args)
        .env("HF_HOME", folder.join("hf"))
        .env("HF_ENDPOINT", &hub.endpoint)
        .env("NO_PROXY", "127.0.0.1")
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn models_of_the_hub_stand_where_a_model_can() {
    let temp = tempfile::tempdir().unwrap();
    let (folder, hub) = (temp.path(), serve());
    let recipe = r#"(
    name: "r", model: "me/tiny",
    stages: [Sft(name: "sft", data: (source: Posts(rows: 8, seed: 1)), batch_size: 4)],
)"#;
    fs::write(folder.join("r.ron"), recipe).unwrap();
    let plan = stdout(&temper(folder, &hub, "recipe r.ron --dry-run --no-time"));
    assert!(
        plan.contains("weights to be downloaded: me/tiny "),
        "{plan}"
    );
    assert!(!hub.seen().iter().any(|seen| seen.redirected));
    let fetched = stdout(&temper(folder, &hub, "models --fetch me/tiny"));
    let snapshot = format!("hf/hub/models--me--tiny/snapshots/{COMMIT} (");
    assert!(
        fetched.starts_with("me/tiny: ") && fetched.contains(&snapshot),
        "{fetched}"
    );
    let list = stdout(&temper(folder, &hub, "models"));
    assert!(list.contains("me/tiny\n"), "{list}");
    let before = hub.seen().len();
    let plan = stdout(&temper(folder, &hub, "recipe r.ron --dry-run --no-time"));
    assert!(!plan.contains("to be downloaded"), "{plan}");
    let row = r#"{"prompt": "Once", "completion": " more"}"#;
    fs::write(folder.join("rows.jsonl"), row).unwrap();
    let args = "logprobs --model me/tiny --data rows.jsonl --output -";
    let text = stdout(&temper(folder, &hub, args));
    assert!(text.contains("\"logprobs\""), "{text}");
    assert_eq!(hub.seen().len(), before);
}

#[test]
fn a_recipe_names_what_is_wrong_with_its_models() {
    let temp = tempfile::tempdir().unwrap();
    let (folder, hub) = (temp.path(), serve());
    let sft = |name: &str, model: &str| {
        format!(
            "Sft(name: \"{name}\", init: Folder(\"{model}\"), data: (source: Posts(rows: 8, seed: 1)), batch_size: 4)"
        )
    };
    let stages = [
        ("a", "me/odd"),
        ("b", "me/mute"),
        ("c", "Qwen/Qwen3-0.6B-Bass"),
    ];
    let stages = stages.map(|(name, model)| sft(name, model)).join(",\n");
    fs::write(
        folder.join("r.ron"),
        format!("(name: \"r\", stages: [\n{stages}])"),
    )
    .unwrap();
    for args in ["recipe r.ron", "recipe r.ron --dry-run --no-time"] {
        let output = temper(folder, &hub, args);
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{message}");
        for part in [
            "3 problems in r.ron",
            "stages.a.init: ",
            "mamba",
            "stages.b.init: ",
            "tokenizer.json",
            "stages.c.init: model Qwen/Qwen3-0.6B-Bass: no such file or folder, and ",
            "did you mean `Qwen/Qwen3-0.6B-Base`?",
        ] {
            assert!(message.contains(part), "expected {part:?} in {message}");
        }
    }
    assert!(!hub.seen().iter().any(|seen| seen.redirected));
    // In a command.
    let output = temper(
        folder,
        &hub,
        "logprobs --model me/nobody --data r.ron --output -",
    );
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
}
