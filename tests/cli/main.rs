//! The real binary: its numbers against transformers', its files, its messages and exit codes.

mod chat;
mod combine;
mod data;
mod elo;
mod encoders;
mod hub;
mod label;
mod new;
mod report;
mod serve;
mod soak;
mod sources;
mod stages;
mod watch;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tempering::model::ModelConfig;
use tempering::model::weights::{self, RandomSource, WeightSource, write_safetensors};
use tempering::peft::saved_key;
use tempering::rng::Seed;

#[cfg(all(feature = "flex", feature = "ndarray"))]
const BACKENDS: [&str; 2] = ["flex", "ndarray"];

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn reference_dir(name: &str) -> PathBuf {
    repository().join("tests/reference").join(name)
}

fn reference(name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(reference_dir(name).join("ref.json")).unwrap())
        .unwrap()
}

fn temper(folder: &Path, args: &str) -> Output {
    command(folder, args).output().unwrap()
}

/// Arguments are split at spaces; `REF` stands for the folder of the reference models.
fn command(folder: &Path, args: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_temper"));
    command
        .current_dir(folder)
        .env("TEMPERING_HOME", folder.join("home"));
    let reference = repository().join("tests/reference");
    command.args(
        args.split_whitespace()
            .map(|arg| arg.replace("REF", reference.to_str().unwrap())),
    );
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[track_caller]
fn succeed(folder: &Path, args: &str) -> String {
    let output = temper(folder, args);
    assert!(output.status.success(), "{args}: {}", stderr(&output));
    stdout(&output)
}

/// Runs what must fail: the exit code, each part of the message, and no panic.
#[track_caller]
fn fail(folder: &Path, args: &str, code: i32, parts: &[&str]) -> String {
    let output = temper(folder, args);
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{args}: {message}");
    for part in parts {
        assert!(
            message.contains(part),
            "{args}: expected {part:?} in {message}"
        );
    }
    assert!(!message.contains("panicked"), "{message}");
    message
}

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn write_rows(path: PathBuf, rows: &[Value]) {
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    fs::write(path, text).unwrap();
}

/// The rows of a reference as a data file.
fn reference_rows(folder: &Path, name: &str) -> Vec<Value> {
    let rows = reference(name)["rows"].as_array().unwrap().clone();
    let objects: Vec<Value> = rows.iter().map(|ids| json!({ "input_ids": ids })).collect();
    write_rows(folder.join("rows.jsonl"), &objects);
    rows
}

#[track_caller]
fn assert_near(got: &Value, expected: &Value, tolerance: f64) {
    match (got, expected) {
        (Value::Array(got), Value::Array(expected)) => {
            assert_eq!(got.len(), expected.len());
            got.iter()
                .zip(expected)
                .for_each(|(got, expected)| assert_near(got, expected, tolerance));
        }
        _ => {
            let (got, expected) = (got.as_f64().unwrap(), expected.as_f64().unwrap());
            assert!(
                (got - expected).abs() <= tolerance,
                "{got} instead of {expected}"
            );
        }
    }
}

/// A small llama with random weights and the tokenizer of the tiny model.
fn text_model(folder: &Path) -> PathBuf {
    let dir = folder.join("text-model");
    fs::create_dir(&dir).unwrap();
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    ] {
        fs::copy(repository().join("models/tiny").join(name), dir.join(name)).unwrap();
    }
    let tiny: Value = serde_json::from_str(
        &fs::read_to_string(repository().join("models/tiny/config.json")).unwrap(),
    )
    .unwrap();
    let config = json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 256,
        "initializer_range": 0.3, "tie_word_embeddings": true, "vocab_size": tiny["vocab_size"],
        "eos_token_id": tiny["eos_token_id"], "pad_token_id": tiny["eos_token_id"]
    });
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let config = ModelConfig::from_value(config).unwrap();
    let source = RandomSource::new(&config, Seed::new(3));
    write_all(&dir.join("model.safetensors"), &source, &[]);
    dir
}

/// Copies all tensors of a source but the score head, and adds some.
fn write_all(path: &Path, source: &dyn WeightSource, more: &[(String, Vec<usize>, Vec<f32>)]) {
    let mut tensors: Vec<_> = source
        .names()
        .into_iter()
        .filter(|name| name != "score.weight")
        .map(|name| {
            let (shape, values) = (source.shape(&name).unwrap(), source.read(&name).unwrap());
            (name, shape, values)
        })
        .collect();
    tensors.extend_from_slice(more);
    write_safetensors(path, &tensors).unwrap();
}

fn score_weight(name: &str) -> Vec<f32> {
    serde_json::from_value(reference(name)["sequence_classification"]["score_weight"].clone())
        .unwrap()
}

/// `name` with its reference's score head, as a classification checkpoint.
fn classifier(folder: &Path, name: &str) -> PathBuf {
    let dir = folder.join("classifier");
    fs::create_dir(&dir).unwrap();
    let score = score_weight(name);
    let config = ModelConfig::load(reference_dir(name)).unwrap();
    fs::write(dir.join("config.json"), config.to_json(true).to_string()).unwrap();
    let source = weights::open(reference_dir(name)).unwrap();
    let head = ("score.weight".to_owned(), vec![1, score.len()], score);
    write_all(&dir.join("model.safetensors"), source.as_ref(), &[head]);
    dir
}

