//! What goes wrong ends with a message that names the place and the fix, and with exit code 2 (bad input, nothing was
//! loaded) or 1 (a failure on the way).

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// A recipe of one SFT stage.
const SFT: &str = r#"(
    name: "broken", model: "MODEL",
    stages: [
        Sft(name: "sft", data: (source: Jsonl("data.jsonl")), optim: (lr: 1e-3), batch_size: 2, max_length: 64),
    ],
)
"#;

/// Rows that are sound.
const ROWS: &str = "{\"prompt\":\"a red key\",\"completion\":\" key\"}\n";

fn tiny() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models/tiny"))
}

/// Runs `recipe` in `folder`; `MODEL` in it is the folder's `model`, if there is one, else the embedded one.
fn temper(folder: &Path, recipe: &str, args: &[&str]) -> Output {
    let model = folder.join("model");
    let model = if model.exists() {
        model
    } else {
        tiny().to_path_buf()
    };
    fs::write(
        folder.join("r.ron"),
        recipe.replace("MODEL", &model.display().to_string()),
    )
    .unwrap();
    Command::new(env!("CARGO_BIN_EXE_temper"))
        .args(["recipe", "r.ron", "--output", "out", "--backend", "flex"])
        .args(args)
        .current_dir(folder)
        .env("TEMPERING_HOME", folder.join("home"))
        .output()
        .unwrap()
}

/// The run must end with `code`, and stderr must hold each of `parts`.
#[track_caller]
fn fails(output: &Output, code: i32, parts: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{part:?} is not in\n{stderr}");
    }
    assert!(!stderr.contains("panicked"), "{stderr}");
}

/// With `data` as the data file, the recipe is refused before anything is loaded or written.
#[track_caller]
fn bad_data(data: &[u8], parts: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("data.jsonl"), data).unwrap();
    fails(&temper(folder.path(), SFT, &[]), 2, parts);
    assert!(!folder.path().join("out").exists(), "nothing is written");
}

/// With a model whose folder `change` has changed, the recipe is refused.
#[track_caller]
fn bad_model(change: impl FnOnce(&Path), parts: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    for file in [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
    ] {
        fs::copy(tiny().join(file), model.join(file)).unwrap();
    }
    change(&model);
    fs::write(folder.path().join("data.jsonl"), ROWS.repeat(4)).unwrap();
    fails(&temper(folder.path(), SFT, &[]), 2, parts);
    assert!(!folder.path().join("out").exists(), "nothing is written");
}

fn edit(file: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(file).unwrap();
    assert!(text.contains(from), "{from}");
    fs::write(file, text.replace(from, to)).unwrap();
}

#[test]
fn a_missing_data_file() {
    let folder = tempfile::tempdir().unwrap();
    fails(
        &temper(folder.path(), SFT, &[]),
        2,
        &["r.ron:4:", "data.jsonl"],
    );
}

#[test]
fn empty_data() {
    bad_data(b"", &["data.jsonl", "no rows"]);
}

#[test]
fn bad_json_on_line_57() {
    let rows = ROWS.repeat(56) + "{\"prompt\": \"a\", completion}\n" + ROWS;
    bad_data(rows.as_bytes(), &["data.jsonl:57"]);
}

#[test]
fn bad_utf8() {
    bad_data(
        b"{\"prompt\":\"a\",\"completion\":\"b\"}\n{\"prompt\":\"\xff\",\"completion\":\"b\"}\n",
        &["data.jsonl:2", "UTF-8"],
    );
}

#[test]
fn a_missing_column() {
    bad_data(b"{\"prompt\":\"a\"}\n", &["data.jsonl:1", "completion"]);
}

#[test]
fn nothing_to_train_on() {
    bad_data(b"{\"prompt\":\"a\",\"completion\":\"\"}\n", &["data.jsonl"]);
    let long = format!(
        "{{\"prompt\":\"{}\",\"completion\":\" b\"}}\n",
        "a red key ".repeat(100)
    );
    bad_data(
        long.as_bytes(),
        &["data.jsonl", "no row is left to train on"],
    );
}

