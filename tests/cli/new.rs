//! `temper new`: what it writes is a recipe that passes the check.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::{fail, succeed, text_model, write_rows};

fn rows(folder: &Path) {
    let csv: String = (0..200)
        .map(|i| format!("\"What is {i},\nplus one?\",It is {}.\n", i + 1))
        .collect();
    fs::write(
        folder.join("my data.csv"),
        format!("prompt,completion\n{csv}"),
    )
    .unwrap();
    let pairs: Vec<Value> = (0..60)
        .map(|i| json!({"prompt": format!("What is {i}?"), "chosen": "short", "rejected": "long and longer"}))
        .collect();
    write_rows(folder.join("judged.jsonl"), &pairs);
    let thumbs: Vec<Value> = (0..60)
        .map(|i| json!({"prompt": format!("What is {i}?"), "completion": "short", "label": i % 2 == 0}))
        .collect();
    write_rows(folder.join("thumbs.jsonl"), &thumbs);
}

#[test]
fn every_kind_of_recipe_passes_the_check() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    text_model(folder);
    rows(folder);
    fs::rename(folder.join("my data.csv"), folder.join("mine.csv")).unwrap();
    for (kind, data, file, parts) in [
        (
            "sft",
            "mine.csv",
            "mine-sft.ron",
            &["Sft(", "max_length: 32", "epochs: 3"][..],
        ),
        (
            "dpo",
            "judged.jsonl",
            "judged-dpo.ron",
            &["Dpo(", "beta: 0.1"],
        ),
        (
            "kto",
            "thumbs.jsonl",
            "thumbs-kto.ron",
            &["Kto(", "beta: 0.1"],
        ),
        (
            "reward",
            "judged.jsonl",
            "judged-reward.ron",
            &["RewardModel("],
        ),
        (
            "pipeline",
            "mine.csv --preferences judged.jsonl",
            "mine-pipeline.ron",
            &["Ppo(", "Compare("],
        ),
    ] {
        let said = succeed(
            folder,
            &format!("new {kind} --model text-model --data {data}"),
        );
        assert!(said.contains(&format!("temper recipe {file}")), "{said}");
        let text = fs::read_to_string(folder.join(file)).unwrap();
        for part in parts {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        succeed(folder, &format!("recipe {file} --dry-run --no-time"));
        let again = format!("new {kind} --model text-model --data {data}");
        fail(folder, &again, 2, &["exists already"]);
    }
    // What was written runs, here for fewer steps than an epoch has.
    let short = "recipe mine-sft.ron --set stages.sft.max_steps=2 --output short";
    succeed(folder, short);
    let metrics = fs::read_to_string(folder.join("short/sft/metrics.jsonl")).unwrap();
    let last: Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    assert_eq!(last["step"], 2, "{metrics}");
    // A model with a chat template gets the texts as messages.
    let template = "{% for m in messages %}{{ m['content'] + '<|endoftext|>' }}{% endfor %}";
    fs::write(folder.join("text-model/chat_template.jinja"), template).unwrap();
    succeed(
        folder,
        "new sft --model text-model --data mine.csv --output chat.ron",
    );
    assert!(
        fs::read_to_string(folder.join("chat.ron"))
            .unwrap()
            .contains("format: (chat: true)")
    );
    // Less memory than the plain recipe needs, and less than any.
    let words = "word ".repeat(60);
    let wide: String = (0..2_000)
        .map(|i| format!("{words}{i},It is so.\n"))
        .collect();
    fs::write(
        folder.join("wide.csv"),
        format!("prompt,completion\n{wide}"),
    )
    .unwrap();
    let wide = "new sft --model text-model --data wide.csv --output";
    let said = succeed(folder, &format!("{wide} plain.ron"));
    let plan = said.lines().find(|line| line.starts_with("sft ")).unwrap();
    let words: Vec<&str> = plan.split_whitespace().collect();
    let [.., peak, "MiB"] = words[..] else {
        panic!("{plan}")
    };
    let less = peak.parse::<f64>().unwrap() - 1.0;
    succeed(
        folder,
        &format!("{wide} small.ron --device-memory {less}MiB"),
    );
    let text = |file: &str| fs::read_to_string(folder.join(file)).unwrap();
    assert!(text("plain.ron").contains("micro_batch_tokens: 4096"));
    assert!(text("small.ron").contains("micro_batch_tokens: 1024"));
    fail(
        folder,
        &format!("{wide} none.ron --device-memory 1MB"),
        2,
        &["needs an estimated"],
    );
    fail(
        folder,
        "new dpo --model text-model --data mine.csv --output none.ron",
        2,
        &["mine.csv", "chosen"],
    );
    assert!(!folder.join("none.ron").exists());
}
