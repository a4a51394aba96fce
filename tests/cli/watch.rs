//! `temper watch`: the page of a run, its events, and who may see it.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{command, fail};

/// A run of one stage that has begun, without a process that works on it.
fn begin(folder: &Path) {
    let run = folder.join("run");
    fs::create_dir_all(run.join("sft")).unwrap();
    let recipe = r#"(name: "<w>", model: "tiny", stages: [Sft(name: "sft", data: (source: Posts(rows: 8, seed: 1)), batch_size: 4)])"#;
    fs::write(run.join("recipe.ron"), recipe.replace("<w>", "w")).unwrap();
    fs::write(
        run.join("sft/stage.json"),
        r#"{"summary": "<script>alert(1)</script>", "total_steps": 9}"#,
    )
    .unwrap();
    add_step(folder, 1);
}

fn add_step(folder: &Path, step: usize) {
    for (name, values) in [
        ("metrics", "\"loss\": 1.5"),
        ("timing", "\"elapsed_s\": 2.0"),
    ] {
        let path = folder.join(format!("run/sft/{name}.jsonl"));
        let mut file = fs::File::options()
            .create(true)
            .append(true)
            .open(path)
            .unwrap();
        writeln!(file, "{{\"step\": {step}, {values}}}").unwrap();
    }
}

/// The server; killed at the end.
struct Watching {
    child: Child,
    /// What it printed.
    url: String,
}

impl Watching {
    fn start(folder: &Path, args: &str) -> Self {
        let mut child = command(folder, &format!("watch run --port 0 {args}"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut url = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut url).unwrap();
        let url = url.trim().to_owned();
        Self { child, url }
    }

    fn port(&self) -> u16 {
        let rest = self.url.split("://").nth(1).unwrap();
        let host = rest.split('/').next().unwrap();
        host.rsplit(':').next().unwrap().parse().unwrap()
    }

    fn connect(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port())).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream
    }

    /// The whole answer to a request with further header lines.
    fn get(&self, path: &str, lines: &str) -> String {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{lines}\r\n");
        let mut answer = String::new();
        self.connect(&request).read_to_string(&mut answer).unwrap();
        answer
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Reads lines until one is `line`.
fn until(reader: &mut impl BufRead, line: &str) {
    let mut found = String::new();
    loop {
        found.clear();
        assert!(
            reader.read_line(&mut found).unwrap() > 0,
            "the connection ended before {line}"
        );
        if found.contains(line) {
            return;
        }
    }
}

#[test]
fn watchers_see_a_run_change() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    begin(folder);
    let mut server = Watching::start(folder, "");
    assert!(
        server.url.starts_with("http://127.0.0.1:"),
        "{}",
        server.url
    );
    let page = server.get("/", "");
    assert!(
        page.starts_with("HTTP/1.1 200") && page.contains("step 1/9"),
        "{page}"
    );
    assert!(
        page.contains("content-security-policy: default-src 'none'"),
        "{page}"
    );
    assert!(page.contains("<a href=\"/sft/report.html\">"), "{page}");
    assert!(
        page.contains("&lt;script&gt;alert(1)") && !page.contains("<script>"),
        "{page}"
    );
    let events = || {
        let request = "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n";
        BufReader::new(server.connect(request))
    };
    let mut watchers = [events(), events()];
    for watcher in &mut watchers {
        until(watcher, "text/event-stream");
        until(watcher, "event: changed");
    }
    add_step(folder, 2);
    for watcher in &mut watchers {
        until(watcher, "event: changed");
    }
    assert!(server.get("/report", "").contains("step 2/9"));
    let stage = server.get("/sft/report.html", "");
    assert!(
        stage.contains("sft of recipe w") && stage.contains("data-source=\"/sft/report\""),
        "{stage}"
    );
    for file in ["/style.css", "/watch.js"] {
        assert!(server.get(file, "").starts_with("HTTP/1.1 200"), "{file}");
    }
    // Only names of stages are pages.
    for path in [
        "/..%2f..%2fetc%2fpasswd/report.html",
        "/none/report.html",
        "/run/recipe.ron",
        "/sft/metrics.jsonl",
    ] {
        assert!(server.get(path, "").starts_with("HTTP/1.1 404"), "{path}");
    }
    let foreign = "GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n";
    let mut answer = String::new();
    server.connect(foreign).read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    // SIGTERM ends it though watchers are connected.
    let pid = server.child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    assert!(server.child.wait().unwrap().success());
}

#[test]
fn others_on_the_network_need_the_token() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    begin(folder);
    let server = Watching::start(folder, "--host 0.0.0.0");
    let (_, token) = server.url.split_once("?token=").unwrap();
    for (path, lines) in [
        ("/", ""),
        ("/report", ""),
        ("/events", ""),
        ("/?token=0123", ""),
        ("/sft/report", "Cookie: temper_watch=0123\r\n"),
    ] {
        assert!(
            server.get(path, lines).starts_with("HTTP/1.1 401"),
            "{path} {lines}"
        );
    }
    let answer = server.get(&format!("/?token={token}"), "");
    assert!(
        answer.starts_with("HTTP/1.1 303") && answer.contains("location: /\r\n"),
        "{answer}"
    );
    assert!(answer.contains("HttpOnly; SameSite=Strict"), "{answer}");
    for lines in [
        format!("Cookie: a=b; temper_watch={token}\r\n"),
        format!("Authorization: Bearer {token}\r\n"),
    ] {
        assert!(
            server.get("/report", &lines).starts_with("HTTP/1.1 200"),
            "{lines}"
        );
    }
}

#[test]
fn a_folder_without_a_run_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    fail(
        temp.path(),
        "watch none",
        2,
        &["expected the folder of a run"],
    );
}
