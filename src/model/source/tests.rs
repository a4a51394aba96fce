use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::hub::{Hub, HubSettings};
use crate::model::portable_base;
use crate::model::weights::{RandomSource, write_safetensors};
use crate::peft::files::ADAPTER_WEIGHTS;
use crate::peft::{saved_key, tensor_key};
use crate::rng::Seed;

const VOCAB: usize = 768;
const HIDDEN: usize = 8;

/// A tied llama of one layer with the tokenizer of `models/tiny` in `<root>/<name>`, and `more` tensors.
fn model(root: &TempDir, name: &str, more: &[(&str, Vec<usize>, f32)]) -> PathBuf {
    let dir = root.path().join(name);
    fs::create_dir(&dir).unwrap();
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(tiny.join(file), dir.join(file)).unwrap();
    }
    let config = json!({
        "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": VOCAB, "max_position_embeddings": 64,
        "hidden_act": "silu", "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "eos_token_id": 0
    });
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let config = ModelConfig::from_value(config).unwrap();
    let source = RandomSource::new(&config, Seed::new(3));
    let mut tensors: Vec<_> = config
        .backbone_tensors()
        .into_iter()
        .map(|spec| {
            let values = source.read(&spec.name).unwrap();
            (spec.name, spec.shape, values)
        })
        .collect();
    for (name, shape, value) in more {
        let values = vec![*value; shape.iter().product()];
        tensors.push(((*name).to_owned(), shape.clone(), values));
    }
    write_safetensors(dir.join("model.safetensors"), &tensors).unwrap();
    dir
}

/// An adapter of rank 1 on the query projection, in `<root>/<name>`, with a score head of `labels`.
fn adapter(root: &TempDir, name: &str, base: &Value, labels: usize) -> PathBuf {
    let dir = root.path().join(name);
    fs::create_dir_all(&dir).unwrap();
    let config = json!({
        "peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"], "base_model_name_or_path": base,
        "task_type": if labels == 0 { "CAUSAL_LM" } else { "SEQ_CLS" }
    });
    fs::write(dir.join(ADAPTER_CONFIG), config.to_string()).unwrap();
    let layer = "model.layers.0.self_attn.q_proj";
    let mut tensors = vec![
        (
            tensor_key(layer, "lora_A.weight"),
            vec![1, HIDDEN],
            vec![0.0; HIDDEN],
        ),
        (
            tensor_key(layer, "lora_B.weight"),
            vec![HIDDEN, 1],
            vec![0.0; HIDDEN],
        ),
    ];
    if labels > 0 {
        let values = vec![0.5; labels * HIDDEN];
        tensors.push((saved_key(SCORE), vec![labels, HIDDEN], values));
    }
    write_safetensors(dir.join(ADAPTER_WEIGHTS), &tensors).unwrap();
    dir
}

/// Nothing is asked of the hub, and its cache is empty.
fn offline() -> Finder {
    let settings = HubSettings {
        cache: PathBuf::from("no/such/cache"),
        offline: true,
        ..HubSettings::from_env()
    };
    Finder::with_hub(Hub::new(settings), Fetch::All)
}

fn find(path: &Path) -> Result<ModelSource> {
    offline().at(path, None)
}

#[test]
fn a_stored_head_with_other_values_unties_the_model() {
    let root = tempfile::tempdir().unwrap();
    let head = ("lm_head.weight", vec![VOCAB, HIDDEN], 0.25);
    let found = find(&model(&root, "m", &[head])).unwrap();
    assert!(!found.config.tie_word_embeddings());
    assert_eq!(
        found.config.to_json(false)["tie_word_embeddings"],
        json!(false)
    );
    assert!(
        found.notes[0].contains("the stored head is used"),
        "{:?}",
        found.notes
    );
    found.check().unwrap();
    let plain = find(&model(&root, "plain", &[])).unwrap();
    assert!(plain.config.tie_word_embeddings() && plain.notes.is_empty());
}

#[test]
fn an_embedding_may_be_stored_as_the_head() {
    let root = tempfile::tempdir().unwrap();
    let dir = model(&root, "m", &[]);
    let source = weights::open(&dir).unwrap();
    let tensors: Vec<_> = (source.names().into_iter())
        .map(|name| {
            let (shape, values) = (source.shape(&name).unwrap(), source.read(&name).unwrap());
            let name = name.replace("model.embed_tokens", "lm_head");
            (name, shape, values)
        })
        .collect();
    let expected = source.read("model.embed_tokens.weight").unwrap();
    write_safetensors(dir.join("model.safetensors"), &tensors).unwrap();
    let found = find(&dir).unwrap();
    found.check().unwrap();
    let source = found.open_weights().unwrap();
    assert_eq!(source.read("model.embed_tokens.weight").unwrap(), expected);
}

#[test]
fn adapters_on_adapters_end_at_a_base() {
    let root = tempfile::tempdir().unwrap();
    let base = model(&root, "base", &[]);
    let inner = adapter(&root, "inner", &json!(base), 0);
    // The inner one lies beside the outer one, which says only its name.
    let outer = adapter(&root, "outer", &json!("inner"), 1);
    let found = find(&outer).unwrap();
    assert_eq!(found.adapters, [inner.clone(), outer.clone()]);
    assert_eq!(found.weights, base);
    found.check().unwrap();
    assert_eq!(found.check_reward().unwrap().place, outer);
    assert_eq!(found.peft_base().unwrap(), inner.to_str().unwrap());
    assert_eq!(
        find(&inner).unwrap().peft_base().unwrap(),
        base.to_str().unwrap()
    );
    fs::write(
        inner.join(ADAPTER_CONFIG),
        json!({"base_model_name_or_path": "outer"}).to_string(),
    )
    .unwrap();
    let message = find(&outer).unwrap_err().to_string();
    assert!(message.contains("form a circle"), "{message}");
}

