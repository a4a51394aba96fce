use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::hub::HubSettings;
use crate::hub::loopback::{COMMIT, LoopbackHub};
use crate::model::weights::write_safetensors;
use crate::model::{ClassifierSource, Finder};

/// The files of `models/tiny`.
fn tiny() -> BTreeMap<String, Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny");
    let names = [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
    ];
    (names.into_iter())
        .map(|name| (name.to_owned(), fs::read(folder.join(name)).unwrap()))
        .collect()
}

/// A hub with the model `me/tiny`, and `more` files of others.
fn serve(more: &[(&str, &[u8])]) -> LoopbackHub {
    let own = (tiny().into_iter()).map(|(name, bytes)| (format!("me/tiny/{name}"), bytes));
    let more = more
        .iter()
        .map(|(path, bytes)| ((*path).to_owned(), bytes.to_vec()));
    LoopbackHub::serve(own.chain(more).collect())
}

fn finder(hub: &LoopbackHub, root: &TempDir, fetch: Fetch, offline: bool) -> Finder {
    let settings = HubSettings {
        endpoint: hub.endpoint.clone(),
        cache: root.path().join("hub"),
        token: None,
        offline,
        progress: false,
        retry_wait: Duration::from_millis(1),
    };
    Finder::with_hub(Hub::new(settings), fetch)
}

#[test]
fn a_check_downloads_no_weights_and_a_run_does_once() {
    let hub = serve(&[("me/tiny/README.md", b"text"), ("me/tiny/other.bin", b"x")]);
    let root = tempfile::tempdir().unwrap();
    let found = finder(&hub, &root, Fetch::Description, false)
        .find("me/tiny")
        .unwrap();
    let bytes = tiny()["model.safetensors"].len() as u64;
    let absent = AbsentWeights {
        model: "me/tiny".into(),
        bytes,
    };
    assert_eq!((found.is_whole(), &found.absent), (false, &vec![absent]));
    assert_eq!(
        found.tokenizer().unwrap().vocab_size(),
        found.config.vocab_size()
    );
    let fetched = ["config.json", "tokenizer.json", "tokenizer_config.json"];
    assert_eq!(
        hub.downloads(),
        fetched.map(|name| format!("me/tiny/{name}"))
    );
    let found = finder(&hub, &root, Fetch::All, false)
        .find("me/tiny")
        .unwrap();
    found.check().unwrap();
    assert_eq!(found.peft_base().unwrap(), "me/tiny");
    assert!(
        found
            .dir
            .ends_with(format!("models--me--tiny/snapshots/{COMMIT}"))
    );
    assert_eq!(hub.downloads().len(), 4);
    // The cache has it all: nothing is asked.
    let before = hub.seen().len();
    for fetch in [Fetch::Description, Fetch::All] {
        let found = finder(&hub, &root, fetch, true).find("me/tiny").unwrap();
        assert!(found.is_whole());
    }
    assert_eq!(hub.seen().len(), before);
    // An update asks for the newest commit, and takes what is there.
    finder(&hub, &root, Fetch::All, false)
        .update("me/tiny")
        .unwrap();
    assert_eq!((hub.seen().len(), hub.downloads().len()), (before + 1, 4));
}

