//! A hub on this machine that takes uploads: repositories, branches, preupload, Git LFS's batch API with both transfers, commits.
//!
//! Contents go to another server, as on the real one. Single answers can be replaced, and connections cut.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

// Who includes this file has the other hub as `loopback` beside it.
use super::loopback::http::Head;

/// The token that may write.
pub(crate) const WRITE_TOKEN: &str = "hf_writer";

/// The hub and the server for contents.
pub(crate) struct PushHub {
    /// The hub's address.
    pub(crate) endpoint: String,
    state: Arc<Mutex<State>>,
}

/// What happens to a request instead of the usual.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// A status with an error in words.
    Status(u16, &'static str),
    /// The connection is closed when so many bytes of the content have come.
    CutAfter(usize),
}

#[derive(Default)]
struct State {
    hub: String,
    other: String,
    /// Bytes of a part; whole contents without it.
    chunk: Option<usize>,
    /// Whether each repository is private.
    repos: BTreeMap<String, bool>,
    branches: BTreeSet<String>,
    /// Hash and content by `branch/path`.
    files: BTreeMap<String, (String, Vec<u8>)>,
    /// Large contents by hash.
    blobs: BTreeMap<String, Vec<u8>>,
    parts: BTreeMap<String, Vec<u8>>,
    faults: Vec<(String, Fault)>,
    seen: Vec<String>,
    commits: usize,
}

impl PushHub {
    /// Serves until the process ends. `chunk`: bytes of the parts of large contents.
    pub(crate) fn serve(chunk: Option<usize>) -> Self {
        let state = Arc::new(Mutex::new(State {
            chunk,
            branches: BTreeSet::from(["main".to_owned()]),
            ..State::default()
        }));
        let endpoint = listen(&state);
        let other = listen(&state);
        {
            let mut state = state.lock().unwrap();
            state.hub.clone_from(&endpoint);
            state.other = other;
        }
        Self { endpoint, state }
    }

    /// Replaces the answer to the next request whose method and path contain `what`.
    pub(crate) fn next(&self, what: &str, fault: Fault) {
        let mut state = self.state.lock().unwrap();
        state.faults.push((what.to_owned(), fault));
    }

    /// Methods and paths of all requests so far.
    pub(crate) fn seen(&self) -> Vec<String> {
        self.state.lock().unwrap().seen.clone()
    }

    /// How many requests so far contain `what`.
    pub(crate) fn count(&self, what: &str) -> usize {
        self.seen()
            .iter()
            .filter(|seen| seen.contains(what))
            .count()
    }

    /// A committed file, by branch and path.
    pub(crate) fn file(&self, path: &str) -> Option<Vec<u8>> {
        let state = self.state.lock().unwrap();
        state.files.get(path).map(|(_, content)| content.clone())
    }

    /// Whether a repository is private; `None` if there is none.
    pub(crate) fn is_private(&self, repo: &str) -> Option<bool> {
        self.state.lock().unwrap().repos.get(repo).copied()
    }
}

fn listen(state: &Arc<Mutex<State>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let state = Arc::clone(state);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            answer(stream.unwrap(), &state);
        }
    });
    endpoint
}

fn answer(mut stream: TcpStream, state: &Mutex<State>) {
    let Some(head) = Head::read(&mut stream) else {
        return;
    };
    let (method, path) = head.request();
    let path = path.trim_start_matches('/');
    let request = format!("{method} {path}");
    let mut state = state.lock().unwrap();
    state.seen.push(request.clone());
    let fault = (state.faults.iter())
        .position(|(what, _)| request.contains(what))
        .map(|at| state.faults.remove(at).1);
    let length: usize = head
        .header("content-length")
        .map_or(0, |length| length.parse().unwrap());
    if let Some(Fault::CutAfter(bytes)) = fault {
        drop(stream.read_exact(&mut vec![0; bytes.min(length)]));
        return;
    }
    let mut body = vec![0; length];
    if stream.read_exact(&mut body).is_err() {
        return;
    }
    let token = head.header("authorization");
    let (status, extra, answer) = match fault {
        Some(Fault::Status(status, error)) => (status, String::new(), json!({"error": error})),
        _ if method == "PUT" => {
            assert_eq!(token, None, "the token stays with the hub");
            let key = path.strip_prefix("store/").unwrap().to_owned();
            let etag = format!("ETag: \"{:x}\"\r\n", Sha256::digest(&body));
            state.parts.insert(key, body);
            (200, etag, json!({}))
        }
        _ if token != Some(&*format!("Bearer {WRITE_TOKEN}")) => (
            401,
            String::new(),
            json!({"error": "Invalid credentials in Authorization header"}),
        ),
        _ => {
            let (status, answer) = state.usual(path, &body);
            (status, String::new(), answer)
        }
    };
    let text = answer.to_string();
    let response = format!(
        "HTTP/1.1 {status} Status\r\nConnection: close\r\n{extra}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{text}",
        text.len()
    );
    // The client may have gone.
    drop(stream.write_all(response.as_bytes()));
}

