//! Encoders that classify texts: their scores, as rewards of recipes, and where they are refused.

use super::*;

const DATA: &str = "data: (source: Posts(rows: 6, seed: 3))";

/// The texts of a reference as a data file.
fn text_rows(folder: &Path, name: &str) -> Value {
    let reference = reference(name);
    let texts = reference["texts"].as_array().unwrap();
    let rows: Vec<Value> = texts.iter().map(|text| json!({ "text": text })).collect();
    write_rows(folder.join("rows.jsonl"), &rows);
    let pairs = reference["pairs"].as_array().unwrap();
    let pair = |pair: &Value| json!({"prompt": pair[0], "completion": pair[1]});
    let rows: Vec<Value> = pairs.iter().map(pair).collect();
    write_rows(folder.join("pairs.jsonl"), &rows);
    reference
}

fn column(text: &str, of: impl Fn(&Value) -> Value) -> Value {
    lines(text).iter().map(of).collect()
}

#[test]
fn a_classifier_scores_all_its_labels() {
    let temp = tempfile::tempdir().unwrap();
    let expected = text_rows(temp.path(), "encoders/bert");
    let output = temper(
        temp.path(),
        "score --model REF/encoders/bert --data rows.jsonl --output -",
    );
    assert!(output.status.success(), "{}", stderr(&output));
    let warning = "warning: 2 texts of 6 had more than 24 tokens, and were cut";
    assert!(stderr(&output).contains(warning), "{}", stderr(&output));
    let all = |row: &Value| {
        let scores = &row["scores"];
        json!([scores["NEGATIVE"], scores["NEUTRAL"], scores["POSITIVE"]])
    };
    assert_near(&column(&stdout(&output), all), &expected["logits"], 1e-5);
    let first = &lines(&stdout(&output))[0];
    assert_eq!(first["label"], "NEGATIVE");
    assert_eq!(first["score"], first["scores"]["NEGATIVE"]);

    let named = succeed(
        temp.path(),
        "score --model REF/encoders/bert --data pairs.jsonl --reads pair --label POSITIVE --label-score probability --output -",
    );
    // Softmax of the reference's logits.
    let probability = |logits: &Value| {
        let exp = |i: usize| logits[i].as_f64().unwrap().exp();
        json!(exp(2) / (exp(0) + exp(1) + exp(2)))
    };
    let pairs = expected["pair_logits"].as_array().unwrap().iter();
    let probabilities: Value = pairs.map(probability).collect();
    assert_near(
        &column(&named, |row| row["score"].clone()),
        &probabilities,
        1e-6,
    );
    assert_eq!(lines(&named)[0]["label"], "POSITIVE");

    let score = "score --model REF/encoders/bert --data rows.jsonl --output -";
    let parts = [
        "--label: the classifier has no label \"positive\"",
        "did you mean `POSITIVE`?",
    ];
    fail(temp.path(), &format!("{score} --label positive"), 2, &parts);
    let parts = ["rows.jsonl:1: expected {\"prompt\": \"..\", \"completion\": \"..\"}"];
    fail(temp.path(), &format!("{score} --reads pair"), 1, &parts);
    let language_model = "score --model tiny --data rows.jsonl --label POSITIVE --output -";
    fail(
        temp.path(),
        language_model,
        2,
        &["--label is for classifiers"],
    );
}

