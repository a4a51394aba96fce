//! Uploads a folder's files to a model repository: what the hub has already is not sent again.
//!
//! # Source
//! The hub's HTTP interface as Python's `huggingface_hub` speaks it: repos/create, preupload, Git LFS's batch API with the transfers `basic`
//! and `multipart`, commit.

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::Hub;
use super::cache::is_plain;
use super::error::{HubError, Reason};
use super::progress::Progress;
use super::repo::{MAIN, Repo, escaped};
use super::upload::{Body, MOST_FILES, Upload};

/// Bytes of a file by which the hub decides how it is stored.
const SAMPLE: usize = 512;

/// A file to upload.
#[derive(Debug, Clone)]
pub struct PushFile {
    /// Its path in the repository, with `/`.
    pub name: String,
    /// Where it is on this machine.
    pub path: PathBuf,
}

/// An upload.
#[derive(Debug)]
pub struct Push<'a> {
    /// The repository; its revision is the branch to commit to.
    pub repo: &'a Repo,
    /// The files.
    pub files: &'a [PushFile],
    /// Whether the repository is made private if it does not exist.
    pub private: bool,
    /// The commit's first line.
    pub summary: &'a str,
}

/// What came of an upload.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pushed {
    /// The page of the repository.
    pub page: String,
    /// Whether it was made.
    pub created: bool,
    /// The new commit; `None` if the repository had all files as they are.
    pub commit: Option<String>,
    /// Files that were committed.
    pub committed: usize,
    /// Bytes that were sent.
    pub sent: u64,
    /// Large files whose content the hub had already, though they are committed anew.
    pub present: usize,
    /// Files that the repository had as they are.
    pub unchanged: usize,
    /// Files that the repository's `.gitignore` leaves out.
    pub ignored: usize,
}

/// A file with its length and hash, as the hub stores it.
struct Planned<'a> {
    file: &'a PushFile,
    size: u64,
    /// SHA-256, or git's hash of a small file.
    oid: String,
    large: bool,
}

/// The hub's answer about a file.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mode {
    path: String,
    upload_mode: String,
    #[serde(default)]
    should_ignore: bool,
    /// The content's hash that the branch has under this name.
    #[serde(default)]
    oid: Option<String>,
}

impl Hub {
    /// Whether an upload can be tried: there is a token, and requests are not forbidden.
    ///
    /// # Errors
    /// If not.
    pub fn may_push(&self, repo: &Repo) -> Result<(), HubError> {
        let error = |reason, message: String| HubError::new(reason, repo.to_string(), message);
        if self.settings.offline {
            let message = "HF_HUB_OFFLINE forbids requests; unset it to upload".to_owned();
            return Err(error(Reason::Offline, message));
        }
        if self.settings.token.is_none() {
            return Err(error(
                Reason::Denied,
                format!(
                    "an upload needs a token that may write: set HF_TOKEN to one from {}/settings/tokens, or run `hf auth login`",
                    self.settings.endpoint
                ),
            ));
        }
        Ok(())
    }

    /// Uploads files and commits them at once: all or, if anything fails, none. Contents that were sent before a failure need not be sent
    /// again by the next try.
    ///
    /// # Errors
    /// Without a token, for one that may not write, when the hub cannot be reached, and when a file cannot be read.
    pub fn push(&self, push: &Push<'_>) -> Result<Pushed, HubError> {
        let repo = push.repo;
        self.may_push(repo)?;
        if let Some(odd) = push.files.iter().find(|file| !is_plain(&file.name)) {
            return Err(HubError::new(
                Reason::NoFile,
                repo.to_string(),
                format!("{}: not the name of a file", odd.name),
            ));
        }
        let upload = Upload::new(self, repo);
        let created = create(&upload, repo, push.private)?;
        if repo.revision != MAIN {
            let path = format!(
                "api/models/{}/branch/{}",
                repo.id,
                escaped(&repo.revision, false)
            );
            // 409: there is such a branch.
            upload.post_json(&path, &json!({}), &[409])?;
        }
        let mut pushed = Pushed {
            page: format!("{}/{}", self.settings.endpoint, repo.id),
            created,
            ..Pushed::default()
        };
        let planned = plan(&upload, push, &mut pushed)?;
        send(&upload, &planned, &mut pushed, self.settings.progress)?;
        if planned.is_empty() {
            return Ok(pushed);
        }
        pushed.committed = planned.len();
        pushed.commit = Some(commit(&upload, push, &planned)?);
        Ok(pushed)
    }
}

/// Creates the repository; `false` if it exists.
fn create(upload: &Upload<'_>, repo: &Repo, private: bool) -> Result<bool, HubError> {
    let (owner, name) = repo.id.split_once('/').unwrap_or(("", &repo.id));
    let body = json!({"name": name, "organization": owner, "private": private});
    let (status, answer) = upload.post_json("api/repos/create", &body, &[403, 409])?;
    // A token may write to a repository and not make any.
    if status == 403 && !upload.exists() {
        return Err(upload.refused(403, answer["error"].as_str().unwrap_or_default()));
    }
    Ok((200..300).contains(&status))
}

