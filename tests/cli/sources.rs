//! Which model, which tokens: files that do not say of themselves what they hold, and models that meet other models.

use super::*;
use tempering::model::ModelSource;

fn json_file(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// `models/tiny` in `folder`, its weights and configuration changed.
fn tiny(
    folder: &Path,
    name: &str,
    config: impl Fn(&mut Value),
    tensors: impl Fn(&str, Vec<usize>, Vec<f32>) -> (Vec<usize>, Vec<f32>),
    more: &[(String, Vec<usize>, Vec<f32>)],
) -> PathBuf {
    let from = repository().join("models/tiny");
    let dir = folder.join(name);
    fs::create_dir_all(&dir).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(from.join(file), dir.join(file)).unwrap();
    }
    let mut json = json_file(&from.join("config.json"));
    config(&mut json);
    fs::write(dir.join("config.json"), json.to_string()).unwrap();
    let source = weights::open(&from).unwrap();
    let mut written: Vec<_> = (source.names().into_iter())
        .map(|name| {
            let (shape, values) = (source.shape(&name).unwrap(), source.read(&name).unwrap());
            let (shape, values) = tensors(&name, shape, values);
            (name, shape, values)
        })
        .collect();
    written.extend_from_slice(more);
    write_safetensors(dir.join("model.safetensors"), &written).unwrap();
    dir
}

/// A score head with these many labels for `models/tiny`.
fn score(labels: usize) -> (String, Vec<usize>, Vec<f32>) {
    let hidden = json_file(&repository().join("models/tiny/config.json"))["hidden_size"]
        .as_u64()
        .unwrap() as usize;
    let values = (0..labels * hidden)
        .map(|i| ((i as f32) * 0.7).sin() * 0.3)
        .collect();
    ("score.weight".into(), vec![labels, hidden], values)
}

fn as_it_is(_: &str, shape: Vec<usize>, values: Vec<f32>) -> (Vec<usize>, Vec<f32>) {
    (shape, values)
}

const DATA: &str = "data: (source: Posts(rows: 8, seed: 3))";

#[test]
fn a_stored_head_beside_tied_embeddings_counts() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("m");
    fs::create_dir(&dir).unwrap();
    let tied = reference_dir("llama_tied");
    fs::copy(tied.join("config.json"), dir.join("config.json")).unwrap();
    let source = weights::open(&tied).unwrap();
    let name = "model.embed_tokens.weight";
    let (shape, embedding) = (source.shape(name).unwrap(), source.read(name).unwrap());
    let head: Vec<f32> = embedding
        .chunks(shape[1])
        .rev()
        .flatten()
        .copied()
        .collect();
    let head = ("lm_head.weight".to_owned(), shape, head);
    write_all(&dir.join("model.safetensors"), source.as_ref(), &[head]);
    reference_rows(temp.path(), "llama_tied");
    let output = temper(
        temp.path(),
        "logprobs --model m --data rows.jsonl --output -",
    );
    assert!(stderr(&output).contains("the stored head is used"));
    let expected = &json_file(&reference_dir("heads.json"))["tied_conflict"];
    for (answer, expected) in lines(&stdout(&output))
        .iter()
        .zip(expected.as_array().unwrap())
    {
        assert_near(&answer["logprobs"], expected, 1e-4);
    }
}

