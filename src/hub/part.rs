//! The beginning of a content that is being downloaded, with the hash of what is there.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::download::{BUFFER, Metadata};
use super::error::HubError;

/// The beginning of a content.
pub(super) struct Part {
    path: PathBuf,
    file: File,
    pub(super) len: u64,
    hash: Hash,
}

/// The hash that a content is named by.
enum Hash {
    Sha256(Sha256),
    /// git's hash, over the length and the content, and one over the content alone, which mirrors use.
    Sha1 {
        git: Sha1,
        plain: Sha1,
    },
    /// Of an unknown kind, so that the length alone is checked.
    Unknown,
}

impl Part {
    /// Opens what an earlier download left, or begins a new one.
    pub(super) fn open(path: &Path, metadata: &Metadata) -> Result<Self, HubError> {
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .map_err(HubError::cache("write", path))?;
        let mut hash = Hash::begin(metadata);
        let mut buffer = vec![0; BUFFER];
        let mut len = 0;
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    hash.update(&buffer[..count]);
                    len += count as u64;
                }
                Err(error) => return Err(HubError::cache("read", path)(error)),
            }
        }
        Ok(Self {
            path: path.to_path_buf(),
            file,
            len,
            hash,
        })
    }

    /// Adds bytes at the end.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        self.file
            .write_all(bytes)
            .map_err(HubError::cache("write", &self.path))?;
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Throws away what is there.
    pub(super) fn restart(&mut self, metadata: &Metadata) -> Result<(), HubError> {
        self.file
            .set_len(0)
            .map_err(HubError::cache("write", &self.path))?;
        self.hash = Hash::begin(metadata);
        self.len = 0;
        Ok(())
    }

    /// Compares length and hash with the announced ones; the error says what differs.
    pub(super) fn check(&self, metadata: &Metadata) -> Result<(), String> {
        if let Some(size) = metadata.size.filter(|&size| size != self.len) {
            return Err(format!("expected {size} bytes, found {}", self.len));
        }
        let found = self.hash.texts();
        match found.is_empty() || found.contains(&metadata.etag.to_lowercase()) {
            true => Ok(()),
            false => Err(format!(
                "expected content with the hash {}, found {}",
                metadata.etag, found[0]
            )),
        }
    }

    /// Waits until everything is on disk.
    pub(super) fn close(self) -> Result<(), HubError> {
        self.file
            .sync_all()
            .map_err(HubError::cache("write", &self.path))
    }
}

impl Hash {
    /// The hash of nothing, of the kind that the content's name has.
    fn begin(metadata: &Metadata) -> Self {
        let hex = metadata.etag.bytes().all(|b| b.is_ascii_hexdigit());
        match (metadata.etag.len(), metadata.size) {
            (64, _) if hex => Self::Sha256(Sha256::new()),
            (40, Some(size)) if hex => Self::Sha1 {
                git: Sha1::new().chain_update(format!("blob {size}\0")),
                plain: Sha1::new(),
            },
            _ => Self::Unknown,
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha1 { git, plain } => {
                git.update(bytes);
                plain.update(bytes);
            }
            Self::Unknown => {}
        }
    }

    /// What the name may be.
    fn texts(&self) -> Vec<String> {
        match self {
            Self::Sha256(hash) => vec![format!("{:x}", hash.clone().finalize())],
            Self::Sha1 { git, plain } => [git, plain]
                .map(|hash| format!("{:x}", hash.clone().finalize()))
                .into(),
            Self::Unknown => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_compared_with_their_names() {
        let root = tempfile::tempdir().unwrap();
        let check = |etag: &str, size| {
            let metadata = Metadata {
                commit: "c".into(),
                etag: etag.into(),
                size,
            };
            let path = root.path().join(etag);
            std::fs::write(&path, "hello ").unwrap();
            let mut part = Part::open(&path, &metadata).unwrap();
            part.append(b"world\n").unwrap();
            part.check(&metadata)
        };
        // printf 'hello world\n' | git hash-object --stdin; | sha1sum; | sha256sum
        check("3b18e512dba79e4c8300dd08aeb37f8e728b8dad", Some(12)).unwrap();
        check("22596363b3de40b06f981fb85d82312e8c0ed511", Some(12)).unwrap();
        let sha256 = "a948904f2f0f479b8f8197694b30184b0d2ed1c1cd2a1ec0fb85d299a192a447";
        check(sha256, None).unwrap();
        check("unknown", Some(12)).unwrap();
        let message = check(sha256, Some(13)).unwrap_err();
        assert_eq!(message, "expected 13 bytes, found 12");
        let message = check(&sha256.replace('a', "b"), Some(12)).unwrap_err();
        assert!(message.ends_with(&format!("found {sha256}")), "{message}");
    }
}
