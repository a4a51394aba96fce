//! The Hugging Face hub: files of model and data repositories, downloaded into the cache that Python's `huggingface_hub` uses, too, and
//! uploads of models.
//!
//! A download that was interrupted goes on where it stopped, and nothing is used before its length and hash are those that the hub
//! announces. The token is sent to the hub alone, not to the servers that it redirects to. See [`HubSettings::from_env`] for the
//! environment variables.

mod cache;
mod download;
mod error;
mod http;
#[cfg(test)]
#[allow(dead_code)]
#[path = "../../tests/support/hub.rs"]
pub(crate) mod loopback;
mod part;
mod progress;
mod push;
#[cfg(test)]
#[path = "../../tests/support/push_hub.rs"]
mod push_hub;
mod repo;
mod settings;
#[cfg(test)]
mod tests;
mod upload;

use std::path::PathBuf;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use ureq::http::Method;

pub use cache::{CachedRepo, repository_of};
pub use error::{HubError, Reason};
pub use progress::decimal;
pub use push::{Push, PushFile, Pushed};
pub use repo::{MAIN, Repo, RepoKind};
pub use settings::{HubSettings, Token};

use cache::{Cache, is_commit_name, is_plain};
use http::{Follow, Http};
use progress::Progress;

/// Most bytes of an answer in JSON: the list of a repository with half a million files.
const MOST_JSON: u64 = 64 << 20;

/// The hub, with its cache on this machine.
#[derive(Debug, Clone)]
pub struct Hub {
    settings: HubSettings,
    cache: Cache,
    http: Http,
}

/// The files of a repository at one commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The commit.
    pub commit: String,
    /// All files.
    pub files: Vec<RemoteFile>,
}

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteFile {
    /// Its path in the repository, with `/`.
    pub name: String,
    /// Its bytes; 0 if the hub does not say.
    pub bytes: u64,
}

impl Listing {
    /// The file with this path.
    pub fn file(&self, name: &str) -> Option<&RemoteFile> {
        self.files.iter().find(|file| file.name == name)
    }
}

impl Hub {
    /// The hub of the environment.
    pub fn from_env() -> Self {
        Self::new(HubSettings::from_env())
    }

    /// The hub of these settings.
    pub fn new(settings: HubSettings) -> Self {
        Self {
            cache: Cache::new(&settings.cache),
            http: Http::new(&settings.endpoint),
            settings,
        }
    }

    /// Its settings.
    pub fn settings(&self) -> &HubSettings {
        &self.settings
    }

    /// The cache's folder of the repository at the commit that its revision was when it was downloaded. Files may be missing there.
    pub fn snapshot(&self, repo: &Repo) -> Option<PathBuf> {
        self.cache.snapshot(repo)
    }

    /// The commit that the revision was when it was downloaded.
    pub fn commit(&self, repo: &Repo) -> Option<String> {
        self.cache.commit(repo)
    }

    /// A file in the cache.
    pub fn cached(&self, repo: &Repo, file: &str) -> Option<PathBuf> {
        let path = self.snapshot(repo)?.join(file);
        (is_plain(file) && path.is_file()).then_some(path)
    }

    /// The models in the cache.
    pub fn cached_models(&self) -> Vec<CachedRepo> {
        self.cache.models()
    }

    /// The files of a repository at its revision's present commit.
    ///
    /// # Errors
    /// When the repository or revision does not exist, may not be read, or the hub cannot be reached.
    pub fn listing(&self, repo: &Repo) -> Result<Listing, HubError> {
        #[derive(Deserialize)]
        struct Info {
            sha: String,
            #[serde(default)]
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
            #[serde(default)]
            size: Option<u64>,
        }
        let info: Info = self.json(repo, &repo.listing_path())?;
        // Both become parts of paths in the cache.
        let bad_name = info.siblings.iter().find(|file| !is_plain(&file.rfilename));
        let bad = match bad_name {
            _ if !is_commit_name(&info.sha) => Some(("commit", &info.sha)),
            Some(file) => Some(("file", &file.rfilename)),
            None => None,
        };
        if let Some((what, name)) = bad {
            let endpoint = settings::shown(&self.settings.endpoint);
            let message =
                format!("{endpoint} names a {what} {name:?}, which is not the name of one");
            return Err(HubError::new(Reason::Corrupt, repo.to_string(), message));
        }
        let files = info.siblings.into_iter().map(|file| RemoteFile {
            name: file.rfilename,
            bytes: file.size.unwrap_or(0),
        });
        Ok(Listing {
            commit: info.sha,
            files: files.collect(),
        })
    }

    /// The JSON at `path` of the hub's interface, about `repo`.
    ///
    /// # Errors
    /// As [`Hub::listing`], and for an answer of another form.
    pub fn json<T: DeserializeOwned>(&self, repo: &Repo, path: &str) -> Result<T, HubError> {
        let answer = self.send(repo, None, &Method::GET, path, 0, Follow::All)?;
        let bytes = answer.into_bytes(MOST_JSON);
        let json = bytes
            .and_then(|bytes| serde_json::from_slice(&bytes).map_err(|error| error.to_string()));
        json.map_err(|why| {
            let message = format!("{}/{path}: {why}", settings::shown(&self.settings.endpoint));
            HubError::new(Reason::Unreachable, repo.to_string(), message)
        })
    }

    /// The path of one file, from the cache, or downloaded if it is not there.
    ///
    /// # Errors
    /// As [`Hub::listing`]; when the repository has no such file; for content that is not what the hub announces; and when the
    /// cache cannot be written.
    pub fn file(&self, repo: &Repo, file: &str) -> Result<PathBuf, HubError> {
        if let Some(path) = self.cached(repo, file) {
            return Ok(path);
        }
        let mut progress = Progress::new(&repo.id, None, self.settings.progress);
        let (path, metadata) = self.download(repo, file, &mut progress)?;
        self.cache.set_commit(repo, &metadata.commit)?;
        Ok(path)
    }

    /// Downloads `files` of a listing that the cache does not have, and returns the folder with them.
    ///
    /// # Errors
    /// As [`Hub::file`].
    pub fn files(
        &self,
        repo: &Repo,
        listing: &Listing,
        files: &[String],
    ) -> Result<PathBuf, HubError> {
        let sizes = files.iter().filter_map(|name| listing.file(name));
        let total: u64 = sizes.map(|file| file.bytes).sum();
        let total = Some(total).filter(|&total| total > 0);
        let mut progress = Progress::new(&repo.id, total, self.settings.progress);
        // All files are of one commit, even if the branch moves meanwhile.
        let commit = repo.at(&listing.commit);
        for file in files {
            let bytes = listing.file(file).map_or(0, |file| file.bytes);
            let path = self.cache.snapshot_of(repo, &listing.commit).join(file);
            match std::fs::metadata(path) {
                Ok(found) if bytes == 0 || found.len() == bytes => progress.end(found.len()),
                _ => drop(self.download(&commit, file, &mut progress)?),
            }
        }
        self.cache.set_commit(repo, &listing.commit)?;
        Ok(self.cache.snapshot_of(repo, &listing.commit))
    }
}
