//! Requests that send: JSON to the hub, and contents to where Git LFS's batch API says.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};
use ureq::http::{Method, Request, Response};
use ureq::{Body as Answer, SendBody};

use super::Hub;
use super::error::{HubError, Reason, host};
use super::http::{passes, pause, same_origin};
use super::progress::Progress;
use super::repo::Repo;

/// Most tries of a request.
const MAX_TRIES: u32 = 5;
/// Most files that a request asks about.
pub(super) const MOST_FILES: usize = 256;
/// The content type of Git LFS.
const LFS: &str = "application/vnd.git-lfs+json";
/// Most bytes of an answer.
const MOST_ANSWER: u64 = 64 << 20;

/// What a request sends.
pub(super) enum Body<'a> {
    /// Bytes in memory.
    Bytes(&'a [u8]),
    /// A part of a file: its first byte and its length.
    Part(&'a Path, u64, u64),
}

/// A content, as the batch API answers.
#[derive(Deserialize)]
pub(super) struct LfsObject {
    pub(super) oid: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    actions: Option<Actions>,
    #[serde(default)]
    error: Option<LfsError>,
}

#[derive(Deserialize)]
struct Actions {
    #[serde(default)]
    upload: Option<Action>,
    #[serde(default)]
    verify: Option<Action>,
}

#[derive(Deserialize)]
struct Action {
    href: String,
    #[serde(default)]
    header: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct LfsError {
    #[serde(default)]
    message: String,
}

impl LfsObject {
    /// Whether the hub lacks the content.
    pub(super) fn is_absent(&self) -> bool {
        let actions = self.actions.as_ref();
        actions.is_some_and(|actions| actions.upload.is_some())
    }
}

/// Uploads to one repository.
pub(super) struct Upload<'a> {
    hub: &'a Hub,
    repo: &'a Repo,
}

impl<'a> Upload<'a> {
    pub(super) fn new(hub: &'a Hub, repo: &'a Repo) -> Self {
        Self { hub, repo }
    }

    /// The repository's name.
    pub(super) fn name(&self) -> &str {
        &self.repo.id
    }

    /// Whether the repository is there, for this token.
    pub(super) fn exists(&self) -> bool {
        let path = format!("api/models/{}", self.repo.id);
        self.hub.json::<Value>(self.repo, &path).is_ok()
    }

    /// Posts JSON to a path of the hub; see [`Upload::post`].
    pub(super) fn post_json(
        &self,
        path: &str,
        body: &Value,
        allowed: &[u16],
    ) -> Result<(u16, Value), HubError> {
        let text = body.to_string();
        self.post(
            path,
            "application/json",
            &Body::Bytes(text.as_bytes()),
            allowed,
        )
    }

    /// Posts to a path of the hub, or to an address; returns the status and the JSON of the answer. `allowed`: statuses besides success that
    /// are no error.
    ///
    /// # Errors
    /// For refusals, and when the hub cannot be reached.
    pub(super) fn post(
        &self,
        path: &str,
        kind: &str,
        body: &Body<'_>,
        allowed: &[u16],
    ) -> Result<(u16, Value), HubError> {
        let (status, answer) = self.send(&Method::POST, path, kind, body)?;
        let mut text = String::new();
        let read = answer
            .into_body()
            .into_reader()
            .take(MOST_ANSWER)
            .read_to_string(&mut text);
        let success = (200..300).contains(&status);
        if let (true, Err(error)) = (success, read) {
            return Err(self.error(
                Reason::Unreachable,
                format!("the answer was cut off: {error}"),
            ));
        }
        let value: Value = serde_json::from_str(&text).unwrap_or_default();
        match success || allowed.contains(&status) {
            true => Ok((status, value)),
            false => Err(self.refused(status, value["error"].as_str().unwrap_or_default())),
        }
    }

    /// Asks which contents the hub lacks, and where to send them.
    ///
    /// # Errors
    /// As [`Upload::post`], and for a content that the hub refuses.
    pub(super) fn batch<'b>(
        &self,
        contents: impl Iterator<Item = (&'b str, u64)>,
    ) -> Result<Vec<LfsObject>, HubError> {
        let contents: Vec<Value> = contents
            .map(|(oid, size)| json!({"oid": oid, "size": size}))
            .collect();
        let path = format!("{}.git/info/lfs/objects/batch", self.repo.id);
        let mut objects: Vec<LfsObject> = Vec::new();
        for some in contents.chunks(MOST_FILES) {
            let body = json!({
                "operation": "upload",
                "transfers": ["basic", "multipart"],
                "hash_algo": "sha256",
                "ref": {"name": self.repo.revision},
                "objects": some,
            });
            let text = body.to_string();
            let (_, answer) = self.post(&path, LFS, &Body::Bytes(text.as_bytes()), &[])?;
            let some: Vec<LfsObject> = serde_json::from_value(answer["objects"].clone())
                .map_err(|error| self.odd_answer(&path, &error.to_string()))?;
            objects.extend(some);
        }
        match objects.iter().find_map(|object| object.error.as_ref()) {
            Some(error) => {
                let message = format!("the hub refuses a file: {}", error.message);
                Err(self.error(Reason::Denied, message))
            }
            None => Ok(objects),
        }
    }

    /// Sends a content, whole or in the parts that the hub asks for; returns the bytes sent.
    ///
    /// # Errors
    /// As [`Upload::post`].
    pub(super) fn content(
        &self,
        path: &Path,
        object: &LfsObject,
        progress: &Progress,
    ) -> Result<u64, HubError> {
        let Some(Actions {
            upload: Some(upload),
            verify,
        }) = &object.actions
        else {
            return Ok(0);
        };
        match upload.header.get("chunk_size").map(number) {
            None => {
                let body = Body::Part(path, 0, object.size);
                self.put(&upload.href, &body)?;
            }
            Some(None | Some(0)) => {
                return Err(self.odd_answer("objects/batch", "has a chunk_size that is no number"));
            }
            Some(Some(chunk)) => self.parts(path, object, upload, chunk, progress)?,
        }
        if let Some(verify) = verify {
            let text = json!({"oid": object.oid, "size": object.size}).to_string();
            self.post(&verify.href, LFS, &Body::Bytes(text.as_bytes()), &[])?;
        }
        Ok(object.size)
    }

    /// Sends a content in parts of `chunk` bytes to the addresses of its action, then says that they are all there.
    fn parts(
        &self,
        path: &Path,
        object: &LfsObject,
        upload: &Action,
        chunk: u64,
        progress: &Progress,
    ) -> Result<(), HubError> {
        let count = object.size.div_ceil(chunk);
        let mut parts = Vec::new();
        for index in 0..count {
            let key = format!("{:05}", index + 1);
            // The number may have any count of zeros before it.
            let address = upload
                .header
                .iter()
                .find(|(name, _)| **name == key || name.parse::<u64>().ok() == Some(index + 1));
            let Some((_, Value::String(address))) = address else {
                let what = format!("has no address for part {} of {count}", index + 1);
                return Err(self.odd_answer("objects/batch", &what));
            };
            let first = index * chunk;
            let body = Body::Part(path, first, chunk.min(object.size - first));
            let answer = self.put(address, &body)?;
            let etag = answer.headers().get("etag");
            let etag = etag.and_then(|etag| etag.to_str().ok()).unwrap_or_default();
            if etag.is_empty() {
                return Err(self.odd_answer(host(address), "has no ETag for a part"));
            }
            parts.push(json!({"partNumber": index + 1, "etag": etag}));
            progress.at((first + chunk).min(object.size));
        }
        let text = json!({"oid": object.oid, "parts": parts}).to_string();
        self.post(&upload.href, LFS, &Body::Bytes(text.as_bytes()), &[])?;
        Ok(())
    }

    fn put(&self, address: &str, body: &Body<'_>) -> Result<Response<Answer>, HubError> {
        // Without a kind: a signed address may hold for requests without that header alone.
        let (status, answer) = self.send(&Method::PUT, address, "", body)?;
        match status {
            200..300 => Ok(answer),
            status => Err(self.error(
                Reason::Unreachable,
                format!(
                    "{} answers {status} to the content; what was sent is kept there, and the next try goes on from it",
                    host(address)
                ),
            )),
        }
    }

    /// Sends a request; what the server cannot serve for a while, or what was cut off, is tried again. The token goes to the hub alone.
    fn send(
        &self,
        method: &Method,
        path: &str,
        kind: &str,
        body: &Body<'_>,
    ) -> Result<(u16, Response<Answer>), HubError> {
        let settings = &self.hub.settings;
        let url = match path.contains("://") {
            true => path.to_owned(),
            false => format!("{}/{path}", settings.endpoint),
        };
        let mut tries = 1;
        loop {
            let why = match self.once(method, &url, kind, body)? {
                Ok(answer) => match answer.status().as_u16() {
                    status @ (429 | 500 | 502 | 503 | 504) if tries < MAX_TRIES => {
                        format!("{} answers {status}", host(&url))
                    }
                    status => return Ok((status, answer)),
                },
                Err(error) if passes(&error) => error.to_string(),
                Err(error) => {
                    let message = format!("cannot reach {}: {error}", host(&url));
                    return Err(self.error(Reason::Unreachable, message));
                }
            };
            if tries == MAX_TRIES {
                let message = format!(
                    "cannot reach {}: {why}; contents that are there need not be sent again by the next try",
                    host(&url)
                );
                return Err(self.error(Reason::Unreachable, message));
            }
            std::thread::sleep(pause(settings, tries));
            tries += 1;
        }
    }

    fn once(
        &self,
        method: &Method,
        url: &str,
        kind: &str,
        body: &Body<'_>,
    ) -> Result<Result<Response<Answer>, ureq::Error>, HubError> {
        let settings = &self.hub.settings;
        let mut request = Request::builder().method(method.clone()).uri(url);
        if !kind.is_empty() {
            let accepted = if kind == LFS { LFS } else { "application/json" };
            request = (request.header("content-type", kind)).header("accept", accepted);
        }
        if let Some(token) = &settings.token
            && same_origin(url, &settings.endpoint)
        {
            request = request.header("authorization", format!("Bearer {}", token.text));
        }
        let odd = |error: ureq::http::Error| {
            self.error(Reason::Unreachable, format!("{url} is no address: {error}"))
        };
        let agent = self.hub.http.agent();
        Ok(match body {
            Body::Bytes(bytes) => agent.run(request.body(*bytes).map_err(odd)?),
            Body::Part(path, first, len) => {
                let cannot = |error| HubError::cache("read", path)(error);
                let mut file = File::open(path).map_err(cannot)?;
                file.seek(SeekFrom::Start(*first)).map_err(cannot)?;
                let request = request.header("content-length", len.to_string());
                let mut part = file.take(*len);
                agent.run(
                    request
                        .body(SendBody::from_reader(&mut part))
                        .map_err(odd)?,
                )
            }
        })
    }

    fn error(&self, reason: Reason, message: String) -> HubError {
        HubError::new(reason, self.repo.to_string(), message)
    }

    /// The error for an answer of another form than the hub's.
    pub(super) fn odd_answer(&self, path: &str, what: &str) -> HubError {
        let endpoint = &self.hub.settings.endpoint;
        let message = format!("the answer to {path} {what}; is {endpoint} a hub (HF_ENDPOINT)?");
        self.error(Reason::Unreachable, message)
    }

    /// The error for a refusal in the hub's words.
    pub(super) fn refused(&self, status: u16, said: &str) -> HubError {
        let settings = &self.hub.settings;
        let host = host(&settings.endpoint);
        let says = match said.trim_end_matches('.') {
            "" => format!("{host} answers {status}"),
            said => format!("{host} says \"{said}\""),
        };
        let origin = settings.token.as_ref().map_or("", |token| &token.origin);
        let page = format!("{}/settings/tokens", settings.endpoint);
        let owner = self.repo.id.split('/').next().unwrap_or_default();
        let (reason, message) = match status {
            401 => (
                Reason::Denied,
                format!("{says}: the token of {origin} is not valid; make a new one at {page}"),
            ),
            403 => (
                Reason::Denied,
                format!(
                    "{says}: the token of {origin} may not write to {owner}; give it that right at {page}"
                ),
            ),
            404 => (
                Reason::NoRepository,
                format!("{says}: no such repository or branch"),
            ),
            400 | 413 | 422 => (Reason::Denied, says),
            _ => (Reason::Unreachable, says),
        };
        self.error(reason, message)
    }
}

fn number(value: &Value) -> Option<u64> {
    match value {
        Value::String(text) => text.parse().ok(),
        other => other.as_u64(),
    }
}
