//! What is fuzzed: one function for each kind of file from outside. It makes files of an input, reads them as the program does, and
//! uses what was read a little. A result and an error are both fine; a panic, an abort, a hang and much memory are not.
//!
//! libFuzzer calls the functions from `fuzz/fuzz_targets/`, the project's own tests from `tests/fuzz/`.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempering::checkpoint::run_dir::read_info;
use tempering::checkpoint::{CHECKPOINTS, FileHash, StepCheckpoint};
use tempering::data::{
    AssistantTurns, ChatOptions, ChatTemplate, DataConfig, DataContext, DataSource,
    EncoderTokenizer, Tokenizer, read_rows,
};
use tempering::error::Error;
use tempering::model::weights::{self, GgufFile, WeightSource};
use tempering::model::{EncoderConfig, ModelConfig};
use tempering::peft::AdapterConfig;
use tempering::recipe;
use tempering::report::{
    StageLogs, StageRecord, StageReport, findings, write_run_report, write_stage_report,
};

/// Reads an input; the folder is empty before, and may be filled.
pub(crate) type Target = fn(&[u8], &Path);

/// All targets by name; `fuzz/seeds/` and `fuzz/regressions/` have a folder for each.
pub(crate) const TARGETS: [(&str, Target); 8] = [
    ("recipe", recipe),
    ("rows", rows),
    ("safetensors", safetensors),
    ("gguf", gguf),
    ("config", config),
    ("tokenizer", tokenizer),
    ("template", template),
    ("run", run),
];

/// Most bytes of an error message: it is for people.
const LONGEST_MESSAGE: usize = 1 << 20;

/// The value of an outcome; an error must be one that can be shown.
fn ok<T>(outcome: Result<T, Error>) -> Option<T> {
    outcome
        .inspect_err(|error| {
            let message = error.to_string();
            assert!(!message.is_empty(), "an error says nothing");
            assert!(
                message.len() < LONGEST_MESSAGE,
                "an error of {} bytes",
                message.len()
            );
        })
        .ok()
}

/// The files in an input: a line `--- NAME` begins each, for a name in `names`; what stands before the first such line is the first
/// name's.
fn files<'a>(input: &'a [u8], names: &[&'static str]) -> Vec<(&'static str, &'a [u8])> {
    let mut found = vec![(names[0], 0..0)];
    let mut at = 0;
    for line in input.split_inclusive(|&byte| byte == b'\n') {
        let end = at + line.len();
        let named = line.strip_prefix(b"--- ").map(|name| name.trim_ascii());
        let named = named.and_then(|name| names.iter().find(|known| known.as_bytes() == name));
        match (named, found.last_mut()) {
            (Some(name), _) => found.push((*name, end..end)),
            (None, Some((_, range))) => range.end = end,
            (None, None) => {}
        }
        at = end;
    }
    found.retain(|(_, range)| !range.is_empty());
    let file = |(name, range): (_, std::ops::Range<usize>)| (name, &input[range]);
    found.into_iter().map(file).collect()
}

/// Writes a file that is made anew for each input.
fn write(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).expect("the folder can be written to");
}

/// The text of a recipe, and arguments of `--set` below a line `--- set`. A recipe that is read is written and read again.
fn recipe(input: &[u8], folder: &Path) {
    let path = folder.join("recipe.ron");
    let mut sets = Vec::new();
    for (name, bytes) in files(input, &["recipe.ron", "set"]) {
        match name {
            "set" => sets.extend(String::from_utf8_lossy(bytes).lines().map(str::to_owned)),
            _ => write(&path, bytes),
        }
    }
    let Some(recipe) = ok(recipe::load(&path, &sets)) else {
        return;
    };
    let text = recipe::to_ron(&recipe);
    let again = recipe::load_text(&path, &text, &[]).expect("what is written can be read");
    assert_eq!(recipe::to_ron(&again.recipe), text);
}

/// Rows of any format that the first bytes tell.
fn rows(input: &[u8], folder: &Path) {
    let names: &[&str] = match input {
        [b'P', b'A', b'R', b'1', ..] => &["rows.parquet"],
        [0x1f, 0x8b, ..] => &["rows.jsonl.gz", "rows.csv.gz"],
        [b'[', ..] => &["rows.json"],
        [b'{', ..] => &["rows.jsonl"],
        _ => &["rows.csv", "rows.tsv", "rows.txt", "rows.jsonl"],
    };
    for name in names {
        let path = folder.join(name);
        write(&path, input);
        let config = DataConfig::of(DataSource::File(path));
        ok(read_rows(&config, &DataContext::default()));
    }
}

