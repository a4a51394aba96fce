//! Tokenizers and chat templates against what transformers does with them (`tests/reference/tokenizer_ids.py`,
//! `tests/reference/templates.py`).

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use tempering::data::{
    AssistantTurns, ChatOptions, ChatTemplate, Row, RowFormat, Tokenizer, encode_completions,
};

use tempering::model::ModelConfig;
use tempering::model::weights::{GgufFile, GgufModel, RandomSource, TensorType, WeightSource};
use tempering::rng::Seed;

use super::parity::Comparison;

const TRANSFORMERS: &str = "transformers 5.23";
/// How the files of real models are called, which are not here.
const REAL: &str = "real";

pub(crate) fn reference(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/reference")
        .join(name)
}

pub(crate) fn read(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// The folder in an environment variable; prints a notice that nothing is checked if it is not set.
pub(crate) fn given(variable: &str) -> Option<PathBuf> {
    let folder = std::env::var_os(variable);
    if folder.is_none() {
        // Not `eprintln!`, which the test harness keeps to itself when the test passes.
        let note = format!(
            "SKIPPED: {variable} names no folder: nothing is compared with files of real models\n"
        );
        std::io::stderr().write_all(note.as_bytes()).unwrap();
    }
    folder.map(PathBuf::from)
}

/// Notes how many of the cases differ, after printing them. What was compared with files that are not here is not noted.
fn check(subject: &str, what: &str, cases: usize, differing: &[String]) {
    check_against(TRANSFORMERS, subject, what, cases, differing);
}

/// The same against another reference.
pub(crate) fn check_against(
    reference: &str,
    subject: &str,
    what: &str,
    cases: usize,
    differing: &[String],
) {
    for difference in differing.iter().take(100) {
        eprintln!("{difference}");
    }
    assert!(cases > 0, "{subject}: nothing was compared");
    eprintln!("{subject}, {what}: {} of {cases} differ", differing.len());
    if subject.starts_with(REAL) {
        assert!(differing.is_empty(), "{subject}, {what}: see above");
        return;
    }
    Comparison {
        reference,
        subject,
        what,
        backend: "host",
        difference: differing.len() as f64,
        tolerance: 0.0,
        relative: false,
    }
    .check();
}

pub(crate) fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// One tokenizer on its rows.
fn check_tokenizer(name: &str, tokenizer: &Tokenizer, expected: &Value) {
    let rows = expected["rows"].as_array().unwrap();
    let mut differing = Vec::new();
    let mut compare = |text: &str, what: &str, got: Value, expected: &Value| {
        if got != *expected {
            differing.push(format!(
                "{name}, {what} of {text:?}:\n  {got}\n  {expected}"
            ));
        }
    };
    for row in rows {
        let text = row["text"].as_str().unwrap();
        let plain = tokenizer.encode(text, false).unwrap();
        compare(text, "ids", json!(plain), &row["ids"]);
        let whole = tokenizer.encode(text, true).unwrap();
        compare(
            text,
            "ids with special tokens",
            json!(whole),
            &row["ids_with_special"],
        );
        let whole = ids(&row["ids_with_special"]);
        let decoded = tokenizer.decode(&whole, false).unwrap();
        compare(text, "decoded text", json!(decoded), &row["decoded"]);
        let decoded = tokenizer.decode(&whole, true).unwrap();
        compare(
            text,
            "decoded text without special tokens",
            json!(decoded),
            &row["decoded_skipping_special"],
        );
    }
    compare("", "BOS", json!(tokenizer.bos_id()), &expected["bos_id"]);
    compare("", "EOS", json!(tokenizer.eos_id()), &expected["eos_id"]);
    compare(
        "",
        "size",
        json!(tokenizer.vocab_size()),
        &expected["vocab_size"],
    );
    check(
        &format!("{name} tokenizer"),
        "ids and decoded texts that differ",
        4 * rows.len() + 3,
        &differing,
    );
}

/// Small tokenizers of every kind.
pub(crate) fn tokenizers() {
    let expected = read(&reference("tokenizers/ref.json"));
    for (name, expected) in expected.as_object().unwrap() {
        let tokenizer = Tokenizer::load(&reference("tokenizers").join(name)).unwrap();
        check_tokenizer(name, &tokenizer, expected);
    }
}

/// The same tokenizers, but for the kind that GGUF files are not written for, from inside a file.
pub(crate) fn tokenizers_in_gguf() {
    let expected = read(&reference("tokenizers/ref.json"));
    let folder = tempfile::tempdir().unwrap();
    for (name, expected) in expected.as_object().unwrap() {
        let tokenizer = Tokenizer::load(&reference("tokenizers").join(name)).unwrap();
        let file = folder.path().join(format!("{name}.gguf"));
        let inside = in_gguf(&tokenizer, &file);
        match (name.as_str(), inside) {
            ("unigram", inside) => assert!(inside.unwrap_err().contains("is a Unigram model")),
            (_, inside) => check_tokenizer(&format!("{name} GGUF"), &inside.unwrap(), expected),
        }
    }
}

/// A tokenizer as read from a GGUF file that it was written into, beside a random model that llama.cpp loads.
fn in_gguf(tokenizer: &Tokenizer, file: &Path) -> Result<Tokenizer, String> {
    let config = json!({
        "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
        "max_position_embeddings": 64, "tie_word_embeddings": true, "vocab_size": tokenizer.max_id() + 1,
    });
    let config = ModelConfig::from_value(config).unwrap();
    let model = GgufModel {
        name: "vocabulary",
        config: &config,
        weights: &RandomSource::new(&config, Seed::new(3)),
        tokenizer,
    };
    let written = model.write(file, TensorType::F16);
    written.map_err(|error| error.to_string())?;
    let inside = GgufFile::open(file).unwrap().tokenizer();
    Ok(inside.unwrap().unwrap())
}

/// The tokenizers of a folder's folders, each with its `expected.json`.
pub(crate) fn check_tokenizers(folder: &Path) {
    let mut names: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("expected.json").is_file())
        .collect();
    names.sort();
    assert!(!names.is_empty(), "{}: no expected.json", folder.display());
    for folder in names {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let expected = read(&folder.join("expected.json"));
        let tokenizer = Tokenizer::load(&folder).unwrap();
        check_tokenizer(&format!("{REAL} {name}"), &tokenizer, &expected);
        // Left there for `check_gguf.mjs --tokenizers`.
        match in_gguf(&tokenizer, &folder.join("vocabulary.gguf")) {
            Ok(inside) => {
                // llama.cpp has spaces in tokens that a text's own marks for spaces are to others.
                let mut expected = expected.clone();
                let rows = expected["rows"].as_array_mut().unwrap();
                rows.retain(|row| !row["text"].as_str().unwrap().contains('\u{2581}'));
                check_tokenizer(&format!("{REAL} {name} GGUF"), &inside, &expected);
            }
            Err(error) => eprintln!("{name}: {error}"),
        }
    }
}