#[cfg(all(feature = "flex", feature = "ndarray"))]
#[test]
fn logprobs_are_those_of_transformers() {
    let temp = tempfile::tempdir().unwrap();
    for (name, args) in [
        ("llama_tied", "--model REF/llama_tied"),
        ("qwen3", "--model REF/qwen3"),
        ("gpt2", "--model REF/gpt2/model.safetensors"),
        ("qwen2", "--model REF/qwen2"),
        ("gpt_neox", "--model REF/gpt_neox"),
        ("opt_post", "--model REF/opt_post"),
        (
            "llama_lora",
            "--model REF/llama_tied --adapter REF/llama_lora",
        ),
        ("gpt2_lora", "--model REF/gpt2 --adapter REF/gpt2_lora"),
        (
            "gpt_neox_lora",
            "--model REF/gpt_neox --adapter REF/gpt_neox_lora",
        ),
        // A single adapter names its base, which is in the folder beside it.
        ("llama_lora", "--model REF/llama_lora"),
        ("opt_lora", "--model REF/opt_lora"),
    ] {
        let rows = reference_rows(temp.path(), name);
        for backend in BACKENDS {
            succeed(
                temp.path(),
                &format!(
                    "logprobs {args} --data rows.jsonl --output out.jsonl --backend {backend} --threads 1"
                ),
            );
            let answers = lines(&fs::read_to_string(temp.path().join("out.jsonl")).unwrap());
            assert_eq!(answers.len(), rows.len());
            for (index, answer) in answers.iter().enumerate() {
                let expected = &reference(name)["token_logprobs"][index];
                assert_eq!(answer["input_ids"], rows[index]);
                assert_near(&answer["logprobs"], expected, 1e-4);
                let sum: f64 = expected
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|x| x.as_f64().unwrap())
                    .sum();
                assert_near(&answer["sum"], &json!(sum), 1e-3);
            }
        }
    }
    let left: Vec<_> = fs::read_dir(temp.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left.len(), 2, "rows.jsonl and out.jsonl alone: {left:?}");
}

#[test]
fn scores_are_those_of_transformers_less_the_offset() {
    let temp = tempfile::tempdir().unwrap();
    for name in ["llama_tied", "gpt2", "gpt_neox", "opt_post"] {
        reference_rows(temp.path(), name);
        let dir = classifier(temp.path(), name);
        let expected = reference(name)["sequence_classification"]["scores"].clone();
        let scores = |args: &str| -> Value {
            let text = succeed(
                temp.path(),
                &format!("score {args} --data rows.jsonl --output -"),
            );
            lines(&text)
                .iter()
                .map(|answer| answer["score"].clone())
                .collect()
        };
        assert_near(&scores("--model classifier"), &expected, 1e-4);
        let mut config: Value =
            serde_json::from_str(&fs::read_to_string(dir.join("config.json")).unwrap()).unwrap();
        config["score_offset"] = json!(0.25);
        fs::write(dir.join("config.json"), config.to_string()).unwrap();
        let shifted: Value = expected
            .as_array()
            .unwrap()
            .iter()
            .map(|x| x.as_f64().unwrap() - 0.25)
            .collect();
        assert_near(&scores("--model classifier"), &shifted, 1e-4);
        fs::remove_dir_all(dir).unwrap();
    }
}

/// The LoRA of `llama_lora` with B set to zero and the reference's score head: it scores as the base does.
fn score_adapter(folder: &Path) -> PathBuf {
    let dir = folder.join("score-adapter");
    fs::create_dir(&dir).unwrap();
    let mut config: Value = serde_json::from_str(
        &fs::read_to_string(reference_dir("llama_lora").join("adapter_config.json")).unwrap(),
    )
    .unwrap();
    config["task_type"] = json!("SEQ_CLS");
    config["modules_to_save"] = json!(["score"]);
    config["base_model_name_or_path"] = json!(reference_dir("llama_tied").to_str().unwrap());
    fs::write(dir.join("adapter_config.json"), config.to_string()).unwrap();
    let source =
        weights::open(reference_dir("llama_lora").join("adapter_model.safetensors")).unwrap();
    let mut tensors: Vec<_> = source
        .names()
        .into_iter()
        .map(|name| {
            let (shape, mut values) = (source.shape(&name).unwrap(), source.read(&name).unwrap());
            if name.contains("lora_B") {
                values.fill(0.0);
            }
            (name, shape, values)
        })
        .collect();
    let score = score_weight("llama_tied");
    tensors.push((saved_key("score.weight"), vec![1, score.len()], score));
    write_safetensors(dir.join("adapter_model.safetensors"), &tensors).unwrap();
    dir
}

