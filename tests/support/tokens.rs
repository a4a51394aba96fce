//! Which tokenizer, template and stop tokens the binary takes, and what it writes of them.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

/// The last entry of the embedded model's vocabulary, as the vocabulary spells it.
const LAST: &str = "\u{120}needs";
const LAST_ID: u32 = 767;

/// A folder with a copy of the embedded model in `m`, whose files can be changed.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny");
        fs::create_dir(folder.path().join("m")).unwrap();
        for name in [
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "model.safetensors",
        ] {
            // Written anew: a copy would keep the permissions of the original.
            let bytes = fs::read(tiny.join(name)).unwrap();
            fs::write(folder.path().join("m").join(name), bytes).unwrap();
        }
        Self(folder)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn json(&self, name: &str) -> Value {
        let path = self.0.path().join(name);
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
        serde_json::from_str(&text).unwrap()
    }

    fn change(&self, name: &str, change: impl Fn(&mut Value)) {
        let mut value = self.json(name);
        change(&mut value);
        self.write(name, &value.to_string());
    }

    /// Standard output, standard error and the exit code.
    fn temper(&self, args: &[&str]) -> (String, String, i32) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_temper"));
        let home = self.0.path().join("home");
        command
            .current_dir(self.0.path())
            .env("TEMPERING_HOME", home);
        let output = command
            .args(args)
            .args(["--threads", "1"])
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let code = output.status.code().unwrap_or(-1);
        (text(output.stdout), text(output.stderr), code)
    }

    #[track_caller]
    fn succeed(&self, args: &[&str]) -> (String, String) {
        let (out, err, code) = self.temper(args);
        assert_eq!(code, 0, "{args:?}: {err}");
        (out, err)
    }

    fn inspect(&self, rows: &Value, stage: &str) -> String {
        self.write("rows.jsonl", &format!("{rows}\n"));
        let recipe = format!("(name: \"t\", model: \"m\", stages: [{stage}])");
        self.write("r.ron", &recipe);
        self.succeed(&["inspect", "r.ron"]).0
    }
}

fn talk() -> Value {
    json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}])
}

const SFT: &str = "Sft(name: \"s\", data: (source: Jsonl(\"rows.jsonl\")), batch_size: 1)";

/// transformers saves several templates as a file and a folder beside it.
pub(crate) fn the_template_folder_is_shown_by_inspect() {
    let folder = Folder::new();
    let turns = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}";
    folder.write("m/chat_template.jinja", turns);
    let tools = format!("[tools] {{{{ tools | tojson }}}}{{{{ eos_token }}}}{turns}");
    folder.write("m/additional_chat_templates/tool_use.jinja", &tools);
    let row = json!({"messages": talk(), "tools": [{"type": "function"}]});
    let shown = folder.inspect(&row, SFT);
    let text = shown.replace('|', "");
    assert!(
        text.contains("\n[tools]\u{b7}[{\"type\":\u{b7}\"function\"}]"),
        "{shown}"
    );
    assert!(
        !folder
            .inspect(&json!({"messages": talk()}), SFT)
            .contains("tools")
    );
}

/// As TRL 1.16 does, with a word about it.
pub(crate) fn a_prompt_that_opens_thinking_is_trained_on_from_where_it_parts() {
    let folder = Folder::new();
    folder.write(
        "m/chat_template.jinja",
        "{% for m in messages %}{% if m.role == 'assistant' %}[assistant]{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% else %}[user]{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]<think>\n{% endif %}\n",
    );
    let [user, assistant] = [&talk()[0], &talk()[1]].map(Value::clone);
    let rows = [
        json!({"messages": talk()}),
        json!({"prompt": [user], "completion": [assistant]}),
    ];
    for row in rows {
        for turns in ["All", "Last"] {
            let stage = format!(
                "Sft(name: \"s\", data: (source: Jsonl(\"rows.jsonl\"), format: (assistant_turns: {turns})), batch_size: 1)"
            );
            let shown = folder.inspect(&row, &stage);
            assert!(shown.contains("\u{ab}y|o|<|endoftext|>\u{bb}"), "{shown}");
            assert!(
                shown.contains("warning: with the generation prompt the chat template ends a prompt with \"<think>\\n\""),
                "{shown}"
            );
        }
    }
}

