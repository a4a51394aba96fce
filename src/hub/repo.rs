//! Names of repositories.

use std::fmt;

/// The branch that is meant where none is named.
pub const MAIN: &str = "main";

/// What a repository holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RepoKind {
    /// A model.
    Model,
    /// A data set.
    Dataset,
}

/// A repository of the hub at a revision.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Repo {
    /// What it holds.
    pub kind: RepoKind,
    /// `owner/name`.
    pub id: String,
    /// Branch, tag or commit.
    pub revision: String,
}

impl Repo {
    /// A model's repository.
    pub fn model(id: impl Into<String>, revision: impl Into<String>) -> Self {
        Self {
            kind: RepoKind::Model,
            id: id.into(),
            revision: revision.into(),
        }
    }

    /// A data set's repository.
    pub fn dataset(id: impl Into<String>, revision: impl Into<String>) -> Self {
        Self {
            kind: RepoKind::Dataset,
            ..Self::model(id, revision)
        }
    }

    /// The same repository at another revision.
    pub fn at(&self, revision: &str) -> Self {
        Self {
            revision: revision.to_owned(),
            ..self.clone()
        }
    }

    /// Whether the hub allows `text` as the name of a repository, `owner/name`.
    pub fn is_id(text: &str) -> bool {
        let part = |part: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            !part.is_empty()
                && part.len() <= 96
                && part.chars().all(allowed)
                && !part.starts_with(['-', '.'])
                && !part.ends_with(['-', '.'])
        };
        text.split_once('/')
            .is_some_and(|(owner, name)| part(owner) && part(name))
    }

    /// Whether `revision` is a whole commit hash.
    pub(super) fn is_commit(revision: &str) -> bool {
        revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
    }

    /// Its path on the hub, without the revision.
    pub(super) fn path(&self) -> String {
        match self.kind {
            RepoKind::Model => self.id.clone(),
            RepoKind::Dataset => format!("datasets/{}", self.id),
        }
    }

    /// The path of its list of files.
    pub(super) fn listing_path(&self) -> String {
        let kind = match self.kind {
            RepoKind::Model => "models",
            RepoKind::Dataset => "datasets",
        };
        format!(
            "api/{kind}/{}/revision/{}?blobs=true",
            self.id,
            escaped(&self.revision, false)
        )
    }

    /// The path of one of its files.
    pub(super) fn file_path(&self, file: &str) -> String {
        format!(
            "{}/resolve/{}/{}",
            self.path(),
            escaped(&self.revision, false),
            escaped(file, true)
        )
    }

    /// The name of its folder in the cache.
    pub(super) fn folder_name(&self) -> String {
        let kind = match self.kind {
            RepoKind::Model => "models",
            RepoKind::Dataset => "datasets",
        };
        format!("{kind}--{}", self.id.replace('/', "--"))
    }
}

/// `owner/name`, and `@revision` unless that is `main`.
impl fmt::Display for Repo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.revision.as_str() {
            MAIN => f.write_str(&self.id),
            revision => write!(f, "{}@{revision}", self.id),
        }
    }
}

/// `text` for a URL (RFC 3986); `slashes`: whether slashes stay.
pub(super) fn escaped(text: &str, slashes: bool) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'/' if slashes => out.push('/'),
            b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ if byte.is_ascii_alphanumeric() => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_escaped() {
        let repo = Repo::dataset("me/toys", "refs/convert/parquet");
        assert_eq!(
            repo.file_path("a b/0000.parquet"),
            "datasets/me/toys/resolve/refs%2Fconvert%2Fparquet/a%20b/0000.parquet"
        );
        assert_eq!(repo.folder_name(), "datasets--me--toys");
        assert_eq!(
            Repo::model("me/m", "main").listing_path(),
            "api/models/me/m/revision/main?blobs=true"
        );
    }

    #[test]
    fn names_are_checked() {
        for name in ["Qwen/Qwen2.5-0.5B", "a/b", "me/x_1"] {
            assert!(Repo::is_id(name), "{name}");
        }
        for name in [
            "gpt2", "a/b/c", "./a", "../a", "a/", "/a", "a/b c", "C:/a", "a/-b",
        ] {
            assert!(!Repo::is_id(name), "{name}");
        }
    }
}