#[test]
fn an_encoder_is_no_language_model() {
    let temp = tempfile::tempdir().unwrap();
    text_rows(temp.path(), "encoders/roberta");
    let parts = [
        "roberta/config.json: the model is an encoder (model_type \"roberta\"), which scores texts and generates none",
        "`Classifier(model: \"..\", label: \"..\")`",
        "`temper score --model`",
    ];
    for args in [
        "generate --model REF/encoders/roberta --prompt x",
        "chat --model REF/encoders/roberta",
        "logprobs --model REF/encoders/roberta --data rows.jsonl --output -",
    ] {
        fail(temp.path(), args, 2, &parts);
    }
    let folder = reference_dir("encoders/roberta");
    let recipe = format!(
        "(name: \"r\", model: \"{}\", stages: [Sft(name: \"s\", {DATA}, peft: Lora(rank: 4), batch_size: 4)])",
        folder.display()
    );
    fs::write(temp.path().join("r.ron"), recipe).unwrap();
    fail(temp.path(), "recipe r.ron --dry-run --no-time", 2, &parts);

    let tree = succeed(temp.path(), "inspect --model REF/encoders/bert");
    for part in [
        "· · · 0 to 1 (2 alike)",
        "BertForSequenceClassification, an encoder; at most 24 tokens; labels `NEGATIVE`, `NEUTRAL`, `POSITIVE`",
    ] {
        assert!(tree.contains(part), "{tree}");
    }
    let peft = "inspect --model REF/encoders/bert --peft Full";
    fail(
        temp.path(),
        peft,
        2,
        &[
            "--peft:",
            "is an encoder (bert), and encoders are not trained",
        ],
    );

    // The same network without a head for labels.
    let bare = temp.path().join("bare");
    fs::create_dir(&bare).unwrap();
    let file = fs::read_to_string(folder.join("config.json")).unwrap();
    let masked = file.replace("RobertaForSequenceClassification", "RobertaForMaskedLM");
    fs::write(bare.join("config.json"), masked).unwrap();
    let parts = [
        "the model is a RobertaForMaskedLM, an encoder without a head for labels; expected RobertaForSequenceClassification",
    ];
    fail(
        temp.path(),
        "score --model bare --data rows.jsonl --output -",
        1,
        &parts,
    );
}

fn rank(reward: &str) -> String {
    format!(
        "(name: \"r\", model: \"tiny\", stages: [Rank(name: \"rank\", init: Base, {DATA}, num_responses: 2,\n\
         response_length: 4, max_prompt_length: 224, valid_fraction: 0.0,\n\
         reward: {})])",
        reward.replace(
            "REF",
            repository()
                .join("tests/reference/encoders")
                .to_str()
                .unwrap()
        )
    )
}

#[test]
fn labels_are_checked_before_weights_are_read() {
    let temp = tempfile::tempdir().unwrap();
    // Weights that cannot be read.
    let broken = temp.path().join("broken");
    fs::create_dir(&broken).unwrap();
    for entry in fs::read_dir(reference_dir("encoders/roberta")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, broken.join(path.file_name().unwrap())).unwrap();
    }
    fs::write(broken.join("model.safetensors"), [0; 4]).unwrap();
    for (reward, parts) in [
        (
            "Classifier(model: \"REF/bert\")",
            [
                "r.ron:3:",
                "the classifier has 3 labels; name the one whose score is meant",
            ],
        ),
        (
            "Sum([(1.0, Classifier(model: \"REF/bert\", label: 3))])",
            [
                "r.ron:3:",
                "no label 3; it has 0 = \"NEGATIVE\", 1 = \"NEUTRAL\", 2 = \"POSITIVE\"",
            ],
        ),
        (
            "Classifier(model: \"REF/bert\", label: \"POSITVE\")",
            ["r.ron:3:", "did you mean `POSITIVE`?"],
        ),
        (
            "Classifier(model: \"REF/../llama_tied\")",
            [
                "r.ron:3:",
                "model_type \"llama\" is no encoder that is read; supported are bert, distilbert, roberta",
            ],
        ),
        ("Classifier(model: \"./typo\")", ["r.ron:3:", "./typo"]),
        (
            "Classifier(model: \"broken\", label: 0)",
            ["r.ron:3:", "broken/model.safetensors"],
        ),
        (
            "Learned(stage: \"REF/bert\")",
            [
                "r.ron:3:",
                "as a reward of a recipe it is `Classifier(model: \"..\", label: \"..\")`",
            ],
        ),
    ] {
        fs::write(temp.path().join("r.ron"), rank(reward)).unwrap();
        fail(temp.path(), "recipe r.ron --dry-run --no-time", 2, &parts);
    }
    fs::write(
        temp.path().join("r.ron"),
        rank("Classifier(model: \"REF/distilbert\")"),
    )
    .unwrap();
    let plan = succeed(temp.path(), "recipe r.ron --dry-run --no-time");
    assert!(plan.contains("classifiers"), "{plan}");
}