#[test]
fn a_truncated_weight_file() {
    bad_model(
        |model| {
            let file = fs::OpenOptions::new()
                .write(true)
                .open(model.join("model.safetensors"))
                .unwrap();
            file.set_len(100_000).unwrap();
        },
        &["model.safetensors"],
    );
}

#[test]
fn a_missing_weight_file() {
    bad_model(
        |model| fs::remove_file(model.join("model.safetensors")).unwrap(),
        &["model.safetensors"],
    );
}

#[test]
fn tensors_of_another_shape() {
    bad_model(
        |model| {
            edit(
                &model.join("config.json"),
                "\"intermediate_size\": 344",
                "\"intermediate_size\": 352",
            )
        },
        &[
            "model.layers.0.mlp.gate_proj.weight",
            "[352, 128]",
            "[344, 128]",
        ],
    );
}

#[test]
fn an_unknown_family() {
    bad_model(
        |model| {
            edit(
                &model.join("config.json"),
                "\"model_type\": \"llama\"",
                "\"model_type\": \"mamba\"",
            )
        },
        &["config.json", "mamba", "llama"],
    );
}

#[test]
fn a_tokenizer_without_eos() {
    bad_model(
        |model| {
            fs::write(model.join("tokenizer_config.json"), "{}").unwrap();
            edit(&model.join("config.json"), "\"eos_token_id\": 0,", "");
        },
        &["EOS"],
    );
}

#[test]
fn an_unknown_target_module() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("data.jsonl"), ROWS).unwrap();
    let output = temper(
        folder.path(),
        SFT,
        &["--set", "stages.sft.peft=Lora(target_modules: [\"q_prj\"])"],
    );
    fails(
        &output,
        2,
        &[
            "target_modules",
            "\"q_prj\" matches no layer",
            "did you mean \"q_proj\"",
        ],
    );
}

#[test]
fn a_model_that_does_not_fit() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("data.jsonl"), ROWS.repeat(2)).unwrap();
    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(tiny().join(file), model.join(file)).unwrap();
    }
    edit(
        &model.join("config.json"),
        "\"hidden_size\": 128",
        "\"hidden_size\": 1048576",
    );
    let recipe = SFT
        .replace(
            "Sft(name",
            "Pretrain(init: Random(\"MODEL/config.json\"), name",
        )
        .replace("model: \"MODEL\",", "")
        .replace(
            "(source: Jsonl(\"data.jsonl\"))",
            "(source: Posts(rows: 8, seed: 1))",
        );
    fails(
        &temper(folder.path(), &recipe, &[]),
        2,
        &[
            "needs an estimated",
            "GiB are available",
            "train adapters instead",
        ],
    );
}