#[test]
fn an_adapter_brings_its_score_head_and_offset() {
    let temp = tempfile::tempdir().unwrap();
    reference_rows(temp.path(), "llama_tied");
    let dir = score_adapter(temp.path());
    let expected = reference("llama_tied")["sequence_classification"]["scores"].clone();
    let scores = |args: &str| -> Value {
        let text = succeed(
            temp.path(),
            &format!("score {args} --data rows.jsonl --output -"),
        );
        lines(&text)
            .iter()
            .map(|answer| answer["score"].clone())
            .collect()
    };
    assert_near(
        &scores("--model REF/llama_tied --adapter score-adapter"),
        &expected,
        2e-4,
    );
    fs::write(dir.join("tempering.json"), r#"{"score_offset": -1.5}"#).unwrap();
    let shifted: Value = expected
        .as_array()
        .unwrap()
        .iter()
        .map(|x| x.as_f64().unwrap() + 1.5)
        .collect();
    assert_near(&scores("--model score-adapter"), &shifted, 1e-4);
    fail(
        temp.path(),
        "score --model REF/llama_tied --data rows.jsonl --output -",
        1,
        &["llama_tied", "not a reward model: there is no score.weight"],
    );
}

#[test]
fn usage_errors_exit_with_two() {
    let temp = tempfile::tempdir().unwrap();
    reference_rows(temp.path(), "llama_tied");
    let folder = temp.path();
    fail(
        folder,
        "logprobs --model REF/llama_tied --data rows.jsonl",
        2,
        &["--output"],
    );
    fail(folder, "teach", 2, &["unrecognized subcommand 'teach'"]);
    fail(
        folder,
        "logprobs --model nobody --data rows.jsonl --output -",
        2,
        &["nobody", "smollm2-135m"],
    );
    fail(
        folder,
        "logprobs --model REF/nobody --data rows.jsonl --output -",
        2,
        &["no such file or folder"],
    );
    fail(
        folder,
        "logprobs --model REF/gpt2 --data rows.jsonl --output no/such/out.jsonl",
        2,
        &["no/such/out.jsonl"],
    );
    fail(
        folder,
        "logprobs --model REF/gpt2 --adapter REF/qwen3 --data rows.jsonl --output -",
        2,
        &["adapter_config.json"],
    );
    fail(
        folder,
        "logprobs --model REF/gpt2 --data rows.jsonl --output - --backend ndarray --device 3",
        2,
        &["--device 3"],
    );
    fail(
        folder,
        "export --run . --stage sft --to out",
        2,
        &["there is no stage sft"],
    );
}

/// `--output` goes where a link points and into a FIFO, and neither is replaced.
#[cfg(unix)]
#[test]
fn outputs_go_into_what_stands_there() {
    use std::os::unix::fs::{FileTypeExt, symlink};
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    reference_rows(folder, "llama_tied");
    let arguments = "logprobs --model REF/llama_tied --data rows.jsonl --output";
    let expected = succeed(folder, &format!("{arguments} -"));
    symlink("answers.jsonl", folder.join("link")).unwrap();
    succeed(folder, &format!("{arguments} link"));
    assert!(folder.join("link").is_symlink());
    let written = fs::read_to_string(folder.join("answers.jsonl")).unwrap();
    assert_eq!(written, expected);
    let fifo = folder.join("fifo");
    assert!(
        Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    let from = fifo.clone();
    let reader = std::thread::spawn(move || fs::read_to_string(from).unwrap());
    succeed(folder, &format!("{arguments} fifo"));
    assert!(fs::metadata(&fifo).unwrap().file_type().is_fifo());
    assert_eq!(reader.join().unwrap(), expected);
    assert_eq!(
        succeed(folder, &format!("{arguments} /dev/stdout")),
        expected
    );
}

/// `export --to` a link to a folder fills that folder; what is no folder is refused before anything is read.
#[cfg(unix)]
#[test]
fn exports_go_where_a_link_points() {
    use std::os::unix::fs::symlink;
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    run_with_adapter(folder, &reference_dir("gpt2_lora"));
    fs::create_dir(folder.join("real")).unwrap();
    for (to, link) in [
        ("real", "link"),
        ("nowhere", "dangling"),
        ("/dev/null", "device"),
    ] {
        symlink(to, folder.join(link)).unwrap();
    }
    let arguments = "export --run run --stage sft --to";
    succeed(folder, &format!("{arguments} link"));
    assert!(folder.join("link").is_symlink());
    assert!(folder.join("real/adapter_config.json").is_file());
    for link in ["dangling", "device"] {
        fail(folder, &format!("{arguments} {link}"), 2, &[link, "folder"]);
        assert!(folder.join(link).is_symlink());
    }
}

#[cfg(not(feature = "wgpu"))]
#[test]
fn a_backend_that_is_not_compiled_in_is_one_line_with_the_feature() {
    let temp = tempfile::tempdir().unwrap();
    reference_rows(temp.path(), "llama_tied");
    let message = fail(
        temp.path(),
        "logprobs --model REF/llama_tied --data rows.jsonl --output - --backend wgpu",
        2,
        &["backend wgpu is not in this binary", "--features vulkan"],
    );
    assert_eq!(message.lines().count(), 1, "{message}");
    // A plan for a backend that is not compiled in is an error; other problems are reported with it.
    let recipe = repository().join("recipes/quickstart.ron");
    let dry_run = format!(
        "recipe {} --dry-run --no-time --backend wgpu",
        recipe.display()
    );
    let parts = ["backend wgpu is not in this binary", "--features vulkan"];
    let message = fail(temp.path(), &dry_run, 2, &parts);
    assert_eq!(message.lines().count(), 1, "{message}");
    let needs = ["--backend: backend wgpu is not", "stages.sft: needs an"];
    fail(
        temp.path(),
        &format!("{dry_run} --device-memory 1MiB"),
        2,
        &needs,
    );
}

#[test]
fn the_memory_that_a_run_may_take_can_be_given() {
    let temp = tempfile::tempdir().unwrap();
    let recipe = repository().join("recipes/quickstart.ron");
    let dry_run = format!("recipe {} --dry-run --no-time", recipe.display());
    let plan = succeed(temp.path(), &dry_run);
    assert!(
        plan.contains("memory available on this machine: "),
        "{plan}"
    );
    let plan = succeed(temp.path(), &format!("{dry_run} --device-memory 1.5GiB"));
    assert!(
        plan.contains("memory available by --device-memory: 1.50 GiB"),
        "{plan}"
    );
    fail(
        temp.path(),
        &format!("{dry_run} --device-memory 100MB"),
        2,
        &[
            "stages.ppo: needs an estimated",
            "but 95.37 MiB are given by --device-memory",
            "--device-memory SIZE overrides what was measured",
        ],
    );
    fail(
        temp.path(),
        &format!("{dry_run} --device-memory much"),
        2,
        &["24GiB"],
    );
}

#[test]
fn bad_data_is_named_by_file_and_line() {
    let temp = tempfile::tempdir().unwrap();
    let check = |bytes: &[u8], parts: &[&str]| {
        fs::write(temp.path().join("rows.jsonl"), bytes).unwrap();
        fail(
            temp.path(),
            "logprobs --model REF/llama_tied --data rows.jsonl --output -",
            1,
            parts,
        );
    };
    let good = "{\"input_ids\": [1, 2, 3]}\n".repeat(56);
    check(
        format!("{good}{{\"input_ids\": [1,\n{good}").as_bytes(),
        &["rows.jsonl:57", "bad JSON"],
    );
    check(
        &[good.as_bytes(), b"{\"input_ids\": \"\xff\"}\n"].concat(),
        &["rows.jsonl:57", "UTF-8", "0xff"],
    );
    check(
        b"{\"input_ids\": [1, 64]}\n",
        &["rows.jsonl:1", "token id 64", "0 to 63"],
    );
    check(
        b"{\"input_ids\": [1]}\n{\"input_ids\": []}\n",
        &["rows.jsonl:2", "input_ids is empty"],
    );
    check(b"{\"input_ids\": [1, -2]}\n", &["rows.jsonl:1", "-2"]);
    check(
        b"{\"input_ids\": \"1 2\"}\n",
        &["rows.jsonl:1", "a list of token ids"],
    );
    check(
        b"{\"prompt\": \"a\", \"completion\": \"b\"}\n",
        &["llama_tied", "no tokenizer"],
    );
    check(b"", &["rows.jsonl", "no rows"]);
    let long: Vec<u32> = vec![1; 65];
    check(
        json!({ "input_ids": long }).to_string().as_bytes(),
        &["rows.jsonl:1", "65 tokens", "at most 64"],
    );
    fail(
        temp.path(),
        "logprobs --model REF/llama_tied --data missing.jsonl --output -",
        1,
        &["cannot read missing.jsonl"],
    );
}

/// Output of the check of a recipe with the stages `stages` on the file `rows.jsonl`.
fn checked(folder: &Path, stages: &str, rows: &[u8]) -> Output {
    if !folder.join("m").exists() {
        fs::create_dir(folder.join("m")).unwrap();
        for entry in fs::read_dir(repository().join("models/tiny")).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, folder.join("m").join(path.file_name().unwrap())).unwrap();
        }
        let template =
            "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}";
        fs::write(folder.join("m/chat_template.jinja"), template).unwrap();
    }
    fs::write(folder.join("rows.jsonl"), rows).unwrap();
    let stages = stages.replace("DATA", "data: (source: Jsonl(\"rows.jsonl\"))");
    let recipe = format!("(name: \"r\", model: \"m\", stages: [{stages}])");
    fs::write(folder.join("r.ron"), recipe).unwrap();
    temper(folder, "recipe r.ron --dry-run --no-time")
}

