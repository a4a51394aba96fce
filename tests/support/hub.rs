//! A Hugging Face hub on this machine, for programs that are given its address as `HF_ENDPOINT`.
//!
//! It answers as the real one does: lists of files by commit, small files itself under git's hash, weights by a redirect to another
//! server under their SHA-256, ranges, refusals with `X-Error-Code`. Single answers can be scripted.

#[path = "http.rs"]
pub(crate) mod http;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::json;
use sha2::{Digest, Sha256};

use self::http::Head;

/// The commit of every branch.
pub(crate) const COMMIT: &str = "c0ffee0000000000000000000000000000000001";
/// The commit of the conversion of a data set to parquet, and its branch.
const CONVERTED_COMMIT: &str = "c0ffee0000000000000000000000000000000002";
const CONVERSION: &str = "refs/convert/parquet";
/// The token that may read gated repositories.
pub(crate) const TOKEN: &str = "hf_loopback";

/// The hub and the server that it redirects to.
pub(crate) struct LoopbackHub {
    /// The hub's address.
    pub(crate) endpoint: String,
    state: Arc<Mutex<State>>,
}

/// A request as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SeenRequest {
    /// `HEAD` or `GET`.
    pub(crate) method: String,
    /// Path and query, without the first slash.
    pub(crate) path: String,
    /// Whether the server that the hub redirects to was asked.
    pub(crate) redirected: bool,
    /// First byte asked for.
    pub(crate) from: Option<usize>,
    /// The `Authorization` header.
    pub(crate) token: Option<String>,
}

/// An answer in place of the usual one.
#[derive(Debug, Clone)]
pub(crate) enum Scripted {
    /// A status with headers.
    Status(u16, Vec<(&'static str, String)>),
    /// The usual headers, and only so many bytes.
    CutAfter(usize),
    /// The usual headers, and other bytes.
    OtherBytes(Vec<u8>),
    /// The whole file, whatever range was asked for.
    NoRange,
    /// These bytes in place of head and content.
    Raw(Vec<u8>),
}

#[derive(Default)]
struct State {
    /// Contents by repository and path: `owner/name/config.json`, `datasets/owner/name/data.jsonl`.
    files: BTreeMap<String, Vec<u8>>,
    gated: BTreeSet<String>,
    revisions: BTreeSet<String>,
    scripted: Vec<(String, Scripted)>,
    seen: Vec<SeenRequest>,
    /// Address of the other server.
    other: String,
}

impl LoopbackHub {
    /// Serves `files` until the process ends.
    pub(crate) fn serve(files: BTreeMap<String, Vec<u8>>) -> Self {
        let state = Arc::new(Mutex::new(State {
            files,
            revisions: ["main", COMMIT].map(str::to_owned).into(),
            ..State::default()
        }));
        let endpoint = listen(&state, false);
        let other = listen(&state, true);
        state.lock().unwrap().other = other;
        Self { endpoint, state }
    }

    /// Adds or replaces a file.
    pub(crate) fn put(&self, path: &str, content: impl Into<Vec<u8>>) {
        let mut state = self.state.lock().unwrap();
        state.files.insert(path.to_owned(), content.into());
    }

    /// Adds a file to the conversion of a data set to parquet.
    pub(crate) fn put_converted(&self, repo: &str, file: &str, content: impl Into<Vec<u8>>) {
        let mut state = self.state.lock().unwrap();
        (state.revisions).extend([CONVERSION, CONVERTED_COMMIT].map(str::to_owned));
        let path = format!("{repo}@converted/{file}");
        state.files.insert(path, content.into());
    }

    /// Adds a branch or tag.
    pub(crate) fn add_revision(&self, revision: &str) {
        let mut state = self.state.lock().unwrap();
        state.revisions.insert(revision.to_owned());
    }

    /// Asks for [`TOKEN`] from readers of a repository.
    pub(crate) fn gate(&self, repo: &str) {
        self.state.lock().unwrap().gated.insert(repo.to_owned());
    }

    /// Answers the next request whose method and path contain `what`, such as `GET me/m`, with `answer`.
    pub(crate) fn next(&self, what: &str, answer: Scripted) {
        let mut state = self.state.lock().unwrap();
        state.scripted.push((what.to_owned(), answer));
    }

    /// All requests so far.
    pub(crate) fn seen(&self) -> Vec<SeenRequest> {
        self.state.lock().unwrap().seen.clone()
    }

    /// Paths of the files that were downloaded, from the hub or the other server, in order.
    pub(crate) fn downloads(&self) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let gets = state.seen.iter().filter(|request| request.method == "GET");
        gets.filter_map(|request| {
            let (repo, file) = request.path.split_once("/resolve/")?;
            let (_, file) = file.split_once('/')?;
            let path = format!("{repo}/{file}");
            // Large files are counted where they come from.
            (is_large(&path) == request.redirected).then_some(path)
        })
        .collect()
    }
}

fn listen(state: &Arc<Mutex<State>>, other: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let state = Arc::clone(state);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            answer(stream.unwrap(), &state, other);
        }
    });
    endpoint
}

/// Whether a file is kept on the other server.
fn is_large(path: &str) -> bool {
    [".safetensors", ".gguf", ".parquet"]
        .iter()
        .any(|ending| path.ends_with(ending))
}