/// A file of weights, or an index of such files. A header alone gets its length in front and 1,024 bytes of data behind it.
fn safetensors(input: &[u8], folder: &Path) {
    if input.windows(12).any(|part| part == b"\"weight_map\"") {
        write(&folder.join("model.safetensors.index.json"), input);
        write(&folder.join("a.safetensors"), &with_data(b"{}", 0));
    } else if input.starts_with(b"{") {
        let header = input.trim_ascii_end();
        write(&folder.join("model.safetensors"), &with_data(header, 1024));
    } else {
        write(&folder.join("model.safetensors"), input);
    }
    if let Some(source) = ok(weights::open(folder)) {
        read_tensors(source.as_ref());
    }
}

fn with_data(header: &[u8], bytes: usize) -> Vec<u8> {
    let len = (header.len() as u64).to_le_bytes();
    [&len, header, &vec![0x3c; bytes]].concat()
}

fn read_tensors(source: &dyn WeightSource) {
    let names = source.names();
    for name in &names {
        source.shape(name);
        source.dtype(name);
        ok(source.read(name));
        ok(source.read_blocks(name));
        ok(source.same_values(&names[0], name));
    }
}

/// A GGUF file: its header, settings, tokenizer and tensors.
fn gguf(input: &[u8], folder: &Path) {
    let path = folder.join("model.gguf");
    write(&path, input);
    let Some(file) = ok(GgufFile::open(&path)) else {
        return;
    };
    if let Some(config) = ok(file.config()) {
        ok(weights::check(&file, &config.tensors()));
    }
    if let Some(Some(tokenizer)) = ok(file.tokenizer()) {
        encode(&tokenizer);
    }
    read_tensors(&file);
}

/// The settings of a model, of an encoder, or of an adapter.
fn config(input: &[u8], folder: &Path) {
    write(&folder.join("config.json"), input);
    write(&folder.join("adapter_config.json"), input);
    if let Some(config) = ok(ModelConfig::load(folder)) {
        config.num_params();
        config.linear_modules();
        config.backbone_tensors();
        config.classifier_tensors();
        config.eos_ids();
        config.head_layout();
        ok(config.untied());
        ok(ModelConfig::from_value(config.to_json(false)));
    }
    if let Some(config) = ok(EncoderConfig::load(folder)) {
        config.num_params();
        config.tensors();
        config.labels();
    }
    if let Some((adapter, _)) = ok(AdapterConfig::load(folder)) {
        let base = ModelConfig::from_value(base()).expect("the base is a model");
        base.adaptable_modules(&adapter.spec);
        let linear = base.linear_modules();
        let targeted: Vec<_> = linear.iter().collect();
        adapter.unused(&targeted);
        adapter.to_json();
    }
}

/// The settings of a small model.
fn base() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32, "rms_norm_eps": 1e-5,
    })
}

/// The files of a tokenizer that an input may have.
const TOKENIZER_FILES: [&str; 12] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "config.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/tool_use.jinja",
];

/// The files of a tokenizer, `tokenizer.json` if no other is named.
fn tokenizer(input: &[u8], folder: &Path) {
    fs::create_dir(folder.join("additional_chat_templates")).expect("the folder is empty");
    let files = files(input, &TOKENIZER_FILES);
    for (name, bytes) in &files {
        write(&folder.join(name), bytes);
    }
    // A vocabulary alone names no end of texts.
    if !files
        .iter()
        .any(|(name, _)| *name == "tokenizer_config.json")
    {
        let config = br#"{"eos_token": "</s>", "add_bos_token": true, "bos_token": "</s>"}"#;
        write(&folder.join("tokenizer_config.json"), config);
    }
    if let Some(tokenizer) = ok(Tokenizer::load(folder)) {
        encode(&tokenizer);
        if let Some(chat) = ok(tokenizer.chat()) {
            converse(chat, &conversation());
        }
        tokenizer.vocab_size();
        ok(tokenizer.check_embedding(64));
    }
    if let Some(tokenizer) = ok(EncoderTokenizer::load(folder, 64, 32)) {
        for text in TEXTS {
            ok(tokenizer.encode(text, None));
            ok(tokenizer.encode(text, Some("a second text")));
        }
    }
}

/// Texts with what tokenizers treat in a special way.
const TEXTS: [&str; 5] = [
    "",
    "Hello, wörld! 123 it's\n\n  two</s> lines\r\n\tx",
    "e\u{301}\u{1f468}\u{200d}\u{1f469} \u{fdfa}\u{130}\u{0}\u{3000}日本語",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!",
    "<s>[INST] <|im_start|> \u{2581}x\u{2581}\u{2581}",
];

fn encode(tokenizer: &Tokenizer) {
    for text in TEXTS {
        ok(tokenizer.encode_with_offsets(text));
        ok(tokenizer.encode_document(text));
        if let Some(ids) = ok(tokenizer.encode(text, true)) {
            ok(tokenizer.decode(&ids, true));
            ok(tokenizer.decode(&ids, false));
        }
    }
    let ids: Vec<u32> = (0..32).collect();
    ok(tokenizer.decode(&ids, false));
}