const SFT: &str = "Sft(name: \"s\", DATA, batch_size: 1)";
const DPO: &str = "Dpo(name: \"s\", init: Base, DATA, batch_size: 1)";

/// Every row of every stage is checked before the first stage begins, with readable messages.
#[test]
fn bad_rows_are_found_before_the_first_stage() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    let pair = r#"{"prompt":"a","chosen":" b","rejected":" c"}"#;
    let late = format!(
        "{}{{\"prompt\":\"a\",\"chosen\":\" b\"}}\n",
        format!("{pair}\n").repeat(150)
    );
    let dialogue = |role: &str| {
        let say = |role: &str| format!("{{\"role\":\"{role}\",\"content\":\"x\"}}");
        format!("{{\"messages\":[{},{}]}}\n", say("user"), say(role))
    };
    let odd = format!("{}{}", dialogue("assistant").repeat(200), dialogue("gpt"));
    let cases: [(&str, &[u8], &str); 12] = [
        (DPO, late.as_bytes(), "rows.jsonl:151: expected `chosen` and `rejected`"),
        (
            SFT,
            b"{\"prompt\":\"a\",\"completion\":null}\n",
            "rows.jsonl:1: column `completion` is null",
        ),
        (
            SFT,
            b"{\"prompt\":\"x \\ud83d y\",\"completion\":\" b\"}\n",
            "rows.jsonl:1: lone surrogate \\ud83d at column 14",
        ),
        (
            SFT,
            b"{\"prompt\":\"a\",\"prompt\":\"b\",\"completion\":\"c\"}\n",
            "rows.jsonl:1: the key `prompt` stands twice",
        ),
        (SFT, odd.as_bytes(), "rows.jsonl:201: no token of the conversation is trained on: it has no assistant turn; its roles are user, gpt"),
        (
            DPO,
            b"{\"prompt\":\"a\",\"chosen\":\" s\",\"rejected\":\" s\"}\n",
            "of 1, 1 is with `chosen` and `rejected` equal",
        ),
        (
            SFT,
            b"{\"messages\":[]}\n",
            "column `messages`: the list of messages is empty",
        ),
        (
            SFT,
            b"{\"messages\":[{\"content\":\"x\"}]}\n",
            "found an object without a role at position 1",
        ),
        (
            SFT,
            b"prompt,completion\na,b\n",
            "found what looks like CSV: its first line is `prompt,completion`",
        ),
        (SFT, b"\xff\xfe{\0}\0", "found UTF-16 or UTF-32"),
        (SFT, b"", "rows.jsonl: no rows: the file is empty"),
        (
            SFT,
            b"{\"prompt\":1,\"completion\":\"c\"}\n{\"prompt\":2,\"completion\":\"c\"}\n{\"prompt\":3,\"completion\":\"c\"}\n",
            "rows.jsonl:1: column `prompt`: expected a string or a list of messages, found a number (2 more rows like it, the last is 3)",
        ),
    ];
    for (stage, rows, part) in cases {
        let output = checked(folder, stage, rows);
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.contains(part), "expected {part:?} in {message}");
        assert!(message.contains("1 problem in r.ron"), "{message}");
    }
    // One array of rows, a byte-order mark, line ends of Windows.
    for rows in [
        "[{\"prompt\":\"a\",\"completion\":\" b\"},\r\n{\"prompt\":\"c\",\"completion\":\" d\"}]",
        "\u{feff}{\"prompt\":\"a\",\"completion\":\" b\"}\r\n\r\n{\"prompt\":\"c\",\"completion\":\" d\"}\r\n",
    ] {
        let output = checked(folder, SFT, rows.as_bytes());
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(stderr(&output), "");
    }
    // Problems of the recipe's own keys are reported at these keys.
    let missing = checked(
        folder,
        &SFT.replace("DATA", "data: (source: Jsonl(\"data/x.jsonl\"))"),
        b"",
    );
    let message = stderr(&missing);
    let part = "stages.s.data.source: cannot read data/x.jsonl: No such file";
    assert!(message.contains(part), "{message}");
    let slip = "data: (source: Jsonl(\"rows.jsonl\"), format: (prompt: \"{{ promt }}\"))";
    let row = b"{\"prompt\":\"a\",\"completion\":\" b\"}\n";
    let message = stderr(&checked(folder, &SFT.replace("DATA", slip), row));
    let part = "format.prompt names `promt`, which the row lacks; it has the columns `prompt`, `completion`";
    assert!(message.contains(part), "{message}");
}