fn answer(mut stream: TcpStream, state: &Mutex<State>, redirected: bool) {
    let Some(head) = Head::read(&mut stream) else {
        return;
    };
    let (method, path) = head.request();
    let (method, path) = (method.to_owned(), path.trim_start_matches('/').to_owned());
    let range = head
        .header("range")
        .and_then(|range| range.strip_prefix("bytes="));
    let from = range.and_then(|range| range.trim_end_matches('-').parse().ok());
    let token = head.header("authorization").map(str::to_owned);
    let mut state = state.lock().unwrap();
    let scripted = (state.scripted.iter())
        .position(|(what, _)| format!("{method} {path}").contains(what))
        // A redirect is not what a script is about.
        .filter(|_| redirected || method == "HEAD" || !is_large(&path))
        .map(|at| state.scripted.remove(at).1);
    if let Some(Scripted::Raw(bytes)) = &scripted {
        // The client may have gone.
        return drop(stream.write_all(bytes));
    }
    state.seen.push(SeenRequest {
        method: method.clone(),
        path: path.clone(),
        redirected,
        from,
        token: token.clone(),
    });
    let response = match &scripted {
        Some(Scripted::Status(status, headers)) => Response {
            headers: headers.clone(),
            ..Response::refusal(*status)
        },
        _ => state.usual(&path, token.as_deref(), redirected),
    };
    let from = from.filter(|_| !matches!(scripted, Some(Scripted::NoRange)));
    let sent = response.write(&mut stream, method == "HEAD", from, scripted.as_ref());
    // The client may have gone.
    drop(sent);
}

struct Response {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Response {
    fn refusal(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    fn reason(status: u16, code: &str, message: &str) -> Self {
        Self {
            headers: vec![
                ("X-Error-Code", code.to_owned()),
                ("X-Error-Message", message.to_owned()),
            ],
            ..Self::refusal(status)
        }
    }

    fn write(
        &self,
        stream: &mut TcpStream,
        head_only: bool,
        from: Option<usize>,
        scripted: Option<&Scripted>,
    ) -> std::io::Result<()> {
        let len = self.body.len();
        let (status, first, extra) = match from.filter(|_| self.status == 200) {
            Some(from) if from >= len => (416, len, format!("Content-Range: bytes */{len}\r\n")),
            Some(from) => {
                let range = format!("Content-Range: bytes {from}-{}/{len}\r\n", len - 1);
                (206, from, range)
            }
            None => (self.status, 0, String::new()),
        };
        let mut head = format!("HTTP/1.1 {status} Status\r\nConnection: close\r\n{extra}");
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("Content-Length: {}\r\n\r\n", len - first));
        stream.write_all(head.as_bytes())?;
        let body = match scripted {
            _ if head_only => &[],
            Some(Scripted::CutAfter(bytes)) => &self.body[first..(first + bytes).min(len)],
            Some(Scripted::OtherBytes(bytes)) => bytes,
            _ => &self.body[first..],
        };
        stream.write_all(body)
    }
}

impl State {
    fn usual(&self, path: &str, token: Option<&str>, redirected: bool) -> Response {
        let plain = path.split('?').next().unwrap_or(path);
        let listing = plain.strip_prefix("api/");
        let (repo, revision, file) = if let Some(rest) = listing {
            let (repo, revision) = rest.split_once("/revision/").unwrap_or((rest, "main"));
            let repo = repo.strip_prefix("models/").unwrap_or(repo);
            (repo, revision, None)
        } else if let Some((repo, rest)) = plain.split_once("/resolve/") {
            let (revision, file) = rest.split_once('/').unwrap_or((rest, ""));
            (repo, revision, Some(file))
        } else {
            return Response::refusal(404);
        };
        let prefix = format!("{repo}/");
        if !self.files.keys().any(|name| name.starts_with(&prefix)) {
            let message = "Invalid username or password.";
            return match token {
                None => Response::reason(401, "RepoNotFound", message),
                Some(_) => Response::reason(404, "RepoNotFound", "Repository not found"),
            };
        }
        let may_read = token == Some(&format!("Bearer {TOKEN}"));
        if self.gated.contains(repo) && !may_read && !redirected {
            let message = format!(
                "Access to model {repo} is restricted and you are not in the authorized list."
            );
            let status = if token.is_some() { 403 } else { 401 };
            return Response::reason(status, "GatedRepo", &message);
        }
        if !self.revisions.contains(&revision.replace("%2F", "/")) {
            return Response::reason(
                404,
                "RevisionNotFound",
                &format!("Invalid rev id: {revision}"),
            );
        }
        let (prefix, commit) = match revision.replace("%2F", "/").as_str() {
            CONVERSION | CONVERTED_COMMIT => (format!("{repo}@converted/"), CONVERTED_COMMIT),
            _ => (prefix, COMMIT),
        };
        let Some(file) = file else {
            let files = self.files.iter().filter_map(|(name, content)| {
                let name = name.strip_prefix(&prefix)?;
                Some(json!({"rfilename": name, "size": content.len()}))
            });
            let files: Vec<_> = files.collect();
            return Response {
                body: json!({"id": repo, "sha": commit, "siblings": files})
                    .to_string()
                    .into_bytes(),
                ..Response::refusal(200)
            };
        };
        let name = format!("{prefix}{file}");
        let Some(content) = self.files.get(&name) else {
            return Response::reason(404, "EntryNotFound", "Entry not found");
        };
        if redirected {
            return Response {
                body: content.clone(),
                ..Response::refusal(200)
            };
        }
        let commit = ("X-Repo-Commit", commit.to_owned());
        if is_large(&name) {
            return Response {
                headers: vec![
                    commit,
                    (
                        "X-Linked-Etag",
                        format!("\"{:x}\"", Sha256::digest(content)),
                    ),
                    ("X-Linked-Size", content.len().to_string()),
                    ("Location", format!("{}/{path}", self.other)),
                ],
                ..Response::refusal(302)
            };
        }
        let mut blob = format!("blob {}\0", content.len()).into_bytes();
        blob.extend(content);
        Response {
            status: 200,
            headers: vec![
                commit,
                ("ETag", format!("\"{:x}\"", sha1::Sha1::digest(blob))),
            ],
            body: content.clone(),
        }
    }
}