/// The scores that a recipe ranks, trains and compares by are those of `temper score`.
#[test]
fn a_recipe_is_rewarded_by_a_classifier() {
    let temp = tempfile::tempdir().unwrap();
    let classifier = |rest: &str| {
        format!(
            "Classifier(model: \"{}\"{rest})",
            reference_dir("encoders/bert").display()
        )
    };
    let response = classifier(", label: \"POSITIVE\", output: LogProb, reads: Response");
    let recipe = format!(
        "(name: \"r\", model: \"tiny\", stages: [\n\
         Rank(name: \"rank\", init: Base, {DATA}, num_responses: 2, response_length: 4, max_prompt_length: 224,\n\
           valid_fraction: 0.0, reward: {response}),\n\
         Ppo(name: \"ppo\", init: Base, {DATA}, reward: Sum([(2.0, {response})]), gold: {}, peft: Lora(rank: 2),\n\
           total_episodes: 4, batch_size: 4, num_mini_batches: 1, response_length: 4, max_prompt_length: 224),\n\
         Compare(name: \"end\", policies: [Base, Stage(\"ppo\")], {DATA}, response_length: 4, max_prompt_length: 224,\n\
           rewards: {{\"positive\": {response}}}),\n\
         ])",
        classifier(", label: 2")
    );
    fs::write(temp.path().join("r.ron"), recipe).unwrap();
    let output = temper(temp.path(), "recipe r.ron --output run");
    assert!(output.status.success(), "{}", stderr(&output));
    // Every stage that loaded it has its files in the lineage, and the report of the run names it once.
    let info = fs::read_to_string(temp.path().join("run/run.json")).unwrap();
    let info: Value = serde_json::from_str(&info).unwrap();
    let roles_of = |entry: &Value| -> Vec<String> {
        let models = entry["models"].as_array().unwrap().iter();
        let text = |model: &Value| {
            let hash = model["files"][0]["sha256"].as_str().unwrap();
            assert_eq!(hash.len(), 64, "{model}");
            let name = model["name"].as_str().unwrap().rsplit('/').next().unwrap();
            format!("{}: {name}", model["role"].as_str().unwrap())
        };
        models.map(text).collect()
    };
    let roles: Vec<Vec<String>> = (info["lineage"].as_array().unwrap().iter())
        .map(roles_of)
        .collect();
    let (base, classifier) = ("policy: tiny", "reward: bert");
    let expected: [&[&str]; 3] = [
        &[base, classifier],
        &[base, classifier],
        &[base, classifier, "policy: ppo"],
    ];
    assert_eq!(roles, expected);
    let page = fs::read_to_string(temp.path().join("run/report.html")).unwrap();
    assert_eq!(page.matches("encoders/bert (reward): ").count(), 1);
    // Prompts are longer than the classifier reads.
    let warning = "had more than 24 tokens, and it did not read their beginning";
    assert!(stderr(&output).contains(warning), "{}", stderr(&output));
    let ranked = lines(&fs::read_to_string(temp.path().join("run/rank/train.jsonl")).unwrap());
    let rows = ranked.iter().flat_map(|row| {
        let responses = row["responses"].as_array().unwrap().iter();
        responses.map(|response| json!({"prompt": row["prompt"], "completion": response}))
    });
    write_rows(temp.path().join("ranked.jsonl"), &rows.collect::<Vec<_>>());
    let expected: Value = ranked
        .iter()
        .flat_map(|row| row["scores"].as_array().unwrap().clone())
        .collect();
    let scores = succeed(
        temp.path(),
        "score --model REF/encoders/bert --data ranked.jsonl --reads response --label POSITIVE --label-score log-prob --output -",
    );
    assert_near(
        &column(&scores, |row| row["score"].clone()),
        &expected,
        1e-6,
    );
    let eval = succeed(
        temp.path(),
        "eval --model tiny --data ranked.jsonl --max-new-tokens 2 --reward classifier:REF/encoders/bert#POSITIVE",
    );
    assert!(eval.contains("encoders/bert#POSITIVE |"), "{eval}");
}