#[test]
fn the_files_of_the_outermost_folder_win() {
    let root = tempfile::tempdir().unwrap();
    let base = model(&root, "base", &[]);
    let dir = adapter(&root, "adapter", &json!(base), 0);
    assert!(!find(&dir).unwrap().tokenizer().unwrap().has_chat());
    fs::write(dir.join("chat_template.jinja"), "{{ messages[0].content }}").unwrap();
    // Vocabulary and EOS are still the base's.
    let tokenizer = find(&dir).unwrap().tokenizer().unwrap();
    assert!(tokenizer.has_chat());
    assert_eq!((tokenizer.vocab_size(), tokenizer.eos_id()), (VOCAB, 0));
}

#[test]
fn a_base_that_is_not_here_can_be_given() {
    let root = tempfile::tempdir().unwrap();
    let base = model(&root, "base", &[]);
    for (name, named, says) in [
        (
            "elsewhere",
            json!("someone/their-model"),
            "names the base model \"someone/their-model\"",
        ),
        ("nowhere", Value::Null, "names no base model"),
    ] {
        let dir = adapter(&root, name, &named, 0);
        let message = find(&dir).unwrap_err().to_string();
        assert!(
            message.contains("adapter_config.json") && message.contains(says),
            "{message}"
        );
        assert!(message.contains("--model BASE --adapter"), "{message}");
        let found = offline().at(&dir, base.to_str()).unwrap();
        assert_eq!(found.weights, base);
        assert!(
            found.notes[0].contains("used in its place"),
            "{:?}",
            found.notes
        );
    }
    // An adapter whose base is here stands on that one, whatever else is given.
    let dir = adapter(&root, "own", &json!(base), 0);
    let found = ModelSource::at(&dir, Some("tiny")).unwrap();
    assert_eq!((found.weights, found.notes.len()), (base, 0));
}

#[test]
fn a_moved_run_finds_the_base_of_its_stage() {
    let root = tempfile::tempdir().unwrap();
    let stage = root.path().join("run/sft");
    fs::create_dir_all(&stage).unwrap();
    fs::rename(model(&root, "m", &[]), stage.join("base")).unwrap();
    adapter(&root, "run/sft/adapter", &json!("/old/run/sft/base"), 0);
    // The stage's folder stands for its result.
    let found = find(&stage).unwrap();
    assert_eq!(found.weights, stage.join("base"));
    let found = ModelSource::of_stage(&stage, None).unwrap().unwrap();
    assert_eq!(found.adapters, [stage.join("adapter")]);
    assert!(ModelSource::of_stage(root.path(), None).unwrap().is_none());
}

#[test]
fn a_reward_model_has_one_label() {
    let root = tempfile::tempdir().unwrap();
    let score = |labels| ("score.weight", vec![labels, HIDDEN], 0.5);
    let one = find(&model(&root, "one", &[score(1)])).unwrap();
    let head = one.check_reward().unwrap();
    assert_eq!(one.read_score(&head).unwrap(), [0.5; HIDDEN]);
    assert!(one.notes.is_empty());
    let dir = model(&root, "two", &[score(2)]);
    let two = find(&dir).unwrap();
    let message = two.check_reward().unwrap_err().to_string();
    assert!(
        message.contains("two/model.safetensors") && message.contains("2 labels"),
        "{message}"
    );
    // As a policy it is used without that head, which is said.
    two.check().unwrap();
    assert!(
        two.notes[0].contains("with 2 labels is not used"),
        "{:?}",
        two.notes
    );
    let on_adapter = find(&adapter(&root, "three", &json!(dir), 3)).unwrap();
    let message = on_adapter.check_reward().unwrap_err().to_string();
    assert!(message.contains("3 labels"), "{message}");
    let none = find(&model(&root, "none", &[])).unwrap();
    let message = none.check_reward().unwrap_err().to_string();
    assert!(message.contains("not a reward model"), "{message}");
}

#[test]
fn known_models_are_named_as_peft_finds_them() {
    let root = tempfile::tempdir().unwrap();
    let base = model(&root, "base", &[]);
    let portable = |name: &str, named: &str| {
        let dir = adapter(&root, name, &json!(named), 0);
        portable_base(&dir).unwrap()
    };
    assert_eq!(
        portable("a", "qwen2.5-0.5b").as_deref(),
        Some("Qwen/Qwen2.5-0.5B")
    );
    assert_eq!(
        portable("b", "Qwen/Qwen2.5-0.5B").as_deref(),
        Some("Qwen/Qwen2.5-0.5B")
    );
    let path = base.to_str();
    assert_eq!(portable("c", path.unwrap()).as_deref(), path);
    assert_eq!(portable("d", "base").as_deref(), path);
    assert_eq!(
        portable("e", "someone/their-model").as_deref(),
        Some("someone/their-model")
    );
    assert_eq!(portable("f", "/no/such/folder"), None);
}
