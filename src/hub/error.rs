//! Why the hub did not give a file.

use std::io;
use std::path::Path;

use super::repo::Repo;
use super::settings::{HubSettings, shown};
use crate::error::Error;

/// Why the hub did not give something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// There is no such repository, or the user may not see it.
    NoRepository,
    /// The repository has no such branch, tag or commit.
    NoRevision,
    /// The repository has no such file.
    NoFile,
    /// The repository is private or gated, or the token is refused.
    Denied,
    /// The hub cannot be reached, or answers with an error of its own.
    Unreachable,
    /// `HF_HUB_OFFLINE` forbids requests.
    Offline,
    /// What was downloaded has another length or hash than announced.
    Corrupt,
    /// The cache cannot be read or written.
    Cache,
}

/// A refusal or failure of the hub.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {message}")]
pub struct HubError {
    /// Its cause.
    pub reason: Reason,
    /// The repository or file, with its revision.
    pub place: String,
    /// What happened, in the hub's words where it gives any, and what to do.
    pub message: String,
}

impl HubError {
    pub(super) fn new(
        reason: Reason,
        place: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            reason,
            place: place.into(),
            message: message.into(),
        }
    }

    /// A builder for `map_err` of a file operation in the cache.
    pub(super) fn cache(action: &str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let message = format!("cannot {action} {}", path.display());
        move |error| {
            Self::new(
                Reason::Cache,
                "the cache of the hub",
                format!("{message}: {error}"),
            )
        }
    }
}

/// What the user named is wrong: [`Error::Usage`]; other failures: [`Error::Hub`].
impl From<HubError> for Error {
    fn from(error: HubError) -> Self {
        match error.reason {
            Reason::NoRepository | Reason::NoRevision | Reason::NoFile | Reason::Denied => {
                Self::Usage(error.to_string())
            }
            _ => Self::Hub {
                place: error.place,
                message: error.message,
            },
        }
    }
}

/// The refusal in an answer.
pub(super) struct Refusal<'a> {
    pub(super) status: u16,
    /// `X-Error-Code`.
    pub(super) code: &'a str,
    /// `X-Error-Message`.
    pub(super) message: &'a str,
}

impl Refusal<'_> {
    /// The error for `file` of `repo`, or for the repository.
    pub(super) fn error(
        &self,
        repo: &Repo,
        file: Option<&str>,
        settings: &HubSettings,
    ) -> HubError {
        let endpoint = shown(&settings.endpoint);
        let host = host(&endpoint);
        let page = format!("{endpoint}/{}", repo.path());
        let says = match self.message {
            "" => format!("{host} answers {}", self.status),
            message => format!("{host} says \"{}\"", message.trim_end_matches('.')),
        };
        let token = match &settings.token {
            Some(token) => format!("the token of {} was sent", token.origin),
            None => format!(
                "no token was sent: set HF_TOKEN to one from {endpoint}/settings/tokens, or run `hf auth login`"
            ),
        };
        let (reason, message) = match (self.status, self.code) {
            (_, "GatedRepo") => (
                Reason::Denied,
                format!("{says}. Ask for access at {page}; {token}"),
            ),
            (_, "RevisionNotFound") => (
                Reason::NoRevision,
                format!(
                    "there is no branch, tag or commit `{}`; those of the repository are at {page}/branches",
                    repo.revision
                ),
            ),
            (_, "EntryNotFound") => (Reason::NoFile, "the repository has no such file".to_owned()),
            (401, _) if self.message.starts_with("Invalid credentials") => {
                (Reason::Denied, format!("{says}; {token}"))
            }
            (401 | 404, "RepoNotFound" | "")
                if file.is_none() || self.status == 401 || self.code == "RepoNotFound" =>
            {
                (
                    Reason::NoRepository,
                    format!(
                        "{host} has no such repository, or it is private and needs a token that may read it; {token}"
                    ),
                )
            }
            (404, _) => (Reason::NoFile, format!("{says}: no such file")),
            (401 | 403, _) => (Reason::Denied, format!("{says}; {token}")),
            _ => (Reason::Unreachable, says),
        };
        HubError::new(reason, place(repo, file), message)
    }
}

/// `owner/name/file@revision`.
pub(super) fn place(repo: &Repo, file: Option<&str>) -> String {
    match file {
        None => repo.to_string(),
        Some(file) => format!("{}/{file}@{}", repo.id, repo.revision),
    }
}

/// The host of an address, with its port.
pub(super) fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split(['/', '?']).next().unwrap_or(rest)
}