#[test]
fn a_stored_head_is_trained_saved_and_exported() {
    let temp = tempfile::tempdir().unwrap();
    let head: Vec<f32> = (0..768 * 128)
        .map(|i| (i as f32 * 0.3).sin() * 0.1)
        .collect();
    let head = ("lm_head.weight".to_owned(), vec![768, 128], head);
    tiny(temp.path(), "m", |_| {}, as_it_is, &[head]);
    let recipe = format!(
        "(name: \"r\", model: \"m\", stages: [\n\
         Sft(name: \"full\", {DATA}, batch_size: 8, max_length: 64),\n\
         Sft(name: \"lora\", {DATA}, batch_size: 8, max_length: 64, peft: Lora(rank: 2))])"
    );
    fs::write(temp.path().join("r.ron"), recipe).unwrap();
    succeed(temp.path(), "recipe r.ron --output run");
    for (stage, options) in [("full", ""), ("lora", "--merge")] {
        let export = format!("export --run run --stage {stage} --to {stage} {options}");
        succeed(temp.path(), &export);
        let source = weights::open(temp.path().join(stage)).unwrap();
        assert!(source.shape("lm_head.weight").is_some(), "{stage}");
        let config = json_file(&temp.path().join(stage).join("config.json"));
        assert_eq!(config["tie_word_embeddings"], json!(false), "{stage}");
    }
}

#[test]
fn configurations_say_the_dtype_of_their_file() {
    let temp = tempfile::tempdir().unwrap();
    let old_key = |config: &mut Value| {
        let config = config.as_object_mut().unwrap();
        config.remove("dtype");
        config.insert("torch_dtype".into(), json!("bfloat16"));
    };
    tiny(temp.path(), "m", old_key, as_it_is, &[]);
    let recipe = format!(
        "(name: \"r\", model: \"m\", stages: [Sft(name: \"s\", {DATA}, batch_size: 8, max_length: 64)])"
    );
    fs::write(temp.path().join("r.ron"), recipe).unwrap();
    succeed(temp.path(), "recipe r.ron --output run");
    let dtype = |folder: &str| {
        let config = json_file(&temp.path().join(folder).join("config.json"));
        (config["torch_dtype"].clone(), config.get("dtype").cloned())
    };
    assert_eq!(dtype("run/s/model"), (json!("float32"), None));
    // As results of older runs are.
    let file = temp.path().join("run/s/model/config.json");
    let mut config = json_file(&file);
    config["torch_dtype"] = json!("bfloat16");
    config["dtype"] = json!("bfloat16");
    fs::write(&file, config.to_string()).unwrap();
    succeed(temp.path(), "export --run run --stage s --to f32");
    let both = |name: &str| (json!(name), Some(json!(name)));
    assert_eq!(dtype("f32"), both("float32"));
    let said = succeed(
        temp.path(),
        "export --run run --stage s --to half --dtype f16",
    );
    assert_eq!(dtype("half"), both("float16"));
    // The difference is that of the file that was written.
    let difference: f64 = said.trim().rsplit(' ').next().unwrap().parse().unwrap();
    assert!(difference > 1e-5 && difference < 1e-1, "{said}");
}

