//! The cache of the hub on this machine, in the layout that Python's `huggingface_hub` uses.
//!
//! ```text
//! models--owner--name/
//!   blobs/<hash>                 the contents; `<hash>.incomplete` while they are downloaded
//!   refs/main                    the commit that a branch or tag was
//!   snapshots/<commit>/<file>    links into blobs
//! .locks/models--owner--name/<hash>.lock
//! ```

use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};

use super::error::HubError;
use super::repo::Repo;
use crate::atomic::write_atomic;
use crate::outside;

/// The cache's folder.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    root: PathBuf,
}

/// A repository in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedRepo {
    /// `owner/name`.
    pub id: String,
    /// Its bytes on disk.
    pub bytes: u64,
}

impl Cache {
    pub(super) fn new(root: &Path) -> Self {
        Self {
            root: root.to_path_buf(),
        }
    }

    fn folder(&self, repo: &Repo) -> PathBuf {
        self.root.join(repo.folder_name())
    }

    /// The commit that the revision was when it was downloaded.
    pub(super) fn commit(&self, repo: &Repo) -> Option<String> {
        if !is_plain(&repo.revision) {
            return None;
        }
        let file = self.folder(repo).join("refs").join(&repo.revision);
        match outside::read_text(&file, outside::SETTINGS) {
            Ok(commit) => Some(commit.trim().to_owned()).filter(|commit| is_plain(commit)),
            Err(_) => Repo::is_commit(&repo.revision).then(|| repo.revision.clone()),
        }
    }

    /// The folder of the revision's files, if there are any.
    pub(super) fn snapshot(&self, repo: &Repo) -> Option<PathBuf> {
        let folder = self.snapshot_of(repo, &self.commit(repo)?);
        folder.is_dir().then_some(folder)
    }

    /// The folder of a commit's files.
    pub(super) fn snapshot_of(&self, repo: &Repo, commit: &str) -> PathBuf {
        self.folder(repo).join("snapshots").join(commit)
    }

    /// The place of a content.
    pub(super) fn blob(&self, repo: &Repo, hash: &str) -> PathBuf {
        self.folder(repo).join("blobs").join(hash)
    }

    /// Notes which commit the revision is.
    pub(super) fn set_commit(&self, repo: &Repo, commit: &str) -> Result<(), HubError> {
        if repo.revision == commit || !is_plain(&repo.revision) {
            return Ok(());
        }
        let file = self.folder(repo).join("refs").join(&repo.revision);
        create_parent(&file)?;
        write_atomic(&file, commit.as_bytes())
            .map_err(|error| HubError::cache("write", &file)(io::Error::other(error.to_string())))
    }

    /// Makes the file `pointer` of a snapshot the content `blob`: by a link, or where the system has none by moving it.
    pub(super) fn point(&self, pointer: &Path, blob: &Path, file: &str) -> Result<(), HubError> {
        create_parent(pointer)?;
        if pointer.symlink_metadata().is_ok() {
            fs::remove_file(pointer).map_err(HubError::cache("replace", pointer))?;
        }
        let name = blob.file_name().unwrap_or_default();
        let up: PathBuf = std::iter::repeat_n("..", file.split('/').count() + 1).collect();
        if link(&up.join("blobs").join(name), pointer).is_ok() {
            return Ok(());
        }
        fs::rename(blob, pointer).map_err(HubError::cache("write", pointer))
    }

    /// Locks a content against other processes until the file is dropped.
    pub(super) fn lock(&self, repo: &Repo, hash: &str) -> Result<File, HubError> {
        let folder = self.root.join(".locks").join(repo.folder_name());
        let path = folder.join(format!("{hash}.lock"));
        create_parent(&path)?;
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(HubError::cache("create", &path))?;
        if let Err(fs::TryLockError::WouldBlock) = file.try_lock() {
            eprintln!("waiting for another process that downloads {}", repo.id);
            file.lock().map_err(HubError::cache("lock", &path))?;
        }
        // A file system without locks has one user at a time.
        Ok(file)
    }