#[test]
fn absurd_numbers_are_refused_with_their_key() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("data.jsonl"), ROWS.repeat(4)).unwrap();
    let stage = |kind: &str, defaults: &[&str], more: &str| {
        let given = |default: &&&str| !more.contains(default.split(':').next().unwrap());
        let keys: Vec<&str> = (defaults.iter().filter(given).copied())
            .chain([more])
            .collect();
        format!(
            "(name: \"r\", model: \"MODEL\", stages: [{kind}(name: \"s\", init: Base, {})])",
            keys.join(", ")
        )
    };
    let posts = "data: (source: Posts(rows: 4, seed: 1)), reward: Gold";
    let sft = |more: &str| stage("Sft", &["data: \"data.jsonl\"", "batch_size: 2"], more);
    let rank = |more: &str| stage("Rank", &[posts, "response_length: 4"], more);
    let ppo = |more: &str| {
        let defaults = [
            posts,
            "total_episodes: 4",
            "batch_size: 4",
            "response_length: 4",
        ];
        stage("Ppo", &defaults, more)
    };
    let ptx = |size: &str| {
        ppo(&format!(
            "{posts}, total_episodes: 4, batch_size: 4, ptx: (data: \"data.jsonl\", batch_size: {size})"
        ))
    };
    for size in ["1000000000", "18446744073709551615"] {
        for (text, key) in [
            (
                sft(&format!("data: (source: Posts(rows: {size}, seed: 1))")),
                "stages.s.data.source.rows",
            ),
            (sft(&format!("batch_size: {size}")), "stages.s.batch_size"),
            (sft(&format!("epochs: {size}")), "stages.s.epochs"),
            (sft(&format!("max_length: {size}")), "stages.s.max_length"),
            (sft(&format!("max_steps: {size}")), "stages.s.max_steps"),
            (
                sft(&format!("peft: Lora(rank: {size})")),
                "stages.s.peft.rank",
            ),
            (
                sft(&format!("peft: PromptTuning(num_virtual_tokens: {size})")),
                "stages.s.peft.num_virtual_tokens",
            ),
            (
                rank(&format!("num_responses: {size}")),
                "stages.s.num_responses",
            ),
            (
                rank(&format!("response_length: {size}")),
                "stages.s.response_length",
            ),
            (
                rank(&format!("generation_batch_size: {size}")),
                "stages.s.generation_batch_size",
            ),
            (
                ppo(&format!("total_episodes: {size}, batch_size: {size}")),
                "stages.s.total_episodes",
            ),
            (
                ppo(&format!("num_ppo_epochs: {size}")),
                "stages.s.num_ppo_epochs",
            ),
            (ptx(size), "stages.s.ptx.batch_size"),
        ] {
            let output = temper(folder.path(), &text, &["--dry-run"]);
            fails(&output, 2, &[key, &format!("found {size}"), "at most"]);
        }
    }
    // Below the bounds the plan of the memory decides, and its sums do not wrap.
    let large =
        rank("num_responses: 65536, response_length: 16777216, generation_batch_size: 16384");
    fails(
        &temper(
            folder.path(),
            &large,
            &["--dry-run", "--device-memory", "64GiB"],
        ),
        2,
        &["needs an estimated"],
    );
    let mut generate = Command::new(env!("CARGO_BIN_EXE_temper"));
    generate
        .args(["generate", "--prompt", "Hello", "--model"])
        .arg(tiny());
    for size in ["1000000000", "18446744073709551615", "99999999999999999999"] {
        for key in ["--max-new-tokens", "--num-responses", "--threads"] {
            let output = Command::new(generate.get_program())
                .args(generate.get_args())
                .args([key, size])
                .output()
                .unwrap();
            fails(&output, 2, &[key, "expected at most"]);
        }
    }
}

#[test]
fn values_that_mean_nothing_are_refused_with_their_key() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("data.jsonl"), ROWS.repeat(4)).unwrap();
    let recipe = |stage: &str| format!("(name: \"r\", model: \"MODEL\", stages: [{stage}])");
    let sft = |more: &str| {
        recipe(&format!(
            "Sft(name: \"s\", data: (source: \"data.jsonl\"), batch_size: 2, {more})"
        ))
    };
    let grpo = |reward: &str| {
        recipe(&format!(
            "Grpo(name: \"s\", init: Base, data: (source: Posts(rows: 8, seed: 1)), reward: {reward}, total_episodes: 8, batch_size: 4, \
             num_generations: 4, response_length: 4)"
        ))
    };
    let long = "a".repeat(129);
    let many: String = (0..10_001).map(|i| format!("\"<t{i}>\",")).collect();
    for (text, key, said) in [
        (
            sft("optim: (lr: 1e39)"),
            "stages.s.optim.lr",
            "32-bit float",
        ),
        (
            sft("optim: (eps: 1e-60)"),
            "stages.s.optim.eps",
            "32-bit float",
        ),
        (
            sft("peft: Lora(rank: 2, init_lora_weights: \"pissa_niter_99999999999\")"),
            "stages.s.peft.init_lora_weights",
            "pissa_niter_4",
        ),
        (
            grpo("Sum([(1e308, Gold)])"),
            "stages.s.reward",
            "32-bit float",
        ),
        (
            grpo("Schema(file: \"/dev/zero\")"),
            "stages.s.reward",
            "regular file",
        ),
        (
            grpo("Graded(judge: Model(Base), template: \"How good?\")"),
            "stages.s.reward",
            "does not show `response`",
        ),
        (
            grpo("Groups(regex: \"(?P<a>x)\", columns: {\"a\": \"ideal\", \"a\": \"prompt\"})"),
            "r.ron:1:",
            "given twice",
        ),
        (
            sft("").replace("\"s\"", &format!("{long:?}")),
            "stages.",
            "at most 128 characters",
        ),
        (
            sft("").replace("stages:", &format!("add_tokens: [{many}], stages:")),
            "add_tokens",
            "at most 10000 texts",
        ),
    ] {
        let output = temper(folder.path(), &text, &["--dry-run"]);
        fails(&output, 2, &[key, said]);
    }
}