#[test]
fn what_cannot_be_used_is_refused_before_weights_are_downloaded() {
    let hub = serve(&[
        ("me/odd/config.json", br#"{"model_type": "mamba"}"#),
        ("me/odd/model.safetensors", b"weights"),
        ("me/old/config.json", b"{}"),
        ("me/old/pytorch_model.bin", b"pickle"),
        ("me/none/config.json", b"{}"),
        ("me/quants/m.Q4_K_M.gguf", b"GGUF"),
        ("me/quants/m.Q8_0.gguf", b"GGUF"),
    ]);
    let root = tempfile::tempdir().unwrap();
    let message = |name: &str| {
        let found = finder(&hub, &root, Fetch::All, false).find(name);
        found.unwrap_err().to_string()
    };
    let odd = message("me/odd");
    assert!(
        odd.contains("config.json") && odd.contains("mamba"),
        "{odd}"
    );
    let old = message("me/old@main");
    assert!(
        old.starts_with("model me/old: pytorch_model.bin is pickled by PyTorch, which can run code, and is not read")
            && old.contains("AutoModelForCausalLM.from_pretrained(\"me/old\").save_pretrained"),
        "{old}"
    );
    assert!(message("me/none").contains("no weights that are read"));
    assert_eq!(
        message("me/quants"),
        "model me/quants: the repository has 2 GGUF files; name one, as me/quants:m.Q4_K_M.gguf. There are m.Q4_K_M.gguf and m.Q8_0.gguf"
    );
    assert!(
        message("me/quants:m.Q8_1.gguf")
            .ends_with("no file m.Q8_1.gguf; did you mean `m.Q8_0.gguf`?")
    );
    assert!(message("me/quants:model.bin").contains("is pickled"));
    let near = message("HuggingFaceTB/SmolLM2-135M-Instrukt");
    assert!(
        near.contains("no such file or folder, and ")
            && near.ends_with("did you mean `HuggingFaceTB/SmolLM2-135M-Instruct`?"),
        "{near}"
    );
    // A dry run does not download what describes itself.
    let dry = finder(&hub, &root, Fetch::Description, false).find("me/quants:m.Q8_0.gguf");
    let dry = dry.unwrap_err().to_string();
    assert!(
        dry.ends_with("temper models --fetch me/quants:m.Q8_0.gguf"),
        "{dry}"
    );
    assert!(!hub.seen().iter().any(|seen| seen.redirected));
}

#[test]
fn shards_and_split_files_are_downloaded_together() {
    let root = tempfile::tempdir().unwrap();
    let source = super::super::weights::open(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny/model.safetensors"),
    )
    .unwrap();
    let names = source.names();
    let mut map = serde_json::Map::new();
    let mut files: BTreeMap<String, Vec<u8>> = (tiny().into_iter())
        .filter(|(name, _)| name != "model.safetensors")
        .map(|(name, bytes)| (format!("me/shards/{name}"), bytes))
        .collect();
    for (at, half) in names.chunks(names.len().div_ceil(2)).enumerate() {
        let shard = format!("model-0000{}-of-00002.safetensors", at + 1);
        let tensors: Vec<_> = (half.iter())
            .map(|name| {
                map.insert(name.clone(), json!(shard));
                (
                    name.clone(),
                    source.shape(name).unwrap(),
                    source.read(name).unwrap(),
                )
            })
            .collect();
        let path = root.path().join(&shard);
        write_safetensors(&path, &tensors).unwrap();
        files.insert(format!("me/shards/{shard}"), fs::read(path).unwrap());
    }
    let index = json!({"metadata": {}, "weight_map": map}).to_string();
    files.insert(format!("me/shards/{INDEX}"), index.into_bytes());
    let hub = LoopbackHub::serve(files);
    let found = finder(&hub, &root, Fetch::Check, false)
        .find("me/shards")
        .unwrap();
    assert!(!found.is_whole());
    let found = finder(&hub, &root, Fetch::All, false)
        .find("me/shards")
        .unwrap();
    found.check().unwrap();
    assert_eq!(found.files().unwrap().len(), 2);
    // Without one of the shards the cache has no model.
    fs::remove_file(&found.files().unwrap()[1]).unwrap();
    let message = finder(&hub, &root, Fetch::All, true)
        .find("me/shards")
        .unwrap_err();
    assert!(message.to_string().contains("HF_HUB_OFFLINE"), "{message}");
}

#[test]
fn all_parts_of_a_split_file_are_downloaded() {
    let part = |number: u16| {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        let counts = [0u64, 3].map(u64::to_le_bytes).concat();
        bytes.extend(counts);
        for (key, value) in [("split.no", number), ("split.count", 2), ("x", 0)] {
            bytes.extend((key.len() as u64).to_le_bytes());
            bytes.extend(key.as_bytes());
            bytes.extend(2u32.to_le_bytes());
            bytes.extend(value.to_le_bytes());
        }
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes
    };
    let (first, second) = (part(0), part(1));
    let hub = serve(&[
        ("me/one/q-00001-of-00002.gguf", &first),
        ("me/one/q-00002-of-00002.gguf", &second),
        ("me/torn/q-00002-of-00002.gguf", &second),
    ]);
    let root = tempfile::tempdir().unwrap();
    let find = |name: &str| finder(&hub, &root, Fetch::All, false).find(name);
    let torn = find("me/torn").unwrap_err().to_string();
    assert!(torn.contains("no file q-00001-of-00002.gguf"), "{torn}");
    for name in ["me/one:q-00002-of-00002.gguf", "me/one"] {
        // All are there, and they say nothing about an architecture.
        let found = find(name).unwrap_err().to_string();
        assert!(found.contains("no general.architecture"), "{found}");
    }
    let sent = hub.seen().iter().filter(|seen| seen.redirected).count();
    assert_eq!(sent, 2);
}

#[test]
fn adapters_of_the_hub_stand_on_their_bases() {
    let adapter = json!({
        "peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "me/tiny", "revision": "v1"
    })
    .to_string();
    let hub = serve(&[
        ("me/adapter/adapter_config.json", adapter.as_bytes()),
        ("me/adapter/adapter_model.safetensors", b"weights"),
    ]);
    hub.add_revision("v1");
    let root = tempfile::tempdir().unwrap();
    let found = finder(&hub, &root, Fetch::Description, false)
        .find("me/adapter")
        .unwrap();
    let absent: Vec<&str> = found.absent.iter().map(|of| of.model.as_str()).collect();
    assert_eq!(absent, ["me/adapter", "me/tiny@v1"]);
    assert_eq!(found.adapters.len(), 1);
    // Another model's name does not stand in for the base, and a folder does.
    let folder = root.path().join("base");
    fs::create_dir(&folder).unwrap();
    for (name, bytes) in tiny() {
        fs::write(folder.join(name), bytes).unwrap();
    }
    let other = finder(&hub, &root, Fetch::Description, false);
    let found = other.find_on("me/adapter", Some("me/other")).unwrap();
    assert!(found.notes.is_empty());
    let found = other.find_on("me/adapter", folder.to_str()).unwrap();
    assert!(
        found.notes[0].contains("is used in its place"),
        "{:?}",
        found.notes
    );
    assert_eq!(found.dir, folder);
}

#[test]
fn a_model_without_a_tokenizer_is_used_offline_too() {
    let hub = LoopbackHub::serve(
        (tiny().into_iter())
            .filter(|(name, _)| !name.starts_with("tokenizer"))
            .map(|(name, bytes)| (format!("me/bare/{name}"), bytes))
            .collect(),
    );
    let root = tempfile::tempdir().unwrap();
    finder(&hub, &root, Fetch::All, false)
        .find("me/bare")
        .unwrap();
    let found = finder(&hub, &root, Fetch::All, true)
        .find("me/bare")
        .unwrap();
    found.check().unwrap();
}

/// As the hub has distilbert-sst2: `vocab.txt` and no tokenizer.json.
#[test]
fn an_encoder_is_a_classifier_and_no_language_model() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/encoders/distilbert");
    let read = |name: &str| fs::read(folder.join(name)).unwrap();
    let names = ["config.json", "model.safetensors", "vocab.txt"];
    let files = names.map(|name| (format!("me/sst2/{name}"), read(name)));
    let hub = LoopbackHub::serve(files.into());
    let root = tempfile::tempdir().unwrap();
    let refused = finder(&hub, &root, Fetch::All, false).find("me/sst2");
    let message = refused.unwrap_err().to_string();
    assert!(message.contains("the model is an encoder"), "{message}");
    let fetched = ["config.json", "vocab.txt"].map(|name| format!("me/sst2/{name}"));
    assert_eq!(hub.downloads(), fetched);
    let described = finder(&hub, &root, Fetch::Description, false).classifier("me/sst2");
    let described = described.unwrap().unwrap();
    assert!(described.absent.is_some());
    described.tokenizer().unwrap();
    let found = ClassifierSource::find(&finder(&hub, &root, Fetch::All, false), "me/sst2");
    found.unwrap().check().unwrap();
    assert_eq!(hub.downloads().len(), 3);
}