    /// The models in the cache with files, by name.
    pub(super) fn models(&self) -> Vec<CachedRepo> {
        let Ok(entries) = fs::read_dir(&self.root) else {
            return Vec::new();
        };
        let mut found: Vec<CachedRepo> = entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let name = entry.file_name();
                let id = id_of(name.to_str()?)?;
                let bytes = bytes_below(&entry.path().join("blobs"), true)
                    + bytes_below(&entry.path().join("snapshots"), false);
                (bytes > 0).then_some(CachedRepo { id, bytes })
            })
            .collect();
        found.sort_by(|left, right| left.id.cmp(&right.id));
        found
    }
}

/// The repository and commit, `owner/name@commit`, that a file in a cache of the hub is from.
pub fn repository_of(path: &Path) -> Option<String> {
    let names: Vec<&str> = path
        .components()
        .map(|component| component.as_os_str().to_str().unwrap_or(""))
        .collect();
    let at = names.windows(3).position(|three| {
        three[1] == "snapshots" && (id_of(three[0]).is_some() || dataset_of(three[0]).is_some())
    })?;
    let id = id_of(names[at]).or_else(|| dataset_of(names[at]))?;
    Some(format!("{id}@{}", names[at + 2]))
}

fn id_of(folder: &str) -> Option<String> {
    let name = folder.strip_prefix("models--")?;
    Some(name.replacen("--", "/", 1))
}

fn dataset_of(folder: &str) -> Option<String> {
    let name = folder.strip_prefix("datasets--")?;
    Some(format!("datasets/{}", name.replacen("--", "/", 1)))
}

/// Bytes of the files below a folder; `links`: whether files that links name count, too.
fn bytes_below(folder: &Path, links: bool) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else {
        return 0;
    };
    let bytes = entries.flatten().map(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => bytes_below(&entry.path(), links),
        Ok(kind) if kind.is_file() || links => {
            fs::metadata(entry.path()).map_or(0, |data| data.len())
        }
        _ => 0,
    });
    bytes.sum()
}

/// Whether a name from outside stays below its folder.
pub(super) fn is_plain(path: &str) -> bool {
    let plain = |component: Component<'_>| matches!(component, Component::Normal(_));
    !path.is_empty()
        && !path.contains(|c: char| c == '\\' || c.is_control())
        && Path::new(path).components().all(plain)
}

/// Whether a server's text can be the name of a commit or of a content: one component of a path.
pub(super) fn is_commit_name(text: &str) -> bool {
    is_plain(text) && !text.contains('/')
}

pub(super) fn create_parent(path: &Path) -> Result<(), HubError> {
    let Some(parent) = path.parent() else {
        return Ok(());
    };
    fs::create_dir_all(parent).map_err(HubError::cache("create", parent))
}

#[cfg(unix)]
fn link(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn link(target: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}

#[cfg(not(any(unix, windows)))]
fn link(_target: &Path, _link: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_in_the_cache_names_its_repository() {
        let path = Path::new("/c/hub/models--Qwen--Qwen3-0.6B/snapshots/abc/model.safetensors");
        assert_eq!(repository_of(path).as_deref(), Some("Qwen/Qwen3-0.6B@abc"));
        let path = Path::new("/c/datasets--me--toys/snapshots/abc/data/x.parquet");
        assert_eq!(repository_of(path).as_deref(), Some("datasets/me/toys@abc"));
        assert_eq!(
            repository_of(Path::new("models/tiny/model.safetensors")),
            None
        );
    }

    #[test]
    fn names_from_outside_stay_in_their_folder() {
        for plain in ["main", "refs/pr/1", "a/b.json"] {
            assert!(is_plain(plain), "{plain}");
        }
        for other in ["", "../x", "a/../../x", "/etc/x", "a\\..\\x"] {
            assert!(!is_plain(other), "{other}");
        }
    }
}
