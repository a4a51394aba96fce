//! `temper serve`: each endpoint against the commands that compute the same, limits, aborts and the end.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempering::model::weights::write_safetensors;
use tempering::peft::{saved_key, tensor_key};

use super::{assert_near, command, fail, lines, succeed, text_model, write_rows};

/// A template that reads tools.
const TEMPLATE: &str = "{% if tools %}{{ tools | length }} tools\n{% endif %}{% for m in messages %}{{ '[' + m['role'] + '] ' + m['content'] + '\n' }}{% endfor %}\
                        {% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}";

/// `text-model`, an adapter `low` and a reward model `rm` on it.
fn workplace() -> tempfile::TempDir {
    let temp = tempfile::tempdir().unwrap();
    let dir = text_model(temp.path());
    fs::write(dir.join("chat_template.jinja"), TEMPLATE).unwrap();
    let wave = |len: usize, scale: f32| -> Vec<f32> {
        (0..len)
            .map(|i| ((i * 7 % 11) as f32 - 5.0) * scale)
            .collect()
    };
    for (name, task, saved) in [
        ("low", "CAUSAL_LM", json!(null)),
        ("rm", "SEQ_CLS", json!(["score"])),
    ] {
        let adapter = temp.path().join(name);
        fs::create_dir(&adapter).unwrap();
        let config = json!({
            "peft_type": "LORA", "task_type": task, "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"],
            "modules_to_save": saved, "base_model_name_or_path": dir
        });
        fs::write(adapter.join("adapter_config.json"), config.to_string()).unwrap();
        let layer = "model.layers.0.self_attn.q_proj";
        let mut tensors = vec![
            (
                tensor_key(layer, "lora_A.weight"),
                vec![1, 32],
                wave(32, 0.2),
            ),
            (
                tensor_key(layer, "lora_B.weight"),
                vec![32, 1],
                wave(32, 0.2),
            ),
        ];
        if task == "SEQ_CLS" {
            tensors.push((saved_key("score.weight"), vec![1, 32], wave(32, 0.1)));
        }
        write_safetensors(adapter.join("adapter_model.safetensors"), &tensors).unwrap();
    }
    temp
}

/// A server in a process of its own.
struct Server {
    child: Child,
    url: String,
    said: Arc<Mutex<String>>,
    key: Option<&'static str>,
}

