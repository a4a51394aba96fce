//! Downloads one file into the cache: continued where it stopped, checked against the hub's length and hash.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use ureq::http::Method;

use super::Hub;
use super::cache::{create_parent, is_commit_name, is_plain};
use super::error::{HubError, Reason, Refusal, place};
use super::http::{Answer, Follow, pause};
use super::part::Part;
use super::progress::{Progress, decimal};
use super::repo::Repo;
use super::settings::shown;

/// Most tries in a row that bring nothing.
const MAX_TRIES: u32 = 5;
/// Bytes that a connection has to bring to count as one that brings something.
const PROGRESS: u64 = 1 << 16;
/// Most bytes of a content whose length the hub does not announce.
const MOST_UNANNOUNCED: u64 = 1 << 30;
/// Bytes that are read at once.
pub(super) const BUFFER: usize = 1 << 20;

/// What the hub says about a file before it is downloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Metadata {
    pub(super) commit: String,
    /// The content's name: its SHA-256 for large files, git's hash for others.
    pub(super) etag: String,
    pub(super) size: Option<u64>,
}

/// How a request for the rest of a file ended.
enum Received {
    All,
    /// Cut off, for a reason.
    Cut(String),
}

impl Hub {
    /// Downloads `file` of `repo` unless the cache has its content, and returns its path.
    pub(super) fn download(
        &self,
        repo: &Repo,
        file: &str,
        progress: &mut Progress,
    ) -> Result<(PathBuf, Metadata), HubError> {
        if !is_plain(file) {
            return Err(HubError::new(
                Reason::NoFile,
                place(repo, Some(file)),
                "not the name of a file",
            ));
        }
        let metadata = self.metadata(repo, file)?;
        let pointer = (self.cache.snapshot_of(repo, &metadata.commit)).join(file);
        let blob = self.cache.blob(repo, &metadata.etag);
        if !holds(&pointer, metadata.size) {
            if !holds(&blob, metadata.size) {
                let _lock = self.cache.lock(repo, &metadata.etag)?;
                // Another process may have been faster.
                if !holds(&blob, metadata.size) {
                    self.complete(repo, file, &metadata, &blob, progress)?;
                }
            }
            self.cache.point(&pointer, &blob, file)?;
        }
        progress.end(fs::metadata(&pointer).map_or(0, |data| data.len()));
        Ok((pointer, metadata))
    }

    /// What the hub says about a file.
    fn metadata(&self, repo: &Repo, file: &str) -> Result<Metadata, HubError> {
        let path = repo.file_path(file);
        let answer = self.send(repo, Some(file), &Method::HEAD, &path, 0, Follow::SameHost)?;
        let missing = |header: &str| {
            HubError::new(
                Reason::Unreachable,
                place(repo, Some(file)),
                format!(
                    "the answer of {} has no {header}; is it a hub (HF_ENDPOINT)?",
                    shown(&self.settings.endpoint)
                ),
            )
        };
        let commit = match answer.header("x-repo-commit") {
            "" if Repo::is_commit(&repo.revision) => repo.revision.clone(),
            commit => commit.to_owned(),
        };
        let etag = match answer.header("x-linked-etag") {
            "" => answer.header("etag"),
            linked => linked,
        };
        let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
        if !is_commit_name(&commit) {
            return Err(missing("X-Repo-Commit"));
        }
        if !is_commit_name(&etag) {
            return Err(missing("ETag"));
        }
        let length = match answer.is_redirect() {
            // The length of the redirect.
            true => None,
            false => answer.number("content-length"),
        };
        Ok(Metadata {
            commit,
            etag,
            size: answer.number("x-linked-size").or(length),
        })
    }

    /// Downloads what is missing of a content, checks it, and gives it its name.
    fn complete(
        &self,
        repo: &Repo,
        file: &str,
        metadata: &Metadata,
        blob: &Path,
        progress: &Progress,
    ) -> Result<(), HubError> {
        let mut name = blob.as_os_str().to_owned();
        name.push(".incomplete");
        let path = PathBuf::from(name);
        create_parent(&path)?;
        let at = || place(repo, Some(file));
        let mut part = Part::open(&path, metadata)?;
        has_room(&path, metadata.size.unwrap_or(0).saturating_sub(part.len))?;
        let mut tries = 1;
        let mut once_more = part.len > 0;
        loop {
            progress.begin(file, part.len, metadata.size);
            let present = part.len;
            match self.receive(repo, file, metadata, &mut part, progress)? {
                Received::All => match part.check(metadata) {
                    Ok(()) => {
                        part.close()?;
                        return fs::rename(&path, blob).map_err(HubError::cache("write", blob));
                    }
                    // The beginning may be of a download that a crash spoilt.
                    Err(_) if once_more => {
                        once_more = false;
                        part.restart(metadata)?;
                    }
                    Err(why) => {
                        drop(part);
                        fs::remove_file(&path).map_err(HubError::cache("remove", &path))?;
                        return Err(HubError::new(
                            Reason::Corrupt,
                            at(),
                            format!("{why}; what came was deleted, try again"),
                        ));
                    }
                },
                Received::Cut(why) => {
                    let brought = part.len.saturating_sub(present);
                    tries = if brought >= PROGRESS { 1 } else { tries + 1 };
                    if tries > MAX_TRIES {
                        return Err(HubError::new(
                            Reason::Unreachable,
                            at(),
                            format!(
                                "{why}; the first {} bytes are kept, and the next try goes on from there",
                                part.len
                            ),
                        ));
                    }
                    std::thread::sleep(pause(&self.settings, tries));
                }
            }
        }
    }