#[cfg(unix)]
#[test]
fn only_regular_files_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let made = Command::new("mkfifo").arg(at("pipe")).status().unwrap();
    assert!(made.success());
    let pipe = "is a named pipe (FIFO), expected a regular file";
    let zero = "is a character device, expected a regular file";
    for (source, said) in [("pipe", pipe), ("/dev/zero", zero)] {
        let recipe = SFT.replace("data.jsonl", source);
        fails(&temper(folder.path(), &recipe, &[]), 2, &[said]);
        let output = Command::new(env!("CARGO_BIN_EXE_temper"))
            .args(["recipe", source, "--dry-run"])
            .current_dir(folder.path())
            .output()
            .unwrap();
        fails(&output, 1, &[said]);
    }
    fs::write(at("data.jsonl"), ROWS.repeat(4)).unwrap();
    for file in ["config.json", "model.safetensors"] {
        for (target, said) in [(at("pipe"), pipe), ("/dev/zero".into(), zero)] {
            bad_model(
                |model| {
                    fs::remove_file(model.join(file)).unwrap();
                    std::os::unix::fs::symlink(&target, model.join(file)).unwrap();
                },
                &[file, said],
            );
        }
    }
}

#[test]
fn a_pass_that_does_not_fit() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("data.jsonl"), ROWS.repeat(2)).unwrap();
    // Of comparisons that do not exist yet, only the maximum per pass is known.
    let ranked = r#"
        Rank(name: "rank", init: Base, data: (source: Posts(rows: 16, seed: 4)), response_length: 16, reward: Gold),
        RewardModel(name: "rm", init: Base, data: (source: Ranked(stage: "rank")), batch_size: 4, max_length: 100000000,
            micro_batch_tokens: 100000000),
    ],"#;
    fails(
        &temper(folder.path(), &SFT.replace("\n    ],", ranked), &[]),
        2,
        &["needs an estimated", "lower `micro_batch_tokens`"],
    );
    // Two rows of a few tokens are all that there is to pass.
    let set = |key: &str| format!("stages.sft.{key}=100000000");
    let (length, tokens) = (set("max_length"), set("micro_batch_tokens"));
    let settings = ["--set", &length, "--set", &tokens, "--dry-run", "--no-time"];
    let output = temper(folder.path(), SFT, &settings);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_and_keeps_the_batch() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("data.jsonl"), ROWS.repeat(40)).unwrap();
    let output = temper(folder.path(), SFT, &["--set", "stages.sft.optim.lr=1e30"]);
    fails(&output, 1, &["sft", "step", "nonfinite-step-"]);
    let saved = fs::read_dir(folder.path().join("out/sft"))
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
        .find(|name| name.starts_with("nonfinite-step-"))
        .unwrap();
    let text = fs::read_to_string(folder.path().join("out/sft").join(saved)).unwrap();
    let batch: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(batch["rows"].as_array().unwrap().len(), 2);
}

#[test]
fn a_run_folder_in_use_is_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("data.jsonl"), ROWS.repeat(2)).unwrap();
    let output = temper(folder.path(), SFT, &[]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let output = temper(folder.path(), SFT, &[]);
    fails(&output, 2, &["out", "--resume"]);
}

/// Configurations that PEFT wrote for what is not low-rank products on linear layers alone.
#[test]
fn what_changes_the_numbers_is_refused() {
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/reference/peft/refused.json"
    );
    let refused: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    for (key, config) in refused.as_object().unwrap() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("adapter_config.json"), config.to_string()).unwrap();
        let error = tempering::peft::AdapterConfig::load(dir.path()).unwrap_err();
        let error = error.to_string();
        assert!(error.contains(key.as_str()), "{key}: {error}");
    }
}