/// A chat template, and messages below a line `--- messages`.
fn template(input: &[u8], folder: &Path) {
    let mut source = String::new();
    let mut messages = conversation();
    for (name, bytes) in files(input, &["template", "messages"]) {
        match name {
            "template" => source.push_str(&String::from_utf8_lossy(bytes)),
            _ => messages = serde_json::from_slice(bytes).unwrap_or(messages),
        }
    }
    let specials = [("bos_token".to_owned(), "<s>".to_owned())];
    let path = folder.join("chat_template.jinja");
    if let Some(chat) = ok(ChatTemplate::new(&source, specials.into(), &path)) {
        converse(&chat, &messages);
    }
}

fn conversation() -> Vec<Value> {
    let call = json!([{"type": "function", "function": {"name": "f", "arguments": {"x": 1.5}}}]);
    vec![
        json!({"role": "system", "content": "Be brief."}),
        json!({"role": "user", "content": "Hi\nthere"}),
        json!({"role": "assistant", "content": null, "tool_calls": call}),
        json!({"role": "tool", "content": [{"type": "text", "text": "é"}]}),
        json!({"role": "assistant", "content": "Yes.", "reasoning_content": "hm"}),
    ]
}

fn converse(chat: &ChatTemplate, messages: &[Value]) {
    let Some(chat) = ok(chat.at(951_782_400)) else {
        return;
    };
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
    for options in [
        ChatOptions::default(),
        ChatOptions {
            add_generation_prompt: true,
            tools: Some(tools),
            ..ChatOptions::default()
        },
        ChatOptions {
            continue_final_message: true,
            ..ChatOptions::default()
        },
    ] {
        ok(chat.render(messages, &options));
    }
    let options = ChatOptions::default();
    ok(chat.assistant_spans(messages, &options, AssistantTurns::All));
}

/// The files of a run that an input may have: its own, those of its stage, and those of the stage's checkpoint.
const RUN_FILES: [&str; 10] = [
    "metrics.jsonl",
    "timing.jsonl",
    "samples.jsonl",
    "stage.json",
    "DONE",
    "run.json",
    "recipe.ron",
    "weights.safetensors",
    "optim.safetensors",
    "state.json",
];

/// The files of a run, `metrics.jsonl` if no other is named. The checkpoint's checksums are right: what is behind them is read.
fn run(input: &[u8], folder: &Path) {
    let stage = folder.join("sft");
    let checkpoint = stage.join(CHECKPOINTS).join("step-000001");
    fs::create_dir_all(&checkpoint).expect("the folder is empty");
    write(&folder.join("recipe.ron"), RECIPE.as_bytes());
    write(&stage.join("stage.json"), b"{}");
    let whole = with_data(
        br#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#,
        8,
    );
    write(&checkpoint.join("weights.safetensors"), &whole);
    write(&checkpoint.join("optim.safetensors"), &whole);
    write(&checkpoint.join("state.json"), br#"{"step": 1}"#);
    for (name, bytes) in files(input, &RUN_FILES) {
        let folder = match name {
            "run.json" | "recipe.ron" => folder,
            "state.json" | "weights.safetensors" | "optim.safetensors" => &checkpoint,
            _ => &stage,
        };
        write(&folder.join(name), bytes);
    }
    let mut marker = String::new();
    for name in ["weights.safetensors", "optim.safetensors", "state.json"] {
        let hash = FileHash::of(checkpoint.join(name), None).expect("the file was written");
        marker.push_str(&format!("{}  {name}\n", hash.sha256));
    }
    write(&checkpoint.join("COMPLETE"), marker.as_bytes());
    ok(StepCheckpoint::<Value>::load(&checkpoint));
    ok(read_info(folder));
    let (record, logs) = (StageRecord::read(&stage), StageLogs::read(&stage));
    if let (Some(Some(record)), Some(logs)) = (ok(record), ok(logs)) {
        findings(&logs.metrics);
        record.closing_text(&logs.samples);
        let report = StageReport {
            title: "sft",
            record: &record,
            logs: &logs,
            next_command: "",
        };
        ok(write_stage_report(&stage, &report));
    }
    if let Some(recipe) = ok(recipe::load(&folder.join("recipe.ron"), &[]))
        && let Some(report) = ok(recipe::run_report(&recipe, folder, false))
    {
        ok(write_run_report(folder, &report));
    }
}

/// A recipe with the stage `sft`.
const RECIPE: &str = r#"(name: "r", model: "tiny", stages: [Sft(name: "sft", data: (source: Posts(rows: 8, seed: 1)), batch_size: 4)])"#;