#[test]
fn an_adapter_finds_its_base_or_says_how_to_give_one() {
    let temp = tempfile::tempdir().unwrap();
    let out = format!(
        "(name: \"r\", model: \"tiny\", stages: [\n\
         Sft(name: \"s\", {DATA}, peft: Lora(rank: 4), batch_size: 8, max_length: 64)])"
    );
    fs::write(temp.path().join("out.ron"), out).unwrap();
    succeed(temp.path(), "recipe out.ron --output run");
    succeed(temp.path(), "export --run run --stage s --to ex");
    for adapter in ["run/s/adapter", "ex"] {
        let config = json_file(&temp.path().join(adapter).join("adapter_config.json"));
        let base = config["base_model_name_or_path"].as_str().unwrap();
        // PEFT knows paths and hub repositories, and no "tiny".
        assert!(Path::new(base).is_absolute(), "{adapter}: {base}");
        assert!(Path::new(base).join("config.json").is_file(), "{base}");
    }
    let file = temp.path().join("ex/adapter_config.json");
    let mut config = json_file(&file);
    config["base_model_name_or_path"] = json!("someone/model");
    fs::write(&file, config.to_string()).unwrap();
    fail(
        temp.path(),
        "generate --model ex --prompt x",
        2,
        &[
            "ex/adapter_config.json",
            "\"someone/model\"",
            "--model BASE --adapter ex",
        ],
    );
    succeed(
        temp.path(),
        "generate --model tiny --adapter ex --prompt x --max-new-tokens 2",
    );
    let recipe = |model: &str| {
        format!(
            "(name: \"r\", {model} stages: [\n\
             Sft(name: \"s\", init: Folder(\"ex\"), {DATA}, peft: Lora(rank: 4), batch_size: 8, max_length: 64)])"
        )
    };
    fs::write(temp.path().join("without.ron"), recipe("")).unwrap();
    fail(
        temp.path(),
        "recipe without.ron --dry-run --no-time",
        2,
        &["without.ron:2", "someone/model", "`model: \"BASE\"`"],
    );
    fs::write(temp.path().join("with.ron"), recipe("model: \"tiny\",")).unwrap();
    let output = temper(temp.path(), "recipe with.ron --output again");
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("is used in its place"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn an_adapter_on_an_adapter_is_trained_and_exported_merged() {
    let temp = tempfile::tempdir().unwrap();
    let stage = |init: &str| {
        format!(
            "(name: \"r\", model: \"tiny\", stages: [\n\
             Sft(name: \"s\", init: {init}, {DATA}, peft: Lora(rank: 4), optim: (lr: 1e-2), batch_size: 8, max_length: 64)])"
        )
    };
    fs::write(temp.path().join("r.ron"), stage("Base")).unwrap();
    succeed(temp.path(), "recipe r.ron --output inner");
    succeed(temp.path(), "export --run inner --stage s --to outer");
    let file = temp.path().join("outer/adapter_config.json");
    let mut config = json_file(&file);
    config["base_model_name_or_path"] = json!("inner/s/adapter");
    fs::write(&file, config.to_string()).unwrap();
    fs::write(temp.path().join("r.ron"), stage("Folder(\"outer\")")).unwrap();
    succeed(temp.path(), "recipe r.ron --output run");
    succeed(
        temp.path(),
        "export --run run --stage s --to merged --merge",
    );
    write_rows(
        temp.path().join("rows.jsonl"),
        &[json!({"input_ids": [5, 80, 300, 41, 7, 99]})],
    );
    let logprobs = |model: &str| {
        let args = format!("logprobs --model {model} --data rows.jsonl --output -");
        lines(&succeed(temp.path(), &args))[0]["logprobs"].clone()
    };
    let trained = logprobs("run/s");
    assert_near(&logprobs("merged"), &trained, 1e-4);
    let first = |answer: &Value| answer[0].as_f64().unwrap();
    assert!((first(&logprobs("outer")) - first(&trained)).abs() > 1e-3);
    // PEFT 0.21 would read the outer one on the bare base: log-probabilities off by hundredths.
    fail(
        temp.path(),
        "export --run run --stage s --to plain",
        2,
        &["is the adapter", "--merge"],
    );
}

/// The reward of each response of a `Rank` stage with the reward model in `folder`.
fn ranked(temp: &Path, folder: &str) -> (Vec<Value>, String) {
    let recipe = format!(
        "(name: \"{folder}\", model: \"tiny\", seed: 1, stages: [Rank(name: \"rank\", init: Base, {DATA}, num_responses: 2,\n\
         response_length: 12, max_prompt_length: 224, valid_fraction: 0.0, reward: Learned(stage: \"./{folder}\"), generation_batch_size: 16)])"
    );
    fs::write(temp.join("r.ron"), recipe).unwrap();
    let output = temper(temp, &format!("recipe r.ron --output run-{folder}"));
    assert!(output.status.success(), "{}", stderr(&output));
    let rows = fs::read_to_string(temp.join(format!("run-{folder}/rank/train.jsonl"))).unwrap();
    (lines(&rows), stderr(&output))
}

#[test]
fn a_reward_model_reads_text_in_its_own_tokens() {
    let temp = tempfile::tempdir().unwrap();
    let one_label = |config: &mut Value| {
        config["architectures"] = json!(["LlamaForSequenceClassification"]);
        config["id2label"] = json!({"0": "LABEL_0"});
    };
    tiny(temp.path(), "same", one_label, as_it_is, &[score(1)]);
    // The same tokens, as Qwen2.5's embeddings of 151,936 and 152,064 rows have.
    let padded = |config: &mut Value| {
        one_label(config);
        config["vocab_size"] = json!(832);
    };
    let grow = |name: &str, mut shape: Vec<usize>, mut values: Vec<f32>| {
        if name == "model.embed_tokens.weight" {
            values.resize(832 * shape[1], 0.0);
            shape[0] = 832;
        }
        (shape, values)
    };
    tiny(temp.path(), "padded", padded, grow, &[score(1)]);
    // As many tokens with other ids: entry `i` is what entry `1 + i mod 767` was; the end of text stays.
    let dir = tiny(temp.path(), "other", one_label, as_it_is, &[score(1)]);
    let mut tokenizer = json_file(&dir.join("tokenizer.json"));
    for id in tokenizer["model"]["vocab"]
        .as_object_mut()
        .unwrap()
        .values_mut()
    {
        let old = id.as_u64().unwrap();
        *id = json!(if old == 0 { 0 } else { old % 767 + 1 });
    }
    fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();

    let (same, said) = ranked(temp.path(), "same");
    assert!(!said.contains("another tokenizer"), "{said}");
    assert_eq!(ranked(temp.path(), "padded").0, same);
    let (other, said) = ranked(temp.path(), "other");
    assert!(said.contains("another tokenizer than the policy"), "{said}");
    // The policy's responses are the same, and each is worth what `temper score` gives for its text.
    let mut compared = 0;
    for (row, same) in other.iter().zip(&same) {
        assert_eq!(row["response_ids"], same["response_ids"]);
        assert_ne!(row["scores"], same["scores"]);
        for (index, ids) in row["response_ids"].as_array().unwrap().iter().enumerate() {
            if ids.as_array().unwrap().last() == Some(&json!(0)) {
                let text = json!({"prompt": row["prompt"], "completion": row["responses"][index]});
                write_rows(temp.path().join("rows.jsonl"), &[text]);
                let scored = succeed(
                    temp.path(),
                    "score --model other --data rows.jsonl --output -",
                );
                assert_near(&lines(&scored)[0]["score"], &row["scores"][index], 1e-4);
                compared += 1;
            }
        }
    }
    assert!(compared > 0, "{other:?}");
    write_rows(
        temp.path().join("prompts.jsonl"),
        &[json!({"prompt": "Title: a day\n"})],
    );
    let eval = |model: &str| {
        let args = format!(
            "eval --model tiny --data prompts.jsonl --reward learned:{model} --max-new-tokens 8 --output out.json"
        );
        let output = temper(temp.path(), &args);
        assert!(output.status.success(), "{}", stderr(&output));
        (
            json_file(&temp.path().join("out.json"))["rewards"].clone(),
            stderr(&output),
        )
    };
    let mean = |model: &str| {
        eval(model)
            .0
            .as_object()
            .unwrap()
            .values()
            .next()
            .unwrap()
            .clone()
    };
    assert_near(&mean("./padded"), &mean("./same"), 1e-6);
    assert!(eval("./other").1.contains("another tokenizer"));
    // A value network reads the policy's tokens.
    let ppo = format!(
        "(name: \"p\", model: \"tiny\", stages: [Ppo(name: \"ppo\", init: Base, {DATA}, reward: Learned(stage: \"./other\"),\n\
         total_episodes: 8, batch_size: 8, response_length: 8, max_prompt_length: 224)])"
    );
    fs::write(temp.path().join("p.ron"), ppo).unwrap();
    fail(
        temp.path(),
        "recipe p.ron --dry-run --no-time",
        2,
        &[
            "p.ron:1",
            "another tokenizer than the policy",
            "value_init: Policy",
        ],
    );
}

#[test]
fn a_reward_model_without_a_template_for_conversations_is_refused_first() {
    let temp = tempfile::tempdir().unwrap();
    let policy = tiny(temp.path(), "policy", |_| {}, as_it_is, &[]);
    fs::write(
        policy.join("chat_template.jinja"),
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
    )
    .unwrap();
    let reward = tiny(temp.path(), "reward", |_| {}, as_it_is, &[score(1)]);
    let recipe = "(name: \"r\", model: \"policy\", stages: [\n\
         Rank(name: \"rank\", init: Base, data: (source: Jsonl(\"rows.jsonl\")), num_responses: 2, response_length: 4,\n\
             max_prompt_length: 224, reward: Sum([(1.0, Learned(stage: \"./reward\"))]))])";
    fs::write(temp.path().join("r.ron"), recipe).unwrap();
    let conversation = json!([{"role": "user", "content": "Title: a day"}]);
    write_rows(
        temp.path().join("rows.jsonl"),
        &[json!({"prompt": conversation})],
    );
    // The policy's tokens are its own: the conversation is read as the policy saw it.
    succeed(temp.path(), "recipe r.ron --dry-run --no-time");
    let mut tokenizer = json_file(&reward.join("tokenizer.json"));
    let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    for id in vocab.values_mut().filter(|id| id.as_u64() != Some(0)) {
        *id = json!(id.as_u64().unwrap() % 767 + 1);
    }
    fs::write(reward.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    fail(
        temp.path(),
        "recipe r.ron --dry-run --no-time",
        2,
        &["r.ron:3", "no chat template", "chat_template.jinja"],
    );
    write_rows(
        temp.path().join("rows.jsonl"),
        &[json!({"prompt": "Title: a day"})],
    );
    succeed(temp.path(), "recipe r.ron --dry-run --no-time");
}

#[test]
fn reward_folders_and_compared_policies_are_looked_at_first() {
    let temp = tempfile::tempdir().unwrap();
    tiny(temp.path(), "two", |_| {}, as_it_is, &[score(2)]);
    tiny(temp.path(), "none", |_| {}, as_it_is, &[]);
    let recipe = |stage: &str| {
        format!(
            "(name: \"r\", model: \"tiny\", stages: [\n\
             Sft(name: \"sft\", {DATA}, batch_size: 8, max_length: 64),\n{stage}])"
        )
    };
    let rank = |reward: &str| {
        format!(
            "Rank(name: \"rank\", init: Base, {DATA}, num_responses: 2, response_length: 4, max_prompt_length: 224, reward: {reward})"
        )
    };
    let compare = |policies: &str| {
        format!(
            "Compare(name: \"c\", policies: {policies}, {DATA}, rewards: {{\"g\": Gold}}, response_length: 4, max_prompt_length: 224)"
        )
    };
    for (stage, parts) in [
        (
            rank("Learned(stage: \"./typo\")"),
            vec!["./typo", "No such file"],
        ),
        (
            rank("Learned(stage: \"./two\")"),
            vec!["./two/model.safetensors", "2 labels"],
        ),
        (
            rank("Sum([(1.0, Learned(stage: \"./none\"))])"),
            vec!["./none", "not a reward model"],
        ),
        (compare("[Base, Folder(\"typo2\")]"), vec!["typo2"]),
    ] {
        fs::write(temp.path().join("r.ron"), recipe(&stage)).unwrap();
        for command in [
            "recipe r.ron --dry-run --no-time",
            "recipe r.ron --output run",
        ] {
            let message = fail(temp.path(), command, 2, &parts);
            assert!(message.contains("r.ron:3"), "{message}");
        }
        assert!(!temp.path().join("run/sft").exists());
    }
}

#[test]
fn an_adapter_on_four_bits_is_merged_into_them_or_into_the_file() {
    let temp = tempfile::tempdir().unwrap();
    let recipe = format!(
        "(name: \"r\", model: \"tiny\", base_precision: nf4, stages: [\n\
         Sft(name: \"s\", {DATA}, peft: Lora(rank: 2), batch_size: 8, max_length: 64)])"
    );
    fs::write(temp.path().join("r.ron"), recipe).unwrap();
    succeed(temp.path(), "recipe r.ron --output run");
    let exported = |to: &str, options: &str| -> (String, f64) {
        let export = format!("export --run run --stage s --to {to} --merge {options}");
        let said = succeed(temp.path(), &export);
        assert!(said.contains("as trained (base in nf4)"), "{said}");
        let number = said.trim().rsplit(' ').next().unwrap().parse().unwrap();
        (said, number)
    };
    let (said, lost) = exported("file", "");
    assert!(lost > 1e-3 && said.contains("--as-trained"), "{said}");
    // Merging rounds in f32.
    let (said, lost) = exported("rounded", "--as-trained");
    assert!(lost < 1e-4 && !said.contains("--as-trained"), "{said}");
}

#[test]
fn an_export_is_measured_against_the_model_that_was_trained() {
    let temp = tempfile::tempdir().unwrap();
    let recipe = format!(
        "(name: \"r\", model: \"tiny\", base_precision: int8, stages: [\n\
         Sft(name: \"s\", {DATA}, peft: Lora(rank: 2), batch_size: 8, max_length: 64)])"
    );
    fs::write(temp.path().join("r.ron"), recipe).unwrap();
    succeed(temp.path(), "recipe r.ron --output run");
    let exported = |to: &str, options: &str| -> f64 {
        let export = format!("export --run run --stage s --to {to} --merge {options}");
        let said = succeed(temp.path(), &export);
        assert!(said.contains("as trained (base in int8)"), "{said}");
        said.trim().rsplit(' ').next().unwrap().parse().unwrap()
    };
    // The adapter says what its base was: commands take it, others are told, and another recipe is refused.
    let rows = "{\"prompt\": \"Once\", \"completion\": \" upon a time\"}\n";
    fs::write(temp.path().join("rows.jsonl"), rows).unwrap();
    let logprobs = |options: &str| {
        let command = "logprobs --model run/s/adapter --data rows.jsonl --output -";
        succeed(temp.path(), &format!("{command} {options}"))
    };
    assert_eq!(logprobs(""), logprobs("--base-precision int8"));
    assert_ne!(logprobs(""), logprobs("--base-precision f32"));
    let other = format!(
        "(name: \"r\", model: \"tiny\", base_precision: nf4, stages: [\n\
         Sft(name: \"t\", {DATA}, init: Folder(\"run/s/adapter\"), peft: Lora(rank: 2), batch_size: 8, max_length: 64)])"
    );
    fs::write(temp.path().join("other.ron"), other).unwrap();
    let refused = ["trained on a base in int8", "would be in nf4"];
    fail(temp.path(), "recipe other.ron --output other", 2, &refused);
    assert!(!temp.path().join("other/t").exists());

    let (single, half) = (exported("m32", ""), exported("m16", "--dtype bf16"));
    // The base in 8 bits alone moves log-probabilities by hundredths; a bf16 file is another one.
    assert!(
        single > 1e-3 && half > 1e-3 && single != half,
        "{single} {half}"
    );
    let config = json_file(&temp.path().join("m16/config.json"));
    assert_eq!(config["torch_dtype"], json!("bfloat16"));
}

#[test]
fn an_exported_reward_model_pads_with_a_token_that_ends_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let recipe = "(name: \"r\", model: \"tiny\", stages: [\n\
         RewardModel(name: \"full\", init: Base, data: (source: Jsonl(\"pairs.jsonl\")), batch_size: 2, max_length: 64),\n\
         RewardModel(name: \"lora\", init: Base, data: (source: Jsonl(\"pairs.jsonl\")), batch_size: 2, max_length: 64,\n\
             peft: Lora(rank: 2))])";
    fs::write(temp.path().join("r.ron"), recipe).unwrap();
    let pair = json!({"prompt": "Title", "chosen": " a day", "rejected": " a"});
    write_rows(temp.path().join("pairs.jsonl"), &[pair.clone(), pair]);
    succeed(temp.path(), "recipe r.ron --output run");
    write_rows(
        temp.path().join("rows.jsonl"),
        &[json!({"prompt": "Title", "completion": " a day"})],
    );
    let score = |model: &str| {
        let args = format!("score --model {model} --data rows.jsonl --output -");
        lines(&succeed(temp.path(), &args))[0]["score"].clone()
    };
    for (stage, options) in [("full", ""), ("lora", "--merge")] {
        let export = format!("export --run run --stage {stage} --to {stage} {options}");
        let said = succeed(temp.path(), &export);
        assert!(
            said.contains("rows are padded with \"<|pad|>\" (768)"),
            "{said}"
        );
        let folder = temp.path().join(stage);
        let config = json_file(&folder.join("config.json"));
        assert_eq!(
            (&config["pad_token_id"], &config["vocab_size"]),
            (&json!(768), &json!(769))
        );
        let tokenizer = json_file(&folder.join("tokenizer_config.json"));
        assert_eq!(tokenizer["pad_token"], json!("<|pad|>"));
        let source = ModelSource::find(folder.to_str().unwrap()).unwrap();
        assert_eq!(source.tokenizer().unwrap().pad_id(), Some(768));
        assert_near(&score(stage), &score(&format!("run/{stage}")), 1e-5);
    }
}

/// Every tensor with NaN or infinite numbers is named with their count, by commands and recipes, before the base is loaded: the
/// command's base cannot be, as no tensor has its shape.
#[test]
fn numbers_of_an_adapter_that_are_not_finite_are_named_before_the_base_is_loaded() {
    let temp = tempfile::tempdir().unwrap();
    let stage = |init: &str| {
        format!(
            "(name: \"r\", model: \"tiny\", stages: [\n\
             Sft(name: \"s\", init: {init}, {DATA}, peft: Lora(rank: 4), batch_size: 8, max_length: 64)])"
        )
    };
    fs::write(temp.path().join("r.ron"), stage("Base")).unwrap();
    succeed(temp.path(), "recipe r.ron --output run");
    succeed(temp.path(), "export --run run --stage s --to broken");
    let file = temp.path().join("broken/adapter_model.safetensors");
    let source = weights::open(&file).unwrap();
    let mut tensors: Vec<_> = (source.names().into_iter())
        .map(|name| {
            let values = source.read(&name).unwrap();
            (name.clone(), source.shape(&name).unwrap(), values)
        })
        .collect();
    drop(source);
    tensors[1].2[3..5].fill(f32::NAN);
    tensors[2].2[0] = f32::NEG_INFINITY;
    write_safetensors(&file, &tensors).unwrap();
    let mut parts = vec!["2 problems".to_owned()];
    for ((name, _, values), count) in tensors[1..3].iter().zip([2, 1]) {
        let total = values.len();
        parts.push(format!(
            "{name}: {count} of {total} numbers are NaN or infinite"
        ));
    }
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    fs::write(temp.path().join("r.ron"), stage("Folder(\"broken\")")).unwrap();
    fail(temp.path(), "recipe r.ron --dry-run --no-time", 2, &parts);

    let base = tiny(
        temp.path(),
        "base",
        |_| {},
        |_, _, _| (vec![1], vec![0.0]),
        &[],
    );
    assert!(base.is_dir());
    let generate = "generate --model base --adapter broken --prompt x";
    fail(temp.path(), generate, 2, &parts);
}