/// `use_margin` without margins is an error, margins without it a warning.
#[test]
fn margins_are_not_ignored_without_a_word() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    let stage = |use_margin: bool| {
        format!(
            "RewardModel(name: \"s\", init: Base, DATA, batch_size: 1, use_margin: {use_margin})"
        )
    };
    let rows = |margin: &str| {
        let row = |i: usize, margin: &str| {
            format!("{{\"prompt\":\"p{i}\",\"chosen\":\" good\",\"rejected\":\" bad\"{margin}}}\n")
        };
        format!("{}{}", row(1, margin), row(2, ""))
    };
    let with = ",\"margin\":1.5";
    let output = checked(folder, &stage(true), rows("").as_bytes());
    assert_eq!(output.status.code(), Some(2));
    let message = stderr(&output);
    assert!(
        message.contains("stages.s.use_margin: no row of the data has a column `margin`"),
        "{message}"
    );
    for (use_margin, margin, warning) in [
        (false, "", None),
        (
            false,
            with,
            Some(
                "stages.s.data: 1 of 2 rows have a `margin`, which is not used without `use_margin: true`",
            ),
        ),
        (
            true,
            with,
            Some("stages.s.use_margin: 1 of 2 rows have no `margin`; theirs is taken as 0"),
        ),
    ] {
        let output = checked(folder, &stage(use_margin), rows(margin).as_bytes());
        let said = stderr(&output);
        assert!(output.status.success(), "{said}");
        match warning {
            None => assert_eq!(said, ""),
            Some(part) => assert!(
                said.starts_with("warning: ") && said.contains(part),
                "{said}"
            ),
        }
    }
}

#[test]
fn bad_weights_are_named_by_file_and_tensor() {
    let temp = tempfile::tempdir().unwrap();
    reference_rows(temp.path(), "llama_tied");
    let dir = temp.path().join("broken");
    fs::create_dir(&dir).unwrap();
    let config = fs::read_to_string(reference_dir("llama_tied").join("config.json")).unwrap();
    fs::write(dir.join("config.json"), &config).unwrap();
    let args = "logprobs --model broken --data rows.jsonl --output -";
    let bytes = fs::read(reference_dir("llama_tied").join("model.safetensors")).unwrap();
    fs::write(dir.join("model.safetensors"), &bytes[..bytes.len() - 100]).unwrap();
    fail(temp.path(), args, 1, &["broken/model.safetensors"]);
    fs::write(dir.join("model.safetensors"), &bytes[..5]).unwrap();
    fail(temp.path(), args, 1, &["broken/model.safetensors"]);
    fs::write(dir.join("model.safetensors"), &bytes).unwrap();
    fs::write(
        dir.join("config.json"),
        config.replace("\"intermediate_size\": 48", "\"intermediate_size\": 44"),
    )
    .unwrap();
    fail(
        temp.path(),
        args,
        1,
        &[
            "model.layers.1.mlp.down_proj.weight",
            "expected shape [32, 44], found [32, 48]",
            "6 problems",
        ],
    );
    fs::write(dir.join("config.json"), "{\"model_type\": ").unwrap();
    fail(
        temp.path(),
        args,
        1,
        &["broken/config.json", "not valid JSON"],
    );
    fs::remove_file(dir.join("config.json")).unwrap();
    fail(temp.path(), args, 1, &["broken/config.json"]);
}

/// A run folder whose stage `sft` has the adapter `from`.
fn run_with_adapter(folder: &Path, from: &Path) {
    let to = folder.join("run/sft/adapter");
    fs::create_dir_all(&to).unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(from.join(name), to.join(name)).unwrap();
    }
    let mut config: Value =
        serde_json::from_str(&fs::read_to_string(to.join("adapter_config.json")).unwrap()).unwrap();
    // The references name their base by its folder's name.
    let base = reference_dir(config["base_model_name_or_path"].as_str().unwrap());
    config["base_model_name_or_path"] = json!(base.to_str().unwrap());
    fs::write(to.join("adapter_config.json"), config.to_string()).unwrap();
}

#[test]
fn a_merged_export_is_the_model_with_its_adapter() {
    for name in ["gpt_neox_lora", "opt_lora", "llama_lora"] {
        merged_export(name);
    }
}

fn merged_export(name: &str) {
    let temp = tempfile::tempdir().unwrap();
    reference_rows(temp.path(), name);
    run_with_adapter(temp.path(), &reference_dir(name));
    let said = succeed(
        temp.path(),
        "export --run run --stage sft --to merged --merge",
    );
    assert!(
        said.contains("largest log-probability difference"),
        "{said}"
    );
    succeed(temp.path(), "export --run run --stage sft --to copied");
    for model in ["merged", "copied"] {
        let text = succeed(
            temp.path(),
            &format!("logprobs --model {model} --data rows.jsonl --output -"),
        );
        for (index, answer) in lines(&text).iter().enumerate() {
            assert_near(
                &answer["logprobs"],
                &reference(name)["token_logprobs"][index],
                1e-4,
            );
        }
    }
    assert!(temp.path().join("copied/adapter_config.json").is_file());
    assert!(!temp.path().join("merged/adapter_config.json").exists());
    fail(
        temp.path(),
        "export --run run --stage sft --to merged",
        2,
        &["merged", "not empty"],
    );
    let mut left: Vec<_> = fs::read_dir(temp.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["copied", "merged", "rows.jsonl", "run"]);
}

#[test]
fn a_merged_reward_model_scores_as_its_adapter_does() {
    let temp = tempfile::tempdir().unwrap();
    reference_rows(temp.path(), "llama_tied");
    let adapter = score_adapter(temp.path());
    run_with_adapter(temp.path(), &adapter);
    fs::write(
        temp.path().join("run/sft/adapter/tempering.json"),
        r#"{"score_offset": 0.5}"#,
    )
    .unwrap();
    succeed(
        temp.path(),
        "export --run run --stage sft --to merged --merge",
    );
    let score = |model: &str| -> Value {
        let text = succeed(
            temp.path(),
            &format!("score --model {model} --data rows.jsonl --output -"),
        );
        lines(&text)
            .iter()
            .map(|answer| answer["score"].clone())
            .collect()
    };
    assert_near(&score("merged"), &score("run/sft/adapter"), 1e-5);
    let expected = reference("llama_tied")["sequence_classification"]["scores"].clone();
    let shifted: Value = expected
        .as_array()
        .unwrap()
        .iter()
        .map(|x| x.as_f64().unwrap() - 0.5)
        .collect();
    assert_near(&score("merged"), &shifted, 1e-4);
    let config: Value =
        serde_json::from_str(&fs::read_to_string(temp.path().join("merged/config.json")).unwrap())
            .unwrap();
    assert_eq!(
        config["architectures"],
        json!(["LlamaForSequenceClassification"])
    );
    assert_eq!(config["score_offset"], json!(0.5));
}