impl State {
    fn usual(&mut self, path: &str, body: &[u8]) -> (u16, Value) {
        let parsed: Value = serde_json::from_slice(body).unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        if path == "api/repos/create" {
            let repo = format!(
                "{}/{}",
                text(&parsed["organization"]),
                text(&parsed["name"])
            );
            if self.repos.contains_key(&repo) {
                return (409, json!({"error": "You already created this model repo"}));
            }
            self.repos
                .insert(repo, parsed["private"].as_bool().unwrap());
            return (200, json!({"url": "there"}));
        }
        if let Some(repo) = path.strip_prefix("api/models/")
            && self.repos.contains_key(repo)
        {
            return (200, json!({"id": repo}));
        }
        if let Some((_, branch)) = path.split_once("/branch/") {
            return match self.branches.insert(branch.to_owned()) {
                true => (200, json!({})),
                false => (409, json!({"error": "Reference already exists"})),
            };
        }
        if let Some((_, branch)) = path.split_once("/preupload/") {
            let files = parsed["files"].as_array().unwrap().iter().map(|file| {
                let name = text(&file["path"]);
                assert!(STANDARD.decode(text(&file["sample"])).unwrap().len() <= 512);
                let mode = if name.ends_with(".safetensors") { "lfs" } else { "regular" };
                let oid = self.files.get(&format!("{branch}/{name}")).map(|(oid, _)| oid.clone());
                json!({"path": name, "uploadMode": mode, "shouldIgnore": name.ends_with(".ignored"), "oid": oid})
            });
            return (200, json!({"files": files.collect::<Vec<_>>()}));
        }
        if path.ends_with("/info/lfs/objects/batch") {
            let objects = parsed["objects"].as_array().unwrap().iter();
            let objects: Vec<Value> = objects.map(|object| self.object(object)).collect();
            return (200, json!({"transfer": "multipart", "objects": objects}));
        }
        if let Some(oid) = path.strip_prefix("complete/") {
            let parts = parsed["parts"].as_array().unwrap();
            let content: Vec<u8> = (parts.iter())
                .flat_map(|part| {
                    let content = &self.parts[&format!("{oid}/{}", part["partNumber"])];
                    let etag = format!("\"{:x}\"", Sha256::digest(content));
                    assert_eq!(part["etag"], json!(etag));
                    content.clone()
                })
                .collect();
            return self.keep(oid, content);
        }
        if let Some(oid) = path.strip_prefix("verify/") {
            if let Some(content) = self.parts.remove(&format!("{oid}/0")) {
                return self.keep(oid, content);
            }
            let size = self.blobs.get(oid).map(Vec::len);
            return match size == parsed["size"].as_u64().map(|size| size as usize) {
                true => (200, json!({})),
                false => (404, json!({"error": "no such content"})),
            };
        }
        let Some((_, branch)) = path.split_once("/commit/") else {
            return (404, json!({"error": "Not found"}));
        };
        for line in String::from_utf8(body.to_vec()).unwrap().lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            let value = &line["value"];
            let (oid, content) = match line["key"].as_str().unwrap() {
                "header" => {
                    assert!(!text(&value["summary"]).is_empty());
                    continue;
                }
                "file" => {
                    let content = STANDARD.decode(text(&value["content"])).unwrap();
                    let mut blob = format!("blob {}\0", content.len()).into_bytes();
                    blob.extend(&content);
                    (format!("{:x}", sha1::Sha1::digest(blob)), content)
                }
                _ => {
                    let oid = text(&value["oid"]);
                    match self.blobs.get(&oid) {
                        Some(content) => (oid, content.clone()),
                        None => return (400, json!({"error": "a large file is missing"})),
                    }
                }
            };
            let name = format!("{branch}/{}", text(&value["path"]));
            self.files.insert(name, (oid, content));
        }
        self.commits += 1;
        (
            200,
            json!({"success": true, "commitOid": format!("{:040x}", self.commits)}),
        )
    }

    /// The actions for a content: none if it is there.
    fn object(&self, object: &Value) -> Value {
        let (oid, size) = (
            object["oid"].as_str().unwrap(),
            object["size"].as_u64().unwrap(),
        );
        if self.blobs.contains_key(oid) {
            return json!({"oid": oid, "size": size});
        }
        let store = |part: usize| format!("{}/store/{oid}/{part}", self.other);
        let verify = json!({"href": format!("{}/verify/{oid}", self.hub)});
        let upload = match self.chunk {
            None => json!({"href": store(0)}),
            Some(chunk) => {
                let mut header = json!({"chunk_size": chunk.to_string()});
                for part in 1..=(size as usize).div_ceil(chunk) {
                    header[format!("{part:05}")] = json!(store(part));
                }
                json!({"href": format!("{}/complete/{oid}", self.hub), "header": header})
            }
        };
        json!({"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}})
    }

    fn keep(&mut self, oid: &str, content: Vec<u8>) -> (u16, Value) {
        match format!("{:x}", Sha256::digest(&content)) == oid {
            true => {
                self.blobs.insert(oid.to_owned(), content);
                (200, json!({}))
            }
            false => (400, json!({"error": "another content than announced"})),
        }
    }
}
