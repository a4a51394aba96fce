//! Models of the Hugging Face hub, from a hub on this machine.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Output;

use super::{command, stderr};

#[allow(dead_code)]
#[path = "../support/hub.rs"]
pub(super) mod loopback;

#[allow(dead_code)]
#[path = "../support/push_hub.rs"]
mod push_hub;

use loopback::{COMMIT, LoopbackHub};
use push_hub::{Fault, PushHub, WRITE_TOKEN};

/// The model `me/tiny`, that of `models/tiny`; `me/odd`, of an unknown family; `me/mute`, without a tokenizer.
pub(super) fn serve() -> LoopbackHub {
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

#[test]
fn a_result_is_uploaded_with_its_card() {
    let temp = tempfile::tempdir().unwrap();
    let (folder, hub) = (temp.path(), PushHub::serve(Some(100_000)));
    let recipe = r#"(
    name: "r", model: "tiny", seed: 3,
    stages: [
        Sft(name: "sft", data: (source: Posts(rows: 8, seed: 1)), batch_size: 4, peft: Lora(rank: 2)),
        Compare(name: "compare", policies: [Base, Stage("sft")], data: (source: Posts(rows: 3, seed: 8)), rewards: {"gold": Gold},
            response_length: 4),
    ])"#;
    fs::write(folder.join("r.ron"), recipe).unwrap();
    super::succeed(folder, "recipe r.ron --output run");
    let push = |token: Option<&str>, args: &str| {
        let mut command = command(folder, &format!("export --run run --stage sft {args}"));
        command
            .env("HF_HOME", folder.join("hf"))
            .env("HF_ENDPOINT", &hub.endpoint)
            .env("NO_PROXY", "127.0.0.1")
            .env_remove("HF_TOKEN");
        if let Some(token) = token {
            command.env("HF_TOKEN", token);
        }
        command.output().unwrap()
    };
    // Without a token nothing is computed or asked.
    let refused = push(None, "--push me/m");
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        stderr(&refused).contains("an upload needs a token"),
        "{}",
        stderr(&refused)
    );
    assert!(hub.seen().is_empty());
    let refused = push(Some("hf_other"), "--push me/m");
    let message = stderr(&refused);
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        message.contains("is not valid") && !message.contains("hf_other"),
        "{message}"
    );
    // Cut in the middle of the weights, and on.
    hub.next("PUT store", Fault::CutAfter(1000));
    let said = stdout(&push(Some(WRITE_TOKEN), "--merge --push me/m"));
    assert!(
        said.contains("/me/m (new, private): ") && said.contains("files committed"),
        "{said}"
    );
    assert_eq!(hub.is_private("me/m"), Some(true));
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        assert!(hub.file(&format!("main/{file}")).is_some(), "{file}");
    }
    let card = String::from_utf8(hub.file("main/README.md").unwrap()).unwrap();
    for part in [
        "---\nlicense: ",
        "library_name: transformers\npipeline_tag: text-generation\ntags:\n- tempering\n- sft\n---\n",
        "# m\n",
        "the result of the stage `sft` of the recipe `r`",
        "gold |",
        "temper export --run run --stage sft --push me/m",
        "seed",
    ] {
        assert!(card.contains(part), "{part:?}: {card}");
    }
    // The same again sends nothing, though the export was made anew.
    let puts = hub.count("PUT ");
    let said = stdout(&push(Some(WRITE_TOKEN), "--merge --push me/m"));
    assert!(said.contains("nothing to commit"), "{said}");
    assert_eq!(hub.count("PUT "), puts);
    // A folder stays, and an adapter's card says so; another branch.
    let said = stdout(&push(
        Some(WRITE_TOKEN),
        "--to out --push me/a --public --revision v1",
    ));
    assert!(said.contains("(new, public)"), "{said}");
    assert_eq!(hub.is_private("me/a"), Some(false));
    let card = fs::read_to_string(folder.join("out/README.md")).unwrap();
    assert!(card.contains("library_name: peft"), "{card}");
    assert!(hub.file("v1/adapter_model.safetensors").is_some());
    let left: Vec<_> = fs::read_dir(folder.join("run"))
        .unwrap()
        .flatten()
        .collect();
    assert!(
        !left
            .iter()
            .any(|entry| entry.file_name().to_string_lossy().starts_with(".tmp")),
        "{left:?}"
    );
}