    /// Appends what the hub sends to the part.
    fn receive(
        &self,
        repo: &Repo,
        file: &str,
        metadata: &Metadata,
        part: &mut Part,
        progress: &Progress,
    ) -> Result<Received, HubError> {
        if metadata.size == Some(part.len) && part.len > 0 {
            return Ok(Received::All);
        }
        if metadata.size.is_some_and(|size| part.len > size) {
            part.restart(metadata)?;
        }
        // The branch may move meanwhile.
        let path = repo.at(&metadata.commit).file_path(file);
        let answer =
            match self
                .http
                .send(&self.settings, &Method::GET, &path, part.len, Follow::All)
            {
                Ok(answer) => answer,
                Err(why) => return Ok(Received::Cut(why)),
            };
        match answer.status {
            200 if part.len > 0 => part.restart(metadata)?,
            200 => {}
            206 if begins_at(answer.header("content-range")) == Some(part.len) => {}
            206 | 416 => {
                let why = format!("byte {} was asked for, and another part came", part.len);
                part.restart(metadata)?;
                return Ok(Received::Cut(why));
            }
            _ => return Err(refusal(&answer).error(repo, Some(file), &self.settings)),
        }
        let most = metadata.size.unwrap_or(MOST_UNANNOUNCED);
        let mut body = answer.into_reader();
        let mut buffer = vec![0; BUFFER];
        loop {
            let count = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) => return Ok(Received::Cut(format!("the connection broke: {error}"))),
            };
            part.append(&buffer[..count])?;
            progress.at(part.len);
            if part.len > most {
                break;
            }
        }
        if metadata.size.is_none() && part.len > most {
            part.restart(metadata)?;
            return Err(HubError::new(
                Reason::Corrupt,
                place(repo, Some(file)),
                format!(
                    "its length is not announced, and more than {} came; what came was deleted",
                    decimal(most)
                ),
            ));
        }
        match metadata.size {
            Some(size) if part.len < size => Ok(Received::Cut(format!(
                "the connection ended after {} of {size} bytes",
                part.len
            ))),
            _ => Ok(Received::All),
        }
    }

    /// The answer for `path` if it is a success or a redirect to another host.
    pub(super) fn send(
        &self,
        repo: &Repo,
        file: Option<&str>,
        method: &Method,
        path: &str,
        from: u64,
        follow: Follow,
    ) -> Result<Answer, HubError> {
        if self.settings.offline {
            return Err(HubError::new(
                Reason::Offline,
                place(repo, file),
                "not in the cache, and HF_HUB_OFFLINE forbids to ask the hub",
            ));
        }
        let answer = (self.http)
            .send(&self.settings, method, path, from, follow)
            .map_err(|why| HubError::new(Reason::Unreachable, place(repo, file), why))?;
        match answer.status {
            200..400 => Ok(answer),
            _ => Err(refusal(&answer).error(repo, file, &self.settings)),
        }
    }
}

/// Refuses a download of more bytes than the disk has free.
fn has_room(path: &Path, bytes: u64) -> Result<(), HubError> {
    match free_bytes(path) {
        Some(free) if bytes > free => Err(HubError::new(
            Reason::Cache,
            "the cache of the hub",
            format!(
                "{} is to have {} more, and the disk has {} free; make room, or set HF_HUB_CACHE to a folder of another disk",
                path.display(),
                decimal(bytes),
                decimal(free)
            ),
        )),
        _ => Ok(()),
    }
}

/// Bytes that are free where `path` is, where the system says it.
fn free_bytes(path: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let disk = rustix::fs::statvfs(path).ok()?;
        disk.f_bavail.checked_mul(disk.f_frsize)
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}

fn refusal(answer: &Answer) -> Refusal<'_> {
    Refusal {
        status: answer.status,
        code: answer.header("x-error-code"),
        message: answer.header("x-error-message"),
    }
}

/// Whether `path` is a file of the announced length.
fn holds(path: &Path, size: Option<u64>) -> bool {
    let found = fs::metadata(path).ok().filter(|data| data.is_file());
    found.is_some_and(|data| size.is_none_or(|size| data.len() == size))
}

/// The first byte of a `Content-Range`, `bytes 5-9/10`.
fn begins_at(range: &str) -> Option<u64> {
    let (first, _) = range.strip_prefix("bytes ")?.split_once('-')?;
    first.trim().parse().ok()
}