/// Qwen's base models end texts with one token and turns with another.
pub(crate) fn the_end_of_turns_is_named_and_written() {
    let folder = Folder::new();
    folder.change("m/tokenizer_config.json", |config| {
        config["additional_special_tokens"] = json!([LAST]);
    });
    let template = format!(
        "{{% for m in messages %}}[{{{{ m.role }}}}] {{{{ m.content }}}}{LAST}\n{{% endfor %}}{{% if add_generation_prompt %}}[assistant] {{% endif %}}"
    );
    folder.write("m/chat_template.jinja", &template);
    let row = json!({"messages": talk()}).to_string();
    folder.write("rows.jsonl", &format!("{row}\n{row}\n"));
    let recipe = |eos: &str| {
        format!(
            "(name: \"t\", model: \"m\", {eos}stages: [Sft(name: \"s\", data: (source: Jsonl(\"rows.jsonl\")), batch_size: 2, peft: Lora(rank: 2))])"
        )
    };
    folder.write("r.ron", &recipe(""));
    let (_, err) = folder.succeed(&["recipe", "r.ron", "--output", "run"]);
    assert!(
        err.contains("the chat template ends turns with \"\u{120}needs\", the tokenizer's EOS is \"<|endoftext|>\""),
        "{err}"
    );
    assert!(
        err.contains("set `eos_token: \"\u{120}needs\"` beside `model`"),
        "{err}"
    );
    folder.succeed(&[
        "export", "--run", "run", "--stage", "s", "--to", "exp", "--merge",
    ]);
    assert_eq!(
        folder.json("exp/generation_config.json")["eos_token_id"],
        json!([0, LAST_ID])
    );
    assert_eq!(folder.json("exp/config.json")["eos_token_id"], json!(0));

    folder.write("r.ron", &recipe(&format!("eos_token: \"{LAST}\", ")));
    let (_, err) = folder.succeed(&["recipe", "r.ron", "--output", "run2"]);
    assert!(
        !err.contains("warning") && !err.contains("without EOS"),
        "{err}"
    );
    folder.succeed(&[
        "export", "--run", "run2", "--stage", "s", "--to", "exp2", "--merge",
    ]);
    assert_eq!(
        folder.json("exp2/generation_config.json")["eos_token_id"],
        json!([LAST_ID, 0])
    );
    assert_eq!(
        folder.json("exp2/config.json")["eos_token_id"],
        json!(LAST_ID)
    );
    assert_eq!(
        folder.json("exp2/tokenizer_config.json")["eos_token"],
        json!(LAST)
    );

    folder.write("r.ron", &recipe("eos_token: \"<none>\", "));
    let (_, err, code) = folder.temper(&["recipe", "r.ron", "--dry-run", "--no-time"]);
    assert_eq!(code, 2, "{err}");
    assert!(
        err.contains("eos_token: \"<none>\" is not a token of the vocabulary in m"),
        "{err}"
    );
}

/// The number of tokens says nothing about their ids.
pub(crate) fn ids_without_an_embedding_are_refused_before_training() {
    let folder = Folder::new();
    folder.change("m/tokenizer.json", |tokenizer| {
        tokenizer["model"]["vocab"][LAST] = json!(800);
    });
    let message = "token id 800 (`needs`): the model has ids 0 to 767";
    let row = json!({"prompt": "a", "completion": " needs"});
    folder.write("rows.jsonl", &format!("{row}\n"));
    let inits = [
        "model: \"m\", stages: [Sft(",
        "stages: [Sft(init: Random(\"m/config.json\"), ",
    ];
    for start in inits {
        folder.write(
            "r.ron",
            &format!("(name: \"t\", {start}name: \"s\", data: (source: Jsonl(\"rows.jsonl\")), batch_size: 1)])"),
        );
        for how in [vec!["--dry-run", "--no-time"], vec!["--output", "run"]] {
            let (_, err, code) = folder.temper(&[&["recipe", "r.ron"], how.as_slice()].concat());
            assert_eq!(code, 2, "{err}");
            assert!(err.contains(message), "{err}");
            assert!(!err.contains("panicked"), "{err}");
        }
    }
    let folder = Folder::new();
    let ranked = json!({"prompt_ids": [1], "response_ids": [[2], [768]], "scores": [0.0, 1.0]});
    folder.write("rows.jsonl", &format!("{ranked}\n"));
    folder.write("r.ron", "(name: \"t\", model: \"m\", stages: [Dpo(name: \"s\", init: Base, data: (source: Jsonl(\"rows.jsonl\")), batch_size: 1)])");
    let (_, err, code) = folder.temper(&["recipe", "r.ron", "--output", "run"]);
    assert_eq!(code, 2, "{err}");
    assert!(
        err.contains("token id 768: the model has ids 0 to 767"),
        "{err}"
    );
}

/// transformers takes them where there is no `generation_config.json`.
pub(crate) fn generation_stops_at_ids_of_the_model_configuration() {
    let folder = Folder::new();
    let generate = || -> Value {
        let args = [
            "generate",
            "--model",
            "m",
            "--data",
            "p.jsonl",
            "--temperature",
            "0",
            "--max-new-tokens",
            "8",
        ];
        serde_json::from_str(&folder.succeed(&args).0).unwrap()
    };
    folder.write("p.jsonl", "{\"prompt\": \"My friend\"}\n");
    let ids: Vec<u32> = serde_json::from_value(generate()["ids"].clone()).unwrap();
    let new = |at: &usize| !ids[..*at].contains(&ids[*at]);
    let at = (2..ids.len()).find(new).expect("a token that is new");
    folder.change("m/config.json", |config| {
        config["eos_token_id"] = json!([0, ids[at]])
    });
    let stopped = generate();
    assert_eq!(
        (&stopped["ids"], &stopped["stopped"]),
        (&json!(ids[..=at]), &json!(true))
    );
}