#[test]
fn an_exported_classifier_does_not_pad_with_eos() {
    let temp = tempfile::tempdir().unwrap();
    let dir = classifier(temp.path(), "llama_tied");
    let stage = temp.path().join("run/rm/model");
    fs::create_dir_all(&stage).unwrap();
    let mut config: Value =
        serde_json::from_str(&fs::read_to_string(dir.join("config.json")).unwrap()).unwrap();
    for (pad, expected) in [(json!(0), Value::Null), (json!(7), json!(7))] {
        config["pad_token_id"] = pad; // the model's EOS is 0
        fs::write(stage.join("config.json"), config.to_string()).unwrap();
        fs::copy(
            dir.join("model.safetensors"),
            stage.join("model.safetensors"),
        )
        .unwrap();
        succeed(temp.path(), "export --run run --stage rm --to out");
        let written: Value =
            serde_json::from_str(&fs::read_to_string(temp.path().join("out/config.json")).unwrap())
                .unwrap();
        assert_eq!(written["pad_token_id"], expected);
        fs::remove_dir_all(temp.path().join("out")).unwrap();
    }
}

#[test]
fn generation_is_decided_by_the_seed() {
    let temp = tempfile::tempdir().unwrap();
    text_model(temp.path());
    write_rows(
        temp.path().join("prompts.jsonl"),
        &[
            json!({"prompt": "One day"}),
            json!({"prompt": "a"}),
            json!({"input_ids": [5, 6]}),
        ],
    );
    let generate = |options: &str| {
        lines(&succeed(
            temp.path(),
            &format!(
                "generate --model text-model --data prompts.jsonl --max-new-tokens 9 --output - {options}"
            ),
        ))
    };
    let first = generate("--seed 4");
    assert_eq!(first, generate("--seed 4 --threads 1"));
    assert_ne!(first, generate("--seed 5"));
    assert_eq!(first[0]["prompt"], "One day");
    for answer in &first {
        let ids = answer["ids"].as_array().unwrap();
        assert!(!ids.is_empty() && ids.len() <= 9);
        assert_eq!(ids.len(), answer["logprobs"].as_array().unwrap().len());
        assert!(
            answer["stopped"] == json!(true) || ids.len() == 9,
            "{answer}"
        );
    }
    // The first row alone, as text, greedily: the text that the rows hold.
    let greedy = generate("--temperature 0");
    let text = succeed(
        temp.path(),
        "generate --model text-model --prompt a --temperature 0 --max-new-tokens 9",
    );
    assert_eq!(
        text,
        format!("{}\n", greedy[1]["completion"].as_str().unwrap())
    );
    // Log-probabilities of greedy tokens are those that `logprobs` gives.
    let ids = |answer: &Value| answer["ids"].as_array().unwrap().clone();
    let row: Vec<Value> = [json!(5), json!(6)]
        .into_iter()
        .chain(ids(&greedy[2]))
        .collect();
    write_rows(
        temp.path().join("rows.jsonl"),
        &[json!({ "input_ids": row })],
    );
    let measured = lines(&succeed(
        temp.path(),
        "logprobs --model text-model --data rows.jsonl --output -",
    ));
    let tail = measured[0]["logprobs"].as_array().unwrap()[1..].to_vec();
    assert_near(&greedy[2]["logprobs"], &json!(tail), 1e-4);
    fail(
        temp.path(),
        "generate --model text-model --prompt a --max-new-tokens 300",
        1,
        &["--prompt:1", "300 new ones; the model takes at most 256"],
    );
}

#[test]
fn eval_measures_loss_and_rewards() {
    let temp = tempfile::tempdir().unwrap();
    text_model(temp.path());
    let rows = [
        json!({"prompt": "One day", "completion": " a dog ran"}),
        json!({"prompt": "a", "completion": " big cat"}),
    ];
    write_rows(temp.path().join("rows.jsonl"), &rows);
    succeed(
        temp.path(),
        "eval --model text-model --data rows.jsonl --reward rouge-l --reward length:3 --max-new-tokens 6 --output eval.json",
    );
    let found: Value =
        serde_json::from_str(&fs::read_to_string(temp.path().join("eval.json")).unwrap()).unwrap();
    assert_eq!(found["rows"], 2);
    let loss = found["loss"].as_f64().unwrap();
    assert!((found["perplexity"].as_f64().unwrap() - loss.exp()).abs() < 1e-9 * loss.exp());
    assert!(found["response_length"].as_f64().unwrap() <= 6.0);
    assert!((0.0..=1.0).contains(&found["eos_rate"].as_f64().unwrap()));
    assert!((0.0..=1.0).contains(&found["rewards"]["rouge-l"].as_f64().unwrap()));
    assert!(found["rewards"]["length:3"].as_f64().unwrap() <= 0.0);
    // The loss is over the completion and the EOS after it: rows of ids with that tail say the same.
    let logprobs = lines(&succeed(
        temp.path(),
        "logprobs --model text-model --data rows.jsonl --output -",
    ));
    let tokens: usize = logprobs
        .iter()
        .map(|row| row["logprobs"].as_array().unwrap().len())
        .sum();
    assert_eq!(
        found["tokens"].as_u64().unwrap() as usize,
        tokens + rows.len(),
        "one EOS a row"
    );
    let whole: Vec<Value> = logprobs
        .iter()
        .map(|row| {
            let mut ids = row["input_ids"].as_array().unwrap().clone();
            ids.push(json!(eos_id(temp.path())));
            json!({ "input_ids": ids })
        })
        .collect();
    write_rows(temp.path().join("whole.jsonl"), &whole);
    let whole = lines(&succeed(
        temp.path(),
        "logprobs --model text-model --data whole.jsonl --output -",
    ));
    let mut sum = 0.0;
    for (row, short) in whole.iter().zip(&logprobs) {
        let count = short["logprobs"].as_array().unwrap().len() + 1;
        let all = row["logprobs"].as_array().unwrap();
        sum += all[all.len() - count..]
            .iter()
            .map(|x| x.as_f64().unwrap())
            .sum::<f64>();
    }
    assert!(
        (loss + sum / (tokens + rows.len()) as f64).abs() < 1e-5,
        "{loss}"
    );
    let table = succeed(temp.path(), "eval --model text-model --data rows.jsonl");
    assert!(table.contains("perplexity"), "{table}");
    write_rows(temp.path().join("prompts.jsonl"), &[json!({"prompt": "a"})]);
    fail(
        temp.path(),
        "eval --model text-model --data prompts.jsonl",
        1,
        &["nothing to measure"],
    );
}