/// Asks how each file is stored, and drops those that the branch has.
fn plan<'a>(
    upload: &Upload<'_>,
    push: &Push<'a>,
    pushed: &mut Pushed,
) -> Result<Vec<Planned<'a>>, HubError> {
    let mut files = Vec::new();
    for file in push.files {
        let cannot = |error| HubError::cache("read", &file.path)(error);
        let size = std::fs::metadata(&file.path).map_err(cannot)?.len();
        let mut sample = Vec::new();
        let read = std::fs::File::open(&file.path).map_err(cannot)?;
        std::io::Read::read_to_end(&mut std::io::Read::take(read, SAMPLE as u64), &mut sample)
            .map_err(cannot)?;
        files.push(json!({"path": file.name, "sample": STANDARD.encode(&sample), "size": size}));
    }
    let repo = push.repo;
    let path = format!(
        "api/models/{}/preupload/{}",
        repo.id,
        escaped(&repo.revision, false)
    );
    let mut modes: Vec<Mode> = Vec::new();
    for some in files.chunks(MOST_FILES) {
        let (_, answer) = upload.post_json(&path, &json!({"files": some}), &[])?;
        let some: Vec<Mode> = serde_json::from_value(answer["files"].clone())
            .map_err(|error| upload.odd_answer(&path, &error.to_string()))?;
        modes.extend(some);
    }
    let mut planned = Vec::new();
    for file in push.files {
        let mode = modes.iter().find(|mode| mode.path == file.name);
        let mode = mode
            .ok_or_else(|| upload.odd_answer(&path, &format!("says nothing of {}", file.name)))?;
        if mode.should_ignore {
            pushed.ignored += 1;
            continue;
        }
        // A store of large contents takes no empty one.
        let large = mode.upload_mode == "lfs" && !is_empty(&file.path);
        let (size, oid) = hash(&file.path, large)?;
        if mode.oid.as_deref() == Some(oid.as_str()) {
            pushed.unchanged += 1;
            continue;
        }
        planned.push(Planned {
            file,
            size,
            oid,
            large,
        });
    }
    Ok(planned)
}

fn is_empty(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.len() == 0)
}

/// Length and hash of a file: SHA-256 of a large one, git's of others.
fn hash(path: &Path, large: bool) -> Result<(u64, String), HubError> {
    let cannot = |error| HubError::cache("read", path)(error);
    let mut file = std::fs::File::open(path).map_err(cannot)?;
    let size = file.metadata().map_err(cannot)?.len();
    if large {
        let mut hash = Sha256::new();
        std::io::copy(&mut file, &mut hash).map_err(cannot)?;
        return Ok((size, format!("{:x}", hash.finalize())));
    }
    let mut hash = Sha1::new_with_prefix(format!("blob {size}\0"));
    std::io::copy(&mut file, &mut hash).map_err(cannot)?;
    Ok((size, format!("{:x}", hash.finalize())))
}

/// Sends the contents of large files that the hub does not have.
fn send(
    upload: &Upload<'_>,
    planned: &[Planned<'_>],
    pushed: &mut Pushed,
    shown: bool,
) -> Result<(), HubError> {
    let large: Vec<&Planned<'_>> = planned.iter().filter(|file| file.large).collect();
    if large.is_empty() {
        return Ok(());
    }
    let objects = upload.batch(large.iter().map(|file| (file.oid.as_str(), file.size)))?;
    let absent = |file: &&&Planned<'_>| objects.iter().any(|o| o.oid == file.oid && o.is_absent());
    let total = large.iter().filter(absent).map(|file| file.size).sum();
    let mut progress = Progress::upload(upload.name(), total, shown);
    for file in large {
        let object = objects.iter().find(|object| object.oid == file.oid);
        let object = object.ok_or_else(|| {
            upload.odd_answer(
                "objects/batch",
                &format!("says nothing of {}", file.file.name),
            )
        })?;
        if !object.is_absent() {
            pushed.present += 1;
            continue;
        }
        progress.begin(&file.file.name, 0, Some(file.size));
        pushed.sent += upload.content(&file.file.path, object, &progress)?;
        progress.end(file.size);
    }
    Ok(())
}

/// Commits; small files travel in the commit itself.
fn commit(
    upload: &Upload<'_>,
    push: &Push<'_>,
    planned: &[Planned<'_>],
) -> Result<String, HubError> {
    let mut lines =
        vec![json!({"key": "header", "value": {"summary": push.summary, "description": ""}})];
    for Planned {
        file,
        size,
        oid,
        large,
    } in planned
    {
        lines.push(match large {
            true => json!({"key": "lfsFile", "value": {"path": file.name, "algo": "sha256", "oid": oid, "size": size}}),
            false => {
                let bytes = std::fs::read(&file.path).map_err(HubError::cache("read", &file.path))?;
                let content = STANDARD.encode(bytes);
                json!({"key": "file", "value": {"path": file.name, "encoding": "base64", "content": content}})
            }
        });
    }
    let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
    let repo = push.repo;
    let path = format!(
        "api/models/{}/commit/{}",
        repo.id,
        escaped(&repo.revision, false)
    );
    let text = lines.join("\n");
    let body = Body::Bytes(text.as_bytes());
    let (_, answer) = upload.post(&path, "application/x-ndjson", &body, &[])?;
    answer["commitOid"]
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| upload.odd_answer(&path, "has no commitOid"))
}