/// A tokenizer of the files of a case of `tokenizer_files.py`.
pub(crate) fn of_files(reference: &Value, files: &Value) -> Result<Tokenizer, String> {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files.as_object().unwrap() {
        let shared = content == "shared";
        let content = if shared {
            &reference["shared"][name]
        } else {
            content
        };
        let text = content
            .as_str()
            .map_or_else(|| content.to_string(), str::to_owned);
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let loaded = Tokenizer::load(folder.path()).map_err(|e| e.to_string())?;
    // What is saved with a result is the same tokenizer.
    let saved = tempfile::tempdir().unwrap();
    loaded.save(saved.path()).unwrap();
    if let Ok(config) = std::fs::read(folder.path().join("config.json")) {
        std::fs::write(saved.path().join("config.json"), config).unwrap();
    }
    Tokenizer::load(saved.path()).map_err(|e| e.to_string())
}

/// Tokens, classes and templates wherever files can name them.
pub(crate) fn tokenizer_files() {
    let reference = read(&reference("tokenizer_files/ref.json"));
    let (mut cases, mut differing) = (0, Vec::new());
    for (name, case) in reference["cases"].as_object().unwrap() {
        let expected = &case["expected"];
        let tokenizer = match of_files(&reference, &case["files"]) {
            Ok(tokenizer) => tokenizer,
            Err(error) => {
                differing.push(format!("{name}: {error}"));
                continue;
            }
        };
        let mut compare = |what: &str, got: Value, expected: &Value| {
            cases += 1;
            if got != *expected {
                differing.push(format!("{name}, {what}:\n  {got}\n  {expected}"));
            }
        };
        for row in expected["rows"].as_array().unwrap() {
            let text = row[0].as_str().unwrap();
            let got = tokenizer.encode_document(text).unwrap();
            let expected_ids = ids(&row[1]);
            compare(text, json!(got), &row[1]);
            let decoded = tokenizer.decode(&expected_ids, true).unwrap();
            compare("decoded", json!(decoded), &row[2]);
        }
        compare("EOS", json!(tokenizer.eos_id()), &expected["eos_id"]);
        compare("BOS", json!(tokenizer.bos_id()), &expected["bos_id"]);
        compare("largest id", json!(tokenizer.max_id()), &expected["max_id"]);
        if let Some(chat) = expected.get("chat") {
            let messages = reference["messages"].as_array().unwrap();
            let mut options = ChatOptions::default();
            let render = |options: &ChatOptions| {
                let chat = tokenizer.chat().unwrap();
                json!(chat.render(messages, options).ok())
            };
            compare("conversation", render(&options), chat);
            options.tools = Some(reference["tools"].clone());
            let got = render(&options);
            compare("conversation with tools", got, &expected["chat_with_tools"]);
        }
    }
    check(
        "tokenizer files",
        "ids and texts that differ",
        cases,
        &differing,
    );
}

/// What a case of `templates.py` renders with.
fn options(python: &Value) -> ChatOptions {
    let mut variables: Map<String, Value> = python.as_object().unwrap().clone();
    let flag = |variables: &mut Map<String, Value>, name: &str| {
        variables.shift_remove(name).is_some_and(|v| v == true)
    };
    ChatOptions {
        add_generation_prompt: flag(&mut variables, "add_generation_prompt"),
        continue_final_message: flag(&mut variables, "continue_final_message"),
        tools: variables.shift_remove("tools"),
        variables,
    }
}

fn messages(reference: &Value, conversation: &Value) -> Vec<Value> {
    let name = conversation.as_str().unwrap();
    reference["conversations"][name].as_array().unwrap().clone()
}

fn source(folder: &Path, name: &str) -> String {
    let path = folder.join(format!("{name}.jinja"));
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn template(folder: &Path, name: &str, entry: &Value, now: i64) -> Result<ChatTemplate, String> {
    let specials: BTreeMap<String, String> =
        serde_json::from_value(entry["specials"].clone()).unwrap();
    ChatTemplate::new(&source(folder, name), specials, Path::new(name))
        .and_then(|template| template.at(now))
        .map_err(|e| e.to_string())
}

/// Renders every template of a folder over every case.
fn check_templates(folder: &Path, expected: &Path, subject: &str) {
    let reference = read(expected);
    let now = reference["now"].as_i64().unwrap();
    let (mut cases, mut differing) = (0, Vec::new());
    for (name, entry) in reference["templates"].as_object().unwrap() {
        let template = match template(folder, name, entry, now) {
            Ok(template) => template,
            Err(error) => {
                differing.push(error);
                continue;
            }
        };
        for case in entry["rendered"].as_array().unwrap() {
            let (conversation, option, expected) = (&case[0], case[1].as_str().unwrap(), &case[2]);
            let got = template.render(
                &messages(&reference, conversation),
                &options(&reference["options"][option]),
            );
            cases += 1;
            let same = match (&got, expected) {
                (Ok(text), Value::String(expected)) => text == expected,
                (Err(_), Value::Null) => true,
                _ => false,
            };
            if !same {
                let got = got.unwrap_or_else(|e| format!("refused: {e}"));
                differing.push(format!(
                    "{name}, {conversation}, {option}:\n  {got:?}\n  {:?}",
                    expected.as_str().unwrap_or("refused")
                ));
            }
        }
    }
    check(
        subject,
        "rendered conversations that differ",
        cases,
        &differing,
    );
}

/// Templates of real models, and their masks.
pub(crate) fn check_real_templates(folder: &Path) {
    let expected = folder.join("expected.json");
    let subject = format!("{REAL} templates");
    check_templates(folder, &expected, &subject);
    check_masks(folder, &read(&expected), &subject);
}

/// Every construct that the templates of real models use.
pub(crate) fn templates() {
    check_templates(
        &reference("templates"),
        &reference("templates/ref.json"),
        "chat templates",
    );
}

/// A tokenizer with the template of a file.
fn tokenizer(folder: &Path, name: &str, entry: &Value) -> Tokenizer {
    let home = reference("tokenizers").join(entry["tokenizer"].as_str().unwrap());
    let mut files = BTreeMap::new();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        files.insert(file.to_owned(), std::fs::read(home.join(file)).unwrap());
    }
    files.insert(
        "chat_template.jinja".to_owned(),
        source(folder, name).into_bytes(),
    );
    Tokenizer::from_files(files, Path::new(name)).unwrap()
}

fn row(messages: Vec<Value>) -> Row {
    Row {
        columns: Map::from_iter([("messages".to_owned(), Value::Array(messages))]),
        path: "conversations".into(),
        line: 1,
    }
}

/// Ids and mask of a conversation as a stage sees it; the mask as ones and zeros.
fn mask(
    tokenizer: &Tokenizer,
    messages: Vec<Value>,
    format: &RowFormat,
) -> Result<(Vec<u32>, String), String> {
    let encoded = encode_completions(&[row(messages)], tokenizer, format, usize::MAX, true);
    let example = encoded.map_err(|e| e.to_string())?.items.remove(0);
    let marks = example.trained.iter().map(|&t| if t { '1' } else { '0' });
    Ok((example.ids, marks.collect()))
}

fn check_masks(folder: &Path, reference: &Value, subject: &str) {
    let (mut cases, mut differing) = (0, Vec::new());
    let now = reference["now"].as_i64().unwrap();
    for (name, entry) in reference["templates"].as_object().unwrap() {
        let Some(masks) = entry["masks"].as_array() else {
            continue;
        };
        let tokenizer = tokenizer(folder, name, entry).at(now).unwrap();
        let format = RowFormat {
            chat_template_kwargs: serde_json::from_value(entry["specials"].clone()).unwrap(),
            ..RowFormat::default()
        };
        for case in masks {
            let expected = case[2].as_str().unwrap();
            // Nothing predicts the first token, so it is not a target, whatever the mask is.
            let expected = format!("0{}", expected.get(1..).unwrap_or_default());
            let got = mask(&tokenizer, messages(reference, &case[0]), &format);
            cases += 1;
            let same = match &got {
                Ok((got_ids, marks)) => *got_ids == ids(&case[1]) && *marks == expected,
                // A mask without a one is refused.
                Err(error) => {
                    !expected.contains('1') && error.contains("no token of the conversation")
                }
            };
            if !same {
                differing.push(format!(
                    "{name}, {}:\n  {got:?}\n  {} {expected}",
                    case[0], case[1]
                ));
            }
        }
    }
    check(subject, "assistant masks that differ", cases, &differing);
}

/// `return_assistant_tokens_mask`.
pub(crate) fn assistant_masks() {
    check_masks(
        &reference("templates"),
        &read(&reference("templates/ref.json")),
        "chat templates",
    );
}

/// A template without marks gives the mask of the same template with them.
pub(crate) fn prefixes_find_what_marks_say() {
    let expected = read(&reference("templates/ref.json"));
    let folder = reference("templates");
    let entry = |name: &str| &expected["templates"][name];
    let plain = tokenizer(&folder, "chatml", entry("chatml"));
    let marked = tokenizer(&folder, "chatml_marked", entry("chatml_marked"));
    let (mut cases, mut differing) = (0, Vec::new());
    for turns in [AssistantTurns::All, AssistantTurns::Last] {
        let format = RowFormat {
            assistant_turns: turns,
            ..RowFormat::default()
        };
        for name in [
            "answered",
            "turns",
            "turns_answered",
            "empty",
            "spaces",
            "unicode",
            "markup",
            "roles",
        ] {
            let messages = messages(&expected, &json!(name));
            let got = mask(&plain, messages.clone(), &format).unwrap();
            let expected = mask(&marked, messages, &format).unwrap();
            cases += 1;
            if got != expected {
                differing.push(format!("{name}, {turns:?}:\n  {got:?}\n  {expected:?}"));
            }
        }
    }
    check(
        "prefix differences",
        "assistant masks that differ",
        cases,
        &differing,
    );
}