impl Server {
    fn start(folder: &Path, args: &str) -> Self {
        let mut child = command(folder, &format!("serve --port 0 {args}"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = Arc::new(Mutex::new(String::new()));
        let theirs = said.clone();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut url = None;
        let mut line = String::new();
        while url.is_none() && stderr.read_line(&mut line).unwrap() > 0 {
            url = line.trim().strip_prefix("listening on ").map(str::to_owned);
            theirs.lock().unwrap().push_str(&line);
            line.clear();
        }
        std::thread::spawn(move || {
            let mut line = String::new();
            while stderr.read_line(&mut line).unwrap_or(0) > 0 {
                theirs.lock().unwrap().push_str(&line);
                line.clear();
            }
        });
        let url = url.unwrap_or_else(|| panic!("{}", said.lock().unwrap()));
        Self {
            child,
            url,
            said,
            key: None,
        }
    }

    fn send(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .build()
            .into();
        let url = format!("{}{path}", self.url);
        let key = self.key.map(|key| format!("Bearer {key}"));
        let mut response = match method {
            "GET" => {
                let request = agent.get(&url);
                match &key {
                    Some(key) => request.header("Authorization", key).call(),
                    None => request.call(),
                }
            }
            _ => {
                let request = agent.post(&url).header("Content-Type", "application/json");
                match &key {
                    Some(key) => request.header("Authorization", key).send(body),
                    None => request.send(body),
                }
            }
        }
        .unwrap();
        let status = response.status().as_u16();
        (status, response.body_mut().read_to_string().unwrap())
    }

    fn get(&self, path: &str) -> Value {
        let (status, text) = self.send("GET", path, "");
        assert_eq!(status, 200, "{path}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    #[track_caller]
    fn post(&self, path: &str, body: &Value) -> Value {
        let (status, text) = self.send("POST", path, &body.to_string());
        assert_eq!(status, 200, "{body}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    /// Status, message and code of a refusal.
    #[track_caller]
    fn refused(&self, path: &str, body: &Value) -> (u16, String, Value) {
        let (status, text) = self.send("POST", path, &body.to_string());
        let error: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"));
        let message = error["error"]["message"].as_str().unwrap().to_owned();
        (status, message, error["error"]["code"].clone())
    }

    /// The events of a streamed answer.
    fn events(&self, path: &str, body: &Value) -> Vec<Value> {
        let (status, text) = self.send("POST", path, &body.to_string());
        assert_eq!(status, 200, "{text}");
        let mut events: Vec<&str> = text
            .split("\n\n")
            .filter(|event| !event.is_empty())
            .collect();
        assert_eq!(events.pop(), Some("data: [DONE]"));
        let data = |event: &&str| serde_json::from_str(event.strip_prefix("data: ").unwrap());
        events.iter().map(|event| data(event).unwrap()).collect()
    }

    fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.send("GET", "/metrics", "");
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("{name}: {text}"))
            .parse()
            .unwrap()
    }

    /// Waits until a metric is as wanted.
    #[track_caller]
    fn wait_for(&self, name: &str, wanted: impl Fn(f64) -> bool) {
        let begin = Instant::now();
        while !wanted(self.metric(name)) {
            assert!(
                begin.elapsed() < Duration::from_secs(30),
                "{name}: {}",
                self.metric(name)
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn signal(&self) {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_server_says_what_the_commands_say() {
    let temp = workplace();
    let folder = temp.path();
    let server = Server::start(
        folder,
        "--model text-model --adapter low --adapter judge=rm",
    );
    assert_eq!(server.get("/health"), json!({"status": "ok"}));
    let models = server.get("/v1/models");
    let list: Vec<(&str, &str)> = (models["data"].as_array().unwrap().iter())
        .map(|model| {
            (
                model["id"].as_str().unwrap(),
                model["kind"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        list,
        [
            ("text-model", "policy"),
            ("low", "policy"),
            ("judge", "reward")
        ]
    );
    assert_eq!(server.get("/v1/models/low")["max_model_len"], 256);

    // Each model with each setting: as `temper generate` on its own, choice by choice.
    let complete = |body: Value| server.post("/v1/completions", &body);
    for (model, args) in [("text-model", ""), ("low", "--adapter low")] {
        let generated = lines(&succeed(
            folder,
            &format!(
                "generate --model text-model {args} --raw --prompt once --json --seed 5 --num-responses 3 --max-new-tokens 12 \
                 --temperature 0.9 --top-p 0.95"
            ),
        ));
        let answer = complete(json!({
            "model": model, "prompt": "once", "seed": 5, "n": 3, "max_tokens": 12, "temperature": 0.9, "top_p": 0.95
        }));
        for (at, row) in generated.iter().enumerate() {
            let choice = &answer["choices"][at];
            assert_eq!(choice["text"], row["completion"], "{model} {at}");
            let finish = if row["stopped"] == true {
                "stop"
            } else {
                "length"
            };
            assert_eq!(choice["finish_reason"], finish);
        }
        let sampled: usize = generated
            .iter()
            .map(|row| row["ids"].as_array().unwrap().len())
            .sum();
        assert_eq!(answer["usage"]["completion_tokens"], sampled);
    }
    let greedy =
        json!({"model": "text-model", "prompt": "once", "max_tokens": 20, "temperature": 0});
    let bare = complete(greedy.clone());
    let with = |name: &str, value: Value| {
        let mut body = greedy.clone();
        body[name] = value;
        body
    };
    assert_ne!(
        complete(with("model", json!("low")))["choices"][0]["text"],
        bare["choices"][0]["text"]
    );

    // Text ends before a stop string.
    let text = bare["choices"][0]["text"].as_str().unwrap();
    let middle = text.char_indices().nth(text.chars().count() / 2).unwrap().0;
    let stop: String = text[middle..].chars().take(3).collect();
    let before = &text[..text.find(&stop).unwrap()];
    let stopped = complete(with("stop", json!([stop])));
    assert_eq!(stopped["choices"][0]["text"], before);
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");

    // Prompts with their log-probabilities: those of `temper logprobs`, and generated tokens go on from there.
    write_rows(
        folder.join("rows.jsonl"),
        &[json!({"input_ids": [9, 40, 41, 300, 17]})],
    );
    let measured = lines(&succeed(
        folder,
        "logprobs --model text-model --data rows.jsonl --output -",
    ));
    let echoed = complete(json!({
        "model": "text-model", "prompt": [[9, 40, 41, 300, 17], [5, 6]], "echo": true, "logprobs": 2, "max_tokens": 2,
        "temperature": 0
    }));
    let shown = &echoed["choices"][0]["logprobs"];
    assert_eq!(shown["token_logprobs"][0], Value::Null);
    let own: Vec<Value> = shown["token_logprobs"].as_array().unwrap()[1..5].to_vec();
    assert_near(&json!(own), &measured[0]["logprobs"], 1e-5);
    assert_eq!(shown["tokens"].as_array().unwrap().len(), 7);
    assert_eq!(
        echoed["choices"][1]["logprobs"]["tokens"]
            .as_array()
            .unwrap()
            .len(),
        4
    );
    // Greedy tokens are the most probable ones.
    for at in [5, 6] {
        let best = (shown["top_logprobs"][at].as_object().unwrap().values())
            .map(|x| x.as_f64().unwrap())
            .fold(f64::NEG_INFINITY, f64::max);
        assert!((shown["token_logprobs"][at].as_f64().unwrap() - best).abs() < 1e-6);
    }
    let only = complete(json!({
        "model": "text-model", "prompt": "once", "echo": true, "logprobs": 0, "max_tokens": 0
    }));
    assert_eq!(only["choices"][0]["text"], "once");
    assert_eq!(only["usage"]["completion_tokens"], 0);

    // Scores as those of `temper score`.
    let rows = [
        json!({"prompt": "one day", "completion": " and then"}),
        json!({"text": "nothing"}),
        json!({"input_ids": [9, 40, 41]}),
    ];
    write_rows(folder.join("scored.jsonl"), &rows);
    let scores = lines(&succeed(
        folder,
        "score --model text-model --adapter rm --data scored.jsonl --output -",
    ));
    let answer = server.post("/v1/score", &json!({"model": "judge", "input": rows}));
    for (at, row) in scores.iter().enumerate() {
        assert_near(&answer["data"][at]["score"], &row["score"], 1e-5);
    }
    assert!(server.metric("temper_generated_tokens_total") > 50.0);
}

#[test]
fn pieces_of_a_streamed_answer_are_the_whole_one() {
    let temp = workplace();
    let server = Server::start(temp.path(), "--model text-model");
    let path = "/v1/chat/completions";
    let chat = json!({
        "model": "text-model", "messages": [{"role": "user", "content": "one day"}], "max_tokens": 25, "seed": 3, "n": 2,
        "logprobs": true, "top_logprobs": 1, "frequency_penalty": 0.5
    });
    let whole = server.post(path, &chat);
    let mut streamed = chat.clone();
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({"include_usage": true});
    let mut events = server.events(path, &streamed);
    assert_eq!(events.pop().unwrap()["usage"], whole["usage"]);
    assert!(events.len() > 10);
    for index in 0..2 {
        let of = |events: &[Value]| -> Vec<Value> {
            let choices = events.iter().map(|event| event["choices"][0].clone());
            choices.filter(|choice| choice["index"] == index).collect()
        };
        let pieces = of(&events);
        assert_eq!(pieces[0]["delta"]["role"], "assistant");
        let text: String = (pieces.iter())
            .filter_map(|piece| piece["delta"]["content"].as_str())
            .collect();
        let expected = &whole["choices"][index];
        assert_eq!(text, expected["message"]["content"].as_str().unwrap());
        assert_eq!(
            pieces.last().unwrap()["finish_reason"],
            expected["finish_reason"]
        );
        let tokens: Vec<Value> = (pieces.iter())
            .filter_map(|piece| piece["logprobs"]["content"].as_array())
            .flatten()
            .cloned()
            .collect();
        assert_eq!(json!(tokens), expected["logprobs"]["content"]);
    }
    let text = json!({
        "model": "text-model", "prompt": ["once", "upon"], "max_tokens": 9, "seed": 3, "echo": true, "logprobs": 1
    });
    let whole = server.post("/v1/completions", &text);
    let mut streamed = text.clone();
    streamed["stream"] = json!(true);
    let events = server.events("/v1/completions", &streamed);
    for index in 0..2 {
        let pieces = events.iter().map(|event| &event["choices"][0]);
        let text: String = pieces
            .filter(|piece| piece["index"] == index)
            .map(|piece| piece["text"].as_str().unwrap())
            .collect();
        assert_eq!(text, whole["choices"][index]["text"].as_str().unwrap());
    }
    // Tools reach a template that reads them.
    let tokens = |body: &Value| {
        server.post(path, body)["usage"]["prompt_tokens"]
            .as_u64()
            .unwrap()
    };
    let plain = json!({"model": "text-model", "messages": chat["messages"], "max_tokens": 1});
    let mut tools = plain.clone();
    tools["tools"] = json!([{"type": "function", "function": {"name": "f"}}]);
    assert!(tokens(&tools) > tokens(&plain));
    tools["tool_choice"] = json!("none");
    assert_eq!(tokens(&tools), tokens(&plain));
}

/// A device without an end is not read.
#[cfg(unix)]
#[test]
fn a_file_of_preferences_is_a_regular_one() {
    let temp = workplace();
    let serve = "serve --model text-model --port 0 --preferences /dev/zero";
    let says = "/dev/zero: is a character device, expected a regular file";
    fail(temp.path(), serve, 1, &[says]);
}

#[test]
fn what_is_wrong_is_said_in_the_shape_of_the_api() {
    let temp = workplace();
    let folder = temp.path();
    let server = Server::start(
        folder,
        "--model text-model --adapter judge=rm --max-body 64KiB --preferences new/thumbs.jsonl",
    );
    let messages = json!([{"role": "user", "content": "a"}]);
    let (text, chat) = ("/v1/completions", "/v1/chat/completions");
    let long = "word ".repeat(400);
    for (path, body, status, parts) in [
        (
            text,
            json!({"model": "text-modle", "prompt": "a"}),
            404,
            &["did you mean `text-model`?"] as &[&str],
        ),
        (
            text,
            json!({"prompt": "a"}),
            400,
            &["`model`", "/v1/models"],
        ),
        (
            text,
            json!({"model": "judge", "prompt": "a"}),
            400,
            &["reward model", "/v1/score"],
        ),
        (
            text,
            json!({"model": "text-model"}),
            400,
            &["`prompt`: expected"],
        ),
        (
            text,
            json!({"model": "text-model", "prompt": [1, 2, 100_000]}),
            400,
            &["100000"],
        ),
        (
            text,
            json!({"model": "text-model", "prompt": "a", "temperatur": 1}),
            400,
            &["unknown field", "`temperature`?"],
        ),
        (
            text,
            json!({"model": "text-model", "prompt": "a", "best_of": 2}),
            400,
            &["`best_of` is not supported"],
        ),
        (
            text,
            json!({"model": "text-model", "prompt": "a", "n": 0}),
            400,
            &["`n`: expected"],
        ),
        (
            text,
            json!({"model": "text-model", "prompt": "a", "max_tokens": 0}),
            400,
            &["`max_tokens`"],
        ),
        (
            text,
            json!({"model": "text-model", "prompt": long}),
            400,
            &["at most 256"],
        ),
        (
            text,
            json!({"model": "text-model", "prompt": vec!["a"; 300]}),
            400,
            &["--max-queue"],
        ),
        (
            chat,
            json!({"model": "text-model", "messages": []}),
            400,
            &["`messages`: expected"],
        ),
        (
            chat,
            json!({"model": "text-model", "messages": messages, "response_format": {"type": "json_object"}}),
            400,
            &["`response_format` is not supported"],
        ),
        (
            chat,
            json!({"model": "text-model", "messages": messages, "top_logprobs": 2}),
            400,
            &["`logprobs: true`"],
        ),
        (
            "/v1/score",
            json!({"model": "text-model", "input": {"text": "a"}}),
            400,
            &["no score head"],
        ),
        (
            "/v1/score",
            json!({"model": "judge", "input": [{"prompt": "a"}]}),
            400,
            &["`input[0]`"],
        ),
        ("/v1/embeddings", json!({}), 404, &["/v1/embeddings"]),
        ("/v1/models", json!({}), 405, &["not allowed"]),
    ] {
        let (found, message, _) = server.refused(path, &body);
        assert_eq!(found, status, "{body}: {message}");
        for part in parts {
            assert!(
                message.contains(part),
                "{body}: expected {part:?} in {message}"
            );
        }
    }
    let code = |body: &Value| server.refused(text, body).2;
    assert_eq!(
        code(&json!({"model": "text-model", "prompt": long})),
        "context_length_exceeded"
    );
    assert_eq!(server.send("POST", text, "{").0, 400);
    let large = json!({"model": "text-model", "prompt": "a".repeat(70_000)});
    let (status, _, code) = server.refused(text, &large);
    assert_eq!((status, code), (413, json!("body_too_large")));

    // The page and its preferences.
    let (status, page) = server.send("GET", "/", "");
    assert!(
        status == 200 && page.contains("/page.js") && !page.contains("http"),
        "{page}"
    );
    for part in ["/page.js", "/page.css"] {
        assert_eq!(server.send("GET", part, "").0, 200);
    }
    assert_eq!(server.get("/preferences"), json!({"takes": true}));
    let kept = json!({"prompt": messages, "chosen": "b", "rejected": "<script>c</script>", "chosen_model": "x", "rejected_model": "y"});
    assert_eq!(server.post("/preferences", &kept), json!({"kept": true}));
    let (status, message, _) = server.refused(
        "/preferences",
        &json!({"prompt": messages, "chosen": "b", "rejected": "b"}),
    );
    assert!(status == 400 && message.contains("the same"), "{message}");
    let rows = lines(&fs::read_to_string(folder.join("new/thumbs.jsonl")).unwrap());
    assert_eq!(rows.len(), 1);
    assert_eq!(
        rows[0]["rejected"],
        json!([{"role": "assistant", "content": "<script>c</script>"}])
    );
    // They are rows that a stage reads.
    let recipe = "(name: \"r\", model: \"text-model\", stages: [RewardModel(name: \"rm\", init: Base, batch_size: 1, \
                  data: (source: File(\"new/thumbs.jsonl\")))])";
    fs::write(folder.join("r.ron"), recipe).unwrap();
    let said = super::temper(folder, "inspect r.ron --stage rm");
    let said = format!("{}{}", super::stdout(&said), super::stderr(&said));
    assert!(said.contains("1 of 1 row kept"), "{said}");

    for (args, parts) in [
        (
            "--model text-model --host 0.0.0.0",
            &["--host 0.0.0.0", "TEMPERING_API_KEY"] as &[&str],
        ),
        (
            "--model text-model --model text-model",
            &["two models are called text-model"],
        ),
        ("--model text-model --adapter nowhere", &["adapter nowhere"]),
        ("--model text-model --max-length 1", &["--max-length 1"]),
    ] {
        fail(folder, &format!("serve --port 0 {args}"), 2, parts);
    }
}

#[test]
fn a_key_is_asked_for() {
    let temp = workplace();
    let mut server = Server::start(temp.path(), "--model text-model --api-key open-sesame");
    let statuses = |server: &Server| {
        ["/health", "/", "/v1/models", "/metrics", "/preferences"]
            .map(|path| server.send("GET", path, "").0)
    };
    assert_eq!(statuses(&server), [200, 200, 401, 401, 401]);
    server.key = Some("open");
    assert_eq!(statuses(&server), [200, 200, 401, 401, 401]);
    let (status, _, code) = server.refused(
        "/v1/completions",
        &json!({"model": "text-model", "prompt": "a"}),
    );
    assert_eq!((status, code), (401, json!("invalid_api_key")));
    server.key = Some("open-sesame");
    assert_eq!(statuses(&server), [200; 5]);
}

/// A request of 200 tokens for each of `n` choices.
fn long(n: usize, stream: bool) -> Value {
    json!({
        "model": "text-model", "prompt": "once", "max_tokens": 200, "ignore_eos": true, "n": n, "stream": stream
    })
}

#[test]
fn a_full_queue_refuses_and_a_signal_lets_requests_end() {
    let temp = workplace();
    let mut server = Server::start(
        temp.path(),
        "--model text-model --max-rows 1 --max-queue 12",
    );
    let (server_ref, statuses) = (&server, Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let (status, text) =
                    server_ref.send("POST", "/v1/completions", &long(6, false).to_string());
                statuses.lock().unwrap().push(status);
                let answer: Value = serde_json::from_str(&text).unwrap();
                match status {
                    200 => assert_eq!(answer["usage"]["completion_tokens"], 1200),
                    _ => assert_eq!(answer["error"]["code"], "queue_full", "{text}"),
                }
            });
        }
    });
    let statuses = statuses.into_inner().unwrap();
    let count = |status: u16| statuses.iter().filter(|&&s| s == status).count();
    assert!(
        count(200) >= 2 && count(429) >= 1 && count(200) + count(429) == 6,
        "{statuses:?}"
    );

    // In progress when the signal comes.
    let (url, body) = (server.url.clone(), long(8, false).to_string());
    let answer = std::thread::spawn(move || {
        let mut answer = ureq::post(format!("{url}/v1/completions"))
            .send(&body)
            .unwrap();
        answer.body_mut().read_to_string().unwrap()
    });
    server.wait_for("temper_responses_running", |running| running > 0.0);
    server.signal();
    let answer: Value = serde_json::from_str(&answer.join().unwrap()).unwrap();
    assert_eq!(answer["usage"]["completion_tokens"], 1600);
    let status = server.wait();
    assert!(
        status.success(),
        "{status}: {}",
        server.said.lock().unwrap()
    );
    let address = server.url.strip_prefix("http://").unwrap();
    assert!(TcpStream::connect(address).is_err());
}

/// Sends a request, reads `wanted` bytes of the answer and goes away.
fn leave(server: &Server, body: &Value, wanted: usize) {
    let address = server.url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    let body = body.to_string();
    write!(
        stream,
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut read = vec![0; wanted];
    stream.read_exact(&mut read).unwrap();
}

#[test]
fn who_leaves_is_not_answered_and_others_are_not_mixed_up() {
    let temp = workplace();
    let server = Server::start(temp.path(), "--model text-model --adapter low --max-rows 5");
    let body = |i: usize| {
        let (model, temperature) = (["text-model", "low"][i % 2], [0.0, 1.0][i / 2 % 2]);
        json!({
            "model": model, "prompt": format!("once {i}"), "seed": i, "max_tokens": 4 + i % 13, "temperature": temperature
        })
    };
    let text = |i: usize| server.post("/v1/completions", &body(i))["choices"][0]["text"].clone();
    let alone: Vec<Value> = (0..48).map(text).collect();
    std::thread::scope(|scope| {
        for thread in 0..6 {
            let (alone, server) = (&alone, &server);
            scope.spawn(move || {
                for i in (thread..48).step_by(6) {
                    if i % 4 == 1 {
                        leave(server, &long(2, true), 400);
                    }
                    if i % 4 == 2 {
                        leave(server, &long(3, false), 0);
                    }
                    let found = server.post("/v1/completions", &body(i));
                    assert_eq!(found["choices"][0]["text"], alone[i], "request {i}");
                }
            });
        }
    });
    server.wait_for("temper_responses_running", |running| running == 0.0);
    server.wait_for("temper_queue_waiting", |waiting| waiting == 0.0);
    // 12 of two choices are left in their middle; those left at once may never have begun.
    assert!(
        server.metric("temper_aborted_total") >= 12.0,
        "{}",
        server.metric("temper_aborted_total")
    );
}