fn eos_id(folder: &Path) -> u64 {
    let text = fs::read_to_string(folder.join("text-model/config.json")).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["eos_token_id"]
        .as_u64()
        .unwrap()
}

#[test]
fn inspect_marks_what_is_trained_on() {
    let temp = tempfile::tempdir().unwrap();
    text_model(temp.path());
    write_rows(
        temp.path().join("rows.jsonl"),
        &[json!({"prompt": "One day", "completion": " a dog"})],
    );
    let recipe = r#"(name: "r", model: "./text-model", stages: [
        Sft(name: "sft", data: (source: Jsonl("rows.jsonl")), batch_size: 1),
    ])"#;
    fs::write(temp.path().join("r.ron"), recipe).unwrap();
    let text = succeed(temp.path(), "inspect r.ron");
    assert!(
        text.contains("«") && text.contains("ends with EOS") && text.contains("all rows kept"),
        "{text}"
    );
    assert!(!text.contains('\u{1b}'), "no colours in a pipe");
    fail(
        temp.path(),
        "inspect r.ron --stage ppo",
        2,
        &["expected one of sft"],
    );
}

#[test]
fn inspect_shows_the_layers_of_a_model() {
    let temp = tempfile::tempdir().unwrap();
    let text = succeed(temp.path(), "inspect --model tiny");
    assert!(
        text.contains("0 to 3 (4 alike)") && text.contains("824,448 parameters"),
        "{text}"
    );
    let text = succeed(
        temp.path(),
        r#"inspect --model tiny --peft Lora(rank:2,target_modules:["down_proj"])"#,
    );
    assert!(text.contains("trained"), "{text}");
    for (peft, cause) in [
        (r#"Only(["layers.9"])"#, "\"layers.9\" matches no parameter"),
        ("Lora(rank:0)", "rank: must be at least 1"),
        ("Lora(rnk:4)", "rnk"),
    ] {
        fail(
            temp.path(),
            &format!("inspect --model tiny --peft {peft}"),
            2,
            &[cause],
        );
    }
}

#[test]
fn doctor_and_models_say_what_there_is() {
    let temp = tempfile::tempdir().unwrap();
    let models = succeed(temp.path(), "models");
    assert!(
        models.contains("smollm2-135m") && models.contains("Apache-2.0"),
        "{models}"
    );
    for known in ["EleutherAI/pythia-160m@main", "opt-125m", "qwen2.5-0.5b"] {
        assert!(models.contains(known), "{known}: {models}");
    }
    let doctor = succeed(temp.path(), "doctor");
    assert!(
        doctor.contains("lora_linear") && doctor.contains("LoRA rank 24"),
        "{doctor}"
    );
    assert!(!doctor.contains("WRONG"), "{doctor}");
}

#[test]
fn a_base_in_fewer_bits_is_measured_and_used() {
    let temp = tempfile::tempdir().unwrap();
    let recipe = "(name: \"r\", model: \"tiny\", base_precision: int8, stages: [\n\
        Sft(name: \"sft\", data: (source: Posts(rows: 8, seed: 1)), peft: Lora(rank: 2), batch_size: 8)])";
    fs::write(temp.path().join("r.ron"), recipe).unwrap();
    let doctor = succeed(temp.path(), "doctor r.ron");
    let cost = doctor.lines().find(|line| line.contains("KL(f32 || int8)"));
    let cost = cost.unwrap_or_else(|| panic!("{doctor}"));
    assert!(cost.contains("on 1024 tokens"), "{cost}");
    let rows = "{\"prompt\": \"Once\", \"completion\": \" upon a time\"}\n";
    fs::write(temp.path().join("rows.jsonl"), rows).unwrap();
    let scores = |precision: &str| {
        let command = "logprobs --model tiny --data rows.jsonl --output - --base-precision";
        succeed(temp.path(), &format!("{command} {precision}"))
    };
    let [f32, bf16, int8, nf4] = ["f32", "bf16", "int8", "nf4"].map(scores);
    assert!(
        f32 != bf16 && f32 != int8 && bf16 != int8 && nf4 != f32 && nf4 != int8,
        "{f32}{bf16}{int8}{nf4}"
    );
    assert_eq!(scores("stored"), f32);
}

#[test]
fn rows_longer_than_a_table_of_positions_are_refused_before_a_model_is_made() {
    let temp = tempfile::tempdir().unwrap();
    let dir = text_model(temp.path());
    let tiny: Value =
        serde_json::from_str(&fs::read_to_string(dir.join("config.json")).unwrap()).unwrap();
    let config = json!({
        "model_type": "opt", "hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": 40, "vocab_size": tiny["vocab_size"], "eos_token_id": tiny["eos_token_id"]
    });
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let recipe = |max_length: usize| {
        let stage = format!(
            "Pretrain(name: \"p\", init: Random(\"text-model\"), data: (source: Posts(rows: 8, seed: 1)),\n\
             max_length: {max_length}, batch_size: 8, micro_batch_tokens: 64)"
        );
        format!("(name: \"r\", stages: [{stage}])")
    };
    fs::write(temp.path().join("r.ron"), recipe(41)).unwrap();
    fail(
        temp.path(),
        "recipe r.ron --dry-run --no-time",
        2,
        &["r.ron:2:", "stages.p.max_length", "41 tokens", "at most 40"],
    );
    fs::write(temp.path().join("r.ron"), recipe(40)).unwrap();
    succeed(temp.path(), "recipe r.ron --dry-run --no-time");
}

#[test]
fn every_kind_of_model_is_trained_adapted_and_merged() {
    let shared = json!({
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 96,
        "initializer_range": 0.2, "init_std": 0.2
    });
    let neox = json!({"model_type": "gpt_neox", "intermediate_size": 48, "rotary_pct": 0.5});
    let opt = json!({
        "model_type": "opt", "ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": false
    });
    let qwen2 = json!({"model_type": "qwen2", "intermediate_size": 48, "num_key_value_heads": 2});
    for (own, layers) in [(neox, 2 * 4), (opt, 2 * 6 + 2), (qwen2, 2 * 7)] {
        let temp = tempfile::tempdir().unwrap();
        let dir = text_model(temp.path());
        let tiny: Value =
            serde_json::from_str(&fs::read_to_string(dir.join("config.json")).unwrap()).unwrap();
        let mut config = shared.clone();
        for (key, value) in own.as_object().unwrap() {
            config[key] = value.clone();
        }
        for key in ["vocab_size", "eos_token_id"] {
            config[key] = tiny[key].clone();
        }
        fs::write(dir.join("config.json"), config.to_string()).unwrap();
        let recipe = r#"(name: "r", stages: [
            Pretrain(name: "pre", init: Random("text-model"), data: (source: Posts(rows: 16, seed: 1)),
                max_length: 96, batch_size: 8, optim: (lr: 1e-2)),
            Sft(name: "sft", init: Stage("pre"), data: (source: Posts(rows: 16, seed: 2)), max_length: 96, batch_size: 8,
                peft: Lora(rank: 4, alpha: 8.0, target_modules: ["all-linear"]), optim: (lr: 5e-2)),
        ])"#;
        fs::write(temp.path().join("r.ron"), recipe).unwrap();
        succeed(temp.path(), "recipe r.ron --output run");
        let adapter = temp.path().join("run/sft/adapter");
        let written: Value =
            serde_json::from_str(&fs::read_to_string(adapter.join("adapter_config.json")).unwrap())
                .unwrap();
        let targets = written["target_modules"].as_array().unwrap();
        assert_eq!(targets.len(), layers, "{config}: {targets:?}");
        let said = succeed(
            temp.path(),
            "export --run run --stage sft --to merged --merge",
        );
        let difference: f64 = said.trim().rsplit(' ').next().unwrap().parse().unwrap();
        assert!(difference < 1e-4, "{config}: {said}");
        let rows = [
            json!({"input_ids": [5, 17, 60, 3, 3, 44]}),
            json!({"input_ids": [9, 8]}),
        ];
        write_rows(temp.path().join("rows.jsonl"), &rows);
        let logprobs = |model: &str| {
            let args = format!("logprobs --model {model} --data rows.jsonl --output -");
            lines(&succeed(temp.path(), &args))
        };
        let (base, adapted) = (
            logprobs("run/pre/model"),
            logprobs("run/pre/model --adapter run/sft/adapter"),
        );
        for (merged, adapted) in logprobs("merged").iter().zip(&adapted) {
            assert_near(&merged["logprobs"], &adapted["logprobs"], 1e-4);
        }
        let gguf = "export --run run --stage sft --to out/m.gguf";
        let f32s = format!("{gguf} --merge --dtype f32");
        if config["model_type"] == "qwen2" {
            let said = succeed(temp.path(), &gguf.replace("m.gguf", "a.gguf"));
            assert!(
                said.contains("--lora out/a.gguf") && said.contains("ADAPTER out/a.gguf"),
                "{said}"
            );
            let said = succeed(temp.path(), &f32s);
            assert!(said.contains("ollama create m"), "{said}");
            for (merged, adapted) in logprobs("out/m.gguf").iter().zip(&adapted) {
                assert_near(&merged["logprobs"], &adapted["logprobs"], 1e-4);
            }
            // Nothing stands beside it: configuration and tokenizer are the file's own.
            let text = "generate --temperature 0 --prompt One --model";
            let said = |model: &str| succeed(temp.path(), &format!("{text} {model}"));
            assert_eq!(said("out/m.gguf"), said("merged"));
            fail(temp.path(), &f32s, 2, &["already exists"]);
            // Models that no run has trained, there and back.
            succeed(
                temp.path(),
                "export --model merged --to out/n.gguf --dtype f32",
            );
            let said = succeed(temp.path(), "export --model out/n.gguf --to back");
            assert!(said.starts_with("back: converted; "), "{said}");
            for (back, adapted) in logprobs("back").iter().zip(&adapted) {
                assert_near(&back["logprobs"], &adapted["logprobs"], 1e-4);
            }
            let folder = "export --run run --stage pre --to f --dtype q8_0";
            fail(temp.path(), folder, 2, &["only a GGUF file stores blocks"]);
        } else {
            fail(temp.path(), &f32s, 2, &["are not written as GGUF"]);
        }
        let sum = |answers: &[Value]| answers[0]["sum"].as_f64().unwrap();
        let moved = (sum(&base) - sum(&adapted)).abs();
        assert!(moved > 1e-2, "{config}: the adapter moves {moved}");
    }
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let temp = tempfile::tempdir().unwrap();
    let rows: Vec<Value> = (0..2000)
        .map(|i| json!({"input_ids": [i % 64, 3]}))
        .collect();
    write_rows(temp.path().join("rows.jsonl"), &rows);
    let mut child = command(
        temp.path(),
        "logprobs --model REF/llama_tied --data rows.jsonl --output -",
    )
    .stdout(Stdio::piped())
    .stderr(Stdio::piped())
    .spawn()
    .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
}

/// N processes that know nothing of each other would write over each other's results.
#[test]
fn one_of_several_processes_is_refused_without_mpi() {
    let temp = tempfile::tempdir().unwrap();
    let refused = |rank: &str, world: &str, parts: &[&str]| {
        let mut command = command(temp.path(), "recipe r.ron");
        let output = command.env(rank, "1").env(world, "4").output().unwrap();
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{message}");
        for part in parts {
            assert!(message.contains(part), "{part:?} in {message}");
        }
    };
    let torchrun = "this is process 1 of 4 started by torchrun";
    refused("RANK", "WORLD_SIZE", &[torchrun, "mpirun or srun"]);
    if cfg!(not(feature = "mpi")) {
        let build = "--features mpi";
        let srun = ["process 1 of 4 started by srun", build];
        refused("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", &srun);
        let mpirun = ["process 1 of 4 started by mpirun", build];
        refused("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", &mpirun);
    }
}
